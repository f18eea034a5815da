//! The hub: `mvcc`'s store, with leases on virtual time and streams of changes to those who watch.
//!
//! Not here: the network, which may delay, lose or repeat what goes in and out. Invariant: a restart keeps every key
//! and every lease, and gives each lease its whole time anew, as a hub does that keeps its data on disk.

use crate::{
    message::{Answer, Failure, Guard, Peer, Request, StreamId, Write},
    time::Time,
};
use model::{LeaseId, Revision};
use mvcc::{
    Batch, Compare, DeleteRangeRequest, Event, KeyRange, KeyValue, LeaseGrantRequest, PutRequest,
    RangeRequest, RequestOp, Store, TxnRequest,
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// What goes to whom.
pub type Told = Vec<(StreamId, Vec<Event>)>;

/// The hub and who watches it.
#[derive(Debug)]
pub struct Hub {
    store: Store,
    next_lease: i64,
    streams: BTreeMap<StreamId, Stream>,
    /// Up to which revision the streams have been fed.
    told: mvcc::Revision,
    /// False while its process is gone: whoever calls is refused a connection.
    pub up: bool,
}

#[derive(Debug)]
struct Stream {
    range: KeyRange,
    /// Changes before this one are not wanted.
    from: mvcc::Revision,
    /// The stream looks open and carries nothing.
    stalled: bool,
}

impl Default for Hub {
    fn default() -> Self {
        let store = Store::new();
        let told = store.revision();
        Self { store, next_lease: 0x1000, streams: BTreeMap::new(), told, up: true }
    }
}

impl Hub {
    /// Carries out a request. `peer` watches with it, if that is what it asks for.
    pub fn serve(&mut self, now: Time, request: Request) -> Result<Answer, Failure> {
        match request {
            Request::List(prefix) => {
                let (revision, items) = self.range(KeyRange::prefix(prefix));
                Ok(Answer::Listing { revision, items })
            }
            Request::Get(keys) => {
                let revision = Revision(self.store.revision().0);
                let items = keys.into_iter().flat_map(|key| self.range(KeyRange::key(key)).1).collect();
                Ok(Answer::Listing { revision, items })
            }
            Request::Commit { guards, writes } => self.commit(guards, writes),
            Request::Grant(ttl) => {
                self.next_lease += 1;
                let id = mvcc::LeaseId(self.next_lease);
                let request = LeaseGrantRequest { id, ttl: ttl.as_secs_f64().ceil() as i64 };
                let _ = self.store.lease_grant(now.0, request).map_err(refused)?;
                Ok(Answer::Granted(LeaseId(id.0)))
            }
            Request::Renew(lease) => {
                let answer = self.store.lease_keep_alive(now.0, mvcc::LeaseId(lease.0));
                Ok(Answer::Renewed(Duration::from_secs(u64::try_from(answer.ttl).unwrap_or(0))))
            }
            Request::Revoke(lease) => {
                let _ = self.store.lease_revoke(mvcc::LeaseId(lease.0)).map_err(refused)?;
                Ok(Answer::Revoked)
            }
            Request::TimeLeft(lease) => {
                let answer = self.store.lease_time_to_live(now.0, mvcc::LeaseId(lease.0), false);
                Ok(Answer::Left(Duration::from_secs(u64::try_from(answer.ttl).unwrap_or(0))))
            }
            Request::Watch { stream, prefix, from } => {
                let range = KeyRange::prefix(prefix);
                self.streams.insert(stream, Stream { range, from: mvcc::Revision(from.0), stalled: false });
                Ok(Answer::Watching)
            }
        }
    }

    /// What a new stream has missed since the revision it begins at.
    pub fn missed(&self, stream: StreamId) -> Option<Vec<Event>> {
        let stream = self.streams.get(&stream)?;
        let batches = self.store.history(stream.from).ok()?;
        let events: Vec<_> =
            batches.filter(|batch| batch.revision <= self.told).flat_map(|b| stream.select(b)).collect();
        (!events.is_empty()).then_some(events)
    }

    /// What changed since it was last asked: every batch, and what of it goes to whom.
    pub fn news(&mut self) -> (Vec<Arc<Batch>>, Told) {
        let Ok(history) = self.store.history(self.told.next()) else { return (Vec::new(), Vec::new()) };
        let batches: Vec<_> = history.cloned().collect();
        self.told = self.store.revision();
        let mut told = Vec::new();
        for batch in &batches {
            for (id, stream) in self.streams.iter().filter(|(_, stream)| !stream.stalled) {
                let events: Vec<_> = stream.select(batch).collect();
                if !events.is_empty() {
                    told.push((*id, events));
                }
            }
        }
        (batches, told)
    }

    /// Ends every lease whose time is over; tells how many.
    pub fn expire(&mut self, now: Time) -> usize {
        if !self.up {
            return 0;
        }
        let expired = self.store.expired(now.0);
        for lease in &expired {
            let _ = self.store.lease_revoke(*lease);
        }
        expired.len()
    }

    /// When the next lease ends.
    pub fn next_deadline(&self) -> Option<Time> {
        self.store.next_deadline().map(Time)
    }

    /// The process is gone, and with it every stream. Tells whose those were.
    pub fn crash(&mut self) -> Vec<StreamId> {
        self.up = false;
        std::mem::take(&mut self.streams).into_keys().collect()
    }

    /// The process is back, with what its disk kept: leases get their whole time.
    pub fn restart(&mut self, now: Time) {
        self.up = true;
        let replayed = Store::replay(self.store.dump(), now.0);
        self.store = replayed.expect("a store's own records make it again").store;
    }

    /// Ends the streams of `ours`, as when its connection is gone. Tells which.
    pub fn disconnect(&mut self, ours: impl Fn(Peer) -> bool) -> Vec<StreamId> {
        let gone: Vec<_> = self.streams.keys().filter(|id| ours(id.peer)).copied().collect();
        for stream in &gone {
            self.streams.remove(stream);
        }
        gone
    }

    /// From now on the streams of `ours` look open and carry nothing.
    pub fn stall(&mut self, ours: impl Fn(Peer) -> bool) {
        self.streams.iter_mut().filter(|(id, _)| ours(id.peer)).for_each(|(_, stream)| stream.stalled = true);
    }

    /// Ends one stream that nobody listens to any longer.
    pub fn unwatch(&mut self, stream: StreamId) {
        self.streams.remove(&stream);
    }

    /// Everything under `prefix`, as it is now.
    pub fn list(&self, prefix: &str) -> Vec<KeyValue> {
        self.range(KeyRange::prefix(prefix.to_owned())).1
    }

    /// The present revision.
    pub fn revision(&self) -> Revision {
        Revision(self.store.revision().0)
    }

    /// One key, as it is now.
    pub fn get(&self, key: &str) -> Option<KeyValue> {
        self.range(KeyRange::key(key.to_owned())).1.pop()
    }

    fn range(&self, range: KeyRange) -> (Revision, Vec<KeyValue>) {
        let response = self.store.range(&RangeRequest::new(range)).expect("the present can always be read");
        (Revision(response.revision.0), response.kvs)
    }

    /// A transaction, as `registry` makes it out of guards and writes.
    pub fn commit(&mut self, guards: Vec<Guard>, writes: Vec<Write>) -> Result<Answer, Failure> {
        let compare = guards
            .into_iter()
            .map(|guard| match guard {
                Guard::Absent(key) => Compare::absent(key),
                Guard::Unchanged(key, at) => Compare::unchanged(key, mvcc::Revision(at.0)),
            })
            .collect();
        let success = writes
            .into_iter()
            .map(|write| match write {
                Write::Put { key, value, lease } => {
                    let lease = mvcc::LeaseId(lease.map_or(0, |lease| lease.0));
                    RequestOp::Put(PutRequest::new(key, value).with_lease(lease))
                }
                Write::Delete(key) => RequestOp::DeleteRange(DeleteRangeRequest::new(KeyRange::key(key))),
            })
            .collect();
        let request = TxnRequest { compare, success, failure: Vec::new() };
        let response = self.store.txn(request).map_err(refused)?.response;
        Ok(Answer::Committed { yes: response.succeeded, revision: Revision(response.revision.0) })
    }
}

impl Stream {
    fn select<'a>(&'a self, batch: &'a Batch) -> impl Iterator<Item = Event> + 'a {
        let new = batch.revision >= self.from;
        batch.events.iter().filter(move |event| new && self.range.contains(&event.kv.key)).cloned()
    }
}

fn refused(error: mvcc::Error) -> Failure {
    Failure::Refused(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_gives_leases_their_time_anew() {
        let mut hub = Hub::default();
        let at = |seconds| Time(Duration::from_secs(seconds));
        let granted = hub.serve(at(0), Request::Grant(Duration::from_secs(5)));
        let Ok(Answer::Granted(lease)) = granted else { panic!("{granted:?}") };
        let write = Write::Put { key: "k".to_owned(), value: "v".into(), lease: Some(lease) };
        hub.commit(vec![], vec![write]).expect("no guard");
        hub.crash();
        assert_eq!(hub.expire(at(60)), 0, "nobody ends leases while the hub is down");
        hub.restart(at(60));
        assert_eq!(hub.expire(at(64)), 0);
        assert_eq!(hub.expire(at(65)), 1);
        assert!(hub.get("k").is_none());
    }
}
