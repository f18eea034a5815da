//! Reading: what is at a path of the v2 tree.
//!
//! A [`View`] is a path and all above it at one revision; it is what writing decides on. Invariant: everything in one
//! answer is of one revision, the one that the answer names. Times to live are the exception: they are of now.

use super::error::{Code, Refusal};
use super::node::{End, Node};
use crate::http::inside::Caller;
use etcd_client::proto as pb;
use pb::PbKeyValue as KeyValue;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, SystemTime};
use tonic::Status;

/// Directories above one another. Each costs three of the 128 operations that a transaction may have.
const MAX_DEPTH: usize = 40;

/// A path, and what is above it.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    pub(crate) revision: i64,
    pub(crate) path: String,
    pub(crate) file: Option<KeyValue>,
    pub(crate) marker: Option<KeyValue>,
    /// The key below it that is there longest.
    oldest: Option<KeyValue>,
    /// How many keys are below it, its marker among them.
    pub(crate) below: i64,
    /// From the top, without the root.
    pub(crate) above: Vec<Above>,
    /// The ends of its leases.
    ends: Ends,
}

/// A directory above.
#[derive(Debug, Clone)]
pub(crate) struct Above {
    pub(crate) path: String,
    pub(crate) file: bool,
    pub(crate) marker: Option<KeyValue>,
    pub(crate) below: i64,
}

/// When leases end.
pub(crate) type Ends = HashMap<i64, End>;

/// What a path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Dir,
}

impl View {
    /// What is there; like etcd, the refusal names the first part of the path that is missing.
    pub(crate) fn resolve(&self) -> Result<Kind, Refusal> {
        if let Some(above) = self.above.iter().find(|above| above.below == 0) {
            let code = if above.file { Code::NotDir } else { Code::KeyNotFound };
            return Err(Refusal::new(code, &above.path, self.revision));
        }
        if self.file.is_some() {
            Ok(Kind::File)
        } else if self.below > 0 || self.path == "/" {
            Ok(Kind::Dir)
        } else {
            Err(Refusal::new(Code::KeyNotFound, &self.path, self.revision))
        }
    }

    /// The lease of the nearest directory above that ends.
    pub(crate) fn inherited(&self) -> i64 {
        let leases = self.above.iter().rev().filter_map(|above| Some(above.marker.as_ref()?.lease));
        leases.into_iter().find(|lease| *lease != 0).unwrap_or_default()
    }

    /// What is there as a node, without what is in it.
    pub(crate) fn node(&self) -> Node {
        let inherited = self.inherited();
        match &self.file {
            Some(file) => file_node(file, inherited, &self.ends),
            None => {
                let created = self.marker.as_ref().or(self.oldest.as_ref());
                directory_node(&self.path, self.marker.as_ref(), created, inherited, &self.ends)
            }
        }
    }
}

/// The marker of a directory.
pub(crate) fn marker_key(path: &str) -> String {
    if path == "/" { "/".to_owned() } else { format!("{path}/") }
}

/// The end of the range of a directory's keys: `0` follows `/`.
pub(crate) fn below_end(path: &str) -> String {
    if path == "/" { "0".to_owned() } else { format!("{path}0") }
}

fn file_node(kv: &KeyValue, inherited: i64, ends: &Ends) -> Node {
    Node {
        key: String::from_utf8_lossy(&kv.key).into_owned(),
        value: Some(String::from_utf8_lossy(&kv.value).into_owned()),
        end: end_of(kv.lease, inherited, ends),
        modified: kv.mod_revision,
        created: kv.create_revision,
        ..Node::default()
    }
}

fn directory_node(
    path: &str,
    marker: Option<&KeyValue>,
    created: Option<&KeyValue>,
    inherited: i64,
    ends: &Ends,
) -> Node {
    // The root has neither a name nor indices.
    let root = path == "/";
    let created = if root { 0 } else { created.map_or(0, |kv| kv.create_revision) };
    Node {
        key: if root { String::new() } else { path.to_owned() },
        dir: true,
        end: marker.and_then(|marker| end_of(marker.lease, inherited, ends)),
        // Like v2's, a directory does not change with what is in it.
        modified: created,
        created,
        ..Node::default()
    }
}

