//! Leases: what lives under them, how they end, how they are kept.

use crate::backend::Backend;
use crate::{eventually, soon};
use model::{LeaseId, Revision};
use registry::{Change, Guard, Store, StoreError, Write};
use std::time::Duration;

/// The shortest that etcd grants.
const TTL: Duration = Duration::from_secs(2);
/// Longer than any test.
const LONG: Duration = Duration::from_secs(600);

async fn exists(store: &Store, key: &str) -> bool {
    store.get(key).await.unwrap().is_some()
}

pub(crate) async fn keys_live_under_a_lease(backend: &mut Backend) {
    let store = &backend.store;
    let (one, other) = (store.grant(LONG).await.unwrap(), store.grant(LONG).await.unwrap());
    assert_ne!(one, other);
    assert_eq!(store.list("").await.unwrap().revision, Revision(1), "a grant is no change");
    store.put("/one", "", Some(one)).await.unwrap();
    let write = Write::Put { key: "/other".to_owned(), value: "".into(), lease: Some(other) };
    store.commit(&[Guard::Absent("/other".to_owned())], &[write]).await.unwrap();
    let leases: Vec<_> = store.list("/").await.unwrap().items.iter().map(|kv| kv.lease).collect();
    assert_eq!(leases, [Some(one), Some(other)]);
}

pub(crate) async fn a_revoked_lease_takes_its_keys_along(backend: &mut Backend) {
    let store = &backend.store;
    let lease = store.grant(LONG).await.unwrap();
    for key in ["/b", "/a"] {
        store.put(key, "", Some(lease)).await.unwrap();
    }
    let last = store.put("/stays", "", None).await.unwrap();
    let mut watch = store.watch("/", last.next()).await.unwrap();
    store.revoke(lease).await.unwrap();
    let left: Vec<_> = store.list("/").await.unwrap().items.into_iter().map(|kv| kv.key).collect();
    assert_eq!(left, ["/stays"]);
    let changes = soon(watch.next()).await.unwrap();
    assert_eq!(changes.revision, last.next(), "all of them in one revision");
    let deleted = ["/a", "/b"].map(|key| Change::Delete { key: key.to_owned() });
    assert_eq!(changes.changes, deleted);
    assert!(store.revoke(lease).await.is_err(), "only once");
}

/// No clock: of three leases with the same time to live, granted one after the other, the first is renewed and
/// the others are not. When those have ended, one after the other, the first has had its time twice over.
pub(crate) async fn a_lease_ends_by_itself_unless_renewed(backend: &mut Backend) {
    let store = &backend.store;
    let kept = store.grant(TTL).await.unwrap();
    store.put("/kept", "", Some(kept)).await.unwrap();
    let mut keeper = store.keeper(kept).await.unwrap();
    for key in ["/second", "/third"] {
        let lease = store.grant(TTL).await.unwrap();
        let written = store.put(key, "", Some(lease)).await.unwrap();
        let mut watch = store.watch(key, written.next()).await.unwrap();
        eventually("a lease that nobody renews ends", async || {
            keeper.renew().await.unwrap();
            !exists(store, key).await
        })
        .await;
        assert_eq!(soon(watch.next()).await.unwrap().changes, [Change::Delete { key: key.to_owned() }]);
        assert!(matches!(store.keeper(lease).await, Err(StoreError::LeaseEnded(ended)) if ended == lease));
    }
    assert!(exists(store, "/kept").await);
    // Nobody renews it any more, and nobody asks: the watch is told nevertheless.
    let now = store.list("/").await.unwrap().revision;
    let mut watch = store.watch("/kept", now.next()).await.unwrap();
    drop(keeper);
    assert_eq!(soon(watch.next()).await.unwrap().changes, [Change::Delete { key: "/kept".to_owned() }]);
}

pub(crate) async fn an_ended_lease_cannot_be_kept(backend: &mut Backend) {
    let store = &backend.store;
    let lease = store.grant(LONG).await.unwrap();
    let mut keeper = store.keeper(lease).await.unwrap();
    keeper.renew().await.unwrap();
    keeper.renew().await.unwrap();
    store.revoke(lease).await.unwrap();
    let ended = |result: Result<(), StoreError>, lease: LeaseId| {
        let error = result.unwrap_err();
        assert!(matches!(error, StoreError::LeaseEnded(ended) if ended == lease), "{error:?}");
        assert_eq!(error.to_string(), format!("lease {lease} has ended"));
    };
    ended(keeper.renew().await, lease);
    ended(keeper.renew().await, lease);
    ended(store.keeper(lease).await.map(drop), lease);
    ended(store.keeper(LeaseId(0x77)).await.map(drop), LeaseId(0x77));
}

pub(crate) async fn a_lease_is_needed_to_write_under_it(backend: &mut Backend) {
    let store = &backend.store;
    let lease = store.grant(LONG).await.unwrap();
    store.revoke(lease).await.unwrap();
    let refused = store.put("/a", "", Some(lease)).await;
    assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
    assert!(!exists(store, "/a").await);
}

pub(crate) async fn a_key_can_change_its_lease(backend: &mut Backend) {
    let store = &backend.store;
    let (old, new) = (store.grant(LONG).await.unwrap(), store.grant(LONG).await.unwrap());
    for key in ["/moved", "/freed"] {
        store.put(key, "", Some(old)).await.unwrap();
    }
    store.put("/moved", "", Some(new)).await.unwrap();
    store.put("/freed", "", None).await.unwrap();
    store.revoke(old).await.unwrap();
    assert!(exists(store, "/moved").await && exists(store, "/freed").await);
    store.revoke(new).await.unwrap();
    assert!(!exists(store, "/moved").await && exists(store, "/freed").await);
}
