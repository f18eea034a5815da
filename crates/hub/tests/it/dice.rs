//! Where random tests get their choices from.
//!
//! Either a seed, for long walks, or a tape of numbers made by proptest, which shrinks it: a shorter tape, and smaller
//! numbers on it, make a simpler test. Invariant: zero is the simplest choice, and all that an ended tape gives.

/// A source of choices.
#[derive(Debug, Clone)]
pub(crate) enum Dice {
    /// Splitmix64: small, and the same everywhere.
    Seeded(u64),
    Tape(std::vec::IntoIter<u16>),
}

impl Dice {
    pub(crate) fn seeded(seed: u64) -> Self {
        Self::Seeded(seed)
    }

    pub(crate) fn tape(tape: Vec<u16>) -> Self {
        Self::Tape(tape.into_iter())
    }

    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        match self {
            Self::Seeded(state) => {
                *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut z = *state;
                z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                (z ^ (z >> 31)) % sides
            }
            Self::Tape(tape) => u64::from(tape.next().unwrap_or_default()) % sides,
        }
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.roll(n) == n - 1
    }

    pub(crate) fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.roll(of.len() as u64) as usize].clone()
    }
}
