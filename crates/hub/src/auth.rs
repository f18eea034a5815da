//! The Auth service of a hub that has no users.
//!
//! etcd-client keeps two of this service's messages to itself, so tonic's generated trait cannot be implemented from
//! outside; the service is therefore written by hand on the path of each call. Invariant: whoever asks whether there
//! is authentication is told no; whoever tries it gets etcd's own refusal.

use crate::request::{Queue, Request};
use crate::storage::Identity;
use crate::wire::Prost;
use etcd_client::proto as pb;
use std::convert::Infallible;
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Response, Status};

#[derive(Clone)]
pub(crate) struct AuthService {
    pub(crate) queue: Queue,
    pub(crate) identity: Identity,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AuthStatusResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<pb::PbResponseHeader>,
    #[prost(bool, tag = "2")]
    enabled: bool,
    #[prost(uint64, tag = "3")]
    auth_revision: u64,
}

/// A request whose content does not matter.
#[derive(Clone, PartialEq, prost::Message)]
struct Anything {}

struct AuthStatus(AuthService);

impl UnaryService<Anything> for AuthStatus {
    type Response = AuthStatusResponse;
    type Future = BoxFuture<Response<AuthStatusResponse>, Status>;

    fn call(&mut self, _request: tonic::Request<Anything>) -> Self::Future {
        let AuthService { queue, identity } = self.0.clone();
        Box::pin(async move {
            let health = queue.ask(Request::Status).await?;
            let header = identity.header(health.revision);
            Ok(Response::new(AuthStatusResponse { header, enabled: false, auth_revision: 1 }))
        })
    }
}

impl NamedService for AuthService {
    const NAME: &'static str = "etcdserverpb.Auth";
}

impl Service<http::Request<Body>> for AuthService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            Ok(match request.uri().path() {
                "/etcdserverpb.Auth/AuthStatus" => {
                    Grpc::new(Prost::default()).unary(AuthStatus(service), request).await
                }
                "/etcdserverpb.Auth/Authenticate" => {
                    Status::failed_precondition("etcdserver: authentication is not enabled").into_http()
                }
                _ => Status::unimplemented("the embedded hub has no users").into_http(),
            })
        })
    }
}
