//! When the hub compacts by itself.
//!
//! etcd never does unless told to; a hub that someone installs and forgets must. Pure. Invariants: the history kept is
//! long enough for a watch or a paged list to be taken up again, and bounded; no single step is long enough to notice.

use mvcc::Revision;
use std::time::Duration;

/// Always kept: what a client that lost its connection for a moment may have missed on a busy hub.
const KEEP: i64 = 10_000;

/// How often the history is looked at. What is compacted is then at least this old, so a client that was away for less
/// can go on where it was; Kubernetes compacts its etcd at the same pace.
const INTERVAL: Duration = Duration::from_secs(5 * 60);

/// More than this is not waited for: at some 500 bytes each it is about 100 MB of memory.
const MOST: i64 = 200_000;

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
}

impl Compaction {
    pub(crate) fn new(now: Duration, revision: Revision) -> Self {
        Self { next_look: now + INTERVAL, last_seen: revision, goal: NOTHING }
    }

    /// When to ask again, if nothing happens before: at once while there are steps to do.
    pub(crate) fn next(&self, compacted: Revision) -> Duration {
        if self.goal > compacted { Duration::ZERO } else { self.next_look }
    }

    /// What to compact now, if anything.
    pub(crate) fn due(&mut self, now: Duration, revision: Revision, compacted: Revision) -> Option<Revision> {
        if now >= self.next_look {
            let seen = std::mem::replace(&mut self.last_seen, revision);
            self.next_look = now + INTERVAL;
            self.raise_goal(seen.min(Revision(revision.0 - KEEP)));
        }
        // A step's worth more than allowed before anything happens, so that a flood is not one commit after another.
        if revision.0 - compacted.0 > MOST + STEP {
            self.raise_goal(Revision(revision.0 - MOST));
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

    /// Takes all steps that are due; tells how many there were.
    fn compact(compaction: &mut Compaction, seconds: u64, revision: i64, compacted: &mut Revision) -> usize {
        let now = Duration::from_secs(seconds);
        let mut steps = 0;
        while let Some(step) = compaction.due(now, Revision(revision), *compacted) {
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
        let mut compaction = Compaction::new(Duration::ZERO, Revision(1));
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
        let mut compaction = Compaction::new(Duration::ZERO, Revision(1));
        assert_eq!(compact(&mut compaction, 1, MOST, &mut compacted), 0);
        assert_eq!(compact(&mut compaction, 1, MOST + STEP + 1, &mut compacted), 1);
        assert_eq!(compacted, Revision(STEP + 1));
        assert_eq!(compact(&mut compaction, 1, MOST + STEP + 2, &mut compacted), 0);
    }

    #[test]
    fn what_someone_else_compacted_is_done() {
        let mut compaction = Compaction::new(Duration::ZERO, Revision(1));
        assert_eq!(compaction.due(Duration::from_secs(300), Revision(50_000), Revision(45_000)), None);
        assert_eq!(compaction.due(Duration::from_secs(600), Revision(50_000), Revision(45_000)), None);
    }
}
