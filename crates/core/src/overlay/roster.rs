//! Which leases count: those that the hub lists, and for a while those that vanished from it all at once.
//!
//! A lease that goes away alone is a machine that left. When more than half of them go away together, it is the hub
//! that has forgotten them (its data was lost, or it was away for longer than leases last), and every machine still has
//! its containers: the peers are held until their machines come back, or until it is clear that they do not.
//!
//! Not here: a clock. Times are since any fixed moment.

use super::Lease;
use model::{SubnetKey, SubnetLease};
use std::{collections::BTreeMap, time::Duration};

/// How long peers are held that vanished together.
pub const HOLD: Duration = Duration::from_secs(600);
/// Expiries come one by one, although together: those that come within this time are counted as one.
const GATHER: Duration = Duration::from_secs(1);
/// Fewer than this many are no mass.
const MASS: usize = 2;

/// The other machines' leases.
#[derive(Debug, Clone, Default)]
pub struct Roster {
    listed: BTreeMap<SubnetKey, Option<SubnetLease>>,
    vanished: BTreeMap<SubnetKey, Vanished>,
    hold: Option<Duration>,
}

#[derive(Debug, Clone)]
struct Vanished {
    lease: SubnetLease,
    since: Duration,
    held: bool,
}

impl Roster {
    /// A roster that holds what vanished together for `hold`.
    pub fn new(hold: Duration) -> Self {
        Self { hold: Some(hold), ..Self::default() }
    }

    /// The hub lists these, and no others.
    pub fn reset(&mut self, leases: impl IntoIterator<Item = Lease>, now: Duration) {
        let listed: BTreeMap<_, _> = leases.into_iter().collect();
        let gone: Vec<SubnetKey> =
            self.listed.keys().filter(|key| !listed.contains_key(key)).copied().collect();
        gone.iter().for_each(|key| self.remove(*key, now));
        listed.into_iter().for_each(|(key, lease)| self.put(key, lease));
    }

    /// A lease was written.
    pub fn put(&mut self, key: SubnetKey, lease: Option<SubnetLease>) {
        // A machine that comes back on another subnet has left the old one.
        if let Some(lease) = &lease {
            self.vanished.retain(|_, gone| gone.lease.public_ip != lease.public_ip);
        }
        self.vanished.remove(&key);
        self.listed.insert(key, lease);
    }

    /// A lease was deleted, or ended.
    pub fn remove(&mut self, key: SubnetKey, now: Duration) {
        if let Some(Some(lease)) = self.listed.remove(&key) {
            self.vanished.insert(key, Vanished { lease, since: now, held: false });
        }
    }

    /// Whether the hub lists it.
    pub fn lists(&self, key: SubnetKey) -> Option<&SubnetLease> {
        self.listed.get(&key)?.as_ref()
    }

    /// Decides about what vanished. Returns when to ask again, if anything is left to decide.
    pub fn settle(&mut self, now: Duration) -> Option<Duration> {
        // While some are held, whatever else goes is held with them.
        let gone = self.vanished.len();
        let together = gone >= MASS && gone * 2 > self.listed.len() + gone;
        for gone in self.vanished.values_mut() {
            gone.held |= together;
        }
        let hold = self.hold.unwrap_or(HOLD);
        let end = |gone: &Vanished| gone.since + if gone.held { hold } else { GATHER };
        self.vanished.retain(|_, gone| end(gone) > now);
        self.vanished.values().map(end).min()
    }

    /// How many peers are held although the hub does not list them.
    pub fn held(&self) -> usize {
        self.vanished.values().filter(|gone| gone.held).count()
    }

    /// All leases that count.
    pub fn leases(&self) -> Vec<Lease> {
        let vanished = self.vanished.iter().map(|(key, gone)| (*key, Some(gone.lease.clone())));
        self.listed.iter().map(|(key, lease)| (*key, lease.clone())).chain(vanished).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn key(third: u8) -> SubnetKey {
        format!("10.1.{third}.0-24").parse().expect("a key")
    }

    fn lease(last: u8) -> SubnetLease {
        SubnetLease {
            public_ip: Ipv4Addr::new(192, 168, 77, last),
            public_ipv6: None,
            backend_type: "host-gw".to_owned(),
            backend_data: None,
            backend_v6_data: None,
        }
    }

    fn roster(size: u8) -> Roster {
        let mut roster = Roster::new(HOLD);
        roster.reset((1..=size).map(|n| (key(n), Some(lease(n)))), Duration::ZERO);
        roster
    }

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_machine_that_leaves_is_gone_after_a_moment() {
        let mut roster = roster(5);
        roster.remove(key(3), at(0));
        assert_eq!(roster.settle(at(0)), Some(GATHER));
        assert_eq!(roster.leases().len(), 5);
        assert_eq!((roster.settle(GATHER), roster.leases().len(), roster.held()), (None, 4, 0));
    }

    #[test]
    fn point_08_most_of_them_at_once_are_held_one_by_one_too() {
        let mut roster = roster(5);
        for (n, ms) in [(1, 0), (2, 300), (3, 600), (4, 900)] {
            roster.remove(key(n), at(ms));
            roster.settle(at(ms));
        }
        assert_eq!(
            (roster.settle(at(5000)), roster.leases().len(), roster.held()),
            (Some(at(0) + HOLD), 5, 4)
        );
        // One comes back where it was, another with a new subnet.
        roster.put(key(1), Some(lease(1)));
        roster.put(key(77), Some(lease(2)));
        assert_eq!((roster.held(), roster.leases().len()), (2, 5));
        assert_eq!(roster.settle(at(1000) + HOLD), None);
        assert_eq!(roster.leases().len(), 3);
    }

    #[test]
    fn point_08_a_hub_that_lists_nothing_any_more_is_not_believed() {
        let mut roster = roster(3);
        roster.reset([], at(10));
        roster.settle(at(20));
        roster.put(key(1), Some(lease(1)));
        roster.settle(at(60_000));
        assert_eq!((roster.leases().len(), roster.held()), (3, 2));
    }

    #[test]
    fn two_machines_of_two_are_held_and_one_of_one_is_not() {
        let mut pair = roster(2);
        pair.remove(key(1), at(0));
        pair.settle(at(1500));
        assert_eq!(pair.leases().len(), 1);
    }
}
