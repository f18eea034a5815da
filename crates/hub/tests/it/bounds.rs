//! What a hub that runs for long takes: of the disk, of its quota, and that nothing is lost over it.

use crate::child::ChildHub;
use crate::connect;
use etcd_client::{Client, GetOptions};
use hub::{Hub, HubConfig, Limits};
use std::collections::BTreeMap;
use std::path::Path;

/// Small, so that each limit is reached many times.
const LIMITS: Limits = Limits { quota: 8 << 20, log: 1 << 20 };
const KEYS: usize = 50;
const VALUE: usize = 16 << 10;
const ROUNDS: usize = 4;
/// Writes per round: 24 MiB, three times the quota and more than a segment of the log.
const WRITES: usize = 1500;

/// Segments of the log and snapshots, and the bytes of both.
fn files(dir: &Path) -> (usize, usize, u64) {
    let (mut segments, mut snapshots, mut bytes) = (0, 0, 0);
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        segments += usize::from(name.starts_with("wal-"));
        snapshots += usize::from(name.starts_with("snap-"));
        bytes += entry.metadata().map_or(0, |metadata| metadata.len()); // it may be gone by now
    }
    (segments, snapshots, bytes)
}

fn newest_snapshot(dir: &Path) -> String {
    let names =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".snap")).max().unwrap_or_default()
}

fn value(round: usize, write: usize) -> Vec<u8> {
    let mut value = format!("{round}/{write} ").into_bytes();
    value.resize(VALUE, b'x');
    value
}

async fn check(client: &mut Client, written: &BTreeMap<String, Vec<u8>>) {
    let options = GetOptions::new().with_all_keys();
    let all = client.kv_client().max_decoding_message_size(usize::MAX).get("", Some(options)).await.unwrap();
    let found: BTreeMap<String, Vec<u8>> =
        all.kvs().iter().map(|kv| (kv.key_str().unwrap().to_owned(), kv.value().to_vec())).collect();
    assert!(found == *written, "{} keys, {} expected", found.len(), written.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_snapshots_and_crashes_later_disk_and_history_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let mut written = BTreeMap::new();
    let mut snapshots = std::collections::BTreeSet::new();
    let mut most = (0, 0, 0);
    for round in 0..ROUNDS {
        let child = ChildHub::start_with(dir.path(), LIMITS);
        let mut client = Client::connect([child.address.as_str()], None).await.unwrap();
        check(&mut client, &written).await;
        for write in 0..WRITES {
            let (key, value) = (format!("k{:02}", write % KEYS), value(round, write));
            // Never refused: history goes before the quota is used up.
            client.put(key.as_str(), value.clone(), None).await.unwrap();
            written.insert(key, value);
            if write % 20 == 0 {
                let now = files(dir.path());
                most = (most.0.max(now.0), most.1.max(now.1), most.2.max(now.2));
                snapshots.insert(newest_snapshot(dir.path()));
            }
        }
        assert_eq!(client.status().await.unwrap().errors(), <[String; 0]>::default());
        child.kill();
    }
    // Each needs more log than the one before is large, of at most a quarter of the quota of history.
    assert!(snapshots.len() > ROUNDS * 3, "the limit of the log was reached {} times", snapshots.len());
    // The segment in use, those that the snapshot in the making replaces, and the next; two snapshots and one in the
    // making. A segment has 16 MiB.
    assert!(most.0 <= 4 && most.1 <= 3, "{most:?}");
    assert!(most.2 <= ((4 * 16) << 20) + 3 * LIMITS.quota, "{most:?}");
    let hub = Hub::start(HubConfig { limits: LIMITS, ..crate::config(dir.path()) }).await.unwrap();
    let mut client = connect(&hub).await;
    check(&mut client, &written).await;
    assert!(
        client.get("k00", Some(GetOptions::new().with_revision(2))).await.is_err(),
        "nothing was compacted"
    );
    drop(hub);
    assert_eq!(hub::verify::verify(dir.path()).unwrap().problems, Vec::<String>::new());
}
