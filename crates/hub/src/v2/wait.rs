//! Waiting: `wait=true`, on top of v3's watch.
//!
//! A v3 watch of the path and all below tells of revisions; what v2 says of a revision comes from the
//! [history](super::history) or, for writes that came through v3, is made of its events. Invariant: events come in
//! the order of their indices, none twice, and a client that waits for the index after the last one misses none.

use super::error::{Code, Refusal};
use super::form::{Ask, clean};
use super::history::{History, Watching};
use super::node::{Event, Node};
use super::tree::{below_end, ends, marker_key};
use crate::http::inside::Caller;
use etcd_client::proto as pb;
use futures_util::StreamExt;
use pb::PbWatchRequestUnion as Union;
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use tonic::Streaming;

/// A client that waits.
pub(crate) struct Wait {
    caller: Caller,
    history: Arc<History>,
    answers: Streaming<pb::PbWatchResponse>,
    path: String,
    recursive: bool,
    ready: VecDeque<Event>,
    /// The index when the waiting began.
    pub(crate) index: i64,
    _watching: Watching,
}

fn request(ask: &Ask) -> pb::PbWatchRequest {
    // The message's type is not exported under a name, so it is made where it is known.
    let mut union = Union::CreateRequest(Default::default());
    if let Union::CreateRequest(create) = &mut union {
        create.key = ask.path.clone().into_bytes();
        // Without what is below it still wants its marker, the first key below.
        let end = if ask.recursive { below_end(&ask.path) } else { format!("{}\0", marker_key(&ask.path)) };
        create.range_end = end.into_bytes();
        create.start_revision = i64::try_from(ask.wait_index).unwrap_or(i64::MAX);
        create.prev_kv = true;
    }
    pb::PbWatchRequest { request_union: Some(union) }
}

/// Begins.
pub(crate) async fn wait(caller: Caller, history: Arc<History>, ask: &Ask) -> Result<Wait, Refusal> {
    if ask.wait_index > 0 {
        check_history(&caller, ask).await?;
    }
    let messages = tokio_stream::once(request(ask)).chain(futures_util::stream::pending());
    let mut answers: Streaming<pb::PbWatchResponse> =
        caller.stream("/etcdserverpb.Watch/Watch", messages).await?;
    let first = answers.message().await?.unwrap_or_default();
    if first.canceled {
        return Err(Refusal::request(Code::Internal, first.cancel_reason));
    }
    Ok(Wait {
        caller,
        _watching: Arc::clone(&history).watching(),
        history,
        answers,
        path: ask.path.clone(),
        recursive: ask.recursive,
        ready: VecDeque::new(),
        index: first.header.map_or(0, |header| header.revision),
    })
}

/// Refuses an index whose history is gone.
async fn check_history(caller: &Caller, ask: &Ask) -> Result<(), Refusal> {
    let request = pb::PbRangeRequest {
        key: ask.path.clone().into_bytes(),
        revision: i64::try_from(ask.wait_index).unwrap_or(i64::MAX),
        count_only: true,
        ..Default::default()
    };
    let answer: Result<pb::PbRangeResponse, _> = caller.call("/etcdserverpb.KV/Range", request).await;
    match answer {
        Err(status) if status.message() == mvcc::Error::Compacted.to_string() => {
            let cause = format!("the requested history has been cleared [{}]", ask.wait_index);
            Err(Refusal::request(Code::EventIndexCleared, cause))
        }
        Err(status) if status.code() == tonic::Code::OutOfRange => Ok(()), // in the future
        Err(status) => Err(status.into()),
        Ok(_) => Ok(()),
    }
}

