//! Doing what was planned.
//!
//! Looks, [plans](super::plan), and tries the plan as one transaction; if somebody was faster, again. Invariant: a
//! lease that is made for a key which is then not written is given back, and a lease of this API whose key got
//! another one does not stay.

use super::error::{Code, Refusal};
use super::form::{Ask, clean};
use super::history::History;
use super::node::{Event, Node};
use super::plan::{Action, Lease, Plan, Put, plan};
use super::tree::{View, below_end, look, marker_key};
use crate::http::inside::Caller;
use crate::storage::random_id;
use etcd_client::proto as pb;

/// How often somebody may be faster. Each time somebody else's write succeeded, so this is only for the unlucky.
const TRIES: usize = 64;

/// Leases of this API begin with these bits ("v2" in ASCII), so that no others are ever revoked here.
const LEASE_MARK: i64 = 0x7632 << 48;
const LEASE_MARK_BITS: i64 = 0x7fff << 48;

/// What a write did.
pub(crate) struct Done {
    pub(crate) event: Event,
    pub(crate) index: i64,
}

/// Writes.
pub(crate) async fn write(
    caller: &Caller,
    history: &History,
    action: Action,
    ask: &Ask,
    in_order: bool,
) -> Result<Done, Refusal> {
    for _ in 0..TRIES {
        let mut view = look(caller, &ask.path).await?;
        if in_order {
            // The name is the index that the write will have if nobody is faster, as in etcd.
            let path = clean(&format!("{}/{:020}", ask.path, view.revision + 1));
            view = look(caller, &path).await?;
            if view.file.is_some() || view.below > 0 {
                continue; // somebody took the name between the two looks
            }
        }
        let plan = plan(&view, action, ask)?;
        if let Some(done) = attempt(caller, history, &view, plan).await? {
            return Ok(done);
        }
    }
    Err(Refusal::request(Code::Internal, "etcdserver: too many concurrent changes"))
}

async fn attempt(
    caller: &Caller,
    history: &History,
    view: &View,
    plan: Plan,
) -> Result<Option<Done>, Refusal> {
    let mut granted = 0;
    for put in &plan.puts {
        if let Lease::New(seconds) = put.lease {
            granted = grant(caller, seconds).await?;
        }
    }
    let txn = pb::PbTxnRequest {
        compare: plan.compare,
        success: operations(&plan.deletes, &plan.puts, granted),
        failure: Vec::new(),
    };
    // Watchers wait for this guard, so that they find the event in the history.
    let guard = history.writing().await;
    let answer: Result<pb::PbTxnResponse, _> = caller.call("/etcdserverpb.KV/Txn", txn).await;
    let answer = match answer {
        Ok(answer) if answer.succeeded => answer,
        Ok(_) => {
            drop(guard);
            revoke(caller, granted).await;
            return Ok(None);
        }
        Err(status) => {
            drop(guard);
            revoke(caller, granted).await;
            return Err(Refusal { index: view.revision, ..status.into() });
        }
    };
    let index = answer.header.map_or(0, |header| header.revision);
    let mut node = plan.node;
    node.modified = index;
    if node.created == 0 {
        node.created = index;
    }
    let event = Event { action: plan.action.name(), node, prev: plan.prev };
    history.record(index, event.clone(), plan.silent);
    drop(guard);
    let lease = match plan.puts.first().map(|put| put.lease) {
        Some(Lease::Existing(lease)) => lease,
        Some(Lease::New(_)) => granted,
        None => 0,
    };
    if plan.moves && lease != plan.left {
        move_keys(caller, history, &view.path, plan.left, lease).await?;
    }
    if lease != plan.left {
        release(caller, plan.left).await;
    }
    Ok(Some(Done { event, index }))
}

