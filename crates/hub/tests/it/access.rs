//! Users and roles in snapshots, between the hub and Debian's etcd 3.4, both ways: who could log in still can, with the
//! same password and the same rights.
//!
//! Without etcd and etcdctl these tests fail.

use crate::differential::Etcd;
use crate::snapshot::{etcdctl, restore_etcd};
use crate::{Fixture, eventually, open, refusal};
use etcd_client::{Client, ConnectOptions, Permission, PermissionType, RoleRevokePermissionOptions};
use hub::restore::restore;
use hub::snapshot::{HashCheck, SnapshotFile};
use std::path::Path;
use tonic::Code;

async fn plain(address: &str) -> Client {
    Client::connect([address], None).await.unwrap()
}

async fn login(address: &str, name: &str, password: &str) -> Result<Client, etcd_client::Error> {
    Client::connect([address], Some(ConnectOptions::new().with_user(name, password))).await
}

/// Users of every kind, roles with permissions of every kind, one of them taken back.
async fn with_users(client: &mut Client) {
    client.put("r/1", "1", None).await.unwrap();
    client.put("w/1", "1", None).await.unwrap();
    for role in ["root", "mixed", "empty"] {
        client.role_add(role).await.unwrap();
    }
    for permission in [
        Permission::read("r/").with_prefix(),
        Permission::write("w/").with_prefix(),
        Permission::read_write("one"),
        Permission::read("z").with_from_key(),
        Permission::write("gone"),
    ] {
        client.role_grant_permission("mixed", permission).await.unwrap();
    }
    client.role_revoke_permission("mixed", "gone", None::<RoleRevokePermissionOptions>).await.unwrap();
    for (user, password) in [("root", "root's"), ("ann", "ann's"), ("bob", "")] {
        client.user_add(user, password, None).await.unwrap();
    }
    let none = etcd_client::UserAddOptions::new().with_no_pwd();
    client.user_add("certificate", "", Some(none)).await.unwrap();
    for (user, role) in [("root", "root"), ("ann", "mixed"), ("ann", "empty"), ("certificate", "empty")] {
        client.user_grant_role(user, role).await.unwrap();
    }
    client.auth_enable().await.unwrap();
}

/// That everybody is who they were in [`with_users`].
async fn check(address: &str) {
    Box::pin(everybody(address)).await; // boxed: so many calls are large
}

async fn everybody(address: &str) {
    let empty = (Code::InvalidArgument, "etcdserver: user name is empty".to_owned());
    assert_eq!(refusal(plain(address).await.get("r/1", None).await), empty);
    for (name, password) in [("ann", "root's"), ("certificate", "x"), ("bob", "x")] {
        assert!(login(address, name, password).await.is_err(), "{name} got in");
    }

    let mut root = login(address, "root", "root's").await.unwrap();
    assert_eq!(root.user_list().await.unwrap().users(), ["ann", "bob", "certificate", "root"]);
    assert_eq!(root.role_list().await.unwrap().roles(), ["empty", "mixed", "root"]);
    assert_eq!(root.user_get("ann").await.unwrap().roles(), ["empty", "mixed"]);
    let role = root.role_get("mixed").await.unwrap();
    let permissions: Vec<(i32, Vec<u8>, Vec<u8>)> = role
        .permissions()
        .iter()
        .map(|own| (own.get_type(), own.key().to_vec(), own.range_end().to_vec()))
        .collect();
    let expected = [
        (PermissionType::Readwrite, &b"one"[..], &b""[..]),
        (PermissionType::Read, b"r/", b"r0"),
        (PermissionType::Write, b"w/", b"w0"),
        (PermissionType::Read, b"z", b"\0"),
    ];
    assert_eq!(permissions, expected.map(|(kind, key, end)| (kind as i32, key.to_vec(), end.to_vec())));

    let mut ann = login(address, "ann", "ann's").await.unwrap();
    assert_eq!(ann.get("r/1", None).await.unwrap().count(), 1);
    ann.put("w/2", "x", None).await.unwrap();
    ann.put("one", "x", None).await.unwrap();
    let denied = (Code::PermissionDenied, "etcdserver: permission denied".to_owned());
    assert_eq!(refusal(ann.put("r/1", "x", None).await), denied);
    assert_eq!(refusal(ann.get("w/1", None).await), denied);
    assert_eq!(refusal(ann.put("gone", "x", None).await), denied);
    // They change as they did before.
    root.user_change_password("ann", "new").await.unwrap();
    login(address, "ann", "new").await.unwrap();
    root.user_change_password("ann", "ann's").await.unwrap();
}

