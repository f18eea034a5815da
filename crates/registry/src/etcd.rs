//! The hub over the network, by `etcd-client`: the same code whether Muster's hub or an etcd cluster answers.

mod link;

use crate::store::{
    CALL_TIMEOUT, Change, Changes, Guard, KeyValue, Keys, Listing, MAX_TXN_OPS, Outcome, StoreError, Write,
};
use access::Access;
use bytes::Bytes;
use etcd_client as ec;
use link::Link;
use model::{LeaseId, Revision};
use std::sync::{Arc, PoisonError, RwLock};
use std::{error::Error, future::Future, time::Duration};
use tokio::time::Instant;
use tonic::{Code, ConnectError};
use tracing::{info, warn};

/// How many connections a call tries when there are several endpoints: the channel picks one at random, a dead one
/// as gladly as the others. Of two, one dead, this many picks in a row miss the other once in 65 000 calls.
const CONNECTS: u32 = 16;
/// A connection that is refused is refused at once. What takes longer has been waited for, and is not tried again.
const CONNECT_AGAIN_WITHIN: Duration = Duration::from_millis(500);

/// Connections to an etcd v3 endpoint. Clones of this handle share them.
#[derive(Clone)]
pub struct Etcd {
    shared: Arc<Shared>,
}

struct Shared {
    access: Access,
    /// The endpoints, for messages.
    endpoints: String,
    /// Replaced when certificates or a password are.
    link: RwLock<Arc<Link>>,
}

impl Etcd {
    pub(crate) async fn connect(access: Access) -> Result<Self, StoreError> {
        let endpoints = access.names();
        let link = RwLock::new(Arc::new(Link::new(&access).await?));
        Ok(Self { shared: Arc::new(Shared { access, endpoints, link }) })
    }

