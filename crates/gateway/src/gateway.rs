//! A gateway: its threads, its sockets, its life from start to shutdown.
//!
//! Invariant: an `update` that returns has been handed to every thread; which have taken it, `applied` tells.

use crate::access_log::AccessLog;
use crate::control::{Applied, Phase, Served, Shared};
use crate::listen::{self, Inherited, Listener, Sockets};
use crate::snapshot::{self, Snapshot};
use crate::table::Table;
use crate::tls::Certificates;
use crate::worker::{self, Begin, Question};
use crate::{GatewayConfig, GatewayError, admin, takeover};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info, warn};

/// How often certificates are looked at.
const CERTIFICATES: Duration = Duration::from_secs(2);
/// Questions that wait for a worker; they come from people.
const QUESTIONS: usize = 16;
/// How long a worker may take to answer one.
const ANSWER: Duration = Duration::from_secs(2);

/// A load balancer that runs. Dropping it ends it at once; [`Gateway::shutdown`] lets it finish.
pub struct Gateway {
    shared: Arc<Shared>,
    served: watch::Sender<Arc<Served>>,
    phase: watch::Sender<Phase>,
    asker: Asker,
    threads: Vec<JoinHandle<()>>,
    control: Option<JoinHandle<()>>,
    admin: Option<SocketAddr>,
    taken_over: watch::Receiver<bool>,
}

/// Asks workers what they know.
#[derive(Clone)]
pub(crate) struct Asker {
    workers: Vec<mpsc::Sender<Question>>,
    served: watch::Receiver<Arc<Served>>,
    problems: Arc<Mutex<BTreeMap<String, String>>>,
    shared: Arc<Shared>,
}

impl Asker {
    pub(crate) async fn snapshot(&self) -> Snapshot {
        let mut parts = Vec::new();
        for worker in &self.workers {
            let (answer, part) = oneshot::channel();
            let asked = worker.send(Question::Snapshot(answer));
            let answered = async { asked.await.ok().map(|()| part)?.await.ok() };
            if let Ok(Some(part)) = tokio::time::timeout(ANSWER, answered).await {
                parts.push(part);
            }
        }
        let (revision, services) = snapshot::together(parts);
        let served = Arc::clone(&self.served.borrow());
        let listeners = served.sockets.iter();
        let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let of_services = served.table.problems.iter();
        problems.extend(of_services.map(|(service, why)| (format!("service {service}"), why.clone())));
        Snapshot {
            revision,
            listeners: listeners.filter_map(|(l, s)| Some((l.to_string(), s.address()?))).collect(),
            problems,
            connections: self.shared.connections.load(std::sync::atomic::Ordering::Relaxed),
            routes: served.table.routes.clone(),
            tcp: served.table.tcp.clone(),
            services,
        }
    }
}

impl Gateway {
    /// Starts a gateway: binds all addresses, reads certificates, starts its threads. Blocks for as long as that takes,
    /// some milliseconds. `table` is served as revision 0.
    ///
    /// Fails if an address cannot be bound, or a certificate or the log cannot be used. A TCP port of a service that
    /// cannot be bound is no failure: it is told in the snapshot, and tried again with the next table.
    pub fn start(config: GatewayConfig, table: Table) -> Result<Self, GatewayError> {
        Self::start_with(config, table, Inherited::new())
    }

