//! The Lease service.
//!
//! Invariant: a keepalive stream answers each request once and in order, and an unknown lease is an answer of zero
//! seconds, not an error.

use crate::request::{Queue, Request};
use crate::rpc;
use crate::stop::Until;
use crate::storage::{Identity, random_id};
use etcd_client::proto as pb;
use futures_util::StreamExt;
use mvcc::{LeaseGrantRequest, LeaseId};
use std::pin::Pin;
use std::time::Instant;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::codegen::http;
use tonic::{Response, Status};

/// Answers of one stream.
type KeepAlives = Pin<Box<dyn Stream<Item = Result<pb::PbLeaseKeepAliveResponse, Status>> + Send>>;

#[derive(Clone)]
pub(crate) struct LeaseService {
    pub(crate) queue: Queue,
    pub(crate) identity: Identity,
    pub(crate) stop: CancellationToken,
}

impl LeaseService {
    async fn lease_grant(
        &self,
        request: tonic::Request<pb::PbLeaseGrantRequest>,
    ) -> Result<Response<pb::PbLeaseGrantResponse>, Status> {
        let queue = self.queue.by(&request);
        let pb::PbLeaseGrantRequest { ttl, id } = request.into_inner();
        let id = LeaseId(if id == 0 { random_id() } else { id });
        let grant = LeaseGrantRequest { id, ttl };
        let response = queue.ask(|reply| Request::LeaseGrant(grant, reply)).await?;
        Ok(Response::new(pb::PbLeaseGrantResponse {
            header: self.identity.header(response.revision),
            id: response.id.0,
            ttl: response.ttl,
            error: String::new(),
        }))
    }

    async fn lease_revoke(
        &self,
        request: tonic::Request<pb::PbLeaseRevokeRequest>,
    ) -> Result<Response<pb::PbLeaseRevokeResponse>, Status> {
        let queue = self.queue.by(&request);
        let id = LeaseId(request.into_inner().id);
        let response = queue.ask(|reply| Request::LeaseRevoke(id, reply)).await?;
        Ok(Response::new(pb::PbLeaseRevokeResponse { header: self.identity.header(response.revision) }))
    }

    async fn lease_keep_alive(
        &self,
        request: tonic::Request<tonic::Streaming<pb::PbLeaseKeepAliveRequest>>,
    ) -> Result<Response<KeepAlives>, Status> {
        let (queue, identity) = (self.queue.by(&request), self.identity);
        let answers = request.into_inner().then(move |request| {
            let queue = queue.clone();
            async move {
                let id = LeaseId(request?.id);
                let arrived = Instant::now();
                let response = queue.ask(|reply| Request::LeaseKeepAlive { id, arrived, reply }).await?;
                let header = identity.header(response.revision);
                Ok(pb::PbLeaseKeepAliveResponse { header, id: response.id.0, ttl: response.ttl })
            }
        });
        Ok(Response::new(Box::pin(Until::new(answers, self.stop.clone()))))
    }

    async fn lease_time_to_live(
        &self,
        request: tonic::Request<pb::PbLeaseTimeToLiveRequest>,
    ) -> Result<Response<pb::PbLeaseTimeToLiveResponse>, Status> {
        let queue = self.queue.by(&request);
        let pb::PbLeaseTimeToLiveRequest { id, keys } = request.into_inner();
        let id = LeaseId(id);
        let response = queue.ask(|reply| Request::LeaseTimeToLive { id, keys, reply }).await?;
        Ok(Response::new(pb::PbLeaseTimeToLiveResponse {
            header: self.identity.header(response.revision),
            id: response.id.0,
            ttl: response.ttl,
            granted_ttl: response.granted_ttl,
            keys: response.keys.into_iter().map(Vec::from).collect(),
        }))
    }

    async fn lease_leases(
        &self,
        request: tonic::Request<pb::PbLeaseLeasesRequest>,
    ) -> Result<Response<pb::PbLeaseLeasesResponse>, Status> {
        let (revision, leases) = self.queue.by(&request).ask(Request::Leases).await?;
        Ok(Response::new(pb::PbLeaseLeasesResponse {
            header: self.identity.header(revision),
            leases: leases.into_iter().map(|id| pb::PbLeaseStatus { id: id.0 }).collect(),
        }))
    }
}

rpc::service!(LeaseService, "etcdserverpb.Lease", {
    "LeaseKeepAlive" => both_streaming lease_keep_alive,
    "LeaseGrant" => unary lease_grant,
    "LeaseRevoke" => unary lease_revoke,
    "LeaseTimeToLive" => unary lease_time_to_live,
    "LeaseLeases" => unary lease_leases,
});