    fn link(&self) -> Arc<Link> {
        Arc::clone(&self.shared.link.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Every call has a deadline, and its errors name the endpoints. Tried again is only what was never sent, and what
    /// was refused because a login is over.
    async fn call<T, F>(&self, call: impl Fn(Arc<Link>) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, ec::Error>>,
    {
        let start = Instant::now();
        let link = self.link();
        let mut left = if self.shared.endpoints.contains(',') { CONNECTS } else { 1 };
        // The client's futures have some kilobytes; those of the callers need not.
        let answer = Box::pin(async {
            let mut over = None;
            loop {
                left -= 1;
                let login = link.log_in(over).await;
                let used = login.as_ref().ok().copied();
                let answer = match login {
                    Ok(_) => call(Arc::clone(&link)).await,
                    Err(error) => Err(error),
                };
                match (answer, used) {
                    (Err(error), _)
                        if left > 0 && never_connected(&error) && start.elapsed() < CONNECT_AGAIN_WITHIN => {}
                    (Err(error), Some(used)) if over.is_none() && link.wants_login(&error, used) => {
                        over = Some(used);
                        left += 1;
                    }
                    (answer, _) => return answer,
                }
            }
        });
        match tokio::time::timeout(CALL_TIMEOUT, answer).await {
            Err(_) => Err(self.late()),
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                self.look_again(&link).await;
                Err(self.explain(error))
            }
        }
    }

    /// Makes the connections anew if the files that `failed` was made of were replaced since: whoever tries again has
    /// the new ones.
    async fn look_again(&self, failed: &Arc<Link>) {
        let access = &self.shared.access;
        if failed.stamp == access.stamp() {
            return;
        }
        match Link::new(access).await {
            Ok(new) => {
                let mut current = self.shared.link.write().unwrap_or_else(PoisonError::into_inner);
                if Arc::ptr_eq(&current, failed) {
                    *current = Arc::new(new);
                    info!(hub = self.shared.endpoints, "certificates or password replaced, connecting anew");
                }
            }
            Err(error) => {
                warn!(error = format!("{error:?}"), "replaced certificate or password is of no use")
            }
        }
    }

    fn late(&self) -> StoreError {
        StoreError::Timeout { endpoints: self.shared.endpoints.clone() }
    }

    fn explain(&self, error: ec::Error) -> StoreError {
        match &error {
            ec::Error::GRpcStatus(status) if is_answer(status) => self.refused(status.message()),
            ec::Error::WatchError(reason) => self.refused(reason),
            _ => StoreError::Unreachable {
                endpoints: self.shared.endpoints.clone(),
                reason: access::reason(&error, &self.shared.access),
            },
        }
    }

    fn refused(&self, said: &str) -> StoreError {
        match access::remedy(said, &self.shared.access) {
            Some(remedy) => StoreError::Refused(format!("{said}: {remedy}")),
            None => StoreError::Refused(said.to_owned()),
        }
    }

    pub(crate) async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        let mut answer = self.call(|link| async move { link.kv().get(key, None).await }).await?;
        Ok(answer.take_kvs().into_iter().next().and_then(key_value))
    }

    pub(crate) async fn get_many(&self, keys: &[String]) -> Result<Listing, StoreError> {
        self.call(|link| async move {
            let mut kv = link.kv();
            let mut found = Vec::new();
            // The first transaction reads now (0) and tells when that is; the others read at that revision.
            let mut at = 0;
            for keys in keys.chunks(MAX_TXN_OPS) {
                let options = Some(ec::GetOptions::new().with_revision(at));
                let gets: Vec<_> =
                    keys.iter().map(|key| ec::TxnOp::get(key.as_str(), options.clone())).collect();
                let answer = kv.txn(ec::Txn::new().and_then(gets)).await?;
                if at == 0 {
                    at = revision(answer.header()).0;
                }
                found.extend(answer.op_responses().into_iter().filter_map(|response| match response {
                    ec::TxnOpResponse::Get(mut get) => get.take_kvs().into_iter().next().and_then(key_value),
                    _ => None,
                }));
            }
            Ok(Listing { revision: Revision(at), items: found })
        })
        .await
    }

    pub(crate) async fn list(&self, keys: &Keys) -> Result<Listing, StoreError> {
        let options = || match keys {
            Keys::Prefix(_) => ec::GetOptions::new().with_prefix(),
            Keys::Between(_, end) => ec::GetOptions::new().with_range(end.as_str()),
        };
        let list = |link: Arc<Link>| async move { link.kv().get(keys.first(), Some(options())).await };
        let mut answer = self.call(list).await?;
        let revision = revision(answer.header());
        Ok(Listing { revision, items: answer.take_kvs().into_iter().filter_map(key_value).collect() })
    }

    pub(crate) async fn commit(&self, guards: &[Guard], writes: &[Write]) -> Result<Outcome, StoreError> {
        use ec::{Compare, CompareOp};
        let compares: Vec<_> = guards
            .iter()
            .map(|guard| match guard {
                Guard::Absent(key) => Compare::create_revision(key.as_str(), CompareOp::Equal, 0),
                Guard::Present(key) => Compare::create_revision(key.as_str(), CompareOp::Greater, 0),
                Guard::Unchanged(key, at) => Compare::mod_revision(key.as_str(), CompareOp::Equal, at.0),
            })
            .collect();
        let operations: Vec<_> = writes
            .iter()
            .map(|write| match write {
                Write::Put { key, value, lease } => {
                    let options = lease.map(|lease| ec::PutOptions::new().with_lease(lease.0));
                    ec::TxnOp::put(key.as_str(), value.as_ref(), options)
                }
                Write::Delete(key) => ec::TxnOp::delete(key.as_str(), None),
                Write::DeletePrefix(prefix) => {
                    ec::TxnOp::delete(prefix.as_str(), Some(ec::DeleteOptions::new().with_prefix()))
                }
            })
            .collect();
        let txn = ec::Txn::new().when(compares).and_then(operations);
        let answer = self.call(|link| link.txn(txn.clone())).await?;
        Ok(Outcome { committed: answer.succeeded(), revision: revision(answer.header()) })
    }

    pub(crate) async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let seconds = ttl.as_secs_f64().ceil() as i64;
        let answer = self.call(|link| async move { link.lease().grant(seconds, None).await }).await?;
        Ok(LeaseId(answer.id()))
    }

    pub(crate) async fn time_left(&self, lease: LeaseId) -> Result<Duration, StoreError> {
        let answer = self.call(|link| async move { link.lease().time_to_live(lease.0, None).await }).await?;
        Ok(Duration::from_secs(u64::try_from(answer.ttl()).unwrap_or(0)))
    }

