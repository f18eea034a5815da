//! When the hub compacts by itself.
//!
//! etcd never does unless told to; a hub that someone installs and forgets must. Pure. Invariants: the history kept is
//! long enough for a watch or a paged list to be taken up again, and bounded; no single step is long enough to notice.

use mvcc::{Revision, Store};
use std::time::Duration;

/// Always kept: what a client that lost its connection for a moment may have missed on a busy hub.
const KEEP: i64 = 10_000;

/// How often the history is looked at. What is compacted is then at least this old, so a client that was away for less
/// can go on where it was; Kubernetes compacts its etcd at the same pace.
const INTERVAL: Duration = Duration::from_secs(5 * 60);

/// More than this is not waited for: at some 500 bytes each it is about 100 MB of memory.
const MOST: i64 = 200_000;

/// Nor is more than this waited for, in bytes: revisions may be large. It goes before what is young or few.
const MOST_BYTES: u64 = 256 << 20;

/// Nor more than this part of the quota, so that the history never keeps anybody from writing.
const PART_OF_QUOTA: u64 = 4;

/// Revisions per step: some milliseconds. 100,000 at once took a third of a second, in which nobody was answered.
const STEP: i64 = 2_000;

/// Below what any store has compacted: no step to do.
const NOTHING: Revision = Revision(-1);

#[derive(Debug)]
pub(crate) struct Compaction {
    next_look: Duration,
    /// The revision at the last look.
    last_seen: Revision,
    /// How far to compact, in steps.
    goal: Revision,
    /// Bytes of history not to be exceeded.
    most_bytes: u64,
}

impl Compaction {
    pub(crate) fn new(now: Duration, revision: Revision, quota: u64) -> Self {
        let most_bytes = MOST_BYTES.min(quota / PART_OF_QUOTA);
        Self { next_look: now + INTERVAL, last_seen: revision, goal: NOTHING, most_bytes }
    }

    /// When to ask again, if nothing happens before: at once while there are steps to do.
    pub(crate) fn next(&self, compacted: Revision) -> Duration {
        if self.goal > compacted { Duration::ZERO } else { self.next_look }
    }

    /// Whether there is so much history that not even a snapshot that runs is a reason to wait.
    pub(crate) fn is_urgent(&self, store: &Store) -> bool {
        store.history_size() > 2 * self.most_bytes
    }

    /// What to compact now, if anything. `revision` is the newest that is durable.
    pub(crate) fn due(&mut self, now: Duration, revision: Revision, store: &Store) -> Option<Revision> {
        self.step(now, revision, store.compacted(), store.history_size())
    }

    fn step(
        &mut self,
        now: Duration,
        revision: Revision,
        compacted: Revision,
        bytes: u64,
    ) -> Option<Revision> {
        if now >= self.next_look {
            let seen = std::mem::replace(&mut self.last_seen, revision);
            self.next_look = now + INTERVAL;
            self.raise_goal(seen.min(Revision(revision.0 - KEEP)));
        }
        // A step's worth more than allowed before anything happens, so that a flood is not one commit after another.
        if revision.0 - compacted.0 > MOST + STEP {
            self.raise_goal(Revision(revision.0 - MOST));
        }
        if bytes > self.most_bytes {
            // An eighth below, taking revisions for equally large; if they are not, the next turn goes on.
            let share = 1.0 - (self.most_bytes - self.most_bytes / 8) as f64 / bytes as f64;
            let oldest = compacted.0.max(1);
            let revisions = ((revision.0 - oldest) as f64 * share).ceil() as i64;
            self.raise_goal(Revision(oldest + revisions).min(revision));
        }
        let step = self.goal.min(Revision(compacted.0.max(1) + STEP));
        (step > compacted).then_some(step)
    }

    /// Revision 1 is empty: to compact it would be a step for nothing.
    fn raise_goal(&mut self, goal: Revision) {
        if goal.0 > 1 {
            self.goal = self.goal.max(goal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUOTA: u64 = 2 << 30;

    /// Takes all steps that are due; tells how many there were.
    fn compact(compaction: &mut Compaction, seconds: u64, revision: i64, compacted: &mut Revision) -> usize {
        let now = Duration::from_secs(seconds);
        let mut steps = 0;
        while let Some(step) = compaction.step(now, Revision(revision), *compacted, 0) {
            assert!(step > *compacted && step.0 - compacted.0 <= STEP + 2);
            *compacted = step;
            steps += 1;
        }
        assert!(compaction.next(*compacted) > now);
        steps
    }

    #[test]
    fn it_keeps_what_is_young_or_few() {
        let mut compacted = Revision(-1);
        let mut compaction = Compaction::new(Duration::ZERO, Revision(1), QUOTA);
        assert_eq!(compact(&mut compaction, 299, 50_000, &mut compacted), 0);
        // What came since the start is younger than one interval.
        assert_eq!(compact(&mut compaction, 300, 50_000, &mut compacted), 0);
        assert_eq!(compact(&mut compaction, 600, 55_000, &mut compacted), 23);
        assert_eq!(compacted, Revision(45_000));
        assert_eq!(compact(&mut compaction, 900, 90_000, &mut compacted), 5);
        assert_eq!(compacted, Revision(55_000));
        // Nothing happens any more: the last ten thousand stay.
        compact(&mut compaction, 1200, 90_000, &mut compacted);
        compact(&mut compaction, 1500, 90_000, &mut compacted);
        assert_eq!(compacted, Revision(80_000));
    }

    #[test]
    fn a_flood_does_not_wait() {
        let mut compacted = Revision(-1);
        let mut compaction = Compaction::new(Duration::ZERO, Revision(1), QUOTA);
        assert_eq!(compact(&mut compaction, 1, MOST, &mut compacted), 0);
        assert_eq!(compact(&mut compaction, 1, MOST + STEP + 1, &mut compacted), 1);
        assert_eq!(compacted, Revision(STEP + 1));
        assert_eq!(compact(&mut compaction, 1, MOST + STEP + 2, &mut compacted), 0);
    }

    #[test]
    fn what_someone_else_compacted_is_done() {
        let mut compaction = Compaction::new(Duration::ZERO, Revision(1), QUOTA);
        for seconds in [300, 600] {
            let now = Duration::from_secs(seconds);
            assert_eq!(compaction.step(now, Revision(50_000), Revision(45_000), 0), None);
        }
    }

    #[test]
    fn large_revisions_do_not_wait() {
        // A thousand of a mebibyte each, of which a quarter of a gibibyte may stay.
        let mut compaction = Compaction::new(Duration::ZERO, Revision(1), QUOTA);
        let mut compacted = Revision(-1);
        let bytes = |compacted: Revision| (1001 - compacted.0.max(1).unsigned_abs()) << 20;
        while let Some(next) = compaction.step(Duration::ZERO, Revision(1001), compacted, bytes(compacted)) {
            assert!(next > compacted);
            compacted = next;
        }
        assert!(bytes(compacted) <= MOST_BYTES && bytes(compacted) > MOST_BYTES / 2, "{compacted}");
        // Of a small quota a small part.
        let mut small = Compaction::new(Duration::ZERO, Revision(1), 4096);
        assert_eq!(small.step(Duration::ZERO, Revision(9), NOTHING, 1024), None);
        assert_eq!(small.step(Duration::ZERO, Revision(9), NOTHING, 1 << 30), Some(Revision(9)));
    }
}
