//! Snapshots between the hub and Debian's etcd 3.4, both ways: saved, judged and restored by etcdctl, and by the hub.
//!
//! Without etcd and etcdctl these tests fail.

use crate::differential::Etcd;
use crate::{Fixture, open};
use etcd_client::{
    Client, Compare, CompareOp, GetOptions, LeaseGrantOptions, LeaseTimeToLiveOptions, PutOptions, Txn, TxnOp,
};
use hub::restore::{RestoreError, restore};
use hub::snapshot::{HashCheck, SnapshotError, SnapshotFile};
use std::fs;
use std::path::Path;

/// What Debian's etcdctl prints; it must succeed.
pub(crate) async fn etcdctl(arguments: &[&str]) -> String {
    let output = tokio::process::Command::new("/usr/bin/etcdctl")
        .env("ETCDCTL_API", "3")
        .args(arguments)
        .kill_on_drop(true)
        .output();
    let output = crate::soon(output).await.expect("etcdctl runs (Debian: apt-get install etcd-client)");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

async fn save(address: &str, file: &Path) {
    etcdctl(&["--endpoints", address, "snapshot", "save", file.to_str().unwrap()]).await;
}

/// Hash, revision and total keys, as etcdctl sees them.
async fn judged(file: &Path) -> (u32, i64, u64) {
    let line = etcdctl(&["snapshot", "status", file.to_str().unwrap()]).await;
    let fields: Vec<&str> = line.trim().split(", ").collect();
    let hash = u32::from_str_radix(fields[0], 16).unwrap();
    (hash, fields[1].parse().unwrap(), fields[2].parse().unwrap())
}

/// As etcd, by etcdctl.
pub(crate) async fn restore_etcd(file: &Path, dir: &Path) -> Etcd {
    etcdctl(&["snapshot", "restore", file.to_str().unwrap(), "--data-dir", dir.to_str().unwrap()]).await;
    Etcd::start(dir).await
}

/// Fills a server with everything that there can be: histories, deletions, revisions of several changes, leases, and
/// values of every size around a page and far beyond.
pub(crate) async fn fill(client: &mut Client) {
    for (id, ttl) in [(7, 600), (1 << 62, 9000), (8, 3000)] {
        client.lease_grant(ttl, Some(LeaseGrantOptions::new().with_id(id))).await.unwrap();
    }
    let leased = |id| Some(PutOptions::new().with_lease(id));
    for key in 0..300 {
        let lease = if key % 3 == 0 { leased(7) } else { None };
        client.put(format!("many/{key:04}"), format!("{key}").repeat(key % 40), lease).await.unwrap();
    }
    for (key, size) in [0, 1, 3900, 4000, 4080, 4096, 8192, 20_000, 1 << 20].into_iter().enumerate() {
        client.put(format!("size/{key}"), vec![key as u8; size], leased(1 << 62)).await.unwrap();
    }
    for round in 0..30 {
        client.put("often", format!("{round}"), None).await.unwrap();
        if round % 10 == 3 {
            client.delete("often", None).await.unwrap();
        }
        let puts: Vec<TxnOp> =
            (0..5).map(|n| TxnOp::put(format!("txn/{n}"), format!("{round}"), None)).collect();
        let exists = Compare::version("gone", CompareOp::Greater, 0);
        client.txn(Txn::new().when([exists]).or_else(puts)).await.unwrap();
    }
    client.put([0u8, 255, b'\n'], "binary", None).await.unwrap();
    client.put("gone", "x", leased(8)).await.unwrap();
    client.delete("gone", None).await.unwrap();
}

/// All that can be read: every key at every one of some revisions, and the leases with their keys.
pub(crate) async fn everything(client: &mut Client, revisions: &[i64]) -> Vec<String> {
    let mut kv = client.kv_client().max_decoding_message_size(usize::MAX);
    let mut all = Vec::new();
    for revision in revisions {
        let options = GetOptions::new().with_all_keys().with_revision(*revision);
        match kv.get("", Some(options)).await {
            Ok(answer) => {
                let current = answer.header().unwrap().revision();
                all.push(format!("at {revision} of {current}: {} keys", answer.count()));
                all.extend(answer.kvs().iter().map(|kv| format!("{kv:?}")));
            }
            Err(etcd_client::Error::GRpcStatus(status)) => {
                all.push(format!("at {revision}: {}", status.message()))
            }
            Err(error) => panic!("{error}"),
        }
    }
    let mut leases: Vec<i64> =
        client.leases().await.unwrap().leases().iter().map(etcd_client::LeaseStatus::id).collect();
    leases.sort_unstable();
    for id in leases {
        let options = Some(LeaseTimeToLiveOptions::new().with_keys());
        let lease = client.lease_time_to_live(id, options).await.unwrap();
        assert!(lease.ttl() > lease.granted_ttl() - 60, "{id}: {} of {}", lease.ttl(), lease.granted_ttl());
        let mut keys = lease.keys().to_vec();
        keys.sort();
        all.push(format!("lease {id}: {} s, {keys:?}", lease.granted_ttl()));
    }
    all
}

async fn current(client: &mut Client) -> i64 {
    client.get("x", None).await.unwrap().header().unwrap().revision()
}

async fn client(address: &str) -> Client {
    Client::connect([address], None).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_becomes_an_etcd_and_a_hub_again() {
    let fixture = Fixture::start().await;
    let mut hub = fixture.client().await;
    fill(&mut hub).await;
    let revision = current(&mut hub).await;
    let dir = tempfile::tempdir().unwrap();
    for compacted in [None, Some(revision - 40), Some(revision)] {
        if let Some(compacted) = compacted {
            hub.compact(compacted, None).await.unwrap();
        }
        let name = |of: &str| dir.path().join(format!("{of}-{compacted:?}"));
        let revisions = [0, 2, 100, revision - 41, revision - 40, revision - 20, revision - 1, revision];
        let expected = everything(&mut hub, &revisions).await;

        let file = name("snapshot");
        save(&fixture.hub.address().to_string(), &file).await;
        let status = SnapshotFile::read(&file, HashCheck::Required).unwrap().status;
        assert_eq!(judged(&file).await, (status.hash, revision, status.total_keys));
        assert_eq!((status.revision.0, status.leases), (revision, 3));
        assert_eq!(status.compacted.0, compacted.unwrap_or(-1));

        let etcd = restore_etcd(&file, &name("etcd")).await;
        assert_eq!(everything(&mut client(&etcd.address).await, &revisions).await, expected, "{compacted:?}");
        let back = name("back");
        save(&etcd.address, &back).await;
        drop(etcd);
        let status = restore(&back, &name("hub"), HashCheck::Required).unwrap();
        assert_eq!((status.revision.0, status.keys), (revision, hub_keys(&mut hub).await));
        let again = open(&name("hub")).await;
        assert_eq!(
            everything(&mut crate::connect(&again).await, &revisions).await,
            expected,
            "{compacted:?}"
        );

        // And without the detour.
        restore(&file, &name("twin"), HashCheck::Required).unwrap();
        let twin = open(&name("twin")).await;
        let mut twin = crate::connect(&twin).await;
        assert_eq!(everything(&mut twin, &revisions).await, expected, "{compacted:?}");
        let hash = hub.hash_kv(0).await.unwrap().hash();
        assert_eq!(twin.hash_kv(0).await.unwrap().hash(), hash);
        // It goes on where the other was.
        assert_eq!(twin.put("next", "x", None).await.unwrap().header().unwrap().revision(), revision + 1);
    }
}

async fn hub_keys(client: &mut Client) -> u64 {
    let options = GetOptions::new().with_all_keys().with_count_only();
    client.get("", Some(options)).await.unwrap().count().unsigned_abs()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcds_own_file_becomes_a_hub() {
    let dir = tempfile::tempdir().unwrap();
    let etcd = Etcd::start(&dir.path().join("etcd")).await;
    let mut real = client(&etcd.address).await;
    fill(&mut real).await;
    let revision = current(&mut real).await;
    let options = etcd_client::CompactionOptions::new().with_physical();
    real.compact(revision - 10, Some(options)).await.unwrap();
    let revisions = [0, revision - 11, revision - 10, revision - 5];
    let expected = everything(&mut real, &revisions).await;
    let saved = dir.path().join("saved");
    save(&etcd.address, &saved).await;
    // What is in its own file is what its last batch wrote; a defragmentation writes all.
    real.defragment().await.unwrap();
    drop(etcd);
    let own = dir.path().join("etcd/member/snap/db");

    let error = restore(&own, &dir.path().join("own"), HashCheck::Required).unwrap_err();
    assert!(matches!(error, RestoreError::Snapshot(SnapshotError::NoChecksum { .. })), "{error}");
    assert!(error.to_string().contains("--skip-hash-check"));
    for (file, name, check) in [(&own, "own", HashCheck::Skipped), (&saved, "saved-hub", HashCheck::Required)]
    {
        let data = dir.path().join(name);
        restore(file, &data, check).unwrap();
        let hub = open(&data).await;
        assert_eq!(everything(&mut crate::connect(&hub).await, &revisions).await, expected, "{name}");
    }
    let status = SnapshotFile::read(&saved, HashCheck::Required).unwrap().status;
    assert_eq!(judged(&saved).await, (status.hash, status.revision.0, status.total_keys));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_hub_needs_branches_of_branches() {
    const KEYS: usize = 30_000;
    let fixture = Fixture::start().await;
    let mut hub = fixture.client().await;
    let keys: Vec<usize> = (0..KEYS).collect();
    for keys in keys.chunks(125) {
        let put = |key: &usize| TxnOp::put(format!("k{key:06}"), vec![b'v'; key % 90], None);
        hub.txn(Txn::new().and_then(keys.iter().map(put).collect::<Vec<_>>())).await.unwrap();
    }
    let revision = current(&mut hub).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("snapshot");
    save(&fixture.hub.address().to_string(), &file).await;
    let status = SnapshotFile::read(&file, HashCheck::Required).unwrap().status;
    assert_eq!((status.rows, status.keys), (KEYS as u64, KEYS as u64));
    // etcdctl checks that every page is reached once.
    assert_eq!(judged(&file).await, (status.hash, revision, status.total_keys));
    let expected = everything(&mut hub, &[revision / 2, revision]).await;
    let etcd = restore_etcd(&file, &dir.path().join("etcd")).await;
    let mut real = client(&etcd.address).await;
    assert_eq!(everything(&mut real, &[revision / 2, revision]).await, expected);
    // bbolt writes on in what it was given: its own check again, on what became of it.
    for key in 0..200 {
        real.put(format!("k{:06}", key * 150), "new", None).await.unwrap();
    }
    real.compact(revision + 150, Some(etcd_client::CompactionOptions::new().with_physical())).await.unwrap();
    let after = dir.path().join("after");
    save(&etcd.address, &after).await;
    assert_eq!(judged(&after).await.1, revision + 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_hub_has_a_snapshot_too() {
    let fixture = Fixture::start().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("snapshot");
    save(&fixture.hub.address().to_string(), &file).await;
    assert_eq!(SnapshotFile::read(&file, HashCheck::Required).unwrap().status.revision.0, 1);
    let etcd = restore_etcd(&file, &dir.path().join("etcd")).await;
    let mut real = client(&etcd.address).await;
    assert_eq!(real.put("a", "1", None).await.unwrap().header().unwrap().revision(), 2);
    restore(&file, &dir.path().join("hub"), HashCheck::Required).unwrap();
    let hub = open(&dir.path().join("hub")).await;
    let mut hub = crate::connect(&hub).await;
    assert_eq!(hub.put("a", "1", None).await.unwrap().header().unwrap().revision(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_do_not_wait_and_a_snapshot_is_one_moment() {
    let fixture = Fixture::start().await;
    let mut hub = fixture.client().await;
    for key in 0..64 {
        hub.put(format!("k{key}"), vec![1; 100_000], None).await.unwrap();
    }
    let mut stream = hub.snapshot().await.unwrap();
    let first = stream.message().await.unwrap().unwrap();
    let at = first.header().unwrap().revision();
    // Far more than can be on its way: the rest of the file is not made yet. Writers go on all the same.
    for round in 0..20 {
        let put = hub.put("a", format!("{round}"), None);
        crate::soon(put).await.unwrap();
    }
    let mut bytes = first.blob().to_vec();
    let mut left = first.remaining_bytes();
    while let Some(piece) = stream.message().await.unwrap() {
        bytes.extend_from_slice(piece.blob());
        assert_eq!(piece.remaining_bytes(), left.saturating_sub(piece.blob().len() as u64));
        left = piece.remaining_bytes();
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("snapshot");
    fs::write(&file, bytes).unwrap();
    let status = SnapshotFile::read(&file, HashCheck::Required).unwrap().status;
    assert_eq!((status.revision.0, status.keys), (at, 64));
    assert_eq!(judged(&file).await.1, at);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_or_in_the_way_is_refused() {
    let fixture = Fixture::start().await;
    fixture.client().await.put("a", "1", None).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("snapshot");
    save(&fixture.hub.address().to_string(), &file).await;
    let data = dir.path().join("data");
    let occupied = restore(&file, fixture.dir.path(), HashCheck::Required).unwrap_err();
    assert!(matches!(occupied, RestoreError::Exists { .. }), "{occupied}");

    let whole = fs::read(&file).unwrap();
    let mut changed = whole.clone();
    changed[5000] ^= 1;
    fs::write(&file, changed).unwrap();
    for check in [HashCheck::Required, HashCheck::Skipped] {
        let error = restore(&file, &data, check).unwrap_err();
        assert!(matches!(error, RestoreError::Snapshot(SnapshotError::Checksum { .. })), "{error}");
    }
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    let error = restore(&file, &data, HashCheck::Skipped).unwrap_err();
    assert!(matches!(error, RestoreError::Snapshot(SnapshotError::Damaged { .. })), "{error}");
    fs::write(&file, b"hello").unwrap();
    restore(&file, &data, HashCheck::Skipped).unwrap_err();
    assert!(!data.exists());
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["snapshot"]);
    // An empty directory is no obstacle.
    fs::write(&file, whole).unwrap();
    fs::create_dir(&data).unwrap();
    restore(&file, &data, HashCheck::Required).unwrap();
    let hub = open(&data).await;
    assert_eq!(crate::connect(&hub).await.get("a", None).await.unwrap().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn data_is_verified_without_touching_it() {
    let fixture = Fixture::start().await;
    let mut client = fixture.client().await;
    fill(&mut client).await;
    client.compact(200, None).await.unwrap();
    let (revision, hash) = (current(&mut client).await, client.hash_kv(0).await.unwrap().hash());
    let keys = hub_keys(&mut client).await;
    let error = hub::verify::verify(fixture.dir.path()).unwrap_err();
    assert!(matches!(error, hub::HubError::Locked { .. }), "{error}");
    let Fixture { hub, dir } = fixture;
    drop(hub);
    let report = hub::verify::verify(dir.path()).unwrap();
    assert_eq!(report.problems, Vec::<String>::new());
    assert_eq!(
        (report.revision.0, report.compacted.0, report.keys, report.hash),
        (revision, 200, keys, hash)
    );
    assert_eq!(report.leases, 3);
    hub::verify::verify(&dir.path().join("nowhere")).unwrap_err();
}
