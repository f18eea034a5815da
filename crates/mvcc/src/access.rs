//! Which keys a set of permissions covers, together: etcd's unified range permissions.
//!
//! Two permissions that touch or overlap are as good as one for all of it. Invariant: a range is covered only if every
//! key in it is.

use crate::auth::Permission;
use crate::noun::KeyRange;
use bytes::Bytes;

/// The end of an interval; none is after everything.
type End = Option<Bytes>;

/// Intervals `[start, end)` that neither touch nor overlap, in order.
pub(crate) struct Access {
    intervals: Vec<(Bytes, End)>,
}

impl Access {
    pub(crate) fn new<'a>(permissions: impl Iterator<Item = &'a Permission>) -> Self {
        let mut granted: Vec<(Bytes, End)> = permissions.filter_map(interval_of_permission).collect();
        granted.sort_by(|a, b| a.0.cmp(&b.0));
        let mut intervals: Vec<(Bytes, End)> = Vec::with_capacity(granted.len());
        for (start, end) in granted {
            match intervals.last_mut() {
                Some((_, last)) if last.as_ref().is_none_or(|last| *last >= start) => {
                    if is_before(last, &end) {
                        *last = end;
                    }
                }
                _ => intervals.push((start, end)),
            }
        }
        Self { intervals }
    }

    pub(crate) fn covers(&self, range: &KeyRange) -> bool {
        let (start, end) = interval(range.start(), range);
        let after = self.intervals.partition_point(|(own, _)| *own <= start);
        let Some((_, own)) = after.checked_sub(1).and_then(|place| self.intervals.get(place)) else {
            return false;
        };
        // The start must be inside too: a range without keys is not everybody's.
        own.as_ref().is_none_or(|own| start < *own) && !is_before(own, &end)
    }
}

fn is_before(a: &End, b: &End) -> bool {
    match (a, b) {
        (None, _) => false,
        (Some(_), None) => true,
        (Some(a), Some(b)) => a < b,
    }
}

/// None for a permission that covers nothing. In etcd an empty first key is after everything.
fn interval_of_permission(permission: &Permission) -> Option<(Bytes, End)> {
    if permission.key.is_empty() {
        return None;
    }
    let range = KeyRange::from_wire(permission.key.clone(), permission.range_end.clone());
    (!range.is_empty()).then(|| interval(&permission.key, &range))
}

fn interval(start: &Bytes, range: &KeyRange) -> (Bytes, End) {
    let end = if range.is_single() {
        Some([start, b"\0".as_slice()].concat().into())
    } else {
        range.end().cloned()
    };
    (start.clone(), end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::PermissionKind;

    fn access(ranges: &[(&'static str, &'static str)]) -> Access {
        let permissions: Vec<Permission> = ranges
            .iter()
            .map(|(key, end)| Permission {
                kind: PermissionKind::Read,
                key: Bytes::from_static(key.as_bytes()),
                range_end: Bytes::from_static(end.as_bytes()),
            })
            .collect();
        Access::new(permissions.iter())
    }

    fn covers(ranges: &[(&'static str, &'static str)], key: &'static str, end: &'static str) -> bool {
        access(ranges).covers(&KeyRange::from_wire(key, end))
    }

    #[test]
    fn neighbours_count_as_one() {
        assert!(covers(&[("a", "c"), ("c", "e")], "b", "d"));
        assert!(covers(&[("c", "e"), ("a", "d")], "a", "e"));
        assert!(!covers(&[("a", "c"), ("d", "e")], "a", "e"));
        assert!(covers(&[("a", ""), ("a\0", "b")], "a", "b"));
        assert!(covers(&[("a", "z"), ("b", "c")], "x", "y"));
    }

    #[test]
    fn single_keys_and_ends() {
        assert!(covers(&[("a", "")], "a", ""));
        assert!(!covers(&[("a", "")], "a", "b"));
        assert!(!covers(&[("a", "")], "ab", ""));
        assert!(!covers(&[("a", "b")], "b", ""));
        assert!(covers(&[("a", "\0")], "b", "\0"));
        assert!(!covers(&[("a", "z")], "b", "\0"));
        assert!(!covers(&[("b", "\0")], "a", "\0"));
        assert!(covers(&[("\0", "\0")], "\0", "\0"));
        assert!(!covers(&[], "a", ""));
        assert!(!covers(&[("", "\0"), ("c", "a")], "b", ""));
    }
}
