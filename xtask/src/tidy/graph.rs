//! Who depends on whom: the part of the architecture that cargo knows.
//!
//! What each rule forbids is listed here; that ARCHITECTURE.md says so too is [`documents`](super::documents)'s.

use super::Finding;
use anyhow::{Context, Result};
use cargo_metadata::{DependencyKind, Metadata};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Crates that decide and touch nothing.
pub(crate) const PURE: [&str; 4] = ["model", "unit", "muster-core", "mvcc"];

/// Crates that touch one outside system each.
const ADAPTERS: [&str; 7] = ["hub", "registry", "systemd", "net", "nginx", "dns", "api"];

/// Who may depend on the crates that are for development.
const DEVELOPMENT: [(&str, &[&str]); 6] = [
    ("lab", &["muster", "story"]),
    ("story", &[]),
    ("sim", &[]),
    ("hub-bench", &[]),
    ("engine-bench", &[]),
    ("overlay-bench", &[]),
];

/// What a pure crate must not have, however indirectly: runtimes, sockets, files, buses, databases, randomness.
const IMPURE: [&str; 22] = [
    "tokio",
    "mio",
    "socket2",
    "hyper",
    "hyper-util",
    "h2",
    "tonic",
    "axum",
    "tower",
    "etcd-client",
    "zbus",
    "rtnetlink",
    "netlink-sys",
    "redb",
    "rustix",
    "nix",
    "tempfile",
    "signal-hook",
    "sd-notify",
    "rand",
    "getrandom",
    "fastrand",
];

/// Where a package comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// A member of the workspace; its manifest, relative to the repository.
    Workspace(String),
    CratesIo,
    /// git, another registry, or a path outside the workspace.
    Elsewhere(String),
}

/// A package of the lock file.
#[derive(Debug)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) source: Source,
    pub(crate) licence: Option<String>,
    /// Ids of what it needs to run, whatever the platform.
    normal: Vec<String>,
    /// Ids of what its tests and build scripts need.
    other: Vec<String>,
}

/// All packages of the lock file, by id.
#[derive(Debug, Default)]
pub(crate) struct Graph(BTreeMap<String, Package>);

impl Graph {
    pub(crate) fn from_metadata(metadata: &Metadata) -> Result<Self> {
        let mut packages = BTreeMap::new();
        for package in &metadata.packages {
            let id = &package.id.repr;
            let source = match &package.source {
                Some(source) if source.is_crates_io() => Source::CratesIo,
                Some(source) => Source::Elsewhere(source.repr.clone()),
                None if metadata.workspace_members.contains(&package.id) => {
                    let manifest = package.manifest_path.strip_prefix(&metadata.workspace_root);
                    Source::Workspace(manifest.unwrap_or(&package.manifest_path).to_string())
                }
                None => Source::Elsewhere(package.manifest_path.to_string()),
            };
            let package = Package {
                name: package.name.to_string(),
                version: package.version.to_string(),
                source,
                licence: package.license.clone(),
                normal: Vec::new(),
                other: Vec::new(),
            };
            packages.insert(id.clone(), package);
        }
        let resolve = metadata.resolve.as_ref().context("cargo metadata resolved nothing")?;
        for node in &resolve.nodes {
            let from = packages.get_mut(&node.id.repr);
            let from = from.with_context(|| format!("cargo metadata has no package {}", node.id))?;
            for dep in &node.deps {
                let normal = dep.dep_kinds.iter().any(|kind| kind.kind == DependencyKind::Normal);
                if normal { &mut from.normal } else { &mut from.other }.push(dep.pkg.repr.clone());
            }
        }
        Ok(Self(packages))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn packages(&self) -> impl Iterator<Item = &Package> {
        self.0.values()
    }

    /// Members of the workspace with their manifests.
    pub(crate) fn members(&self) -> impl Iterator<Item = (&Package, &str)> {
        self.0.values().filter_map(|package| match &package.source {
            Source::Workspace(manifest) => Some((package, manifest.as_str())),
            Source::CratesIo | Source::Elsewhere(_) => None,
        })
    }

    /// The shortest way by normal dependencies to each package that `of` needs: names, from `of` on.
    fn ways(&self, of: &str) -> BTreeMap<&str, Vec<&str>> {
        let mut ways = BTreeMap::new();
        let Some((start, package)) = self.0.iter().find(|(_, package)| package.name == of) else {
            return ways;
        };
        let mut seen = BTreeSet::from([start]);
        let mut queue = VecDeque::from([(package, vec![package.name.as_str()])]);
        while let Some((package, way)) = queue.pop_front() {
            for id in &package.normal {
                if let Some(next) = self.0.get(id)
                    && seen.insert(id)
                {
                    let way = [way.as_slice(), &[next.name.as_str()]].concat();
                    ways.entry(next.name.as_str()).or_insert_with(|| way.clone());
                    queue.push_back((next, way));
                }
            }
        }
        ways
    }
}

/// The rules about dependencies.
pub(crate) fn check(graph: &Graph) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (member, manifest) in graph.members() {
        let ways = graph.ways(&member.name);
        let mut forbid = |names: &[&str], what: &str, remedy: &str| {
            for name in names.iter().filter(|name| **name != member.name) {
                if let Some(way) = ways.get(name) {
                    findings.push(Finding::of(manifest, format!("{what}: {}", way.join(" → ")), remedy));
                }
            }
        };
        if PURE.contains(&member.name.as_str()) {
            forbid(&IMPURE, "a pure crate depends on the outside", "take as an argument what it gives");
            forbid(&ADAPTERS, "a pure crate depends on an adapter", "let `muster` pass it what it needs");
        }
        if ADAPTERS.contains(&member.name.as_str()) {
            forbid(&ADAPTERS, "an adapter depends on another adapter", "let the two meet in `muster`");
        }
        for id in member.normal.iter().chain(&member.other) {
            let Some(needed) = graph.0.get(id) else { continue };
            for (name, by) in DEVELOPMENT {
                if needed.name == name && !by.contains(&member.name.as_str()) {
                    let what = format!("`{}` depends on `{name}`, which is for development", member.name);
                    findings.push(Finding::of(manifest, what, "move what both need into a crate of its own"));
                }
            }
        }
    }
    for known in PURE.iter().chain(&ADAPTERS).chain(DEVELOPMENT.iter().map(|(name, _)| name)) {
        if !graph.members().any(|(member, _)| member.name == *known) {
            let what = format!("no member of the workspace is `{known}`");
            findings.push(Finding::of(
                "xtask/src/tidy/graph.rs",
                what,
                "bring its list of crates up to date",
            ));
        }
    }
    for package in graph.packages() {
        if let Source::Elsewhere(place) = &package.source {
            let what = format!("{} {} comes from {place}", package.name, package.version);
            findings.push(Finding::of("Cargo.lock", what, "depend on crates.io only"));
        }
    }
    findings
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::tidy::tests::told;

