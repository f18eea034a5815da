//! The checker that searches: is there an order of the calls on one key, in agreement with time, that explains every
//! answer? It looks at values only and believes no revision.
//!
//! Wing and Gong's search with Lowe's memory of configurations. A key by itself is enough: a history is linearizable
//! if it is for every key, and a transaction that puts two keys without a condition is a put of each. A call
//! without an answer may be placed anywhere after it began, or nowhere.

use super::record::{Answer, Call, Op};
use std::collections::HashSet;

/// Configurations after which the search gives up: some hundred MiB.
const MOST: usize = 2_000_000;

/// One key's part in a call. Outcomes are known only of answered calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Put(u64),
    /// Put if it held `seen`; `found` is what it held if it did not, by the answer.
    Swap {
        seen: Option<u64>,
        value: u64,
        found: Option<Option<u64>>,
    },
    /// Whether there was something, by the answer.
    Delete {
        existed: Option<bool>,
    },
    Get(Option<u64>),
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Timed {
    step: Step,
    called: u64,
    /// None is a call without an answer.
    returned: Option<u64>,
}

impl Timed {
    /// The value afterwards; none if the step is impossible here.
    fn apply(&self, value: Option<u64>) -> Option<Option<u64>> {
        let answered = self.returned.is_some();
        match self.step {
            Step::Put(new) => Some(Some(new)),
            Step::Swap { seen, value: new, found: None } if value == seen => Some(Some(new)),
            Step::Swap { found: None, .. } => (!answered).then_some(value),
            Step::Swap { seen, found: Some(found), .. } => (value == found && value != seen).then_some(value),
            Step::Delete { existed } => existed.is_none_or(|it| it == value.is_some()).then_some(None),
            Step::Get(found) => (value == found).then_some(value),
        }
    }
}

/// The part of a record that concerns `key`.
pub(crate) fn history(calls: &[Call], key: usize) -> Vec<Timed> {
    let timed = |call: &Call| {
        let answer = call.answer.as_ref().map(|(_, answer)| answer);
        let step = match &call.op {
            Op::Put { key: of, value } if *of == key => Step::Put(*value),
            Op::PutBoth { keys, value } if keys.contains(&key) => Step::Put(*value),
            Op::Swap { key: of, seen, value } if *of == key => Step::Swap {
                seen: seen.map(|kv| kv.value),
                value: *value,
                found: match answer {
                    Some(Answer::Found { kv, .. }) => Some(kv.map(|kv| kv.value)),
                    _ => None,
                },
            },
            Op::Delete { key: of } if *of == key => {
                Step::Delete { existed: answer.map(|answer| matches!(answer, Answer::Wrote(_))) }
            }
            Op::Get { key: of } if *of == key => match answer {
                Some(Answer::Found { kv, .. }) => Step::Get(kv.map(|kv| kv.value)),
                _ => return None, // a read that was not answered says nothing
            },
            Op::GetAll => match answer {
                Some(Answer::All { state, .. }) => Step::Get(state[key].map(|kv| kv.value)),
                _ => return None,
            },
            _ => return None,
        };
        Some(Timed { step, called: call.called, returned: call.answer.as_ref().map(|(at, _)| *at) })
    };
    calls.iter().filter_map(timed).collect()
}

/// What has been placed, and what the key holds then.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Configuration {
    /// All answered calls before this one are placed.
    first: usize,
    /// Placed answered calls after it, in order.
    more: Vec<usize>,
    /// Placed calls without an answer, in order.
    unanswered: Vec<usize>,
    value: Option<u64>,
}

struct Search {
    /// In the order of their calls.
    answered: Vec<Timed>,
    unanswered: Vec<Timed>,
}

/// Whether there is an order; the error is the number of configurations after which it is still not known.
pub(crate) fn linearizable(history: &[Timed]) -> Result<bool, usize> {
    let (mut answered, mut unanswered): (Vec<Timed>, Vec<Timed>) =
        history.iter().partition(|timed| timed.returned.is_some());
    answered.sort_by_key(|timed| timed.called);
    unanswered.sort_by_key(|timed| timed.called);
    Search { answered, unanswered }.run()
}

impl Search {
    fn run(&self) -> Result<bool, usize> {
        let start = Configuration { first: 0, more: Vec::new(), unanswered: Vec::new(), value: None };
        let mut known = HashSet::from([start.clone()]);
        let mut path = vec![(self.next(&start), start)];
        while let Some((next, configuration)) = path.last_mut() {
            if configuration.first == self.answered.len() {
                return Ok(true);
            }
            match next.pop() {
                None => drop(path.pop()),
                Some(next) => {
                    if known.len() > MOST {
                        return Err(known.len());
                    }
                    if known.insert(next.clone()) {
                        path.push((self.next(&next), next));
                    }
                }
            }
        }
        Ok(false)
    }

