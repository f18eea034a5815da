//! Units that are the machine's own: installed by its owner or its packages, or made by a generator.
//!
//! Invariant: a link to a file of ours is never taken for one of them.

use model::UnitName;
use std::path::{Path, PathBuf};

/// Where systemd looks for units (systemd.unit(5), "Unit File Load Path"), the first that has it wins. All of them
/// count: one that systemd would find first hides ours, one that it would find later would be hidden by ours.
const DIRECTORIES: [&str; 13] = [
    "/etc/systemd/system.control",
    "/run/systemd/system.control",
    "/run/systemd/transient",
    "/run/systemd/generator.early",
    "/etc/systemd/system",
    "/etc/systemd/system.attached",
    "/run/systemd/system",
    "/run/systemd/system.attached",
    "/run/systemd/generator",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
    "/run/systemd/generator.late",
];
/// Where `systemctl link --runtime` makes its links.
const LINKS: &str = "/run/systemd/system";

/// A unit of that name that is not a link into `ours`.
pub(super) fn find(unit: &UnitName, ours: &Path) -> Option<PathBuf> {
    let path = |directory: &str| Path::new(directory).join(unit.as_str());
    // A dangling link is somebody's too, and a link to /dev/null says that nobody may have the name.
    DIRECTORIES.iter().map(|directory| path(directory)).find(|path| {
        path.symlink_metadata().is_ok() && !std::fs::read_link(path).is_ok_and(|to| to.starts_with(ours))
    })
}

/// Whether systemd has a link to our file.
pub(super) fn linked(unit: &UnitName, ours: &Path) -> bool {
    std::fs::read_link(Path::new(LINKS).join(unit.as_str())).is_ok_and(|to| to.starts_with(ours))
}

/// What to tell people.
pub(super) fn complaint(local: &Path) -> String {
    format!("this machine has a unit of that name already: {}", local.display())
}
