//! Writes to the target, many in one transaction.
//!
//! Invariant: a key is in a batch once, as it is to be last; a batch is within etcd's limits.

use super::MigrateError;
use super::cursor::Item;
use crate::remote::{Remote, RemoteError};
use etcd_client::{PutOptions, Txn, TxnOp};
use std::collections::BTreeMap;

/// etcd's limit is 128 operations.
const OPS: usize = 100;

/// Keys and values in a batch, in bytes; etcd's limit is 1.5 MiB for a request. A greater value goes alone.
const BYTES: usize = 1 << 20;

pub(super) struct Writer<'a> {
    to: &'a Remote,
    /// What each key is to be; none is gone.
    batch: BTreeMap<Vec<u8>, Option<Item>>,
    bytes: usize,
}

impl<'a> Writer<'a> {
    pub(super) fn new(to: &'a Remote) -> Self {
        Self { to, batch: BTreeMap::new(), bytes: 0 }
    }

    pub(super) async fn put(&mut self, item: Item) -> Result<(), MigrateError> {
        self.add(item.key.clone(), Some(item)).await
    }

    pub(super) async fn delete(&mut self, key: Vec<u8>) -> Result<(), MigrateError> {
        self.add(key, None).await
    }

    async fn add(&mut self, key: Vec<u8>, item: Option<Item>) -> Result<(), MigrateError> {
        let bytes = key.len() + item.as_ref().map_or(0, |item| item.value.len());
        if self.batch.len() >= OPS || self.bytes + bytes > BYTES {
            self.flush().await?;
        }
        self.bytes += bytes;
        self.batch.insert(key, item);
        Ok(())
    }

    /// Writes what has gathered.
    pub(super) async fn flush(&mut self) -> Result<(), MigrateError> {
        self.bytes = 0;
        let single = self.batch.len() == 1;
        let mut kv = self.to.client.kv_client();
        let mut ops = Vec::with_capacity(self.batch.len());
        while let Some((key, item)) = self.batch.pop_first() {
            match item {
                // Alone, because a transaction around it could be more than a request may be.
                Some(Item { key, value, lease }) if single => {
                    let options = PutOptions::new().with_lease(lease);
                    self.to.ask("write a key", kv.put(key, value, Some(options))).await.map_err(again)?;
                }
                Some(Item { key, value, lease }) => {
                    ops.push(TxnOp::put(key, value, Some(PutOptions::new().with_lease(lease))));
                }
                None => ops.push(TxnOp::delete(key, None)),
            }
        }
        if !ops.is_empty() {
            let txn = Txn::new().and_then(ops);
            self.to.ask("write keys", kv.txn(txn)).await.map_err(again)?;
        }
        Ok(())
    }
}

/// A lease can run out between its copy and its key's.
fn again(error: RemoteError) -> MigrateError {
    if error.says(mvcc::Error::LeaseNotFound) {
        return MigrateError::Again("a lease ran out on the target".to_owned());
    }
    error.into()
}
