//! Deciding: what a v2 write does, given what is there.
//!
//! Pure: from a [`View`] and an [`Ask`] to a refusal or a [`Plan`], which is data. Invariant: a plan's comparisons
//! hold if and only if what it was decided on has not changed, so that its transaction does either what etcd's v2
//! store would have done or nothing.

use super::error::{Code, Refusal};
use super::form::Ask;
use super::node::{End, Node};
use super::tree::{Kind, View, below_end, marker_key};
use etcd_client::proto as pb;

/// Which kind of write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Set,
    Create,
    Update,
    CompareAndSwap,
    Delete,
    CompareAndDelete,
}

impl Action {
    /// What a PUT is depends on its conditions.
    pub(crate) fn of_put(ask: &Ask) -> Self {
        let compares = ask.prev_index > 0 || !ask.prev_value.is_empty();
        match ask.prev_exist {
            Some(false) => Self::Create,
            _ if compares => Self::CompareAndSwap,
            Some(true) => Self::Update,
            None => Self::Set,
        }
    }

    pub(crate) fn of_delete(ask: &Ask) -> Self {
        let compares = ask.prev_index > 0 || !ask.prev_value.is_empty();
        if compares { Self::CompareAndDelete } else { Self::Delete }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Set => "set",
            Self::Create => "create",
            Self::Update => "update",
            Self::CompareAndSwap => "compareAndSwap",
            Self::Delete => "delete",
            Self::CompareAndDelete => "compareAndDelete",
        }
    }
}

/// A key that is put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Put {
    pub(crate) key: String,
    /// Nothing: keeps the value it has.
    pub(crate) value: Option<String>,
    pub(crate) lease: Lease,
}

/// The lease that a key gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lease {
    /// One that exists, or 0 for none.
    Existing(i64),
    /// A new one of so many seconds.
    New(u64),
}

/// What to do.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) action: Action,
    pub(crate) compare: Vec<pb::PbCompare>,
    pub(crate) puts: Vec<Put>,
    /// Keys and ends of ranges.
    pub(crate) deletes: Vec<(String, Option<String>)>,
    /// What is told of it, without its index.
    pub(crate) node: Node,
    pub(crate) prev: Option<Node>,
    /// Whether watchers do not hear of it.
    pub(crate) silent: bool,
    /// A lease that may have no more keys afterwards.
    pub(crate) left: i64,
    /// Whether what is in the directory takes its new lease instead of the one left.
    pub(crate) moves: bool,
}

/// Decides.
pub(crate) fn plan(view: &View, action: Action, ask: &Ask) -> Result<Plan, Refusal> {
    match action {
        Action::Set | Action::Create => make(view, action, ask),
        Action::Update | Action::CompareAndSwap => change(view, action, ask),
        Action::Delete | Action::CompareAndDelete => delete(view, action, ask),
    }
}

impl Plan {
    fn new(view: &View, action: Action) -> Self {
        let node = Node { key: view.path.clone(), ..Node::default() };
        Self {
            action,
            compare: Vec::new(),
            puts: Vec::new(),
            deletes: Vec::new(),
            node,
            prev: None,
            silent: false,
            left: 0,
            moves: false,
        }
    }

    /// The key is as it was seen.
    fn unchanged(&mut self, key: &str, seen: Option<&pb::PbKeyValue>) {
        self.compare.push(pb::PbCompare {
            result: 0,
            target: 2,
            key: key.into(),
            target_union: Some(pb::PbTargetUnion::ModRevision(seen.map_or(0, |kv| kv.mod_revision))),
            range_end: Vec::new(),
        });
    }

    /// There is no key from here to there.
    fn nothing_in(&mut self, key: String, end: String) {
        self.compare.push(pb::PbCompare {
            result: 0,
            target: 1,
            key: key.into_bytes(),
            target_union: Some(pb::PbTargetUnion::CreateRevision(0)),
            range_end: end.into_bytes(),
        });
    }
}

fn not_root(view: &View) -> Result<(), Refusal> {
    if view.path == "/" { Err(Refusal::new(Code::RootReadOnly, "/", view.revision)) } else { Ok(()) }
}

fn lease(view: &View, ask: &Ask) -> Lease {
    ask.ttl.map_or_else(|| Lease::Existing(view.inherited()), Lease::New)
}

