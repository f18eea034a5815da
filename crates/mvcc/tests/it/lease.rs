//! Leases (reference: hub.md A.4).

use crate::{put, range, show};
use mvcc::{Error, LeaseGrantRequest, LeaseId, MAX_LEASE_TTL, PutRequest, Revision, Store};
use std::time::Duration;

const ONE: LeaseId = LeaseId(1);

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn grant(store: &mut Store, now: u64, id: i64, ttl: i64) -> Result<i64, Error> {
    let request = LeaseGrantRequest { id: LeaseId(id), ttl };
    store.lease_grant(secs(now), request).map(|applied| applied.response.ttl)
}

#[test]
fn grants() {
    let mut store = Store::new();
    assert_eq!(grant(&mut store, 0, 1, 60), Ok(60));
    assert_eq!(grant(&mut store, 0, 1, 60), Err(Error::LeaseExists));
    assert_eq!(grant(&mut store, 0, 2, 1), Ok(2), "etcd's minimum");
    assert_eq!(grant(&mut store, 0, 3, -5), Ok(2));
    assert_eq!(grant(&mut store, 0, 4, MAX_LEASE_TTL), Ok(MAX_LEASE_TTL));
    assert_eq!(grant(&mut store, 0, 5, MAX_LEASE_TTL + 1), Err(Error::LeaseTtlTooLarge));
    assert_eq!(store.leases(), [LeaseId(2), LeaseId(3), LeaseId(1), LeaseId(4)], "soonest first");
    assert_eq!(store.revision(), Revision(1), "a grant is no revision");
}

#[test]
fn time_passes_and_a_keepalive_starts_it_anew() {
    let mut store = Store::new();
    grant(&mut store, 10, 1, 60).unwrap();
    assert_eq!(store.next_deadline(), Some(secs(70)));
    let left = store.lease_time_to_live(Duration::from_millis(20_500), ONE, true);
    assert_eq!((left.ttl, left.granted_ttl), (49, 60), "whole seconds, rounded down");
    assert_eq!(store.lease_keep_alive(secs(30), ONE).ttl, 60);
    assert_eq!(store.next_deadline(), Some(secs(90)));
    assert!(store.expired(secs(89)).is_empty());
    assert_eq!(store.expired(secs(90)), [ONE]);
    // Expired but not revoked yet: it is still there, but too late to save.
    assert_eq!(store.lease_time_to_live(secs(91), ONE, false).ttl, 0);
    assert_eq!(store.lease_keep_alive(secs(91), ONE).ttl, 0);
    let _ = store.lease_revoke(ONE).unwrap();
    let gone = store.lease_time_to_live(secs(91), ONE, true);
    assert_eq!((gone.ttl, gone.granted_ttl), (-1, 0));
    assert_eq!(store.lease_keep_alive(secs(91), ONE).ttl, 0, "not an error");
    assert_eq!(store.lease_revoke(ONE).unwrap_err(), Error::LeaseNotFound);
    assert_eq!(store.next_deadline(), None);
}

#[test]
fn a_revoked_lease_takes_its_keys_along_in_one_revision() {
    let mut store = Store::new();
    grant(&mut store, 0, 1, 60).unwrap();
    for key in ["b", "a"] {
        let _ = store.put(PutRequest::new(key, "x").with_lease(ONE)).unwrap();
    }
    put(&mut store, "stays", "x");
    assert_eq!(store.lease_time_to_live(secs(0), ONE, true).keys, ["a", "b"]);
    let applied = store.lease_revoke(ONE).unwrap();
    assert_eq!(applied.response.revision, Revision(5));
    let batch = applied.events.unwrap();
    let keys: Vec<_> = batch.events.iter().map(|event| event.kv.key.as_ref()).collect();
    assert_eq!(keys, [b"a", b"b"], "sorted");
    assert_eq!(show(&store.range(&range("\0", "\0")).unwrap()), ["stays=x"]);
    grant(&mut store, 0, 2, 60).unwrap();
    assert_eq!(
        store.lease_revoke(LeaseId(2)).unwrap().response.revision,
        Revision(5),
        "no keys, no revision"
    );
}

#[test]
fn a_put_moves_the_key_to_its_lease() {
    let mut store = Store::new();
    grant(&mut store, 0, 1, 60).unwrap();
    grant(&mut store, 0, 2, 60).unwrap();
    let keys = |store: &Store, id| store.lease_time_to_live(secs(0), LeaseId(id), true).keys.len();
    let _ = store.put(PutRequest::new("a", "x").with_lease(ONE)).unwrap();
    assert_eq!((keys(&store, 1), keys(&store, 2)), (1, 0));
    let _ = store.put(PutRequest::new("a", "x").with_lease(LeaseId(2))).unwrap();
    assert_eq!((keys(&store, 1), keys(&store, 2)), (0, 1));
    let _ = store.put(PutRequest { ignore_lease: true, ..PutRequest::new("a", "y") }).unwrap();
    assert_eq!(keys(&store, 2), 1);
    put(&mut store, "a", "z");
    assert_eq!(keys(&store, 2), 0, "no lease detaches");
    let _ = store.lease_revoke(LeaseId(2)).unwrap();
    assert_eq!(show(&store.range(&range("a", "")).unwrap()), ["a=z"]);
}

#[test]
fn after_a_replay_leases_have_their_full_time() {
    let mut store = Store::new();
    let mut records = store.lease_grant(secs(0), LeaseGrantRequest { id: ONE, ttl: 60 }).unwrap().records;
    records.extend(store.put(PutRequest::new("a", "x").with_lease(ONE)).unwrap().records);
    let replayed = Store::replay(records, secs(1000)).unwrap().store;
    assert_eq!(replayed.next_deadline(), Some(secs(1060)));
    assert_eq!(replayed.lease_time_to_live(secs(1000), ONE, true).keys, ["a"]);
}
