//! The hub over the network, by `etcd-client`: the same code whether Muster's hub or an etcd cluster answers.

use crate::store::{CALL_TIMEOUT, Change, Changes, Guard, KeyValue, Listing, Outcome, StoreError, Write};
use bytes::Bytes;
use etcd_client as ec;
use model::{LeaseId, Revision};
use std::{future::Future, sync::Arc, time::Duration};

/// etcd answers pings that come faster than every 5 s with GOAWAY.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// A hub that does not answer a ping for this long is gone; its watches end and are made again.
const PING_TIMEOUT: Duration = Duration::from_secs(3);
/// A machine on the same network accepts a connection in milliseconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

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

    /// Every call has a deadline, and its errors name the endpoints.
    async fn call<T>(&self, call: impl Future<Output = Result<T, ec::Error>>) -> Result<T, StoreError> {
        match tokio::time::timeout(CALL_TIMEOUT, call).await {
            Err(_) => Err(StoreError::Timeout { endpoints: self.endpoints.to_string() }),
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.explain(error)),
        }
    }

    fn explain(&self, error: ec::Error) -> StoreError {
        // gRPC's UNAVAILABLE: the transport's way to say that nobody answered.
        const UNAVAILABLE: i32 = 14;
        match &error {
            ec::Error::GRpcStatus(status) if status.code() as i32 != UNAVAILABLE => {
                StoreError::Refused(status.message().to_owned())
            }
            _ => StoreError::Unreachable { endpoints: self.endpoints.to_string(), reason: reason(&error) },
        }
    }

    pub(crate) async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        let mut answer = self.call(self.client.kv_client().get(key, None)).await?;
        Ok(answer.take_kvs().into_iter().next().and_then(key_value))
    }

    pub(crate) async fn get_many(&self, keys: &[String]) -> Result<Vec<KeyValue>, StoreError> {
        let gets: Vec<_> = keys.iter().map(|key| ec::TxnOp::get(key.as_str(), None)).collect();
        let answer = self.call(self.client.kv_client().txn(ec::Txn::new().and_then(gets))).await?;
        let found = answer.op_responses().into_iter().filter_map(|response| match response {
            ec::TxnOpResponse::Get(mut get) => get.take_kvs().into_iter().next().and_then(key_value),
            _ => None,
        });
        Ok(found.collect())
    }

    pub(crate) async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        let options = Some(ec::GetOptions::new().with_prefix());
        let mut answer = self.call(self.client.kv_client().get(prefix, options)).await?;
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
        let answer = self.call(self.client.kv_client().txn(txn)).await?;
        Ok(Outcome { committed: answer.succeeded(), revision: revision(answer.header()) })
    }

    pub(crate) async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let seconds = ttl.as_secs_f64().ceil() as i64;
        let answer = self.call(self.client.lease_client().grant(seconds, None)).await?;
        Ok(LeaseId(answer.id()))
    }

    pub(crate) async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.call(self.client.lease_client().revoke(lease.0)).await.map(drop)
    }

    pub(crate) async fn keeper(&self, lease: LeaseId) -> Result<Keeper, StoreError> {
        let mut client = self.client.lease_client();
        let opened = self.call(client.keep_alive(lease.0)).await;
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
        let mut client = self.client.watch_client();
        let stream = self.call(client.watch(prefix, Some(options))).await?;
        Ok(EtcdWatch { stream: Box::new(stream), etcd: self.clone() })
    }
}

/// Renews one lease on one stream.
pub struct Keeper {
    lease: LeaseId,
    stream: Box<(ec::LeaseKeeper, ec::LeaseKeepAliveStream)>,
    etcd: Etcd,
}

impl Keeper {
    pub(crate) async fn renew(&mut self) -> Result<(), StoreError> {
        let (sender, answers) = &mut *self.stream;
        let exchange = async {
            sender.keep_alive().await?;
            answers.message().await
        };
        match self.etcd.call(exchange).await? {
            Some(answer) if answer.ttl() > 0 => Ok(()),
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
            let Some(answer) = answer else {
                return Err(StoreError::WatchEnded("the hub closed the stream".to_owned()));
            };
            if answer.compact_revision() > 0 {
                return Err(StoreError::Compacted(Revision(answer.compact_revision())));
            }
            if answer.canceled() {
                return Err(StoreError::WatchEnded(answer.cancel_reason().to_owned()));
            }
            let changes: Vec<_> = answer.events().iter().filter_map(change).collect();
            if !changes.is_empty() {
                return Ok(Changes { revision: revision(answer.header()), changes });
            }
        }
    }
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

/// The innermost cause: "Connection refused" says more than "transport error".
fn reason(error: &ec::Error) -> String {
    let mut cause: &dyn std::error::Error = match error {
        ec::Error::TransportError(error) => error,
        ec::Error::GRpcStatus(status) => match std::error::Error::source(status) {
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
