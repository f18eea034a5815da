//! Per key, what it was at each revision since compaction.
//!
//! Not responsible for which revision is current or what a request may ask. Invariant: a key's versions ascend by
//! row, a tombstone follows a put, and a key without versions is not in the map.

use crate::noun::{KeyRange, KeyValue, LeaseId, Record, Revision, RowId};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Bound;

/// What one version costs in memory beside its value: the struct, and its share of the vector and the tree.
const VERSION_OVERHEAD: u64 = 128;

/// One write of a key. A tombstone has version 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) row: RowId,
    pub(crate) create_revision: Revision,
    pub(crate) version: i64,
    pub(crate) lease: LeaseId,
    pub(crate) value: Bytes,
}

impl Version {
    pub(crate) fn tombstone(row: RowId) -> Self {
        Self { row, create_revision: Revision(0), version: 0, lease: LeaseId::NONE, value: Bytes::new() }
    }

    pub(crate) fn is_tombstone(&self) -> bool {
        self.version == 0
    }

    pub(crate) fn record(&self, key: &Bytes) -> Record {
        if self.is_tombstone() {
            return Record::Delete { row: self.row, key: key.clone() };
        }
        Record::Put {
            row: self.row,
            key: key.clone(),
            value: self.value.clone(),
            lease: self.lease,
            create_revision: self.create_revision,
            version: self.version,
        }
    }

    pub(crate) fn key_value(&self, key: &Bytes) -> KeyValue {
        KeyValue {
            key: key.clone(),
            value: self.value.clone(),
            create_revision: self.create_revision,
            mod_revision: self.row.main,
            version: self.version,
            lease: self.lease,
        }
    }
}

/// All keys.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Index {
    keys: BTreeMap<Bytes, Vec<Version>>,
    /// Keys, values and overhead of all versions, in bytes.
    size: u64,
    /// The part of it that compaction may free: tombstones, and what is not the newest of its key.
    history: u64,
}

impl Index {
    /// The key's live version at `at`.
    pub(crate) fn get(&self, key: &[u8], at: Revision) -> Option<&Version> {
        live(self.keys.get(key)?, at)
    }

    /// The live versions of a range at `at`, by key.
    pub(crate) fn range<'a>(
        &'a self,
        range: &'a KeyRange,
        at: Revision,
    ) -> impl Iterator<Item = (&'a Bytes, &'a Version)> {
        self.histories(range).filter_map(move |(key, history)| Some((key, live(history, at)?)))
    }

    fn histories<'a>(
        &'a self,
        range: &'a KeyRange,
    ) -> impl Iterator<Item = (&'a Bytes, &'a Vec<Version>)> + 'a {
        let start = range.start();
        let (single, many) = if range.is_single() {
            (self.keys.get_key_value(start), None)
        } else if range.is_empty() {
            (None, None) // BTreeMap::range panics on a reversed range
        } else {
            let end = range.end().map_or(Bound::Unbounded, Bound::Excluded);
            (None, Some(self.keys.range::<Bytes, _>((Bound::Included(start), end))))
        };
        single.into_iter().chain(many.into_iter().flatten())
    }

    /// Every version of every key, by key, then by row.
    pub(crate) fn versions(&self) -> impl Iterator<Item = (&Bytes, &Version)> {
        self.keys.iter().flat_map(|(key, history)| history.iter().map(move |version| (key, version)))
    }

    /// Records of up to `keys` keys after `after`, no newer than `at`, and the last of the keys.
    pub(crate) fn records(
        &self,
        after: Option<&Bytes>,
        keys: usize,
        at: Revision,
    ) -> (Vec<Record>, Option<Bytes>) {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut records = Vec::new();
        let mut last = None;
        for (key, history) in self.keys.range::<Bytes, _>((start, Bound::Unbounded)).take(keys) {
            last = Some(key);
            records.extend(history.iter().filter(|v| v.row.main <= at).map(|v| v.record(key)));
        }
        (records, last.cloned())
    }

    /// The newest live version of every key.
    pub(crate) fn newest(&self) -> impl Iterator<Item = (&Bytes, &Version)> {
        self.keys
            .iter()
            .filter_map(|(key, history)| Some((key, history.last().filter(|v| !v.is_tombstone())?)))
    }

    /// Appends a version, which must be newer than all of its key.
    pub(crate) fn push(&mut self, key: Bytes, version: Version) {
        let cost = cost(&key, &version);
        self.size += cost;
        if version.is_tombstone() {
            self.history += cost;
        }
        // Most keys of a registry are written once or rarely: start at one, not at the four that a vector takes.
        match self.keys.entry(key) {
            Entry::Vacant(entry) => entry.insert(Vec::with_capacity(1)).push(version),
            Entry::Occupied(mut entry) => {
                if let Some(last) = entry.get().last().filter(|last| !last.is_tombstone()) {
                    self.history += self::cost(entry.key(), last);
                }
                entry.get_mut().push(version);
            }
        }
    }

    /// Drops what nobody can read once revisions below `compacted` are gone. Keeps per key the newest version at or
    /// below it unless that is a tombstone, and every version of that very revision (a watch may start there).
    pub(crate) fn compact_key(&mut self, key: &Bytes, compacted: Revision, obsolete: &mut Vec<RowId>) {
        let Some(history) = self.keys.get_mut(key) else { return };
        let newest = history.partition_point(|version| version.row.main <= compacted);
        let mut at = 0;
        let (size, freed) = (&mut self.size, &mut self.history);
        history.retain(|version| {
            at += 1;
            let keep = version.row.main >= compacted || (at == newest && !version.is_tombstone());
            if !keep {
                let cost = cost(key, version);
                *size -= cost;
                *freed -= cost;
                obsolete.push(version.row);
            }
            keep
        });
        if history.is_empty() {
            self.keys.remove(key);
        } else if history.capacity() > 4 && history.capacity() > 2 * history.len() {
            history.shrink_to_fit();
        }
    }

    /// Drops what nobody can read, of all keys.
    pub(crate) fn compact_all(&mut self, compacted: Revision, obsolete: &mut Vec<RowId>) {
        let keys: Vec<Bytes> = self.keys.keys().cloned().collect();
        for key in keys {
            self.compact_key(&key, compacted, obsolete);
        }
    }

    /// Bytes that the versions take, about.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Bytes that versions take which are not the present.
    pub(crate) fn history_size(&self) -> u64 {
        self.history
    }
}

fn cost(key: &Bytes, version: &Version) -> u64 {
    key.len() as u64 + version.value.len() as u64 + VERSION_OVERHEAD
}

fn live(history: &[Version], at: Revision) -> Option<&Version> {
    let version = match history.last() {
        Some(last) if last.row.main <= at => last, // nearly every read is of the present
        _ => history[..history.partition_point(|version| version.row.main <= at)].last()?,
    };
    (!version.is_tombstone()).then_some(version)
}
