//! What a behaviour runs on: an empty hub of its own.
//!
//! Invariant: whatever is started here is gone when the [`Backend`] is dropped, also by a panic.

use crate::authority::Authority;
use crate::etcd_process::Etcd;
use crate::eventually;
use ::hub::{AuthConfig, Hub, HubConfig, HubError, Limits, TlsConfig};
use access::{Access, Login, Password};
use model::Revision;
use registry::Store;
use std::net::SocketAddr;
use std::time::Duration;
use tempfile::TempDir;

/// How long a login of a secured hub lasts that nobody uses; the least that etcd allows.
pub(crate) const LOGIN: Duration = Duration::from_secs(1);

/// The one user of a secured hub.
pub(crate) const USER: &str = "root";
pub(crate) const PASSWORD: &str = "geheim";

/// An empty hub and access to it.
pub(crate) struct Backend {
    pub(crate) store: Store,
    pub(crate) access: Access,
    server: Server,
    /// Of a secured hub's certificates.
    authority: Option<Authority>,
}

enum Server {
    Memory,
    Hub(Embedded),
    Etcd(Etcd),
}

impl Backend {
    pub(crate) async fn memory() -> Self {
        Self { store: Store::memory(), access: Access::default(), server: Server::Memory, authority: None }
    }

    pub(crate) async fn hub() -> Self {
        Self::over(Server::Hub(Embedded::new().await)).await
    }

    pub(crate) async fn etcd() -> Self {
        Self::over(Server::Etcd(Etcd::new().await)).await
    }

    async fn over(server: Server) -> Self {
        let access = Access::open(&[server.endpoint()]);
        let store = Store::connect(&access).await.unwrap();
        Self { store, access, server, authority: None }
    }

    /// Muster's hub with certificates and a user.
    pub(crate) async fn secured_hub() -> Self {
        let authority = Authority::new();
        let server = Server::Hub(Embedded::secured(authority.server()).await);
        Self::secured(server, authority).await
    }

    /// etcd with certificates and a user.
    pub(crate) async fn secured_etcd() -> Self {
        let authority = Authority::new();
        let tls = authority.server();
        // etcd takes the name in a certificate for the user; this one may ask whether etcd is well.
        let mut probe = authority.access("");
        probe.identity = Some(authority.sign(USER));
        let server = Server::Etcd(Etcd::secured(tls, probe).await);
        Self::secured(server, authority).await
    }

    async fn secured(server: Server, authority: Authority) -> Self {
        let mut access = authority.access(&server.endpoint());
        access.identity = Some(authority.sign("machine"));
        let login = Login { user: USER.to_owned(), password: Password::Given(PASSWORD.to_owned()) };
        access.login = Some(login);
        let store = Store::connect(&access).await.unwrap();
        let backend = Self { store, access, server, authority: Some(authority) };
        backend.enable_users().await;
        backend
    }

    async fn enable_users(&self) {
        let client = self.client().await;
        let mut auth = client.auth_client();
        auth.user_add(USER, PASSWORD, None).await.unwrap();
        auth.user_grant_role(USER, "root").await.unwrap();
        auth.auth_enable().await.unwrap();
    }

    /// A client of another make, with a certificate and without a login.
    pub(crate) async fn client(&self) -> etcd_client::Client {
        let options = self.access.ready().unwrap().options(etcd_client::ConnectOptions::new());
        etcd_client::Client::connect([self.endpoint()], Some(options)).await.unwrap()
    }

    /// Of a secured hub's certificates.
    pub(crate) fn authority(&self) -> &Authority {
        self.authority.as_ref().unwrap()
    }

    /// `http://host:port`, or `https://host:port` of a secured one.
    pub(crate) fn endpoint(&self) -> String {
        self.server.endpoint()
    }

    /// Another client, with a connection of its own.
    pub(crate) async fn another_store(&self) -> Store {
        Store::connect(&self.access).await.unwrap()
    }

    /// Forgets the history below `revision`.
    pub(crate) async fn compact(&self, revision: Revision) {
        self.client().await.kv_client().compact(revision.0, None).await.unwrap();
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
            Self::Hub(hub) if hub.tls.is_some() => format!("https://{}", hub.address),
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
    tls: Option<TlsConfig>,
}

impl Embedded {
    async fn new() -> Self {
        Self::begin(None).await
    }

    async fn secured(tls: TlsConfig) -> Self {
        Self::begin(Some(tls)).await
    }

    async fn begin(tls: Option<TlsConfig>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let hub = start(&dir, "127.0.0.1:0".parse().unwrap(), tls.clone()).await.unwrap();
        Self { address: hub.address(), running: Some(hub), dir, tls }
    }

    async fn start_again(&mut self) {
        let Self { running, dir, address, tls } = self;
        eventually("the hub has its port again", async || match start(dir, *address, tls.clone()).await {
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

async fn start(dir: &TempDir, listen: SocketAddr, tls: Option<TlsConfig>) -> Result<Hub, HubError> {
    let data_dir = dir.path().to_owned();
    Hub::start(HubConfig {
        data_dir,
        listen,
        advertise: None,
        name: "test".to_owned(),
        // The least that bcrypt allows: every behaviour logs in.
        auth: AuthConfig { bcrypt_cost: 4, token_ttl: LOGIN },
        tls,
        limits: Limits::default(),
    })
    .await
}
