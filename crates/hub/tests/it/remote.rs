//! What `muster hub` asks of a running server, asked of the hub and of Debian's etcd 3.4.

use crate::differential::Etcd;
use crate::{Fixture, soon};
use hub::remote::{Remote, RemoteError};
use hub::snapshot::{HashCheck, SnapshotFile};
use mvcc::Revision;
use std::fs;
use std::os::unix::fs::PermissionsExt;

async fn asked(address: String, version: &str) {
    let remote = Remote::connect(&[format!("http://{address}")]).await.unwrap();
    let mut client = etcd_client::Client::connect([address], None).await.unwrap();
    for key in 0..50 {
        client.put(format!("k{key}"), vec![b'x'; 10_000], None).await.unwrap();
    }
    client.lease_grant(60, None).await.unwrap();
    let status = remote.status().await.unwrap();
    assert!(status.version.starts_with(version), "{status:?}");
    assert_eq!((status.revision, status.keys, status.leases, status.members), (Revision(51), 50, 1, 1));
    assert!(status.leader == status.member && status.member != 0 && status.db_size > 0, "{status:?}");

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("snapshot");
    fs::write(&file, "the last one").unwrap();
    let mut told = Vec::new();
    let saved = soon(remote.save_snapshot(&file, |came, left| told.push((came, left)))).await.unwrap();
    assert_eq!((saved.revision, saved.keys, saved.leases), (Revision(51), 50, 1));
    assert_eq!(SnapshotFile::read(&file, HashCheck::Required).unwrap().status, saved);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(told.last(), Some(&(fs::metadata(&file).unwrap().len(), 0)));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no part is left");

    assert_eq!(remote.compact(Some(Revision(20))).await.unwrap(), Revision(20));
    let error = remote.compact(Some(Revision(20))).await.unwrap_err();
    assert!(matches!(error, RemoteError::Refused { .. }), "{error}");
    assert_eq!(remote.compact(None).await.unwrap(), Revision(51));
    remote.defragment().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_hub() {
    let fixture = Fixture::start().await;
    Box::pin(asked(fixture.hub.address().to_string(), "3.5.")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_etcd() {
    let dir = tempfile::tempdir().unwrap();
    let etcd = Etcd::start(dir.path()).await;
    Box::pin(asked(etcd.address.clone(), "3.4.")).await;
}
