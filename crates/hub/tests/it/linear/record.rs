//! What clients and watchers did and saw, for the checkers.
//!
//! Every write has a value of its own, so that whoever reads a value knows which write it was. Invariant: times are of
//! one clock; a call happened, if it did, between `called` and the time of its answer.

use crate::dice::Dice;

pub(crate) const KEYS: usize = 6;

/// A key as a client sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kv {
    pub(crate) value: u64,
    pub(crate) created: i64,
    pub(crate) modified: i64,
    pub(crate) version: i64,
}

/// All keys at one revision.
pub(crate) type State = [Option<Kv>; KEYS];

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Op {
    Put {
        key: usize,
        value: u64,
    },
    /// Two different keys in one transaction.
    PutBoth {
        keys: [usize; 2],
        value: u64,
    },
    /// Put if the key is as it was seen, and otherwise read it.
    Swap {
        key: usize,
        seen: Option<Kv>,
        value: u64,
    },
    Delete {
        key: usize,
    },
    Get {
        key: usize,
    },
    GetAll,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Answer {
    /// It wrote, at this revision.
    Wrote(i64),
    /// It wrote nothing; the key at this revision.
    Found {
        revision: i64,
        kv: Option<Kv>,
    },
    All {
        revision: i64,
        state: State,
    },
}

impl Answer {
    pub(crate) fn revision(&self) -> i64 {
        match self {
            Self::Wrote(revision) | Self::Found { revision, .. } | Self::All { revision, .. } => *revision,
        }
    }
}

/// One call; without an answer it is unknown whether it happened.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) op: Op,
    pub(crate) called: u64,
    /// When the answer came, and what it was.
    pub(crate) answer: Option<(u64, Answer)>,
}

/// What a revision did to a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) key: usize,
    /// None is a deletion.
    pub(crate) now: Option<Kv>,
    pub(crate) before: Option<Kv>,
}

/// One answer to a watcher.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) at: u64,
    /// Of its header.
    pub(crate) revision: i64,
    pub(crate) changes: Vec<(i64, Change)>,
}

/// All that one watcher was told, from the first revision on.
#[derive(Debug, Clone)]
pub(crate) struct Watched {
    /// None is all keys.
    pub(crate) key: Option<usize>,
    pub(crate) told: Vec<Told>,
}

impl Op {
    pub(crate) fn random(dice: &mut Dice, value: u64, seen: &State) -> Self {
        let key = dice.roll(KEYS as u64) as usize;
        match dice.roll(10) {
            0 | 1 => Self::Put { key, value },
            2 => Self::PutBoth { keys: [key, (key + 1) % KEYS], value },
            3 | 4 => Self::Swap { key, seen: seen[key], value },
            5 => Self::Delete { key },
            6 => Self::GetAll,
            _ => Self::Get { key },
        }
    }

    /// What it does to all keys at `revision`.
    pub(crate) fn apply(&self, state: &mut State, revision: i64) {
        let put = |kv: &mut Option<Kv>, value| {
            let (created, version) = kv.map_or((revision, 1), |kv| (kv.created, kv.version + 1));
            *kv = Some(Kv { value, created, modified: revision, version });
        };
        match self {
            Self::Put { key, value } | Self::Swap { key, value, .. } => put(&mut state[*key], *value),
            Self::PutBoth { keys, value } => keys.iter().for_each(|key| put(&mut state[*key], *value)),
            Self::Delete { key } => state[*key] = None,
            Self::Get { .. } | Self::GetAll => {}
        }
    }

    /// Notes what an answer says, to compare with later.
    pub(crate) fn learn(&self, answer: &Answer, seen: &mut State) {
        match (self, answer) {
            (_, Answer::All { state, .. }) => *seen = *state,
            (_, Answer::Wrote(revision)) => self.apply(seen, *revision),
            (Self::Get { key } | Self::Swap { key, .. } | Self::Delete { key }, Answer::Found { kv, .. }) => {
                seen[*key] = *kv
            }
            (_, Answer::Found { .. }) => {}
        }
    }
}

/// Atomic histories, to try the checkers on.
#[cfg(test)]
pub(crate) mod sample {
    use super::{Answer, Call, Change, KEYS, Op, State, Told, Watched};
    use crate::dice::Dice;
    use std::collections::BTreeMap;

    /// A history that is right: what clients recorded, what happened, what a watcher of all keys was told.
    pub(crate) struct Sample {
        pub(crate) calls: Vec<Call>,
        pub(crate) history: BTreeMap<i64, Vec<Change>>,
        pub(crate) watched: Watched,
    }

    /// Calls overlap, and every twentieth has no answer; half of those happened.
    pub(crate) fn sample(seed: u64, length: u64) -> Sample {
        let mut dice = Dice::seeded(seed);
        let (mut state, mut revision) = (State::default(), 1);
        let mut old = state; // what those know who have not looked for a while
        let mut sample = Sample {
            calls: Vec::new(),
            history: BTreeMap::new(),
            watched: Watched { key: None, told: Vec::new() },
        };
        for step in 1..=length {
            let at = step * 100; // when it happens
            let seen = if dice.one_in(3) { old } else { state };
            let op = Op::random(&mut dice, step, &seen);
            let (called, returned) = (at - dice.roll(300).min(at), at + 1 + dice.roll(300));
            let lost = dice.roll(20) == 0;
            if lost && dice.roll(2) == 0 {
                sample.calls.push(Call { op, called, answer: None });
                continue;
            }
            let before = state;
            if step % 5 == 0 {
                old = state;
            }
            let writes = match &op {
                Op::Get { .. } | Op::GetAll => false,
                Op::Swap { key, seen, .. } => seen.map(|kv| kv.modified) == state[*key].map(|kv| kv.modified),
                Op::Delete { key } => state[*key].is_some(),
                Op::Put { .. } | Op::PutBoth { .. } => true,
            };
            if writes {
                revision += 1;
                op.apply(&mut state, revision);
                let changed = (0..KEYS).filter(|key| state[*key] != before[*key]);
                let changes: Vec<Change> =
                    changed.map(|key| Change { key, now: state[key], before: before[key] }).collect();
                let told = changes.iter().map(|change| (revision, change.clone())).collect();
                sample.watched.told.push(Told { at: at + 1 + dice.roll(1000), revision, changes: told });
                sample.history.insert(revision, changes);
            }
            let answer = match &op {
                _ if writes => Answer::Wrote(revision),
                Op::GetAll => Answer::All { revision, state },
                Op::Get { key } | Op::Swap { key, .. } | Op::Delete { key } => {
                    Answer::Found { revision, kv: state[*key] }
                }
                Op::Put { .. } | Op::PutBoth { .. } => unreachable!("they write"),
            };
            let answer = (!lost).then_some((returned, answer));
            sample.calls.push(Call { op, called, answer });
        }
        sample
    }
}
