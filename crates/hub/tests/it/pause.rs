//! How long writes wait while a snapshot is taken: figures to read, not to assert.

use crate::Fixture;
use etcd_client::{Client, Txn, TxnOp};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const KEYS: usize = 100_000;
const SNAPSHOTS: usize = 10;

/// Puts one after the other until told to stop; how long each took, in order of length.
async fn puts(mut client: Client, stop: Arc<AtomicBool>) -> Vec<Duration> {
    let mut took = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        client.put("busy", "x", None).await.unwrap();
        took.push(start.elapsed());
    }
    took.sort_unstable();
    took
}

fn report(what: &str, took: &[Duration]) {
    let at = |share: usize| took[(took.len() - 1) * share / 1000];
    println!(
        "{what}: {} puts, median {:?}, 99.9 % {:?}, longest {:?}",
        took.len(),
        at(500),
        at(999),
        at(1000)
    );
}

/// `cargo test -p hub --release --test it -- --ignored --nocapture pause`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints figures"]
async fn what_a_snapshot_costs_writers() {
    let fixture = Fixture::start().await;
    let mut client = fixture.client().await;
    let keys: Vec<usize> = (0..KEYS).collect();
    for keys in keys.chunks(125) {
        let put = |key: &usize| TxnOp::put(format!("k{key:06}"), vec![b'v'; 256], None);
        client.txn(Txn::new().and_then(keys.iter().map(put).collect::<Vec<_>>())).await.unwrap();
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    println!("{KEYS} keys of 256 bytes: {}", status.lines().find(|line| line.starts_with("VmRSS")).unwrap());
    for (what, snapshots) in [("alone", 0), ("with snapshots", SNAPSHOTS)] {
        let stop = Arc::new(AtomicBool::new(false));
        let writer = tokio::spawn(puts(fixture.client().await, Arc::clone(&stop)));
        for _ in 0..snapshots {
            let mut stream = client.snapshot().await.unwrap();
            while stream.message().await.unwrap().is_some() {}
        }
        if snapshots == 0 {
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        stop.store(true, Ordering::Relaxed);
        report(what, &writer.await.unwrap());
    }
}