/// What has its directory's lease has no end of its own.
fn end_of(lease: i64, inherited: i64, ends: &Ends) -> Option<End> {
    if lease == inherited { None } else { ends.get(&lease).copied() }
}

fn range(key: String, end: Option<String>, limit: i64, oldest: bool) -> pb::PbTxnRequestOp {
    pb::PbTxnRequestOp {
        request: Some(pb::PbTxnOpRequest::RequestRange(pb::PbRangeRequest {
            key: key.into_bytes(),
            range_end: end.unwrap_or_default().into_bytes(),
            limit,
            sort_target: if oldest { 2 } else { 0 },
            sort_order: i32::from(oldest),
            ..Default::default()
        })),
    }
}

fn count(path: &str) -> pb::PbTxnRequestOp {
    pb::PbTxnRequestOp {
        request: Some(pb::PbTxnOpRequest::RequestRange(pb::PbRangeRequest {
            key: marker_key(path).into_bytes(),
            range_end: below_end(path).into_bytes(),
            count_only: true,
            ..Default::default()
        })),
    }
}

/// The directories above a path, from the top, without the root.
fn above(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').skip(1).map(|(at, _)| &path[..at])
}

/// Looks at a path.
pub(crate) async fn look(caller: &Caller, path: &str) -> Result<View, Refusal> {
    if path.matches('/').count() > MAX_DEPTH {
        return Err(Refusal::request(Code::InvalidForm, "too many directories"));
    }
    let mut success = vec![
        range(path.to_owned(), None, 0, false),
        range(marker_key(path), None, 0, false),
        range(marker_key(path), Some(below_end(path)), 1, true),
    ];
    for path in above(path) {
        success.extend([
            range(path.to_owned(), None, 0, false),
            range(marker_key(path), None, 0, false),
            count(path),
        ]);
    }
    let txn = pb::PbTxnRequest { success, ..Default::default() };
    let answer: pb::PbTxnResponse = caller.call("/etcdserverpb.KV/Txn", txn).await?;
    let mut ranges = answer.responses.into_iter().map(|response| match response.response {
        Some(pb::PbTxnOpResponse::ResponseRange(range)) => range,
        _ => pb::PbRangeResponse::default(),
    });
    let mut next = || ranges.next().unwrap_or_default();
    let mut view = View {
        revision: answer.header.map_or(0, |header| header.revision),
        path: path.to_owned(),
        file: next().kvs.pop().filter(|_| path != "/"),
        marker: next().kvs.pop(),
        ..View::default()
    };
    let mut below = next();
    view.below = below.count;
    view.oldest = below.kvs.pop();
    for path in above(path) {
        let (file, marker, below) = (next(), next(), next().count);
        let file = file.count > 0;
        view.above.push(Above { path: path.to_owned(), file, marker: marker.kvs.into_iter().next(), below });
    }
    let leases = view.file.iter().chain(&view.marker).map(|kv| kv.lease);
    view.ends = ends(caller, leases.collect()).await?;
    Ok(view)
}

/// Looks at a path and into it.
pub(crate) async fn get(caller: &Caller, path: &str, recursive: bool) -> Result<(Node, i64), Refusal> {
    let view = look(caller, path).await?;
    let mut node = view.node();
    if view.resolve()? == Kind::Dir {
        let request = pb::PbRangeRequest {
            key: marker_key(path).into_bytes(),
            range_end: below_end(path).into_bytes(),
            revision: view.revision,
            ..Default::default()
        };
        let answer: pb::PbRangeResponse = caller.call("/etcdserverpb.KV/Range", request).await?;
        let ends = ends(caller, answer.kvs.iter().map(|kv| kv.lease).collect()).await?;
        let lease = view.marker.as_ref().map(|marker| marker.lease).filter(|lease| *lease != 0);
        let lease = lease.unwrap_or_else(|| view.inherited());
        let prefix = marker_key(path);
        let kvs: Vec<(&str, &KeyValue)> = answer
            .kvs
            .iter()
            .filter_map(|kv| Some((std::str::from_utf8(&kv.key).ok()?.strip_prefix(&prefix)?, kv)))
            .collect();
        node.nodes = children(&prefix, &kvs, recursive, lease, &ends);
    }
    Ok((node, view.revision))
}

