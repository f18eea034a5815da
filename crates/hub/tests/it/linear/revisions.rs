//! The checker that replays: every answer carries the store's revision, so what it must say is known exactly.
//!
//! `history` is what the hub tells in the end. It must be made of the answered writes, each at its revision and whole,
//! and of calls without an answer; every read and every watch event must be what the history has at its revision; and
//! time must agree: what was answered before a call began has a smaller revision than the call's write, and none
//! larger than the call's read. All of it is one pass over each.

use super::record::{Answer, Call, Change, Kv, Op, State, Watched};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;

/// How much was checked.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    writes: usize,
    reads: usize,
    events: usize,
    pub(crate) unknown_that_happened: usize,
    pub(crate) unknown_that_did_not: usize,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { writes, reads, events, unknown_that_happened, unknown_that_did_not } = self;
        write!(f, "{writes} writes, {reads} reads and {events} watched changes are right; ")?;
        write!(
            f,
            "of the calls without an answer {unknown_that_happened} happened, {unknown_that_did_not} did not"
        )
    }
}

type History = BTreeMap<i64, Vec<Change>>;

/// Judges a record; the error says what is wrong with it.
pub(crate) fn check(calls: &[Call], history: &History, watched: &[Watched]) -> Result<Summary, String> {
    let states = replay(history)?;
    let mut summary = Summary::default();
    // Which revision each call wrote, if it did.
    let mut wrote: Vec<Option<i64>> = vec![None; calls.len()];
    let mut writer: HashMap<i64, usize> = HashMap::new();
    for (at, call) in calls.iter().enumerate() {
        match &call.answer {
            Some((_, Answer::Wrote(revision))) => {
                if let Some(other) = writer.insert(*revision, at) {
                    return Err(format!("revision {revision} is claimed by {:?} and {call:?}", calls[other]));
                }
                if !is_work_of(&call.op, *revision, &states, history) {
                    let found = history.get(revision);
                    return Err(format!(
                        "acknowledged and lost, or half there: {call:?}; history has {found:?}"
                    ));
                }
                wrote[at] = Some(*revision);
                summary.writes += 1;
            }
            Some((_, answer)) => {
                read(call, answer, &states)?;
                summary.reads += 1;
            }
            None => {}
        }
    }
    attribute(calls, history, &states, &mut wrote, &writer)?;
    let unknown = || calls.iter().zip(&wrote).filter(|(call, _)| call.answer.is_none());
    summary.unknown_that_happened = unknown().filter(|(_, wrote)| wrote.is_some()).count();
    summary.unknown_that_did_not =
        unknown().filter(|(call, wrote)| wrote.is_none() && call.op.writes()).count();
    for watched in watched {
        summary.events += told(watched, history)?;
    }
    time(calls, &wrote, watched)?;
    Ok(summary)
}

impl Op {
    fn writes(&self) -> bool {
        !matches!(self, Self::Get { .. } | Self::GetAll)
    }
}

/// All keys at each revision; `states[r]` is revision `r`.
fn replay(history: &History) -> Result<Vec<State>, String> {
    let mut states = vec![State::default(); 2];
    for (revision, changes) in history {
        let before = states[states.len() - 1];
        if *revision != states.len() as i64 {
            return Err(format!("the history lacks revision {}", states.len()));
        }
        let mut after = before;
        for change in changes {
            let mut expected = before;
            match change.now {
                Some(kv) => Op::Put { key: change.key, value: kv.value }.apply(&mut expected, *revision),
                None => Op::Delete { key: change.key }.apply(&mut expected, *revision),
            }
            if change.now != expected[change.key] || change.before != before[change.key] {
                return Err(format!("revision {revision}: {change:?} after {:?}", before[change.key]));
            }
            after[change.key] = change.now;
        }
        states.push(after);
    }
    Ok(states)
}

/// What a comparison of revisions sees. Whoever put without looking does not know the rest.
fn is_same(kv: Option<Kv>, seen: Option<Kv>) -> bool {
    kv.map(|kv| kv.modified) == seen.map(|kv| kv.modified)
}

/// Whether a revision is what the call would have done, all of it and nothing else.
fn is_work_of(op: &Op, revision: i64, states: &[State], history: &History) -> bool {
    let Some(changes) = history.get(&revision) else { return false };
    let before = states[revision as usize - 1];
    if let Op::Swap { key, seen, .. } = op
        && !is_same(before[*key], *seen)
    {
        return false;
    }
    let mut after = before;
    op.apply(&mut after, revision);
    let keys = if let Op::PutBoth { .. } = op { 2 } else { 1 };
    after == states[revision as usize] && after != before && changes.len() == keys
}

