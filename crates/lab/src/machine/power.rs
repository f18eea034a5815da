//! A machine's power: boot, orderly stop, power cut, pause. What must outlive the calling process (nspawn, and its
//! restart when the machine reboots itself) is the shell script `power.sh`, started here in a session of its own.
//!
//! Two cgroups per machine: `mN` is what is frozen and killed, `power/mN` holds the script. `kill` ends the script
//! first, so that a machine killed in the middle of a reboot stays off.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::Machine;
use crate::config::mac;
use crate::fabric::Fabric;
use crate::{Error, Result, cgroup, disk, lock, run};

const SCRIPT: &str = include_str!("power.sh");
/// How often a state of the kernel that gives no event is looked at.
const POLL: Duration = Duration::from_millis(20);
/// systemd's own default for stopping one unit is 90 s; a lab's machine that takes longer than this hangs.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

impl Machine {
    /// Boots it, if it is off, and waits up to the lab's boot timeout until systemd has no more jobs. Units that
    /// failed are no error: see [`Machine::failed_units`].
    ///
    /// # Errors
    /// If it could not be started, died, or was not ready in time.
    pub fn start(&self) -> Result<()> {
        let deadline = self.deadline();
        self.power_on()?;
        self.wait_for_systemd(deadline)?;
        self.wait_for_boot(deadline)
    }

    /// Boots it, if it is off, and returns as soon as its systemd answers (about 0.3 s).
    ///
    /// # Errors
    /// As [`Machine::start`].
    pub fn start_no_wait(&self) -> Result<()> {
        let deadline = self.deadline();
        self.power_on()?;
        self.wait_for_systemd(deadline)
    }

    /// Power cut: every process gone at once, and the network with them. The disk is kept.
    ///
    /// # Errors
    /// If something of it stays.
    pub fn kill(&self) -> Result<()> {
        let _lock = lock::machine(&self.dir())?;
        self.power_off()
    }

    /// Orderly shutdown, as `systemctl halt`; what is left after 30 s is killed. A paused machine is resumed first.
    ///
    /// # Errors
    /// As [`Machine::kill`].
    pub fn stop(&self) -> Result<()> {
        if let Some(leader) = self.leader() {
            self.resume()?;
            // nspawn passes a SIGTERM on as the signal that means "halt" to the systemd inside (systemd-nspawn(1)).
            for pid in
                cgroup::members(&self.cgroup().join("supervisor")).into_iter().filter_map(Pid::from_raw)
            {
                let _ = kill_process(pid, Signal::TERM);
            }
            let deadline = Instant::now() + STOP_TIMEOUT;
            while Path::new("/proc").join(leader.to_string()).exists() && Instant::now() < deadline {
                sleep(POLL);
            }
        }
        self.kill()
    }

    /// Freezes its processes and its network: a stalled virtual machine. Peers see silence.
    ///
    /// # Errors
    /// If the machine is off.
    pub fn pause(&self) -> Result<()> {
        let _lock = lock::machine(&self.dir())?;
        self.leader().ok_or_else(|| Error::Off { machine: self.text.clone() })?;
        // The mark first: whatever happens next, `resume` and `kill` know that there is something to undo.
        fs::write(self.paused_mark(), "").map_err(Error::io("create", self.paused_mark()))?;
        Fabric::of(&self.settings).pause(self.name, true)?;
        cgroup::freeze(&self.cgroup(), true)
    }

    /// Freezes its processes only: its kernel still answers (TCP connects and acknowledges, ARP, ping).
    ///
    /// # Errors
    /// If the machine is off.
    pub fn freeze(&self) -> Result<()> {
        let _lock = lock::machine(&self.dir())?;
        self.leader().ok_or_else(|| Error::Off { machine: self.text.clone() })?;
        cgroup::freeze(&self.cgroup(), true)
    }

    /// Undoes [`Machine::pause`] and [`Machine::freeze`]. Cuts stay.
    ///
    /// # Errors
    /// If the kernel refuses. A machine that is not paused, or off, is no error.
    pub fn resume(&self) -> Result<()> {
        let _lock = lock::machine(&self.dir())?;
        if self.is_frozen() {
            cgroup::freeze(&self.cgroup(), false)?;
        }
        self.unpause_network()
    }

