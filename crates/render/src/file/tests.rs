//! Staging, checking, replacing, telling, taking back: each step failing in turn.
//!
//! Invariant checked throughout: whatever fails, the file that was there before is there after.

use super::*;
use crate::Commands;

fn rendered(text: &str) -> Rendered {
    Rendered::plain(text.to_owned())
}

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("out.conf")
    }

    /// A file whose reader notes each time what it found.
    fn file(&self, check: Option<&str>, reload: &str) -> File<Commands> {
        let commands = Commands {
            check: check.map(str::to_owned),
            reload: Some(format!("cat {{{{.dest}}}} >>{}/seen 2>&1; {reload}", self.0.path().display())),
            destination: self.path(),
        };
        File::new(self.path(), Owner::default(), commands)
    }

    fn text(&self) -> String {
        fs::read_to_string(self.path()).unwrap_or_default()
    }

    fn seen(&self) -> String {
        fs::read_to_string(self.0.path().join("seen")).unwrap_or_default()
    }
}

#[tokio::test]
async fn a_text_is_applied_once() {
    let place = Place::new();
    let mut file = place.file(Some("grep -q good {{.src}}"), "true");
    assert_eq!(file.apply(&rendered("good 1\n")).await.expect("applied"), Applied::Changed);
    assert_eq!(file.apply(&rendered("good 1\n")).await.expect("applied"), Applied::Unchanged);
    assert_eq!(
        place.file(None, "true").apply(&rendered("good 1\n")).await.expect("applied"),
        Applied::Unchanged
    );
    let error = file.apply(&rendered("bad\n")).await.expect_err("refused");
    assert!(error.is_about_the_values() && error.to_string().contains("grep -q good"), "{error}");
    assert_eq!((place.text(), place.seen()), ("good 1\n".to_owned(), "good 1\n".to_owned()));
    // Somebody's edit is no reason to leave it.
    fs::write(place.path(), "edited\n").expect("written");
    let mut file = place.file(None, "true");
    assert_eq!(file.apply(&rendered("good 1\n")).await.expect("applied"), Applied::Changed);
    assert_eq!(place.text(), "good 1\n");
}

#[tokio::test]
async fn a_reader_that_fails_gets_the_former_text_back_and_is_tried_again() {
    let place = Place::new();
    let switch = place.0.path().join("broken");
    let reload = format!("! grep -q two {{{{.dest}}}} || ! test -e {}", switch.display());
    let mut file = place.file(None, &reload);
    file.apply(&rendered("one\n")).await.expect("applied");
    fs::write(&switch, "").expect("written");
    for _ in 0..2 {
        let error = file.apply(&rendered("two\n")).await.expect_err("the reader fails");
        assert!(matches!(&error, Error::TakenBack { after: None, .. }), "{error}");
        assert_eq!(place.text(), "one\n");
    }
    assert_eq!(place.seen(), "one\ntwo\none\ntwo\none\n");
    fs::remove_file(&switch).expect("removed");
    assert_eq!(file.apply(&rendered("two\n")).await.expect("applied"), Applied::Changed);
    assert_eq!(place.text(), "two\n");
}

#[tokio::test]
async fn the_first_text_that_fails_leaves_nothing() {
    let place = Place::new();
    let mut file = place.file(None, "false");
    let error = file.apply(&rendered("one\n")).await.expect_err("the reader fails");
    assert!(matches!(error, Error::TakenBack { .. }), "{error}");
    assert!(!place.path().exists());
}

/// Every state that a kill may leave is one of these.
#[tokio::test]
async fn whatever_a_kill_leaves_is_brought_to_an_end() {
    let (one, two) = (digest(b"one\n"), digest(b"two\n"));
    for (what, in_place, trying) in [
        ("staged", "one\n", None),
        ("noted", "one\n", Some(&two)),
        ("renamed, the reader not told", "two\n", Some(&two)),
    ] {
        let place = Place::new();
        place.file(None, "true").apply(&rendered("one\n")).await.expect("applied");
        fs::write(place.path(), in_place).expect("written");
        fs::write(place.0.path().join(".out.conf.new"), "half a fi").expect("written");
        let note = Note { v: 1, applied: Some(one.clone()), trying: trying.cloned() };
        let mut file = place.file(None, "true");
        file.write_note(&note).expect("written");
        assert_eq!(file.apply(&rendered("two\n")).await.expect("applied"), Applied::Changed, "{what}");
        assert_eq!((place.text(), place.seen()), ("two\n".to_owned(), "one\ntwo\n".to_owned()), "{what}");
        assert_eq!(
            place.file(None, "true").apply(&rendered("two\n")).await.expect("applied"),
            Applied::Unchanged
        );
    }
    // What was interrupted fails later: it is the last good text that comes back.
    let place = Place::new();
    let mut file = place.file(None, "! grep -q two {{.dest}}");
    file.apply(&rendered("one\n")).await.expect("applied");
    fs::write(file.beside("previous"), "one\n").expect("written");
    fs::write(place.path(), "two\n").expect("written");
    file.write_note(&Note { v: 1, applied: Some(one), trying: Some(two) }).expect("written");
    let mut file = place.file(None, "! grep -q two {{.dest}}");
    file.apply(&rendered("two\n")).await.expect_err("the reader fails");
    assert_eq!(place.text(), "one\n");
}

#[tokio::test]
async fn permissions_stay_or_are_as_asked() {
    let place = Place::new();
    fs::write(place.path(), "old").expect("written");
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o600)).expect("set");
    place.file(None, "true").apply(&rendered("one\n")).await.expect("applied");
    let mode = |place: &Place| fs::metadata(place.path()).expect("there").mode() & 0o777;
    assert_eq!(mode(&place), 0o600);
    let commands = Commands { destination: place.path(), ..Commands::default() };
    let owner = Owner { mode: Some(0o640), ..Owner::default() };
    File::new(place.path(), owner, commands).apply(&rendered("two\n")).await.expect("applied");
    assert_eq!(mode(&place), 0o640);
}