    /// Starts a gateway on sockets that one before it had: systemd's ([`crate::inherited`]) or a former process'
    /// ([`crate::Takeover`]). Those for what is not in the configuration are closed.
    pub fn start_with(
        config: GatewayConfig,
        table: Table,
        inherited: Inherited,
    ) -> Result<Self, GatewayError> {
        let start = Instant::now();
        let threads = match config.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let log = config.access_log.as_ref();
        let log = log.map(|path| {
            AccessLog::open(path, start)
                .map_err(|source| GatewayError::AccessLog { path: path.clone(), source })
        });
        let certificates = (!config.certificates.is_empty())
            .then(|| Certificates::load(&config.certificates))
            .transpose()?;
        let mut inherited = by_listener(inherited);
        let mut sockets = BTreeMap::new();
        let mut wanted: Vec<Listener> = config.http.iter().copied().map(Listener::Http).collect();
        if certificates.is_some() {
            wanted.extend(config.https.iter().copied().map(Listener::Https));
        }
        for listener in wanted {
            let (Listener::Http(address) | Listener::Https(address)) = listener else { continue };
            let own = inherited.remove(&listener).unwrap_or_default();
            sockets.insert(listener, listen::bind(address, threads, own)?);
        }
        let shared = Arc::new(Shared::new(config, threads, start, log.transpose()?, certificates));
        let problems = Arc::<Mutex<BTreeMap<String, String>>>::default();
        let sockets = tcp_sockets(&shared, &table, &sockets, &mut inherited, &problems);
        shared.set_tcp(table.tcp.clone());
        let (served, served_here) = watch::channel(Arc::new(Served { table, revision: 0, sockets }));
        let (phase, phase_here) = watch::channel(Phase::Running);
        let mut workers = Vec::new();
        let mut handles = Vec::new();
        for index in 0..threads {
            let (ask, questions) = mpsc::channel(QUESTIONS);
            workers.push(ask);
            let begin = Begin {
                index,
                shared: Arc::clone(&shared),
                served: served_here.clone(),
                phase: phase_here.clone(),
                questions,
            };
            handles.push(spawn(format!("gateway-{index}"), move || worker::run(begin))?);
        }
        let asker = Asker {
            workers,
            served: served_here,
            problems: Arc::clone(&problems),
            shared: Arc::clone(&shared),
        };
        let (taken, taken_over) = watch::channel(false);
        let doors = Doors::open(&shared)?;
        let admin = doors.admin.as_ref().and_then(|admin| admin.local_addr().ok());
        let (own, asking, over) = (Arc::clone(&shared), asker.clone(), phase_here);
        let control = spawn("gateway-admin".to_owned(), move || doors.run(own, asking, over, taken))?;
        info!(threads, "gateway started");
        Ok(Self { shared, served, phase, asker, threads: handles, control: Some(control), admin, taken_over })
    }

    /// Replaces the table. Requests that are under way go on as they are; nothing is reloaded, no connection to a client
    /// is closed. `revision` is any number that grows, as a rule the hub's.
    pub fn update(&self, table: Table, revision: u64) {
        let before = Arc::clone(&self.served.borrow());
        let fixed = before.sockets.iter().filter(|(listener, _)| !matches!(listener, Listener::Tcp(_)));
        let fixed = fixed.map(|(listener, sockets)| (listener.clone(), sockets.clone())).collect();
        let mut kept = fixed;
        for (listener, sockets) in &before.sockets {
            if let Listener::Tcp(port) = listener
                && table.tcp.contains_key(port)
            {
                BTreeMap::insert(&mut kept, listener.clone(), sockets.clone());
            }
        }
        let problems = &self.asker.problems;
        let sockets = tcp_sockets(&self.shared, &table, &kept, &mut BTreeMap::new(), problems);
        self.shared.set_tcp(table.tcp.clone());
        self.served.send_replace(Arc::new(Served { table, revision, sockets }));
    }

    /// What every thread serves by now, and what is under way at endpoints that drain.
    pub fn applied(&self) -> watch::Receiver<Applied> {
        self.shared.applied()
    }

    /// What it serves and knows.
    pub async fn snapshot(&self) -> Snapshot {
        self.asker.snapshot().await
    }

    /// Metrics in Prometheus' text format.
    pub fn metrics(&self) -> String {
        self.shared.metrics()
    }

    /// Where it listens, for configurations with port 0.
    pub fn addresses(&self) -> BTreeMap<Listener, SocketAddr> {
        let served = self.served.borrow();
        served.sockets.iter().filter_map(|(l, sockets)| Some((l.clone(), sockets.address()?))).collect()
    }

