//! Nodes and events in the v2 API's JSON.
//!
//! Invariant: fields come in etcd's order, and what is empty is left out as Go leaves it out.

use crate::http::transcode::quote;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// When a node ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) at: SystemTime,
    /// Seconds from when it was asked, rounded up.
    pub(crate) ttl: i64,
}

impl End {
    /// In so many seconds from now.
    pub(crate) fn after(seconds: u64) -> Self {
        // Further than clocks go is as good as never.
        let seconds = seconds.min(9_000_000_000);
        let at = SystemTime::now() + Duration::from_secs(seconds);
        Self { at, ttl: i64::try_from(seconds).unwrap_or(i64::MAX) }
    }
}

/// A file or a directory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Node {
    /// Empty for the root.
    pub(crate) key: String,
    /// What a file says; a directory, and a node that is gone, have none.
    pub(crate) value: Option<String>,
    pub(crate) dir: bool,
    pub(crate) end: Option<End>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) modified: i64,
    pub(crate) created: i64,
}

impl Node {
    fn write(&self, out: &mut String) {
        let mut separator = '{';
        let mut name = |name: &str, out: &mut String| {
            out.push(separator);
            separator = ',';
            out.push_str(&format!("\"{name}\":"));
        };
        if !self.key.is_empty() {
            name("key", out);
            quote(&self.key, out);
        }
        if let Some(value) = &self.value {
            name("value", out);
            quote(value, out);
        }
        if self.dir {
            name("dir", out);
            out.push_str("true");
        }
        if let Some(End { at, ttl }) = self.end {
            name("expiration", out);
            out.push_str(&format!("\"{}\"", rfc3339(at)));
            if ttl != 0 {
                name("ttl", out);
                out.push_str(&format!("{ttl}"));
            }
        }
        if !self.nodes.is_empty() {
            name("nodes", out);
            let mut separator = '[';
            for node in &self.nodes {
                out.push(separator);
                separator = ',';
                node.write(out);
            }
            out.push(']');
        }
        for (index, number) in [("modifiedIndex", self.modified), ("createdIndex", self.created)] {
            if number != 0 {
                name(index, out);
                out.push_str(&format!("{number}"));
            }
        }
        if separator == '{' {
            out.push('{');
        }
        out.push('}');
    }
}

/// What happened to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) action: &'static str,
    pub(crate) node: Node,
    pub(crate) prev: Option<Node>,
}

impl Event {
    /// One line.
    pub(crate) fn json(&self, with_nodes: bool) -> String {
        let mut out = format!("{{\"action\":\"{}\"", self.action);
        if with_nodes {
            out.push_str(",\"node\":");
            self.node.write(&mut out);
            if let Some(prev) = &self.prev {
                out.push_str(",\"prevNode\":");
                prev.write(&mut out);
            }
        }
        out.push_str("}\n");
        out
    }
}

/// A time as Go writes it: in UTC, the fraction without zeros at its end.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let mut out = format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}",
        second / 3600,
        second / 60 % 60,
        second % 60
    );
    if since.subsec_nanos() > 0 {
        let fraction = format!("{:09}", since.subsec_nanos());
        out.push('.');
        out.push_str(fraction.trim_end_matches('0'));
    }
    out.push('Z');
    out
}

/// Year, month and day of a day since 1970, by Howard Hinnant's `civil_from_days`.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // from 0000-03-01
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153; // from March
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_gos() {
        for (seconds, nanoseconds, expected) in [
            (0, 0, "1970-01-01T00:00:00Z"),
            (951_782_400, 500_000_000, "2000-02-29T00:00:00.5Z"),
            (1_795_396_999, 120, "2026-11-23T01:23:19.00000012Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::new(seconds, nanoseconds)), expected);
        }
    }

    #[test]
    fn an_event_is_a_line() {
        let node = Node {
            key: "/a".to_owned(),
            value: Some(String::new()),
            modified: 2,
            created: 2,
            ..Node::default()
        };
        let root = Node { dir: true, nodes: vec![node.clone()], ..Node::default() };
        let event = Event { action: "get", node: root, prev: Some(node) };
        assert_eq!(
            event.json(true),
            "{\"action\":\"get\",\"node\":{\"dir\":true,\"nodes\":[{\"key\":\"/a\",\"value\":\"\",\"modifiedIndex\":2,\"createdIndex\":2}]},\"prevNode\":{\"key\":\"/a\",\"value\":\"\",\"modifiedIndex\":2,\"createdIndex\":2}}\n"
        );
    }
}