    /// Throws its disk away and makes a new one, with a new machine-id and the files it was made with. It stays off.
    ///
    /// # Errors
    /// If it is running.
    pub fn wipe(&self) -> Result<()> {
        let _lock = lock::machine(&self.dir())?;
        if self.has_power() {
            return Err(Error::Running { machine: self.text.clone() });
        }
        let hosts = fs::read(self.root().join("etc/hosts")).unwrap_or_default();
        fs::remove_dir_all(self.root()).map_err(Error::io("remove", self.root()))?;
        disk::create(&self.dir(), self.name, &self.settings)?;
        self.write_file("etc/hosts", hosts, 0o644)
    }

    /// Whether it was paused by [`Machine::pause`], network and all.
    pub(crate) fn is_paused(&self) -> bool {
        self.paused_mark().exists()
    }

    fn has_power(&self) -> bool {
        cgroup::is_populated(&self.power_cgroup())
    }

    fn power_on(&self) -> Result<()> {
        let _lock = lock::machine(&self.dir())?;
        if self.has_power() {
            return Ok(());
        }
        self.power_off()?;
        run::ok(self.script("plug"))?;
        for path in [self.cgroup().join("exec"), self.power_cgroup()] {
            fs::create_dir_all(&path).map_err(Error::io("create the cgroup", path))?;
        }
        let open = || fs::File::options().create(true).append(true).open(self.console());
        let out = open().map_err(Error::io("open", self.console()))?;
        let err = open().map_err(Error::io("open", self.console()))?;
        // setsid --fork: not our child, so it is no zombie of ours, and no terminal's hang-up reaches it.
        let mut supply = run::in_cgroup(&self.power_cgroup());
        let script = self.script("run");
        supply
            .args(["setsid", "--fork"])
            .arg(script.get_program())
            .args(script.get_args())
            .args(self.nspawn());
        let done = supply.stdin(Stdio::null()).stdout(out).stderr(err).current_dir("/").status();
        let status =
            done.map_err(|source| Error::Spawn { program: self.shown(&["systemd-nspawn"]), source })?;
        if status.success() {
            return Ok(());
        }
        Err(Error::Died { machine: self.text.clone(), console: self.console_tail() })
    }

    fn power_off(&self) -> Result<()> {
        cgroup::remove(&self.power_cgroup())?;
        run::ok(self.script("unplug"))?;
        cgroup::remove(&self.cgroup())?;
        self.unpause_network()
    }

    fn unpause_network(&self) -> Result<()> {
        if self.is_paused() {
            Fabric::of(&self.settings).pause(self.name, false)?;
            fs::remove_file(self.paused_mark()).map_err(Error::io("remove", self.paused_mark()))?;
        }
        Ok(())
    }

    /// Waits until systemd's private socket is there: from then on `systemctl` inside works.
    fn wait_for_systemd(&self, deadline: Instant) -> Result<()> {
        loop {
            if let Some(leader) = self.leader()
                && Path::new(&format!("/proc/{leader}/root/run/systemd/private")).exists()
            {
                return Ok(());
            }
            if !self.has_power() {
                return Err(Error::Died { machine: self.text.clone(), console: self.console_tail() });
            }
            if Instant::now() > deadline {
                return Err(self.boot_timeout());
            }
            sleep(POLL);
        }
    }

