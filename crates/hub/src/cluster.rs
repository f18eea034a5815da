//! The Cluster service: a cluster of one.
//!
//! Invariant: members cannot be changed. High availability is a real etcd cluster's.

use crate::request::{Queue, Request};
use crate::storage::Identity;
use etcd_client::proto as pb;
use tonic::{Response, Status};

pub(crate) struct ClusterService {
    pub(crate) queue: Queue,
    pub(crate) identity: Identity,
    pub(crate) name: String,
    /// The URL that clients should use.
    pub(crate) advertise: String,
}

/// Only for root even so: whoever may not ask should not learn what would be.
async fn fixed<Q, A>(queue: &Queue, request: tonic::Request<Q>) -> Result<Response<A>, Status> {
    queue.by(&request).ask(Request::Root).await?;
    Err(Status::unimplemented("the embedded hub is one member; for more, move to an etcd cluster"))
}

#[tonic::async_trait]
impl pb::PbClusterService for ClusterService {
    async fn member_list(
        &self,
        _request: tonic::Request<pb::PbMemberListRequest>,
    ) -> Result<Response<pb::PbMemberListResponse>, Status> {
        let health = self.queue.ask(Request::Status).await?;
        let member = pb::PbMember {
            id: self.identity.member,
            name: self.name.clone(),
            client_ur_ls: vec![self.advertise.clone()],
            ..Default::default()
        };
        let header = self.identity.header(health.revision);
        Ok(Response::new(pb::PbMemberListResponse { header, members: vec![member] }))
    }

    async fn member_add(
        &self,
        request: tonic::Request<pb::PbMemberAddRequest>,
    ) -> Result<Response<pb::PbMemberAddResponse>, Status> {
        fixed(&self.queue, request).await
    }

    async fn member_remove(
        &self,
        request: tonic::Request<pb::PbMemberRemoveRequest>,
    ) -> Result<Response<pb::PbMemberRemoveResponse>, Status> {
        fixed(&self.queue, request).await
    }

    async fn member_update(
        &self,
        request: tonic::Request<pb::PbMemberUpdateRequest>,
    ) -> Result<Response<pb::PbMemberUpdateResponse>, Status> {
        fixed(&self.queue, request).await
    }

    async fn member_promote(
        &self,
        request: tonic::Request<pb::PbMemberPromoteRequest>,
    ) -> Result<Response<pb::PbMemberPromoteResponse>, Status> {
        fixed(&self.queue, request).await
    }
}