async fn save(address: &str, file: &Path) {
    let file = file.to_str().unwrap();
    etcdctl(&["--endpoints", address, "--user", "root:root's", "snapshot", "save", file]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn users_go_from_a_hub_to_an_etcd_and_back() {
    let fixture = Fixture::start().await;
    let address = fixture.hub.address().to_string();
    with_users(&mut fixture.client().await).await;
    check(&address).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("snapshot");
    // Only root may have everything.
    let mut ann = login(&address, "ann", "ann's").await.unwrap();
    let refused = match ann.snapshot().await {
        Ok(mut stream) => stream.message().await.err(),
        Err(error) => Some(error),
    };
    assert!(refused.unwrap().to_string().contains("permission denied"));
    save(&address, &file).await;
    let status = SnapshotFile::read(&file, HashCheck::Required).unwrap().status;
    assert_eq!((status.auth, status.users, status.roles), (true, 4, 3));

    let etcd = restore_etcd(&file, &dir.path().join("etcd")).await;
    check(&etcd.address).await;
    let back = dir.path().join("back");
    save(&etcd.address, &back).await;
    drop(etcd);
    for (file, data) in [(&back, "hub"), (&file, "twin")] {
        let data = dir.path().join(data);
        let status = restore(file, &data, HashCheck::Required).unwrap();
        assert_eq!((status.auth, status.users, status.roles), (true, 4, 3));
        let report = hub::verify::verify(&data).unwrap();
        assert_eq!((report.users, report.roles, report.problems), (4, 3, Vec::new()));
        let hub = open(&data).await;
        check(&hub.address().to_string()).await;
    }
    // And through the hub's own snapshots.
    let mut root = login(&address, "root", "root's").await.unwrap();
    root.defragment().await.unwrap();
    let fixture = fixture.crash().await;
    check(&fixture.hub.address().to_string()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn users_of_an_etcd_become_a_hubs() {
    let dir = tempfile::tempdir().unwrap();
    let etcd = Etcd::start_with(&dir.path().join("etcd"), &["--bcrypt-cost=4"]).await;
    with_users(&mut plain(&etcd.address).await).await;
    let mut root = login(&etcd.address, "root", "root's").await.unwrap();
    let file = dir.path().join("enabled");
    save(&etcd.address, &file).await;
    root.auth_disable().await.unwrap();
    let disabled = dir.path().join("disabled");
    etcdctl(&["--endpoints", &etcd.address, "snapshot", "save", disabled.to_str().unwrap()]).await;
    drop(etcd);

    let data = dir.path().join("hub");
    restore(&file, &data, HashCheck::Required).unwrap();
    let hub = open(&data).await;
    check(&hub.address().to_string()).await;

    // Users that are not in force are kept, and go into force with their passwords.
    let data = dir.path().join("open");
    let status = restore(&disabled, &data, HashCheck::Required).unwrap();
    assert_eq!((status.auth, status.users), (false, 4));
    let hub = open(&data).await;
    let address = hub.address().to_string();
    let mut client = plain(&address).await;
    client.put("w/1", "1", None).await.unwrap();
    client.auth_enable().await.unwrap();
    check(&address).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_whole_while_others_compact_and_write() {
    let fixture = Fixture::start().await;
    let mut client = fixture.client().await;
    // More than a piece, so that compactions come between pieces.
    for part in 0..30 {
        let puts: Vec<_> = (0..100)
            .map(|key| etcd_client::TxnOp::put(format!("k{:05}", part * 100 + key), "x", None))
            .collect();
        client.txn(etcd_client::Txn::new().and_then(puts)).await.unwrap();
    }
    let mut writer = fixture.client().await;
    let busy = tokio::spawn(async move {
        for _ in 0.. {
            // Two keys in one revision: a snapshot has both or none.
            let value = format!("{}", rand(u64::MAX));
            let both = ["pair/a", "pair/b"].map(|key| etcd_client::TxnOp::put(key, value.clone(), None));
            let put = writer.txn(etcd_client::Txn::new().and_then(both.to_vec())).await.unwrap();
            let revision = put.header().unwrap().revision();
            writer.compact(revision, None).await.unwrap();
        }
    });
    let dir = tempfile::tempdir().unwrap();
    for round in 0..5 {
        let file = dir.path().join(format!("{round}"));
        let remote =
            hub::remote::Remote::connect(&[format!("http://{}", fixture.hub.address())]).await.unwrap();
        let status = crate::soon(remote.save_snapshot(&file, |_, _| {})).await.unwrap();
        let data = dir.path().join(format!("hub-{round}"));
        restore(&file, &data, HashCheck::Required).unwrap();
        let hub = open(&data).await;
        let mut copy = crate::connect(&hub).await;
        let values = copy.get("pair/", Some(etcd_client::GetOptions::new().with_prefix())).await.unwrap();
        let values: Vec<&[u8]> = values.kvs().iter().map(etcd_client::KeyValue::value).collect();
        assert!(values.is_empty() || (values.len() == 2 && values[0] == values[1]), "{values:?}");
        assert_eq!(status.keys, 3000 + values.len() as u64);
    }
    assert!(!busy.is_finished(), "the writer failed");
    busy.abort();
    eventually("the writer has ended", async || busy.is_finished()).await;
}

fn rand(below: u64) -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(0) % below
}
