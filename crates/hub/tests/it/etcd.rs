//! A real etcd beside the hub, to compare with. Where there is none the tests that want it fail.

use crate::DEADLINE;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// One member; killed when dropped.
pub(crate) struct Etcd {
    child: Child,
    pub(crate) address: String,
    _dir: TempDir,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Etcd {
    pub(crate) async fn start(options: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let address = format!("127.0.0.1:{}", free_port());
        let (client, peer) = (format!("http://{address}"), format!("http://127.0.0.1:{}", free_port()));
        let cluster = format!("default={peer}");
        let child = Command::new("etcd")
            .arg("--data-dir")
            .arg(dir.path())
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &cluster, "--log-level", "error"])
            .args(options)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd runs (Debian: apt-get install etcd-server)");
        let etcd = Self { child, address, _dir: dir };
        let start = Instant::now();
        while !etcd.serves().await {
            assert!(start.elapsed() < DEADLINE, "etcd does not come up");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        etcd
    }

    async fn serves(&self) -> bool {
        let Ok(mut client) = etcd_client::Client::connect([&self.address], None).await else { return false };
        let get = tokio::time::timeout(Duration::from_secs(2), client.get("a", None)).await;
        matches!(get, Ok(Ok(_)))
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may be dead already
        let _ = self.child.wait();
    }
}
