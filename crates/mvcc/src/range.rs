//! Reading a range: limits, sorts, filters, as `applierV3backend.Range` of etcd does it.
//!
//! Invariant: without sort and filters no more than `limit` key-values are ever copied, however large the range.

use crate::index::{Index, Version};
use crate::noun::{KeyValue, Revision};
use crate::request::{RangeRequest, RangeResponse, SortOrder, SortTarget};

/// What `request` reads at revision `at` of the index; `current` goes into the response.
pub(crate) fn read(index: &Index, request: &RangeRequest, at: Revision, current: Revision) -> RangeResponse {
    let mut kvs = Vec::new();
    let mut count = 0;
    // Beyond the limit only the count matters, unless a sort or a filter has to see everything first.
    let fetch = match limit(request) {
        Some(limit) if request.sort_order == SortOrder::None && !filters(request) => limit + 1,
        _ => usize::MAX,
    };
    for (key, version) in index.range(&request.range, at) {
        count += 1;
        if !request.count_only && kvs.len() < fetch && passes(request, version) {
            kvs.push(version.key_value(key));
        }
    }
    sort(&mut kvs, request);
    let mut more = false;
    if let Some(limit) = limit(request)
        && kvs.len() > limit
    {
        kvs.truncate(limit);
        more = true;
    }
    if request.keys_only {
        for kv in &mut kvs {
            kv.value.clear();
        }
    }
    RangeResponse { revision: current, kvs, more, count }
}

fn limit(request: &RangeRequest) -> Option<usize> {
    usize::try_from(request.limit).ok().filter(|limit| *limit > 0)
}

fn filters(request: &RangeRequest) -> bool {
    [
        request.min_mod_revision,
        request.max_mod_revision,
        request.min_create_revision,
        request.max_create_revision,
    ]
    .iter()
    .any(|revision| revision.0 != 0)
}

fn passes(request: &RangeRequest, version: &Version) -> bool {
    let within = |revision: Revision, min: Revision, max: Revision| {
        (min.0 == 0 || revision >= min) && (max.0 == 0 || revision <= max)
    };
    within(version.row.main, request.min_mod_revision, request.max_mod_revision)
        && within(version.create_revision, request.min_create_revision, request.max_create_revision)
}

/// Stable in both directions: what is equal stays in the order of its keys.
fn sort(kvs: &mut [KeyValue], request: &RangeRequest) {
    let descending = request.sort_order == SortOrder::Descend;
    if request.sort_target == SortTarget::Key && !descending {
        return; // as the index gave them
    }
    kvs.sort_by(|a, b| {
        let ordering = match request.sort_target {
            SortTarget::Key => a.key.cmp(&b.key),
            SortTarget::Version => a.version.cmp(&b.version),
            SortTarget::Create => a.create_revision.cmp(&b.create_revision),
            SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
            SortTarget::Value => a.value.cmp(&b.value),
        };
        if descending { ordering.reverse() } else { ordering }
    });
}
