//! What `status` shows: plain data, so that it can be printed as a table or as JSON.

use std::net::Ipv4Addr;

use serde::Serialize;

use crate::machine::Machine;
use crate::{Cut, cgroup, run};

/// A lab at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct LabStatus {
    /// Its name.
    pub name: String,
    /// The client's address.
    pub outside: Ipv4Addr,
    /// By number.
    pub machines: Vec<MachineStatus>,
    /// Who is cut from whom.
    pub cuts: Vec<Cut>,
}

/// A machine at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct MachineStatus {
    /// `m1`
    pub name: String,
    /// On eth0.
    pub address: Ipv4Addr,
    /// Off, running, …
    pub power: Power,
    /// Its PID 1, as a number of the host.
    pub pid: Option<i32>,
    /// Its processes, containers and what `exec` started included.
    pub processes: usize,
    /// Their memory in bytes; pages shared by n processes count 1/n in each (PSS, proc(5)).
    pub memory: u64,
    /// What its disk holds, in bytes. It is memory too.
    pub disk: u64,
}

/// Whether a machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Power {
    /// No PID 1.
    Off,
    /// It runs, or boots.
    Running,
    /// Processes and network are still.
    Paused,
    /// Processes are still, its kernel answers.
    Frozen,
}

impl Power {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Power::Off => "off",
            Power::Running => "running",
            Power::Paused => "paused",
            Power::Frozen => "frozen",
        }
    }
}

pub(crate) fn machine(machine: &Machine) -> MachineStatus {
    let pid = machine.leader();
    let power = match pid {
        None => Power::Off,
        Some(_) if machine.is_paused() => Power::Paused,
        Some(_) if machine.is_frozen() => Power::Frozen,
        Some(_) => Power::Running,
    };
    let pids = if pid.is_some() { cgroup::processes(&machine.cgroup()) } else { Vec::new() };
    MachineStatus {
        name: machine.name().to_owned(),
        address: machine.address(),
        power,
        pid,
        processes: pids.len(),
        memory: pids.iter().map(|&pid| proportional_memory(pid)).sum(),
        disk: disk_use(machine),
    }
}

fn proportional_memory(pid: i32) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    kilobytes(rollup.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap_or_default())
}

fn disk_use(machine: &Machine) -> u64 {
    // Files come and go under du, which then says so and still prints a sum.
    let out = run::output(run::host("du", ["-skx".as_ref(), machine.root().as_os_str()]));
    out.map(|out| kilobytes(&out.stdout)).unwrap_or_default()
}

fn kilobytes(text: &str) -> u64 {
    text.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or_default() * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_bytes() {
        assert_eq!(kilobytes("          1234 kB"), 1234 * 1024);
        assert_eq!(kilobytes("16\t/run/x\n"), 16 * 1024);
        assert_eq!(kilobytes(""), 0);
        assert!(proportional_memory(std::process::id().try_into().unwrap()) > 0);
    }

    #[test]
    fn json_has_one_word_per_state() {
        for power in [Power::Off, Power::Running, Power::Paused, Power::Frozen] {
            assert_eq!(serde_json::to_value(power).unwrap(), power.as_str());
        }
    }
}
