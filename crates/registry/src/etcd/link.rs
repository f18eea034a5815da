//! One client of the hub, made of the certificates and the password as they were then, and its login.
//!
//! Not here: deadlines and attempts. Invariant: with a user nothing is asked before a login, because the hub would
//! take the certificate's name for the user; a login that is over is repeated once, however many calls find it so.

use crate::store::StoreError;
use access::{Access, Ready, Stamp};
use etcd_client as ec;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tracing::debug;

/// etcd answers pings that come faster than every 5 s with GOAWAY.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// A hub that does not answer a ping for this long is gone; its watches end and are made again.
const PING_TIMEOUT: Duration = Duration::from_secs(3);
/// A machine on the same network accepts a connection in milliseconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// etcd's words for a login that is over: of a token that expired or that a restart forgot, of users that changed
/// since, and of none.
const OVER: [&str; 3] = [
    "etcdserver: invalid auth token",
    "etcdserver: revision of auth store is old",
    "etcdserver: user name is empty",
];
/// Of a user who may not.
const DENIED: &str = "etcdserver: permission denied";
/// Of a hub without users.
const NO_USERS: &str = "etcdserver: authentication is not enabled";

/// Which login a call was made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Login {
    /// 0 is none.
    number: u64,
    /// It was not needed: the hub has no users.
    open: bool,
}

pub(super) struct Link {
    /// Some kilobytes of channels.
    client: ec::Client,
    user: Option<(String, String)>,
    login: Mutex<Login>,
    /// Of the files that it was made of.
    pub(super) stamp: Stamp,
}

impl Link {
    /// Connects when first used.
    pub(super) async fn new(access: &Access) -> Result<Self, StoreError> {
        let ready = access.ready()?;
        let options = ec::ConnectOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
            .with_keep_alive_while_idle(true);
        let options = ready.options(options);
        let client = Box::pin(ec::Client::connect(&access.endpoints, Some(options))).await;
        let client = client.map_err(|error| StoreError::Unreachable {
            endpoints: access.names(),
            reason: access::reason(&error, access),
        })?;
        let Ready { login: user, stamp, .. } = ready;
        Ok(Self { client, user, login: Mutex::new(Login { number: 0, open: false }), stamp })
    }

    /// tonic takes 4 MiB unless told otherwise; the hub does not split a listing or a transaction.
    pub(super) fn kv(&self) -> ec::KvClient {
        self.client.kv_client().max_decoding_message_size(usize::MAX)
    }

    pub(super) async fn txn(self: Arc<Self>, txn: ec::Txn) -> Result<ec::TxnResponse, ec::Error> {
        self.kv().txn(txn).await
    }

    pub(super) fn lease(&self) -> ec::LeaseClient {
        self.client.lease_client()
    }

    pub(super) fn watch(&self) -> ec::WatchClient {
        self.client.watch_client().max_decoding_message_size(usize::MAX)
    }

    /// Logs in if there is a user, and nobody did since the login that is `over`.
    pub(super) async fn log_in(&self, over: Option<Login>) -> Result<Login, ec::Error> {
        // Whoever comes while somebody logs in waits for that login.
        let mut login = self.login.lock().await;
        let Some(user) = &self.user else { return Ok(*login) };
        if login.number > 0 && over != Some(*login) {
            return Ok(*login);
        }
        let open = match self.client.clone().update_user(Some(user.clone())).await {
            Ok(()) => false,
            Err(ec::Error::GRpcStatus(status)) if status.message() == NO_USERS => true,
            Err(error) => return Err(error),
        };
        *login = Login { number: login.number + 1, open };
        debug!(user = user.0, number = login.number, "logged in");
        Ok(*login)
    }

    /// Whether a call failed because its login is over. It was not carried out then.
    pub(super) fn wants_login(&self, error: &ec::Error, login: Login) -> bool {
        if self.user.is_none() {
            return false;
        }
        match error {
            // Users came since: without a login the certificate's name was the user.
            ec::Error::GRpcStatus(status) if login.open && status.message() == DENIED => true,
            ec::Error::GRpcStatus(status) => OVER.contains(&status.message()),
            ec::Error::WatchError(_) => true,
            _ => false,
        }
    }
}

/// Why a watch was not begun, if it is the user's fault. etcd 3.4 says "permission denied" of a token that expired too.
pub(super) fn refused_watch(created: &ec::WatchResponse) -> Option<String> {
    let reason = created.cancel_reason();
    let of_users = OVER.iter().chain([&DENIED]).find(|words| reason.contains(**words))?;
    created.canceled().then(|| (*of_users).to_owned())
}
