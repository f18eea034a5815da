//! What the fuzz targets in `fuzz/` call, and the ordinary tests on mutations of the same corpus.
//!
//! Each takes bytes that anybody may have made, and panics if they break a promise: no input panics, a refusal
//! changes nothing, what is durable gives the same store back, and a hub that was asked nonsense serves the next
//! client. Compiled for tests and with `--cfg fuzzing` only.

/// A hub that is asked in process.
mod served;

pub use served::{grpc, http};

use crate::bolt::read::File;
use crate::http::{schema, transcode};
use crate::storage::fuzz::entries;
use crate::{convert, snapshot, v2};
use axum::http::Method;
use bytes::Bytes;
use etcd_client::proto as pb;
use mvcc::{Command, LeaseGrantRequest, LeaseId, Record, Response, Revision, Store};
use prost::Message;
use std::time::Duration;

/// A target, by the name that it has in `fuzz/`.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("store", store),
    ("gateway", gateway),
    ("v2", v2_form),
    ("disk", disk),
    ("http", http),
    ("grpc", grpc),
];

/// Splits off a piece: a kind, a length, and as many bytes as there are.
fn piece<'a>(data: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let (head, rest) = data.split_first_chunk::<3>()?;
    let length = usize::from(u16::from_le_bytes([head[1], head[2]])).min(rest.len());
    let (piece, rest) = rest.split_at(length);
    *data = rest;
    Some((head[0], piece))
}

/// Protobuf requests on a store in memory: decoded, applied, answered, and replayed from their records.
pub fn store(mut data: &[u8]) {
    let mut store = Store::new();
    let mut records: Vec<Record> = Vec::new();
    let mut now = Duration::ZERO;
    while let Some((kind, message)) = piece(&mut data) {
        now += Duration::from_millis(u64::from(kind >> 4));
        let Some(command) = command(kind % 8, message, &store) else { continue };
        let before = store.clone();
        match store.apply(now, command) {
            Ok(applied) => {
                let grown = store.revision().0 - before.revision().0;
                assert!((0..=1).contains(&grown), "one request, {grown} revisions");
                assert_eq!(applied.events.is_some(), grown == 1, "events tell of a revision");
                records.extend(applied.records);
                answered(applied.response);
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                assert!(store == before, "a refusal changed something");
            }
        }
    }
    // A lease's deadline begins anew.
    let replayed = Store::replay(records, Duration::ZERO).map(|replayed| replayed.store);
    let replayed = replayed.expect("what was given out as durable reads back");
    assert_eq!(replayed.revision(), store.revision());
    assert_eq!(replayed.dump(), store.dump(), "what was durable is another store");
}

fn command(kind: u8, message: &[u8], store: &Store) -> Option<Command> {
    Some(match kind {
        0 => Command::Put(convert::put_request(pb::PbPutRequest::decode(message).ok()?)),
        1 => {
            let range = convert::range_request(pb::PbRangeRequest::decode(message).ok()?).ok()?;
            if let Ok(found) = store.range(&range) {
                assert!(found.count >= found.kvs.len() as i64 || range.count_only);
                convert::range_response(found, None).encode_to_vec();
            }
            return None;
        }
        2 => Command::DeleteRange(convert::delete_request(pb::PbDeleteRequest::decode(message).ok()?)),
        3 => Command::Txn(convert::txn_request(pb::PbTxnRequest::decode(message).ok()?)),
        4 => Command::Compact(Revision(pb::PbCompactionRequest::decode(message).ok()?.revision)),
        5 => {
            let grant = pb::PbLeaseGrantRequest::decode(message).ok()?;
            Command::LeaseGrant(LeaseGrantRequest { id: LeaseId(grant.id), ttl: grant.ttl })
        }
        6 => Command::LeaseRevoke(LeaseId(pb::PbLeaseRevokeRequest::decode(message).ok()?.id)),
        _ => Command::LeaseKeepAlive(LeaseId(pb::PbLeaseKeepAliveRequest::decode(message).ok()?.id)),
    })
}

/// An answer must go over the wire as it is.
fn answered(response: Response) {
    fn whole<T: Message + Default + PartialEq + std::fmt::Debug>(answer: T) {
        assert_eq!(T::decode(answer.encode_to_vec().as_slice()).ok(), Some(answer));
    }
    match response {
        Response::Put(put) => whole(convert::put_response(put, None)),
        Response::DeleteRange(deleted) => whole(convert::delete_response(deleted, None)),
        Response::Txn(txn) => whole(convert::txn_response(txn, None)),
        _ => {}
    }
}

