//! One command for every mutation, for callers that keep commands as data: the simulator and the property tests.
//!
//! Only a front to the store's methods. Invariant: no rule lives here.

use crate::error::Error;
use crate::noun::{LeaseId, Revision};
use crate::request::{
    CompactResponse, DeleteRangeRequest, DeleteRangeResponse, LeaseGrantRequest, LeaseGrantResponse,
    LeaseKeepAliveResponse, LeaseRevokeResponse, PutRequest, PutResponse, TxnRequest, TxnResponse,
};
use crate::store::{Applied, Store};
use std::time::Duration;

/// A mutation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// [`Store::put`].
    Put(PutRequest),
    /// [`Store::delete_range`].
    DeleteRange(DeleteRangeRequest),
    /// [`Store::txn`].
    Txn(TxnRequest),
    /// [`Store::compact`].
    Compact(Revision),
    /// [`Store::lease_grant`].
    LeaseGrant(LeaseGrantRequest),
    /// [`Store::lease_revoke`].
    LeaseRevoke(LeaseId),
    /// [`Store::lease_keep_alive`].
    LeaseKeepAlive(LeaseId),
}

/// What a [`Command`] answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    /// Of [`Command::Put`].
    Put(PutResponse),
    /// Of [`Command::DeleteRange`].
    DeleteRange(DeleteRangeResponse),
    /// Of [`Command::Txn`].
    Txn(TxnResponse),
    /// Of [`Command::Compact`].
    Compact(CompactResponse),
    /// Of [`Command::LeaseGrant`].
    LeaseGrant(LeaseGrantResponse),
    /// Of [`Command::LeaseRevoke`].
    LeaseRevoke(LeaseRevokeResponse),
    /// Of [`Command::LeaseKeepAlive`].
    LeaseKeepAlive(LeaseKeepAliveResponse),
}

impl Store {
    /// Applies one command.
    pub fn apply(&mut self, now: Duration, command: Command) -> Result<Applied<Response>, Error> {
        Ok(match command {
            Command::Put(request) => self.put(request)?.map(Response::Put),
            Command::DeleteRange(request) => self.delete_range(&request)?.map(Response::DeleteRange),
            Command::Txn(request) => self.txn(request)?.map(Response::Txn),
            Command::Compact(revision) => self.compact(revision)?.map(Response::Compact),
            Command::LeaseGrant(request) => self.lease_grant(now, request)?.map(Response::LeaseGrant),
            Command::LeaseRevoke(id) => self.lease_revoke(id)?.map(Response::LeaseRevoke),
            Command::LeaseKeepAlive(id) => {
                let response = Response::LeaseKeepAlive(self.lease_keep_alive(now, id));
                Applied { response, records: Vec::new(), events: None }
            }
        })
    }
}
