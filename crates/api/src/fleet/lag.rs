//! Units that were told to stop by a PUT and are still called launched for a while.
//!
//! fleetctl 1.0 restarts a unit by wanting it loaded, waiting until it is called *launched*, and wanting it launched
//! again; it got away with that because fleet's answers lagged behind. Ours do not, and it would wait for ever. So
//! what GET tells of such a unit is late on purpose: until [`WINDOW`] has passed and somebody has looked once.
//! Invariant: nothing is late for longer than [`LONGEST`], and only answers are late, never deeds.

use model::UnitName;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// fleetctl looks every 250 ms; this leaves room for a slow machine.
const WINDOW: Duration = Duration::from_secs(1);
/// Nobody looked for this long: nobody is waiting.
const LONGEST: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy)]
struct Late {
    since: Instant,
    seen: bool,
}

impl Late {
    fn over(self, now: Instant) -> bool {
        let age = now.saturating_duration_since(self.since);
        age >= LONGEST || (self.seen && age >= WINDOW)
    }
}

/// The units, shared by all requests. Locked for lookups only.
#[derive(Debug, Clone, Default)]
pub(super) struct Lag(Arc<Mutex<HashMap<UnitName, Late>>>);

impl Lag {
    /// The unit is told to stop now.
    pub(super) fn begin(&self, unit: &UnitName) {
        self.begin_at(unit, Instant::now());
    }

    /// Another order took the place of that.
    pub(super) fn forget(&self, unit: &UnitName) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(unit);
    }

    /// Somebody looks at the unit: whether it is to be called launched.
    pub(super) fn look(&self, unit: &UnitName) -> bool {
        self.look_at(unit, Instant::now())
    }

    fn begin_at(&self, unit: &UnitName, now: Instant) {
        let mut units = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody may ever look at one again.
        units.retain(|_, late| !late.over(now));
        units.insert(unit.clone(), Late { since: now, seen: false });
    }

    fn look_at(&self, unit: &UnitName, now: Instant) -> bool {
        let mut units = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(late) = units.get_mut(unit) else { return false };
        if late.over(now) {
            units.remove(unit);
            return false;
        }
        late.seen = true;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_is_told_late_but_not_for_ever() {
        let unit: UnitName = "a.service".parse().expect("valid");
        let (lag, now) = (Lag::default(), Instant::now());
        assert!(!lag.look_at(&unit, now));
        lag.begin_at(&unit, now);
        for (after, launched) in [(0, true), (250, true), (999, true), (1000, false), (1001, false)] {
            assert_eq!(lag.look_at(&unit, now + Duration::from_millis(after)), launched, "after {after} ms");
        }
        // The first look comes late: it still sees the unit launched.
        lag.begin_at(&unit, now);
        assert!(lag.look_at(&unit, now + Duration::from_secs(5)));
        assert!(!lag.look_at(&unit, now + Duration::from_secs(6)));
        lag.begin_at(&unit, now);
        assert!(!lag.look_at(&unit, now + LONGEST));
        lag.begin_at(&unit, now);
        lag.forget(&unit);
        assert!(!lag.look_at(&unit, now));
    }
}
