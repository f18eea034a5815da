//! Certificates and logins: those that expire or are replaced, without anybody noticing; and those that are of no use,
//! with a word that helps.

use crate::authority::Authority;
use crate::backend::{Backend, LOGIN, PASSWORD, USER};
use crate::{eventually, soon};
use access::{Access, Login, Password};
use model::Revision;
use registry::{Delta, Store, StoreError};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(600);

/// A login that nobody uses until it is over.
async fn until_logins_are_over(backend: &Backend) {
    let mut client = backend.client().await;
    client.update_user(Some((USER.to_owned(), PASSWORD.to_owned()))).await.unwrap();
    client.get("/a", None).await.unwrap();
    // Time has to pass, and asking would prolong the login.
    tokio::time::sleep(3 * LOGIN).await;
    let error = client.get("/a", None).await.unwrap_err().to_string();
    assert!(error.contains("invalid auth token"), "the login is over: {error}");
}

pub(crate) async fn a_login_that_is_over_is_repeated(backend: &mut Backend) {
    let store = backend.store.clone();
    store.put("/a", "1", None).await.unwrap();
    let lease = store.grant(LONG).await.unwrap();
    let (mut keeper, mut watch) =
        (store.keeper(lease).await.unwrap(), store.watch("/", Revision(0)).await.unwrap());
    let mut follow = store.follow("/");
    assert!(matches!(soon(follow.next()).await, Some(Delta::Reset(_))));
    // Once for each way in, on clients that have nothing else to do.
    let (writer, watcher, granter, renewer) = (
        backend.another_store().await,
        backend.another_store().await,
        backend.another_store().await,
        backend.another_store().await,
    );
    for other in [&writer, &watcher, &granter, &renewer] {
        assert_eq!(other.get("/a").await.unwrap().unwrap().value, "1");
    }
    until_logins_are_over(backend).await;
    // Many at once, which log in once.
    let many = (0..50).map(|n| {
        let writer = writer.clone();
        tokio::spawn(async move { writer.put(&format!("/many/{n}"), "", None).await })
    });
    for put in many.collect::<Vec<_>>() {
        put.await.unwrap().unwrap();
    }
    let mut late = watcher.watch("/a", Revision(0)).await.unwrap();
    granter.grant(LONG).await.unwrap();
    renewer.keeper(lease).await.unwrap().renew().await.unwrap();
    // Streams are open still.
    keeper.renew().await.unwrap();
    assert!(soon(watch.next()).await.unwrap().changes[0].key().starts_with("/many/"));
    assert!(matches!(soon(follow.next()).await, Some(Delta::Changes(_))));
    store.put("/a", "2", None).await.unwrap();
    assert_eq!(soon(late.next()).await.unwrap().changes[0].key(), "/a");
}

pub(crate) async fn users_may_be_switched_on_later(backend: &mut Backend) {
    let mut root = backend.client().await;
    root.update_user(Some((USER.to_owned(), PASSWORD.to_owned()))).await.unwrap();
    root.auth_disable().await.unwrap();
    let (store, watcher) = (backend.another_store().await, backend.another_store().await);
    store.put("/a", "1", None).await.unwrap();
    watcher.get("/a").await.unwrap();
    backend.client().await.auth_enable().await.unwrap();
    store.put("/a", "2", None).await.unwrap();
    let mut watch = watcher.watch("/a", Revision(0)).await.unwrap();
    store.put("/a", "3", None).await.unwrap();
    assert_eq!(soon(watch.next()).await.unwrap().changes.len(), 1);
}

pub(crate) async fn a_password_that_was_replaced_is_read_again(backend: &mut Backend) {
    let file = backend.authority().path("password");
    std::fs::write(&file, format!("{PASSWORD}\n")).unwrap();
    let login = Login { user: USER.to_owned(), password: Password::File(file.clone()) };
    let store = Store::connect(&Access { login: Some(login), ..backend.access.clone() }).await.unwrap();
    store.put("/a", "1", None).await.unwrap();
    let mut root = backend.client().await;
    root.update_user(Some((USER.to_owned(), PASSWORD.to_owned()))).await.unwrap();
    root.user_change_password(USER, "geheimer").await.unwrap();
    eventually("the old password is refused", async || match store.get("/a").await {
        Err(StoreError::Refused(said)) => {
            assert!(said.contains("authentication failed") && said.contains("password-file"), "{said}");
            true
        }
        Ok(_) => false,
        other => panic!("{other:?}"),
    })
    .await;
    std::fs::write(&file, "geheimer\n").unwrap();
    eventually("the new password is used", async || store.get("/a").await.is_ok()).await;
}

pub(crate) async fn a_certificate_that_was_replaced_is_read_again(backend: &mut Backend) {
    // One that the hub does not believe, which is replaced by one that it does.
    let (cert, key) = (backend.authority().path("m.crt"), backend.authority().path("m.key"));
    let copy = |from: (std::path::PathBuf, std::path::PathBuf)| {
        std::fs::copy(from.0, &cert).unwrap();
        std::fs::copy(from.1, &key).unwrap();
    };
    copy(Authority::new().sign("stranger"));
    let access = Access { identity: Some((cert.clone(), key.clone())), ..backend.access.clone() };
    let store = Store::connect(&access).await.unwrap();
    soon(store.get("/a")).await.unwrap_err();
    copy(backend.authority().sign("friend"));
    eventually("the new certificate is used", async || store.get("/a").await.is_ok()).await;
}

pub(crate) async fn whoever_is_not_let_in_learns_why(backend: &mut Backend) {
    let good = backend.access.clone();
    let said = async |access: Access| {
        let store = Store::connect(&access).await.unwrap();
        soon(store.get("/a")).await.unwrap_err().to_string()
    };
    let without = said(Access { identity: None, ..good.clone() }).await;
    assert!(without.contains("certificate") && without.contains("cert-file"), "{without}");
    let other = Authority::new();
    let unknown = said(Access { ca: Some(other.path("ca.crt")), ..good.clone() }).await;
    assert!(unknown.contains("ca.crt names") && unknown.contains("--cacert"), "{unknown}");
    let nobody = said(Access { login: None, ..good.clone() }).await;
    assert!(nobody.contains("etcdserver:"), "{nobody}");
    let login = Login { user: USER.to_owned(), password: Password::Given("falsch".to_owned()) };
    let wrong = said(Access { login: Some(login), ..good.clone() }).await;
    assert!(wrong.contains("invalid user ID or password: check `user`"), "{wrong}");
    let plain = said(Access::open(&[backend.endpoint().replace("https", "http")])).await;
    assert!(plain.contains("say https://"), "{plain}");
    let name = said(Access::open(&[backend.endpoint().replace("127.0.0.1", "localhost")])).await;
    assert!(name.contains("localhost"), "{name}");
    let missing = Access { ca: Some("/none/ca.crt".into()), ..good };
    let error = Store::connect(&missing).await.map(drop).unwrap_err();
    assert!(matches!(error, StoreError::File(_)) && error.to_string().contains("/none/ca.crt"), "{error}");
}
