//! What a machine writes about itself, under its lease: presence, and the states of its units.
//!
//! Invariant: a new lease gets everything again; while a write is under way, changes gather for the next one.

use super::Purpose;
use crate::message::{Answer, Context, Failure, Guard, Request, Timer, Write};
use model::{LeaseId, MachineId, MachineRecord, Revision, UnitName, UnitState, keys};
use std::{collections::BTreeMap, time::Duration};

/// Between attempts, as in `muster`.
const PAUSE: Duration = Duration::from_millis(250);

/// The machine's record.
#[derive(Debug)]
pub struct Presence {
    id: MachineId,
    /// What it says.
    pub record: MachineRecord,
    /// Under which lease the machine is in the cluster.
    pub admitted: Option<LeaseId>,
    written: Option<(LeaseId, MachineRecord)>,
    busy: bool,
}

impl Presence {
    pub fn new(id: MachineId, record: MachineRecord) -> Self {
        Self { id, record, admitted: None, written: None, busy: false }
    }

    /// Whether the hub knows that the machine leaves.
    pub fn has_told_of_leaving(&self) -> bool {
        self.written.as_ref().is_some_and(|(_, record)| record.leaving)
    }

    pub fn act(&mut self, lease: Option<LeaseId>, ctx: &mut Context<'_>) {
        let Some(lease) = lease else {
            self.admitted = None;
            return;
        };
        let told =
            self.written.as_ref().is_some_and(|(under, record)| (*under, record) == (lease, &self.record));
        if !told && !self.busy {
            self.busy = true;
            ctx.call(Purpose::PresenceRead(lease), Request::Get(vec![keys::machine(&self.id)]));
        }
    }

    /// What was there is this machine's own, of an earlier session: its place is taken.
    pub fn read(&mut self, lease: LeaseId, answer: Result<Answer, Failure>, ctx: &mut Context<'_>) {
        let Ok(Answer::Listing { items, .. }) = answer else { return ctx.after(PAUSE, Timer::Presence) };
        let key = keys::machine(&self.id);
        let (guard, old) = match items.first() {
            None => (Guard::Absent(key.clone()), None),
            Some(kv) => {
                let old = (kv.lease.0 != lease.0).then_some(LeaseId(kv.lease.0));
                (Guard::Unchanged(key.clone(), Revision(kv.mod_revision.0)), old)
            }
        };
        let value = serde_json::to_vec(&self.record).expect("records always render");
        let write = Write::Put { key, value: value.into(), lease: Some(lease) };
        let record = Box::new(self.record.clone());
        let purpose = Purpose::PresenceWritten { lease, record, old };
        ctx.call(purpose, Request::Commit { guards: vec![guard], writes: vec![write] });
    }

    pub fn written(
        &mut self,
        lease: LeaseId,
        record: MachineRecord,
        old: Option<LeaseId>,
        answer: &Result<Answer, Failure>,
        ctx: &mut Context<'_>,
    ) {
        match answer {
            Ok(Answer::Committed { yes: true, .. }) => {
                self.busy = false;
                self.written = Some((lease, record));
                self.admitted = Some(lease);
                if let Some(old) = old {
                    ctx.call(Purpose::Nothing, Request::Revoke(old));
                }
            }
            // Somebody changed it meanwhile: again.
            Ok(_) => self.busy = false,
            Err(_) => ctx.after(PAUSE, Timer::Presence),
        }
    }

    pub fn woken(&mut self) {
        self.busy = false;
    }
}

/// What the hub should have of this machine.
pub type States = BTreeMap<UnitName, UnitState>;

/// States on their way to the hub.
#[derive(Debug)]
pub struct Publisher {
    id: MachineId,
    published: States,
    /// What the write under way makes of it.
    writing: States,
    under: Option<LeaseId>,
    busy: bool,
}

impl Publisher {
    pub fn new(id: MachineId) -> Self {
        Self { id, published: States::new(), writing: States::new(), under: None, busy: false }
    }

    pub fn act(&mut self, lease: Option<LeaseId>, wanted: &States, ctx: &mut Context<'_>) {
        let Some(lease) = lease.filter(|_| !self.busy) else { return };
        if self.under != Some(lease) {
            self.busy = true;
            ctx.call(Purpose::StatesListed(lease), Request::List(keys::states_of(&self.id)));
            return;
        }
        let puts = wanted.iter().filter(|(unit, state)| self.published.get(*unit) != Some(*state));
        let mut writes: Vec<_> = puts
            .map(|(unit, state)| {
                let value = serde_json::to_vec(state).expect("states always render");
                Write::Put { key: keys::state(&self.id, unit), value: value.into(), lease: Some(lease) }
            })
            .collect();
        let gone = self.published.keys().filter(|unit| !wanted.contains_key(*unit));
        writes.extend(gone.map(|unit| Write::Delete(keys::state(&self.id, unit))));
        if !writes.is_empty() {
            (self.busy, self.writing) = (true, wanted.clone());
            ctx.call(Purpose::StatesWritten, Request::Commit { guards: vec![], writes });
        }
    }

    /// Whether the hub has all of these, under this lease.
    pub fn has_told(&self, lease: Option<LeaseId>, wanted: &States) -> bool {
        lease.is_some() && self.under == lease && !self.busy && self.published == *wanted
    }

    pub fn listed(&mut self, lease: LeaseId, answer: Result<Answer, Failure>, ctx: &mut Context<'_>) {
        let Ok(Answer::Listing { items, .. }) = answer else {
            ctx.after(PAUSE, Timer::States);
            return;
        };
        let read = |kv: &mvcc::KeyValue| {
            let key = std::str::from_utf8(&kv.key).ok()?;
            let (_, unit) = keys::machine_and_unit(keys::STATES, key)?;
            let mut state: UnitState = serde_json::from_slice(&kv.value).ok()?;
            if kv.lease.0 != lease.0 {
                state.v = 0;
            }
            Some((unit, state))
        };
        self.published = items.iter().filter_map(read).collect();
        (self.under, self.busy) = (Some(lease), false);
    }

    pub fn written(&mut self, answer: &Result<Answer, Failure>, ctx: &mut Context<'_>) {
        match answer {
            Ok(_) => {
                self.published = std::mem::take(&mut self.writing);
                self.busy = false;
            }
            Err(_) => {
                // How far it came is not known: compare with the hub again.
                self.under = None;
                ctx.after(PAUSE, Timer::States);
            }
        }
    }

    pub fn woken(&mut self) {
        self.busy = false;
    }
}
