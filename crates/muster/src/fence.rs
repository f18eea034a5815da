//! `muster fence`: stops, then kills, the units with `OnPartition=stop` when their machine's lease is over.
//!
//! A process of its own, which the agent starts as the transient service `muster-fence.service`: whatever becomes of
//! the daemon (dead, frozen, starved), the time runs here. The daemon leaves a note after each renewal that the hub
//! has acknowledged: until when, and which units. systemd watches this process in turn. Not here: what to stop when
//! (`core::fence`). Invariants: nothing is asked of the hub or of the daemon; each program that is run has a deadline;
//! a unit that is stopped is marked first, so that the daemon starts it again if it still belongs here.

use crate::{
    config::RUN_DIR,
    container::{self, Container},
};
use anyhow::{Context, Result};
use model::UnitName;
use muster_core::fence::Fence;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tracing::{info, warn};

/// The service.
pub const UNIT: &str = "muster-fence.service";
/// systemd replaces a watcher that was silent for so long. Part of `FENCE_STOP`.
pub const WATCHDOG: Duration = Duration::from_secs(2);
/// The longest sleep: some signs of life within [`WATCHDOG`], and newly written notes are seen in time, because they
/// only ever give more of it.
const SLEEP: Duration = Duration::from_millis(500);
/// Between looks while the time is over.
const LOOK: Duration = Duration::from_millis(100);
/// `systemctl` and `docker kill` answer within milliseconds, or they are in trouble.
const PROGRAM: Duration = Duration::from_secs(1);

/// What the daemon leaves for this process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// Until when the units may run: milliseconds since boot, as [`uptime`].
    pub until: u64,
    /// Which units.
    pub units: BTreeSet<UnitName>,
}

impl Note {
    /// Where it is.
    pub fn path() -> PathBuf {
        Path::new(RUN_DIR).join("fence.json")
    }

    /// The note as it is now; `None` when there is none or it makes no sense.
    pub fn read() -> Option<Self> {
        serde_json::from_slice(&fs::read(Self::path()).ok()?).ok()
    }
}

/// The mark of a unit that was stopped here.
pub fn mark(unit: &UnitName) -> PathBuf {
    Path::new(RUN_DIR).join("fenced").join(unit.as_str())
}

/// Time since boot, sleep included; to 10 ms.
pub fn uptime() -> Result<Duration> {
    let text = fs::read_to_string("/proc/uptime").context("cannot read /proc/uptime")?;
    let seconds = text.split(' ').next().and_then(|word| word.parse().ok());
    seconds.map(Duration::from_secs_f64).context("/proc/uptime makes no sense")
}

/// Watches for ever.
pub fn run() -> Result<()> {
    let mut watcher = Watcher::default();
    // Only systemd cares; without it there is nobody to tell.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    loop {
        let pause = watcher.look()?;
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
        std::thread::sleep(pause);
    }
}

#[derive(Default)]
struct Watcher {
    /// The last note that could be read: one that is lost meanwhile still counts.
    note: Option<Note>,
    fence: Fence,
    /// Containers of units that were told to stop, until each was killed or found gone. Once the client is gone nobody
    /// could say, and a client that stopped in order may have left its container running.
    containers: BTreeMap<UnitName, Container>,
    /// Programs that were started and may still run, and whose container each kills.
    children: Vec<(Child, Instant, Option<UnitName>)>,
}

impl Watcher {
    /// Does what has to be done now; tells how long to wait.
    fn look(&mut self) -> Result<Duration> {
        self.reap();
        self.note = Note::read().or_else(|| self.note.take());
        let now = uptime()?;
        let Some(note) = &self.note else { return Ok(SLEEP) };
        let left = Duration::from_millis(note.until).saturating_sub(now);
        if !left.is_zero() {
            if self.fence.is_closed() {
                info!("the hub acknowledges the lease again");
                self.fence.open();
                self.containers.clear();
            }
            return Ok(left.min(SLEEP));
        }
        let units = note.units.clone();
        if units.is_empty() {
            return Ok(SLEEP);
        }
        self.close(now, &units);
        Ok(LOOK)
    }

