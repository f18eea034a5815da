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
use tonic::codegen::http;
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

rpc::service!(KvService, "etcdserverpb.KV", {
    "Range" => unary range,
    "Put" => unary put,
    "Txn" => unary txn,
    "DeleteRange" => unary delete_range,
    "Compact" => unary compact,
    "RangeStream" => streaming range_stream,
});
