//! Manifests: one place for versions and lints, bans in the pure crates, and a lock file that stays small.

use super::graph::{Graph, PURE};
use super::{Files, Finding};
use toml::{Table, Value};

/// Each package is one more to trust, to update and to compile.
const PACKAGES: usize = 400;

/// What clippy must forbid a pure crate: the clock, the environment, and files.
const BANS: [&str; 4] =
    ["std::time::Instant::now", "std::time::SystemTime::now", "std::env::var", "std::fs::read"];

const KINDS: [&str; 3] = ["dependencies", "dev-dependencies", "build-dependencies"];

/// The rules about manifests.
pub(crate) fn check(graph: &Graph, files: &Files) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (member, manifest) in graph.members() {
        let Some((text, table)) = read(files, manifest, &mut findings) else { continue };
        let inherits = table.get("lints").and_then(|lints| lints.get("workspace"));
        if inherits.and_then(Value::as_bool) != Some(true) {
            let remedy = "[lints] workspace = true";
            findings.push(Finding::of(manifest, "does not take the workspace's lints", remedy));
        }
        inherited(manifest, text, &table, &mut findings);
        if PURE.contains(&member.name.as_str()) {
            bans(&manifest.replace("Cargo.toml", "clippy.toml"), files, &mut findings);
        }
    }
    unsafe_code(files, &mut findings);
    let packages = files.get("Cargo.lock").unwrap_or_default().lines().filter(|line| *line == "[[package]]");
    let packages = packages.count();
    if packages > PACKAGES {
        let what = format!("has {packages} packages, more than {PACKAGES}");
        findings.push(Finding::of("Cargo.lock", what, "`cargo tree` says who brings them"));
    }
    findings
}

fn read<'a>(files: &'a Files, path: &str, findings: &mut Vec<Finding>) -> Option<(&'a str, Table)> {
    let Some(text) = files.get(path) else {
        findings.push(Finding::of(path, "is not in the repository", "add it"));
        return None;
    };
    match text.parse() {
        Ok(table) => Some((text, table)),
        Err(error) => {
            findings.push(Finding::of(path, format!("is no TOML: {error}"), "correct it"));
            None
        }
    }
}

/// Every dependency of a member is the workspace's.
fn inherited(path: &str, text: &str, table: &Table, findings: &mut Vec<Finding>) {
    let platforms = table.get("target").and_then(Value::as_table).into_iter().flat_map(Table::values);
    let tables = platforms.filter_map(Value::as_table).chain([table]);
    let kinds = tables.flat_map(|table| KINDS.iter().filter_map(|kind| table.get(*kind)?.as_table()));
    for (name, dependency) in kinds.flatten() {
        if dependency.get("workspace").and_then(Value::as_bool) != Some(true) {
            // `name = …`, `name.version = …`, `[dependencies.name]`.
            let names = |line: &str| match line.trim_start().strip_prefix(name.as_str()) {
                Some(rest) => rest.starts_with([' ', '=', '.']),
                None => line.contains(&format!("dependencies.{name}]")),
            };
            let line = text.lines().position(names).map_or(1, |line| line + 1);
            let remedy = format!("name the version in the root manifest, and here {name}.workspace = true");
            let what = format!("`{name}` is not taken from the workspace");
            findings.push(Finding::at(path, line, what, remedy));
        }
    }
}

fn bans(path: &str, files: &Files, findings: &mut Vec<Finding>) {
    let Some((_, table)) = read(files, path, findings) else { return };
    let methods = table.get("disallowed-methods").and_then(Value::as_array);
    let methods: Vec<_> = methods.into_iter().flatten().collect();
    let path_of = |method: &Value| method.get("path").unwrap_or(method).as_str().map(str::to_owned);
    for ban in BANS {
        let banned = methods.iter().find(|method| path_of(method).as_deref() == Some(ban));
        match banned {
            None => {
                let remedy = "a pure crate gets it as an argument: add it to disallowed-methods";
                findings.push(Finding::of(path, format!("does not forbid `{ban}`"), remedy));
            }
            Some(method) if method.get("reason").is_none() => {
                findings.push(Finding::of(path, format!("forbids `{ban}` without a reason"), "say why"));
            }
            Some(_) => {}
        }
    }
}

