//! Hubs that do not answer, or no longer: who waits learns so, with the endpoint, and never for ever.

use crate::backend::Backend;
use crate::etcd_process::Etcd;
use crate::{eventually, soon};
use model::{LeaseId, Revision};
use registry::{Delta, LeaseKeeper, Store, StoreError, Watch};
use std::slice;
use std::time::Duration;
use tokio::net::TcpListener;

const LONG: Duration = Duration::from_secs(600);

/// What becomes of each call, all made at once.
async fn every_call(store: &Store) -> [Result<(), StoreError>; 8] {
    let keys: Vec<_> = (0..1000).map(|n| format!("/{n}")).collect();
    soon(async {
        tokio::join!(
            async { store.get("/a").await.map(drop) },
            async { store.get_many(&keys).await.map(drop) },
            async { store.list("/a").await.map(drop) },
            async { store.put("/a", "", None).await.map(drop) },
            async { store.grant(LONG).await.map(drop) },
            async { store.revoke(LeaseId(1)).await },
            async { store.keeper(LeaseId(1)).await.map(drop) },
            async { store.watch("/a", Revision(1)).await.map(drop) },
        )
    })
    .await
    .into()
}

fn assert_away(error: &StoreError, endpoint: &str) {
    let away = matches!(error, StoreError::Unreachable { .. } | StoreError::Timeout { .. });
    assert!(away, "{error:?}");
    assert!(error.to_string().contains(endpoint), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_listens() {
    // Taken, but nobody listens: no other test can get it meanwhile.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let endpoint = format!("http://{}", socket.local_addr().unwrap());
    let store = soon(Store::connect(slice::from_ref(&endpoint))).await.unwrap();
    for result in every_call(&store).await {
        let error = result.unwrap_err();
        assert!(matches!(error, StoreError::Unreachable { .. }), "{error:?}");
        assert_away(&error, &endpoint);
        assert!(error.to_string().contains("refused"), "says what the network said: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_listens_and_says_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let store = soon(Store::connect(slice::from_ref(&endpoint))).await.unwrap();
    for result in every_call(&store).await {
        assert_away(&result.unwrap_err(), &endpoint);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_endpoints_suffices() {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let dead = format!("http://{}", socket.local_addr().unwrap());
    let backend = Backend::hub().await;
    let store = Store::connect(&[dead, backend.endpoint()]).await.unwrap();
    for n in 0..50 {
        assert_eq!(store.put("/a", "", None).await.unwrap(), Revision(n + 2), "made once");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_is_no_address_is_named() {
    let error = Store::connect(&["http://not an address".to_owned()]).await.map(drop).unwrap_err();
    assert!(error.to_string().contains("not an address"), "{error}");
}

/// A machine that loses power sends no farewell: only the missing answers tell.
#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_hangs_is_noticed() {
    let etcd = Etcd::new().await;
    let store = Store::connect(&[etcd.endpoint()]).await.unwrap();
    store.put("/a", "", None).await.unwrap();
    let mut watch = store.watch("/", Revision(3)).await.unwrap();
    let mut follow = store.follow("/");
    assert!(matches!(soon(follow.next()).await, Some(Delta::Reset(_))));
    etcd.freeze();
    let error = soon(watch.next()).await.unwrap_err();
    assert_away(&error, &etcd.endpoint());
    assert_eq!(soon(follow.next()).await, Some(Delta::Lost));
    assert_away(&soon(store.get("/a")).await.unwrap_err(), &etcd.endpoint());
    etcd.thaw();
    eventually("it works again", async || store.get("/a").await.is_ok()).await;
    assert!(matches!(soon(follow.next()).await, Some(Delta::Reset(_))));
}

pub(crate) async fn a_stop_ends_watches_and_renewals(backend: &mut Backend) {
    let (watch, keeper) = open(backend).await;
    backend.stop().await;
    both_end(watch, keeper, &backend.endpoint()).await;
}

pub(crate) async fn a_crash_ends_watches_and_renewals(backend: &mut Backend) {
    let (watch, keeper) = open(backend).await;
    backend.crash().await;
    both_end(watch, keeper, &backend.endpoint()).await;
}

async fn open(backend: &Backend) -> (Watch, LeaseKeeper) {
    let lease = backend.store.grant(LONG).await.unwrap();
    let watch = backend.store.watch("/", Revision(2)).await.unwrap();
    (watch, backend.store.keeper(lease).await.unwrap())
}

/// By what means they watch again and renew again: nobody refused anything, and no lease has ended.
async fn both_end(mut watch: Watch, mut keeper: LeaseKeeper, endpoint: &str) {
    let error = soon(watch.next()).await.unwrap_err();
    let ended = matches!(error, StoreError::WatchEnded(_) | StoreError::Unreachable { .. });
    assert!(ended, "{error:?}");
    assert_away(&soon(keeper.renew()).await.unwrap_err(), endpoint);
}

pub(crate) async fn calls_fail_while_the_hub_is_away_and_work_again(backend: &mut Backend) {
    let store = backend.store.clone();
    store.put("/a", "kept", None).await.unwrap();
    backend.crash().await;
    for _ in 0..3 {
        for result in every_call(&store).await {
            assert_away(&result.unwrap_err(), &backend.endpoint());
        }
    }
    backend.start_again().await;
    assert_eq!(store.get("/a").await.unwrap().unwrap().value, "kept", "with the first call");
}
