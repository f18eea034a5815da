//! Watchers: what one selects from a batch, and an index of who wants a key.
//!
//! Not responsible for delivery. A watcher's owner replays [`Store::history`](crate::Store::history) from its start
//! revision and then follows the batches of each [`Applied`](crate::Applied). Invariant: both ways give a watcher the
//! same events in the same order.

use crate::noun::{Batch, Event, EventKind, KeyRange};
use bytes::Bytes;
use std::collections::BTreeMap;

/// What a watcher wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watcher {
    /// Which keys.
    pub range: KeyRange,
    /// Leave out puts (etcd's `NOPUT`).
    pub no_put: bool,
    /// Leave out deletions (etcd's `NODELETE`).
    pub no_delete: bool,
    /// With what was there before.
    pub prev_kv: bool,
}

impl Watcher {
    /// All changes in `range`, without what was there before.
    pub fn new(range: KeyRange) -> Self {
        Self { range, no_put: false, no_delete: false, prev_kv: false }
    }

    /// What it sees of a batch: all of it together, and nothing if that is empty.
    pub fn select<'a>(&'a self, batch: &'a Batch) -> impl Iterator<Item = Event> + 'a {
        batch.events.iter().filter_map(|event| self.pick(event))
    }

    /// The event as this watcher sees it, if it does.
    pub fn pick(&self, event: &Event) -> Option<Event> {
        let hidden = match event.kind {
            EventKind::Put => self.no_put,
            EventKind::Delete => self.no_delete,
        };
        if hidden || !self.range.contains(&event.kv.key) {
            return None;
        }
        let prev_kv = if self.prev_kv { event.prev_kv.clone() } else { None };
        Some(Event { kind: event.kind, kv: event.kv.clone(), prev_kv })
    }
}

/// Finds the watchers of a key without asking each. `T` names a watcher.
///
/// Single keys and prefixes, which is what nearly all watchers have, are looked up; only other ranges are compared one
/// by one.
#[derive(Debug, Clone)]
pub struct WatchIndex<T> {
    keys: BTreeMap<Bytes, Vec<T>>,
    /// By length, since a key has one prefix of each length.
    prefixes: BTreeMap<usize, BTreeMap<Bytes, Vec<T>>>,
    ranges: Vec<(KeyRange, T)>,
}

impl<T> Default for WatchIndex<T> {
    fn default() -> Self {
        Self { keys: BTreeMap::new(), prefixes: BTreeMap::new(), ranges: Vec::new() }
    }
}

impl<T: Copy + PartialEq> WatchIndex<T> {
    /// Adds a watcher.
    pub fn insert(&mut self, range: &KeyRange, watcher: T) {
        if range.is_single() {
            self.keys.entry(range.start().clone()).or_default().push(watcher);
        } else if let Some(prefix) = range.as_prefix() {
            let same_length = self.prefixes.entry(prefix.len()).or_default();
            same_length.entry(prefix.clone()).or_default().push(watcher);
        } else {
            self.ranges.push((range.clone(), watcher));
        }
    }

    /// Removes a watcher that was added with this range.
    pub fn remove(&mut self, range: &KeyRange, watcher: T) {
        if range.is_single() {
            take(&mut self.keys, range.start(), watcher);
        } else if let Some(prefix) = range.as_prefix() {
            if let Some(same_length) = self.prefixes.get_mut(&prefix.len()) {
                take(same_length, prefix, watcher);
                if same_length.is_empty() {
                    self.prefixes.remove(&prefix.len());
                }
            }
        } else {
            self.ranges.retain(|(_, other)| *other != watcher);
        }
    }

    /// A watcher that was added with this range, if there is one.
    pub fn any_with(&self, range: &KeyRange) -> Option<T> {
        let watchers = if range.is_single() {
            self.keys.get(range.start())
        } else {
            let prefix = range.as_prefix()?;
            self.prefixes.get(&prefix.len()).and_then(|same_length| same_length.get(prefix))
        };
        watchers.and_then(|watchers| watchers.first().copied())
    }

    /// Calls `found` for each watcher whose range has `key`, in no particular order.
    pub fn matching(&self, key: &[u8], mut found: impl FnMut(T)) {
        self.keys.get(key).into_iter().flatten().for_each(|watcher| found(*watcher));
        for (length, prefixes) in self.prefixes.range(..=key.len()) {
            prefixes.get(&key[..*length]).into_iter().flatten().for_each(|watcher| found(*watcher));
        }
        self.ranges.iter().filter(|(range, _)| range.contains(key)).for_each(|(_, watcher)| found(*watcher));
    }
}

fn take<T: Copy + PartialEq>(map: &mut BTreeMap<Bytes, Vec<T>>, key: &Bytes, watcher: T) {
    if let Some(watchers) = map.get_mut(key) {
        watchers.retain(|other| *other != watcher);
        if watchers.is_empty() {
            map.remove(key);
        }
    }
}
