//! The Maintenance service.
//!
//! Invariant: what it reports is measured, not made up; what one node cannot do is refused in etcd's words.

use crate::request::{Queue, Request};
use crate::storage::Identity;
use etcd_client::proto as pb;
use mvcc::Revision;
use tonic::{Response, Status};

/// Clients probe features by this. 3.5 is what the API here amounts to.
pub(crate) const VERSION: &str = "3.5.0";

/// etcd's number for the alarm "quota is used up".
const ALARM_NO_SPACE: i32 = 1;

pub(crate) struct MaintenanceService {
    pub(crate) queue: Queue,
    pub(crate) identity: Identity,
}

#[tonic::async_trait]
impl pb::PbMaintenanceService for MaintenanceService {
    /// Lists alarms. There is one, and it ends by itself when there is space again, so it cannot be set or cleared.
    async fn alarm(
        &self,
        _request: tonic::Request<pb::PbAlarmRequest>,
    ) -> Result<Response<pb::PbAlarmResponse>, Status> {
        let health = self.queue.ask(Request::Status).await?;
        let alarm = pb::PbAlarmMember { member_id: self.identity.member, alarm: ALARM_NO_SPACE };
        let alarms = if health.out_of_space { vec![alarm] } else { Vec::new() };
        Ok(Response::new(pb::PbAlarmResponse { header: self.identity.header(health.revision), alarms }))
    }

    async fn status(
        &self,
        _request: tonic::Request<pb::PbStatusRequest>,
    ) -> Result<Response<pb::PbStatusResponse>, Status> {
        let health = self.queue.ask(Request::Status).await?;
        let index = u64::try_from(health.revision.0).unwrap_or_default();
        let errors = if health.out_of_space { vec![mvcc::Error::NoSpace.to_string()] } else { Vec::new() };
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

    type SnapshotStream = tokio_stream::Empty<Result<pb::PbSnapshotResponse, Status>>;

    async fn snapshot(
        &self,
        request: tonic::Request<pb::PbSnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        self.queue.by(&request).ask(Request::Root).await?;
        Err(Status::unimplemented(
            "the embedded hub has no snapshots in etcd's format; copy its data with `etcdctl make-mirror`",
        ))
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
