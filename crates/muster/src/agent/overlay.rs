//! The cluster network of this machine: takes a subnet, keeps its lease, and keeps the kernel's datapath and rules
//! as `core::overlay` wants them.
//!
//! Everything that happens (the hub's news, the kernel's, a timer) only leads to one more round, which compares what is
//! with what should be. Invariants: Docker's environment file is written before the machine is called ready, and Docker
//! starts after that; while the hub is away the last known peers stay, also across a reboot; what is refused or fails
//! leaves the datapath as it was.

/// How a subnet is taken.
mod claim;
/// What other programs are told, and what is remembered.
mod files;
/// The networks that there are, and what they share.
mod networks;
/// The doctor's probes.
mod probe;
/// What others may know.
mod status;
#[cfg(test)]
mod tests;
/// The WireGuard device.
mod tunnel;

pub(super) use files::Places;
pub(super) use networks::Network;
pub(super) use status::View;

use super::{Machine, complain, write_file};
use anyhow::{Context, Error, Result, ensure};
use claim::{Claim, Claimed};
use model::{LeaseId, NetworkConfig, Subnet, SubnetKey, SubnetLease, network::Backend};
use muster_core::overlay::{self, Desired, Firewall, HOLD, HostFacts, Lease, Mismatch, Op, Roster, Underlay};
use net::{Applied, Kernel};
use registry::{Change, Delta, Store, StoreError};
use std::{collections::BTreeSet, time::Duration};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// flannel's own time to live of a subnet's lease; and many renewals may fail before it ends.
const TERMS: Terms = Terms { ttl: Duration::from_hours(24), renewal: Duration::from_hours(1) };
/// Between attempts to take a subnet.
const PAUSE: Duration = Duration::from_millis(500);
/// Between attempts when it is not the hub's fault: a person has to act.
const REFUSED_PAUSE: Duration = Duration::from_secs(5);
/// The datapath is compared with what it should be this often even when nobody announced a change.
const RESYNC: Duration = Duration::from_secs(30);
/// Announcements come in bursts, our own among them: after the first of a burst, the rest is waited for this long.
const SETTLE: Duration = Duration::from_millis(20);

pub(super) struct Overlay {
    machine: Machine,
    store: Store,
    kernel: Kernel,
    places: Places,
    terms: Terms,
    subnet: watch::Sender<Option<Subnet>>,
    ready: watch::Sender<bool>,
    view: View,
    roster: Roster,
    started: Instant,
    network: Network,
    tunnel: tunnel::Tunnel,
    /// The datapath of the last round that came to its end.
    converged: Option<Vec<Desired>>,
    /// Devices of the configuration in force.
    devices: BTreeSet<String>,
    /// Devices of a former one.
    superseded: BTreeSet<String>,
    /// Docker's named network has our subnet.
    docker_network: bool,
    /// When to try again to take what the hub should have of us.
    pending: Option<Instant>,
    /// The hub has said something since the network was last noted.
    news: bool,
    renewals: JoinSet<()>,
}

/// How long the hub keeps a subnet for a machine that is silent, and how often this one is not.
#[derive(Debug, Clone, Copy)]
struct Terms {
    ttl: Duration,
    renewal: Duration,
}

/// What this machine holds.
#[derive(Debug, Clone, PartialEq)]
struct Held {
    config: NetworkConfig,
    key: SubnetKey,
    /// What it published, if the hub was there.
    value: Option<SubnetLease>,
    underlay: Underlay,
}

impl Overlay {
    /// The subnet and whether all is ready are told to `told`.
    pub(super) fn new(
        machine: Machine,
        network: Network,
        store: Store,
        kernel: Kernel,
        places: Places,
        told: (watch::Sender<Option<Subnet>>, watch::Sender<bool>),
    ) -> Self {
        let view = View::new(machine.id.clone(), &network.name);
        let (subnet, ready) = told;
        Self {
            machine,
            store,
            kernel,
            places,
            terms: TERMS,
            subnet,
            ready,
            view,
            roster: Roster::new(HOLD),
            started: Instant::now(),
            network,
            tunnel: tunnel::Tunnel::default(),
            converged: None,
            devices: BTreeSet::new(),
            superseded: BTreeSet::new(),
            docker_network: false,
            pending: None,
            news: false,
            renewals: JoinSet::new(),
        }
    }

