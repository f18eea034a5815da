//! What goes out of one watch stream: the apply thread's messages as gRPC messages.
//!
//! A turn of the apply thread that concerns a thousand streams wakes a thousand of these, so what each does for an event
//! is little: it takes the message and passes on bytes that the first of them has encoded. Invariants: messages go out
//! in the order in which the apply thread queued them; what is kept encoded is bounded ([`SHARED_BYTES`]).

use crate::convert;
use crate::request::status;
use crate::storage::Identity;
use crate::watchers::{Delivery, Outgoing, Share};
use bytes::{BufMut, Bytes, BytesMut};
use etcd_client::proto as pb;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use http_body::{Body, Frame};
use mvcc::Revision;
use prost::Message;
use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::mpsc;
use tonic::codegen::http::HeaderMap;
use tonic::{Code, Status};

/// Where an answer is split if its watcher allows fragments; etcd's (1.5 MiB and half a MiB of overhead).
const FRAGMENT_BYTES: usize = 2 << 20;

/// Where an answer is split between revisions, fragments or not: clients take up to 4 MiB by default.
const ANSWER_BYTES: usize = 1 << 20;

/// A delivery of more keys and values than this is encoded by each stream as it sends it: a stream that lags would keep
/// the bytes for long, and beside the sending of so much the encoding does not count.
const SHARED_BYTES: usize = 64 << 10;

/// Answers that are ready go to the connection together up to this size, two frames of HTTP/2.
const CHUNK_BYTES: usize = 32 << 10;

/// Before a message: not compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// The body of one stream's response.
pub(crate) struct Answers {
    identity: Identity,
    outgoing: mpsc::Receiver<Outgoing>,
    /// The client's requests on their way, until there are no more. In this form because it is then polled only when
    /// it was woken, and not with every event.
    asking: FuturesUnordered<BoxFuture<'static, Result<(), Status>>>,
    /// Answers made of a delivery that is not shared.
    ready: VecDeque<pb::PbWatchResponse>,
    /// How the stream ends, once it does.
    end: Option<Status>,
    ended: bool,
}

impl Answers {
    pub(crate) fn new(
        identity: Identity,
        outgoing: mpsc::Receiver<Outgoing>,
        asking: impl Future<Output = Result<(), Status>> + Send + 'static,
    ) -> Self {
        let asking: BoxFuture<'static, _> = Box::pin(asking);
        let asking = FuturesUnordered::from_iter([asking]);
        Self { identity, outgoing, asking, ready: VecDeque::new(), end: None, ended: false }
    }

    /// Makes answers of a message.
    fn take(&mut self, outgoing: Outgoing, chunk: &mut Chunk) {
        let blank = |id, revision| blank(self.identity, id, revision);
        let answer = match outgoing {
            Outgoing::Events(delivery) => {
                match delivery.encoded.get_or_init(|| encode(self.identity, &delivery)) {
                    Some(encoded) => chunk.push(encoded.clone()),
                    None => answers(self.identity, &delivery, |answer| self.ready.push_back(answer)),
                }
                return;
            }
            Outgoing::Created { id, revision } => {
                pb::PbWatchResponse { created: true, ..blank(id, revision) }
            }
            Outgoing::Refused { id, revision, reason } => pb::PbWatchResponse {
                created: true,
                canceled: true,
                cancel_reason: reason,
                ..blank(id, revision)
            },
            Outgoing::Canceled { id, revision, compacted } => pb::PbWatchResponse {
                canceled: true,
                compact_revision: compacted.map_or(0, |revision| revision.0),
                cancel_reason: compacted.map_or_else(String::new, |_| mvcc::Error::Compacted.to_string()),
                ..blank(id, revision)
            },
            Outgoing::Progress { id, revision } => blank(id, revision),
        };
        chunk.push(message(&answer));
    }
}

