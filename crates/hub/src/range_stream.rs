//! KV.RangeStream: a range in parts, so that a long one is never in memory, or in one message, as a whole.
//!
//! The first part fixes the revision; each further one asks for what follows the last key at that revision.
//! Invariant: the parts merged are the answer that Range would have given; header, `more` and `count` come with the
//! last part only. Orders other than by key, and filters, cannot be answered in parts; etcd 3.7 refuses them too.

use crate::convert;
use crate::request::{Queue, Request, status};
use crate::storage::Identity;
use etcd_client::proto as pb;
use futures_util::StreamExt;
use mvcc::{KeyRange, RangeRequest, RangeResponse, Revision, SortOrder, SortTarget};
use std::pin::Pin;
use tokio_stream::Stream;
use tonic::Status;

/// Keys in a part; with small values some dozens of KiB.
const PART: i64 = 512;

/// Bytes after which a part ends whatever its keys: clients take 4 MiB by default, and one value may have 1.5.
const PART_BYTES: usize = 1 << 20;

/// The parts.
pub(crate) type Parts = Pin<Box<dyn Stream<Item = Result<pb::PbRangeStreamResponse, Status>> + Send>>;

struct State {
    queue: Queue,
    identity: Identity,
    request: RangeRequest,
    /// Keys that the client still wants; 0 is all.
    left: i64,
    first: Option<RangeResponse>,
    count: i64,
    done: bool,
}

/// Begins; what Range refuses is refused before the first part.
pub(crate) async fn range_stream(
    queue: Queue,
    identity: Identity,
    request: pb::PbRangeRequest,
) -> Result<Parts, Status> {
    let end = request.range_end.clone();
    let mut request = convert::range_request(request).map_err(status)?;
    let none = Revision(0);
    let filtered = [
        request.min_mod_revision,
        request.max_mod_revision,
        request.min_create_revision,
        request.max_create_revision,
    ]
    .iter()
    .any(|bound| *bound != none);
    let sorted = request.sort_target != SortTarget::Key || request.sort_order == SortOrder::Descend;
    if filtered || sorted {
        return Err(Status::unimplemented("etcdserver: RangeStream has no orders and no filters"));
    }
    let left = request.limit.max(0);
    request.limit = if left == 0 { PART } else { left.min(PART) };
    let asked = request.clone();
    let first = queue.ask(|reply| Request::Range(asked, reply)).await?;
    if request.revision.0 <= 0 {
        request.revision = first.revision;
    }
    let count = first.count;
    let state = State { queue, identity, request, left, first: Some(first), count, done: false };
    Ok(futures_util::stream::unfold((state, end), |(state, end)| next(state, end)).boxed())
}

type Part = Result<pb::PbRangeStreamResponse, Status>;

async fn next(mut state: State, end: Vec<u8>) -> Option<(Part, (State, Vec<u8>))> {
    if state.done {
        return None;
    }
    let mut response = match state.first.take() {
        Some(first) => first,
        None => {
            let request = state.request.clone();
            match state.queue.ask(|reply| Request::Range(request, reply)).await {
                Ok(response) => response,
                Err(status) => {
                    state.done = true;
                    return Some((Err(status), (state, end)));
                }
            }
        }
    };
    let mut bytes = 0;
    let whole = response.kvs.iter().take_while(|kv| {
        let room = bytes < PART_BYTES;
        bytes += kv.key.len() + kv.value.len();
        room
    });
    let whole = whole.count();
    if whole < response.kvs.len() {
        response.kvs.truncate(whole);
        response.more = true;
    }
    let sent = i64::try_from(response.kvs.len()).unwrap_or(i64::MAX);
    let satisfied = state.left != 0 && sent >= state.left;
    state.done = satisfied || !response.more || response.kvs.is_empty();
    let mut part = if state.done {
        let header = state.identity.header(response.revision);
        convert::range_response(response, header)
    } else {
        if let Some(last) = response.kvs.last() {
            let mut key = last.key.to_vec();
            key.push(0); // the next possible key
            state.request.range = KeyRange::from_wire(key, end.clone());
        }
        if state.left != 0 {
            state.left -= sent;
            state.request.limit = state.left.min(PART);
        }
        pb::PbRangeResponse { more: false, count: 0, ..convert::range_response(response, None) }
    };
    if state.done {
        part.count = state.count;
    }
    Some((Ok(pb::PbRangeStreamResponse { range_response: Some(part) }), (state, end)))
}