fn read(call: &Call, answer: &Answer, states: &[State]) -> Result<(), String> {
    let Some(state) = states.get(answer.revision() as usize) else {
        return Err(format!("a revision that never was: {call:?}"));
    };
    let right = match (&call.op, answer) {
        (Op::GetAll, Answer::All { state: found, .. }) => found == state,
        (Op::Get { key }, Answer::Found { kv, .. }) => state[*key] == *kv,
        (Op::Swap { key, seen, .. }, Answer::Found { kv, .. }) => state[*key] == *kv && !is_same(*kv, *seen),
        (Op::Delete { key }, Answer::Found { kv: None, .. }) => state[*key].is_none(),
        _ => false,
    };
    if right { Ok(()) } else { Err(format!("a wrong answer: {call:?}; the history has {state:?}")) }
}

/// Finds the call of each revision that no answer claims, among those without one.
fn attribute(
    calls: &[Call],
    history: &History,
    states: &[State],
    wrote: &mut [Option<i64>],
    writer: &HashMap<i64, usize>,
) -> Result<(), String> {
    let mut by_value: HashMap<u64, usize> = HashMap::new();
    let mut deletes: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (at, call) in calls.iter().enumerate().filter(|(_, call)| call.answer.is_none()) {
        match &call.op {
            Op::Put { value, .. } | Op::PutBoth { value, .. } | Op::Swap { value, .. } => {
                by_value.insert(*value, at);
            }
            Op::Delete { key } => deletes.entry(*key).or_default().push(at),
            Op::Get { .. } | Op::GetAll => {}
        }
    }
    // Deletions of a key are alike. The one called first has waited longest, so it fits the smallest revision.
    let mut deletes: BTreeMap<usize, VecDeque<usize>> = deletes
        .into_iter()
        .map(|(key, mut of_key)| {
            of_key.sort_by_key(|at| calls[*at].called);
            (key, of_key.into())
        })
        .collect();
    for (revision, changes) in history.iter().filter(|(revision, _)| !writer.contains_key(revision)) {
        let Some(change) = changes.first() else { continue };
        let at = match change.now {
            Some(kv) => by_value.remove(&kv.value),
            None => deletes.get_mut(&change.key).and_then(VecDeque::pop_front),
        };
        match at {
            Some(at) if is_work_of(&calls[at].op, *revision, states, history) => wrote[at] = Some(*revision),
            _ => {
                return Err(format!(
                    "revision {revision} is nobody's work, or half of somebody's: {changes:?}"
                ));
            }
        }
    }
    Ok(())
}

/// A watcher is told every change of what it watches once, in order, a revision whole; how many.
fn told(watched: &Watched, history: &History) -> Result<usize, String> {
    let concerns = |change: &&Change| watched.key.is_none_or(|key| key == change.key);
    let mut expected = history
        .iter()
        .flat_map(|(revision, changes)| changes.iter().filter(concerns).map(|change| (*revision, change)));
    let mut count = 0;
    for told in &watched.told {
        for (revision, change) in &told.changes {
            if expected.next() != Some((*revision, change)) {
                return Err(format!("a watcher of {:?} was told {change:?} at {revision} next", watched.key));
            }
            if *revision > told.revision {
                return Err(format!("told of revision {revision} under the header of {}", told.revision));
            }
            count += 1;
        }
        let last = told.changes.last().map(|(revision, _)| *revision);
        let next = expected.clone().next().map(|(revision, _)| revision);
        if last.is_some() && last == next {
            return Err(format!("a watcher was told half of revision {last:?}"));
        }
    }
    Ok(count)
}

