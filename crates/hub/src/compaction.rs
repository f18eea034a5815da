//! When the hub compacts by itself.
//!
//! etcd never does unless told to; a hub that someone installs and forgets must. Pure. Invariant: the history kept is
//! long enough for a watch or a paged list to be taken up again, and bounded.

use mvcc::Revision;
use std::time::Duration;

/// Always kept: what a client that lost its connection for a moment may have missed on a busy hub.
const KEEP: i64 = 10_000;

/// How often the history is looked at. What is compacted is then at least this old, so a client that was away for less
/// can go on where it was; Kubernetes compacts its etcd at the same pace.
const INTERVAL: Duration = Duration::from_secs(5 * 60);

/// More than this is not waited for: at some 500 bytes each it is about 100 MB of memory.
const MOST: i64 = 200_000;

#[derive(Debug)]
pub(crate) struct Compaction {
    next: Duration,
    /// The revision at the last look.
    last_seen: Revision,
}

impl Compaction {
    pub(crate) fn new(now: Duration, revision: Revision) -> Self {
        Self { next: now + INTERVAL, last_seen: revision }
    }

    /// When to look again, if nothing happens before.
    pub(crate) fn next(&self) -> Duration {
        self.next
    }

    /// What to compact now, if anything.
    pub(crate) fn due(&mut self, now: Duration, revision: Revision, compacted: Revision) -> Option<Revision> {
        let target = if now >= self.next {
            let seen = std::mem::replace(&mut self.last_seen, revision);
            self.next = now + INTERVAL;
            seen.min(Revision(revision.0 - KEEP))
        } else if revision.0 - compacted.0 > MOST {
            Revision(revision.0 - MOST / 2)
        } else {
            return None;
        };
        (target > compacted && target.0 > 1).then_some(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_keeps_what_is_young_or_few() {
        let none = Revision(-1);
        let mut compaction = Compaction::new(Duration::ZERO, Revision(1));
        assert_eq!(compaction.due(Duration::from_secs(299), Revision(50_000), none), None);
        // What came since the start is younger than one interval.
        assert_eq!(compaction.due(Duration::from_secs(300), Revision(50_000), none), None);
        assert_eq!(compaction.due(Duration::from_secs(600), Revision(55_000), none), Some(Revision(45_000)));
        assert_eq!(
            compaction.due(Duration::from_secs(900), Revision(90_000), Revision(45_000)),
            Some(Revision(55_000))
        );
    }

    #[test]
    fn a_flood_does_not_wait() {
        let mut compaction = Compaction::new(Duration::ZERO, Revision(1));
        let due = compaction.due(Duration::from_secs(1), Revision(200_001), Revision(0));
        assert_eq!(due, Some(Revision(100_001)));
        assert_eq!(compaction.due(Duration::from_secs(1), Revision(200_002), Revision(100_001)), None);
    }
}
