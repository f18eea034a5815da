//! `muster agent`: the daemon of a machine. It starts the roles that the configuration asks for, each a task that
//! owns its state, and ends them in order.
//!
//! Invariants: a role that fails is said so and, where it can, tries on; what runs on the machine is never touched
//! by the daemon's own end. Only a machine that shuts down says good-bye to the cluster.

/// Units with addresses of their own.
pub(crate) mod addresses;
/// What this machine's outputs serve, told to whoever drains.
mod applied;
/// The machine's orderly way out of the cluster.
mod departure;
/// Names for the registered services.
mod dns;
/// The engine's election and its decisions' way to the hub.
mod engine;
/// What the engine tells of what it did.
mod events;
/// The note and the service that stop units which may not outlive the machine's lease.
mod fence;
/// Files made of templates.
pub(crate) mod files;
/// The gateway, kept in step with the registered services.
mod gateway;
/// Former texts of units.
mod history;
/// Who this machine is, and which cluster the hub is of.
mod identity;
/// Metrics for Prometheus.
mod metrics;
/// The cluster network of this machine.
mod overlay;
/// This machine's record in the hub.
mod presence;
/// Registered units, checked, and told to the hub.
pub(crate) mod registrar;
/// nginx, kept in step with the registered services.
mod router;
/// Running something beside a unit.
mod run;
/// What the API answers.
mod service;
/// Programs on the machine itself, with standard input.
mod shell;
/// States of units on their way to the hub.
mod states;
/// The services as outputs serve them.
pub(crate) mod steady;
/// The machine's share of the schedule, carried out through systemd.
mod units;