/// What is known when a call begins, it must not undo.
fn time(calls: &[Call], wrote: &[Option<i64>], watched: &[Watched]) -> Result<(), String> {
    let mut known: Vec<(u64, i64)> = Vec::new();
    known.extend(
        calls.iter().filter_map(|call| call.answer.as_ref()).map(|(at, answer)| (*at, answer.revision())),
    );
    known.extend(watched.iter().flat_map(|watched| &watched.told).map(|told| (told.at, told.revision)));
    known.sort_unstable();
    let mut begun: Vec<usize> = (0..calls.len()).collect();
    begun.sort_unstable_by_key(|at| calls[*at].called);
    let mut known = known.into_iter().peekable();
    let mut highest = 1;
    for at in begun {
        let call = &calls[at];
        while let Some((_, revision)) = known.next_if(|(answered, _)| *answered < call.called) {
            highest = highest.max(revision);
        }
        let stale = match (wrote[at], &call.answer) {
            (Some(revision), _) => revision <= highest,
            (None, Some((_, answer))) => answer.revision() < highest,
            (None, None) => false,
        };
        if stale {
            let wrote = wrote[at];
            return Err(format!(
                "revision {highest} was known before it was called: {call:?}, wrote {wrote:?}"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::record::sample::{Sample, sample};
    use super::*;

    fn judge(sample: &Sample) -> Result<Summary, String> {
        check(&sample.calls, &sample.history, std::slice::from_ref(&sample.watched))
    }

    /// A sample with a fault, which must be found with these words.
    fn found(words: &str, fault: impl Fn(&mut Sample)) {
        let mut faulty = sample(7, 400);
        judge(&faulty).unwrap();
        fault(&mut faulty);
        let verdict = judge(&faulty).expect_err(words);
        assert!(verdict.contains(words), "{verdict}");
    }

    fn position(sample: &Sample, wanted: impl Fn(&Call) -> bool) -> usize {
        sample.calls.iter().skip(200).position(wanted).map(|at| at + 200).unwrap()
    }

    #[test]
    fn what_is_right_passes() {
        for seed in 0..50 {
            let summary = judge(&sample(seed, 400)).unwrap();
            assert!(
                summary.writes > 50 && summary.reads > 50 && summary.unknown_that_happened > 0,
                "{summary}"
            );
        }
    }

    #[test]
    fn a_lost_write_is_found() {
        // As after a crash that undoes the last acknowledged writes: they are not in the history.
        found("acknowledged and lost", |sample| {
            let last = *sample.history.keys().next_back().unwrap();
            sample.history.retain(|revision, _| *revision < last - 3);
            sample.watched.told.clear();
        });
    }

    #[test]
    fn a_stale_read_is_found() {
        // Right at its revision, but that one is over: as from a replica that lags.
        found("was known before it was called", |sample| {
            let states = replay(&sample.history).unwrap();
            let at = position(sample, |call| call.op == Op::GetAll && call.answer.is_some());
            let (_, answer) = sample.calls[at].answer.as_mut().unwrap();
            let revision = answer.revision() - 12;
            *answer = Answer::All { revision, state: states[revision as usize] };
        });
        // An old value under a new revision.
        found("a wrong answer", |sample| {
            let states = replay(&sample.history).unwrap();
            let at = position(sample, |call| call.op == Op::GetAll && call.answer.is_some());
            let (_, answer) = sample.calls[at].answer.as_mut().unwrap();
            let revision = answer.revision();
            *answer = Answer::All { revision, state: states[revision as usize - 1] };
        });
    }

    #[test]
    fn half_a_transaction_is_found() {
        for answered in [true, false] {
            found("half", |sample| {
                let both = |call: &Call| matches!(call.op, Op::PutBoth { .. }) && call.answer.is_some();
                let at = position(sample, both);
                let revision = sample.calls[at].answer.as_ref().unwrap().1.revision();
                if !answered {
                    sample.calls[at].answer = None;
                }
                sample.watched.told.clear();
                // From there on the history is rebuilt without the second key.
                let later = sample.history.split_off(&revision);
                let mut state = replay(&sample.history).unwrap().pop().unwrap();
                for (revision, mut changes) in later {
                    changes.truncate(1);
                    for change in &mut changes {
                        change.before = state[change.key];
                        let op = match change.now {
                            Some(kv) => Op::Put { key: change.key, value: kv.value },
                            None => Op::Delete { key: change.key },
                        };
                        op.apply(&mut state, revision);
                        change.now = state[change.key];
                    }
                    sample.history.insert(revision, changes);
                }
                // Only this one is of interest: the others of that kind are half as well.
                sample
                    .calls
                    .retain(|call| call.answer.as_ref().is_none_or(|(_, a)| a.revision() <= revision));
            });
        }
    }

    #[test]
    fn a_write_of_nobody_is_found() {
        found("nobody's work", |sample| {
            let at = position(sample, |call| matches!(call.answer, Some((_, Answer::Wrote(_)))));
            sample.calls.remove(at);
        });
    }

    #[test]
    fn wrong_watches_are_found() {
        found("was told", |sample| drop(sample.watched.told.remove(20)));
        found("was told", |sample| {
            let twice = sample.watched.told[20].clone();
            sample.watched.told.insert(21, twice);
        });
        found("was told", |sample| sample.watched.told.swap(20, 21));
        found("under the header", |sample| sample.watched.told[20].revision -= 1);
        found("half of revision", |sample| {
            let whole = sample.watched.told.iter().position(|told| told.changes.len() == 2).unwrap();
            let mut half = sample.watched.told[whole].clone();
            half.changes.remove(0);
            sample.watched.told[whole].changes.pop();
            sample.watched.told.insert(whole + 1, half);
        });
    }
}
