//! One machine of a lab: running commands in it, its files and its Docker images. Its power is in [`power`].
//!
//! A [`Machine`] is a name and the lab's settings, nothing else: whether it runs is read from its cgroup each time,
//! so any number of processes may hold one.

/// Boot, stop, kill, pause: everything that changes whether the machine runs.
mod power;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use crate::config::{MachineInfo, MachineName, Settings};
use crate::{DiskFile, Error, Output, Result, cgroup, disk, run};

/// What a login shell of root would have; `/usr/local/bin` (the lab's `bin`) comes before the host's programs.
const PATH: &str = "PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A machine of a lab, running or not.
#[derive(Debug, Clone)]
pub struct Machine {
    name: MachineName,
    text: String,
    settings: Arc<Settings>,
}

impl Machine {
    pub(crate) fn new(name: MachineName, settings: Arc<Settings>) -> Machine {
        Machine { name, text: name.to_string(), settings }
    }

    /// `m1`; also its host name, and every machine's `/etc/hosts` knows it.
    pub fn name(&self) -> &str {
        &self.text
    }

    /// Its number, from 1.
    pub fn number(&self) -> u8 {
        self.name.number()
    }

    /// Its address on eth0.
    pub fn address(&self) -> Ipv4Addr {
        self.settings.address(self.name)
    }

    /// Its disk as the host sees it. `/usr`, `/run`, `/proc` and what containers mount are not on it.
    pub fn root(&self) -> PathBuf {
        self.dir().join("root")
    }

    /// Whether it has a PID 1. A paused machine runs.
    pub fn is_running(&self) -> bool {
        self.leader().is_some()
    }

    /// A command prepared to run inside as root, in all of the machine's namespaces and in its cgroup (so `kill` and
    /// `pause` reach it), in `/`, with a fresh environment: HOME, USER, PATH, LANG, TERM. Standard streams are the
    /// caller's to set. Ending the returned process does not end the one inside; ending the machine does.
    ///
    /// # Errors
    /// If the machine is off or paused.
    pub fn command<S: AsRef<OsStr>>(&self, argv: &[S]) -> Result<Command> {
        let leader = self.leader().ok_or_else(|| Error::Off { machine: self.text.clone() })?;
        if self.is_frozen() {
            return Err(Error::Paused { machine: self.text.clone() });
        }
        let mut term = OsString::from("TERM=");
        term.push(std::env::var_os("TERM").unwrap_or_else(|| "dumb".into()));
        let mut command = run::in_cgroup(&self.cgroup().join("exec"));
        command
            .args(["nsenter", "-t", &leader.to_string(), "-m", "-u", "-i", "-n", "-p", "-C", "--"])
            .args(["env", "-i", "HOME=/root", "USER=root", "LANG=C.UTF-8", PATH, "container=systemd-nspawn"])
            .arg(term)
            .args(argv);
        Ok(command)
    }

    /// Runs a command inside to its end, with nothing on standard input. About 30 ms more than the command.
    ///
    /// # Errors
    /// If the machine is off or paused; how the command ended is in the [`Output`].
    pub fn exec<S: AsRef<OsStr>>(&self, argv: &[S]) -> Result<Output> {
        run::output(self.command(argv)?)
    }

    /// Runs a command inside to its end and gives its standard output without the last newline.
    ///
    /// # Errors
    /// As [`Machine::exec`], and if it did not end with exit code 0; the error carries its standard error.
    pub fn exec_ok<S: AsRef<OsStr>>(&self, argv: &[S]) -> Result<String> {
        let out = self.exec(argv)?;
        if out.success() {
            return Ok(out.stdout.trim_end_matches('\n').to_owned());
        }
        Err(run::failed(self.shown(argv), &out))
    }

    /// Writes a file on its disk, running or not, whole or not at all.
    ///
    /// # Errors
    /// If the path is not on the disk (`/usr`, `/run`, …) or writing fails.
    pub fn write_file(
        &self,
        path: impl Into<PathBuf>,
        contents: impl Into<Vec<u8>>,
        mode: u32,
    ) -> Result<()> {
        disk::write(&self.root(), &DiskFile::new(path, contents).mode(mode))
    }

    /// Gives the machine's Docker an image from a tar archive: one of `docker save` is loaded and keeps its own names,
    /// a plain root file system is imported as `name` (`web` or `web:1`).
    ///
    /// # Errors
    /// If the file cannot be read, the machine is off, or its Docker refuses.
    pub fn load_image(&self, tar: &Path, name: &str) -> Result<()> {
        let file = fs::File::open(tar).map_err(Error::io("open", tar))?;
        let list = run::ok(run::host("tar", ["-tf".as_ref(), tar.as_os_str()]))?;
        let argv: &[&str] = if is_saved_image(&list) {
            &["docker", "load", "--quiet"]
        } else {
            &["docker", "import", "--change", "ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin", "-", name]
        };
        let mut command = self.command(argv)?;
        let spawn_error = |source| Error::Spawn { program: self.shown(argv), source };
        let out =
            command.stdin(file).stdout(Stdio::null()).stderr(Stdio::piped()).output().map_err(spawn_error)?;
        let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
        let out = Output { stdout: String::new(), stderr, status: out.status };
        if out.success() { Ok(()) } else { Err(run::failed(self.shown(argv), &out)) }
    }

