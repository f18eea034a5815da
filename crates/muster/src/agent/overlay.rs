//! The cluster network of this machine: takes a subnet, keeps its lease, and keeps the kernel's datapath and rules
//! as `core::overlay` wants them.
//!
//! Invariants: Docker's environment file is written before the machine is called ready, and Docker starts after
//! that; while the hub is away the last known peers stay, also across a reboot.

use super::{Machine, complain, write_file};
use crate::config::{RUN_DIR, STATE_DIR};
use anyhow::{Context, Result, bail};
use model::{LeaseId, NetworkConfig, Subnet, SubnetLease, keys};
use muster_core::overlay::{self, Choice, Desired, Firewall, Lease, Underlay};
use net::Kernel;
use registry::{Change, Delta, Guard, Store, StoreError, Write};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    hash::{BuildHasher, Hasher, RandomState},
    path::Path,
    time::Duration,
};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// flannel's own time to live of a subnet's lease.
const LEASE_TTL: Duration = Duration::from_hours(24);
/// Between renewals: many may fail before the lease ends.
const RENEWAL: Duration = Duration::from_hours(1);
/// Between attempts to take a subnet.
const PAUSE: Duration = Duration::from_millis(500);
/// The datapath is compared with what it should be this often even when nobody announced a change.
const RESYNC: Duration = Duration::from_secs(30);

pub(super) struct Overlay {
    machine: Machine,
    store: Store,
    kernel: Kernel,
    subnet: watch::Sender<Option<Subnet>>,
    ready: watch::Sender<bool>,
    /// The rules that are in force, and whether Docker's bridge was there when they were made: Docker's own chains
    /// come with it, and ours must be jumped to from them.
    firewall: Option<(Firewall, bool)>,
    renewals: JoinSet<()>,
}

/// What this machine holds.
#[derive(Debug, Clone, PartialEq)]
struct Held {
    config: NetworkConfig,
    subnet: Subnet,
    underlay: Underlay,
}

/// What a machine needs to join the network while the hub is away.
#[derive(Debug, Serialize, Deserialize)]
struct Cache {
    v: u32,
    config: String,
    subnet: Subnet,
    leases: BTreeMap<String, SubnetLease>,
}

impl Overlay {
    pub(super) fn new(
        machine: Machine,
        store: Store,
        kernel: Kernel,
        subnet: watch::Sender<Option<Subnet>>,
        ready: watch::Sender<bool>,
    ) -> Self {
        Self { machine, store, kernel, subnet, ready, firewall: None, renewals: JoinSet::new() }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) -> Result<()> {
        tokio::select! {
            outcome = self.serve() => outcome,
            () = stop.cancelled() => Ok(()),
        }
    }

    async fn serve(&mut self) -> Result<()> {
        let mut changes = self.kernel.changes().context("cannot listen to the kernel")?;
        let mut leases = BTreeMap::new();
        let mut held = self.acquire(&mut leases).await;
        self.begin(&held).await?;
        let mut follow = self.store.follow(keys::SUBNETS);
        let mut resync = tokio::time::interval(RESYNC);
        loop {
            self.converge(&held, &leases).await;
            tokio::select! {
                delta = follow.next() => {
                    match delta {
                        None => return Ok(()),
                        Some(Delta::Lost) => continue,
                        Some(Delta::Reset(listing)) => {
                            leases = listing.items.iter().filter_map(|kv| read(&kv.key, &kv.value)).collect();
                        }
                        Some(Delta::Changes(changes)) => for change in &changes.changes {
                            match change {
                                Change::Put(kv) => leases.extend(read(&kv.key, &kv.value)),
                                Change::Delete { key } => {
                                    let subnet = key.strip_prefix(keys::SUBNETS).and_then(Subnet::from_key);
                                    subnet.map(|subnet| leases.remove(&subnet));
                                }
                            }
                        },
                    }
                    if !leases.contains_key(&held.subnet) {
                        warn!(subnet = %held.subnet, "lease on the subnet was lost, taking it again");
                        let before = held.clone();
                        held = self.acquire(&mut leases).await;
                        if held != before {
                            self.begin(&held).await?;
                        }
                    }
                    self.remember(&held, &leases);
                }
                changed = changes.next() => if changed.is_none() {
                    debug!("the kernel's announcements broke off, listening anew");
                    changes = self.kernel.changes().context("cannot listen to the kernel")?;
                },
                _ = resync.tick() => {}
            }
        }
    }

