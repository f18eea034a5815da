//! How long something took, counted as Prometheus counts it.
//!
//! Not for readers while it counts: whoever counts hands out copies. Invariant: an observation is in one bucket, the
//! first whose limit is not below it.

use std::time::Duration;

/// Buckets with a limit.
pub(crate) const BUCKETS: usize = 14;

/// Limits in seconds are this, doubled from bucket to bucket: 1 ms to 8.192 s, etcd's for its disk.
const FIRST: Duration = Duration::from_millis(1);

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Histogram {
    /// The last one has no limit.
    counts: [u64; BUCKETS + 1],
    sum: Duration,
}

impl Histogram {
    pub(crate) fn observe(&mut self, took: Duration) {
        let bucket = (0..BUCKETS).find(|bucket| took <= limit(*bucket)).unwrap_or(BUCKETS);
        self.counts[bucket] += 1;
        self.sum += took;
    }

    /// Each limit, with how many observations are not above it.
    pub(crate) fn buckets(&self) -> impl Iterator<Item = (Duration, u64)> {
        let mut count = 0;
        self.counts[..BUCKETS].iter().enumerate().map(move |(bucket, here)| {
            count += here;
            (limit(bucket), count)
        })
    }

    pub(crate) fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    pub(crate) fn sum(&self) -> Duration {
        self.sum
    }
}

fn limit(bucket: usize) -> Duration {
    FIRST * (1 << bucket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn observations_are_below_their_limit() {
        let mut histogram = Histogram::default();
        for milliseconds in [0, 1, 2, 3, 8192, 8193, 100_000] {
            histogram.observe(Duration::from_millis(milliseconds));
        }
        let buckets: Vec<(u128, u64)> =
            histogram.buckets().map(|(limit, count)| (limit.as_millis(), count)).collect();
        assert_eq!(buckets[..3], [(1, 2), (2, 3), (4, 4)]);
        assert_eq!(buckets[BUCKETS - 1], (8192, 5));
        assert_eq!((histogram.count(), histogram.sum().as_millis()), (7, 8192 + 8193 + 100_006));
    }
}