    /// As [`Machine::load_image`], for an archive that is not a file. It is kept in the lab's tmpfs meanwhile.
    ///
    /// # Errors
    /// As [`Machine::load_image`], and if reading fails.
    pub fn load_image_from(&self, mut tar: impl Read, name: &str) -> Result<()> {
        let path =
            self.dir().join(format!("image.{}.{:?}.tar", std::process::id(), std::thread::current().id()));
        let mut file = fs::File::create(&path).map_err(Error::io("create", &path))?;
        let loaded = io::copy(&mut tar, &mut file)
            .map_err(Error::io("write", &path))
            .and_then(|_| self.load_image(&path, name));
        fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        loaded
    }

    /// Its console and its journal, also of a machine that is off. Boots follow each other in both.
    ///
    /// # Errors
    /// If neither can be read.
    pub fn log(&self) -> Result<String> {
        let console = fs::read(self.console()).unwrap_or_default();
        let journal = self.root().join("var/log/journal");
        let args: [&OsStr; 4] =
            ["--no-pager".as_ref(), "--quiet".as_ref(), "-D".as_ref(), journal.as_os_str()];
        let journal = run::ok(run::host("journalctl", args))?;
        Ok(format!("{}{journal}", String::from_utf8_lossy(&console)))
    }

    /// Units that failed, by name. Empty on a healthy machine.
    ///
    /// # Errors
    /// As [`Machine::exec_ok`].
    pub fn failed_units(&self) -> Result<Vec<String>> {
        let list = self.exec_ok(&["systemctl", "list-units", "--failed", "--plain", "--no-legend"])?;
        Ok(list.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
    }

    pub(crate) fn machine_name(&self) -> MachineName {
        self.name
    }

    pub(crate) fn info(&self, machines: &[Machine]) -> MachineInfo {
        MachineInfo {
            name: self.text.clone(),
            number: self.number(),
            address: self.address(),
            outside: self.settings.outside(),
            machines: machines.iter().map(|m| (m.text.clone(), m.address())).collect(),
        }
    }

    /// Where its files are: root, seed, console.log, paused.
    pub(crate) fn dir(&self) -> PathBuf {
        self.settings.dir().join("m").join(&self.text)
    }

    pub(crate) fn cgroup(&self) -> PathBuf {
        self.settings.cgroup.join(&self.text)
    }

    pub(crate) fn is_frozen(&self) -> bool {
        cgroup::is_frozen(&self.cgroup())
    }

    /// The number, on the host, of its PID 1.
    pub(crate) fn leader(&self) -> Option<i32> {
        let payload = self.cgroup().join("payload");
        // systemd moves itself to init.scope early in its boot.
        let candidates =
            [payload.join("init.scope"), payload].into_iter().flat_map(|cgroup| cgroup::members(&cgroup));
        candidates.into_iter().find(|pid| {
            fs::read_to_string(format!("/proc/{pid}/status"))
                .is_ok_and(|status| is_init_of_its_namespace(&status))
        })
    }

    fn console(&self) -> PathBuf {
        self.dir().join("console.log")
    }

    fn shown<S: AsRef<OsStr>>(&self, argv: &[S]) -> String {
        format!("{}: {}", self.text, run::show_words(argv.iter().map(AsRef::as_ref)))
    }
}

/// From the text of /proc/PID/status: the last number of NSpid is the one in the innermost namespace (proc(5)). A
/// process of the host has one number, and there 1 is the host's own init.
fn is_init_of_its_namespace(status: &str) -> bool {
    let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    let pids: Vec<&str> = pids.split_whitespace().collect();
    pids.len() > 1 && pids.last() == Some(&"1")
}

/// Whether a list of tar members is that of an archive of `docker save`.
fn is_saved_image(list: &str) -> bool {
    list.lines().any(|line| line.strip_prefix("./").unwrap_or(line) == "manifest.json")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LabConfig;

    #[test]
    fn a_machine_is_told_from_its_name_and_the_settings() {
        let settings = Settings::new(&LabConfig::default(), "/sys/fs/cgroup/muster-lab".into());
        let m2 = Machine::new("m2".parse().unwrap(), settings.into());
        assert_eq!((m2.name(), m2.number()), ("m2", 2));
        assert_eq!(m2.address(), Ipv4Addr::new(10, 99, 0, 2));
        assert_eq!(m2.root(), Path::new("/run/muster-lab/m/m2/root"));
        assert_eq!(m2.cgroup(), Path::new("/sys/fs/cgroup/muster-lab/m2"));
        assert!(matches!(m2.command(&["true"]), Err(Error::Off { .. })));
    }

    #[test]
    fn pid_1_is_the_innermost_number() {
        assert!(is_init_of_its_namespace("Name:\tsystemd\nNSpid:\t4711\t1\n"));
        assert!(!is_init_of_its_namespace("NSpid:\t4711\t12\n"));
        assert!(!is_init_of_its_namespace("NSpid:\t1\n"));
        assert!(!is_init_of_its_namespace(""));
    }

    #[test]
    fn saved_images_have_a_manifest_at_the_top() {
        assert!(is_saved_image("a/layer.tar\nmanifest.json\n"));
        assert!(is_saved_image("./manifest.json\n"));
        assert!(!is_saved_image("./\n./bin/\n./etc/manifest.json\n"));
    }
}
