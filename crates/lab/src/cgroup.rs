//! The one cgroup v2 directory that a lab runs in. It gives exact kill (`cgroup.kill`), exact pause
//! (`cgroup.freeze`) and exact clean-up, and lets the systemd and the dockerd in a machine own a subtree
//! (cgroups(7), the kernel's cgroup-v2.rst).
//!
//! Layout below the root: `mN` (nspawn adds `payload` and `supervisor`; `exec` holds what we run inside), `power/mN`
//! (the machine's power supply, outside what is frozen), `outside` (the client's processes).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, mount};
use rustix::process::{Pid, Signal, kill_process};

use crate::{Error, Result, config, run};

/// A killed process is gone within milliseconds; one in an uninterruptible disk wait may take longer.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Makes the lab's cgroup. Where PID 1 is systemd and the host is on cgroup v2, systemd owns the tree and is asked
/// for a delegated part (a transient service). Elsewhere a directory is made in the cgroup2 hierarchy, which every
/// kernel has even where all controllers are bound to v1; then there are no cpu and memory limits inside, but all
/// the rest works. `dir` is the lab's tmpfs; the path is noted there first, so an interrupted `up` can be undone.
pub(crate) fn create(name: &str, dir: &Path) -> Result<PathBuf> {
    let root = if host_has_systemd() { delegated(name)? } else { hierarchy(dir)?.join(config::unit(name)) };
    let note = dir.join("cgroup");
    fs::write(&note, root.as_os_str().as_encoded_bytes()).map_err(Error::io("write", note))?;
    for sub in ["power", "outside"] {
        let path = root.join(sub);
        fs::create_dir_all(&path).map_err(Error::io("create the cgroup", path))?;
    }
    let controllers = root.join("cgroup.controllers");
    let controllers = fs::read_to_string(&controllers).map_err(Error::io("read", controllers))?;
    for controller in controllers.split_whitespace() {
        // One that cannot be delegated here (threaded, busy) only means that its limits do nothing inside.
        let _ = fs::write(root.join("cgroup.subtree_control"), format!("+{controller}"));
    }
    Ok(root)
}

