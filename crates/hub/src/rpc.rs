//! Calls of the services that are written by hand.
//!
//! etcd-client keeps some of etcd's messages to itself, so tonic's generated server traits cannot be implemented from
//! outside for every service; and the generated code has large buffers for small messages. Services match the path of a
//! call themselves and answer with what is here.
//! Invariant: the bytes on the wire are those of a generated service.

use crate::wire::Prost;
use prost::Message;
use tokio_stream::Stream;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::server::{Grpc, ServerStreamingService, StreamingService, UnaryService};
use tonic::{Request, Response, Status, Streaming};

/// A function as tonic's kind of service.
struct Answer<F>(F);

impl<F, Q, A, Fut> UnaryService<Q> for Answer<F>
where
    F: FnMut(Request<Q>) -> Fut,
    Fut: Future<Output = Result<Response<A>, Status>> + Send,
{
    type Response = A;
    type Future = Fut;

    fn call(&mut self, request: Request<Q>) -> Fut {
        (self.0)(request)
    }
}

impl<F, Q, A, S, Fut> ServerStreamingService<Q> for Answer<F>
where
    F: FnMut(Request<Q>) -> Fut,
    Fut: Future<Output = Result<Response<S>, Status>> + Send,
    S: Stream<Item = Result<A, Status>> + Send + 'static,
{
    type Response = A;
    type ResponseStream = S;
    type Future = Fut;

    fn call(&mut self, request: Request<Q>) -> Fut {
        (self.0)(request)
    }
}

impl<F, Q, A, S, Fut> StreamingService<Q> for Answer<F>
where
    F: FnMut(Request<Streaming<Q>>) -> Fut,
    Fut: Future<Output = Result<Response<S>, Status>> + Send,
    S: Stream<Item = Result<A, Status>> + Send + 'static,
{
    type Response = A;
    type ResponseStream = S;
    type Future = Fut;

    fn call(&mut self, requests: Request<Streaming<Q>>) -> Fut {
        (self.0)(requests)
    }
}

/// One request, one answer.
pub(crate) async fn unary<Q, A, Fut>(
    request: http::Request<Body>,
    answer: impl FnMut(Request<Q>) -> Fut,
) -> http::Response<Body>
where
    Q: Message + Default + Send + 'static,
    A: Message + Send + 'static,
    Fut: Future<Output = Result<Response<A>, Status>> + Send,
{
    Grpc::new(Prost::<A, Q>::default()).unary(Answer(answer), request).await
}

/// One request, a stream of answers.
pub(crate) async fn streaming<Q, A, S, Fut>(
    request: http::Request<Body>,
    answer: impl FnMut(Request<Q>) -> Fut,
) -> http::Response<Body>
where
    Q: Message + Default + Send + 'static,
    A: Message + Send + 'static,
    S: Stream<Item = Result<A, Status>> + Send + 'static,
    Fut: Future<Output = Result<Response<S>, Status>> + Send,
{
    Grpc::new(Prost::<A, Q>::default()).server_streaming(Answer(answer), request).await
}

/// A stream of requests, a stream of answers.
pub(crate) async fn both_streaming<Q, A, S, Fut>(
    request: http::Request<Body>,
    answer: impl FnMut(Request<Streaming<Q>>) -> Fut + Send,
) -> http::Response<Body>
where
    Q: Message + Default + Send + 'static,
    A: Message + Send + 'static,
    S: Stream<Item = Result<A, Status>> + Send + 'static,
    Fut: Future<Output = Result<Response<S>, Status>> + Send,
{
    Grpc::new(Prost::<A, Q>::default()).streaming(Answer(answer), request).await
}

/// The answer to a method that the service does not have; grpc-go's words.
pub(crate) fn unknown_method(service: &str, path: &str) -> http::Response<Body> {
    let method = path.rsplit('/').next().unwrap_or_default();
    Status::unimplemented(format!("unknown method {method} for service {service}")).into_http()
}

/// Makes a type a service: each method with what answers it, a function of the type, and how
/// ([`unary`], [`streaming`] or [`both_streaming`]).
macro_rules! service {
    ($service:ty, $name:literal, { $($method:literal => $how:ident $answer:ident,)* }) => {
        impl tonic::server::NamedService for $service {
            const NAME: &'static str = $name;
        }

        impl tonic::codegen::Service<http::Request<tonic::body::Body>> for $service {
            type Response = http::Response<tonic::body::Body>;
            type Error = std::convert::Infallible;
            type Future = tonic::codegen::BoxFuture<Self::Response, Self::Error>;

            fn poll_ready(
                &mut self,
                _cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<Result<(), Self::Error>> {
                std::task::Poll::Ready(Ok(()))
            }

            fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
                let service = self.clone();
                Box::pin(async move {
                    let service = &service;
                    let path = request.uri().path().to_owned();
                    Ok(match path.strip_prefix(concat!("/", $name, "/")).unwrap_or_default() {
                        $($method => $crate::rpc::$how(request, |request| service.$answer(request)).await,)*
                        _ => $crate::rpc::unknown_method($name, &path),
                    })
                })
            }
        }
    };
}
pub(crate) use service;
