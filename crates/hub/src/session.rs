//! A client of the hub inside the hub: what the lock and election services stand on.
//!
//! The recipes are those of etcd's `clientv3/concurrency`: contenders write keys `name/lease` and wait until every
//! older key of that prefix is gone. Invariant: nothing here has rights of its own; it asks as whoever called.

use crate::request::{Queue, Reply, Request, WatchKind, WatchRequest, status};
use crate::storage::{Identity, random_id};
use crate::watchers::{OUTGOING, Outgoing, StreamId};
use bytes::Bytes;
use etcd_client::proto as pb;
use mvcc::{
    DeleteRangeRequest, DeleteRangeResponse, Error, Event, KeyRange, KeyValue, LeaseGrantRequest, LeaseId,
    PutRequest, RangeRequest, RangeResponse, Revision, SortOrder, SortTarget, TxnRequest, TxnResponse,
    Watcher,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

/// Seconds that a lease lives which was not given; etcd's.
const DEFAULT_LEASE_TTL: i64 = 60;

/// Asks the hub on behalf of one call.
#[derive(Clone)]
pub(crate) struct Session {
    pub(crate) queue: Queue,
    pub(crate) identity: Identity,
    pub(crate) stop: CancellationToken,
}

impl Session {
    pub(crate) fn header(&self, revision: Revision) -> Option<pb::PbResponseHeader> {
        self.identity.header(revision)
    }

    /// etcd's own services reach it through its Go client, which loses the codes of refusals but not their texts.
    async fn ask<T>(&self, make: impl FnOnce(Reply<T>) -> Request) -> Result<T, Status> {
        self.queue.ask(make).await.map_err(|refusal| match refusal.code() {
            Code::Unavailable => refusal,
            _ => Status::unknown(refusal.message()),
        })
    }

    pub(crate) async fn txn(&self, txn: TxnRequest) -> Result<TxnResponse, Status> {
        self.ask(|reply| Request::Txn(txn, reply)).await
    }

    pub(crate) async fn range(&self, range: RangeRequest) -> Result<RangeResponse, Status> {
        self.ask(|reply| Request::Range(range, reply)).await
    }

    pub(crate) async fn delete(&self, key: Bytes) -> Result<DeleteRangeResponse, Status> {
        let request = DeleteRangeRequest::new(KeyRange::key(key));
        self.ask(|reply| Request::DeleteRange(request, reply)).await
    }

    /// The given lease, or a new one if it is none.
    pub(crate) async fn lease(&self, id: LeaseId) -> Result<LeaseId, Status> {
        if !id.is_none() {
            return Ok(id);
        }
        let grant = LeaseGrantRequest { id: LeaseId(random_id()), ttl: DEFAULT_LEASE_TTL };
        Ok(self.ask(|reply| Request::LeaseGrant(grant, reply)).await?.id)
    }

    /// The oldest key under `prefix`: the owner's.
    pub(crate) async fn oldest(&self, prefix: &Bytes) -> Result<RangeResponse, Status> {
        self.range(oldest(prefix)).await
    }

    /// Waits until no key under `prefix` is left that was created at or before `created`; the revision of that.
    pub(crate) async fn wait_for_older(&self, prefix: &Bytes, created: Revision) -> Result<Revision, Status> {
        loop {
            let newest = RangeRequest {
                max_create_revision: created,
                sort_order: SortOrder::Descend,
                ..oldest(prefix)
            };
            let response = self.range(newest).await?;
            let Some(before) = response.kvs.into_iter().next() else { return Ok(response.revision) };
            let mut watching = self.watch(KeyRange::key(before.key), response.revision.next()).await?;
            // A cancelled watch is told by none: its history is compacted, and the next look at the keys tells more.
            while let Some(events) = watching.next().await? {
                if events.iter().any(|event| event.kind == mvcc::EventKind::Delete) {
                    break;
                }
            }
        }
    }

    pub(crate) async fn watch(&self, range: KeyRange, start: Revision) -> Result<Watching, Status> {
        let (sender, outgoing) = mpsc::channel(OUTGOING);
        let permit = sender.clone().reserve_owned().await.map_err(|_| status(Error::Stopped))?;
        let watcher = Watcher { range, no_put: false, no_delete: false, prev_kv: false };
        let stream = StreamId::new(0);
        let kind = WatchKind::Create { id: 0, watcher, start, progress_notify: false, fragment: false };
        self.queue.send(Request::Watch(WatchRequest { stream, outgoing: sender, permit, kind })).await?;
        Ok(Watching { outgoing, stop: self.stop.clone() })
    }
}

/// A watch of the hub's own. Ends when dropped.
pub(crate) struct Watching {
    outgoing: mpsc::Receiver<Outgoing>,
    stop: CancellationToken,
}

impl Watching {
    /// The next events; none if the watch is over because its history is compacted.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<Event>>, Status> {
        loop {
            let outgoing = tokio::select! {
                outgoing = self.outgoing.recv() => outgoing,
                () = self.stop.cancelled() => None,
            };
            match outgoing {
                Some(Outgoing::Events(delivery)) => {
                    let events = delivery
                        .shares
                        .iter()
                        .flat_map(|share| share.batches.iter().flat_map(|batch| share.watcher.select(batch)));
                    return Ok(Some(events.collect()));
                }
                Some(Outgoing::Canceled { .. }) => return Ok(None),
                Some(Outgoing::Refused { reason, .. }) => return Err(Status::unknown(reason)),
                Some(Outgoing::Created { .. } | Outgoing::Progress { .. }) => {}
                None => return Err(status(Error::Stopped)),
            }
        }
    }
}

