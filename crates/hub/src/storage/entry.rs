//! How records look in the log and in snapshots.
//!
//! `kind u8`, then fixed little-endian numbers, then lengths and bytes. Invariant: what does not decode to the last
//! byte is damage, never half an entry; the layout is part of the format's version.

use bytes::Bytes;
use mvcc::{Alarm, AlarmKind, LeaseId, Record, Revision, RowId};

/// Who this hub is, in every response header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) cluster: u64,
    pub(crate) member: u64,
    /// etcd's raft term: here the number of starts.
    pub(crate) term: u64,
}

/// What the disk keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry {
    /// The hub started.
    Start(Identity),
    Record(Record),
}

const START: u8 = 1;
const PUT: u8 = 2;
const DELETE: u8 = 3;
const LEASE_GRANT: u8 = 4;
const LEASE_REVOKE: u8 = 5;
const COMPACT: u8 = 6;
const AUTH: u8 = 7;
const ALARM: u8 = 8;

pub(crate) fn encode_start(identity: &Identity, buffer: &mut Vec<u8>) {
    buffer.push(START);
    for number in [identity.cluster, identity.member, identity.term] {
        buffer.extend_from_slice(&number.to_le_bytes());
    }
}

pub(crate) fn encode(record: &Record, buffer: &mut Vec<u8>) {
    match record {
        Record::Put { row, key, value, lease, create_revision, version } => {
            buffer.reserve(53 + key.len() + value.len());
            buffer.push(PUT);
            encode_row(*row, buffer);
            buffer.extend_from_slice(&create_revision.0.to_le_bytes());
            buffer.extend_from_slice(&version.to_le_bytes());
            buffer.extend_from_slice(&lease.0.to_le_bytes());
            encode_bytes(key, buffer);
            encode_bytes(value, buffer);
        }
        Record::Delete { row, key } => {
            buffer.push(DELETE);
            encode_row(*row, buffer);
            encode_bytes(key, buffer);
        }
        Record::LeaseGrant { id, ttl } => {
            buffer.push(LEASE_GRANT);
            buffer.extend_from_slice(&id.0.to_le_bytes());
            buffer.extend_from_slice(&ttl.to_le_bytes());
        }
        Record::LeaseRevoke { id } => {
            buffer.push(LEASE_REVOKE);
            buffer.extend_from_slice(&id.0.to_le_bytes());
        }
        // The rows that it makes obsolete go with the next snapshot.
        Record::Compact { revision, .. } => {
            buffer.push(COMPACT);
            buffer.extend_from_slice(&revision.0.to_le_bytes());
        }
        Record::Auth { state } => {
            buffer.push(AUTH);
            encode_bytes(state, buffer);
        }
        Record::Alarm { alarm, raised } => {
            let kind = match alarm.kind {
                AlarmKind::NoSpace => 1,
                AlarmKind::Corrupt => 2,
            };
            buffer.extend_from_slice(&[ALARM, u8::from(*raised), kind]);
            buffer.extend_from_slice(&alarm.member.to_le_bytes());
        }
    }
}

fn encode_row(row: RowId, buffer: &mut Vec<u8>) {
    buffer.extend_from_slice(&row.main.0.to_le_bytes());
    buffer.extend_from_slice(&row.sub.to_le_bytes());
}

fn encode_bytes(bytes: &Bytes, buffer: &mut Vec<u8>) {
    // A request is at most 1.5 MiB, so a length fits.
    buffer.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    buffer.extend_from_slice(bytes);
}

/// All entries of a payload; false if it is damaged.
#[must_use]
pub(crate) fn decode(payload: &[u8], take: &mut impl FnMut(Entry)) -> bool {
    let mut reader = Reader(payload);
    while !reader.0.is_empty() {
        match reader.entry() {
            Some(entry) => take(entry),
            None => return false,
        }
    }
    true
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn entry(&mut self) -> Option<Entry> {
        let [kind] = self.array()?;
        Some(Entry::Record(match kind {
            START => {
                let (cluster, member, term) = (self.number()?, self.number()?, self.number()?);
                return Some(Entry::Start(Identity {
                    cluster: cluster.cast_unsigned(),
                    member: member.cast_unsigned(),
                    term: term.cast_unsigned(),
                }));
            }
            PUT => Record::Put {
                row: self.row()?,
                create_revision: Revision(self.number()?),
                version: self.number()?,
                lease: LeaseId(self.number()?),
                key: self.bytes()?,
                value: self.bytes()?,
            },
            DELETE => Record::Delete { row: self.row()?, key: self.bytes()? },
            LEASE_GRANT => Record::LeaseGrant { id: LeaseId(self.number()?), ttl: self.number()? },
            LEASE_REVOKE => Record::LeaseRevoke { id: LeaseId(self.number()?) },
            AUTH => Record::Auth { state: self.bytes()? },
            ALARM => {
                let [raised, kind] = self.array()?;
                let kind = match kind {
                    1 => AlarmKind::NoSpace,
                    2 => AlarmKind::Corrupt,
                    _ => return None,
                };
                let alarm = Alarm { kind, member: self.number()?.cast_unsigned() };
                Record::Alarm { alarm, raised: raised == 1 }
            }
            COMPACT => Record::Compact { revision: Revision(self.number()?), obsolete: Vec::new() },
            _ => return None,
        }))
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*array)
    }

    fn number(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }

    fn row(&mut self) -> Option<RowId> {
        Some(RowId { main: Revision(self.number()?), sub: self.array().map(u32::from_le_bytes)? })
    }

    fn bytes(&mut self) -> Option<Bytes> {
        let length = u32::from_le_bytes(self.array()?);
        let (bytes, rest) = self.0.split_at_checked(length as usize)?;
        self.0 = rest;
        Some(Bytes::copy_from_slice(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_survive_their_encoding() {
        let row = RowId { main: Revision(1 << 40), sub: 7 };
        let key = Bytes::from_static(b"\0key\xff");
        let records = [
            Record::Put {
                row,
                key: key.clone(),
                value: Bytes::from_static(b"value"),
                lease: LeaseId(-3),
                create_revision: Revision(9),
                version: 4,
            },
            Record::Delete { row, key },
            Record::LeaseGrant { id: LeaseId(5), ttl: 60 },
            Record::LeaseRevoke { id: LeaseId(5) },
            Record::Compact { revision: Revision(8), obsolete: Vec::new() },
            Record::Auth { state: Bytes::from_static(b"users") },
            Record::Alarm { alarm: Alarm { kind: AlarmKind::NoSpace, member: u64::MAX }, raised: true },
            Record::Alarm { alarm: Alarm { kind: AlarmKind::Corrupt, member: 1 }, raised: false },
        ];
        let identity = Identity { cluster: u64::MAX, member: 2, term: 3 };
        let mut buffer = Vec::new();
        encode_start(&identity, &mut buffer);
        let mut ends = vec![0, buffer.len()];
        for record in &records {
            encode(record, &mut buffer);
            ends.push(buffer.len());
        }
        let mut decoded = Vec::new();
        assert!(decode(&buffer, &mut |entry| decoded.push(entry)));
        let mut expected = vec![Entry::Start(identity)];
        expected.extend(records.map(Entry::Record));
        assert_eq!(decoded, expected);
        for cut in 0..buffer.len() {
            assert_eq!(decode(&buffer[..cut], &mut |_| {}), ends.contains(&cut), "{cut}");
        }
        assert!(!decode(&[99], &mut |_| {}));
    }
}
