//! Every package's licence against the list in deny.toml, so that the list is known to fit.
//!
//! Only what `cargo deny check licenses` does with expressions; no licence texts are read.

use super::graph::{Graph, Source};
use super::{Files, Finding};
use toml::{Table, Value};

const DENY: &str = "deny.toml";

/// The licences of what is not ours.
pub(crate) fn check(graph: &Graph, files: &Files) -> Vec<Finding> {
    let Some(text) = files.get(DENY) else {
        return vec![Finding::of(DENY, "does not exist", "write it: cargo-deny and this check need it")];
    };
    let table: Table = match text.parse() {
        Ok(table) => table,
        Err(error) => return vec![Finding::of(DENY, format!("is no TOML: {error}"), "correct it")],
    };
    let mut findings = Vec::new();
    for section in ["advisories", "bans", "licenses", "sources"] {
        if !table.get(section).is_some_and(Value::is_table) {
            let what = format!("has no section [{section}]");
            findings.push(Finding::of(DENY, what, "say what is wanted, even if it is the default"));
        }
    }
    let list = table.get("licenses").and_then(|licenses| licenses.get("allow")).and_then(Value::as_array);
    let allowed: Vec<&str> = list.into_iter().flatten().filter_map(Value::as_str).collect();
    let mut needed: Vec<(String, Expression<'_>)> = Vec::new();
    for package in graph.packages().filter(|package| !matches!(package.source, Source::Workspace(_))) {
        let name = format!("{} {}", package.name, package.version);
        let Some(licence) = &package.licence else {
            findings.push(Finding::of("Cargo.lock", format!("{name} names no licence"), "do without it"));
            continue;
        };
        match Expression::parse(licence) {
            None => {
                let what = format!("{name} is under `{licence}`, which is no licence expression");
                findings.push(Finding::of("Cargo.lock", what, "do without it"));
            }
            Some(expression) if !expression.holds(&allowed) => {
                let what = format!("{name} is under `{licence}`, which {DENY} does not allow");
                findings.push(Finding::of("Cargo.lock", what, "do without it, or allow the licence"));
            }
            Some(expression) => needed.push((name, expression)),
        }
    }
    for licence in &allowed {
        let others: Vec<_> = allowed.iter().copied().filter(|other| other != licence).collect();
        if needed.iter().all(|(_, expression)| expression.holds(&others)) {
            let line = text.lines().position(|line| line.contains(&format!("\"{licence}\""))).unwrap_or(0) + 1;
            let what = format!("allows {licence}, which no package needs");
            findings.push(Finding::at(DENY, line, what, "take it off the list"));
        }
    }
    findings
}

/// An SPDX licence expression. `/` is an old way to write OR; `WITH` and its exception belong to the licence.
#[derive(Debug, PartialEq, Eq)]
enum Expression<'a> {
    Licence(String),
    Any(Vec<Expression<'a>>),
    All(Vec<Expression<'a>>),
    #[expect(dead_code, reason = "holds the lifetime of the text parsed")]
    Never(&'a str),
}
