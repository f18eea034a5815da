//! `tests/golden/NAME.service` and what is said of it, `NAME.expected`. `BLESS=1 cargo test -p unit` writes
//! the latter anew.

use std::{fs, path::Path};

#[test]
#[expect(clippy::disallowed_methods, reason = "a test reads its own golden files")]
fn unit_files_are_refused_in_these_words() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let bless = std::env::var_os("BLESS").is_some();
    let (mut seen, mut wrong) = (0, Vec::new());
    let mut paths: Vec<_> = fs::read_dir(&folder)
        .expect("the golden folder")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension != "expected"))
        .collect();
    paths.sort();
    for path in paths {
        seen += 1;
        let file_name = path.file_name().and_then(|name| name.to_str()).expect("a name in UTF-8");
        let name = file_name.parse().expect("golden files are named as units");
        let text = fs::read_to_string(&path).expect("a golden file");
        let told = match unit::check(&name, &text) {
            Err(problem) => format!("{}\n", problem.render(file_name)),
            Ok(checked) => {
                checked.warnings.iter().map(|w| format!("warning: {}\n", w.render(file_name))).collect()
            }
        };
        let expected_path = path.with_extension("expected");
        if bless {
            fs::write(&expected_path, &told).expect("writes the expectation");
        }
        let expected = fs::read_to_string(&expected_path).unwrap_or_default();
        if told != expected || told.is_empty() {
            wrong.push(format!("{file_name}: expected\n{expected}got\n{told}"));
        }
    }
    assert!(seen >= 20, "only {seen} golden files");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