    /// What others may know of the network.
    pub(super) fn view(&self) -> View {
        self.view.clone()
    }

    pub(super) async fn run(mut self, stop: CancellationToken) -> Result<()> {
        tokio::select! {
            outcome = Box::pin(self.serve()) => outcome,
            () = stop.cancelled() => Ok(()),
        }
    }

    async fn serve(&mut self) -> Result<()> {
        let mut changes = self.kernel.changes().context("cannot listen to the kernel")?;
        let mut held = self.first().await;
        self.begin(&held).await?;
        let mut follow = self.store.follow(self.network.keys.prefix());
        let mut resync = tokio::time::interval(RESYNC);
        resync.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The end of a burst of the kernel's announcements.
        let mut settled = None;
        // The hub knows nothing of this machine's interfaces.
        let mut from_hub = false;
        loop {
            if !std::mem::take(&mut from_hub) {
                self.follow_underlay(&mut held).await;
            }
            let again = self.round(&held).await;
            self.remember(&held);
            if self.pending.is_some_and(|at| at <= Instant::now()) {
                self.retake(&mut held).await?;
                continue;
            }
            let wake = again.into_iter().chain(self.pending).min();
            loop {
                tokio::select! {
                    delta = follow.next() => match delta {
                        None => return Ok(()),
                        Some(delta) => {
                            self.hear(delta, &held);
                            from_hub = true;
                        }
                    },
                    heard = changes.next() => {
                        if heard.is_none() {
                            debug!("the kernel's announcements broke off, listening anew");
                            changes = self.kernel.changes().context("cannot listen to the kernel")?;
                        }
                        // A peer that comes meanwhile is not kept waiting.
                        settled.get_or_insert_with(|| Instant::now() + SETTLE);
                        continue;
                    }
                    () = sleep_until(settled) => settled = None,
                    () = sleep_until(wake) => {}
                    _ = resync.tick() => self.look_around(&held).await,
                }
                break;
            }
        }
    }

    /// Notes the network as it is known now, for a boot without the hub.
    fn remember(&mut self, held: &Held) {
        if std::mem::take(&mut self.news) {
            self.places.remember(&self.network.name, held, &self.roster.leases());
        }
    }

    /// Takes in what the hub says.
    fn hear(&mut self, delta: Delta, held: &Held) {
        let keys = self.network.keys.clone();
        let config_key = keys.config();
        let now = self.started.elapsed();
        let mut own = held.value.clone();
        match delta {
            Delta::Lost => return,
            Delta::Reset(listing) => {
                let leases = listing.items.iter().filter_map(|kv| claim::lease(&keys, &kv.key, &kv.value));
                let (mine, others): (Vec<_>, Vec<_>) = leases.partition(|(key, _)| *key == held.key);
                own = mine.into_iter().next().and_then(|(_, lease)| lease);
                self.roster.reset(others, now);
                let config = listing.items.iter().find(|kv| kv.key == config_key);
                self.hear_config(config.map(|kv| kv.value.as_ref()), held);
            }
            Delta::Changes(changes) => {
                for change in &changes.changes {
                    let (key, value) = match change {
                        Change::Put(kv) => (kv.key.as_str(), Some(kv.value.as_ref())),
                        Change::Delete { key } => (key.as_str(), None),
                    };
                    if key == config_key {
                        self.hear_config(value, held);
                    }
                    match (claim::lease(&keys, key, value.unwrap_or_default()), value) {
                        (Some((key, lease)), _) if key == held.key => own = lease,
                        (Some((key, lease)), Some(_)) => self.roster.put(key, lease),
                        (Some((key, _)), None) => self.roster.remove(key, now),
                        (None, _) => {}
                    }
                }
            }
        }
        if own != held.value && self.pending.is_none() {
            warn!(subnet = %held.key, "the lease on the subnet was lost or changed, taking it again");
            self.pending = Some(Instant::now());
        }
        self.news = true;
    }

