//! Users through etcd-client and through Debian's etcdctl.

use crate::differential::Etcd;
use crate::{Fixture, config, etcdctl, refusal, soon};
use etcd_client::{
    Client, ConnectOptions, Error, LeaseGrantOptions, LockOptions, Permission, PutOptions, Txn, TxnOp,
    UserAddOptions,
};
use hub::{AuthConfig, Hub, HubConfig};
use std::time::Duration;
use tonic::Code;

async fn login(hub: &Hub, user: &str) -> Result<Client, Error> {
    let options = ConnectOptions::new().with_user(user, "pw");
    Client::connect([hub.address().to_string()], Some(options)).await
}

/// A hub with root, and with ann, who may read and write `a/` and read `r/`.
async fn with_users(fixture: &Fixture) -> (Client, Client) {
    let mut client = fixture.client().await;
    for user in ["root", "ann"] {
        client.user_add(user, "pw", None).await.unwrap();
    }
    client.user_grant_role("root", "root").await.unwrap();
    client.role_add("r").await.unwrap();
    let read_write = Permission::read_write("a/").with_prefix();
    client.role_grant_permission("r", read_write).await.unwrap();
    client.role_grant_permission("r", Permission::read("r/").with_prefix()).await.unwrap();
    client.role_grant_permission("r", Permission::write("w/").with_prefix()).await.unwrap();
    client.user_grant_role("ann", "r").await.unwrap();
    client.auth_enable().await.unwrap();
    (login(&fixture.hub, "root").await.unwrap(), login(&fixture.hub, "ann").await.unwrap())
}

fn denied() -> (Code, String) {
    (Code::PermissionDenied, "etcdserver: permission denied".to_owned())
}

