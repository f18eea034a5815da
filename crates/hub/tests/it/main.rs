//! The hub as its clients see it: through etcd-client, through etcdctl, beside a real etcd, and through crashes.
//!
//! Random tests are as long as a working day allows. `HUB_PROOF=20 cargo test -p hub --test it` makes them twenty times
//! as long.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod abuse;
mod access;
mod alarms;
mod auth;
mod auth_client;
mod bounds;
mod child;
mod client;
mod dice;
mod differential;
mod durability;
mod etcd;
mod etcdctl;
mod http;
mod linear;
mod locks;
mod migrate;
mod raw;
mod remote;
mod snapshot;
mod tls;
mod v2;
mod watch;

use etcd_client::Client;
use hub::{AuthConfig, Hub, HubConfig, Limits};
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// More than anything here takes, however busy the machine.
const DEADLINE: Duration = Duration::from_secs(30);

/// A hub with a data directory of its own.
struct Fixture {
    hub: Hub,
    dir: TempDir,
}

impl Fixture {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { hub: open(dir.path()).await, dir }
    }

    async fn client(&self) -> Client {
        connect(&self.hub).await
    }

    /// Stops the hub without farewell and starts another on the same data.
    async fn crash(self) -> Self {
        let Self { hub, dir } = self;
        drop(hub);
        Self { hub: open(dir.path()).await, dir }
    }
}

fn config(dir: &Path) -> HubConfig {
    HubConfig {
        data_dir: dir.to_owned(),
        listen: "127.0.0.1:0".parse().unwrap(),
        advertise: None,
        name: "test".to_owned(),
        // The least that bcrypt allows: tests log in often.
        auth: AuthConfig { bcrypt_cost: 4, ..AuthConfig::default() },
        tls: None,
        limits: Limits::default(),
    }
}

async fn open(dir: &Path) -> Hub {
    Hub::start(config(dir)).await.unwrap()
}

async fn connect(hub: &Hub) -> Client {
    Client::connect([hub.address().to_string()], None).await.unwrap()
}

/// The code and the text of a refusal.
fn refusal<T: std::fmt::Debug>(result: Result<T, etcd_client::Error>) -> (tonic::Code, String) {
    match result {
        Err(etcd_client::Error::GRpcStatus(status)) => (status.code(), status.message().to_owned()),
        other => panic!("not refused: {other:?}"),
    }
}

/// How many times the usual length random tests have.
fn effort() -> u32 {
    match std::env::var("HUB_PROOF") {
        Ok(times) => times.parse().expect("HUB_PROOF is a number"),
        Err(_) => 1,
    }
}

/// Asks until the answer is yes.
async fn eventually(what: &str, mut check: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !check().await {
        assert!(start.elapsed() < DEADLINE, "not in {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What comes within the deadline.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("nothing came within the deadline")
}
