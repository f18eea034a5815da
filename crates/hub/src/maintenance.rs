//! The Maintenance service.
//!
//! Invariant: what it reports is measured, not made up; what one node cannot do is refused in etcd's words.

use crate::request::{AlarmRequest, Alarms, Queue, Request, status};
use crate::snapshot::Snapshot;
use crate::space::number;
use crate::stop::Until;
use crate::storage::{GivenUp, Identity};
use etcd_client::proto as pb;
use mvcc::{Alarm, AlarmKind, Revision};
use std::io;
use std::pin::Pin;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Response, Status};
use tracing::debug;

/// Clients probe features by this. 3.5 is what the API here amounts to.
pub(crate) const VERSION: &str = "3.5.0";

/// Pieces of a snapshot, of 64 KiB each, that may wait for their client.
const SNAPSHOT_PIECES: usize = 4;

pub(crate) struct MaintenanceService {
    pub(crate) queue: Queue,
    pub(crate) identity: Identity,
    pub(crate) stop: CancellationToken,
}

#[tonic::async_trait]
impl pb::PbMaintenanceService for MaintenanceService {
    /// Lists, raises and disarms. As in etcd a member that does not exist may have alarms too.
    async fn alarm(
        &self,
        request: tonic::Request<pb::PbAlarmRequest>,
    ) -> Result<Response<pb::PbAlarmResponse>, Status> {
        let queue = self.queue.by(&request);
        let pb::PbAlarmRequest { action, member_id: member, alarm: asked } = request.into_inner();
        let kind = [AlarmKind::NoSpace, AlarmKind::Corrupt].into_iter().find(|kind| number(*kind) == asked);
        let request = match (action, kind) {
            (0, _) => AlarmRequest::List,
            (1, Some(kind)) => AlarmRequest::Raise(Alarm { kind, member }),
            (2, Some(kind)) => AlarmRequest::Disarm(Alarm { kind, member }),
            // There are none of no kind; etcd's own client asks for it.
            (2, None) if asked == 0 => {
                let Alarms { revision, .. } =
                    queue.ask(|reply| Request::Alarm(AlarmRequest::List, reply)).await?;
                let header = self.identity.header(revision);
                return Ok(Response::new(pb::PbAlarmResponse { header, alarms: Vec::new() }));
            }
            // etcd keeps an alarm of no kind, and ends on an action that it does not know.
            _ => return Err(Status::invalid_argument("etcdserver: unknown alarm or action")),
        };
        let Alarms { revision, alarms } = queue.ask(|reply| Request::Alarm(request, reply)).await?;
        let wanted = |alarm: &Alarm| asked == 0 || number(alarm.kind) == asked;
        let alarms = alarms
            .into_iter()
            .filter(wanted)
            .map(|alarm| pb::PbAlarmMember { member_id: alarm.member, alarm: number(alarm.kind) })
            .collect();
        Ok(Response::new(pb::PbAlarmResponse { header: self.identity.header(revision), alarms }))
    }

    async fn status(
        &self,
        _request: tonic::Request<pb::PbStatusRequest>,
    ) -> Result<Response<pb::PbStatusResponse>, Status> {
        let health = self.queue.ask(Request::Status).await?;
        let index = u64::try_from(health.revision.0).unwrap_or_default();
        let told = |alarm: &Alarm| {
            let kind = match alarm.kind {
                AlarmKind::NoSpace => "NOSPACE",
                AlarmKind::Corrupt => "CORRUPT",
            };
            format!("memberID:{} alarm:{kind} ", alarm.member) // as Go prints the message, the space included
        };
        let errors = health.alarms.iter().map(told).collect();
        Ok(Response::new(pb::PbStatusResponse {
            header: self.identity.header(health.revision),
            version: VERSION.to_owned(),
            db_size: i64::try_from(health.disk).unwrap_or(i64::MAX),
            db_size_in_use: i64::try_from(health.memory.min(health.disk)).unwrap_or(i64::MAX),
            leader: self.identity.member,
            raft_index: index,
            raft_applied_index: index,
            raft_term: self.identity.term,
            errors,
            ..Default::default()
        }))
    }

