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
    let mut needed: Vec<Expression> = Vec::new();
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
            Some(expression) => needed.push(expression),
        }
    }
    for licence in &allowed {
        let others: Vec<_> = allowed.iter().copied().filter(|other| other != licence).collect();
        if needed.iter().all(|expression| expression.holds(&others)) {
            let line =
                text.lines().position(|line| line.contains(&format!("\"{licence}\""))).unwrap_or(0) + 1;
            let what = format!("allows {licence}, which no package needs");
            findings.push(Finding::at(DENY, line, what, "take it off the list"));
        }
    }
    findings
}

/// An SPDX licence expression. `/` is an old way to write OR; `WITH` and its exception belong to the licence.
#[derive(Debug, PartialEq, Eq)]
enum Expression {
    Licence(String),
    Any(Vec<Expression>),
    All(Vec<Expression>),
}

impl Expression {
    fn parse(text: &str) -> Option<Self> {
        let spaced = text.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
        let words: Vec<_> = spaced.split_whitespace().collect();
        let mut rest = words.as_slice();
        let expression = Self::any(&mut rest)?;
        rest.is_empty().then_some(expression)
    }

    fn any(rest: &mut &[&str]) -> Option<Self> {
        let mut choices = vec![Self::all(rest)?];
        while let ["OR", after @ ..] = rest {
            *rest = after;
            choices.push(Self::all(rest)?);
        }
        Some(Self::Any(choices))
    }

    /// AND binds more tightly than OR.
    fn all(rest: &mut &[&str]) -> Option<Self> {
        let mut parts = vec![Self::one(rest)?];
        while let ["AND", after @ ..] = rest {
            *rest = after;
            parts.push(Self::one(rest)?);
        }
        Some(Self::All(parts))
    }

    fn one(rest: &mut &[&str]) -> Option<Self> {
        match rest {
            ["(", after @ ..] => {
                *rest = after;
                let inner = Self::any(rest)?;
                let [")", after @ ..] = rest else { return None };
                *rest = after;
                Some(inner)
            }
            ["OR" | "AND" | "WITH" | ")", ..] | [] => None,
            [licence, "WITH", exception, after @ ..] => {
                *rest = after;
                Some(Self::Licence(format!("{licence} WITH {exception}")))
            }
            [licence, after @ ..] => {
                *rest = after;
                Some(Self::Licence((*licence).to_owned()))
            }
        }
    }

    fn holds(&self, allowed: &[&str]) -> bool {
        match self {
            Self::Licence(licence) => allowed.contains(&licence.as_str()),
            Self::Any(choices) => choices.iter().any(|choice| choice.holds(allowed)),
            Self::All(parts) => parts.iter().all(|part| part.holds(allowed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::graph::tests::graph;
    use crate::tidy::tests::told;

    const OTHERS: &str = "[advisories]\n[bans]\n[sources]\n";

    fn found(allowed: &str, licence: Option<&str>) -> Vec<String> {
        let mut graph = graph(&[("hub", "redb")]);
        graph.set_licence("redb", licence);
        let deny = format!("{OTHERS}[licenses]\nallow = {allowed}\n");
        told(&check(&graph, &Files::of(&[("deny.toml", &deny)])))
    }

    #[test]
    fn expressions_as_crates_write_them() {
        let holds = |text, allowed: &[&str]| Expression::parse(text).expect("an expression").holds(allowed);
        assert!(holds("MIT OR Apache-2.0", &["MIT"]));
        assert!(holds("MIT/Apache-2.0", &["Apache-2.0"]));
        assert!(!holds("MIT AND BSD-3-Clause", &["MIT"]));
        assert!(holds("(MIT OR Apache-2.0) AND Unicode-3.0", &["Apache-2.0", "Unicode-3.0"]));
        assert!(!holds("(MIT OR Apache-2.0) AND Unicode-3.0", &["MIT", "Apache-2.0"]));
        assert!(!holds("Apache-2.0 WITH LLVM-exception", &["Apache-2.0"]));
        assert!(holds("Apache-2.0 WITH LLVM-exception OR MIT", &["MIT"]));
        assert!(holds("A OR B AND C", &["A"]), "AND binds more tightly");
        for wrong in ["", "MIT OR", "(MIT", "MIT Apache-2.0", "AND", "MIT)", "MIT WITH"] {
            assert_eq!(Expression::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_list_that_fits() {
        assert_eq!(found("[\"MIT\"]", Some("MIT OR Apache-2.0")), [""; 0]);
    }

    #[test]
    fn what_is_not_allowed_is_told() {
        let told = found("[\"MIT\"]", Some("GPL-3.0"));
        assert_eq!(told[0], "Cargo.lock: redb 1.0.0 is under `GPL-3.0`, which deny.toml does not allow");
        let told = found("[\"MIT\"]", Some("see LICENSE"));
        assert_eq!(told[0], "Cargo.lock: redb 1.0.0 is under `see LICENSE`, which is no licence expression");
        assert_eq!(found("[\"MIT\"]", None)[0], "Cargo.lock: redb 1.0.0 names no licence");
    }

    #[test]
    fn the_list_is_no_longer_than_needed() {
        let told = found("[\"MIT\", \"Zlib\"]", Some("MIT"));
        assert_eq!(told, ["deny.toml:5: allows Zlib, which no package needs"]);
    }

    #[test]
    fn the_file_must_be_there_and_whole() {
        let graph = graph(&[]);
        assert_eq!(told(&check(&graph, &Files::default())), ["deny.toml: does not exist"]);
        let files = Files::of(&[("deny.toml", "[bans]\n[licenses]\n[sources]\n")]);
        assert_eq!(told(&check(&graph, &files)), ["deny.toml: has no section [advisories]"]);
        let files = Files::of(&[("deny.toml", "[bans")]);
        assert!(told(&check(&graph, &files))[0].starts_with("deny.toml: is no TOML: "));
    }
}
