//! Former texts of units: the writes that go with a new text, whoever gives it.
//!
//! Invariant: a text and the history that goes with it are written in one transaction.

use super::events;
use model::{HistoryRecord, UnitName, UnitRecord, keys};
use muster_core::rollout;
use registry::Write;

/// What to write beside the unit's record when `former` was replaced.
pub(super) fn keep(unit: &UnitName, former: &UnitRecord, by: &str) -> Vec<Write> {
    let entry = HistoryRecord::of(former, events::now(), by);
    let value = serde_json::to_vec(&entry).expect("records always render");
    let mut writes = vec![Write::put(keys::version(unit, former.version), value)];
    let outlived = rollout::outlived(former.version.saturating_add(1));
    writes.extend(outlived.map(|number| Write::Delete(keys::version(unit, number))));
    writes
}

/// The record as it was before its last text, and what to write beside it. The text is given, because it is more
/// certain than the history.
pub(super) fn undo(
    unit: &UnitName,
    record: &UnitRecord,
    text: String,
    hash: String,
) -> (UnitRecord, Vec<Write>) {
    let version = record.version.saturating_sub(1).max(1);
    let forgotten = Write::Delete(keys::version(unit, version));
    (UnitRecord { text, hash, version, ..record.clone() }, vec![forgotten])
}