    fn close(&mut self, now: Duration, units: &BTreeSet<UnitName>) {
        let before = self.fence.is_closed();
        // If systemd does not say what runs, everything may.
        let alive = alive(units).unwrap_or_else(|| units.iter().map(|unit| (unit.clone(), None)).collect());
        let breathing = alive.keys().chain(self.containers.keys()).cloned().collect();
        let orders = self.fence.close(now, units, &breathing);
        for unit in orders.stop.iter().filter(|unit| alive.contains_key(*unit)) {
            warn!(%unit, "the hub has not acknowledged this machine's lease in time: stopping (OnPartition=stop)");
            if let Err(error) = leave_mark(unit) {
                warn!(%unit, %error, "not marked: it will have to be started by hand");
            }
            let container = alive.get(unit).copied().flatten().and_then(container::of);
            self.containers.extend(container.map(|container| (unit.clone(), container)));
        }
        if !before && alive.is_empty() {
            info!("the hub has not acknowledged this machine's lease in time; nothing runs that must stop");
        }
        if !orders.stop.is_empty() {
            self.start(systemctl(&["stop", "--no-block"], &orders.stop), None);
        }
        // Killed again and again until it is dead, one attempt at a time.
        if orders.kill.is_empty() || !self.children.is_empty() {
            return;
        }
        warn!(units = ?orders.kill, "not stopped in time: killing");
        let running: BTreeSet<_> =
            orders.kill.iter().filter(|unit| alive.contains_key(*unit)).cloned().collect();
        if !running.is_empty() {
            self.start(systemctl(&["kill", "--signal=KILL"], &running), None);
        }
        for unit in orders.kill {
            if let Some(Container { engine, name }) = self.containers.get(&unit) {
                let mut kill = Command::new(engine);
                kill.args(["kill", name]).stderr(Stdio::null());
                self.start(kill, Some(unit));
            }
        }
    }

    fn start(&mut self, mut command: Command, container_of: Option<UnitName>) {
        match command.stdin(Stdio::null()).stdout(Stdio::null()).spawn() {
            Ok(child) => self.children.push((child, Instant::now() + PROGRAM, container_of)),
            Err(error) => warn!(program = ?command.get_program(), %error, "cannot be run"),
        }
    }

    /// Collects programs that have ended, and ends those that hang.
    fn reap(&mut self) {
        let containers = &mut self.containers;
        self.children.retain_mut(|(child, deadline, container_of)| match child.try_wait() {
            Ok(None) if Instant::now() > *deadline => {
                let _ = child.kill();
                let _ = child.wait();
                false
            }
            Ok(None) => true,
            // Killed, or not there any more: the engine has answered.
            Ok(Some(_)) => {
                container_of.take().map(|unit| containers.remove(&unit));
                false
            }
            Err(_) => false,
        });
    }
}

fn systemctl(verb: &[&str], units: &BTreeSet<UnitName>) -> Command {
    let mut command = Command::new("systemctl");
    command.args(verb).arg("--").args(units.iter().map(UnitName::as_str));
    command
}

fn leave_mark(unit: &UnitName) -> io::Result<()> {
    let mark = mark(unit);
    fs::create_dir_all(mark.parent().unwrap_or(&mark))?;
    fs::write(mark, "")
}

/// Which of `units` run or stop still, with their main processes. `None` when systemd does not say.
fn alive(units: &BTreeSet<UnitName>) -> Option<BTreeMap<UnitName, Option<u32>>> {
    let mut show = systemctl(&["show", "--property=Id,ActiveState,MainPID"], units);
    let mut child = show.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
    let mut pipe = child.stdout.take()?;
    // Read beside, because a full pipe would hold it up.
    let reader = std::thread::spawn(move || io::read_to_string(&mut pipe));
    let deadline = Instant::now() + PROGRAM;
    let success = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status.success(),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                break false;
            }
        }
    };
    let text = reader.join().ok()?.ok()?;
    success.then(|| read_alive(&text))
}

fn read_alive(text: &str) -> BTreeMap<UnitName, Option<u32>> {
    let unit = |block: &str| {
        let fields: BTreeMap<_, _> = block.lines().filter_map(|line| line.split_once('=')).collect();
        let dead = matches!(*fields.get("ActiveState")?, "inactive" | "failed");
        let pid = fields.get("MainPID").and_then(|pid| pid.parse().ok()).filter(|pid| *pid != 0);
        (!dead).then_some((fields.get("Id")?.parse().ok()?, pid))
    };
    text.split("\n\n").filter_map(unit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_alive_is_read_from_systemctl() {
        let text = "MainPID=7\nId=a.service\nActiveState=active\n\nMainPID=0\nId=b.service\nActiveState=failed\n\n\
                    Id=c.timer\nActiveState=active\n\nMainPID=0\nId=d.service\nActiveState=deactivating\n";
        let alive = read_alive(text);
        let told: Vec<_> = alive.iter().map(|(unit, pid)| (unit.as_str(), *pid)).collect();
        assert_eq!(told, [("a.service", Some(7)), ("c.timer", None), ("d.service", None)]);
    }

    #[test]
    fn time_since_boot_goes_on() {
        let first = uptime().expect("Linux tells it");
        assert!(first > Duration::ZERO && uptime().expect("Linux tells it") >= first);
    }
}