fn make(view: &View, action: Action, ask: &Ask) -> Result<Plan, Refusal> {
    let replace = action == Action::Set;
    if ask.refresh && replace {
        view.resolve()?;
    }
    not_root(view)?;
    if let Some(above) = view.above.iter().find(|above| above.file && above.below == 0) {
        return Err(Refusal::new(Code::NotDir, &above.path, view.revision));
    }
    let is_dir = view.file.is_none() && view.below > 0;
    if is_dir || view.file.is_some() {
        let code = if !replace { Code::NodeExist } else { Code::NotFile };
        if is_dir || !replace {
            return Err(Refusal::new(code, &view.path, view.revision));
        }
    }
    let mut plan = Plan::new(view, action);
    for above in view.above.iter().filter(|above| !above.file) {
        plan.nothing_in(above.path.clone(), String::new());
    }
    plan.unchanged(&view.path, view.file.as_ref());
    if view.below == 0 {
        plan.nothing_in(marker_key(&view.path), below_end(&view.path));
    }
    plan.node.end = ask.ttl.map(End::after);
    if let Some(file) = &view.file {
        plan.prev = Some(view.node());
        plan.left = file.lease;
    }
    if ask.dir {
        plan.node.dir = true;
        plan.puts.push(Put {
            key: marker_key(&view.path),
            value: Some(String::new()),
            lease: lease(view, ask),
        });
        if view.file.is_some() {
            plan.deletes.push((view.path.clone(), None));
        }
        return Ok(plan);
    }
    let value = if ask.refresh { None } else { Some(ask.value.clone()) };
    plan.silent = ask.refresh;
    plan.node.value = value.clone().or_else(|| plan.prev.as_ref().and_then(|prev| prev.value.clone()));
    plan.node.created = view.file.as_ref().map_or(0, |file| file.create_revision);
    plan.puts.push(Put { key: view.path.clone(), value, lease: lease(view, ask) });
    Ok(plan)
}

fn change(view: &View, action: Action, ask: &Ask) -> Result<Plan, Refusal> {
    not_root(view)?;
    let kind = view.resolve()?;
    let mut plan = Plan::new(view, action);
    let now = view.node();
    plan.node.created = now.created;
    plan.node.end = ask.ttl.map(End::after);
    plan.silent = ask.refresh;
    match kind {
        Kind::Dir if action == Action::CompareAndSwap || !ask.value.is_empty() => {
            return Err(Refusal::new(Code::NotFile, &view.path, view.revision));
        }
        Kind::Dir => {
            let key = marker_key(&view.path);
            plan.unchanged(&key, view.marker.as_ref());
            plan.left = view.marker.as_ref().map_or(0, |marker| marker.lease);
            plan.node.dir = true;
            plan.moves = true;
            plan.puts.push(Put { key, value: Some(String::new()), lease: lease(view, ask) });
        }
        Kind::File => {
            if action == Action::CompareAndSwap {
                compare(view, &now, ask)?;
            }
            plan.unchanged(&view.path, view.file.as_ref());
            plan.left = view.file.as_ref().map_or(0, |file| file.lease);
            let value = if ask.refresh { None } else { Some(ask.value.clone()) };
            plan.node.value = value.clone().or_else(|| now.value.clone());
            plan.puts.push(Put { key: view.path.clone(), value, lease: lease(view, ask) });
        }
    }
    plan.prev = Some(now);
    Ok(plan)
}

/// Whether value and index are as the client believes.
fn compare(view: &View, now: &Node, ask: &Ask) -> Result<(), Refusal> {
    let value = now.value.as_deref().unwrap_or_default();
    let value_differs = !ask.prev_value.is_empty() && ask.prev_value != value;
    let index = ask.prev_index;
    let index_differs = index != 0 && i64::try_from(index) != Ok(now.modified);
    let of_value = format!("[{} != {value}]", ask.prev_value);
    let of_index = format!("[{index} != {}]", now.modified);
    let cause = match (value_differs, index_differs) {
        (false, false) => return Ok(()),
        (true, false) => of_value,
        (false, true) => of_index,
        (true, true) => format!("{of_value} {of_index}"),
    };
    Err(Refusal::new(Code::TestFailed, cause, view.revision))
}

fn delete(view: &View, action: Action, ask: &Ask) -> Result<Plan, Refusal> {
    if action == Action::Delete {
        not_root(view)?;
    }
    let kind = view.resolve()?;
    let mut plan = Plan::new(view, action);
    let now = view.node();
    plan.node.created = now.created;
    let refused = |code| Err(Refusal::new(code, &view.path, view.revision));
    match kind {
        Kind::File => {
            if action == Action::CompareAndDelete {
                compare(view, &now, ask)?;
            }
            plan.unchanged(&view.path, view.file.as_ref());
            plan.deletes.push((view.path.clone(), None));
            plan.left = view.file.as_ref().map_or(0, |file| file.lease);
        }
        Kind::Dir if action == Action::CompareAndDelete || !(ask.dir || ask.recursive) => {
            return refused(Code::NotFile);
        }
        Kind::Dir => {
            let marker = marker_key(&view.path);
            let inside = view.below - i64::from(view.marker.is_some());
            if !ask.recursive {
                if inside > 0 {
                    return refused(Code::DirNotEmpty);
                }
                plan.unchanged(&marker, view.marker.as_ref());
                plan.nothing_in(format!("{marker}\0"), below_end(&view.path));
            }
            plan.node.dir = true;
            plan.left = view.marker.as_ref().map_or(0, |marker| marker.lease);
            plan.deletes.push((marker, Some(below_end(&view.path))));
        }
    }
    plan.prev = Some(now);
    keep_parent(view, kind, &mut plan);
    Ok(plan)
}

/// In v2 a directory stays when the last that is in it goes.
fn keep_parent(view: &View, kind: Kind, plan: &mut Plan) {
    let Some(parent) = view.above.last() else { return };
    let going = if kind == Kind::File { 1 } else { view.below };
    if parent.marker.is_none() && parent.below <= going {
        let (key, lease) = (marker_key(&parent.path), Lease::Existing(view.inherited()));
        plan.puts.push(Put { key, value: Some(String::new()), lease });
    }
}