    /// Takes a subnet; tries until it has one. While the hub is away the one of before the reboot will do.
    async fn acquire(&mut self, leases: &mut BTreeMap<Subnet, Option<SubnetLease>>) -> Held {
        let cached = self.cached();
        let mut complained = false;
        loop {
            match self.try_acquire(cached.as_ref().map(|cache| cache.subnet), leases).await {
                Ok(Some(held)) => return held,
                Ok(None) => debug!("another machine was faster, choosing again"),
                Err(error) => {
                    if !std::mem::replace(&mut complained, true) {
                        warn!(error = format!("{error:#}"), "no subnet yet, trying on");
                    }
                    if !*self.ready.borrow()
                        && error.downcast_ref::<StoreError>().is_some()
                        && let Some((held, known)) = self.as_cached(cached.as_ref()).await
                    {
                        info!(subnet = %held.subnet, "the hub is away: using the network as it was");
                        *leases = known;
                        return held;
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn try_acquire(
        &mut self,
        previous: Option<Subnet>,
        leases: &mut BTreeMap<Subnet, Option<SubnetLease>>,
    ) -> Result<Option<Held>> {
        let section = &self.machine.config.overlay;
        let underlay = self.kernel.underlay(section.interface.as_deref()).await?;
        let config = self.config().await?;
        let listing = self.store.list(keys::SUBNETS).await?;
        *leases = listing.items.iter().filter_map(|kv| read(&kv.key, &kv.value)).collect();
        let list: Vec<Lease> = leases.iter().map(|(subnet, lease)| (*subnet, lease.clone())).collect();
        let random = RandomState::new().build_hasher().finish();
        let choice = overlay::choose_subnet(&config, &list, underlay.address, previous, random);
        let (subnet, taken) = match choice {
            Choice::Reuse(subnet) => (subnet, listing.items.iter().find(|kv| kv.key == keys::subnet(subnet))),
            Choice::Take(subnet) => (subnet, None),
            Choice::Full => bail!("every subnet of {} is taken: choose a larger network", config.network),
        };
        let desired = Desired::new(&self.machine.id, &config, subnet, &underlay, &list);
        let key = keys::subnet(subnet);
        let lease = match taken {
            // A key without a lease is a reservation: it stays one.
            Some(kv) => kv.lease,
            None => Some(self.store.grant(LEASE_TTL).await?),
        };
        let guard = match taken {
            Some(kv) => Guard::Unchanged(key.clone(), kv.mod_revision),
            None => Guard::Absent(key.clone()),
        };
        let own = desired.lease();
        if leases.get(&subnet) != Some(&Some(own.clone())) {
            let value = serde_json::to_vec(&own).context("leases always render")?;
            let write = Write::Put { key, value: value.into(), lease };
            if !self.store.commit(&[guard], &[write]).await?.committed {
                if let (None, Some(lease)) = (taken, lease) {
                    self.store.revoke(lease).await?;
                }
                return Ok(None);
            }
            leases.insert(subnet, Some(own));
        }
        self.renewals.abort_all();
        if let Some(lease) = lease {
            self.renewals.spawn(renew(self.store.clone(), lease));
        }
        info!(%subnet, ?choice, underlay = %underlay.name, address = %underlay.address, "subnet held");
        Ok(Some(Held { config, subnet, underlay }))
    }

    /// The network's configuration; where there is none, this machine's is written.
    async fn config(&self) -> Result<NetworkConfig> {
        let key = keys::NETWORK_CONFIG;
        if let Some(kv) = self.store.get(key).await? {
            let text = str::from_utf8(&kv.value).with_context(|| format!("{key} is no UTF-8"))?;
            return text.parse().with_context(|| format!("in {key}"));
        }
        let config =
            NetworkConfig::vxlan(self.machine.config.overlay.network).context("in [overlay] network")?;
        let write = Write::put(key, config.to_json());
        self.store.commit(&[Guard::Absent(key.to_owned())], &[write]).await?;
        // Whoever was faster decides.
        let kv = self.store.get(key).await?.with_context(|| format!("{key} went away"))?;
        str::from_utf8(&kv.value)?.parse().with_context(|| format!("in {key}"))
    }

    /// Tells Docker and everybody else on this machine which subnet it has.
    async fn begin(&mut self, held: &Held) -> Result<()> {
        net::enable_forwarding().await?;
        let mtu = held.underlay.mtu.saturating_sub(overlay::VXLAN_OVERHEAD);
        let files = [
            ("subnet.env", overlay::subnet_env(&held.config, held.subnet, mtu)),
            ("docker.env", overlay::docker_env(held.subnet, mtu)),
        ];
        for (name, text) in files {
            let path = Path::new(RUN_DIR).join(name);
            write_file(&path, &text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        self.subnet.send_replace(Some(held.subnet));
        Ok(())
    }

    /// Makes the kernel as it should be. What fails is tried again at the next change or tick.
    async fn converge(&mut self, held: &Held, leases: &BTreeMap<Subnet, Option<SubnetLease>>) {
        let list: Vec<Lease> = leases.iter().map(|(subnet, lease)| (*subnet, lease.clone())).collect();
        let desired = Desired::new(&self.machine.id, &held.config, held.subnet, &held.underlay, &list);
        let bridge = &self.machine.config.overlay.bridge;
        let firewall = Firewall::new(&held.config, held.subnet, &desired, bridge);
        // Rules first: the datapath is never open without them.
        let wanted = (firewall, Path::new("/sys/class/net").join(bridge).exists());
        if self.firewall.as_ref() != Some(&wanted) {
            match net::apply_firewall(&wanted.0).await {
                Ok(()) => self.firewall = Some(wanted),
                Err(error) => {
                    warn!(error = format!("{:#}", anyhow::Error::new(error)), "firewall not applied");
                    return;
                }
            }
        }
        let observed = match self.kernel.observe(&desired.device.name).await {
            Ok(observed) => observed,
            Err(error) => {
                warn!(error = format!("{:#}", anyhow::Error::new(error)), "datapath not read");
                return;
            }
        };
        let plan = overlay::plan(&desired, &observed);
        for op in &plan {
            if let Err(error) = self.kernel.apply(op).await {
                warn!(error = format!("{:#}", anyhow::Error::new(error)), "datapath not changed");
                return;
            }
        }
        if !plan.is_empty() {
            info!(changes = plan.len(), peers = desired.peers.len(), "datapath changed");
        }
        self.ready.send_if_modified(|ready| !std::mem::replace(ready, true));
    }

    fn remember(&self, held: &Held, leases: &BTreeMap<Subnet, Option<SubnetLease>>) {
        let known =
            leases.iter().filter_map(|(subnet, lease)| Some((subnet.key(), lease.clone()?))).collect();
        let cache = Cache { v: 1, config: held.config.to_json(), subnet: held.subnet, leases: known };
        let text = serde_json::to_string(&cache).expect("leases always render");
        if let Err(error) = write_file(&Path::new(STATE_DIR).join("overlay.json"), &text) {
            warn!(%error, "network not remembered: a reboot without the hub will wait for it");
        }
    }

    fn cached(&self) -> Option<Cache> {
        let text = std::fs::read_to_string(Path::new(STATE_DIR).join("overlay.json")).ok()?;
        serde_json::from_str(&text).ok()
    }

    async fn as_cached(
        &self,
        cache: Option<&Cache>,
    ) -> Option<(Held, BTreeMap<Subnet, Option<SubnetLease>>)> {
        let cache = cache?;
        let underlay = self.kernel.underlay(self.machine.config.overlay.interface.as_deref()).await.ok()?;
        let config = cache.config.parse().ok()?;
        let leases: BTreeMap<_, _> = cache
            .leases
            .iter()
            .filter_map(|(key, lease)| Some((Subnet::from_key(key)?, Some(lease.clone()))))
            .collect();
        Some((Held { config, subnet: cache.subnet, underlay }, leases))
    }
}

fn read(key: &str, value: &[u8]) -> Option<(Subnet, Option<SubnetLease>)> {
    let subnet = Subnet::from_key(key.strip_prefix(keys::SUBNETS)?)?;
    Some((subnet, serde_json::from_slice(value).ok()))
}

/// Keeps the subnet's lease for as long as the daemon runs; it outlives restarts by its length.
async fn renew(store: Store, lease: LeaseId) {
    let mut complained = false;
    loop {
        let renewed = async { store.keeper(lease).await?.renew().await };
        match renewed.await {
            Ok(()) => {
                complained = false;
                tokio::time::sleep(RENEWAL).await;
            }
            // Its key goes with it, which the follower of the subnets sees.
            Err(StoreError::LeaseEnded(_)) => return,
            Err(error) => {
                complain(&mut complained, &error, "lease on the subnet not renewed");
                tokio::time::sleep(PAUSE * 20).await;
            }
        }
    }
}