    pub(crate) async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.call(|link| async move { link.lease().revoke(lease.0).await }).await.map(drop)
    }

    pub(crate) async fn keeper(&self, lease: LeaseId) -> Result<Keeper, StoreError> {
        let opened = self.call(|link| async move { link.lease().keep_alive(lease.0).await }).await;
        match opened {
            Ok(stream) => Ok(Keeper { lease, stream: Box::new(stream), etcd: self.clone() }),
            // The client turns "time to live 0" on the first answer into a refusal of its own.
            Err(StoreError::Unreachable { reason, .. }) if reason.contains("lease not found") => {
                Err(StoreError::LeaseEnded(lease))
            }
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn watch(&self, keys: &Keys, from: Revision) -> Result<EtcdWatch, StoreError> {
        let opened = self.call(|link| async move {
            let options = ec::WatchOptions::new().with_start_revision(from.0);
            let options = match keys {
                Keys::Prefix(_) => options.with_prefix(),
                Keys::Between(_, end) => options.with_range(end.as_str()),
            };
            let mut stream = link.watch().watch(keys.first(), Some(options)).await?;
            // The hub's word that it watches: before it, "now" has not been decided.
            let created = stream.message().await?;
            match created.as_ref().and_then(link::refused_watch) {
                Some(reason) => Err(ec::Error::WatchError(reason)),
                None => Ok((Box::new(stream), created)),
            }
        });
        let (stream, created) = opened.await?;
        read(created)?;
        Ok(EtcdWatch { stream, etcd: self.clone() })
    }
}

/// Renews one lease on one stream.
pub struct Keeper {
    lease: LeaseId,
    stream: Box<(ec::LeaseKeeper, ec::LeaseKeepAliveStream)>,
    etcd: Etcd,
}

impl Keeper {
    pub(crate) async fn renewed_for(&mut self) -> Result<Duration, StoreError> {
        let (sender, answers) = &mut *self.stream;
        let exchange = async {
            sender.keep_alive().await?;
            answers.message().await
        };
        let answer = tokio::time::timeout(CALL_TIMEOUT, exchange).await.map_err(|_| self.etcd.late())?;
        match answer.map_err(|error| self.etcd.explain(error))? {
            Some(answer) if answer.ttl() > 0 => Ok(Duration::from_secs(answer.ttl().unsigned_abs())),
            Some(_) => Err(StoreError::LeaseEnded(self.lease)),
            None => Err(StoreError::Unreachable {
                endpoints: self.etcd.shared.endpoints.clone(),
                reason: "the keep-alive stream ended".to_owned(),
            }),
        }
    }
}

/// A watch on one stream.
pub struct EtcdWatch {
    stream: Box<ec::WatchStream>,
    etcd: Etcd,
}

impl EtcdWatch {
    pub(crate) async fn next(&mut self) -> Result<Changes, StoreError> {
        loop {
            let answer = self.stream.message().await.map_err(|error| self.etcd.explain(error))?;
            if let Some(changes) = read(answer)? {
                return Ok(changes);
            }
        }
    }
}

/// What an answer on a watch's stream says, if it says something.
fn read(answer: Option<ec::WatchResponse>) -> Result<Option<Changes>, StoreError> {
    let Some(answer) = answer else {
        return Err(StoreError::WatchEnded("the hub closed the stream".to_owned()));
    };
    if answer.compact_revision() > 0 {
        return Err(StoreError::Compacted(Revision(answer.compact_revision())));
    }
    if answer.canceled() {
        return Err(StoreError::WatchEnded(answer.cancel_reason().to_owned()));
    }
    // Not the header's revision: a long replay comes in parts, and each part's header has the hub's present one.
    let Some(last) = answer.events().last().and_then(ec::Event::kv).map(ec::KeyValue::mod_revision) else {
        return Ok(None);
    };
    let changes: Vec<_> = answer.events().iter().filter_map(change).collect();
    Ok((!changes.is_empty()).then_some(Changes { revision: Revision(last), changes }))
}

fn change(event: &ec::Event) -> Option<Change> {
    let kv = event.kv()?;
    match event.event_type() {
        ec::EventType::Put => key_value(kv.clone()).map(Change::Put),
        ec::EventType::Delete => Some(Change::Delete { key: kv.key_str().ok()?.to_owned() }),
    }
}

/// Keys that are no UTF-8 are nobody's here: they are passed over.
fn key_value(kv: ec::KeyValue) -> Option<KeyValue> {
    let (create, modified, lease) = (kv.create_revision(), kv.mod_revision(), kv.lease());
    let (key, value) = kv.into_key_value();
    Some(KeyValue {
        key: String::from_utf8(key).ok()?,
        value: Bytes::from(value),
        create_revision: Revision(create),
        mod_revision: Revision(modified),
        lease: (lease != 0).then_some(LeaseId(lease)),
    })
}

fn revision(header: Option<&ec::ResponseHeader>) -> Revision {
    Revision(header.map_or(0, ec::ResponseHeader::revision))
}

/// Whether the hub itself said so. A status with a source was made on this side, of a connection that broke; and
/// with these codes the hub says that it could not attend to the call. Nor is a stream an answer that ends without a
/// word, which an etcd's does that stops while it speaks TLS.
fn is_answer(status: &tonic::Status) -> bool {
    status.source().is_none()
        && !status.message().starts_with("protocol error:")
        && !matches!(status.code(), Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded)
}

/// Whether there was no connection to send it on.
fn never_connected(error: &ec::Error) -> bool {
    let ec::Error::GRpcStatus(status) = error else { return false };
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}