    /// Packages as `name` and what it needs; a `-` before a need makes it a test's. Whoever is nobody's heading
    /// comes from crates.io.
    pub(crate) fn graph(members: &[(&str, &str)]) -> Graph {
        let mut graph = Graph::default();
        let id = |name: &str| format!("{name} 1.0.0");
        let package = |name: &str, source| Package {
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            source,
            licence: Some("MIT".to_owned()),
            normal: Vec::new(),
            other: Vec::new(),
        };
        let development = DEVELOPMENT.iter().map(|(name, _)| name);
        let known = PURE.iter().chain(&ADAPTERS).chain(development).map(|name| (*name, ""));
        for (name, needs) in known.chain(members.iter().copied()) {
            let source = if name.starts_with('+') {
                Source::CratesIo
            } else {
                Source::Workspace(format!("crates/{name}/Cargo.toml"))
            };
            let name = name.trim_start_matches('+');
            let mut this = package(name, source);
            for need in needs.split_whitespace() {
                let (needs, need) = match need.strip_prefix('-') {
                    Some(need) => (&mut this.other, need),
                    None => (&mut this.normal, need),
                };
                needs.push(id(need));
                graph.0.entry(id(need)).or_insert_with(|| package(need, Source::CratesIo));
            }
            graph.0.insert(id(name), this);
        }
        graph
    }

    impl Graph {
        pub(crate) fn set_licence(&mut self, name: &str, licence: Option<&str>) {
            self.0.get_mut(&format!("{name} 1.0.0")).expect("it is in the graph").licence =
                licence.map(str::to_owned);
        }
    }

    fn found(members: &[(&str, &str)]) -> Vec<String> {
        told(&check(&graph(members)))
    }

    #[test]
    fn what_is_allowed() {
        assert_eq!(
            found(&[
                ("model", "serde -tokio"),
                ("muster-core", "model unit"),
                ("registry", "mvcc etcd-client -hub"),
                ("muster", "hub registry lab"),
                ("story", "lab"),
            ]),
            [""; 0]
        );
    }

    #[test]
    fn a_pure_crate_stays_pure() {
        assert_eq!(
            found(&[("mvcc", "bytes"), ("+bytes", "helper"), ("+helper", "tokio")]),
            ["crates/mvcc/Cargo.toml: a pure crate depends on the outside: mvcc → bytes → helper → tokio"]
        );
        assert_eq!(
            found(&[("unit", "nginx")]),
            ["crates/unit/Cargo.toml: a pure crate depends on an adapter: unit → nginx"]
        );
    }

    #[test]
    fn adapters_do_not_meet() {
        assert_eq!(
            found(&[("net", "between"), ("between", "hub")]),
            ["crates/net/Cargo.toml: an adapter depends on another adapter: net → between → hub"]
        );
    }

    #[test]
    fn development_stays_out_of_the_product() {
        assert_eq!(
            found(&[("api", "-lab"), ("muster", "story")]),
            [
                "crates/api/Cargo.toml: `api` depends on `lab`, which is for development",
                "crates/muster/Cargo.toml: `muster` depends on `story`, which is for development",
            ]
        );
    }

    #[test]
    fn everything_else_is_of_crates_io() {
        let mut graph = graph(&[("hub", "redb")]);
        graph.0.get_mut("redb 1.0.0").expect("it is in the graph").source =
            Source::Elsewhere("git+https://example.org".to_owned());
        assert_eq!(told(&check(&graph)), ["Cargo.lock: redb 1.0.0 comes from git+https://example.org"]);
    }

    #[test]
    fn the_lists_here_are_up_to_date() {
        let mut graph = graph(&[]);
        graph.0.remove("story 1.0.0");
        assert_eq!(told(&check(&graph)), ["xtask/src/tidy/graph.rs: no member of the workspace is `story`"]);
    }
}
