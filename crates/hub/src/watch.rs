//! The Watch service: one stream's side of [`watchers`](crate::watchers).
//!
//! Takes the client's requests to the apply thread and turns what comes back into messages. Invariants: messages go
//! out in the order in which the apply thread queued them; the client's next request is not read before there is
//! room for the answer to the last one, so a client that only asks and never reads stops itself.

use crate::convert;
use crate::request::{Queue, Request, WatchKind, WatchRequest, status};
use crate::stop::Until;
use crate::storage::Identity;
use crate::watchers::{Delivery, OUTGOING, Outgoing, StreamId};
use etcd_client::proto as pb;
use mvcc::{KeyRange, Revision, Watcher};
use prost::Message;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Response, Status, Streaming};

/// Where an answer is split if its watcher allows fragments; etcd's (1.5 MiB and half a MiB of overhead).
const FRAGMENT_BYTES: usize = 2 << 20;

/// Where an answer is split between revisions, fragments or not: clients take up to 4 MiB by default.
const ANSWER_BYTES: usize = 1 << 20;

pub(crate) struct WatchService {
    pub(crate) queue: Queue,
    pub(crate) identity: Identity,
    pub(crate) stop: CancellationToken,
    pub(crate) next_stream: AtomicU64,
}

#[tonic::async_trait]
impl pb::PbWatchService for WatchService {
    type WatchStream = Until<WatchStream>;

    async fn watch(
        &self,
        request: tonic::Request<Streaming<pb::PbWatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (sender, outgoing) = mpsc::channel(OUTGOING);
        let stream = WatchStream {
            id: self.next_stream.fetch_add(1, Ordering::Relaxed),
            queue: self.queue.by(&request),
            identity: self.identity,
            requests: request.into_inner(),
            asking: None,
            sender,
            outgoing,
            ready: VecDeque::new(),
        };
        Ok(Response::new(Until::new(stream, self.stop.clone())))
    }
}

type Asking = Pin<Box<dyn Future<Output = Result<(), Status>> + Send>>;

/// The answers of one stream.
pub(crate) struct WatchStream {
    id: StreamId,
    queue: Queue,
    identity: Identity,
    requests: Streaming<pb::PbWatchRequest>,
    /// A request on its way to the apply thread.
    asking: Option<Asking>,
    sender: mpsc::Sender<Outgoing>,
    outgoing: mpsc::Receiver<Outgoing>,
    /// Answers made of the last message.
    ready: VecDeque<pb::PbWatchResponse>,
}

impl Stream for WatchStream {
    type Item = Result<pb::PbWatchResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(answer) = this.ready.pop_front() {
                return Poll::Ready(Some(Ok(answer)));
            }
            match this.outgoing.poll_recv(cx) {
                Poll::Ready(Some(outgoing)) => {
                    this.take(outgoing);
                    continue;
                }
                Poll::Ready(None) => return Poll::Ready(Some(Err(status(mvcc::Error::Stopped)))),
                Poll::Pending => {}
            }
            if let Some(asking) = &mut this.asking {
                let asked = ready!(asking.as_mut().poll(cx));
                this.asking = None;
                if let Err(error) = asked {
                    return Poll::Ready(Some(Err(error)));
                }
                continue;
            }
            match ready!(Pin::new(&mut this.requests).poll_next(cx)) {
                Some(Ok(request)) => this.ask(request),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None), // the client is done
            }
        }
    }
}

impl WatchStream {
    fn ask(&mut self, request: pb::PbWatchRequest) {
        use pb::PbWatchRequestUnion as Union;
        let kind = match request.request_union {
            Some(Union::CreateRequest(create)) => {
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
            Some(Union::CancelRequest(cancel)) => WatchKind::Cancel { id: cancel.watch_id },
            Some(Union::ProgressRequest(_)) => WatchKind::Progress,
            None => return, // a kind of a later version; etcd ignores it too
        };
        let (stream, queue, outgoing) = (self.id, self.queue.clone(), self.sender.clone());
        self.asking = Some(Box::pin(async move {
            let stopped = |_| status(mvcc::Error::Stopped);
            let permit = outgoing.clone().reserve_owned().await.map_err(stopped)?;
            queue.send(Request::Watch(WatchRequest { stream, outgoing, permit, kind })).await
        }));
    }

    /// Makes answers of a message.
    fn take(&mut self, outgoing: Outgoing) {
        let blank = |identity: &Identity, id, revision| pb::PbWatchResponse {
            header: identity.header(revision),
            watch_id: id,
            ..Default::default()
        };
        let identity = self.identity;
        match outgoing {
            Outgoing::Created { id, revision } => {
                self.ready.push_back(pb::PbWatchResponse { created: true, ..blank(&identity, id, revision) });
            }
            Outgoing::Refused { id, revision, reason } => self.ready.push_back(pb::PbWatchResponse {
                created: true,
                canceled: true,
                cancel_reason: reason,
                ..blank(&identity, id, revision)
            }),
            Outgoing::Canceled { id, revision, compacted } => self.ready.push_back(pb::PbWatchResponse {
                canceled: true,
                compact_revision: compacted.map_or(0, |revision| revision.0),
                cancel_reason: compacted.map_or_else(String::new, |_| mvcc::Error::Compacted.to_string()),
                ..blank(&identity, id, revision)
            }),
            Outgoing::Progress { id, revision } => self.ready.push_back(blank(&identity, id, revision)),
            Outgoing::Events { revision, deliveries } => {
                for delivery in deliveries {
                    let blank = blank(&identity, delivery.id, revision);
                    split(&delivery, |events, fragment| {
                        self.ready.push_back(pb::PbWatchResponse { events, fragment, ..blank.clone() });
                    });
                }
            }
        }
    }
}

/// Makes answers of at most about [`ANSWER_BYTES`] of a delivery. A revision is divided only if its watcher
/// allows fragments; the second argument of `answer` says whether more of the same follows.
fn split(delivery: &Delivery, mut answer: impl FnMut(Vec<pb::PbEvent>, bool)) {
    let mut events: Vec<pb::PbEvent> = Vec::new();
    let mut size = 0;
    for batch in &delivery.batches {
        if size >= ANSWER_BYTES {
            answer(std::mem::take(&mut events), false);
            size = 0;
        }
        for event in delivery.watcher.select(batch) {
            let event = convert::event(event);
            let bytes = event.encoded_len();
            if delivery.fragment && size + bytes > FRAGMENT_BYTES && !events.is_empty() {
                answer(std::mem::take(&mut events), true);
                size = 0;
            }
            size += bytes;
            events.push(event);
        }
    }
    if !events.is_empty() {
        answer(events, false);
    }
}
