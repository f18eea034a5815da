//! How a machine comes by its subnet: one transaction on what the hub has, as often as somebody else is faster.
//!
//! Not here: which subnet (`core::overlay`), the datapath. Invariants: nothing is written unless the network's
//! configuration was accepted; a key without a lease stays without one; a machine's own record is written together with
//! its lease.

use anyhow::{Context, Result, bail};
use model::{
    LeaseId, MachineId, NetworkConfig, SubnetKey, SubnetLease, keys::NetworkKeys, network::NodeRecord,
};
use muster_core::overlay::{self, Choice, Claimant, Lease, Underlay};
use registry::{Guard, KeyValue, Listing, Store, Write};
use std::{
    collections::BTreeSet,
    hash::{BuildHasher, Hasher, RandomState},
    time::Duration,
};

/// Who wants a subnet.
pub(super) struct Claim<'a> {
    pub(super) store: &'a Store,
    pub(super) keys: &'a NetworkKeys,
    pub(super) machine: &'a MachineId,
    /// The network, if the hub has no configuration yet; none: somebody else has to write one.
    pub(super) network: Option<NetworkConfig>,
    pub(super) underlay: &'a Underlay,
    /// WireGuard's public key in base64, for a network that needs one.
    pub(super) wireguard: &'a (dyn Fn() -> Result<String> + Sync),
    /// By the machine's own disk.
    pub(super) previous: Option<SubnetKey>,
    /// How long the lease lasts unless it is kept alive.
    pub(super) ttl: Duration,
    /// Refuses what this host cannot carry.
    pub(super) check: &'a (dyn Fn(&NetworkConfig, SubnetKey) -> Result<()> + Sync),
}

/// What a machine has got.
#[derive(Debug, Clone)]
pub(super) struct Claimed {
    pub(super) config: NetworkConfig,
    pub(super) key: SubnetKey,
    pub(super) value: SubnetLease,
    /// To be kept alive; none for a reservation.
    pub(super) lease: Option<LeaseId>,
    /// Everybody's leases but its own.
    pub(super) others: Vec<Lease>,
}