use crate::config::{self, Config, RUN_DIR, SOCKET, STATE_DIR};
use access::Access;
use anyhow::{Context, Result, anyhow};
use model::{Capacity, MachineId, MachineRecord, Metadata, Subnet};
use registry::{Session, Store, StoreError};
use std::{
    fs::Permissions,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::{TcpListener, UnixListener},
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// Tasks get this long to end; systemd would kill the daemon later anyway.
const SHUTDOWN: Duration = Duration::from_secs(3);
/// What giving up the lead may take: one call to the hub.
const STEP_DOWN: Duration = Duration::from_millis(500);
/// Where flannel has the files of networks with a name.
const NETWORKS_DIR: &str = "/run/flannel/networks";
/// Between attempts to reach a hub that has never answered.
const CONNECT_PAUSE: Duration = Duration::from_millis(250);

/// What every role knows about its machine.
#[derive(Clone)]
struct Machine {
    id: MachineId,
    name: String,
    config: Arc<Config>,
}

/// Runs the daemon until a signal ends it. `read` reads the configuration: now, and again at each SIGHUP.
pub async fn run(read: impl Fn() -> Result<Config>) -> Result<()> {
    let machine = Machine::new(read()?)?;
    for directory in [RUN_DIR, STATE_DIR] {
        std::fs::create_dir_all(directory).with_context(|| format!("cannot make {directory}"))?;
    }
    info!(machine = %machine.id, name = %machine.name, version = env!("CARGO_PKG_VERSION"), "muster starts");
    let mut signals = Signals::new()?;
    let mut hangup = signal(SignalKind::hangup())?;
    let stop = CancellationToken::new();
    let mut roles: JoinSet<Result<()>> = JoinSet::new();

    let mut hub = match machine.config.hub.embedded() {
        true => Some(start_hub(&machine).await?),
        false => None,
    };
    let kernel = net::Kernel::connect().await?;
    let address = match machine.config.machine.address {
        Some(address) => address,
        None => kernel.underlay(machine.config.overlay.interface.as_deref()).await?.address,
    };
    let access = machine.config.access();
    let store = tokio::select! {
        store = connect(&access) => store?,
        _ = signals.end() => return Ok(()),
    };
    let session = Session::start(&store, machine.config.agent.lease_ttl, &lease_file(&machine.id));

    let mut record = MachineRecord::new(machine.name.clone(), address, env!("CARGO_PKG_VERSION").to_owned());
    record.capacity = capacity();
    record.instance = Some(identity::instance()?);
    record.api_port = machine.config.api.listen.map(|listen| listen.port());
    let (subnet, subnets) = watch::channel(None::<Subnet>);
    let named = subnets.clone();
    let metadata = watch::Sender::new(machine.config.machine.metadata.clone());
    let admitted = watch::Sender::new(None);
    // The machine shuts down; nothing is started any more, and the hub has all states; the hub has been told; good-bye
    // was said.
    let [leaving, quiet, gone_soon, left] = std::array::from_fn(|_| watch::Sender::new(false));

    // Nothing here can be reached through the hub.
    let unregistered = watch::Sender::new(true);
    let (metrics, mut networks) = (metrics::Metrics::default(), Vec::new());
    let (ready, mut overlay_ready) = watch::channel(!machine.config.overlay.enabled);
    if machine.config.overlay.enabled {
        let places =
            overlay::Places { state: STATE_DIR.into(), run: RUN_DIR.into(), networks: NETWORKS_DIR.into() };
        let all = overlay::Network::all(&machine.config.overlay);
        // The machine is ready when the network is that every machine has.
        let mut told = Some((subnet, ready));
        for network in all {
            let kernel = net::Kernel::connect().await?;
            let (own, first) = (told.take(), network.is_first());
            let told = own.unwrap_or_else(|| (watch::Sender::new(None), watch::Sender::new(false)));
            let overlay =
                overlay::Overlay::new(machine.clone(), network, store.clone(), kernel, places.clone(), told);
            if first {
                overlay.view().measure(&metrics);
            }
            networks.push(overlay.view());
            let (stop, mut before) = (stop.clone(), overlay_ready.clone());
            roles.spawn(async move {
                // The others come after it, so that of two that cannot be there together it is the one.
                if !first {
                    tokio::select! {
                        _ = before.wait_for(|ready| *ready) => {}
                        () = stop.cancelled() => return Ok(()),
                    }
                }
                match overlay.run(stop).await {
                    Err(error) if !first => {
                        // All else on this machine is more important than a further network.
                        error!(error = format!("{error:#}"), "a network is not looked after any more");
                        Ok(())
                    }
                    other => other,
                }
            });
        }
    } else {
        addresses::tell(Path::new(RUN_DIR), None, &machine.config)?;
    }
    let (mut systemd, mut fenced) = (None, None);
    if machine.config.agent.enabled {
        let (bus, events) = systemd::Systemd::connect().await?;
        let (ready, locals) = (watch::Sender::new(None), watch::Sender::new(None));
        if machine.config.registrar.enabled {
            let registrar = registrar::Registrar {
                machine: machine.clone(),
                store: store.clone(),
                systemd: bus.clone(),
                address,
                units: locals.subscribe(),
                admitted: admitted.subscribe(),
                empty: unregistered.clone(),
                ready: ready.clone(),
            };
            roles.spawn(registrar.run(stop.clone()));
        }
        let inputs = units::Inputs {
            admitted: admitted.subscribe(),
            ready: ready.subscribe(),
            locals,
            lease: session.lease(),
            acknowledged: session.acknowledged(),
            leaving: leaving.subscribe(),
            quiet: quiet.clone(),
        };
        let presence = presence::Presence {
            machine: machine.clone(),
            store: store.clone(),
            record,
            lease: session.lease(),
            subnet: subnets,
            metadata: metadata.subscribe(),
            leaving: quiet.subscribe(),
            announced: gone_soon.clone(),
            admitted,
        };
        roles.spawn(presence.run());
        roles.spawn(addresses::keep(bus.clone(), named.clone(), stop.clone()));
        let units = units::Units::new(machine.clone(), store.clone(), bus.clone(), inputs)?;
        fenced = Some(units.fenced());
        roles.spawn(units.run(events, stop.clone()));
        systemd = Some(bus);
    }
    let engine = machine
        .config
        .engine
        .enabled
        .then(|| roles.spawn(engine::run(machine.clone(), store.clone(), stop.clone())));
    if machine.config.router.has_outputs() {
        let (follower, services) = steady::Follower::new(store.clone(), machine.config.router.panic_hold);
        roles.spawn(follower.run());
        let applied = applied::Applied::new();
        if machine.config.router.nginx.enabled {
            match nginx::Nginx::new(machine.config.router.nginx.clone()) {
                Ok(nginx) => {
                    roles.spawn(router::run(services.clone(), nginx, applied.register("nginx")));
                }
                Err(error) => {
                    let error = format!("{:#}", anyhow!(error));
                    error!(error, "nginx is not looked after and stays as it is");
                }
            }
        }
        if machine.config.router.gateway.enabled {
            let (config, reporter) = (machine.config.router.gateway.clone(), applied.register("gateway"));
            roles.spawn(gateway::run(config, services.clone(), reporter, stop.clone()));
        }
        if machine.config.router.dns.enabled {
            roles.spawn(dns::run(machine.clone(), services.clone(), named.clone(), stop.clone()));
        }
        for kept in machine.config.router.kept() {
            let pace = muster_core::router::Pace::default();
            match kept {
                Ok(kept) => {
                    roles.spawn(files::keep(kept, store.clone(), services.clone(), pace, None));
                }
                // All else on this machine is more important than a file.
                Err(error) => {
                    error!(error = format!("{error:#}"), "a file of the router is not looked after")
                }
            }
        }
        roles.spawn(applied.run(machine.clone(), store.clone(), session.lease(), services));
    }
    let service = service::Hub::new(machine.clone(), store.clone(), systemd.clone(), networks, metrics);
    serve(&machine, service, &stop, &mut roles).await?;

    let mut announced = false;
    let mut departure = Box::pin(departure::wait(
        systemd.clone(),
        fenced,
        &leaving,
        gone_soon.subscribe(),
        unregistered.subscribe(),
        &left,
        &session,
    ));
    let outcome = loop {
        tokio::select! {
            changed = overlay_ready.wait_for(|ready| *ready), if !announced => {
                announced = true;
                if changed.is_ok() {
                    info!("ready");
                    // Only systemd cares; without it there is nobody to tell.
                    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
                }
            }
            () = signals.end() => break Ok(()),
            Some(()) = hangup.recv() => reload(&read, &machine.config, &metadata),
            error = &mut departure => break Err(error),
            error = hub_died(&mut hub) => break Err(error),
            Some(ended) = roles.join_next() => match ended {
                Ok(Ok(())) => {}
                Ok(Err(error)) => break Err(error),
                Err(error) => break Err(anyhow!(error).context("a role ended unexpectedly")),
            },
        }
    };
    if let Err(error) = &outcome {
        error!(error = format!("{error:#}"), "muster ends because a part of it failed");
    }
    // Asked to end in the middle of the machine's departure, the daemon sees that through.
    if let Some(systemd) = &systemd
        && systemd.is_stopping().await
    {
        let mut left = left.subscribe();
        let over = async {
            tokio::select! {
                _ = departure => {}
                _ = left.wait_for(|left| *left) => {}
            }
        };
        let _ = tokio::time::timeout(departure::LONGEST, over).await;
    } else {
        drop(departure);
    }
    stop.cancel();
    // Another engine takes the lead now, and not when the lease has ended.
    let deadline = tokio::time::Instant::now() + STEP_DOWN;
    while engine.as_ref().is_some_and(|engine| !engine.is_finished())
        && tokio::time::Instant::now() < deadline
    {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(session);
    roles.abort_all();
    let _ = tokio::time::timeout(SHUTDOWN, async { while roles.join_next().await.is_some() {} }).await;
    if let Some(hub) = hub {
        let _ = tokio::time::timeout(SHUTDOWN, hub.shutdown()).await;
    }
    info!("muster ends");
    outcome
}

impl Machine {
    fn new(config: Config) -> Result<Self> {
        let id = identity::machine()?;
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let name = config.machine.name.clone().unwrap_or(host);
        Ok(Self { id, name, config: Arc::new(config) })
    }
}

/// What this machine has to give, if the kernel says.
fn capacity() -> Option<Capacity> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = total.trim().trim_end_matches(" kB").trim().parse().ok()?;
    let cpus = std::thread::available_parallelism().ok()?;
    Some(Capacity { memory: kib * 1024, cpus: u32::try_from(cpus.get()).ok()? })
}

async fn start_hub(machine: &Machine) -> Result<hub::Hub> {
    let section = &machine.config.hub;
    let tls = section.tls();
    let advertise =
        machine.config.machine.address.map(|address| {
            config::with_scheme(&format!("{address}:{}", section.listen.port()), tls.is_some())
        });
    let config = hub::HubConfig {
        data_dir: section.data_dir.clone(),
        listen: section.listen,
        advertise,
        name: machine.name.clone(),
        auth: hub::AuthConfig { token_ttl: section.auth_token_ttl, ..hub::AuthConfig::default() },
        tls,
        limits: hub::Limits { quota: section.quota_backend_bytes, ..hub::Limits::default() },
    };
    let hub = hub::Hub::start(config).await.context("the embedded hub did not start")?;
    info!(address = %hub.address(), data = %section.data_dir.display(), "hub serves");
    Ok(hub)
}

/// Never, when no hub is embedded.
async fn hub_died(hub: &mut Option<hub::Hub>) -> anyhow::Error {
    match hub {
        Some(hub) => anyhow!(hub.finished().await).context("the embedded hub failed"),
        None => std::future::pending().await,
    }
}

/// Where the session is noted: by the machine's id, because another id is another machine's presence.
fn lease_file(machine: &MachineId) -> PathBuf {
    Path::new(RUN_DIR).join(format!("lease-{machine}"))
}

/// Tries until the hub's address can be used. Whether anybody answers there is each role's own concern; files that are
/// of no use are not waited for.
async fn connect(access: &Access) -> Result<Store> {
    let mut complained = false;
    loop {
        match Store::connect(access).await {
            Ok(store) => return Ok(store),
            Err(error @ StoreError::File(_)) => return Err(error).context("cannot speak to the hub"),
            Err(error) => {
                if !std::mem::replace(&mut complained, true) {
                    warn!(%error, "waiting for the hub");
                }
                tokio::time::sleep(CONNECT_PAUSE).await;
            }
        }
    }
}

/// The API on its unix socket, on fleet's and on TCP if the configuration opens it.
async fn serve(
    machine: &Machine,
    service: service::Hub,
    stop: &CancellationToken,
    roles: &mut JoinSet<Result<()>>,
) -> Result<()> {
    let sockets = [Some(Path::new(SOCKET)), machine.config.api.fleet_socket.as_deref()];
    for path in sockets.into_iter().flatten() {
        let (service, listener, token) = (service.clone(), unix_listener(path)?, stop.clone());
        roles.spawn(async move {
            api::serve(service, listener, token).await.context("the API on a unix socket failed")
        });
    }
    if let Some(address) = machine.config.api.listen {
        let listener =
            TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
        let token = stop.clone();
        roles.spawn(
            async move { api::serve(service, listener, token).await.context("the API on TCP failed") },
        );
    }
    Ok(())
}

/// A socket for root and the group `muster`.
fn unix_listener(path: &Path) -> Result<UnixListener> {
    // One that a killed daemon left behind is in the way. Whatever else is there is not ours to remove.
    let socket = |metadata: std::fs::Metadata| metadata.file_type().is_socket();
    if std::fs::symlink_metadata(path).is_ok_and(socket) {
        let _ = std::fs::remove_file(path);
    }
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(path, Permissions::from_mode(0o660))?;
    if let Some(group) = group("muster") {
        std::os::unix::fs::chown(path, None, Some(group))?;
    }
    Ok(listener)
}

/// The number of a group, if the machine has it: its members may use the API.
fn group(name: &str) -> Option<u32> {
    let groups = std::fs::read_to_string("/etc/group").ok()?;
    let line = groups.lines().find(|line| line.split(':').next() == Some(name))?;
    line.split(':').nth(2)?.parse().ok()
}

/// SIGTERM and SIGINT.
pub(crate) struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    pub(crate) async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Takes over what can change while the daemon runs: the metadata. All else is built into what runs.
fn reload(read: &impl Fn() -> Result<Config>, running: &Config, metadata: &watch::Sender<Metadata>) {
    info!("reading the configuration anew");
    match read() {
        Ok(config) => {
            let mut same = config.clone();
            same.machine.metadata.clone_from(&running.machine.metadata);
            if same != *running {
                warn!(
                    "more than metadata has changed: the rest needs `systemctl restart muster`, which stops no unit"
                );
            }
            metadata.send_if_modified(|before| {
                let changed = *before != config.machine.metadata;
                before.clone_from(&config.machine.metadata);
                changed
            });
        }
        Err(error) => warn!(error = format!("{error:#}"), "the configuration stays as it was"),
    }
}

/// Writes a file so that a reader sees the old or the new text, never half of one.
fn write_file(path: &Path, contents: &str) -> std::io::Result<()> {
    let mut staged = PathBuf::from(path).into_os_string();
    staged.push(".new");
    std::fs::write(&staged, contents)?;
    std::fs::rename(&staged, path)
}

/// Logs an error of the hub that will be tried again, once until it works.
fn complain(complained: &mut bool, error: &StoreError, what: &'static str) {
    if !std::mem::replace(complained, true) {
        warn!(%error, "{what}, trying on");
    }
}
