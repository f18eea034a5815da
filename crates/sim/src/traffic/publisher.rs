//! What the registrar wants, on its way to the hub: `muster`'s publisher without sockets. What is written is decided by
//! `core::registrar::publish`.
//!
//! Invariant: one call is under way at most.

use crate::message::{Answer, Failure, Guard, Request, Write};
use model::{LeaseId, Revision, keys};
use muster_core::registrar::{
    Id, Record,
    publish::{self, Known, Kv, Plan},
};
use mvcc::KeyValue;
use std::{collections::BTreeMap, time::Duration};

/// Everything is compared with the hub this often.
pub(super) const RECONCILE: Duration = Duration::from_secs(30);

/// What is under way.
#[derive(Debug)]
enum Busy {
    List,
    Marks(Vec<Id>),
    Commit(Plan),
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum Next {
    Call(Request),
    /// The hub has a version as of a revision.
    Written(u64, Revision),
    /// Try again in a moment.
    Later,
    Nothing,
}

#[derive(Debug, Default)]
pub(super) struct Publisher {
    known: Option<(LeaseId, Known, Duration)>,
    revision: Revision,
    goal: (u64, BTreeMap<Id, Record>),
    busy: Option<Busy>,
    /// The last version that was said to be written, and as of when.
    said: (u64, Revision),
    /// A planted mistake: keys under a former lease are believed to be there still.
    forgetful: bool,
}

pub(super) fn entry(kv: &KeyValue) -> Kv<'_> {
    let lease = (kv.lease.0 != 0).then_some(LeaseId(kv.lease.0));
    let key = str::from_utf8(&kv.key).unwrap_or_default();
    Kv { key, value: &kv.value, lease, written: Revision(kv.mod_revision.0) }
}

impl Publisher {
    pub(super) fn new(forgetful: bool) -> Self {
        Self { forgetful, ..Self::default() }
    }

    /// Whether it would begin something if it were asked to go on.
    pub(super) fn is_idle(&self) -> bool {
        self.busy.is_none()
    }

    /// Goes on under `lease` towards `goal`.
    pub(super) fn go_on(
        &mut self,
        now: Duration,
        lease: LeaseId,
        goal: impl FnOnce() -> (u64, BTreeMap<Id, Record>),
    ) -> Next {
        if self.busy.is_some() {
            return Next::Nothing;
        }
        self.goal = goal();
        let fresh = |(under, _, at): &(LeaseId, Known, Duration)| {
            self.forgetful || (*under == lease && now < *at + RECONCILE)
        };
        if !self.known.as_ref().is_some_and(fresh) {
            self.busy = Some(Busy::List);
            return Next::Call(Request::List(keys::SERVICES.to_owned()));
        }
        self.differences(lease)
    }

    fn differences(&mut self, lease: LeaseId) -> Next {
        let Some((_, known, _)) = &self.known else { return Next::Later };
        let ids = known.differing(&self.goal.1);
        if ids.is_empty() {
            let written = (self.goal.0, self.revision);
            if std::mem::replace(&mut self.said, written) == written {
                return Next::Nothing;
            }
            return Next::Written(written.0, written.1);
        }
        let marks = known.marks_of(&ids);
        if marks.is_empty() {
            return self.commit(lease, &ids, &[]);
        }
        self.busy = Some(Busy::Marks(ids));
        Next::Call(Request::Get(marks))
    }

    fn commit(&mut self, lease: LeaseId, ids: &[Id], marks: &[KeyValue]) -> Next {
        let Some((_, known, _)) = &self.known else { return Next::Later };
        let plan = known.plan(ids, &self.goal.1, marks.iter().map(entry));
        let guards = plan.guards.iter().cloned().map(|guard| match guard {
            publish::Guard::Absent(key) => Guard::Absent(key),
            publish::Guard::Unchanged(key, at) => Guard::Unchanged(key, at),
        });
        let writes = plan.writes.iter().cloned().map(|write| match write {
            publish::Write::Put(key, value) => Write::Put { key, value: value.into(), lease: Some(lease) },
            publish::Write::Delete(key) => Write::Delete(key),
        });
        let request = Request::Commit { guards: guards.collect(), writes: writes.collect() };
        self.busy = Some(Busy::Commit(plan));
        Next::Call(request)
    }

    /// An answer has come; `lease` is the machine's by now.
    pub(super) fn answered(
        &mut self,
        now: Duration,
        lease: Option<LeaseId>,
        answer: Result<Answer, Failure>,
    ) -> Next {
        let (busy, Some(lease)) = (self.busy.take(), lease) else {
            self.known = None;
            return Next::Later;
        };
        match (busy, answer) {
            (Some(Busy::List), Ok(Answer::Listing { revision, items })) => {
                self.known = Some((lease, Known::of(items.iter().map(entry), lease), now));
                self.revision = revision;
                self.differences(lease)
            }
            (Some(Busy::Marks(ids)), Ok(Answer::Listing { items, .. })) => self.commit(lease, &ids, &items),
            (Some(Busy::Commit(plan)), Ok(Answer::Committed { yes: true, revision })) => {
                if let Some((_, known, _)) = &mut self.known {
                    known.carried_out(plan, revision);
                }
                self.revision = revision;
                self.differences(lease)
            }
            _ => {
                if !self.forgetful {
                    self.known = None;
                }
                Next::Later
            }
        }
    }
}
