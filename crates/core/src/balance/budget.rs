//! How many requests may be tried again.
//!
//! When every endpoint of a service is in trouble, trying again multiplies the load that is the trouble. So each request
//! pays in a fifth of a try, and each further try takes a whole one out. Invariant: tries never exceed a fifth of the
//! requests, plus the reserve and what has trickled into it.

use super::Moment;

/// A fifth of a try, in thousandths.
const PAID_IN: u32 = 200;
/// A try, in thousandths.
const TRY: u32 = 1000;
/// What a service with little traffic has, and gets back at one a second.
const RESERVE: u32 = 10 * TRY;
/// What a service with much traffic can save up: enough for the requests that are under way at a machine that dies.
const MOST: u32 = 500 * TRY;

/// The tries that a service has left.
#[derive(Debug, Clone)]
pub struct RetryBudget {
    left: u32,
    at: Moment,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { left: RESERVE, at: Moment::ZERO }
    }
}

impl RetryBudget {
    /// A request came.
    pub fn deposit(&mut self) {
        self.left = (self.left + PAID_IN).min(MOST);
    }

    /// Whether a request may be tried once more; takes the try out if so.
    pub fn withdraw(&mut self, now: Moment) -> bool {
        let trickled = now.saturating_sub(self.at).as_millis().min(u128::from(RESERVE)) as u32;
        if self.left < RESERVE {
            self.left = (self.left + trickled).min(RESERVE);
        }
        self.at = now;
        if self.left < TRY {
            return false;
        }
        self.left -= TRY;
        true
    }
}
