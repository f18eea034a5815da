//! Taking endpoints out for their failures, and letting them in again.
//!
//! One that cannot be reached is out at once, until a check reaches it; one that answers badly is out after five times in
//! a row, for 1 s, then 2, 4 … 30 s. After that it is on probation: one request may try it, and its outcome decides.
//! Invariants: the last endpoint that is in is never taken out; no request is spent on one that no check has reached.

use super::{Balancer, Moment, Outcome, Place, Verdict};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Whether an endpoint takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// It does.
    In,
    /// It does not, for its failures.
    Out {
        /// Until then, if it can be reached.
        until: Moment,
        /// It cannot be reached: it is out until it is, see [`Balancer::reached`].
        unreachable: bool,
    },
    /// One request may try it.
    Probation {
        /// One does.
        probing: bool,
    },
}

/// Failures in a row before an endpoint that can be reached is out.
const STREAK: u32 = 5;
/// How long the first ejection lasts.
const FIRST: Duration = Duration::from_secs(1);
/// How long ejections get.
const LONGEST: Duration = Duration::from_secs(30);

impl Balancer {
    /// Changes an endpoint's standing for what happened there.
    pub(super) fn judge(&mut self, now: Moment, place: Place, outcome: Outcome) -> Verdict {
        let slot = self.slots[place.index()].as_mut().expect("the caller has looked");
        let probing = matches!(slot.standing, Standing::Probation { probing: true });
        let failed = match outcome {
            Outcome::Answered(took) => {
                slot.latency.observe(now, took);
                slot.streak = 0;
                if slot.standing == Standing::In {
                    slot.ejections = 0;
                    return Verdict::Same;
                }
                // Out and yet answered: a request that was under way, or one sent in panic. It answers, so it is in.
                slot.standing = Standing::In;
                self.view.until = Moment::ZERO;
                return Verdict::Readmitted;
            }
            Outcome::Nothing => {
                if probing {
                    slot.standing = Standing::Probation { probing: false };
                    self.view.until = Moment::ZERO;
                }
                return Verdict::Same;
            }
            Outcome::Unwell(took) => {
                slot.latency.observe(now, took);
                false
            }
            Outcome::Reset => false,
            Outcome::Unreachable => true,
        };
        slot.streak += 1;
        let enough = failed || probing || slot.streak >= STREAK;
        if !enough || matches!(slot.standing, Standing::Out { .. }) {
            return Verdict::Same;
        }
        self.eject(now, place, failed)
    }

    fn eject(&mut self, now: Moment, place: Place, unreachable: bool) -> Verdict {
        let others = self.slots.iter().enumerate().any(|(index, slot)| {
            let slot = slot.as_ref().filter(|slot| slot.may_be_chosen());
            index != place.index() && slot.is_some_and(|slot| slot.standing == Standing::In)
        });
        let slot = self.slots[place.index()].as_mut().expect("the caller has looked");
        if !others {
            // Nobody else could take its place. It stays, or comes back, and every request tries it.
            slot.standing = Standing::In;
            self.view.until = Moment::ZERO;
            return Verdict::Same;
        }
        let length = FIRST.saturating_mul(1 << slot.ejections.min(5)).min(LONGEST);
        let length = jitter(length, slot.stick ^ now.as_nanos() as u64);
        slot.ejections += 1;
        slot.streak = 0;
        slot.standing = Standing::Out { until: now + length, unreachable };
        self.view.until = Moment::ZERO;
        Verdict::Ejected(length)
    }

    /// A check has reached an endpoint that is out because it could not be reached: one request may try it now.
    pub fn reached(&mut self, place: Place) {
        if let Some(Some(slot)) = self.slots.get_mut(place.index())
            && matches!(slot.standing, Standing::Out { unreachable: true, .. })
        {
            slot.standing = Standing::Probation { probing: false };
            self.view.until = Moment::ZERO;
        }
    }

    /// Endpoints that a check should try to reach.
    pub fn suspects(&self) -> impl Iterator<Item = Place> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| {
            let slot = slot.as_ref().filter(|slot| slot.may_be_chosen())?;
            matches!(slot.standing, Standing::Out { unreachable: true, .. }).then_some(Place(index as u32))
        })
    }
}

/// Up to a fifth more or less, so that what went out together does not come back together.
fn jitter(length: Duration, seed: u64) -> Duration {
    let part = super::mix(seed) % 401;
    length * (800 + part as u32) / 1000
}
