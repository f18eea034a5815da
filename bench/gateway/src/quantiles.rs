//! Durations in buckets of 1.6 % width, from a microsecond to an hour, so that millions of them take little room.

use std::time::Duration;

/// Buckets for each doubling.
const FINE: u32 = 64;

/// How long things took.
#[derive(Debug, Clone, Default)]
pub struct Quantiles {
    counts: Vec<u64>,
    total: u64,
    largest: Duration,
}

impl Quantiles {
    /// Takes one in.
    pub fn add(&mut self, took: Duration) {
        let bucket = bucket(took.as_micros() as u64);
        if self.counts.len() <= bucket {
            self.counts.resize(bucket + 1, 0);
        }
        self.counts[bucket] += 1;
        self.total += 1;
        self.largest = self.largest.max(took);
    }

    /// Takes in what another has.
    pub fn merge(&mut self, other: &Self) {
        if self.counts.len() < other.counts.len() {
            self.counts.resize(other.counts.len(), 0);
        }
        for (own, others) in self.counts.iter_mut().zip(&other.counts) {
            *own += others;
        }
        self.total += other.total;
        self.largest = self.largest.max(other.largest);
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.total
    }

    /// The longest.
    pub fn max(&self) -> Duration {
        self.largest
    }

    /// That of which this part (0 to 1) took no longer.
    pub fn at(&self, part: f64) -> Duration {
        let rank = (self.total as f64 * part).ceil() as u64;
        let mut below = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            below += count;
            if below >= rank && below > 0 {
                return Duration::from_micros(value(bucket)).min(self.largest);
            }
        }
        self.largest
    }
}

fn bucket(micros: u64) -> usize {
    if micros < u64::from(FINE) {
        return micros as usize;
    }
    let doublings = micros.ilog2() - FINE.ilog2();
    let within = (micros >> doublings) - u64::from(FINE);
    ((doublings + 1) * FINE) as usize + within as usize
}

/// The upper end of a bucket.
fn value(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let fine = u64::from(FINE);
    if bucket < fine {
        return bucket;
    }
    let doublings = bucket / fine - 1;
    (((bucket % fine) + fine + 1) << doublings) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_close() {
        let mut all = Quantiles::default();
        for micros in 1..=100_000 {
            all.add(Duration::from_micros(micros));
        }
        for (part, wanted) in [(0.5, 50_000.0), (0.99, 99_000.0), (0.999, 99_900.0), (1.0, 100_000.0)] {
            let got = all.at(part).as_micros() as f64;
            assert!((got / wanted - 1.0).abs() < 0.02, "{part}: {got}");
        }
        assert_eq!(all.max(), Duration::from_millis(100));
        assert_eq!(Quantiles::default().at(0.5), Duration::ZERO);
    }
}
