//! What an etcd's snapshot holds, as a hub's records.
//!
//! Buckets that are of a member and not of the data (members, alarms) are counted and summed, not read. Invariant: an entry that
//! cannot be read is an error that names it, never left out in silence.

use super::access::Found;
use super::schema::{self, KeyValue, Lease};
use crate::bolt::read::File;
use mvcc::{Auth, LeaseId, Record, Revision, crc32c};
use prost::Message;

pub(super) struct Content {
    pub(super) records: Vec<Record>,
    pub(super) hash: u32,
    pub(super) total_keys: u64,
    pub(super) rows: u64,
    pub(super) leases: u64,
    pub(super) auth: Auth,
}

/// Reads everything, or says what is wrong.
pub(super) fn content(file: &File<'_>) -> Result<Content, String> {
    let (mut rows, mut leases) = (Vec::new(), Vec::new());
    let (mut hash, mut total_keys, mut auth) = (0, 0, Found::default());
    let (mut compacted, mut wrong, mut found) = (None, None, false);
    for bucket in file.buckets().map_err(|damage| damage.to_string())? {
        hash = crc32c(hash, bucket.name);
        let name = str::from_utf8(bucket.name).unwrap_or_default();
        found |= name == schema::KEY;
        let mut entry = |key: &[u8], value: &[u8]| {
            hash = crc32c(crc32c(hash, key), value);
            total_keys += 1;
            let readable = match name {
                schema::KEY => row(key, value).map(|record| rows.push(record)),
                schema::LEASE => lease(key, value).map(|record| leases.push(record)),
                schema::META => meta(key, value).map(|revision| compacted = compacted.max(revision)),
                schema::AUTH => auth.flag(key, value),
                schema::AUTH_USERS => auth.user(key, value),
                schema::AUTH_ROLES => auth.role(key, value),
                _ => Some(()),
            };
            if readable.is_none() && wrong.is_none() {
                wrong = Some(format!("entry {} of bucket `{name}` cannot be read", key.escape_ascii()));
            }
        };
        file.each(&bucket, &mut entry).map_err(|damage| damage.to_string())?;
    }
    if let Some(wrong) = wrong {
        return Err(wrong);
    }
    if !found {
        return Err("it is a bbolt file, but not an etcd's: it has no bucket `key`".to_owned());
    }
    let (row_count, lease_count) = (rows.len() as u64, leases.len() as u64);
    let compact = compacted.map(|revision| Record::Compact { revision, obsolete: Vec::new() });
    let auth = auth.auth();
    let users = (auth != Auth::default()).then(|| auth.record());
    let records = compact.into_iter().chain(users).chain(leases).chain(rows).collect();
    Ok(Content { records, hash, total_keys, rows: row_count, leases: lease_count, auth })
}

fn row(key: &[u8], value: &[u8]) -> Option<Record> {
    let (row, deleted) = schema::parse_row(key)?;
    let KeyValue { key, create_revision, mod_revision, version, value, lease } =
        KeyValue::decode(value).ok()?;
    if deleted {
        return Some(Record::Delete { row, key });
    }
    let sound = mod_revision == row.main.0 && (1..=mod_revision).contains(&create_revision) && version > 0;
    sound.then_some(Record::Put {
        row,
        key,
        value,
        lease: LeaseId(lease),
        create_revision: Revision(create_revision),
        version,
    })
}

fn lease(key: &[u8], value: &[u8]) -> Option<Record> {
    let Lease { id, ttl } = Lease::decode(value).ok()?;
    (key == id.to_be_bytes() && id != 0).then_some(Record::LeaseGrant { id: LeaseId(id), ttl })
}

/// The revision below which the history is gone, from the entries that tell it. A compaction that was ordered is as good
/// as done: etcd does it at its next start.
fn meta(key: &[u8], value: &[u8]) -> Option<Option<Revision>> {
    let told =
        [schema::FINISHED_COMPACT, schema::SCHEDULED_COMPACT].iter().any(|name| key == name.as_bytes());
    if !told {
        return Some(None);
    }
    let (row, _) = schema::parse_row(value)?;
    Some((row.main.0 > 0).then_some(row.main))
}
