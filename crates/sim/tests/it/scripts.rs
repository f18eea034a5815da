//! Each `tests/scripts/*.txt` is played and compared with the transcript beside it. `BLESS=1` writes transcripts anew.

use std::{fs, path::Path};

#[test]
fn scripts_have_their_transcripts() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let bless = std::env::var_os("BLESS").is_some();
    let mut scripts: Vec<_> = fs::read_dir(&folder)
        .expect("the folder is there")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    scripts.sort();
    assert!(scripts.len() >= 10, "scripts are missing from {}", folder.display());
    let mut wrong = Vec::new();
    for path in scripts {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let script = fs::read_to_string(&path).expect("readable");
        let transcript = sim::script::play(&script, None).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(!transcript.contains("BROKEN"), "{name}:\n{transcript}");
        let expected = path.with_extension("out");
        if bless {
            fs::write(&expected, transcript).expect("writable");
            continue;
        }
        let expected = fs::read_to_string(&expected).unwrap_or_default();
        if let Some((number, (new, old))) =
            (1..).zip(transcript.lines().zip(expected.lines())).find(|(_, (new, old))| new != old)
        {
            wrong.push(format!("{name}.out:{number}:\n  expected {old}\n  got      {new}"));
        } else if transcript != expected {
            wrong.push(format!("{name}.out: its length differs"));
        }
    }
    assert!(wrong.is_empty(), "BLESS=1 writes them anew\n{}", wrong.join("\n"));
}
