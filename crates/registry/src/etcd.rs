//! The hub over the network, by `etcd-client`: the same code whether Muster's hub or an etcd cluster answers.

use crate::store::{
    CALL_TIMEOUT, Change, Changes, Guard, KeyValue, Listing, MAX_TXN_OPS, Outcome, StoreError, Write,
};
use bytes::Bytes;
use etcd_client as ec;
use model::{LeaseId, Revision};
use std::{error::Error, future::Future, sync::Arc, time::Duration};
use tokio::time::Instant;
use tonic::{Code, ConnectError};

/// etcd answers pings that come faster than every 5 s with GOAWAY.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// A hub that does not answer a ping for this long is gone; its watches end and are made again.
const PING_TIMEOUT: Duration = Duration::from_secs(3);
/// A machine on the same network accepts a connection in milliseconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How many connections a call tries when there are several endpoints: the channel picks one at random, a dead one
/// as gladly as the others. Of two, one dead, this many picks in a row miss the other once in 65 000 calls.
const CONNECTS: u32 = 16;
/// A connection that is refused is refused at once. What takes longer has been waited for, and is not tried again.
const CONNECT_AGAIN_WITHIN: Duration = Duration::from_millis(500);

/// Connections to an etcd v3 endpoint.
#[derive(Clone)]
pub struct Etcd {
    /// The client is some kilobytes of channels; clones of this handle share one.
    client: Arc<ec::Client>,
    endpoints: Arc<str>,
}

impl Etcd {
    pub(crate) async fn connect(endpoints: &[String]) -> Result<Self, StoreError> {
        let options = ec::ConnectOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
            .with_keep_alive_while_idle(true);
        let names: Arc<str> = endpoints.join(",").into();
        let client = ec::Client::connect(endpoints, Some(options)).await;
        let client = client.map_err(|error| StoreError::Unreachable {
            endpoints: names.to_string(),
            reason: reason(&error),
        })?;
        Ok(Self { client: Arc::new(client), endpoints: names })
    }

    /// tonic takes 4 MiB unless told otherwise; the hub does not split a listing or a transaction.
    fn kv(&self) -> ec::KvClient {
        self.client.kv_client().max_decoding_message_size(usize::MAX)
    }

    /// Every call has a deadline, and its errors name the endpoints. Tried again is only what was never sent.
    async fn call<T, F>(&self, call: impl Fn() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, ec::Error>>,
    {
        let start = Instant::now();
        let mut left = if self.endpoints.contains(',') { CONNECTS } else { 1 };
        // The client's futures have some kilobytes; those of the callers need not.
        let answer = Box::pin(async {
            loop {
                left -= 1;
                match call().await {
                    Err(error)
                        if left > 0 && never_connected(&error) && start.elapsed() < CONNECT_AGAIN_WITHIN => {}
                    answer => return answer,
                }
            }
        });
        match tokio::time::timeout(CALL_TIMEOUT, answer).await {
            Err(_) => Err(self.late()),
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.explain(error)),
        }
    }

    fn late(&self) -> StoreError {
        StoreError::Timeout { endpoints: self.endpoints.to_string() }
    }

    fn explain(&self, error: ec::Error) -> StoreError {
        match &error {
            ec::Error::GRpcStatus(status) if is_answer(status) => {
                StoreError::Refused(status.message().to_owned())
            }
            _ => StoreError::Unreachable { endpoints: self.endpoints.to_string(), reason: reason(&error) },
        }
    }

    pub(crate) async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        let mut answer = self.call(|| async { self.kv().get(key, None).await }).await?;
        Ok(answer.take_kvs().into_iter().next().and_then(key_value))
    }

    pub(crate) async fn get_many(&self, keys: &[String]) -> Result<Listing, StoreError> {
        self.call(|| async {
            let mut kv = self.kv();
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

    pub(crate) async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        let options = Some(ec::GetOptions::new().with_prefix());
        let mut answer = self.call(|| async { self.kv().get(prefix, options.clone()).await }).await?;
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
        let answer = self.call(|| async { self.kv().txn(txn.clone()).await }).await?;
        Ok(Outcome { committed: answer.succeeded(), revision: revision(answer.header()) })
    }

    pub(crate) async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let seconds = ttl.as_secs_f64().ceil() as i64;
        let answer = self.call(|| async { self.client.lease_client().grant(seconds, None).await }).await?;
        Ok(LeaseId(answer.id()))
    }

    pub(crate) async fn time_left(&self, lease: LeaseId) -> Result<Duration, StoreError> {
        let answer =
            self.call(|| async { self.client.lease_client().time_to_live(lease.0, None).await }).await?;
        Ok(Duration::from_secs(u64::try_from(answer.ttl()).unwrap_or(0)))
    }

    pub(crate) async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.call(|| async { self.client.lease_client().revoke(lease.0).await }).await.map(drop)
    }

    pub(crate) async fn keeper(&self, lease: LeaseId) -> Result<Keeper, StoreError> {
        let opened = self.call(|| async { self.client.lease_client().keep_alive(lease.0).await }).await;
        match opened {
            Ok(stream) => Ok(Keeper { lease, stream: Box::new(stream), etcd: self.clone() }),
            // The client turns "time to live 0" on the first answer into a refusal of its own.
            Err(StoreError::Unreachable { reason, .. }) if reason.contains("lease not found") => {
                Err(StoreError::LeaseEnded(lease))
            }
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn watch(&self, prefix: &str, from: Revision) -> Result<EtcdWatch, StoreError> {
        let options = ec::WatchOptions::new().with_prefix().with_start_revision(from.0);
        let opened = self.call(|| async {
            let mut client = self.client.watch_client().max_decoding_message_size(usize::MAX);
            let mut stream = client.watch(prefix, Some(options.clone())).await?;
            // The hub's word that it watches: before it, "now" has not been decided.
            let created = stream.message().await?;
            Ok((Box::new(stream), created))
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
                endpoints: self.etcd.endpoints.to_string(),
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
/// with these codes the hub says that it could not attend to the call.
fn is_answer(status: &tonic::Status) -> bool {
    status.source().is_none()
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

/// The innermost cause: "Connection refused" says more than "transport error".
fn reason(error: &ec::Error) -> String {
    let mut cause: &dyn Error = match error {
        ec::Error::TransportError(error) => error,
        ec::Error::GRpcStatus(status) => match status.source() {
            Some(source) => source,
            None => return status.message().to_owned(),
        },
        other => return other.to_string(),
    };
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