    /// Where metrics, health and routes are told.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// Copies of all listening sockets with their names, for systemd to keep: `FDSTORE=1`, `FDNAME=` the listener's text.
    /// Give it to systemd after the start and whenever a TCP port has come; take it back by `FDSTOREREMOVE=1`.
    pub fn sockets(&self) -> io::Result<Inherited> {
        listen::copies(&self.served.borrow().sockets)
    }

    /// Becomes true when another process has taken the sockets over and serves; then it is time for `shutdown`.
    pub fn taken_over(&self) -> watch::Receiver<bool> {
        self.taken_over.clone()
    }

    /// Stops accepting, finishes what is under way, and ends at the deadline at the latest. Connections without a
    /// request get half of that time to learn of it by a response. Blocks; true if everything had finished.
    pub fn shutdown(mut self, within: Duration) -> bool {
        let until = Instant::now() + within;
        self.phase.send_replace(Phase::Draining { until });
        // The sockets close with the last copy; those who took over or keep them have others.
        let last = Arc::clone(&self.served.borrow());
        let closed = Served { table: last.table.clone(), revision: last.revision, sockets: BTreeMap::new() };
        self.served.send_replace(Arc::new(closed));
        drop(last);
        self.join();
        Instant::now() < until
    }

    fn join(&mut self) {
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                error!("a thread of the gateway has panicked");
            }
        }
        self.phase.send_replace(Phase::Over);
        if self.control.take().is_some_and(|control| control.join().is_err()) {
            error!("the admin thread of the gateway has panicked");
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.phase.send_replace(Phase::Over);
        self.join();
    }
}

fn spawn(name: String, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, GatewayError> {
    std::thread::Builder::new().name(name).spawn(run).map_err(|source| GatewayError::Thread { source })
}

fn by_listener(inherited: Inherited) -> BTreeMap<Listener, Vec<OwnedFd>> {
    let mut all: BTreeMap<Listener, Vec<OwnedFd>> = BTreeMap::new();
    for (listener, socket) in inherited {
        all.entry(listener).or_default().push(socket);
    }
    all
}

/// All sockets, with those for the table's TCP ports. One that cannot be had is a problem, not an error.
fn tcp_sockets(
    shared: &Shared,
    table: &Table,
    others: &BTreeMap<Listener, Sockets>,
    inherited: &mut BTreeMap<Listener, Vec<OwnedFd>>,
    problems: &Mutex<BTreeMap<String, String>>,
) -> BTreeMap<Listener, Sockets> {
    let mut all = others.clone();
    let mut problems = problems.lock().unwrap_or_else(PoisonError::into_inner);
    problems.clear();
    for (port, service) in &table.tcp {
        let listener = Listener::Tcp(*port);
        if all.contains_key(&listener) {
            continue;
        }
        let own = inherited.remove(&listener).unwrap_or_default();
        let address = SocketAddr::new(shared.config.tcp_address, *port);
        match listen::bind(address, shared.threads, own) {
            Ok(sockets) => {
                all.insert(listener, sockets);
            }
            Err(error) => {
                let said = access_chain(&error);
                warn!(%service, port, error = said, "port of a service cannot be opened");
                problems.insert(listener.to_string(), said);
            }
        }
    }
    all
}

fn access_chain(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        said = format!("{said}: {cause}");
        source = cause.source();
    }
    said
}

/// What the control thread serves.
struct Doors {
    admin: Option<std::net::TcpListener>,
    takeover: Option<std::os::unix::net::UnixListener>,
}