fn operations(deletes: &[(String, Option<String>)], puts: &[Put], granted: i64) -> Vec<pb::PbTxnRequestOp> {
    use pb::PbTxnOpRequest as Op;
    let deletes = deletes.iter().map(|(key, end)| {
        Op::RequestDeleteRange(pb::PbDeleteRequest {
            key: key.clone().into_bytes(),
            range_end: end.clone().unwrap_or_default().into_bytes(),
            prev_kv: false,
        })
    });
    let puts = puts.iter().map(|put| {
        Op::RequestPut(pb::PbPutRequest {
            key: put.key.clone().into_bytes(),
            ignore_value: put.value.is_none(),
            value: put.value.clone().unwrap_or_default().into_bytes(),
            lease: match put.lease {
                Lease::Existing(lease) => lease,
                Lease::New(_) => granted,
            },
            ..Default::default()
        })
    });
    deletes.chain(puts).map(|op| pb::PbTxnRequestOp { request: Some(op) }).collect()
}

/// Keys that one transaction moves to another lease; etcd allows 128 comparisons.
const MOVED: usize = 100;

/// What a directory holds ends with it: gives its keys that had the old lease (or none) the new one. Keys that
/// somebody writes meanwhile have been given theirs by whoever wrote them.
async fn move_keys(
    caller: &Caller,
    history: &History,
    path: &str,
    from: i64,
    to: i64,
) -> Result<(), Refusal> {
    let request = pb::PbRangeRequest {
        key: format!("{}\0", marker_key(path)).into_bytes(),
        range_end: below_end(path).into_bytes(),
        ..Default::default()
    };
    let inside: pb::PbRangeResponse = caller.call("/etcdserverpb.KV/Range", request).await?;
    let keys: Vec<_> = inside.kvs.into_iter().filter(|kv| kv.lease == from).collect();
    for keys in keys.chunks(MOVED) {
        let mut txn = pb::PbTxnRequest::default();
        for kv in keys {
            txn.compare.push(pb::PbCompare {
                target: 2,
                key: kv.key.clone(),
                target_union: Some(pb::PbTargetUnion::ModRevision(kv.mod_revision)),
                ..Default::default()
            });
            let put =
                pb::PbPutRequest { key: kv.key.clone(), ignore_value: true, lease: to, ..Default::default() };
            let request = Some(pb::PbTxnOpRequest::RequestPut(put));
            txn.success.push(pb::PbTxnRequestOp { request });
        }
        let guard = history.writing().await;
        let answer: pb::PbTxnResponse = caller.call("/etcdserverpb.KV/Txn", txn).await?;
        if answer.succeeded {
            let event = Event { action: Action::Update.name(), node: Node::default(), prev: None };
            history.record(answer.header.map_or(0, |header| header.revision), event, true);
        }
        drop(guard);
    }
    Ok(())
}

/// A lease for one key.
async fn grant(caller: &Caller, seconds: u64) -> Result<i64, Refusal> {
    // Beyond etcd's limit is as good as never.
    let ttl = i64::try_from(seconds).unwrap_or(i64::MAX).min(mvcc::MAX_LEASE_TTL);
    let id = LEASE_MARK | (random_id() & !LEASE_MARK_BITS);
    let request = pb::PbLeaseGrantRequest { ttl, id };
    let lease: pb::PbLeaseGrantResponse = caller.call("/etcdserverpb.Lease/LeaseGrant", request).await?;
    Ok(lease.id)
}

async fn revoke(caller: &Caller, id: i64) {
    if id == 0 {
        return;
    }
    let request = pb::PbLeaseRevokeRequest { id };
    // If this fails the lease ends by itself.
    let _: Result<pb::PbLeaseRevokeResponse, _> =
        caller.call("/etcdserverpb.Lease/LeaseRevoke", request).await;
}

/// Ends a lease of this API that has no keys any more.
async fn release(caller: &Caller, id: i64) {
    if id & LEASE_MARK_BITS != LEASE_MARK {
        return;
    }
    let request = pb::PbLeaseTimeToLiveRequest { id, keys: true };
    let lease: Result<pb::PbLeaseTimeToLiveResponse, _> =
        caller.call("/etcdserverpb.Lease/LeaseTimeToLive", request).await;
    if lease.is_ok_and(|lease| lease.ttl >= 0 && lease.keys.is_empty()) {
        revoke(caller, id).await;
    }
}
