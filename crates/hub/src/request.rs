//! What the services ask of the apply thread.
//!
//! Invariant: every request is answered exactly once, or its sender learns that the hub has stopped.

use crate::guard::{AuthAnswer, AuthRequest, Credentials};
use crate::pieces::Pieces;
use crate::shared::Shared;
use crate::storage::Commits;
use crate::watchers::{Outgoing, StreamId};
use mvcc::{
    Alarm, CompactResponse, DeleteRangeRequest, DeleteRangeResponse, Error, LeaseGrantRequest,
    LeaseGrantResponse, LeaseId, LeaseKeepAliveResponse, LeaseRevokeResponse, LeaseTimeToLiveResponse,
    PutRequest, PutResponse, RangeRequest, RangeResponse, Revision, TxnRequest, TxnResponse, Watcher,
};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

/// Requests that may wait for the apply thread. As many as it takes in one batch: while one batch is on its way to
/// the disk the next one gathers, and what is beyond that waits in its own connection, which slows its client down.
pub(crate) const QUEUE: usize = 1024;

/// Where an answer goes.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, Error>>;

pub(crate) enum Request {
    Range(RangeRequest, Reply<RangeResponse>),
    Put(PutRequest, Reply<PutResponse>),
    DeleteRange(DeleteRangeRequest, Reply<DeleteRangeResponse>),
    Txn(TxnRequest, Reply<TxnResponse>),
    Compact {
        revision: Revision,
        reply: Reply<CompactResponse>,
    },
    LeaseGrant(LeaseGrantRequest, Reply<LeaseGrantResponse>),
    LeaseRevoke(LeaseId, Reply<LeaseRevokeResponse>),
    /// With the time of its arrival: whoever asked in time is in time, however long the queue.
    LeaseKeepAlive {
        id: LeaseId,
        arrived: Instant,
        reply: Reply<LeaseKeepAliveResponse>,
    },
    LeaseTimeToLive {
        id: LeaseId,
        keys: bool,
        reply: Reply<LeaseTimeToLiveResponse>,
    },
    Leases(Reply<(Revision, Vec<LeaseId>)>),
    Hash {
        revision: Revision,
        reply: Reply<Hash>,
    },
    Status(Reply<Health>),
    Alarm(AlarmRequest, Reply<Alarms>),
    Defragment(Reply<Revision>),
    /// Does nothing, for who may do everything.
    Root(Reply<Revision>),
    Auth(AuthRequest, Reply<AuthAnswer>),
    /// A request of somebody who tells who it is.
    As(Arc<Credentials>, Box<Request>),
    /// Everything, to be read elsewhere; `attempts` were given up before.
    Snapshot {
        attempts: u32,
        reply: Reply<Pieces>,
    },
    Watch(WatchRequest),
}

/// What a watch stream asks. The permit is a reserved place among the stream's outgoing messages, so that the answer
/// neither waits nor gets lost.
pub(crate) struct WatchRequest {
    pub(crate) stream: StreamId,
    pub(crate) outgoing: mpsc::Sender<Outgoing>,
    pub(crate) permit: mpsc::OwnedPermit<Outgoing>,
    pub(crate) kind: WatchKind,
}

pub(crate) enum WatchKind {
    Create {
        /// What the client chose; 0 leaves it to us.
        id: i64,
        watcher: Watcher,
        /// 0 is from now.
        start: Revision,
        progress_notify: bool,
        fragment: bool,
    },
    Cancel {
        id: i64,
    },
    Progress,
}

/// What is to be done about alarms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AlarmRequest {
    List,
    Raise(Alarm),
    Disarm(Alarm),
}

/// Alarms that there are, or that were raised or disarmed.
#[derive(Debug)]
pub(crate) struct Alarms {
    pub(crate) revision: Revision,
    pub(crate) alarms: Vec<Alarm>,
}

/// A checksum of the history.
pub(crate) struct Hash {
    pub(crate) revision: Revision,
    pub(crate) hash: u32,
    pub(crate) compacted: Revision,
}

/// How the hub is.
pub(crate) struct Health {
    pub(crate) revision: Revision,
    /// Bytes of the file.
    pub(crate) disk: u64,
    /// Bytes of keys, values and history.
    pub(crate) memory: u64,
    /// Keys, values and history may take so much.
    pub(crate) quota: u64,
    pub(crate) alarms: Vec<Alarm>,
    /// Commits since the start.
    pub(crate) commits: Commits,
    /// How far the history is gone.
    pub(crate) compacted: Revision,
    pub(crate) watchers: usize,
}

/// The services' end of the queue.
#[derive(Debug, Clone)]
pub(crate) struct Queue {
    sender: mpsc::Sender<Request>,
    /// Who asks, if they say so.
    credentials: Option<Arc<Credentials>>,
    shared: Arc<Shared>,
}

impl Queue {
    pub(crate) fn new(shared: Arc<Shared>) -> (Self, mpsc::Receiver<Request>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self { sender, credentials: None, shared }, receiver)
    }

    /// Asks, and waits until the answer is durable.
    pub(crate) async fn ask<T>(&self, make: impl FnOnce(Reply<T>) -> Request) -> Result<T, Status> {
        let (reply, answer) = oneshot::channel();
        self.send(make(reply)).await?;
        match answer.await {
            Ok(answer) => answer.map_err(status),
            Err(_) => Err(status(Error::Stopped)),
        }
    }

    /// How many keys there are.
    pub(crate) fn keys(&self) -> i64 {
        self.shared.keys()
    }

    /// The same queue in somebody's name.
    pub(crate) fn with(&self, credentials: Credentials) -> Self {
        Self { credentials: Some(Arc::new(credentials)), ..self.clone() }
    }

    /// Asks without an answer of its own.
    pub(crate) async fn send(&self, request: Request) -> Result<(), Status> {
        let Some(request) = self.shared.serve(request) else { return Ok(()) };
        let request = match &self.credentials {
            Some(credentials) => Request::As(Arc::clone(credentials), Box::new(request)),
            None => request,
        };
        self.sender.send(request).await.map_err(|_| status(Error::Stopped))
    }
}

/// A refusal as gRPC says it.
pub(crate) fn status(error: Error) -> Status {
    use mvcc::Code as C;
    let code = match error.code() {
        C::InvalidArgument => tonic::Code::InvalidArgument,
        C::NotFound => tonic::Code::NotFound,
        C::ResourceExhausted => tonic::Code::ResourceExhausted,
        C::FailedPrecondition => tonic::Code::FailedPrecondition,
        C::OutOfRange => tonic::Code::OutOfRange,
        C::Unavailable => tonic::Code::Unavailable,
        C::DataLoss => tonic::Code::DataLoss,
        C::Unknown => tonic::Code::Unknown,
        C::PermissionDenied => tonic::Code::PermissionDenied,
        C::Unauthenticated => tonic::Code::Unauthenticated,
    };
    Status::new(code, error.to_string())
}
