//! Protobuf requests as they are, for what a well-behaved client cannot say.

use etcd_client::proto::PbResponseHeader;
use prost::Message;
use std::marker::PhantomData;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

struct Prost<T, U>(PhantomData<fn() -> (T, U)>);

impl<T: Message + 'static, U: Message + Default + 'static> Codec for Prost<T, U> {
    type Encode = T;
    type Decode = U;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self(PhantomData)
    }

    fn decoder(&mut self) -> Self {
        Self(PhantomData)
    }
}

impl<T: Message, U> Encoder for Prost<T, U> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(buffer).unwrap();
        Ok(())
    }
}

impl<T, U: Message + Default> Decoder for Prost<T, U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        Ok(Some(U::decode(buffer).unwrap()))
    }
}

pub(crate) async fn channel(address: &str) -> Channel {
    Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

/// Calls `path` (`/etcdserverpb.KV/Put`).
pub(crate) async fn call<T, U>(channel: &Channel, path: &'static str, request: T) -> Result<U, Status>
where
    T: Message + 'static,
    U: Message + Default + 'static,
{
    call_as(None, channel, path, request).await
}

/// The same with a token.
pub(crate) async fn call_as<T, U>(
    token: Option<&str>,
    channel: &Channel,
    path: &'static str,
    request: T,
) -> Result<U, Status>
where
    T: Message + 'static,
    U: Message + Default + 'static,
{
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let path = path.parse().unwrap();
    let codec = Prost(PhantomData);
    let mut request = Request::new(request);
    if let Some(token) = token {
        request.metadata_mut().insert("token", token.parse().unwrap());
    }
    grpc.unary(request, path, codec).await.map(tonic::Response::into_inner)
}

/// Opens a stream each way.
pub(crate) async fn open<T, U>(
    channel: &Channel,
    path: &'static str,
    requests: mpsc::Receiver<T>,
) -> Result<Streaming<U>, Status>
where
    T: Message + 'static,
    U: Message + Default + 'static,
{
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let requests = Request::new(ReceiverStream::new(requests));
    grpc.streaming(requests, path.parse().unwrap(), Prost(PhantomData)).await.map(tonic::Response::into_inner)
}

/// Of a header only the revision can be compared between two servers.
pub(crate) fn only_revision(header: &mut Option<PbResponseHeader>) {
    if let Some(header) = header {
        *header = PbResponseHeader { revision: header.revision, ..Default::default() };
    }
}