/// A key that contends for a lock or an election, deleted if its call is given up.
pub(crate) struct Contender {
    session: Session,
    pub(crate) key: Bytes,
    /// The key's create revision.
    pub(crate) created: Revision,
    settled: bool,
}

impl Contender {
    pub(crate) fn new(session: Session, key: Bytes, created: Revision) -> Self {
        Self { session, key, created, settled: false }
    }

    /// The key stays.
    pub(crate) fn settle(mut self) {
        self.settled = true;
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        // The caller went away while it waited. Whoever is next would wait for it until its lease ends.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (session, key, created) = (self.session.clone(), self.key.clone(), self.created);
        runtime.spawn(async move {
            let compare = mvcc::Compare {
                range: KeyRange::key(key.clone()),
                op: mvcc::CompareOp::Equal,
                target: mvcc::CompareTarget::Create(created),
            };
            let delete = mvcc::RequestOp::DeleteRange(DeleteRangeRequest::new(KeyRange::key(key)));
            let txn = TxnRequest { compare: vec![compare], success: vec![delete], failure: Vec::new() };
            let _ = session.txn(txn).await; // the hub may have stopped; then the lease ends it
        });
    }
}

/// `name/`, under which the contenders are.
pub(crate) fn prefix(name: &[u8]) -> Bytes {
    [name, b"/"].concat().into()
}

/// `name/lease`, a contender's key.
pub(crate) fn contender_key(prefix: &Bytes, lease: LeaseId) -> Bytes {
    // Go prints a negative number with its sign.
    let number = lease.0.unsigned_abs();
    let sign = if lease.0 < 0 { "-" } else { "" };
    [prefix, format!("{sign}{number:x}").as_bytes()].concat().into()
}

/// The request for the oldest key under `prefix`.
pub(crate) fn oldest(prefix: &Bytes) -> RangeRequest {
    RangeRequest {
        limit: 1,
        sort_order: SortOrder::Ascend,
        sort_target: SortTarget::Create,
        ..RangeRequest::new(KeyRange::prefix(prefix.clone()))
    }
}

/// Puts `key` unless it exists; the other branch and what follows are the caller's.
pub(crate) fn stand(key: &Bytes, value: Bytes, lease: LeaseId) -> TxnRequest {
    let put = PutRequest::new(key.clone(), value).with_lease(lease);
    TxnRequest {
        compare: vec![mvcc::Compare::absent(key.clone())],
        success: vec![mvcc::RequestOp::Put(put)],
        failure: vec![mvcc::RequestOp::Range(RangeRequest::new(KeyRange::key(key.clone())))],
    }
}

/// The first key that the operation at `place` read.
pub(crate) fn read_at(response: &TxnResponse, place: usize) -> Option<&KeyValue> {
    match response.responses.get(place) {
        Some(mvcc::ResponseOp::Range(range)) => range.kvs.first(),
        _ => None,
    }
}