#[derive(Default)]
struct Child<'a> {
    file: Option<&'a KeyValue>,
    marker: Option<&'a KeyValue>,
    oldest: Option<&'a KeyValue>,
    below: Vec<(&'a str, &'a KeyValue)>,
}

/// The nodes of a directory, sorted, of its keys without its prefix.
fn children(
    prefix: &str,
    kvs: &[(&str, &KeyValue)],
    recursive: bool,
    inherited: i64,
    ends: &Ends,
) -> Vec<Node> {
    let mut of_name: BTreeMap<&str, Child<'_>> = BTreeMap::new();
    // Nothing between two slashes is not a name that v2 can say; a marker is not in itself; `_` hides.
    for (name, kv) in kvs.iter().filter(|(name, _)| !name.starts_with(['/', '_']) && !name.is_empty()) {
        match name.split_once('/') {
            None => of_name.entry(name).or_default().file = Some(kv),
            Some((name, rest)) => {
                let child = of_name.entry(name).or_default();
                if rest.is_empty() {
                    child.marker = Some(kv);
                } else {
                    child.below.push((rest, kv));
                }
                if child.oldest.is_none_or(|oldest| oldest.create_revision > kv.create_revision) {
                    child.oldest = Some(kv);
                }
            }
        }
    }
    of_name
        .into_iter()
        .map(|(name, child)| {
            if let Some(file) = child.file {
                return file_node(file, inherited, ends);
            }
            let path = format!("{prefix}{name}");
            let mut node =
                directory_node(&path, child.marker, child.marker.or(child.oldest), inherited, ends);
            if recursive {
                let lease = child.marker.map(|marker| marker.lease).filter(|lease| *lease != 0);
                let lease = lease.unwrap_or(inherited);
                node.nodes = children(&format!("{path}/"), &child.below, recursive, lease, ends);
            }
            node
        })
        .collect()
}

/// When leases end.
pub(crate) async fn ends(caller: &Caller, leases: HashSet<i64>) -> Result<Ends, Status> {
    let mut ends = Ends::new();
    for id in leases.into_iter().filter(|id| *id != 0) {
        let request = pb::PbLeaseTimeToLiveRequest { id, keys: false };
        let lease: pb::PbLeaseTimeToLiveResponse =
            caller.call("/etcdserverpb.Lease/LeaseTimeToLive", request).await?;
        if lease.ttl >= 0 {
            // v3 rounds down, v2 up.
            let ttl = (lease.ttl + 1).min(lease.granted_ttl);
            let at = SystemTime::now() + Duration::from_secs(ttl.unsigned_abs().min(9_000_000_000));
            ends.insert(id, End { at, ttl });
        }
    }
    Ok(ends)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn kv(key: &str, revision: i64) -> KeyValue {
        KeyValue { key: key.into(), create_revision: revision, mod_revision: revision, ..Default::default() }
    }

    #[test]
    fn keys_make_a_tree() {
        let kvs =
            [kv("/a/", 9), kv("/a/-", 2), kv("/a/_h", 2), kv("/a/d//x", 2), kv("/a/d/x", 3), kv("/a/e/", 4)];
        let named: Vec<(&str, &KeyValue)> = kvs
            .iter()
            .map(|kv| (std::str::from_utf8(&kv.key).unwrap().strip_prefix("/a/").unwrap(), kv))
            .collect();
        let nodes = children("/a/", &named, true, 0, &Ends::new());
        let keys: Vec<_> = nodes.iter().map(|node| (node.key.as_str(), node.dir, node.nodes.len())).collect();
        assert_eq!(keys, [("/a/-", false, 0), ("/a/d", true, 1), ("/a/e", true, 0)]);
    }

    #[test]
    fn what_is_above() {
        assert_eq!(above("/a/b/c").collect::<Vec<_>>(), ["/a", "/a/b"]);
        assert_eq!(above("/a").count() + above("/").count(), 0);
    }
}