impl Doors {
    fn open(shared: &Shared) -> Result<Self, GatewayError> {
        let admin = shared.config.admin.map(|address| {
            let bound = std::net::TcpListener::bind(address);
            let ready = bound.and_then(|socket| socket.set_nonblocking(true).map(|()| socket));
            match ready {
                // The former process still has it; metrics wait until it is gone.
                Err(error)
                    if error.kind() == io::ErrorKind::AddrInUse && shared.config.takeover.is_some() =>
                {
                    Ok(None)
                }
                ready => ready.map(Some).map_err(|source| GatewayError::Listen { address, source }),
            }
        });
        let takeover = shared.config.takeover.as_ref().map(|path| {
            let bound = takeover::bind(path);
            let ready = bound.and_then(|socket| socket.set_nonblocking(true).map(|()| socket));
            ready.map_err(|source| GatewayError::Takeover { path: path.clone(), source })
        });
        Ok(Self { admin: admin.transpose()?.flatten(), takeover: takeover.transpose()? })
    }

    fn run(
        self,
        shared: Arc<Shared>,
        asker: Asker,
        over: watch::Receiver<Phase>,
        taken: watch::Sender<bool>,
    ) {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                error!(%error, "the admin thread of the gateway could not start");
                return;
            }
        };
        runtime.block_on(self.serve(shared, asker, over, taken));
        runtime.shutdown_background();
    }

    async fn serve(
        self,
        shared: Arc<Shared>,
        asker: Asker,
        mut over: watch::Receiver<Phase>,
        taken: watch::Sender<bool>,
    ) {
        let mut tasks = tokio::task::JoinSet::new();
        let (own, asking, bound) = (Arc::clone(&shared), asker.clone(), self.admin);
        tasks.spawn(async move {
            let Some(address) = own.config.admin else { return };
            let mut bound = bound;
            loop {
                let socket = match bound.take() {
                    Some(socket) => Ok(socket),
                    None => std::net::TcpListener::bind(address)
                        .and_then(|socket| socket.set_nonblocking(true).map(|()| socket)),
                };
                match socket.and_then(tokio::net::TcpListener::from_std) {
                    Ok(listener) => return admin::serve(listener, own, asking).await,
                    Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
                }
            }
        });
        let own = Arc::clone(&shared);
        tasks.spawn(async move {
            while own.certificates.is_some() {
                tokio::time::sleep(CERTIFICATES).await;
                let shared = Arc::clone(&own);
                let looked = tokio::task::spawn_blocking(move || {
                    if let Some(certificates) = &shared.certificates {
                        certificates.refresh();
                    }
                });
                let _ = looked.await; // a panic there was told by the panic hook
            }
        });
        if let Some(takeover) = self.takeover {
            tasks.spawn(hand_over(takeover, asker, taken));
        }
        let is_over = over.wait_for(|phase| *phase == Phase::Over);
        let _ = is_over.await; // a gateway that is gone is over too
    }
}

async fn hand_over(takeover: std::os::unix::net::UnixListener, asker: Asker, taken: watch::Sender<bool>) {
    let listener = match tokio::net::UnixListener::from_std(takeover) {
        Ok(listener) => listener,
        Err(error) => {
            error!(%error, "sockets cannot be taken over");
            return;
        }
    };
    loop {
        let next = match listener.accept().await {
            Ok((next, _)) => next,
            Err(error) => {
                warn!(%error, "cannot accept on the takeover socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let copies = listen::copies(&asker.served.borrow().sockets);
        let handed = match (next.into_std(), copies) {
            (Ok(next), Ok(copies)) => {
                tokio::task::spawn_blocking(move || takeover::hand_over(next, copies)).await
            }
            (Err(error), _) | (_, Err(error)) => Ok(Err(error)),
        };
        match handed {
            Ok(Ok(true)) => {
                info!("another process serves now");
                taken.send_replace(true);
                return;
            }
            Ok(Ok(false)) => warn!("the process that asked for the sockets did not serve"),
            Ok(Err(error)) => warn!(%error, "sockets could not be handed over"),
            Err(error) => warn!(%error, "sockets could not be handed over"),
        }
    }
}
