//! etcd's rules, one by one, and random commands against a model too simple to be wrong.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod auth;
mod compaction;
mod kv;
mod lease;
mod model;
mod property;
mod txn;
mod watch;

use mvcc::{DeleteRangeRequest, KeyRange, PutRequest, RangeRequest, Revision, Store};

/// Puts, and tells the revision.
fn put(store: &mut Store, key: &'static str, value: &'static str) -> i64 {
    store.put(PutRequest::new(key, value)).unwrap().response.revision.0
}

/// Deletes one key, and tells the revision.
fn delete(store: &mut Store, key: &'static str) -> i64 {
    store.delete_range(&DeleteRangeRequest::new(KeyRange::key(key))).unwrap().response.revision.0
}

fn range(key: &'static str, range_end: &'static str) -> RangeRequest {
    RangeRequest::new(KeyRange::from_wire(key, range_end))
}

/// The keys and values of an answer, for short assertions.
fn show(response: &mvcc::RangeResponse) -> Vec<String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    response.kvs.iter().map(|kv| format!("{}={}", text(&kv.key), text(&kv.value))).collect()
}

fn at(mut request: RangeRequest, revision: i64) -> RangeRequest {
    request.revision = Revision(revision);
    request
}
