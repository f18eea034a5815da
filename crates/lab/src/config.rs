//! What a caller asks of a lab, and the checked form of it that is kept in the lab's tmpfs for later processes.
//!
//! Names and addresses are all computed here: machine `mN` has address N of the lab's /24, the client outside has
//! 254. Everything of a lab on the host is called `NAME-lab`.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// 200 machines is far above what a box carries and keeps the addresses above free (254 is the client outside).
pub(crate) const MAX_MACHINES: usize = 200;
const OUTSIDE: u8 = 254;

/// Writes files for one machine from what is known about it. See [`LabConfig::machine_files`].
pub type MachineFiles = Arc<dyn Fn(&MachineInfo) -> Vec<DiskFile> + Send + Sync>;

/// What a lab is to be. `LabConfig::default()` is a lab called `muster` on 10.99.0.0/24 with Docker.
#[derive(Clone)]
pub struct LabConfig {
    /// 1 to 8 letters; the prefix of everything on the host. Default `muster`.
    pub name: String,
    /// The first three bytes of the machines' /24. Default 10.99.0.
    pub network: [u8; 3],
    /// A directory of the host shown as `/usr/local/bin` inside, read-only. Default none. For a lab that is up, `None`
    /// keeps what it has; a change shows at a machine's next boot.
    pub bin: Option<PathBuf>,
    /// A directory of the host shown as `/mnt/share` inside, read-write. Default none; changes as `bin` does.
    pub share: Option<PathBuf>,
    /// The limit of the tmpfs that is all machines' disk, as tmpfs(5) takes it. Default `60%` of memory.
    pub size: String,
    /// How long a machine may take to boot until systemd has no more jobs. Default 60 s.
    pub boot_timeout: Duration,
    /// Whether [`crate::Lab::up`] waits until every machine has booted. If not, it returns as soon as each systemd
    /// answers. Default true.
    pub wait_for_boot: bool,
    /// Whether Docker starts at boot. Default true.
    pub docker: bool,
    /// Written on every new machine's disk before its first boot, and again after [`crate::Machine::wipe`].
    pub files: Vec<DiskFile>,
    /// Symbolic links (path, target) on the disk, made with `files`: for enabling or masking a unit.
    pub links: Vec<(String, String)>,
    /// Files that differ from machine to machine. Called once per new machine; a wipe uses the same result again.
    pub machine_files: Option<MachineFiles>,
    /// Programs that the lab's use needs on the host, because machines run the host's `/usr`: (program, Debian package).
    /// Checked with the lab's own needs. Default none.
    pub needs: Vec<(String, String)>,
}

impl Default for LabConfig {
    fn default() -> Self {
        LabConfig {
            name: "muster".into(),
            network: [10, 99, 0],
            bin: None,
            share: None,
            size: "60%".into(),
            boot_timeout: Duration::from_secs(60),
            wait_for_boot: true,
            docker: true,
            files: Vec::new(),
            links: Vec::new(),
            machine_files: None,
            needs: Vec::new(),
        }
    }
}

impl fmt::Debug for LabConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LabConfig")
            .field("name", &self.name)
            .field("network", &self.network)
            .field("bin", &self.bin)
            .field("share", &self.share)
            .field("docker", &self.docker)
            .field("boot_timeout", &self.boot_timeout)
            .field("files", &self.files.iter().map(|file| &file.path).collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

/// A file on a machine's disk, owned by root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskFile {
    /// Relative to the machine's `/`; a leading slash is allowed.
    pub path: PathBuf,
    /// All of it.
    pub contents: Vec<u8>,
    /// Permission bits, for example 0o644.
    pub mode: u32,
}

impl DiskFile {
    /// A file of mode 0644.
    pub fn new(path: impl Into<PathBuf>, contents: impl Into<Vec<u8>>) -> DiskFile {
        DiskFile { path: path.into(), contents: contents.into(), mode: 0o644 }
    }

    /// The same file with other permission bits.
    pub fn mode(self, mode: u32) -> DiskFile {
        DiskFile { mode, ..self }
    }
}

/// What is known about a machine before it first boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineInfo {
    /// `m1`, also its host name.
    pub name: String,
    /// 1 for `m1`.
    pub number: u8,
    /// Its address on eth0, in a /24.
    pub address: Ipv4Addr,
    /// The client outside, which is also the default gateway.
    pub outside: Ipv4Addr,
    /// All machines of this `up`, in order, this one included.
    pub machines: Vec<(String, Ipv4Addr)>,
}

/// The name of a machine: `m` and its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MachineName(u8);

impl MachineName {
    /// The `number`th machine, from 1; `None` outside 1 to 200.
    pub fn numbered(number: usize) -> Option<MachineName> {
        (1..=MAX_MACHINES).contains(&number).then(|| u8::try_from(number).ok().map(MachineName))?
    }

    /// 1 for `m1`.
    pub fn number(self) -> u8 {
        self.0
    }
}

impl fmt::Display for MachineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "m{}", self.0)
    }
}

impl FromStr for MachineName {
    type Err = ();

    fn from_str(text: &str) -> Result<MachineName, ()> {
        let digits = text.strip_prefix('m').filter(|digits| !digits.starts_with(['0', '+'])).ok_or(())?;
        digits.parse().ok().and_then(MachineName::numbered).ok_or(())
    }
}

