//! Documents: ARCHITECTURE.md says what is checked here and knows every crate, and links lead somewhere.

use super::{Files, Finding};

const ARCHITECTURE: &str = "ARCHITECTURE.md";
const INVARIANT: &str = "**Architecture Invariant:**";

/// What the other modules check, in the words of ARCHITECTURE.md.
const CHECKED: [&str; 5] = [
    "a pure crate",
    "an adapter does not depend on another adapter",
    "only `net` may use `unsafe`",
    "versions of dependencies are only in the root manifest",
    "`lab` and `story` are for development",
];

/// The rules about documents.
pub(crate) fn check(files: &Files) -> Vec<Finding> {
    let mut findings = architecture(files);
    for file in files.iter().filter(|file| file.path.ends_with(".md")) {
        for (line, target) in links(&file.text) {
            if !leads_somewhere(files, &file.path, &target) {
                let what = format!("links to `{target}`, which does not exist");
                findings.push(Finding::at(&file.path, line, what, "correct the link, or add the file"));
            }
        }
    }
    findings
}

fn architecture(files: &Files) -> Vec<Finding> {
    let Some(text) = files.get(ARCHITECTURE) else {
        return vec![Finding::of(ARCHITECTURE, "does not exist", "write it: code map and invariants")];
    };
    let mut findings = Vec::new();
    for rule in CHECKED {
        let mut invariants = text.lines().filter_map(|line| line.strip_prefix(INVARIANT));
        if !invariants.any(|invariant| invariant.contains(rule)) {
            let what = format!("has no line `{INVARIANT} … {rule} …`, but it is checked");
            findings.push(Finding::of(ARCHITECTURE, what, "say so there, or change the words here too"));
        }
    }
    let map = code_map(text);
    if map.is_empty() {
        findings.push(Finding::of(ARCHITECTURE, "has no section `Code map`", "say what each crate is for"));
        return findings;
    }
    for name in files.crate_directories() {
        if !map.contains(&format!("`crates/{name}/`")) {
            let what = format!("does not have `crates/{name}/` in its code map");
            findings.push(Finding::of(ARCHITECTURE, what, "say what it is for, and what to open first"));
        }
    }
    findings
}

/// The section of that name with its subsections.
fn code_map(text: &str) -> String {
    let level = |line: &str| line.chars().take_while(|letter| *letter == '#').count();
    let is_map = |line: &&str| level(line) > 0 && line.to_lowercase().contains("code map");
    let mut lines = text.lines().skip_while(|line| !is_map(line));
    let Some(heading) = lines.next() else { return String::new() };
    let inside = lines.take_while(|line| level(line) == 0 || level(line) > level(heading));
    inside.map(|line| format!("{line}\n")).collect()
}

/// Targets of `[text](target)` and `[name]: target` with their lines, as they are written; code is passed over.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut links = Vec::new();
    let mut fence: Option<&str> = None;
    for (number, line) in (1..).zip(text.lines()) {
        let start = line.trim_start();
        if let Some(mark) = ["```", "~~~"].into_iter().find(|mark| start.starts_with(mark)) {
            fence = match fence {
                None => Some(mark),
                Some(open) if open == mark => None,
                other => other,
            };
            continue;
        }
        if fence.is_some() {
            continue;
        }
        // Every second piece between backticks is code.
        let prose: String = line.split('`').step_by(2).collect::<Vec<_>>().join("`");
        let definition = prose.strip_prefix('[').and_then(|rest| rest.split_once("]: "));
        let inline = prose.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for target in inline.chain(definition.map(|(_, target)| target)) {
            // A title may follow.
            let target = target.split_whitespace().next().unwrap_or_default();
            links.push((number, target.trim_matches(['<', '>']).to_owned()));
        }
    }
    links
}

fn leads_somewhere(files: &Files, from: &str, target: &str) -> bool {
    let target = target.split(['#', '?']).next().unwrap_or_default();
    // Elsewhere, or within the document.
    if target.is_empty() || target.contains(':') {
        return true;
    }
    let folder = from.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut path: Vec<&str> = match target.strip_prefix('/') {
        Some(_) => Vec::new(),
        None => folder.split('/').collect(),
    };
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => match path.pop() {
                Some(_) => {}
                None => return false,
            },
            name => path.push(name),
        }
    }
    path.retain(|part| !part.is_empty());
    let path = path.join("/");
    files.get(&path).is_some() || files.has_directory(&path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::tests::told;

    /// As it should be, for the crates `hub` and `net`.
    fn architecture() -> String {
        let invariants = CHECKED.map(|rule| format!("{INVARIANT} {rule} and so on.\n")).concat();
        format!("# A\n## Code map\n### B\n- `crates/hub/`: x\n- `crates/net/`: y\n## C\n{invariants}")
    }

    fn found(architecture: &str) -> Vec<String> {
        let crates = [("crates/hub/Cargo.toml", ""), ("crates/net/Cargo.toml", "")];
        told(&check(&Files::of(&[&[(ARCHITECTURE, architecture)], crates.as_slice()].concat())))
    }

    fn dead_links(text: &str) -> Vec<String> {
        let files =
            [("docs/a.md", text), ("docs/b.md", ""), ("README.md", ""), (ARCHITECTURE, &architecture())];
        told(&check(&Files::of(&files)))
    }

    #[test]
    fn a_whole_architecture() {
        assert_eq!(found(&architecture()), [""; 0]);
        assert_eq!(told(&check(&Files::default())), ["ARCHITECTURE.md: does not exist"]);
    }

    #[test]
    fn every_rule_is_written_down() {
        let told = found(&architecture().replace("an adapter does", "an adapter should"));
        assert_eq!(told.len(), 1);
        assert!(told[0].contains("an adapter does not depend on another adapter"), "{told:?}");
        // Somewhere in the text is not enough.
        let told = found(&architecture().replace(INVARIANT, "Invariant:"));
        assert_eq!(told.len(), CHECKED.len());
    }

    #[test]
    fn every_crate_is_on_the_map() {
        let missing = "ARCHITECTURE.md: does not have `crates/net/` in its code map";
        assert_eq!(found(&architecture().replace("crates/net/", "crates/nets/")), [missing]);
        let elsewhere = architecture().replace("- `crates/net/`: y\n## C\n", "## C\n`crates/net/`\n");
        assert_eq!(found(&elsewhere), [missing]);
        let none = found(&architecture().replace("## Code map", "## Map"));
        assert_eq!(none, ["ARCHITECTURE.md: has no section `Code map`"]);
    }

    #[test]
    fn links_that_lead_somewhere() {
        let text = "[b](b.md) [b](./b.md#part \"title\") ![r](../README.md)\n[here](#x) [far](https://a.b/c)\n\
                    [root](/docs/b.md) [folder](../docs/) <b.md>\n[d]: b.md\n`[code](no.md)` [x]`(y)`\n\
                    ```\n[code](no.md)\n```\n~~~\n```\n[code](no.md)\n~~~\n";
        assert_eq!(dead_links(text), [""; 0]);
    }

    #[test]
    fn links_that_do_not() {
        let text = "[a](no.md)\n`x` and [b](../b.md), [c](../../README.md)\n[d]: gone/\n";
        let dead = |line, target| format!("docs/a.md:{line}: links to `{target}`, which does not exist");
        assert_eq!(
            dead_links(text),
            [dead(1, "no.md"), dead(2, "../b.md"), dead(2, "../../README.md"), dead(3, "gone/")]
        );
    }
}
