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
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;
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

impl NamedService for LeaseService {
    const NAME: &'static str = "etcdserverpb.Lease";
}

impl Service<http::Request<Body>> for LeaseService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            let service = &service;
            let path = request.uri().path().to_owned();
            Ok(match path.as_str() {
                "/etcdserverpb.Lease/LeaseKeepAlive" => {
                    rpc::both_streaming(request, |request| service.lease_keep_alive(request)).await
                }
                "/etcdserverpb.Lease/LeaseGrant" => {
                    rpc::unary(request, |request| service.lease_grant(request)).await
                }
                "/etcdserverpb.Lease/LeaseRevoke" => {
                    rpc::unary(request, |request| service.lease_revoke(request)).await
                }
                "/etcdserverpb.Lease/LeaseTimeToLive" => {
                    rpc::unary(request, |request| service.lease_time_to_live(request)).await
                }
                "/etcdserverpb.Lease/LeaseLeases" => {
                    rpc::unary(request, |request| service.lease_leases(request)).await
                }
                path => rpc::unknown_method(Self::NAME, path),
            })
        })
    }
}
