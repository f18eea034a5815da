//! The KV service.
//!
//! Invariant: what etcd limits before it looks at the state (the size of a write) is limited here; all else is the
//! store's.

use crate::convert;
use crate::range_stream;
use crate::request::{Queue, Request, status};
use crate::rpc;
use crate::storage::Identity;
use etcd_client::proto as pb;
use mvcc::{Error, Revision};
use prost::Message;
use std::convert::Infallible;
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;
use tonic::{Response, Status};

/// The largest write; etcd's default. Larger ones would stall everybody behind them.
pub(crate) const MAX_REQUEST_BYTES: usize = 3 << 19;

#[derive(Clone)]
pub(crate) struct KvService {
    pub(crate) queue: Queue,
    pub(crate) identity: Identity,
}

fn check_size(request: &impl Message) -> Result<(), Status> {
    if request.encoded_len() > MAX_REQUEST_BYTES { Err(status(Error::RequestTooLarge)) } else { Ok(()) }
}

impl KvService {
    async fn range(
        &self,
        request: tonic::Request<pb::PbRangeRequest>,
    ) -> Result<Response<pb::PbRangeResponse>, Status> {
        let queue = self.queue.by(&request);
        let request = convert::range_request(request.into_inner()).map_err(status)?;
        let response = queue.ask(|reply| Request::Range(request, reply)).await?;
        let header = self.identity.header(response.revision);
        Ok(Response::new(convert::range_response(response, header)))
    }

    async fn range_stream(
        &self,
        request: tonic::Request<pb::PbRangeRequest>,
    ) -> Result<Response<range_stream::Parts>, Status> {
        let queue = self.queue.clone();
        range_stream::range_stream(queue, self.identity, request.into_inner()).await.map(Response::new)
    }

    async fn put(
        &self,
        request: tonic::Request<pb::PbPutRequest>,
    ) -> Result<Response<pb::PbPutResponse>, Status> {
        check_size(request.get_ref())?;
        let queue = self.queue.by(&request);
        let request = convert::put_request(request.into_inner());
        let response = queue.ask(|reply| Request::Put(request, reply)).await?;
        let header = self.identity.header(response.revision);
        Ok(Response::new(convert::put_response(response, header)))
    }

    async fn delete_range(
        &self,
        request: tonic::Request<pb::PbDeleteRequest>,
    ) -> Result<Response<pb::PbDeleteResponse>, Status> {
        check_size(request.get_ref())?;
        let queue = self.queue.by(&request);
        let request = convert::delete_request(request.into_inner());
        let response = queue.ask(|reply| Request::DeleteRange(request, reply)).await?;
        let header = self.identity.header(response.revision);
        Ok(Response::new(convert::delete_response(response, header)))
    }

    async fn txn(
        &self,
        request: tonic::Request<pb::PbTxnRequest>,
    ) -> Result<Response<pb::PbTxnResponse>, Status> {
        check_size(request.get_ref())?;
        let queue = self.queue.by(&request);
        let request = convert::txn_request(request.into_inner());
        let response = queue.ask(|reply| Request::Txn(request, reply)).await?;
        let header = self.identity.header(response.revision);
        Ok(Response::new(convert::txn_response(response, header)))
    }

    async fn compact(
        &self,
        request: tonic::Request<pb::PbCompactionRequest>,
    ) -> Result<Response<pb::PbCompactionResponse>, Status> {
        let queue = self.queue.by(&request);
        // `physical` waits for nothing here: what is compacted leaves memory at once, and the disk with a snapshot.
        let revision = Revision(request.into_inner().revision);
        let response = queue.ask(|reply| Request::Compact { revision, reply }).await?;
        Ok(Response::new(pb::PbCompactionResponse { header: self.identity.header(response.revision) }))
    }
}

impl NamedService for KvService {
    const NAME: &'static str = "etcdserverpb.KV";
}

impl Service<http::Request<Body>> for KvService {
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
                "/etcdserverpb.KV/Range" => rpc::unary(request, |request| service.range(request)).await,
                "/etcdserverpb.KV/Put" => rpc::unary(request, |request| service.put(request)).await,
                "/etcdserverpb.KV/Txn" => rpc::unary(request, |request| service.txn(request)).await,
                "/etcdserverpb.KV/DeleteRange" => {
                    rpc::unary(request, |request| service.delete_range(request)).await
                }
                "/etcdserverpb.KV/Compact" => rpc::unary(request, |request| service.compact(request)).await,
                "/etcdserverpb.KV/RangeStream" => {
                    rpc::streaming(request, |request| service.range_stream(request)).await
                }
                path => rpc::unknown_method(Self::NAME, path),
            })
        })
    }
}