/// The workspace denies it, and only `net` may make an exception.
fn unsafe_code(files: &Files, findings: &mut Vec<Finding>) {
    let root: Option<Table> = files.get("Cargo.toml").and_then(|text| text.parse().ok());
    let lint =
        root.as_ref().and_then(|root| root.get("workspace")?.get("lints")?.get("rust")?.get("unsafe_code"));
    if !matches!(lint.and_then(Value::as_str), Some("deny" | "forbid")) {
        let remedy = "[workspace.lints.rust] unsafe_code = \"deny\"";
        findings.push(Finding::of("Cargo.toml", "does not deny `unsafe_code`", remedy));
    }
    for file in files.iter() {
        if !file.path.ends_with(".rs") || file.path.starts_with("crates/net/") {
            continue;
        }
        let code = super::rust::Masked::of(&file.text).code;
        for (number, line) in (1..).zip(code.split('\n')) {
            if line.contains("allow(unsafe_code") || line.contains("expect(unsafe_code") {
                findings.push(Finding::at(
                    &file.path,
                    number,
                    "permits itself unsafe code",
                    "only `net` may",
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::graph::tests::graph;
    use crate::tidy::tests::told;

    const GOOD: &str = "[dependencies]\nbytes.workspace = true\n[lints]\nworkspace = true\n";
    const ROOT: &str = "[workspace.lints.rust]\nunsafe_code = \"deny\"\n";

    fn clippy() -> String {
        let ban = |ban| format!("{{ path = \"{ban}\", reason = \"pure\" }}");
        format!("disallowed-methods = [{}]", BANS.map(ban).join(", "))
    }

    /// What is found when everything is right but `changes`.
    fn found(changes: &[(&str, &str)]) -> Vec<String> {
        let graph = graph(&[]);
        let clippy = clippy();
        let mut all = vec![("Cargo.toml", ROOT), ("Cargo.lock", "")];
        let manifests: Vec<_> = graph.members().map(|(_, path)| path.to_owned()).collect();
        let bans: Vec<_> = PURE.iter().map(|name| format!("crates/{name}/clippy.toml")).collect();
        all.extend(manifests.iter().map(|path| (path.as_str(), GOOD)));
        all.extend(bans.iter().map(|path| (path.as_str(), clippy.as_str())));
        all.retain(|(path, _)| changes.iter().all(|(changed, _)| changed != path));
        all.extend(changes);
        told(&check(&graph, &Files::of(&all)))
    }

    #[test]
    fn everything_is_right() {
        assert_eq!(found(&[]), [""; 0]);
    }

    #[test]
    fn lints_are_the_workspaces() {
        let told = found(&[("crates/hub/Cargo.toml", "[lints.rust]\nunused = \"allow\"\n")]);
        assert_eq!(told, ["crates/hub/Cargo.toml: does not take the workspace's lints"]);
    }

    #[test]
    fn versions_are_the_workspaces() {
        let bad = "[dependencies]\nserde-json.workspace = true\nserde = \"1\"\n\
                   [target.'cfg(unix)'.dev-dependencies]\nnix = { version = \"1\" }\n\
                   [build-dependencies.cc]\npath = \"..\"\n[lints]\nworkspace = true\n";
        let mut told = found(&[("crates/hub/Cargo.toml", bad)]);
        told.sort();
        assert_eq!(
            told,
            [
                "crates/hub/Cargo.toml:3: `serde` is not taken from the workspace",
                "crates/hub/Cargo.toml:5: `nix` is not taken from the workspace",
                "crates/hub/Cargo.toml:6: `cc` is not taken from the workspace",
            ]
        );
    }

    #[test]
    fn a_pure_crate_forbids_itself_the_outside() {
        let path = "crates/mvcc/clippy.toml";
        let told = found(&[(path, &clippy().replace("std::env::var\"", "std::env::vars\""))]);
        assert_eq!(told, ["crates/mvcc/clippy.toml: does not forbid `std::env::var`"]);
        let told = found(&[(path, &clippy().replacen(", reason = \"pure\"", "", 1))]);
        assert_eq!(told, ["crates/mvcc/clippy.toml: forbids `std::time::Instant::now` without a reason"]);
        assert_eq!(found(&[(path, "")]).len(), BANS.len());
    }

    #[test]
    fn a_missing_or_broken_file_is_told() {
        assert!(
            found(&[("crates/mvcc/clippy.toml", "[")])[0].starts_with("crates/mvcc/clippy.toml: is no TOML")
        );
        let told = told(&check(&graph(&[]), &Files::of(&[("Cargo.toml", ROOT)])));
        assert!(told.contains(&"crates/hub/Cargo.toml: is not in the repository".to_owned()));
    }

    #[test]
    fn unsafe_code_is_nets() {
        assert_eq!(found(&[("Cargo.toml", "[workspace]\n")]), ["Cargo.toml: does not deny `unsafe_code`"]);
        let text = "//! A.\n#![expect(unsafe_code, reason = \"fast\")]\n// #![allow(unsafe_code)]\n";
        let told = found(&[("crates/hub/src/lib.rs", text), ("crates/net/src/lib.rs", text)]);
        assert_eq!(told, ["crates/hub/src/lib.rs:2: permits itself unsafe code"]);
    }

    #[test]
    fn the_lock_file_stays_small() {
        let lock = "[[package]]\nname = \"a\"\n".repeat(PACKAGES + 1);
        assert_eq!(found(&[("Cargo.lock", &lock)]), ["Cargo.lock: has 401 packages, more than 400"]);
    }
}