impl Wait {
    /// The next event; none if the hub stops or the history went while the client was too slow.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            let answer = self.answers.message().await.ok().flatten()?;
            if answer.canceled {
                return None;
            }
            let revision_of = |event: &pb::PbEvent| event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
            for of_revision in answer.events.chunk_by(|a, b| revision_of(a) == revision_of(b)) {
                let index = of_revision.first().map_or(0, revision_of);
                self.take(index, of_revision).await;
            }
        }
    }

    async fn take(&mut self, index: i64, events: &[pb::PbEvent]) {
        self.history.settled().await;
        if let Some(record) = self.history.at(index) {
            if !record.silent && concerns(&record.event, &self.path, self.recursive) {
                self.ready.push_back(record.event);
            }
            return;
        }
        let gone: Vec<&[u8]> = events
            .iter()
            .filter(|event| event.r#type == DELETE)
            .filter_map(|event| event.kv.as_ref().map(|kv| kv.key.as_slice()))
            .filter(|key| key.ends_with(b"/"))
            .collect();
        for event in events {
            // What went with its directory is not told one by one.
            let key = event.kv.as_ref().map_or(&[][..], |kv| kv.key.as_slice());
            if gone.iter().any(|marker| key.len() > marker.len() && key.starts_with(marker)) {
                continue;
            }
            if let Some(event) = self.translate(event).await
                && concerns(&event, &self.path, self.recursive)
            {
                self.ready.push_back(event);
            }
        }
    }

    /// A v3 event as v2 would tell it.
    async fn translate(&self, event: &pb::PbEvent) -> Option<Event> {
        let kv = event.kv.as_ref()?;
        let key = std::str::from_utf8(&kv.key).ok()?;
        let (path, dir) = key.strip_suffix('/').map_or((key, false), |path| (path, true));
        if clean(path) != path || path == "/" {
            return None; // not a name that v2 can say
        }
        let prev = event.prev_kv.as_ref();
        let leases: HashSet<i64> = [kv.lease, prev.map_or(0, |prev| prev.lease)].into();
        let ends = ends(&self.caller, leases).await.ok()?;
        let value = |kv: &pb::PbKeyValue| (!dir).then(|| String::from_utf8_lossy(&kv.value).into_owned());
        let node = |kv: &pb::PbKeyValue| Node {
            key: path.to_owned(),
            value: value(kv),
            dir,
            end: ends.get(&kv.lease).copied(),
            modified: kv.mod_revision,
            created: kv.create_revision,
            ..Node::default()
        };
        if event.r#type != DELETE {
            return Some(Event { action: "set", node: node(kv), prev: prev.map(node) });
        }
        let expired = prev.is_some_and(|prev| prev.lease != 0 && !ends.contains_key(&prev.lease));
        let created = prev.map_or(0, |prev| prev.create_revision);
        Some(Event {
            action: if expired { "expire" } else { "delete" },
            node: Node { value: None, created, ..node(kv) },
            prev: prev.map(node),
        })
    }
}

/// v3's number of the kind.
const DELETE: i32 = 1;

/// Whether a watcher of the path hears of the event.
fn concerns(event: &Event, path: &str, recursive: bool) -> bool {
    let key = event.node.key.as_str();
    let beneath = |key: &str, of: &str| {
        key.strip_prefix(of).is_some_and(|rest| of == "/" || rest.starts_with('/')) && key != of
    };
    if key == path {
        return true;
    }
    if recursive && beneath(key, path) {
        // Hidden from those above, not from those who know its name.
        return !format!("/{}", key[path.len()..].trim_start_matches('/')).contains("/_");
    }
    // What goes takes with it what is in it.
    let goes = matches!(event.action, "delete" | "expire") && event.node.dir;
    goes && beneath(path, key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_hears_what() {
        let event = |action, key: &str, dir| Event {
            action,
            node: Node { key: key.to_owned(), dir, ..Node::default() },
            prev: None,
        };
        assert!(concerns(&event("set", "/a/b", false), "/a/b", false));
        assert!(!concerns(&event("set", "/a/b", false), "/a", false));
        assert!(concerns(&event("set", "/a/b", false), "/a", true));
        assert!(concerns(&event("set", "/a/b", false), "/", true));
        assert!(!concerns(&event("set", "/ab", false), "/a", true));
        assert!(!concerns(&event("set", "/a/_b/c", false), "/a", true));
        assert!(concerns(&event("set", "/a/_b/c", false), "/a/_b", true));
        assert!(concerns(&event("delete", "/a", true), "/a/b", false));
        assert!(!concerns(&event("set", "/a", true), "/a/b", false));
    }
}
