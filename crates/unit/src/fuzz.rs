//! What the fuzz target `unit` in `fuzz/` calls, and an ordinary test on mutations of its corpus.
//!
//! The first line is a unit's name, the rest its text. Promises: nothing panics; what is refused is refused with a place
//! inside the text and a remedy; what is accepted means the same when it is rendered and read again. Compiled for tests
//! and with `--cfg fuzzing` only.

use crate::{Problem, check};
use model::UnitName;

/// Checks one input.
pub fn text(data: &[u8]) {
    let Ok(data) = str::from_utf8(data) else { return };
    let (name, text) = data.split_once('\n').unwrap_or(("a.service", data));
    let name = name.parse::<UnitName>();
    let name = name.unwrap_or_else(|_| "a@b.service".parse().expect("a valid name"));
    match check(&name, text) {
        Err(problem) => inside(text, &problem),
        Ok(checked) => {
            checked.warnings.iter().for_each(|warning| inside(text, warning));
            let rendered = checked.file.render();
            let again = check(&name, &rendered).map(|again| (again.file.hash(), again.requirements));
            assert_eq!(again, Ok((checked.file.hash(), checked.requirements)), "rendered as {rendered:?}");
        }
    }
}

fn inside(text: &str, problem: &Problem) {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let line = text.lines().nth(problem.line as usize - 1);
    assert!(line.is_some() || problem.line == 1, "{problem:?} is outside of {text:?}");
    let length = line.map_or(0, |line| line.chars().count());
    assert!(problem.column >= 1 && problem.width >= 1, "{problem:?}");
    assert!((problem.column + problem.width) as usize <= length + 2, "{problem:?} in {text:?}");
    assert!(!problem.message.is_empty() && !problem.remedy.is_empty(), "{problem:?}");
    assert_eq!(problem.render("f").lines().count(), 3, "{problem:?}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{prelude::*, sample::Index};
    use std::path::Path;

    #[expect(clippy::disallowed_methods, reason = "a test reads its own corpus")]
    fn corpus() -> Vec<Vec<u8>> {
        let folder = |path: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        let files = |path: &str| {
            let entries = std::fs::read_dir(folder(path)).expect("a folder of the repository");
            let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
            paths.sort();
            paths
        };
        let golden =
            files("tests/golden").into_iter().filter(|path| path.extension() != Some("expected".as_ref()));
        let named = golden.map(|path| {
            let name = path.file_name().expect("a file").to_string_lossy().into_owned();
            [format!("{name}\n").into_bytes(), std::fs::read(path).expect("a file")].concat()
        });
        let found =
            files("../../fuzz/corpus/unit").into_iter().map(|path| std::fs::read(path).expect("a file"));
        named.chain(found).collect()
    }

    /// One change as fuzzers make them: where, how long, what, and another input to take from.
    fn mutate(data: &mut Vec<u8>, corpus: &[Vec<u8>], (at, kind, byte, other): &(Index, u8, u8, Index)) {
        let at = at.index(data.len() + 1);
        let to = (at + 1 + usize::from(*byte % 16)).min(data.len());
        match kind % 5 {
            0 if at < data.len() => data[at] = *byte,
            1 if at < to => drop(data.drain(at..to)),
            2 if at < to => {
                let again = data[at..to].to_vec();
                data.splice(at..at, again);
            }
            3 => {
                let other = other.get(corpus);
                data.splice(at.., other[usize::from(*byte).min(other.len())..].iter().copied());
            }
            _ => data.insert(at, b"\n\\=[]#;@%\"' \t\r"[usize::from(*byte % 14)]),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn mutations_of_the_corpus_break_no_promise(
            start in any::<Index>(),
            changes in proptest::collection::vec(any::<(Index, u8, u8, Index)>(), 0..7),
        ) {
            let corpus = corpus();
            let mut data = start.get(&corpus).clone();
            for change in &changes {
                mutate(&mut data, &corpus, change);
            }
            text(&data);
        }
    }
}
