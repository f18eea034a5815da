//! The Watch service: takes what clients ask of [`watchers`](crate::watchers) to the apply thread.
//!
//! What goes back is in [`answers`]. Written by hand rather than generated, so that an event which a thousand streams
//! want is encoded once and the bytes are shared. Invariant: the client's next request is not read before there is room
//! for the answer to the last one, so a client that only asks and never reads stops itself.

/// From the apply thread's messages to the bytes of a stream.
mod answers;

use crate::caller::Peer;
use crate::request::{Queue, Request, WatchKind, WatchRequest, status};
use crate::rpc;
use crate::storage::Identity;
use crate::watchers::{OUTGOING, Outgoing, StreamId};
use crate::wire::Prost;
use answers::Answers;
use etcd_client::proto as pb;
use mvcc::{KeyRange, Revision, Watcher};
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::task::{Context, Poll};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::codec::Codec;
use tonic::codegen::{Service, http};
use tonic::metadata::GRPC_CONTENT_TYPE;
use tonic::server::NamedService;
use tonic::{Status, Streaming};

#[derive(Clone)]
pub(crate) struct WatchService {
    pub(crate) queue: Queue,
    pub(crate) identity: Identity,
    pub(crate) stop: CancellationToken,
}

impl WatchService {
    fn watch(&self, request: http::Request<Body>) -> http::Response<Body> {
        // As a generated service without compression refuses it.
        let compressed =
            request.headers().get("grpc-encoding").is_some_and(|encoding| encoding != "identity");
        if compressed {
            return Status::unimplemented("compressed requests are not supported").into_http();
        }
        let request = request.map(|body| {
            let mut codec = Prost::<pb::PbWatchResponse, pb::PbWatchRequest>::default();
            Streaming::new_request(codec.decoder(), body, None, None)
        });
        let request = tonic::Request::from_http(request);
        let (sender, outgoing) = mpsc::channel(OUTGOING);
        let asker = Asker {
            stream: StreamId::new(request.extensions().get::<Peer>().map_or(0, |peer| peer.connection)),
            queue: self.queue.by(&request),
            sender,
        };
        let asking = asker.run(request.into_inner(), self.stop.clone());
        let mut response = http::Response::new(Body::new(Answers::new(self.identity, outgoing, asking)));
        response.headers_mut().insert(http::header::CONTENT_TYPE, GRPC_CONTENT_TYPE);
        response
    }
}

impl NamedService for WatchService {
    const NAME: &'static str = "etcdserverpb.Watch";
}

impl Service<http::Request<Body>> for WatchService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        ready(Ok(match request.uri().path() {
            "/etcdserverpb.Watch/Watch" => self.watch(request),
            path => rpc::unknown_method(Self::NAME, path),
        }))
    }
}

/// One stream's way to the apply thread.
struct Asker {
    stream: StreamId,
    queue: Queue,
    sender: mpsc::Sender<Outgoing>,
}

impl Asker {
    /// Asks what the client asks, until it is done, something fails, or the hub stops.
    async fn run(
        self,
        requests: Streaming<pb::PbWatchRequest>,
        stop: CancellationToken,
    ) -> Result<(), Status> {
        let stopped = stop.run_until_cancelled(self.ask_all(requests)).await;
        stopped.unwrap_or_else(|| Err(status(mvcc::Error::Stopped)))
    }

    async fn ask_all(&self, mut requests: Streaming<pb::PbWatchRequest>) -> Result<(), Status> {
        while let Some(request) = requests.next().await {
            let Some(kind) = kind(request?) else { continue };
            let permit = self.sender.clone().reserve_owned().await;
            let permit = permit.map_err(|_| status(mvcc::Error::Stopped))?;
            let (stream, outgoing) = (self.stream, self.sender.clone());
            self.queue.send(Request::Watch(WatchRequest { stream, outgoing, permit, kind })).await?;
        }
        Ok(())
    }
}

/// What a request asks; none if it is of a kind of a later version, which etcd ignores too.
fn kind(request: pb::PbWatchRequest) -> Option<WatchKind> {
    use pb::PbWatchRequestUnion as Union;
    Some(match request.request_union? {
        Union::CreateRequest(create) => {
            // Unlike elsewhere, no key is the first key.
            let key = if create.key.is_empty() { vec![0] } else { create.key };
            let watcher = Watcher {
                range: KeyRange::from_wire(key, create.range_end),
                no_put: create.filters.contains(&0),
                no_delete: create.filters.contains(&1),
                prev_kv: create.prev_kv,
            };
            WatchKind::Create {
                id: create.watch_id,
                watcher,
                start: Revision(create.start_revision),
                progress_notify: create.progress_notify,
                fragment: create.fragment,
            }
        }
        Union::CancelRequest(cancel) => WatchKind::Cancel { id: cancel.watch_id },
        Union::ProgressRequest(_) => WatchKind::Progress,
    })
}
