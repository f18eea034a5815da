//! Between protobuf and the store's own types.
//!
//! Invariant: nothing is decided here, except what only the wire can get wrong (numbers outside an enumeration).

use crate::storage::Identity;
use bytes::Bytes;
use etcd_client::proto as pb;
use mvcc::{
    Compare, CompareOp, CompareTarget, DeleteRangeRequest, DeleteRangeResponse, Error, Event, EventKind,
    KeyRange, KeyValue, LeaseId, PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp, ResponseOp,
    Revision, SortOrder, SortTarget, TxnRequest, TxnResponse,
};

impl Identity {
    /// The header of an answer at `revision`.
    pub(crate) fn header(&self, revision: Revision) -> Option<pb::PbResponseHeader> {
        Some(pb::PbResponseHeader {
            cluster_id: self.cluster,
            member_id: self.member,
            revision: revision.0,
            raft_term: self.term,
        })
    }
}

/// The header inside a transaction: only a revision.
fn inner_header(revision: Revision) -> Option<pb::PbResponseHeader> {
    Some(pb::PbResponseHeader { revision: revision.0, ..Default::default() })
}

pub(crate) fn range_request(request: pb::PbRangeRequest) -> Result<RangeRequest, Error> {
    if request.key.is_empty() {
        return Err(Error::EmptyKey); // before the sort, as etcd checks
    }
    let sort_order = match request.sort_order {
        0 => SortOrder::None,
        1 => SortOrder::Ascend,
        2 => SortOrder::Descend,
        _ => return Err(Error::InvalidSortOption),
    };
    let sort_target = match request.sort_target {
        0 => SortTarget::Key,
        1 => SortTarget::Version,
        2 => SortTarget::Create,
        3 => SortTarget::Mod,
        4 => SortTarget::Value,
        _ => return Err(Error::InvalidSortOption),
    };
    Ok(RangeRequest {
        range: KeyRange::from_wire(request.key, request.range_end),
        limit: request.limit,
        revision: Revision(request.revision),
        sort_order,
        sort_target,
        keys_only: request.keys_only,
        count_only: request.count_only,
        min_mod_revision: Revision(request.min_mod_revision),
        max_mod_revision: Revision(request.max_mod_revision),
        min_create_revision: Revision(request.min_create_revision),
        max_create_revision: Revision(request.max_create_revision),
    })
}

pub(crate) fn put_request(request: pb::PbPutRequest) -> PutRequest {
    PutRequest {
        key: request.key.into(),
        value: request.value.into(),
        lease: LeaseId(request.lease),
        prev_kv: request.prev_kv,
        ignore_value: request.ignore_value,
        ignore_lease: request.ignore_lease,
    }
}

pub(crate) fn delete_request(request: pb::PbDeleteRequest) -> DeleteRangeRequest {
    DeleteRangeRequest {
        range: KeyRange::from_wire(request.key, request.range_end),
        prev_kv: request.prev_kv,
    }
}

pub(crate) fn txn_request(request: pb::PbTxnRequest) -> TxnRequest {
    TxnRequest {
        compare: request.compare.into_iter().map(compare).collect(),
        success: request.success.into_iter().map(request_op).collect(),
        failure: request.failure.into_iter().map(request_op).collect(),
    }
}

fn request_op(op: pb::PbTxnRequestOp) -> RequestOp {
    use pb::PbTxnOpRequest as Op;
    match op.request {
        Some(Op::RequestRange(request)) => {
            range_request(request).map_or_else(RequestOp::Refused, RequestOp::Range)
        }
        Some(Op::RequestPut(request)) => RequestOp::Put(put_request(request)),
        Some(Op::RequestDeleteRange(request)) => RequestOp::DeleteRange(delete_request(request)),
        Some(Op::RequestTxn(request)) => RequestOp::Txn(txn_request(request)),
        None => RequestOp::Refused(Error::KeyNotFound), // etcd's words
    }
}

fn compare(compare: pb::PbCompare) -> Compare {
    use pb::PbTargetUnion as Given;
    let op = match compare.result {
        1 => CompareOp::Greater,
        2 => CompareOp::Less,
        3 => CompareOp::NotEqual,
        _ => CompareOp::Equal,
    };
    // A target whose value is missing or of another kind is compared with the empty value, as in etcd.
    let given = compare.target_union;
    let target = match compare.target {
        1 => CompareTarget::Create(Revision(match given {
            Some(Given::CreateRevision(given)) => given,
            _ => 0,
        })),
        2 => CompareTarget::Mod(Revision(match given {
            Some(Given::ModRevision(given)) => given,
            _ => 0,
        })),
        3 => CompareTarget::Value(match given {
            Some(Given::Value(given)) => given.into(),
            _ => Bytes::new(),
        }),
        4 => CompareTarget::Lease(LeaseId(match given {
            Some(Given::Lease(given)) => given,
            _ => 0,
        })),
        _ => CompareTarget::Version(match given {
            Some(Given::Version(given)) => given,
            _ => 0,
        }),
    };
    Compare { range: KeyRange::from_wire(compare.key, compare.range_end), op, target }
}

type Header = Option<pb::PbResponseHeader>;

pub(crate) fn range_response(response: RangeResponse, header: Header) -> pb::PbRangeResponse {
    pb::PbRangeResponse {
        header,
        kvs: response.kvs.into_iter().map(key_value).collect(),
        more: response.more,
        count: response.count,
    }
}

pub(crate) fn put_response(response: PutResponse, header: Header) -> pb::PbPutResponse {
    pb::PbPutResponse { header, prev_kv: response.prev_kv.map(key_value) }
}

pub(crate) fn delete_response(response: DeleteRangeResponse, header: Header) -> pb::PbDeleteResponse {
    pb::PbDeleteResponse {
        header,
        deleted: response.deleted,
        prev_kvs: response.prev_kvs.into_iter().map(key_value).collect(),
    }
}

pub(crate) fn txn_response(response: TxnResponse, header: Header) -> pb::PbTxnResponse {
    pb::PbTxnResponse {
        header,
        succeeded: response.succeeded,
        responses: response.responses.into_iter().map(response_op).collect(),
    }
}

fn response_op(op: ResponseOp) -> pb::PbResponseOp {
    use pb::PbTxnOpResponse as Op;
    let response = match op {
        ResponseOp::Range(response) => {
            let header = inner_header(response.revision);
            Op::ResponseRange(range_response(response, header))
        }
        ResponseOp::Put(response) => {
            let header = inner_header(response.revision);
            Op::ResponsePut(put_response(response, header))
        }
        ResponseOp::DeleteRange(response) => {
            let header = inner_header(response.revision);
            Op::ResponseDeleteRange(delete_response(response, header))
        }
        ResponseOp::Txn(response) => {
            let header = inner_header(response.revision);
            Op::ResponseTxn(txn_response(response, header))
        }
    };
    pb::PbResponseOp { response: Some(response) }
}

pub(crate) fn key_value(kv: KeyValue) -> pb::PbKeyValue {
    pb::PbKeyValue {
        key: kv.key.into(),
        create_revision: kv.create_revision.0,
        mod_revision: kv.mod_revision.0,
        version: kv.version,
        value: kv.value.into(),
        lease: kv.lease.0,
    }
}

pub(crate) fn event(event: Event) -> pb::PbEvent {
    pb::PbEvent {
        r#type: match event.kind {
            EventKind::Put => 0,
            EventKind::Delete => 1,
        },
        kv: Some(key_value(event.kv)),
        prev_kv: event.prev_kv.map(key_value),
    }
}
