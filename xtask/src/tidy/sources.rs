//! The text of Rust files, and what no file may contain.

use super::rust::Masked;
use super::{File, Files, Finding};

/// A file longer than this has more than one responsibility. STYLE says 150 to 600; this is where it stops.
const LINES: usize = 700;

/// Not a test, but what a test runs in a process of its own; its text says so.
const CHILD_PROCESS: &str = r#"#[ignore = "a child process of other tests"]"#;

/// Where a developer's machine keeps things. In two parts, or this file would be a finding.
const PLACES: [&str; 3] = [concat!("/wo", "rk/"), concat!("/root/", ".cargo"), concat!("/ho", "me/")];

/// Lists the users of a machine that it makes: their directories are no developer's.
const HOMES: (&str, &str) = ("crates/lab/src/disk.rs", PLACES[2]);

/// The rules about text.
pub(crate) fn check(files: &Files) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files.iter() {
        places(file, &mut findings);
        if file.path.ends_with(".rs") {
            layout(file, &mut findings);
            words(file, &mut findings);
        }
    }
    findings
}

fn layout(file: &File, findings: &mut Vec<Finding>) {
    let path = file.path.as_str();
    if !file.text.starts_with("//!") {
        let remedy = "say in 3 to 10 lines what it is responsible for, what not, and its one invariant";
        findings.push(Finding::at(path, 1, "does not begin with `//!`", remedy));
    }
    if path.ends_with("/mod.rs") {
        findings.push(Finding::of(path, "is a mod.rs", "name it after its module: `foo.rs` beside `foo/`"));
    }
    let lines = file.text.lines().count();
    if lines > LINES {
        let what = format!("has {lines} lines, more than {LINES}");
        findings.push(Finding::of(path, what, "divide it by responsibility"));
    }
    for (number, line) in (1..).zip(Masked::of(&file.text).written.split('\n')) {
        if line.ends_with(char::is_whitespace) {
            findings.push(Finding::at(path, number, "ends with white space", "cargo fmt"));
        }
        if line.contains('\t') {
            findings.push(Finding::at(path, number, "has a tab", "indent with spaces"));
        }
    }
}

fn words(file: &File, findings: &mut Vec<Finding>) {
    let path = file.path.as_str();
    let Masked { code, written } = Masked::of(&file.text);
    let original: Vec<&str> = file.text.split('\n').collect();
    for (number, line) in (1..).zip(code.split('\n')) {
        for word in ["todo!(", "unimplemented!(", "dbg!("] {
            if begins_word(line, word) {
                findings.push(Finding::at(path, number, format!("has `{word}`"), "finish it"));
            }
        }
        if line.contains("#[ignore") && !original.get(number - 1).is_some_and(|l| l.contains(CHILD_PROCESS)) {
            let remedy = "a test that may not run where it is fails, and says what it needs";
            findings.push(Finding::at(path, number, "has `#[ignore`", remedy));
        }
    }
    for (number, line) in (1..).zip(written.split('\n')) {
        for word in ["FIXME", "XXX"] {
            let mut words = line.split(|letter: char| !letter.is_alphanumeric());
            if words.any(|other| other == word) {
                findings.push(Finding::at(path, number, format!("has `{word}`"), "put it right"));
            }
        }
    }
}

/// Whether `word` occurs, and not as the end of another.
fn begins_word(line: &str, word: &str) -> bool {
    let before = |at: usize| line[..at].chars().next_back();
    line.match_indices(word)
        .any(|(at, _)| !before(at).is_some_and(|letter| letter.is_alphanumeric() || letter == '_'))
}

fn places(file: &File, findings: &mut Vec<Finding>) {
    for (number, line) in (1..).zip(file.text.lines()) {
        for place in PLACES {
            // In the middle of a path or a URL it is somebody's directory of that name.
            let within = |letter: char| letter.is_alphanumeric() || "._-~}>)]*/".contains(letter);
            let absolute =
                line.match_indices(place).any(|(at, _)| !line[..at].chars().next_back().is_some_and(within));
            if absolute && (file.path.as_str(), place) != HOMES {
                let what = format!("has `{place}`, which is a path of one machine");
                findings.push(Finding::at(&file.path, number, what, "make it relative, or an argument"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::tests::told;

    fn found(path: &str, text: &str) -> Vec<String> {
        told(&check(&Files::of(&[(path, text)])))
    }

    #[test]
    fn a_tidy_file() {
        let text = "//! A file.\nfn a() { print(\"todo!( \\t FIXME\t\"); } // a todo!() is no code here\n";
        assert_eq!(found("a.rs", text), [""; 0]);
    }

    #[test]
    fn a_header_comes_first() {
        assert_eq!(found("a.rs", "use a;\n"), ["a.rs:1: does not begin with `//!`"]);
        assert_eq!(found("a.rs", ""), ["a.rs:1: does not begin with `//!`"]);
    }

    #[test]
    fn modules_have_names_and_bounds() {
        assert_eq!(found("a/mod.rs", "//! A."), ["a/mod.rs: is a mod.rs"]);
        assert_eq!(found("a.rs", &"//!\n".repeat(LINES)), [""; 0]);
        assert_eq!(found("a.rs", &"//!\n".repeat(LINES + 1)), ["a.rs: has 701 lines, more than 700"]);
    }

    #[test]
    fn white_space_is_where_it_belongs() {
        let text = "//! A. \nfn a() {}\r\n\tfn b() {}\nfn c() { \"d \n\te\" }\n";
        assert_eq!(
            found("a.rs", text),
            ["a.rs:1: ends with white space", "a.rs:2: ends with white space", "a.rs:3: has a tab"]
        );
    }

    #[test]
    fn nothing_is_left_for_later() {
        let text = "//! A.\nfn a() { todo!() }\nfn b() { dbg!(1); unimplemented!() }\n// FIXME and XXX: c\n\
                    my_dbg!(1); // XXXL\n";
        assert_eq!(
            found("a.rs", text),
            [
                "a.rs:2: has `todo!(`",
                "a.rs:3: has `unimplemented!(`",
                "a.rs:3: has `dbg!(`",
                "a.rs:4: has `FIXME`",
                "a.rs:4: has `XXX`",
            ]
        );
    }

    #[test]
    fn no_test_is_passed_over() {
        let text = format!("//! A.\n#[ignore]\n#[ignore = \"slow\"]\n{CHILD_PROCESS}\n");
        assert_eq!(found("a.rs", &text), ["a.rs:2: has `#[ignore`", "a.rs:3: has `#[ignore`"]);
    }

    #[test]
    fn no_file_knows_a_developers_machine() {
        let [work, cargo, home] = PLACES;
        let text = format!("at {work}main\nin `{cargo}/bin`\n\"{home}ann\"\n");
        let path = |line, place| format!("a.md:{line}: has `{place}`, which is a path of one machine");
        assert_eq!(found("a.md", &text), [path(1, work), path(2, cargo), path(3, home)]);
        // Parts of other paths and addresses.
        let text = format!("https://example.org{work}a ./a{work}b $ROOT{home}c <dir>{work}d target{home}\n");
        assert_eq!(found("a.md", &text), [""; 0]);
        assert_eq!(found(HOMES.0, &format!("//! A.\n\":{home}ann\"")), [""; 0]);
        assert_eq!(found(HOMES.0, &format!("//! A.\n\"{work}ann\"")).len(), 1);
    }
}