/// The checked settings of a lab that is up, as `lab.json` in its tmpfs. Its presence says that `up` got as far as
/// the fabric; without it the lab was interrupted and is made again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub v: u32,
    pub name: String,
    pub network: [u8; 3],
    pub bin: Option<PathBuf>,
    pub share: Option<PathBuf>,
    pub docker: bool,
    pub boot_timeout_ms: u64,
    pub cgroup: PathBuf,
}

impl Settings {
    pub(crate) fn new(config: &LabConfig, cgroup: PathBuf) -> Settings {
        Settings {
            v: 1,
            name: config.name.clone(),
            network: config.network,
            bin: config.bin.clone(),
            share: config.share.clone(),
            docker: config.docker,
            boot_timeout_ms: millis(config.boot_timeout),
            cgroup,
        }
    }

    /// What a later `up` changes. Fails for what cannot change while machines exist.
    pub(crate) fn update(mut self, config: &LabConfig) -> Result<Settings> {
        let differs = |setting, is: String, asked: String| {
            Err(Error::Differs { name: config.name.clone(), setting, is, asked })
        };
        if self.network != config.network {
            return differs("network", show_network(self.network), show_network(config.network));
        }
        if self.docker != config.docker {
            let show = |docker: bool| if docker { "Docker" } else { "no Docker" };
            return differs("machines that have", show(self.docker).into(), show(config.docker).into());
        }
        self.bin = config.bin.clone().or(self.bin);
        self.share = config.share.clone().or(self.share);
        self.boot_timeout_ms = millis(config.boot_timeout);
        Ok(self)
    }

    pub(crate) fn address(&self, machine: MachineName) -> Ipv4Addr {
        let [a, b, c] = self.network;
        Ipv4Addr::new(a, b, c, machine.number())
    }

    pub(crate) fn outside(&self) -> Ipv4Addr {
        let [a, b, c] = self.network;
        Ipv4Addr::new(a, b, c, OUTSIDE)
    }

    pub(crate) fn subnet(&self) -> String {
        show_network(self.network)
    }

    pub(crate) fn boot_timeout(&self) -> Duration {
        Duration::from_millis(self.boot_timeout_ms)
    }

    /// The tmpfs.
    pub(crate) fn dir(&self) -> PathBuf {
        dir(&self.name)
    }
}

/// A locally administered Ethernet address that says which machine it is.
pub(crate) fn mac(machine: MachineName) -> String {
    format!("02:00:00:00:00:{:02x}", machine.number())
}

pub(crate) fn check_name(name: &str) -> Result<()> {
    let good = (1..=8).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_lowercase());
    if good { Ok(()) } else { Err(Error::Name { name: name.to_owned() }) }
}

/// Where the tmpfs of lab `name` is mounted. Not `/run/NAME`: that is where a service of that name keeps its things.
pub(crate) fn dir(name: &str) -> PathBuf {
    Path::new("/run").join(unit(name))
}

/// The name of the lab's cgroup, and of its transient unit where PID 1 is systemd.
pub(crate) fn unit(name: &str) -> String {
    format!("{name}-lab")
}

pub(crate) fn lock_file(name: &str) -> PathBuf {
    Path::new("/run").join(format!("{}.lock", unit(name)))
}

fn show_network([a, b, c]: [u8; 3]) -> String {
    format!("{a}.{b}.{c}.0/24")
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings::new(&LabConfig::default(), "/cg".into())
    }

    #[test]
    fn machine_names_are_m_and_a_number() {
        assert_eq!("m12".parse::<MachineName>().unwrap().number(), 12);
        assert_eq!(MachineName::numbered(3).unwrap().to_string(), "m3");
        for bad in ["", "m", "m0", "m01", "m+1", "m201", "m256", "n1", "1", "m1 ", "../m1"] {
            assert!(bad.parse::<MachineName>().is_err(), "{bad}");
        }
        assert!(MachineName::numbered(0).is_none());
    }

    #[test]
    fn addresses_follow_from_the_number() {
        let m10 = MachineName::numbered(10).unwrap();
        assert_eq!(settings().address(m10), Ipv4Addr::new(10, 99, 0, 10));
        assert_eq!(settings().outside(), Ipv4Addr::new(10, 99, 0, 254));
        assert_eq!(settings().subnet(), "10.99.0.0/24");
        assert_eq!(mac(m10), "02:00:00:00:00:0a");
    }

    #[test]
    fn names_are_short_and_plain() {
        assert!(check_name("muster").is_ok());
        for bad in ["", "toolonganame", "Lab", "a/b", "a b", "lab1"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        assert_eq!(dir("muster"), Path::new("/run/muster-lab"));
        assert_eq!(lock_file("muster"), Path::new("/run/muster-lab.lock"));
    }

    #[test]
    fn a_later_up_keeps_what_it_does_not_name() {
        let first = LabConfig { bin: Some("/bin1".into()), ..LabConfig::default() };
        let kept = Settings::new(&first, "/cg".into()).update(&LabConfig::default()).unwrap();
        assert_eq!(kept.bin.as_deref(), Some(Path::new("/bin1")));
        let elsewhere = LabConfig { network: [10, 98, 0], ..LabConfig::default() };
        let text = settings().update(&elsewhere).unwrap_err().to_string();
        assert!(text.contains("10.99.0.0/24") && text.contains("10.98.0.0/24"), "{text}");
        assert!(settings().update(&LabConfig { docker: false, ..LabConfig::default() }).is_err());
    }
}
