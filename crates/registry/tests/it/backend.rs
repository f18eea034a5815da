//! What a behaviour runs on: an empty hub of its own.
//!
//! Invariant: whatever is started here is gone when the [`Backend`] is dropped, also by a panic.

use crate::etcd_process::Etcd;
use crate::eventually;
use ::hub::{AuthConfig, Hub, HubConfig, HubError, Limits};
use model::Revision;
use registry::Store;
use std::net::SocketAddr;
use tempfile::TempDir;

/// An empty hub and access to it.
pub(crate) struct Backend {
    pub(crate) store: Store,
    server: Server,
}

enum Server {
    Memory,
    Hub(Embedded),
    Etcd(Etcd),
}

impl Backend {
    pub(crate) async fn memory() -> Self {
        Self { store: Store::memory(), server: Server::Memory }
    }

    pub(crate) async fn hub() -> Self {
        Self::over(Server::Hub(Embedded::new().await)).await
    }

    pub(crate) async fn etcd() -> Self {
        Self::over(Server::Etcd(Etcd::new().await)).await
    }

    async fn over(server: Server) -> Self {
        let store = Store::connect(&[server.endpoint()]).await.unwrap();
        Self { store, server }
    }

    /// `http://host:port`.
    pub(crate) fn endpoint(&self) -> String {
        self.server.endpoint()
    }

    /// Another client, with a connection of its own.
    pub(crate) async fn another_store(&self) -> Store {
        Store::connect(&[self.endpoint()]).await.unwrap()
    }

    /// Forgets the history below `revision`.
    pub(crate) async fn compact(&self, revision: Revision) {
        let client = etcd_client::Client::connect([self.endpoint()], None).await.unwrap();
        client.kv_client().compact(revision.0, None).await.unwrap();
    }

    /// Stops the hub in order.
    pub(crate) async fn stop(&mut self) {
        match &mut self.server {
            Server::Memory => unreachable!("the twin in memory cannot be stopped"),
            Server::Hub(hub) => hub.running.take().unwrap().shutdown().await,
            Server::Etcd(etcd) => etcd.stop(),
        }
    }

    /// Ends the hub without farewell.
    pub(crate) async fn crash(&mut self) {
        match &mut self.server {
            Server::Memory => unreachable!("the twin in memory cannot crash"),
            Server::Hub(hub) => drop(hub.running.take().unwrap()),
            Server::Etcd(etcd) => etcd.kill(),
        }
    }

    /// Starts it again, where it was and with what it had.
    pub(crate) async fn start_again(&mut self) {
        match &mut self.server {
            Server::Memory => unreachable!("the twin in memory cannot be started again"),
            Server::Hub(hub) => hub.start_again().await,
            Server::Etcd(etcd) => etcd.start_again().await,
        }
    }
}

impl Server {
    fn endpoint(&self) -> String {
        match self {
            Self::Memory => unreachable!("the twin in memory has no endpoint"),
            Self::Hub(hub) => format!("http://{}", hub.address),
            Self::Etcd(etcd) => etcd.endpoint(),
        }
    }
}

/// Muster's hub, in this process.
struct Embedded {
    running: Option<Hub>,
    dir: TempDir,
    address: SocketAddr,
}

impl Embedded {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let hub = start(&dir, "127.0.0.1:0".parse().unwrap()).await.unwrap();
        Self { address: hub.address(), running: Some(hub), dir }
    }

    async fn start_again(&mut self) {
        let Self { running, dir, address } = self;
        eventually("the hub has its port again", async || match start(dir, *address).await {
            Ok(hub) => {
                *running = Some(hub);
                true
            }
            // The port is an ephemeral one: an outgoing connection may have it for a moment.
            Err(HubError::Listen { .. }) => false,
            Err(error) => panic!("the hub does not start again: {error:?}"),
        })
        .await;
    }
}

async fn start(dir: &TempDir, listen: SocketAddr) -> Result<Hub, HubError> {
    let data_dir = dir.path().to_owned();
    Hub::start(HubConfig {
        data_dir,
        listen,
        advertise: None,
        name: "test".to_owned(),
        auth: AuthConfig::default(),
        tls: None,
        limits: Limits::default(),
    })
    .await
}