    /// Waits until systemd's job queue is empty: `running`, or `degraded` when units have failed.
    fn wait_for_boot(&self, deadline: Instant) -> Result<()> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.boot_timeout());
            }
            let seconds = left.as_secs_f32().to_string();
            // It fails while the machine reboots itself, and prints `starting` when systemd is not that far.
            let state = self.exec(&["timeout", &seconds, "systemctl", "is-system-running", "--wait"]);
            if state.is_ok_and(|out| matches!(out.stdout.trim(), "running" | "degraded")) {
                return Ok(());
            }
            sleep(POLL);
            self.wait_for_systemd(deadline)?;
        }
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.settings.boot_timeout()
    }

    fn boot_timeout(&self) -> Error {
        let list = self.exec(&["timeout", "5", "systemctl", "list-jobs", "--no-legend", "--plain"]);
        Error::BootTimeout {
            machine: self.text.clone(),
            address: self.address(),
            after: self.settings.boot_timeout(),
            jobs: list.map(|out| out.stdout.trim_end().to_owned()).unwrap_or_default(),
            console: self.console_tail(),
        }
    }

    fn console_tail(&self) -> String {
        let text = fs::read(self.console()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        // Enough for nspawn's own words; the rest is in `log`.
        lines[lines.len().saturating_sub(8)..].join("\n")
    }

    fn power_cgroup(&self) -> PathBuf {
        self.settings.cgroup.join("power").join(&self.text)
    }

    fn paused_mark(&self) -> PathBuf {
        self.dir().join("paused")
    }

    fn script(&self, verb: &str) -> Command {
        let mut command = run::host("sh", ["-c", SCRIPT, "power", verb]);
        command
            .arg(self.settings.dir())
            .arg(&self.settings.cgroup)
            .arg(&self.text)
            .arg(self.address().to_string())
            .arg(self.settings.outside().to_string())
            .arg(mac(self.name));
        command
    }

    /// nspawn's arguments (systemd-nspawn(1)).
    fn nspawn(&self) -> Vec<OsString> {
        let dir = self.settings.dir();
        let path = |option: &str, path: &Path, rest: &str| {
            let mut arg = OsString::from(option);
            arg.push(path);
            arg.push(rest);
            arg
        };
        let no_bin = dir.join("empty");
        let bin = self.settings.bin.as_deref().unwrap_or(&no_bin);
        let mut args: Vec<OsString> = [
            "--quiet",
            // Not in the host's machined, and in the cgroup it is started in.
            "--register=no",
            "--keep-unit",
            "--resolv-conf=off",
            "--timezone=off",
            "--link-journal=no",
            // Docker inside: runc needs bpf for devices, keyctl for session keys, and mounts.
            "--capability=all",
            "--system-call-filter=bpf @keyring @mount",
            "--rlimit=RLIMIT_NOFILE=1024:524288",
            "--console=pipe",
            "--kill-signal=SIGRTMIN+3",
            "--bind-ro=/usr",
        ]
        .map(OsString::from)
        .into();
        args.push(path("--machine=", self.text.as_ref(), ""));
        args.push(path("--directory=", &self.root(), ""));
        args.push(path("--network-namespace-path=", &crate::fabric::netns_dir(&dir).join(&self.text), ""));
        args.push(path("--bind-ro=", &escaped(bin), ":/usr/local/bin"));
        if let Some(share) = &self.settings.share {
            args.push(path("--bind=", &escaped(share), ":/mnt/share"));
        }
        args.push("--boot".into());
        args
    }
}

/// A colon separates source and target in `--bind`; one in a path is escaped.
fn escaped(path: &Path) -> PathBuf {
    let parts: Vec<&[u8]> = path.as_os_str().as_encoded_bytes().split(|&byte| byte == b':').collect();
    use std::os::unix::ffi::OsStrExt;
    PathBuf::from(OsStr::from_bytes(&parts.join(b"\\:".as_slice())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LabConfig;
    use crate::config::Settings;

    fn machine(config: LabConfig) -> Machine {
        Machine::new("m2".parse().unwrap(), Settings::new(&config, "/cg".into()).into())
    }

    fn words(machine: &Machine) -> Vec<String> {
        machine.nspawn().into_iter().map(|word| word.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn nspawn_shows_the_callers_directories() {
        let bare = words(&machine(LabConfig::default()));
        assert!(bare.contains(&"--bind-ro=/run/muster-lab/empty:/usr/local/bin".to_owned()));
        assert!(!bare.iter().any(|word| word.ends_with(":/mnt/share")));
        let config = LabConfig { bin: Some("/a:b".into()), share: Some("/s".into()), ..LabConfig::default() };
        let full = words(&machine(config));
        assert!(full.contains(&"--bind-ro=/a\\:b:/usr/local/bin".to_owned()));
        assert!(full.contains(&"--bind=/s:/mnt/share".to_owned()));
        assert!(full.contains(&"--network-namespace-path=/run/muster-lab/netns/m2".to_owned()));
        assert_eq!(full.last().map(String::as_str), Some("--boot"));
    }

    #[test]
    fn the_script_is_told_everything_by_position() {
        let script = machine(LabConfig::default()).script("plug");
        let words: Vec<_> =
            script.get_args().map(|word| word.to_string_lossy().into_owned()).skip(2).collect();
        assert_eq!(
            words,
            [
                "power",
                "plug",
                "/run/muster-lab",
                "/cg",
                "m2",
                "10.99.0.2",
                "10.99.0.254",
                "02:00:00:00:00:02"
            ]
        );
    }
}