/// JSON to protobuf and back: what is accepted means the same the second time.
pub fn gateway(data: &[u8]) {
    let Some((which, data)) = data.split_first() else { return };
    let messages = [
        &schema::TXN_REQUEST,
        &schema::RANGE_REQUEST,
        &schema::PUT_REQUEST,
        &schema::WATCH_REQUEST,
        &schema::ROLE_GRANT_REQUEST,
        &schema::TXN_RESPONSE,
        &schema::WATCH_RESPONSE,
        &schema::MEMBERS_RESPONSE,
    ];
    let message = messages[usize::from(*which) % messages.len()];
    // As an answer: bytes to JSON.
    let _ = transcode::to_json(message, Bytes::copy_from_slice(data));
    // As a request: JSON to bytes.
    let Ok(value) = serde_json::from_slice(data) else { return };
    let Ok(encoded) = transcode::to_protobuf(message, &value) else { return };
    let Ok(json) = transcode::to_json(message, encoded.into()) else { return };
    let value: serde_json::Value = serde_json::from_str(&json).expect("our own JSON");
    let again = transcode::to_protobuf(message, &value).expect("our own JSON is understood");
    let again = transcode::to_json(message, again.into()).expect("our own protobuf");
    assert_eq!(again, json);
}

/// A v2 request: method, path, query and form, apart by zero bytes.
pub fn v2_form(data: &[u8]) {
    let mut parts = data.splitn(4, |byte| *byte == 0);
    let mut part = || parts.next().unwrap_or_default();
    let method = match part() {
        b"PUT" => Method::PUT,
        b"POST" => Method::POST,
        b"DELETE" => Method::DELETE,
        _ => Method::GET,
    };
    let (path, query) = (String::from_utf8_lossy(part()), String::from_utf8_lossy(part()));
    match v2::form::parse(&method, &path, Some(&query), Some(part())) {
        Ok(ask) => {
            assert!(ask.path.starts_with('/') && !ask.path.contains("//"), "{}", ask.path);
            assert!(ask.path == "/" || !ask.path.ends_with('/'), "{}", ask.path);
            assert!(!ask.path.split('/').any(|part| part == "." || part == ".."), "{}", ask.path);
            assert_eq!(v2::form::clean(&ask.path), ask.path);
        }
        Err(refusal) => {
            assert!(refusal.status().is_client_error());
            serde_json::from_str::<serde_json::Value>(&refusal.json()).expect("a refusal is JSON");
        }
    }
}

/// Bytes as a log's payload, and as a snapshot file in etcd's format: understood whole, or refused; and a store made of
/// them works.
pub fn disk(data: &[u8]) {
    let records = match entries(data) {
        Some(records) => records,
        None => match File::open(data).ok().and_then(|file| snapshot::records(&file)) {
            Some(records) => records,
            None => return,
        },
    };
    let Ok(replayed) = Store::replay(records, Duration::ZERO) else { return };
    let mut store = replayed.store;
    let all = mvcc::RangeRequest::new(mvcc::KeyRange::from_wire(vec![0], vec![0]));
    store.range(&all).expect("all keys can be read");
    if store.put(mvcc::PutRequest::new("after", "wards")).is_ok() {
        let all = mvcc::DeleteRangeRequest::new(mvcc::KeyRange::prefix("a"));
        assert!(store.delete_range(&all).expect("no limit is near").response.deleted > 0);
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::path::Path;

    /// Inputs per target; `HUB_PROOF` multiplies it.
    const INPUTS: u64 = 1500;

    /// Splitmix64.
    struct Dice(u64);

    impl Dice {
        fn roll(&mut self, sides: usize) -> usize {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) % sides as u64) as usize
        }

        /// One change as fuzzers make them.
        fn mutate(&mut self, data: &mut Vec<u8>, corpus: &[Vec<u8>]) {
            let at = self.roll(data.len() + 1);
            let to = (at + 1 + self.roll(16)).min(data.len());
            match self.roll(6) {
                0 if at < data.len() => data[at] ^= 1 << self.roll(8),
                1 if at < data.len() => data[at] = [0, 1, 0x7f, 0x80, 0xff, b'"', b'/', b'%'][self.roll(8)],
                2 if at < to => drop(data.drain(at..to)),
                3 if at < to => {
                    let again = data[at..to].to_vec();
                    data.splice(at..at, again);
                }
                4 => {
                    let other = &corpus[self.roll(corpus.len())];
                    let from = self.roll(other.len() + 1);
                    data.splice(at.., other[from..].iter().copied());
                }
                _ => data.insert(at, self.roll(256) as u8),
            }
        }
    }

    fn corpus(target: &str) -> Vec<Vec<u8>> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
        let mut paths: Vec<_> =
            std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
    }

    fn run(name: &str, target: fn(&[u8])) {
        let corpus = corpus(name);
        assert!(!corpus.is_empty(), "fuzz/corpus/{name} is empty");
        corpus.iter().for_each(|input| target(input));
        let times: u64 = std::env::var("HUB_PROOF").map_or(1, |times| times.parse().unwrap());
        for seed in 0..INPUTS * times {
            let mut dice = Dice(seed);
            let mut data = corpus[dice.roll(corpus.len())].clone();
            for _ in 0..=dice.roll(6) {
                dice.mutate(&mut data, &corpus);
            }
            if catch_unwind(AssertUnwindSafe(|| target(&data))).is_err() {
                panic!("{name}, seed {seed}: {}", data.escape_ascii());
            }
        }
    }

    #[test]
    fn mutations_of_the_corpus_break_no_promise() {
        for (name, target) in TARGETS {
            run(name, *target);
        }
    }
}
