//! A hub's keys and leases moved into Debian's etcd 3.4 and back, and what must not happen on the way.
//!
//! Without etcd these tests fail.

use crate::differential::Etcd;
use crate::snapshot::fill;
use crate::{Fixture, soon};
use etcd_client::{
    Client, ConnectOptions, GetOptions, LeaseGrantOptions, LeaseTimeToLiveOptions, Permission, PutOptions,
};
use hub::migrate::{LeaseTime, MigrateError, Migration, Proof, Step, migrate};
use hub::remote::Remote;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

async fn remote(address: impl ToString) -> Remote {
    Remote::connect(&[format!("http://{}", address.to_string())]).await.unwrap()
}

async fn moved(from: &Remote, to: &Remote, migration: &Migration) -> Result<Proof, MigrateError> {
    soon(migrate(from, to, migration, |_| {})).await
}

/// Key, value and lease of everything, and the leases with their keys.
async fn content(client: &mut Client) -> Vec<String> {
    let mut kv = client.kv_client().max_decoding_message_size(usize::MAX);
    let all = kv.get("", Some(GetOptions::new().with_all_keys())).await.unwrap();
    let mut content: Vec<String> =
        all.kvs().iter().map(|kv| format!("{:?} {:?} {}", kv.key(), kv.value(), kv.lease())).collect();
    let mut ids: Vec<i64> =
        client.leases().await.unwrap().leases().iter().map(etcd_client::LeaseStatus::id).collect();
    ids.sort_unstable();
    for id in ids {
        let options = Some(LeaseTimeToLiveOptions::new().with_keys());
        let lease = client.lease_time_to_live(id, options).await.unwrap();
        let mut keys = lease.keys().to_vec();
        keys.sort();
        content.push(format!("lease {id} {keys:?}"));
    }
    content
}

