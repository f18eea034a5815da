//! etcd's Lock service (`v3lockpb`): mutual exclusion by name, held as long as a lease.
//!
//! Everything is keys: whoever has the oldest key under `name/` holds the lock. Invariant: a lock is answered only
//! while the caller's key is the oldest; a caller that gives up leaves no key behind.

use crate::request::Queue;
use crate::rpc;
use crate::session::{self, Contender, Session};
use crate::storage::Identity;
use bytes::Bytes;
use etcd_client::proto as pb;
use mvcc::{LeaseId, RequestOp, Revision};
use tokio_util::sync::CancellationToken;
use tonic::codegen::http;
use tonic::{Request, Response, Status};

/// A lock's lease ended while its caller waited; the words of etcd's concurrency package.
const SESSION_EXPIRED: &str = "mutex: session is expired";

#[derive(Clone)]
pub(crate) struct LockService {
    pub(crate) queue: Queue,
    pub(crate) identity: Identity,
    pub(crate) stop: CancellationToken,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct LockRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) name: Bytes,
    #[prost(int64, tag = "2")]
    pub(crate) lease: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct UnlockRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) key: Bytes,
}

impl LockService {
    fn session<T>(&self, request: &Request<T>) -> Session {
        Session { queue: self.queue.by(request), identity: self.identity, stop: self.stop.clone() }
    }

    pub(crate) async fn lock(
        &self,
        request: Request<LockRequest>,
    ) -> Result<Response<pb::PbLockResponse>, Status> {
        let session = self.session(&request);
        let LockRequest { name, lease } = request.into_inner();
        let lease = session.lease(LeaseId(lease)).await?;
        let prefix = session::prefix(&name);
        let key = session::contender_key(&prefix, lease);
        let mut txn = session::stand(&key, Bytes::new(), lease);
        txn.success.push(RequestOp::Range(session::oldest(&prefix)));
        txn.failure.push(RequestOp::Range(session::oldest(&prefix)));
        let response = session.txn(txn).await?;
        let mine = if response.succeeded {
            response.revision
        } else {
            session::read_at(&response, 0).map_or(response.revision, |kv| kv.create_revision)
        };
        let contender = Contender::new(session.clone(), key.clone(), mine);
        let owner = session::read_at(&response, 1).map(|kv| kv.create_revision);
        let revision = if owner.is_none_or(|owner| owner == mine) {
            response.revision
        } else {
            held_after_waiting(&session, &prefix, &contender).await?
        };
        contender.settle();
        Ok(Response::new(pb::PbLockResponse { header: session.header(revision), key: key.into() }))
    }

    pub(crate) async fn unlock(
        &self,
        request: Request<UnlockRequest>,
    ) -> Result<Response<pb::PbUnlockResponse>, Status> {
        let session = self.session(&request);
        let response = session.delete(request.into_inner().key).await?;
        Ok(Response::new(pb::PbUnlockResponse { header: session.header(response.revision) }))
    }
}

/// Waits for everyone before us; the key may have gone with its lease meanwhile.
async fn held_after_waiting(
    session: &Session,
    prefix: &Bytes,
    contender: &Contender,
) -> Result<Revision, Status> {
    session.wait_for_older(prefix, contender.created.previous()).await?;
    let own = mvcc::RangeRequest::new(mvcc::KeyRange::key(contender.key.clone()));
    let response = session.range(own).await?;
    if response.kvs.first().is_none_or(|kv| kv.create_revision != contender.created) {
        return Err(Status::unknown(SESSION_EXPIRED));
    }
    Ok(response.revision)
}

rpc::service!(LockService, "v3lockpb.Lock", {
    "Lock" => unary lock,
    "Unlock" => unary unlock,
});