fn nobody() -> (Code, String) {
    (Code::InvalidArgument, "etcdserver: user name is empty".to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn users_survive_a_crash_and_tokens_do_not() {
    let fixture = Fixture::start().await;
    let (_, mut ann) = with_users(&fixture).await;
    ann.put("a/1", "x", None).await.unwrap();
    // Once from the log, then from a snapshot of it.
    let fixture = fixture.crash().await;
    let mut root = login(&fixture.hub, "root").await.unwrap();
    root.defragment().await.unwrap();
    let fixture = fixture.crash().await;
    let mut anonymous = fixture.client().await;
    assert_eq!(refusal(anonymous.get("a/1", None).await), nobody());
    let mut ann = login(&fixture.hub, "ann").await.unwrap();
    assert_eq!(ann.get("a/1", None).await.unwrap().count(), 1);
    assert_eq!(refusal(ann.put("b", "x", None).await), denied());
    let mut root = login(&fixture.hub, "root").await.unwrap();
    assert_eq!(root.user_get("ann").await.unwrap().roles(), ["r"]);
    assert_eq!(root.role_get("r").await.unwrap().permissions().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_needs_what_its_parts_need() {
    let fixture = Fixture::start().await;
    let (mut root, mut ann) = with_users(&fixture).await;
    root.put("w/1", "secret", None).await.unwrap();
    let prev = Some(PutOptions::new().with_prev_key());
    assert_eq!(refusal(ann.put("w/1", "x", prev.clone()).await), denied());
    let sneaky = Txn::new().and_then([TxnOp::put("w/1", "x", prev)]);
    assert_eq!(refusal(ann.txn(sneaky).await), denied());
    let else_branch = Txn::new().or_else([TxnOp::get("b", None)]);
    assert_eq!(refusal(ann.txn(else_branch).await), denied());
    let nested = Txn::new().and_then([TxnOp::txn(Txn::new().and_then([TxnOp::delete("r/1", None)]))]);
    assert_eq!(refusal(ann.txn(nested).await), denied());
    ann.txn(Txn::new().and_then([TxnOp::put("w/1", "x", None), TxnOp::get("a/1", None)])).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_are_their_keys() {
    let fixture = Fixture::start().await;
    let (mut root, mut ann) = with_users(&fixture).await;
    let lease = |id| Some(LeaseGrantOptions::new().with_id(id));
    assert_eq!(refusal(fixture.client().await.lease_grant(60, lease(5)).await), nobody());
    ann.lease_grant(60, lease(5)).await.unwrap();
    root.put("b", "x", Some(PutOptions::new().with_lease(5))).await.unwrap();
    let with = Some(PutOptions::new().with_lease(5));
    assert_eq!(refusal(ann.lease_revoke(5).await), denied());
    assert_eq!(refusal(ann.put("a/1", "x", with).await), denied());
    let keys = Some(etcd_client::LeaseTimeToLiveOptions::new().with_keys());
    assert_eq!(refusal(ann.lease_time_to_live(5, keys).await), denied());
    assert_eq!(ann.lease_time_to_live(5, None).await.unwrap().granted_ttl(), 60);
    root.lease_revoke(5).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_and_locks_are_somebodys() {
    let fixture = Fixture::start().await;
    let (mut root, mut ann) = with_users(&fixture).await;
    let mut stream = ann.watch("b", None).await.unwrap();
    let answer = soon(stream.message()).await.unwrap().unwrap();
    assert!(answer.canceled());
    let reason = "rpc error: code = PermissionDenied desc = etcdserver: permission denied";
    assert_eq!(answer.cancel_reason(), reason);
    let mut stream = ann.watch("r/1", None).await.unwrap();
    assert!(!soon(stream.message()).await.unwrap().unwrap().canceled());
    root.put("r/1", "x", None).await.unwrap();
    let events = soon(stream.message()).await.unwrap().unwrap();
    assert_eq!(events.events()[0].kv().unwrap().value_str().unwrap(), "x");
    assert_eq!(refusal(ann.lock("b", None).await).1, denied().1);
    let lease = ann.lease_grant(60, None).await.unwrap().id();
    let key = ann.lock("a/lock", Some(LockOptions::new().with_lease(lease))).await.unwrap();
    ann.unlock(key.key()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_root_administers() {
    let fixture = Fixture::start().await;
    let (mut root, mut ann) = with_users(&fixture).await;
    let mut anonymous = fixture.client().await;
    assert_eq!(refusal(ann.user_list().await), denied());
    assert_eq!(refusal(anonymous.auth_disable().await), nobody());
    assert_eq!(refusal(ann.defragment().await), denied());
    assert_eq!(refusal(ann.hash_kv(0).await), denied());
    assert_eq!(refusal(ann.compact(1, None).await), denied());
    assert_eq!(refusal(ann.member_add(["http://h:1"], None).await), denied());
    assert_eq!(refusal(ann.move_leader(1).await), denied());
    // What tells whether the hub is well is open.
    anonymous.status().await.unwrap();
    assert_eq!(anonymous.member_list().await.unwrap().members().len(), 1);
    let mgmt = (Code::InvalidArgument, "etcdserver: invalid auth management".to_owned());
    assert_eq!(refusal(root.user_delete("root").await), mgmt);
    assert_eq!(refusal(root.user_revoke_role("root", "root").await), mgmt);
    // Users see themselves.
    assert_eq!(ann.user_get("ann").await.unwrap().roles(), ["r"]);
    ann.role_get("r").await.unwrap();
    assert_eq!(refusal(ann.user_get("root").await), denied());
    root.auth_disable().await.unwrap();
    anonymous.put("b", "x", None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_end() {
    let dir = tempfile::tempdir().unwrap();
    let auth = AuthConfig { token_ttl: Duration::from_secs(1), bcrypt_cost: 4 };
    let hub = Hub::start(HubConfig { auth, ..config(dir.path()) }).await.unwrap();
    let fixture = Fixture { hub, dir };
    let (mut root, mut ann) = with_users(&fixture).await;
    let wrong = ConnectOptions::new().with_user("ann", "wrong");
    let refused = Client::connect([fixture.hub.address().to_string()], Some(wrong)).await;
    let text = "etcdserver: authentication failed, invalid user ID or password".to_owned();
    assert_eq!(refusal(refused.map(|_| ())), (Code::InvalidArgument, text));
    // Use keeps a token, rest ends it.
    let invalid = (Code::Unauthenticated, "etcdserver: invalid auth token".to_owned());
    for _ in 0..12 {
        ann.get("a/1", None).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await; // to ask for root's would keep it
    }
    assert_eq!(refusal(root.user_list().await), invalid);
    // A changed password ends all logins with the old one.
    let mut root = login(&fixture.hub, "root").await.unwrap();
    let mut ann = login(&fixture.hub, "ann").await.unwrap();
    root.user_change_password("ann", "new").await.unwrap();
    assert_eq!(refusal(ann.get("a/1", None).await), invalid);
    root.user_add("cert", "", Some(UserAddOptions::new().with_no_pwd())).await.unwrap();
    let refused = login(&fixture.hub, "cert").await;
    assert_eq!(refusal(refused.map(|_| ())).0, Code::Unknown);
}

/// Each line and what etcdctl says to it: its output, or its error.
async fn etcdctl_story(address: String) -> Vec<String> {
    let mut told = Vec::new();
    for line in include_str!("auth_client.txt").lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let output = etcdctl::output(etcdctl::start(etcdctl::command_at(&address, &words))).await;
        let errors = String::from_utf8(output.stderr).unwrap();
        let error: Vec<&str> = errors.lines().filter(|line| line.starts_with("Error")).collect();
        let said = String::from_utf8(output.stdout).unwrap();
        told.push(format!("{line}\n{said}{}", error.join("\n")));
    }
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn etcdctl_sees_no_difference() {
    let fixture = Fixture::start().await;
    let dir = tempfile::tempdir().unwrap();
    let etcd = Etcd::start_with(dir.path(), &["--bcrypt-cost", "4"]).await;
    let hub = etcdctl_story(fixture.hub.address().to_string()).await;
    let real = etcdctl_story(etcd.address.clone()).await;
    for (hub, real) in hub.iter().zip(&real) {
        assert_eq!(hub, real, "the hub (left) and etcd (right) differ");
        println!("{hub}");
    }
}