/// Where an `up`, even an interrupted one, has put its cgroup.
pub(crate) fn noted(dir: &Path) -> Option<PathBuf> {
    fs::read_to_string(dir.join("cgroup")).ok().filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// Ends the transient service, if there can be one. After [`remove`], which is faster than systemd's own way.
pub(crate) fn release(name: &str) -> Result<()> {
    if !host_has_systemd() {
        return Ok(());
    }
    let unit = format!("{}.service", config::unit(name));
    let state = run::output(run::host("systemctl", ["is-active", &unit]))?;
    // `inactive` is also the word for a unit that there is not, and stopping that would be an error.
    if state.stdout.trim() != "inactive" {
        run::ok(run::host("systemctl", ["stop", &unit]))?;
        // A service whose process was killed stays as failed, and its name taken. One that is gone is what we want.
        run::output(run::host("systemctl", ["reset-failed", &unit]))?;
    }
    Ok(())
}

/// Kills every process in `cgroup` and below, then removes it. Nothing to do is success.
pub(crate) fn remove(cgroup: &Path) -> Result<()> {
    if !cgroup.exists() {
        return Ok(());
    }
    let deadline = Instant::now() + KILL_TIMEOUT;
    while is_populated(cgroup) {
        if fs::write(cgroup.join("cgroup.kill"), "1").is_err() {
            // Linux before 5.14. A frozen process dies when it is thawed.
            for pid in processes(cgroup).into_iter().filter_map(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
            let _ = fs::write(cgroup.join("cgroup.freeze"), "0");
        }
        if Instant::now() > deadline {
            let source = io::Error::new(io::ErrorKind::TimedOut, "its processes do not die");
            return Err(Error::io("kill everything in", cgroup)(source));
        }
        sleep(Duration::from_millis(5));
    }
    // A machine's last processes leave the tree a moment after they count as gone.
    loop {
        match remove_tree(cgroup) {
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                sleep(Duration::from_millis(5));
            }
            done => return done.map_err(Error::io("remove the cgroup", cgroup)),
        }
    }
}

/// Freezes or thaws everything in `cgroup` and below.
pub(crate) fn freeze(cgroup: &Path, frozen: bool) -> Result<()> {
    let file = cgroup.join("cgroup.freeze");
    fs::write(&file, if frozen { "1" } else { "0" }).map_err(Error::io("write", file))
}

/// Whether any process is in it or below.
pub(crate) fn is_populated(cgroup: &Path) -> bool {
    event(cgroup, "populated")
}

/// Whether it was frozen. What was asked for, not `cgroup.events`: that lags, and a command started in between hangs.
pub(crate) fn is_frozen(cgroup: &Path) -> bool {
    fs::read_to_string(cgroup.join("cgroup.freeze")).is_ok_and(|text| text.trim() == "1")
}

/// All processes in it and below, as numbers of the host.
pub(crate) fn processes(cgroup: &Path) -> Vec<i32> {
    let mut pids = members(cgroup);
    for child in children(cgroup) {
        pids.extend(processes(&child));
    }
    pids
}

/// The processes directly in it.
pub(crate) fn members(cgroup: &Path) -> Vec<i32> {
    let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

fn event(cgroup: &Path, key: &str) -> bool {
    let text = fs::read_to_string(cgroup.join("cgroup.events")).unwrap_or_default();
    text.lines().any(|line| line.strip_prefix(key).is_some_and(|value| value.trim() == "1"))
}

fn children(cgroup: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(cgroup).into_iter().flatten().flatten();
    entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}

fn remove_tree(cgroup: &Path) -> io::Result<()> {
    for child in children(cgroup) {
        remove_tree(&child)?;
    }
    match fs::remove_dir(cgroup) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn host_has_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir() && Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

fn delegated(name: &str) -> Result<PathBuf> {
    let unit = config::unit(name);
    // A lab that died badly leaves the unit as failed, and its name taken.
    let _ = run::output(run::host("systemctl", ["reset-failed", &unit]));
    let unit_option = format!("--unit={unit}");
    run::ok(run::host(
        "systemd-run",
        ["--quiet", &unit_option]
            .into_iter()
            .chain(
                ["Delegate=yes", "TasksMax=infinity", "LimitNOFILE=1048576", "OOMPolicy=continue"]
                    .into_iter()
                    .flat_map(property),
            )
            .chain(property("TimeoutStopSec=5"))
            .chain(["sleep", "infinity"]),
    ))?;
    let path = run::ok(run::host("systemctl", ["show", "-P", "ControlGroup", &unit]))?;
    let root = PathBuf::from(format!("/sys/fs/cgroup{}", path.trim()));
    // A cgroup with children that have controllers may hold no process itself: the sleep moves down.
    let init = root.join("init");
    fs::create_dir_all(&init).map_err(Error::io("create the cgroup", &init))?;
    for pid in members(&root) {
        fs::write(init.join("cgroup.procs"), pid.to_string())
            .map_err(Error::io("move a process into", &init))?;
    }
    Ok(root)
}

fn property(value: &str) -> [&str; 2] {
    ["-p", value]
}

/// Where cgroup2 is mounted; if nowhere, it is mounted below the lab's tmpfs.
fn hierarchy(dir: &Path) -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").map_err(Error::io("read", "/proc/self/mounts"))?;
    if let Some(path) = mount_point_of("cgroup2", &mounts) {
        return Ok(path);
    }
    let path = own_hierarchy(dir);
    fs::create_dir_all(&path).map_err(Error::io("create", &path))?;
    mount("none", &path, "cgroup2", MountFlags::empty(), None)
        .map_err(Error::os("mount cgroup2 on", &path))?;
    Ok(path)
}

/// Where [`create`] mounts cgroup2 when the host has not.
pub(crate) fn own_hierarchy(dir: &Path) -> PathBuf {
    dir.join("cg")
}

/// The first mount point of a file system type in the text of `/proc/self/mounts`.
fn mount_point_of(kind: &str, mounts: &str) -> Option<PathBuf> {
    let mut lines = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    lines.find(|fields| fields.get(2) == Some(&kind)).and_then(|fields| fields.get(1).map(PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unified_hierarchy_is_found_on_a_hybrid_host() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(mount_point_of("cgroup2", mounts), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(mount_point_of("cgroup2", "proc /proc proc rw 0 0\n"), None);
    }

    #[test]
    fn events_are_read_by_key() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.events"), "populated 1\nfrozen 0\n").unwrap();
        assert!(is_populated(dir.path()) && !event(dir.path(), "frozen"));
        assert!(!is_populated(Path::new("/nonexistent")));
        assert!(remove(Path::new("/nonexistent")).is_ok());
    }
}
