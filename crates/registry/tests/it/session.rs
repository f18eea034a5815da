//! The machine's session: one lease for as long as the machine lives, whatever the daemon and the hub do.

use crate::backend::Backend;
use crate::{eventually, soon};
use model::LeaseId;
use registry::{Session, Store};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::Instant;

/// Longer than any test, so that nothing here ends by itself.
const LONG: Duration = Duration::from_secs(600);
/// The shortest that etcd grants; renewed every 0.6 s.
const SHORT: Duration = Duration::from_secs(2);

fn lease_file() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lease");
    (dir, file)
}

/// The session's lease once it is another one than `than`.
async fn lease_other_than(session: &Session, than: Option<LeaseId>) -> LeaseId {
    let mut lease = session.lease();
    let other = soon(lease.wait_for(|lease| lease.is_some() && *lease != than)).await.unwrap();
    other.unwrap()
}

async fn exists(store: &Store, key: &str) -> bool {
    store.get(key).await.unwrap().is_some()
}

/// No clock: when a lease of the same time to live that was granted later has ended, the session's has been renewed.
pub(crate) async fn a_session_keeps_its_lease(backend: &mut Backend) {
    let (store, (_dir, file)) = (&backend.store, lease_file());
    let session = Session::start(store, SHORT, &file);
    let lease = lease_other_than(&session, None).await;
    store.put("/mine", "", Some(lease)).await.unwrap();
    for _ in 0..2 {
        let other = store.grant(SHORT).await.unwrap();
        store.put("/other", "", Some(other)).await.unwrap();
        eventually("a lease that nobody renews ends", async || !exists(store, "/other").await).await;
    }
    assert!(exists(store, "/mine").await);
    assert_eq!(*session.lease().borrow(), Some(lease));
    // Dropped without farewell, it ends when its time is over.
    drop(session);
    eventually("the lease ends", async || !exists(store, "/mine").await).await;
}

pub(crate) async fn a_second_session_goes_on_with_the_lease(backend: &mut Backend) {
    let (store, (_dir, file)) = (&backend.store, lease_file());
    let session = Session::start(store, LONG, &file);
    let lease = lease_other_than(&session, None).await;
    let written = store.put("/mine", "", Some(lease)).await.unwrap();
    eventually("the lease is noted", async || fs::read_to_string(&file).is_ok_and(|text| !text.is_empty()))
        .await;
    assert_eq!(fs::read_to_string(&file).unwrap(), format!("{lease}\n"));
    drop(session);
    let session = Session::start(store, LONG, &file);
    assert_eq!(lease_other_than(&session, None).await, lease);
    assert_eq!(store.list("").await.unwrap().revision, written, "nobody saw it leave");
    assert!(exists(store, "/mine").await);
}

pub(crate) async fn a_revoked_session_begins_anew(backend: &mut Backend) {
    let (store, (_dir, file)) = (&backend.store, lease_file());
    let session = Session::start(store, SHORT, &file);
    let first = lease_other_than(&session, None).await;
    store.revoke(first).await.unwrap();
    let second = lease_other_than(&session, Some(first)).await;
    store.put("/mine", "", Some(second)).await.unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), format!("{second}\n"));
    // The same while nobody looks after it: between two runs of the daemon.
    drop(session);
    store.revoke(second).await.unwrap();
    let session = Session::start(store, SHORT, &file);
    let third = lease_other_than(&session, None).await;
    assert!(third != first && third != second);
}

pub(crate) async fn a_session_that_ends_says_good_bye(backend: &mut Backend) {
    let (store, (_dir, file)) = (&backend.store, lease_file());
    let session = Session::start(store, LONG, &file);
    let lease = lease_other_than(&session, None).await;
    store.put("/mine", "", Some(lease)).await.unwrap();
    session.end().await.unwrap();
    assert!(!exists(store, "/mine").await);
    assert!(!file.exists(), "nobody goes on with it");
}

pub(crate) async fn a_session_tells_until_when_its_lease_is_good(backend: &mut Backend) {
    let (store, (_dir, file)) = (&backend.store, lease_file());
    let before = Instant::now();
    let session = Session::start(store, SHORT, &file);
    let mut acknowledged = session.acknowledged();
    let first = soon(acknowledged.wait_for(Option::is_some)).await.unwrap().unwrap();
    assert_eq!(Some(first.lease), *session.lease().borrow());
    // The hub grants whole seconds, and may grant more than was asked for.
    assert!(first.until >= before + SHORT, "its time to live, from when the renewal was sent");
    let later = soon(acknowledged.wait_for(|word| word.is_some_and(|word| word.until > first.until))).await;
    assert_eq!(later.unwrap().unwrap().lease, first.lease, "renewed");
    session.end().await.unwrap();
    assert_eq!(*session.lease().borrow(), None);
}

pub(crate) async fn a_lease_file_of_another_hub_is_no_obstacle(backend: &mut Backend) {
    let store = &backend.store;
    for content in ["77\n", "", "no lease\n", "ffffffffffffffff\n", "0\n"] {
        let (_dir, file) = lease_file();
        fs::write(&file, content).unwrap();
        let session = Session::start(store, LONG, &file);
        let lease = lease_other_than(&session, None).await;
        store.put("/mine", "", Some(lease)).await.unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), format!("{lease}\n"), "{content:?}");
    }
}

pub(crate) async fn a_session_outlives_a_restart(backend: &mut Backend) {
    let (_dir, file) = lease_file();
    // Renewed every 6 s: it notices that the hub was away.
    let session = Session::start(&backend.store, Duration::from_secs(20), &file);
    let lease = lease_other_than(&session, None).await;
    backend.store.put("/mine", "", Some(lease)).await.unwrap();
    backend.stop().await;
    // A daemon that starts while the hub is away waits for it.
    drop(session);
    let session = Session::start(&backend.store, Duration::from_secs(20), &file);
    assert_eq!(*session.lease().borrow(), None);
    backend.start_again().await;
    assert_eq!(lease_other_than(&session, None).await, lease);
    let store = backend.another_store().await;
    assert!(exists(&store, "/mine").await);
}