    async fn defragment(
        &self,
        request: tonic::Request<pb::PbDefragmentRequest>,
    ) -> Result<Response<pb::PbDefragmentResponse>, Status> {
        self.queue.by(&request).ask(Request::Defragment).await?;
        Ok(Response::new(pb::PbDefragmentResponse { header: None })) // as etcd, which has none here
    }

    async fn hash(
        &self,
        request: tonic::Request<pb::PbHashRequest>,
    ) -> Result<Response<pb::PbHashResponse>, Status> {
        let queue = self.queue.by(&request);
        let hash = queue.ask(|reply| Request::Hash { revision: Revision(0), reply }).await?;
        let header = self.identity.header(hash.revision);
        Ok(Response::new(pb::PbHashResponse { header, hash: hash.hash }))
    }

    async fn hash_kv(
        &self,
        request: tonic::Request<pb::PbHashKvRequest>,
    ) -> Result<Response<pb::PbHashKvResponse>, Status> {
        let queue = self.queue.by(&request);
        let revision = Revision(request.into_inner().revision);
        let hash = queue.ask(|reply| Request::Hash { revision, reply }).await?;
        Ok(Response::new(pb::PbHashKvResponse {
            header: self.identity.header(hash.revision),
            hash: hash.hash,
            compact_revision: hash.compacted.0,
            hash_revision: if revision.0 > 0 { revision.0 } else { hash.revision.0 },
        }))
    }

    type SnapshotStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<pb::PbSnapshotResponse, Status>> + Send>>;

    /// etcd's format, of one moment between two turns. The store is read and the file made while the hub goes on, as
    /// fast as the client takes it.
    async fn snapshot(
        &self,
        request: tonic::Request<pb::PbSnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        let queue = self.queue.by(&request);
        let mut attempts = 0;
        let (records, revision) = loop {
            let read = queue.ask(|reply| Request::Snapshot { attempts, reply }).await?;
            let revision = read.revision();
            let gathered = tokio::task::spawn_blocking(move || read.gather()).await;
            match gathered.map_err(|_| status(mvcc::Error::Stopped))? {
                Ok(records) => break (records, revision),
                Err(GivenUp) => attempts += 1, // somebody compacted meanwhile
            }
        };
        let (pieces, stream) = mpsc::channel(SNAPSHOT_PIECES);
        let identity = self.identity;
        tokio::task::spawn_blocking(move || {
            let snapshot = Snapshot::new(records, revision, identity.term);
            let sent = snapshot.stream(|blob, remaining_bytes| {
                let header = identity.header(revision);
                let blob = blob.into();
                let piece = pb::PbSnapshotResponse { header, remaining_bytes, blob, ..Default::default() };
                pieces.blocking_send(Ok(piece)).map_err(|_| io::ErrorKind::BrokenPipe.into())
            });
            if sent.is_err() {
                debug!(revision = revision.0, "snapshot given up by its client");
            }
        });
        let stream = Until::new(ReceiverStream::new(stream), self.stop.clone());
        Ok(Response::new(Box::pin(stream)))
    }

    async fn move_leader(
        &self,
        request: tonic::Request<pb::PbMoveLeaderRequest>,
    ) -> Result<Response<pb::PbMoveLeaderResponse>, Status> {
        self.queue.by(&request).ask(Request::Root).await?;
        if request.get_ref().target_id == self.identity.member {
            return Ok(Response::new(pb::PbMoveLeaderResponse { header: None })); // it leads already
        }
        Err(Status::failed_precondition("etcdserver: bad leader transferee"))
    }

    async fn downgrade(
        &self,
        request: tonic::Request<pb::PbDowngradeRequest>,
    ) -> Result<Response<pb::PbDowngradeResponse>, Status> {
        self.queue.by(&request).ask(Request::Root).await?;
        Err(Status::unimplemented("the embedded hub has no cluster version to lower"))
    }
}
