//! What a caller may ask of the store, request by request.
//!
//! The rules are those of etcd's auth applier, with what later versions of it closed: in a transaction too a put needs
//! the right to read what it returns, and to write all keys of the lease that it attaches to. Invariant: as in etcd a
//! malformed request is refused as such before it is asked whose it is.

use crate::error::Error;
use crate::noun::{KeyRange, LeaseId};
use crate::request::{DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};
use crate::store::Store;
use crate::txn;

/// Who asks: a user's name, none if nobody said, or why it cannot be told.
pub type Caller<'a> = Result<Option<&'a str>, Error>;

impl Store {
    /// Whether the caller may read this.
    pub fn may_range(&self, caller: Caller<'_>, request: &RangeRequest) -> Result<(), Error> {
        txn::check_range(request)?;
        self.auth.check_read(caller?, &request.range)
    }

    /// Whether the caller may write this.
    pub fn may_put(&self, caller: Caller<'_>, request: &PutRequest) -> Result<(), Error> {
        txn::check_put(request)?;
        self.put_permitted(caller?, request)
    }

    /// Whether the caller may delete this.
    pub fn may_delete_range(&self, caller: Caller<'_>, request: &DeleteRangeRequest) -> Result<(), Error> {
        txn::check_delete(request)?;
        self.delete_permitted(caller?, request)
    }

    /// Whether the caller may do all of this, whichever way it goes.
    pub fn may_txn(&self, caller: Caller<'_>, request: &TxnRequest) -> Result<(), Error> {
        txn::check(request)?;
        self.txn_permitted(caller?, request)
    }

    /// Whether the caller may end a lease: it must be allowed to write all of its keys.
    pub fn may_revoke(&self, caller: Caller<'_>, lease: LeaseId) -> Result<(), Error> {
        let user = caller?;
        self.auth.check_known(user)?;
        self.lease_permitted(user, lease)
    }

    /// Whether the caller may see the keys of a lease: it must be allowed to read all of them.
    pub fn may_list_keys(&self, caller: Caller<'_>, lease: LeaseId) -> Result<(), Error> {
        let user = caller?;
        self.each_key(lease, |key| self.auth.check_read(user, key))
    }

    fn put_permitted(&self, user: Option<&str>, request: &PutRequest) -> Result<(), Error> {
        let key = KeyRange::key(request.key.clone());
        self.auth.check_write(user, &key)?;
        self.lease_permitted(user, request.lease)?;
        if request.prev_kv { self.auth.check_read(user, &key) } else { Ok(()) }
    }

    fn delete_permitted(&self, user: Option<&str>, request: &DeleteRangeRequest) -> Result<(), Error> {
        self.auth.check_write(user, &request.range)?;
        if request.prev_kv { self.auth.check_read(user, &request.range) } else { Ok(()) }
    }

    fn txn_permitted(&self, user: Option<&str>, request: &TxnRequest) -> Result<(), Error> {
        for compare in &request.compare {
            self.auth.check_read(user, &compare.range)?;
        }
        for op in request.success.iter().chain(&request.failure) {
            match op {
                RequestOp::Range(range) => self.auth.check_read(user, &range.range)?,
                RequestOp::Put(put) => self.put_permitted(user, put)?,
                RequestOp::DeleteRange(delete) => self.delete_permitted(user, delete)?,
                RequestOp::Txn(nested) => self.txn_permitted(user, nested)?,
                RequestOp::Refused(_) => {} // by the check before
            }
        }
        Ok(())
    }

    /// Whoever attaches a key to a lease, or ends the lease, decides over all keys that it has.
    fn lease_permitted(&self, user: Option<&str>, lease: LeaseId) -> Result<(), Error> {
        self.each_key(lease, |key| self.auth.check_write(user, key))
    }

    fn each_key(
        &self,
        lease: LeaseId,
        mut check: impl FnMut(&KeyRange) -> Result<(), Error>,
    ) -> Result<(), Error> {
        // Without users there may be many keys and nothing to ask.
        if !self.auth.is_enabled() {
            return Ok(());
        }
        let Some(lease) = self.leases.get(lease) else { return Ok(()) };
        lease.keys.iter().try_for_each(|key| check(&KeyRange::key(key.clone())))
    }
}
