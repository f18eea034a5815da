//! The fence: what to stop and what to kill of the units that may not outlive their machine's lease.
//!
//! Only deciding; the watcher in `muster` reads the clock, asks systemd and carries out. Invariant: while the time
//! is over, a unit that is alive has been told to stop, and is killed when [`FENCE_PATIENCE`] has passed since.

use crate::agent::FENCE_PATIENCE;
use model::UnitName;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Which units were told to stop, and when: in time since boot.
#[derive(Debug, Default)]
pub struct Fence {
    told: BTreeMap<UnitName, Duration>,
    closed: bool,
}

/// What to do now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Orders {
    /// Units to stop, in order of their names.
    pub stop: BTreeSet<UnitName>,
    /// Units that did not stop in time.
    pub kill: BTreeSet<UnitName>,
}

impl Fence {
    /// The lease is good: nothing is to be done, and what comes later is a new event.
    pub fn open(&mut self) {
        *self = Self::default();
    }

    /// Whether the time was over when it was last looked at.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// The time is over. `units` is what it was about, `alive` what of it runs or stops still.
    pub fn close(&mut self, now: Duration, units: &BTreeSet<UnitName>, alive: &BTreeSet<UnitName>) -> Orders {
        // All of them at first: a start that still waits in systemd's queue is called off too.
        let first = !std::mem::replace(&mut self.closed, true);
        let mut orders = Orders::default();
        self.told.retain(|unit, _| alive.contains(unit));
        for unit in units {
            match self.told.get(unit) {
                Some(at) if now.saturating_sub(*at) >= FENCE_PATIENCE => {
                    orders.kill.insert(unit.clone());
                }
                Some(_) => {}
                None if alive.contains(unit) => {
                    self.told.insert(unit.clone(), now);
                    orders.stop.insert(unit.clone());
                }
                None if first => {
                    orders.stop.insert(unit.clone());
                }
                None => {}
            }
        }
        orders
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::FENCE_STOP;

    fn set(names: &[&str]) -> BTreeSet<UnitName> {
        names.iter().map(|name| name.parse().expect("a name")).collect()
    }

    #[test]
    fn units_are_stopped_then_killed_within_the_time_that_is_promised() {
        let (mut fence, units) = (Fence::default(), set(&["a.service", "b.service"]));
        let at = |ms| Duration::from_millis(ms);
        let orders = fence.close(at(0), &units, &set(&["a.service"]));
        assert_eq!(orders, Orders { stop: units.clone(), kill: set(&[]) }, "waiting starts too");
        assert_eq!(fence.close(at(500), &units, &set(&["a.service"])), Orders::default(), "told once");
        let late = fence.close(FENCE_PATIENCE, &units, &set(&["a.service"]));
        assert_eq!(late, Orders { stop: set(&[]), kill: set(&["a.service"]) });
        assert!(FENCE_PATIENCE < FENCE_STOP);
        // Whatever starts one of them again is undone too.
        let again = fence.close(at(9000), &units, &set(&["b.service"]));
        assert_eq!(again, Orders { stop: set(&["b.service"]), kill: set(&[]) });
        fence.open();
        assert!(!fence.is_closed());
    }
}
