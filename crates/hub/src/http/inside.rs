//! gRPC calls from inside the hub: how the HTTP APIs reach the services.
//!
//! They go through the same router as calls from outside, without the network, so that whatever guards the services
//! (users, permissions, limits) guards the HTTP APIs too. Invariant: a call carries the credentials of the HTTP
//! request that it serves, and nothing more.

use crate::wire::Prost;
use axum::Router;
use axum::http::{Extensions, HeaderMap, header::AUTHORIZATION};
use bytes::{Buf, BufMut, Bytes};
use prost::Message;
use tokio_stream::Stream;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Request, Status, Streaming};

/// The gRPC services.
#[derive(Clone)]
pub(crate) struct Services {
    router: Router,
}

/// Calls on behalf of one HTTP request.
#[derive(Clone)]
pub(crate) struct Caller {
    router: Router,
    token: Option<tonic::metadata::AsciiMetadataValue>,
    /// What the connection knows of its client (address, certificate).
    extensions: Extensions,
}

impl Services {
    pub(crate) fn new(router: Router) -> Self {
        Self { router }
    }

    /// Calls with the token that the request brings.
    pub(crate) fn caller(&self, headers: &HeaderMap, extensions: &Extensions) -> Caller {
        let token = headers.get(AUTHORIZATION).and_then(|value| value.as_bytes().try_into().ok());
        Caller { router: self.router.clone(), token, extensions: extensions.clone() }
    }
}

impl Caller {
    /// The same with another token; an empty one is none.
    pub(crate) fn with_token(mut self, token: &str) -> Self {
        self.token = if token.is_empty() { None } else { token.parse().ok() };
        self
    }

    fn client(&self) -> Grpc<Router> {
        Grpc::new(self.router.clone())
            .max_decoding_message_size(usize::MAX)
            .max_encoding_message_size(usize::MAX)
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("authorization", token.clone());
        }
        request.extensions_mut().extend(self.extensions.clone());
        request
    }

    /// One message for one.
    pub(crate) async fn call<T, U>(&self, path: &'static str, message: T) -> Result<U, Status>
    where
        T: Message + Send + 'static,
        U: Message + Default + Send + 'static,
    {
        let path = axum::http::uri::PathAndQuery::from_static(path);
        let codec = Prost::<T, U>::default();
        Ok(self.client().unary(self.request(message), path, codec).await?.into_inner())
    }

    /// Messages for messages.
    pub(crate) async fn stream<T, U>(
        &self,
        path: &'static str,
        messages: impl Stream<Item = T> + Send + 'static,
    ) -> Result<Streaming<U>, Status>
    where
        T: Message + Send + Sync + 'static,
        U: Message + Default + Send + 'static,
    {
        let path = axum::http::uri::PathAndQuery::from_static(path);
        let codec = Prost::<T, U>::default();
        Ok(self.client().streaming(self.request(messages), path, codec).await?.into_inner())
    }

    /// One encoded message for one.
    pub(crate) async fn call_encoded(&self, path: &'static str, message: Bytes) -> Result<Bytes, Status> {
        let path = axum::http::uri::PathAndQuery::from_static(path);
        Ok(self.client().unary(self.request(message), path, Encoded).await?.into_inner())
    }

    /// Encoded messages for encoded messages.
    pub(crate) async fn stream_encoded(
        &self,
        path: &'static str,
        messages: impl Stream<Item = Bytes> + Send + 'static,
    ) -> Result<Streaming<Bytes>, Status> {
        let path = axum::http::uri::PathAndQuery::from_static(path);
        Ok(self.client().streaming(self.request(messages), path, Encoded).await?.into_inner())
    }
}

/// Messages as they are on the wire.
struct Encoded;

impl Codec for Encoded {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Encoded {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Encoded {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = buffer.remaining();
        Ok(Some(buffer.copy_to_bytes(length)))
    }
}
