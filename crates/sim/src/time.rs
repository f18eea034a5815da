//! Virtual time, and clocks that run a little too fast or too slow.
//!
//! Invariant: nothing here looks at the real clock; a [`Time`] moves only when the world takes its next event.

use std::{
    fmt,
    ops::{Add, Sub},
    time::Duration,
};

/// Virtual time since the simulation began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(pub Duration);

impl Add<Duration> for Time {
    type Output = Self;
    fn add(self, later: Duration) -> Self {
        Self(self.0 + later)
    }
}

impl Sub for Time {
    type Output = Duration;
    /// How long `earlier` was before this; zero when it was not before.
    fn sub(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// Seconds and milliseconds.
impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}s", self.0.as_secs(), self.0.subsec_millis())
    }
}

/// Somebody's clock: started at another time, and not quite as fast as true time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Clock {
    /// What it showed when the simulation began.
    pub offset: Duration,
    /// By how many millionths it is too fast.
    pub drift: i32,
}

impl Clock {
    /// What the clock shows at `now`.
    pub fn shows(&self, now: Time) -> Time {
        Time(self.offset + self.scale(now.0, i64::from(self.drift)))
    }

    /// How long, in truth, the clock takes to go on by `shown`.
    pub fn takes(&self, shown: Duration) -> Duration {
        self.scale(shown, -i64::from(self.drift))
    }

    fn scale(&self, span: Duration, drift: i64) -> Duration {
        if drift == 0 {
            return span;
        }
        let micros = i64::try_from(span.as_micros()).unwrap_or(i64::MAX / 2);
        let million = 1_000_000_i64;
        // Multiplied one way and divided the other way, so that both directions agree.
        let scaled = if drift > 0 {
            i128::from(micros) * i128::from(million + drift) / i128::from(million)
        } else {
            i128::from(micros) * i128::from(million) / i128::from(million - drift)
        };
        Duration::from_micros(u64::try_from(scaled).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_and_its_spans_agree() {
        for drift in [-100_000, -7, 0, 7, 100_000] {
            let clock = Clock { offset: Duration::from_secs(5), drift };
            let at = Time(Duration::from_secs(100));
            let shown = Duration::from_secs(10);
            let passed = clock.shows(at + clock.takes(shown)) - clock.shows(at);
            assert!(passed.abs_diff(shown) < Duration::from_micros(5), "{drift}: {passed:?}");
        }
    }
}
