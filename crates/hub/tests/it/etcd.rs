//! A real etcd beside the hub with data of its own, to compare with. Where there is none the tests that want it fail.

use crate::differential;
use tempfile::TempDir;

/// One member; killed when dropped.
pub(crate) struct Etcd {
    _server: differential::Etcd,
    pub(crate) address: String,
    _dir: TempDir,
}

impl Etcd {
    pub(crate) async fn start(options: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = differential::Etcd::start_with(dir.path(), options).await;
        Self { address: server.address.clone(), _server: server, _dir: dir }
    }
}
