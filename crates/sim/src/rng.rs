//! Seeded randomness: SplitMix64, which is small, fast and the same everywhere.
//!
//! Invariant: the numbers depend on the seed and on how many were taken before, and on nothing else.

use std::time::Duration;

/// A stream of random numbers.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// The stream that belongs to `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Another stream, which goes its own way: what is taken from it does not shift this one any further.
    pub fn fork(&mut self) -> Self {
        Self(self.next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 up to but not `bound`; 0 when that is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        let number = self.next();
        if bound == 0 { 0 } else { usize::try_from(number % bound as u64).unwrap_or(0) }
    }

    /// True `permille` times in a thousand.
    pub fn chance(&mut self, permille: usize) -> bool {
        self.below(1000) < permille
    }

    /// A span from `least` to `most`.
    pub fn span(&mut self, least: Duration, most: Duration) -> Duration {
        let width = usize::try_from(most.saturating_sub(least).as_micros()).unwrap_or(usize::MAX);
        least + Duration::from_micros(self.below(width.saturating_add(1)) as u64)
    }

    /// One of `choices`.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len())]
    }
}
