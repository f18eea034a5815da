//! What was acknowledged survives: an abrupt end, kill -9, compaction in between.

use crate::child::ChildHub;
use crate::{Fixture, connect, eventually, open};
use etcd_client::{
    Client, CompactionOptions, DeleteOptions, GetOptions, LeaseTimeToLiveOptions, PutOptions, WatchOptions,
};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Everything there is, and the revision.
async fn everything(client: &mut Client) -> (i64, Vec<etcd_client::KeyValue>) {
    let all = client.get("", Some(GetOptions::new().with_all_keys())).await.unwrap();
    (all.header().unwrap().revision(), all.kvs().to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abrupt_end_loses_nothing() {
    let fixture = Fixture::start().await;
    let mut client = fixture.client().await;
    let lease = client.lease_grant(600, None).await.unwrap().id();
    for key in 0..20 {
        client.put(format!("k{key:02}"), "1", Some(PutOptions::new().with_lease(lease))).await.unwrap();
        client.put(format!("k{key:02}"), "2", None).await.unwrap();
    }
    client.delete("k1", Some(DeleteOptions::new().with_prefix())).await.unwrap();
    client.put("leased", "x", Some(PutOptions::new().with_lease(lease))).await.unwrap();
    client.compact(20, Some(CompactionOptions::new().with_physical())).await.unwrap();
    let before = everything(&mut client).await;
    let status = client.status().await.unwrap();
    let hash = client.hash_kv(0).await.unwrap().hash();

    let fixture = fixture.crash().await;
    let mut client = fixture.client().await;
    let after = everything(&mut client).await;
    assert_eq!(before.0, after.0);
    assert_eq!(format!("{:?}", before.1), format!("{:?}", after.1));
    assert_eq!(client.hash_kv(0).await.unwrap().hash(), hash, "the history is the same too");
    let again = client.status().await.unwrap();
    let ids = |status: &etcd_client::StatusResponse| {
        let header = status.header().unwrap();
        (header.cluster_id(), header.member_id())
    };
    assert_eq!(ids(&status), ids(&again));
    assert_eq!(again.raft_term(), status.raft_term() + 1);

    let options = Some(LeaseTimeToLiveOptions::new().with_keys());
    let left = client.lease_time_to_live(lease, options).await.unwrap();
    assert_eq!((left.granted_ttl(), left.keys()), (600, &[b"leased".to_vec()][..]));
    // History too: below the compacted revision it is gone, above it is as it was.
    assert!(client.get("k00", Some(GetOptions::new().with_revision(19))).await.is_err());
    let old = client.get("k19", Some(GetOptions::new().with_revision(40))).await.unwrap();
    assert_eq!(old.kvs()[0].value_str().unwrap(), "1");
    let options = WatchOptions::new().with_all_keys().with_start_revision(20);
    let mut watch = client.watch("", Some(options)).await.unwrap();
    let mut events = 0;
    while events < 22 + 10 + 1 {
        events += watch.message().await.unwrap().unwrap().events().len();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_has_its_full_time_after_a_restart() {
    let fixture = Fixture::start().await;
    let mut client = fixture.client().await;
    let lease = client.lease_grant(3, None).await.unwrap().id();
    client.put("leased", "x", Some(PutOptions::new().with_lease(lease))).await.unwrap();
    tokio::time::sleep(Duration::from_millis(2000)).await; // most of its time goes by before
    let fixture = fixture.crash().await;
    let restarted = Instant::now();
    let mut client = fixture.client().await;
    eventually("the lease expires", async || client.get("leased", None).await.unwrap().count() == 0).await;
    let lived = restarted.elapsed();
    assert!(lived > Duration::from_millis(2800), "{lived:?}: it was charged for the time before");
    // The expiry is durable as well.
    let revision = everything(&mut client).await.0;
    let fixture = fixture.crash().await;
    let mut client = fixture.client().await;
    assert_eq!(everything(&mut client).await.0, revision);
    assert!(client.leases().await.unwrap().leases().is_empty());
}

/// Puts keys of its own until the hub is gone; what was acknowledged, by key: value and revision.
async fn write_until_killed(address: String, writer: usize, round: usize) -> BTreeMap<String, (String, i64)> {
    let mut client = Client::connect([address], None).await.unwrap();
    let mut acknowledged = BTreeMap::new();
    for count in 0.. {
        let key = format!("{round}/{writer}/{}", count % 50);
        let value = count.to_string();
        match client.put(key.as_str(), value.as_str(), None).await {
            Ok(put) => acknowledged.insert(key, (value, put.header().unwrap().revision())),
            Err(_) => break,
        };
    }
    acknowledged
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_nine_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged: BTreeMap<String, (String, i64)> = BTreeMap::new();
    let mut highest = 1;
    for round in 0..5 {
        let child = ChildHub::start(dir.path());
        let mut client = Client::connect([child.address.as_str()], None).await.unwrap();
        check(&mut client, &acknowledged, &mut highest).await;
        let writers: Vec<_> = (0..8)
            .map(|writer| tokio::spawn(write_until_killed(child.address.clone(), writer, round)))
            .collect();
        let start = highest;
        eventually("some hundred writes", async || everything(&mut client).await.0 > start + 300).await;
        child.kill();
        for writer in writers {
            let wrote = writer.await.unwrap();
            assert!(!wrote.is_empty());
            acknowledged.extend(wrote);
        }
    }
    let hub = open(dir.path()).await;
    check(&mut connect(&hub).await, &acknowledged, &mut highest).await;
}

async fn check(client: &mut Client, acknowledged: &BTreeMap<String, (String, i64)>, highest: &mut i64) {
    let (revision, kvs) = everything(client).await;
    let last = acknowledged.values().map(|(_, revision)| *revision).max().unwrap_or(1);
    assert!(revision >= last.max(*highest), "{revision} after {last} was acknowledged");
    *highest = revision;
    let found: BTreeMap<&str, &etcd_client::KeyValue> =
        kvs.iter().map(|kv| (kv.key_str().unwrap(), kv)).collect();
    for (key, (value, revision)) in acknowledged {
        let kv = found.get(key.as_str()).unwrap_or_else(|| panic!("{key} was acknowledged and is gone"));
        // A later write may have reached the disk without its answer reaching the writer.
        assert!(kv.mod_revision() >= *revision, "{key}");
        if kv.mod_revision() == *revision {
            assert_eq!(kv.value_str().unwrap(), value);
        } else {
            assert!(kv.value_str().unwrap().parse::<u64>().unwrap() > value.parse().unwrap());
        }
    }
}
