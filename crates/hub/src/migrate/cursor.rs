//! The keys of two servers side by side, in order, some at a time.
//!
//! Invariant: each key in range comes once, with what each side has of it.

use super::MigrateError;
use crate::remote::{Remote, RemoteError};
use etcd_client::{GetOptions, KeyValue};
use mvcc::{KeyRange, Revision};
use std::cmp::Ordering;
use std::collections::VecDeque;

/// Keys per request: with the greatest values that there can be, some hundred megabytes.
const PAGE: i64 = 200;

/// The keys to copy.
#[derive(Debug, Clone)]
pub(super) struct Span {
    pub(super) start: Vec<u8>,
    range: KeyRange,
}

impl Span {
    pub(super) fn prefix(prefix: &[u8]) -> Self {
        let range = KeyRange::prefix(prefix.to_vec());
        Self { start: range.start().to_vec(), range }
    }

    pub(super) fn contains(&self, key: &[u8]) -> bool {
        self.range.contains(key)
    }

    /// From some key to the end of the span.
    pub(super) fn options(&self) -> GetOptions {
        match self.range.end() {
            Some(end) => GetOptions::new().with_range(end.to_vec()),
            None => GetOptions::new().with_from_key(),
        }
    }
}

/// What is copied and compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
    pub(super) lease: i64,
}

impl From<&KeyValue> for Item {
    fn from(kv: &KeyValue) -> Self {
        Self { key: kv.key().to_vec(), value: kv.value().to_vec(), lease: kv.lease() }
    }
}

struct Cursor<'a> {
    remote: &'a Remote,
    span: &'a Span,
    /// 0 is the present.
    revision: Revision,
    /// Where the next page starts; none after the last.
    next: Option<Vec<u8>>,
    page: VecDeque<Item>,
}

impl<'a> Cursor<'a> {
    fn new(remote: &'a Remote, revision: Revision, span: &'a Span) -> Self {
        Self { remote, span, revision, next: Some(span.start.clone()), page: VecDeque::new() }
    }

    /// Makes sure that the next key is there, if there is one.
    async fn look(&mut self) -> Result<(), MigrateError> {
        let Some(start) = self.next.take_if(|_| self.page.is_empty()) else { return Ok(()) };
        let options = self.span.options().with_limit(PAGE).with_revision(self.revision.0);
        let mut kv = self.remote.client.kv_client().max_decoding_message_size(usize::MAX);
        let answer = self.remote.ask("list its keys", kv.get(start, Some(options))).await.map_err(again)?;
        self.page.extend(answer.kvs().iter().map(Item::from));
        if let Some(last) = self.page.back().filter(|_| answer.more()) {
            self.next = Some([last.key.as_slice(), b"\0"].concat());
        }
        Ok(())
    }
}

/// A source's history may be compacted while it is read.
fn again(error: RemoteError) -> MigrateError {
    if error.says(mvcc::Error::Compacted) {
        return MigrateError::Again("the source compacted its history meanwhile".to_owned());
    }
    error.into()
}

/// Two servers.
pub(super) struct Merge<'a> {
    source: Cursor<'a>,
    target: Cursor<'a>,
}

impl<'a> Merge<'a> {
    /// The source at a revision, the target at present: whoever writes to it only does so behind.
    pub(super) fn new(from: &'a Remote, revision: Revision, to: &'a Remote, span: &'a Span) -> Self {
        Self { source: Cursor::new(from, revision, span), target: Cursor::new(to, Revision(0), span) }
    }

    /// The next key, as the source and as the target has it.
    pub(super) async fn next(&mut self) -> Result<Option<(Option<Item>, Option<Item>)>, MigrateError> {
        self.source.look().await?;
        self.target.look().await?;
        let order = match (self.source.page.front(), self.target.page.front()) {
            (None, None) => return Ok(None),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(source), Some(target)) => source.key.cmp(&target.key),
        };
        let source = if order.is_le() { self.source.page.pop_front() } else { None };
        let target = if order.is_ge() { self.target.page.pop_front() } else { None };
        Ok(Some((source, target)))
    }
}