async fn time_to_live(client: &mut Client, id: i64) -> (i64, i64) {
    let lease = client.lease_time_to_live(id, None).await.unwrap();
    (lease.ttl(), lease.granted_ttl())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_moves_into_an_etcd_and_back() {
    let (hub, back) = (Fixture::start().await, Fixture::start().await);
    let dir = tempfile::tempdir().unwrap();
    let etcd = Etcd::start(dir.path()).await;
    let mut client = hub.client().await;
    fill(&mut client).await;
    for key in 0..2500 {
        client.put(format!("more/{key:05}"), format!("{key}"), None).await.unwrap();
    }
    let expected = content(&mut client).await;
    let (a, b, c) =
        (remote(hub.hub.address()).await, remote(&etcd.address).await, remote(back.hub.address()).await);

    let mut steps = Vec::new();
    let there = soon(migrate(&a, &b, &Migration::default(), |step| steps.push(step))).await.unwrap();
    let mut real = Client::connect([&etcd.address], None).await.unwrap();
    assert_eq!(content(&mut real).await, expected);
    let keys =
        client.get("", Some(GetOptions::new().with_all_keys().with_count_only())).await.unwrap().count();
    assert_eq!((there.keys, there.leases, there.revision), (keys.unsigned_abs(), 3, there.source_now));
    assert_eq!(there.ranges.iter().map(|range| range.keys).sum::<u64>(), there.keys);
    assert!(
        there.ranges.len() > 2
            && there.ranges.iter().all(|range| range.first <= range.last && range.keys <= 1000)
    );
    assert!(matches!(steps.first(), Some(Step::Copying { keys: 0, .. })), "{steps:?}");
    assert!(matches!(steps.last(), Some(Step::Comparing { keys }) if *keys == there.keys), "{steps:?}");

    let again = moved(&b, &c, &Migration::default()).await.unwrap();
    assert_eq!(again.ranges, there.ranges, "the same sums");
    assert_eq!(content(&mut back.client().await).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_on_the_source_may_go_on() {
    let (hub, target) = (Fixture::start().await, Fixture::start().await);
    let mut client = hub.client().await;
    fill(&mut client).await;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let mut writer = client.clone();
    let writing = tokio::spawn(async move {
        let mut round = 0;
        while !stopped.load(Ordering::Relaxed) {
            round += 1;
            let key = format!("busy/{}", round % 7);
            if round % 5 == 0 {
                writer.delete(key, None).await.unwrap();
            } else {
                writer.put(key, format!("{round}"), Some(PutOptions::new().with_lease(7))).await.unwrap();
            }
        }
    });
    let (from, to) = (remote(hub.hub.address()).await, remote(target.hub.address()).await);
    let proof = moved(&from, &to, &Migration::default()).await.unwrap();
    assert!(proof.source_now > proof.revision, "nobody wrote");
    // What was proven is what the source was then.
    let then = client
        .get("busy/", Some(GetOptions::new().with_prefix().with_revision(proof.revision.0)))
        .await
        .unwrap();
    let copied = target.client().await.get("busy/", Some(GetOptions::new().with_prefix())).await.unwrap();
    let pairs = |kvs: &[etcd_client::KeyValue]| -> Vec<(Vec<u8>, Vec<u8>)> {
        kvs.iter().map(|kv| (kv.key().to_vec(), kv.value().to_vec())).collect()
    };
    assert_eq!(pairs(then.kvs()), pairs(copied.kvs()));

    stop.store(true, Ordering::Relaxed);
    writing.await.unwrap();
    let rest = Migration { force: true, ..Migration::default() };
    let proof = moved(&from, &to, &rest).await.unwrap();
    assert_eq!(proof.revision, proof.source_now);
    assert_eq!(content(&mut client).await, content(&mut target.client().await).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_not_empty_is_left_alone_unless_forced() {
    let (hub, target) = (Fixture::start().await, Fixture::start().await);
    let (mut client, mut other) = (hub.client().await, target.client().await);
    for key in ["a/1", "a/2", "b/1"] {
        client.put(key, "new", None).await.unwrap();
    }
    for key in ["a/0", "a/2", "a/9", "c"] {
        other.put(key, "old", None).await.unwrap();
    }
    let (from, to) = (remote(hub.hub.address()).await, remote(target.hub.address()).await);
    let error = moved(&from, &to, &Migration::default()).await.unwrap_err();
    assert!(matches!(error, MigrateError::NotEmpty { keys: 4 }), "{error}");
    assert!(error.to_string().contains("--force"));
    // A prefix that is free is empty.
    let only = |prefix: &str, force| Migration { prefix: prefix.into(), force, ..Migration::default() };
    assert_eq!(moved(&from, &to, &only("b/", false)).await.unwrap().keys, 1);
    assert_eq!(moved(&from, &to, &only("a/", true)).await.unwrap().keys, 2);
    let all = other.get("", Some(GetOptions::new().with_all_keys())).await.unwrap();
    let all: Vec<(&str, &str)> =
        all.kvs().iter().map(|kv| (kv.key_str().unwrap(), kv.value_str().unwrap())).collect();
    assert_eq!(all, [("a/1", "new"), ("a/2", "new"), ("b/1", "new"), ("c", "old")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_have_what_remains_or_what_was_granted() {
    let hub = Fixture::start().await;
    let mut client = hub.client().await;
    let named = |id| Some(LeaseGrantOptions::new().with_id(id));
    client.lease_grant(100, named(5)).await.unwrap();
    client.put("k", "v", Some(PutOptions::new().with_lease(5))).await.unwrap();
    crate::eventually("two seconds pass", async || time_to_live(&mut hub.client().await, 5).await.0 < 98)
        .await;
    let from = remote(hub.hub.address()).await;
    for (leases, most) in [(LeaseTime::Remaining, 98), (LeaseTime::Granted, 100)] {
        let target = Fixture::start().await;
        let to = remote(target.hub.address()).await;
        let migration = Migration { leases, ..Migration::default() };
        assert_eq!(moved(&from, &to, &migration).await.unwrap().leases, 1);
        let (left, granted) = time_to_live(&mut target.client().await, 5).await;
        // By default whoever renews it at its pace is in time.
        assert!(leases != LeaseTime::default() || granted == 100, "{leases:?}: {granted}");
        assert!(left >= most - 10 && granted <= most && left <= granted, "{leases:?}: {left} of {granted}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn users_and_roles_come_along_without_their_passwords() {
    let hub = Fixture::start().await;
    let mut client = hub.client().await;
    for role in ["root", "r"] {
        client.role_add(role).await.unwrap();
    }
    let all = |key| Permission::read_write(key).with_prefix();
    client.role_grant_permission("r", all("a/")).await.unwrap();
    client.role_grant_permission("r", Permission::write("b")).await.unwrap();
    for (user, role) in [("root", "root"), ("ann", "r")] {
        client.user_add(user, "secret", None).await.unwrap();
        client.user_grant_role(user, role).await.unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let etcd = Etcd::start(dir.path()).await;
    let (from, to) = (remote(hub.hub.address()).await, remote(&etcd.address).await);
    let proof = moved(&from, &to, &Migration::default()).await.unwrap();
    assert_eq!((proof.access.roles, proof.access.users), (2, 2));
    assert_eq!(proof.access.without_password, ["ann", "root"]);
    let mut real = Client::connect([&etcd.address], None).await.unwrap();
    assert_eq!(real.user_get("ann").await.unwrap().roles(), ["r"]);
    assert_eq!(real.role_get("r").await.unwrap().permissions().len(), 2);
    // Once they have passwords all is as it was.
    for user in ["root", "ann"] {
        real.user_change_password(user, "new").await.unwrap();
    }
    real.auth_enable().await.unwrap();
    let login = |name| ConnectOptions::new().with_user(name, "new");
    let mut ann = Client::connect([&etcd.address], Some(login("ann"))).await.unwrap();
    ann.put("a/1", "x", None).await.unwrap();
    ann.get("b", None).await.unwrap_err();
    let mut root = Client::connect([&etcd.address], Some(login("root"))).await.unwrap();
    root.delete("a/1", None).await.unwrap();
    root.auth_disable().await.unwrap();

    // Again: there is nothing to do, and passwords stay.
    let again = moved(&from, &to, &Migration::default()).await.unwrap();
    assert_eq!(again.access.without_password, Vec::<String>::new());
    // What differs is left alone, unless forced.
    real.role_grant_permission("r", Permission::read("more")).await.unwrap();
    real.user_revoke_role("ann", "r").await.unwrap();
    let error = moved(&from, &to, &Migration::default()).await.unwrap_err();
    assert!(
        error.to_string().contains("role `r` that differs") && error.to_string().contains("--force"),
        "{error}"
    );
    moved(&from, &to, &Migration { force: true, ..Migration::default() }).await.unwrap();
    assert_eq!(real.role_get("r").await.unwrap().permissions().len(), 2);
    assert_eq!(real.user_get("ann").await.unwrap().roles(), ["r"]);
    // A part of the keys is not all of the users.
    let part = Migration { prefix: b"a/".to_vec(), ..Migration::default() };
    assert_eq!(moved(&from, &to, &part).await.unwrap().access.users, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_is_named() {
    let error = Remote::connect(&["http://127.0.0.1:1".to_owned()]).await;
    let error = match error {
        Ok(remote) => soon(remote.status()).await.unwrap_err(),
        Err(error) => error,
    };
    assert!(error.to_string().contains("http://127.0.0.1:1 cannot be reached"), "{error}");
    let hub = Fixture::start().await;
    let remote = remote(hub.hub.address()).await;
    hub.hub.shutdown().await;
    let error = tokio::time::timeout(Duration::from_secs(20), remote.status()).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("cannot be reached"), "{error}");
}