    fn hear_config(&mut self, value: Option<&[u8]>, held: &Held) {
        let text = value.and_then(|value| str::from_utf8(value).ok()).unwrap_or_default();
        if text.parse().as_ref() != Ok(&held.config) {
            info!("the network's configuration changed");
            self.pending = Some(Instant::now());
        } else if self.pending.is_some() {
            // What was refused may be gone.
            self.pending = Some(Instant::now());
        }
    }

    /// Takes a subnet for the first time; tries until it has one. While the hub is away the one of before the reboot
    /// will do.
    async fn first(&mut self) -> Held {
        let cached = self.places.cached(&self.network.name);
        self.devices = cached.as_ref().map(files::Cache::devices).unwrap_or_default();
        let mut complained = false;
        loop {
            match self.try_take(cached.as_ref().map(|cache| cache.subnet), None).await {
                Ok(Some(held)) => return held,
                Ok(None) => debug!("another machine was faster, choosing again"),
                Err(error) => {
                    if !std::mem::replace(&mut complained, true) {
                        warn!(error = format!("{error:#}"), "no subnet yet, trying on");
                    }
                    self.view.problem(Some(format!("{error:#}")));
                    let away = error.downcast_ref::<StoreError>().is_some();
                    if away && let Some(held) = self.as_cached(cached.as_ref()).await {
                        info!(subnet = %held.key, "the hub is away: using the network as it was");
                        self.pending = Some(Instant::now() + PAUSE);
                        return held;
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Brings the hub up to date about this machine, and this machine about the configuration. What cannot be done
    /// leaves everything as it was, and is tried again.
    async fn retake(&mut self, held: &mut Held) -> Result<()> {
        match self.try_take(Some(held.key), Some(&held.config)).await {
            Ok(Some(new)) => {
                self.pending = None;
                if new.key != held.key {
                    warn!(before = %held.key, now = %new.key, "the subnet changed: containers need new addresses");
                }
                let before = std::mem::replace(held, new);
                if (before.key, &before.config, &before.underlay) != (held.key, &held.config, &held.underlay)
                {
                    self.begin(held).await?;
                }
            }
            Ok(None) => self.pending = Some(Instant::now()),
            Err(error) => {
                let away = error.downcast_ref::<StoreError>().is_some();
                let text = format!("{error:#}");
                if self.view.problem(Some(text.clone())) {
                    warn!(error = text, "the network stays as it was");
                }
                self.pending = Some(Instant::now() + if away { PAUSE } else { REFUSED_PAUSE });
            }
        }
        Ok(())
    }

    /// A hub that has forgotten the network is told `config` again.
    async fn try_take(
        &mut self,
        previous: Option<SubnetKey>,
        config: Option<&NetworkConfig>,
    ) -> Result<Option<Held>> {
        let section = &self.machine.config.overlay;
        let underlay = self.kernel.underlay(section.interface.as_deref()).await?;
        let facts = self.kernel.facts().await?;
        let network = &self.network;
        let check = |config: &NetworkConfig, key: SubnetKey| {
            let host = || check(config, key, &network.bridges, &facts, &underlay);
            network.shared.admit(&network.name, config, host)
        };
        let wireguard = || tunnel::public_key(&self.places.state);
        let claim = Claim {
            store: &self.store,
            keys: &network.keys,
            machine: &self.machine.id,
            network: match config {
                Some(config) => Some(config.clone()),
                None if network.is_first() => {
                    Some(NetworkConfig::vxlan(section.network).context("in [overlay] network")?)
                }
                None => None,
            },
            underlay: &underlay,
            wireguard: &wireguard,
            previous,
            ttl: self.terms.ttl,
            check: &check,
        };
        let Some(Claimed { config, key, value, lease, others }) = claim.take().await? else {
            return Ok(None);
        };
        if self.roster.leases().is_empty() {
            self.roster.reset(others, self.started.elapsed());
        }
        self.renewals.abort_all();
        if let Some(lease) = lease {
            self.renewals.spawn(renew(self.store.clone(), lease, self.terms.renewal));
        }
        self.view.problem(None);
        info!(subnet = %key, underlay = %underlay.name, address = %underlay.address, "subnet held");
        let held = Held { config, key, value: Some(value), underlay };
        self.places.remember(&self.network.name, &held, &self.roster.leases());
        Ok(Some(held))
    }

    async fn as_cached(&mut self, cache: Option<&files::Cache>) -> Option<Held> {
        let cache = cache?;
        let underlay = self.kernel.underlay(self.machine.config.overlay.interface.as_deref()).await.ok()?;
        let config = cache.config.parse().ok()?;
        self.network.shared.admit(&self.network.name, &config, || Ok(())).ok()?;
        let held = Held { config, key: cache.subnet, value: None, underlay };
        let others = cache.leases().into_iter().filter(|(key, _)| *key != held.key);
        self.roster.reset(others, self.started.elapsed());
        Some(held)
    }

    /// Tells Docker and everybody else on this machine which subnet it has.
    async fn begin(&mut self, held: &Held) -> Result<()> {
        net::enable_forwarding().await?;
        if held.config.v6.is_some() {
            net::enable_forwarding6().await?;
        }
        let desired = self.desired(held, &[]);
        let mtu = overlay::network_mtu(&desired);
        self.places.tell(&self.machine.config, &self.network.name, held, mtu)?;
        let own: BTreeSet<_> = desired.iter().filter_map(Desired::device).map(str::to_owned).collect();
        self.superseded.append(&mut self.devices);
        self.devices.clone_from(&own);
        self.superseded.retain(|device| !own.contains(device));
        self.docker_network = false;
        self.subnet.send_replace(Some(held.key.v4));
        Ok(())
    }

    /// The datapath as it should be.
    fn desired(&self, held: &Held, leases: &[Lease]) -> Vec<Desired> {
        let all = Desired::all(&self.machine.id, &held.config, held.key, &held.underlay, leases);
        all.into_iter().map(|desired| Desired { protocol: self.network.protocol, ..desired }).collect()
    }

    /// What no announcement tells of: Docker that came up, a Docker that has another subnet.
    async fn look_around(&mut self, held: &Held) {
        if let Some((name, bridge)) = self.network.docker.clone()
            && !self.docker_network
        {
            let mtu = overlay::network_mtu(&self.desired(held, &[]));
            let units = self.network.is_first() && self.machine.config.overlay.unit_addresses;
            let range = overlay::container_range(held.key.v4).filter(|_| units);
            let made = files::docker_network(&name, &bridge, held.key, range, mtu).await;
            let problem = made.as_ref().err().map(|error| format!("{error:#}"));
            if self.view.docker(problem.clone())
                && let Some(error) = problem
            {
                warn!(network = name, error, "the Docker network is not as it should be");
            }
            self.docker_network = made.is_ok_and(|made| made);
        }
    }

    /// One comparison of what is with what should be. Says when to make the next, if that is known.
    async fn round(&mut self, held: &Held) -> Option<Instant> {
        let start = Instant::now();
        let again = self.roster.settle(self.started.elapsed());
        let leases = self.roster.leases();
        let desired = self.desired(held, &leases);
        let outcome = self.converge(held, &desired).await;
        let problem = outcome.err().map(|error| format!("{error:#}"));
        if let Some(problem) = &problem
            && self.view.last_failure(Some(problem.clone()))
        {
            warn!(error = problem, "datapath not as it should be");
        }
        if problem.is_none() {
            self.view.last_failure(None);
        }
        let handshakes = self.tunnel.handshakes().await;
        self.view.round(held, &desired, self.roster.held(), &handshakes, start.elapsed());
        if problem.is_none() {
            self.converged = Some(desired);
            self.ready.send_if_modified(|ready| !std::mem::replace(ready, true));
        } else {
            self.converged = None;
        }
        again.map(|at| self.started + at)
    }

    /// The machine's address and its interface's MTU may change under us.
    async fn follow_underlay(&mut self, held: &mut Held) {
        let section = &self.machine.config.overlay;
        let underlay = match self.kernel.underlay(section.interface.as_deref()).await {
            Ok(underlay) if underlay != held.underlay => underlay,
            // Between two addresses there may be none for a moment.
            _ => return,
        };
        info!(address = %underlay.address, mtu = underlay.mtu, interface = %underlay.name, "underlay changed");
        let moved = (underlay.address, underlay.address6) != (held.underlay.address, held.underlay.address6);
        held.underlay = underlay;
        if moved {
            self.pending = Some(Instant::now());
        }
        if let Err(error) = self.begin(held).await {
            warn!(error = format!("{error:#}"), "the machine was not told of it");
        }
    }

    async fn converge(&mut self, held: &Held, desired: &[Desired]) -> Result<()> {
        // Rules first: the datapath is never open without them.
        self.enforce(held, desired).await?;
        match &held.config.backend {
            Backend::Wireguard(options) => self.tunnel.ensure(&self.places.state, options, desired).await?,
            _ => self.tunnel.close().await,
        }
        let mut outcome = Ok(());
        for device in self.superseded.clone() {
            let why = Mismatch::Superseded;
            match self.kernel.apply(&Op::DeleteDevice { device: device.clone(), why }).await {
                Ok(()) => drop(self.superseded.remove(&device)),
                Err(error) => outcome = outcome.and(Err(Error::new(error))),
            }
        }
        // Nobody wanted anything else than before: what is different now was done by somebody else.
        let settled = self.converged.as_deref() == Some(desired);
        for desired in desired {
            let observed = self.kernel.observe(desired).await?;
            let plan = overlay::plan(desired, &observed);
            let Applied { made, failures } = self.kernel.apply_all(&plan).await;
            // One peer that cannot be reached is no reason to leave out the others.
            outcome =
                failures.into_iter().fold(outcome, |outcome, error| outcome.and(Err(Error::new(error))));
            if made > 0 {
                info!(changes = made, repaired = settled, peers = desired.peers.len(), "datapath changed");
            }
            if settled {
                self.view.repaired(made as u64);
            }
            if let (Some(device), None) = (desired.device(), &observed.device) {
                let there = self.kernel.exists(device).await?;
                let missing = || anyhow::anyhow!("there is no device {device} although it was made");
                ensure!(there, missing());
            }
        }
        outcome
    }

    /// Puts the rules in place if they are not.
    async fn enforce(&self, held: &Held, desired: &[Desired]) -> Result<()> {
        let firewall = Firewall::new(&held.config, held.key, desired, &self.network.bridges);
        let firewall = Firewall { name: self.network.name.clone(), ..firewall };
        if self.network.shared.enforce(&self.kernel, firewall).await? {
            info!("rules put in place again");
            self.view.rules_repaired();
        }
        Ok(())
    }
}

/// Refuses what this host cannot carry.
fn check(
    config: &NetworkConfig,
    key: SubnetKey,
    bridges: &[String],
    facts: &HostFacts,
    underlay: &Underlay,
) -> Result<()> {
    let clashes = overlay::clashes(config, Some(key), bridges, facts);
    let told: Vec<String> = clashes.iter().map(ToString::to_string).collect();
    ensure!(told.is_empty(), "the network's configuration is refused: {}", told.join("; "));
    ensure!(
        config.v6.is_none() || underlay.address6.is_some(),
        "the network has `EnableIPv6`, and {} has no IPv6 address that stays: give it one",
        underlay.name
    );
    Ok(())
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Keeps the subnet's lease for as long as the daemon runs; it outlives restarts by its length.
async fn renew(store: Store, lease: LeaseId, every: Duration) {
    let mut complained = false;
    loop {
        let renewed = async { store.keeper(lease).await?.renew().await };
        match renewed.await {
            Ok(()) => {
                complained = false;
                tokio::time::sleep(every).await;
            }
            // Its key goes with it, which the follower of the subnets sees.
            Err(StoreError::LeaseEnded(_)) => return,
            Err(error) => {
                complain(&mut complained, &error, "lease on the subnet not renewed");
                tokio::time::sleep(every.min(PAUSE * 20)).await;
            }
        }
    }
}
