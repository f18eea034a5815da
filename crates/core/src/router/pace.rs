//! When an output that must be reloaded is brought up to date. Every reload of nginx costs its clients their idle
//! connections, so changes are gathered, and reloads are kept apart.
//!
//! Invariants: a change is applied at the latest `longest` after it was noted, or when the interval since the last
//! reload is over, whichever is later; in the long run reloads are `interval` apart, whatever comes and goes. Times are
//! durations since any fixed moment.

use super::Effect;
use std::time::Duration;

/// How often an output may be reloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// How long a change that comes alone waits for others.
    pub settle: Duration,
    /// When others came: how long nothing must come before they are applied together. Registrations come in bursts.
    pub quiet: Duration,
    /// The longest that quiet is waited for.
    pub longest: Duration,
    /// The least time between reloads.
    pub interval: Duration,
    /// The same when an endpoint went away: waiting would send requests to nobody.
    pub removal_interval: Duration,
    /// How far reloads for removals may be ahead of `interval`: some at once are a machine that dies, a stream of them is
    /// somebody's fault.
    pub ahead: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            settle: Duration::from_millis(10),
            quiet: Duration::from_millis(100),
            longest: Duration::from_secs(1),
            interval: Duration::from_secs(2),
            removal_interval: Duration::from_millis(500),
            ahead: Duration::from_secs(6),
        }
    }
}

/// Decides when an output is brought up to date.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    pending: Option<Pending>,
    applied: Option<Duration>,
    /// When the next reload would come if all had been as far apart as they should be on average.
    even: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Pending {
    first: Duration,
    last: Duration,
    /// An endpoint went away.
    removal: Option<Duration>,
}

impl Batch {
    /// Notes a change.
    pub fn note(&mut self, now: Duration, effect: Effect) {
        if effect == Effect::Nothing {
            return;
        }
        let pending = self.pending.get_or_insert(Pending { first: now, last: now, removal: None });
        pending.last = pending.last.max(now);
        if effect == Effect::Removed {
            pending.removal.get_or_insert(now);
        }
    }

    /// When to apply what is pending; `None` when nothing is.
    pub fn due(&self, pace: &Pace) -> Option<Duration> {
        let Pending { first, last, removal } = self.pending?;
        let alone = first == last;
        let quiet = last + if alone { pace.settle } else { pace.quiet };
        let settled = quiet.min(first + pace.longest.max(pace.settle));
        // For a removal nothing is waited for but what comes with it.
        let settled = removal.map_or(settled, |removal| settled.min(removal + pace.settle));
        let Some(applied) = self.applied else { return Some(settled) };
        let earliest = match removal {
            Some(_) => (applied + pace.removal_interval).max(self.even.saturating_sub(pace.ahead)),
            None => applied + pace.interval,
        };
        Some(settled.max(earliest))
    }

    /// Whether something is to be applied.
    pub fn is_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// Notes that everything pending was applied, or at least tried.
    pub fn applied(&mut self, pace: &Pace, now: Duration) {
        self.pending = None;
        self.applied = Some(now);
        self.even = self.even.max(now) + pace.interval;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn the_first_change_is_applied_at_once_and_the_next_wait() {
        let pace = Pace::default();
        let mut batch = Batch::default();
        assert_eq!(batch.due(&pace), None);
        batch.note(ms(1000), Effect::Added);
        assert_eq!(batch.due(&pace), Some(ms(1010)));
        batch.applied(&pace, ms(1010));
        assert_eq!(batch.due(&pace), None);
        batch.note(ms(1100), Effect::Added);
        assert_eq!(batch.due(&pace), Some(ms(3010)));
        batch.note(ms(1200), Effect::Removed);
        assert_eq!(batch.due(&pace), Some(ms(1510)));
        batch.note(ms(1300), Effect::Nothing);
        assert_eq!(batch.due(&pace), Some(ms(1510)));
    }

    #[test]
    fn a_burst_is_waited_out_but_not_for_ever() {
        let pace = Pace::default();
        let mut batch = Batch::default();
        batch.note(ms(0), Effect::Added);
        batch.note(ms(5), Effect::Added);
        assert_eq!(batch.due(&pace), Some(ms(105)));
        batch.note(ms(90), Effect::Added);
        assert_eq!(batch.due(&pace), Some(ms(190)));
        for at in (100..2000).step_by(50) {
            batch.note(ms(at), Effect::Added);
        }
        assert_eq!(batch.due(&pace), Some(ms(1000)));
        batch.note(ms(2000), Effect::Removed);
        assert_eq!(batch.due(&pace), Some(ms(1000)));
    }

    #[test]
    fn endpoints_that_come_and_go_for_ever_cost_no_more_than_a_reload_an_interval() {
        let pace = Pace::default();
        let mut batch = Batch::default();
        let mut reloads = Vec::new();
        for at in (0..60_000).step_by(20) {
            if batch.due(&pace).is_some_and(|due| due <= ms(at)) {
                batch.applied(&pace, ms(at));
                reloads.push(at);
            }
            batch.note(ms(at), if at % 40 == 0 { Effect::Removed } else { Effect::Added });
        }
        assert!(
            reloads.iter().filter(|at| **at < 2_500).count() >= 4,
            "the first ones are quick: {reloads:?}"
        );
        assert!(reloads.len() <= 60 / 2 + 4, "{} reloads in a minute", reloads.len());
    }

    proptest! {
        #[test]
        fn reloads_keep_apart_and_nothing_waits_too_long(
            changes in proptest::collection::vec((0_u64..400, prop_oneof![Just(Effect::Added), Just(Effect::Removed)]), 1..80)
        ) {
            let pace = Pace::default();
            let mut batch = Batch::default();
            let (mut now, mut last, mut waiting) = (ms(0), None::<Duration>, None::<(Duration, Effect)>);
            let mut reload = |batch: &mut Batch, due: Duration, waiting: &mut Option<(Duration, Effect)>| {
                let (since, worst) = waiting.take().expect("something is applied only when something waits");
                if let Some(last) = last {
                    let interval = if worst == Effect::Removed { pace.removal_interval } else { pace.interval };
                    prop_assert!(due >= last + interval);
                    prop_assert!(due <= (last + pace.interval).max(since + pace.longest));
                } else {
                    prop_assert!(due <= since + pace.longest);
                }
                batch.applied(&pace, due);
                last = Some(due);
                Ok(())
            };
            for (pause, effect) in changes {
                now += ms(pause);
                while let Some(due) = batch.due(&pace).filter(|due| *due < now) {
                    reload(&mut batch, due, &mut waiting)?;
                }
                batch.note(now, effect);
                let (since, worst) = waiting.unwrap_or((now, effect));
                waiting = Some((since, worst.max(effect)));
            }
            if let Some(due) = batch.due(&pace) {
                reload(&mut batch, due, &mut waiting)?;
            }
            prop_assert!(waiting.is_none() && !batch.is_pending());
        }
    }
}