    /// Where one call more leads; the likeliest last.
    fn next(&self, from: &Configuration) -> Vec<Configuration> {
        // Whoever is placed next was called before the first answer among those that are left.
        let mut first_answer = u64::MAX;
        let mut open = Vec::new();
        for (at, timed) in self.answered.iter().enumerate().skip(from.first) {
            if timed.called > first_answer {
                break;
            }
            if from.more.binary_search(&at).is_err() {
                first_answer = first_answer.min(timed.returned.unwrap_or(u64::MAX));
                open.push(at);
            }
        }
        open.retain(|at| self.answered[*at].called <= first_answer);
        // A read that fits changes nothing: to place it now can never be wrong.
        let read = open
            .iter()
            .find(|at| matches!(self.answered[**at].step, Step::Get(found) if found == from.value));
        if let Some(at) = read {
            return vec![self.place(from, *at, from.value)];
        }
        let unanswered = self.unanswered.iter().enumerate().rev().filter_map(|(at, timed)| {
            let place = from.unanswered.binary_search(&at).err()?;
            if timed.called > first_answer {
                return None;
            }
            let mut next = Configuration { value: timed.apply(from.value)?, ..from.clone() };
            next.unanswered.insert(place, at);
            Some(next)
        });
        let answered = open.iter().rev().filter_map(|at| {
            let value = self.answered[*at].apply(from.value)?;
            Some(self.place(from, *at, value))
        });
        unanswered.chain(answered).collect()
    }

    fn place(&self, from: &Configuration, at: usize, value: Option<u64>) -> Configuration {
        let mut next = Configuration { value, ..from.clone() };
        if at == next.first {
            next.first += 1;
            while next.more.first() == Some(&next.first) {
                next.more.remove(0);
                next.first += 1;
            }
        } else if let Err(place) = next.more.binary_search(&at) {
            next.more.insert(place, at);
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::{KEYS, sample::sample};
    use super::*;

    fn timed(step: Step, called: u64, returned: Option<u64>) -> Timed {
        Timed { step, called, returned }
    }

    #[test]
    fn small_histories() {
        use Step::{Delete, Get, Put};
        let right = [
            timed(Put(1), 0, Some(10)),
            timed(Put(2), 1, Some(9)),
            timed(Get(Some(2)), 2, Some(3)),
            timed(Get(Some(1)), 4, Some(5)),
            timed(Delete { existed: Some(true) }, 11, Some(12)),
            timed(Delete { existed: Some(false) }, 13, Some(14)),
        ];
        assert_eq!(linearizable(&right), Ok(true));
        let twisted = [timed(Put(1), 0, Some(1)), timed(Put(2), 2, Some(3)), timed(Get(Some(1)), 4, Some(5))];
        assert_eq!(linearizable(&twisted), Ok(false));
        // Seen, then not seen again: an unanswered put does not come and go.
        let flicker = [
            timed(Put(1), 0, Some(1)),
            timed(Put(2), 2, None),
            timed(Get(Some(2)), 3, Some(4)),
            timed(Get(Some(1)), 5, Some(6)),
        ];
        assert_eq!(linearizable(&flicker), Ok(false));
        assert_eq!(linearizable(&flicker[..3]), Ok(true));
        assert_eq!(linearizable(&[flicker[0], flicker[1], flicker[3]]), Ok(true), "it may not have happened");
        // Two who swapped the same value cannot both have.
        let swap =
            |value, called| timed(Step::Swap { seen: None, value, found: None }, called, Some(called + 5));
        assert_eq!(linearizable(&[swap(1, 0), swap(2, 1)]), Ok(false));
    }

    #[test]
    fn what_is_right_passes() {
        for seed in 0..10 {
            let calls = sample(seed, 3000).calls;
            for key in 0..KEYS {
                assert_eq!(linearizable(&history(&calls, key)), Ok(true), "seed {seed} key {key}");
            }
        }
    }

    /// Changes one call of a right history and expects a verdict against one of the keys.
    fn found(fault: impl Fn(&mut Vec<Call>)) {
        let mut calls = sample(3, 3000).calls;
        fault(&mut calls);
        let verdicts: Vec<_> = (0..KEYS).map(|key| linearizable(&history(&calls, key))).collect();
        assert!(verdicts.contains(&Ok(false)), "{verdicts:?}");
    }

    #[test]
    fn a_stale_read_is_found() {
        found(|calls| {
            let reads: Vec<usize> = (1000..calls.len())
                .filter(|at| matches!(calls[*at], Call { op: Op::GetAll, answer: Some(_), .. }))
                .collect();
            let old = calls[reads[0]].answer.as_ref().unwrap().1.clone();
            calls[reads[20]].answer.as_mut().unwrap().1 = old;
        });
    }

    #[test]
    fn a_lost_write_is_found() {
        // A put was answered, and from some moment on everybody sees the key as if it had not been.
        found(|calls| {
            let swapped = |call: &Call| {
                let Op::Swap { seen: Some(_), .. } = call.op else { return false };
                matches!(call.answer, Some((_, Answer::Wrote(_))))
            };
            let at = (1000..calls.len()).find(|at| swapped(&calls[*at])).unwrap();
            let mut again = calls[at].clone();
            let Op::Swap { value, .. } = &mut again.op else { panic!("it was one") };
            *value = u64::MAX;
            // Somebody else's swap of the same old value succeeds later.
            again.called += 10_000;
            again.answer.as_mut().unwrap().0 += 10_000;
            calls.push(again);
        });
    }
}