impl Claim<'_> {
    /// Takes a subnet. `None`: somebody was faster, and the next attempt will see it.
    pub(super) async fn take(&self) -> Result<Option<Claimed>> {
        let listing = self.store.list(self.keys.prefix()).await?;
        let Some(config) = self.config(&listing).await? else { return Ok(None) };
        let found = Found::read(&listing, self.keys, self.machine);
        let wireguard = match config.backend {
            model::network::Backend::Wireguard(_) => Some((self.wireguard)()?),
            _ => None,
        };
        let own = overlay::own_lease(self.machine, &config, self.underlay, wireguard.as_deref());
        let me = Claimant {
            public_ip: self.underlay.address,
            lease: &own,
            record: found.record.as_ref(),
            previous: self.previous,
            others: &found.claimed,
        };
        let random = RandomState::new().build_hasher().finish();
        let key = match overlay::choose_subnet(&config, &found.leases, &me, random) {
            Choice::Reuse(key) | Choice::Take(key) => key,
            Choice::Full => bail!(
                "every subnet of {} is taken: choose a larger network, or delete leases of machines that are gone",
                config.network
            ),
        };
        (self.check)(&config, key)?;
        let name = self.keys.subnet(key);
        let taken = listing.items.iter().find(|kv| kv.key == name);
        let others = found.leases.iter().filter(|(other, _)| *other != key).cloned().collect();
        let claimed = |lease| Claimed { config: config.clone(), key, value: own.clone(), lease, others };

        let value = serde_json::to_vec(&own).context("leases always render")?;
        let mut record = NodeRecord::new(key, self.underlay.address);
        record.unknown = found.record.clone().map(|record| record.unknown).unwrap_or_default();
        let stale = self.stale(&listing, &found, &me, key);
        let same = taken.is_some_and(|kv| kv.value == value) && found.record.as_ref() == Some(&record);
        if same && stale.is_empty() {
            return Ok(Some(claimed(taken.and_then(|kv| kv.lease))));
        }
        let lease = match taken {
            // A key without a lease is a reservation: it stays one.
            Some(kv) => kv.lease,
            None => Some(self.store.grant(self.ttl).await?),
        };
        let mut guards = vec![match taken {
            Some(kv) => Guard::Unchanged(name.clone(), kv.mod_revision),
            None => Guard::Absent(name.clone()),
        }];
        let mut writes = vec![
            Write::Put { key: name, value: value.into(), lease },
            Write::put(self.keys.node(self.machine), serde_json::to_vec(&record)?),
        ];
        for kv in stale {
            guards.push(Guard::Unchanged(kv.key.clone(), kv.mod_revision));
            writes.push(Write::Delete(kv.key.clone()));
        }
        if self.store.commit(&guards, &writes).await?.committed {
            return Ok(Some(claimed(lease)));
        }
        if let (None, Some(lease)) = (taken, lease) {
            self.store.revoke(lease).await?;
        }
        Ok(None)
    }

    /// Leases that this machine had before, under another configuration. Reservations are their makers'.
    fn stale<'l>(
        &self,
        listing: &'l Listing,
        found: &Found,
        me: &Claimant<'_>,
        key: SubnetKey,
    ) -> Vec<&'l KeyValue> {
        let mine =
            |other: &SubnetKey, lease: &Option<SubnetLease>| *other != key && me.owns(*other, lease.as_ref());
        let names: BTreeSet<String> = found
            .leases
            .iter()
            .filter(|(other, lease)| mine(other, lease))
            .map(|(other, _)| self.keys.subnet(*other))
            .collect();
        listing.items.iter().filter(|kv| names.contains(&kv.key) && kv.lease.is_some()).take(16).collect()
    }

    /// The network's configuration; where there is none, this machine's is written, and `None` says to look again.
    async fn config(&self, listing: &Listing) -> Result<Option<NetworkConfig>> {
        let key = self.keys.config();
        if let Some(kv) = listing.items.iter().find(|kv| kv.key == key) {
            let text = str::from_utf8(&kv.value).with_context(|| format!("{key} is no UTF-8"))?;
            return text.parse().map(Some).with_context(|| format!("in {key}"));
        }
        let Some(network) = &self.network else {
            bail!(
                "there is no {key} yet: write one, such as {{\"Network\":\"10.2.0.0/16\",\"Backend\":{{\"Type\":\"vxlan\",\"VNI\":2}}}}"
            );
        };
        let write = Write::put(key.clone(), network.to_json());
        // Whoever was faster decides.
        self.store.commit(&[Guard::Absent(key)], &[write]).await?;
        Ok(None)
    }
}

/// What the hub has of the network.
struct Found {
    leases: Vec<Lease>,
    /// This machine's own record.
    record: Option<NodeRecord>,
    /// The subnets that others have by their records.
    claimed: BTreeSet<SubnetKey>,
}

impl Found {
    fn read(listing: &Listing, keys: &NetworkKeys, machine: &MachineId) -> Self {
        let mut found = Self { leases: Vec::new(), record: None, claimed: BTreeSet::new() };
        for kv in &listing.items {
            found.leases.extend(lease(keys, &kv.key, &kv.value));
            let Some(id) = keys.node_of(&kv.key) else { continue };
            let Ok(record) = serde_json::from_slice::<NodeRecord>(&kv.value) else { continue };
            if id == machine.as_str() {
                found.record = Some(record);
            } else {
                found.claimed.insert(record.subnet);
            }
        }
        found
    }
}

/// The key of a lease with its value, if it is one. A value that cannot be read is nobody's lease, but its
/// subnet is taken.
pub(super) fn lease(keys: &NetworkKeys, key: &str, value: &[u8]) -> Option<Lease> {
    Some((keys.subnet_of(key)?, serde_json::from_slice(value).ok()))
}