impl Body for Answers {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let mut chunk = Chunk::default();
        while chunk.len() < CHUNK_BYTES && this.end.is_none() {
            if let Some(answer) = this.ready.pop_front() {
                chunk.push(message(&answer));
                continue;
            }
            match this.outgoing.poll_recv(cx) {
                Poll::Ready(Some(outgoing)) => {
                    this.take(outgoing, &mut chunk);
                    continue;
                }
                Poll::Ready(None) => this.end = Some(status(mvcc::Error::Stopped)),
                Poll::Pending => {}
            }
            match this.asking.poll_next_unpin(cx) {
                Poll::Ready(Some(Err(error))) => this.end = Some(error),
                Poll::Ready(Some(Ok(())) | None) => this.end = Some(Status::new(Code::Ok, "")),
                Poll::Pending => break,
            }
        }
        if let Some(bytes) = chunk.bytes() {
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        match &this.end {
            _ if this.ended => Poll::Ready(None),
            Some(end) => {
                this.ended = true;
                let mut trailers = HeaderMap::new();
                Poll::Ready(Some(end.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
            }
            None => Poll::Pending,
        }
    }
}

/// Messages that go out together. One is passed on as it is.
#[derive(Default)]
struct Chunk {
    first: Option<Bytes>,
    more: BytesMut,
}

impl Chunk {
    fn len(&self) -> usize {
        self.first.as_ref().map_or(0, Bytes::len) + self.more.len()
    }

    /// Takes up a message, or several in one piece, or nothing: filters may leave nothing of a delivery.
    fn push(&mut self, message: Bytes) {
        if message.is_empty() {
            return;
        }
        match self.first.take() {
            None if self.more.is_empty() => self.first = Some(message),
            first => {
                self.more.reserve(first.as_ref().map_or(0, Bytes::len) + message.len());
                self.more.extend(first);
                self.more.put(message);
            }
        }
    }

    fn bytes(self) -> Option<Bytes> {
        self.first.or_else(|| (!self.more.is_empty()).then(|| self.more.freeze()))
    }
}

fn blank(identity: Identity, id: i64, revision: Revision) -> pb::PbWatchResponse {
    pb::PbWatchResponse { header: identity.header(revision), watch_id: id, ..Default::default() }
}

/// A message as gRPC sends it.
fn message(answer: &pb::PbWatchResponse) -> Bytes {
    let mut buffer = BytesMut::with_capacity(PREFIX_BYTES + answer.encoded_len());
    append(&mut buffer, answer);
    buffer.freeze()
}

fn append(buffer: &mut BytesMut, answer: &pb::PbWatchResponse) {
    let length = u32::try_from(answer.encoded_len()).expect("all that the hub holds is less than 4 GiB");
    buffer.put_u8(0);
    buffer.put_u32(length);
    answer.encode(buffer).expect("the buffer grows");
}

/// All answers that a delivery makes, for every stream that has it; none if they are large.
fn encode(identity: Identity, delivery: &Delivery) -> Option<Bytes> {
    let mut size = 0;
    for share in &delivery.shares {
        for event in share.batches.iter().flat_map(|batch| &batch.events) {
            let before = event.prev_kv.as_ref().map_or(0, |kv| kv.key.len() + kv.value.len());
            size += event.kv.key.len() + event.kv.value.len() + before;
            if size > SHARED_BYTES {
                return None;
            }
        }
    }
    let mut buffer = BytesMut::new();
    answers(identity, delivery, |answer| append(&mut buffer, &answer));
    Some(buffer.freeze())
}

/// Makes the answers of a delivery.
fn answers(identity: Identity, delivery: &Delivery, mut answer: impl FnMut(pb::PbWatchResponse)) {
    for share in &delivery.shares {
        let blank = blank(identity, share.id, delivery.revision);
        split(share, |events, fragment| {
            answer(pb::PbWatchResponse { events, fragment, ..blank.clone() });
        });
    }
}

/// Makes answers of at most about [`ANSWER_BYTES`] of what a watcher gets. A revision is divided only if its watcher
/// allows fragments; the second argument of `answer` says whether more of the same follows.
fn split(share: &Share, mut answer: impl FnMut(Vec<pb::PbEvent>, bool)) {
    let mut events: Vec<pb::PbEvent> = Vec::new();
    let mut size = 0;
    for batch in &share.batches {
        if size >= ANSWER_BYTES {
            answer(std::mem::take(&mut events), false);
            size = 0;
        }
        for event in share.watcher.select(batch) {
            let event = convert::event(event);
            let bytes = event.encoded_len();
            if share.fragment && size + bytes > FRAGMENT_BYTES && !events.is_empty() {
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
