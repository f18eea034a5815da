//! What the machine has to give, and who has which address: files under `/run/muster`, gone with the boot as the
//! namespaces are.
//!
//! Invariant: what is read here was written whole, but for `resolv.conf`, which is written in place, because units that
//! run have that very file.

use super::super::write_file;
use crate::config::{Config, RUN_DIR};
use anyhow::{Context, Result};
use model::{Subnet, UnitName};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

/// A file for each unit that has an address, in the form of systemd.exec(5), `EnvironmentFile=`.
pub(super) const DIRECTORY: &str = "addresses";
const VARIABLE: &str = "MUSTER_ADDRESS";
/// Why a unit has none.
const FAILURES: &str = "addresses.failed";
const GROUND: &str = "addresses.json";
const LOCK: &str = "addresses.lock";
/// Whom units with an address of their own ask for names.
pub(in crate::agent) const RESOLV_CONF: &str = "resolv.conf";

/// What addresses of units stand on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(in crate::agent) struct Ground {
    pub(in crate::agent) v: u32,
    pub(in crate::agent) subnet: Subnet,
    pub(in crate::agent) mtu: u32,
    /// The bridge that the subnet is on.
    pub(in crate::agent) bridge: String,
    pub(in crate::agent) container_socket: PathBuf,
}

/// Writes down what units may have; `None`: nothing. `run` is [`RUN_DIR`].
pub(in crate::agent) fn tell(run: &Path, ground: Option<&Ground>, config: &Config) -> Result<()> {
    let path = run.join(GROUND);
    let Some(ground) = ground else {
        return match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", path.display()))
            }
            _ => Ok(()),
        };
    };
    let machines = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"]
        .map(|path| fs::read_to_string(path).unwrap_or_default());
    let own = config.router.dns.enabled.then(|| ground.subnet.bridge());
    let names = run.join(RESOLV_CONF);
    let text = resolv_conf(own, &machines[0], &machines[1]);
    if !fs::read_to_string(&names).is_ok_and(|before| before == text) {
        fs::write(&names, text).with_context(|| format!("cannot write {}", names.display()))?;
    }
    let text = serde_json::to_string(ground)?;
    write_file(&path, &text).with_context(|| format!("cannot write {}", path.display()))
}

/// The resolver's configuration in a namespace: the machine's, but for addresses that nobody answers at in there.
fn resolv_conf(own: Option<Ipv4Addr>, machines: &str, behind: &str) -> String {
    let servers = |text: &str| -> Vec<String> {
        let named = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
        let named = named.map(|rest| rest.trim().to_owned());
        named.filter(|server| !server.starts_with("127.") && server != "::1" && !server.is_empty()).collect()
    };
    let found = match own {
        Some(own) => vec![own.to_string()],
        None => Some(servers(machines)).filter(|found| !found.is_empty()).unwrap_or_else(|| servers(behind)),
    };
    let mut text = "# Written by Muster, for units with Address=own.\n".to_owned();
    text.extend(found.iter().map(|server| format!("nameserver {server}\n")));
    let others = machines
        .lines()
        .filter(|line| ["search", "options", "domain"].iter().any(|word| line.starts_with(word)));
    text.extend(others.map(|line| format!("{line}\n")));
    text
}

/// What the daemon wrote down.
pub(super) fn ground() -> Result<Ground> {
    let path = Path::new(RUN_DIR).join(GROUND);
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => anyhow::bail!(
            "this machine has no addresses for units: the daemon must have run since boot, with [overlay] enabled and \
             unit-addresses both true"
        ),
        other => other.with_context(|| format!("cannot read {}", path.display()))?,
    };
    serde_json::from_str(&text).with_context(|| format!("in {}", path.display()))
}

/// Waits for everybody else who changes addresses. The lock ends with what is given.
pub(super) fn lock() -> Result<File> {
    let path = Path::new(RUN_DIR).join(LOCK);
    let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    flock(&file, FlockOperation::LockExclusive).with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

/// Units that have an address, or are about to.
pub(super) fn units() -> Vec<UnitName> {
    let entries = fs::read_dir(Path::new(RUN_DIR).join(DIRECTORY)).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The address that `unit` has on this machine.
pub(in crate::agent) fn held(unit: &UnitName) -> Option<Ipv4Addr> {
    let text = fs::read_to_string(file(unit)).ok()?;
    text.lines().find_map(|line| line.strip_prefix(VARIABLE)?.strip_prefix('=')?.parse().ok())
}

pub(super) fn hold(unit: &UnitName, address: Ipv4Addr) -> Result<()> {
    if held(unit) == Some(address) {
        return Ok(());
    }
    let path = file(unit);
    let cannot = || format!("cannot write {}", path.display());
    fs::create_dir_all(Path::new(RUN_DIR).join(DIRECTORY)).with_context(cannot)?;
    write_file(&path, &format!("{VARIABLE}={address}\n")).with_context(cannot)
}

pub(super) fn let_go(unit: &UnitName) -> Result<()> {
    match fs::remove_file(file(unit)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).context("an address is not given back")
        }
        _ => Ok(()),
    }
}

/// Why `unit` has no address, or nothing any more.
pub(super) fn note_failure(unit: &UnitName, error: Option<&anyhow::Error>) {
    let path = Path::new(RUN_DIR).join(FAILURES).join(unit.as_str());
    // What cannot be noted is in the journal too.
    let _ = match error {
        None => fs::remove_file(path),
        Some(error) => fs::create_dir_all(Path::new(RUN_DIR).join(FAILURES))
            .and_then(|()| write_file(&path, &format!("{error:#}"))),
    };
}

/// Why `unit` has no address, where that was tried.
pub(in crate::agent) fn failure(unit: &UnitName) -> Option<String> {
    fs::read_to_string(Path::new(RUN_DIR).join(FAILURES).join(unit.as_str())).ok()
}

fn file(unit: &UnitName) -> PathBuf {
    Path::new(RUN_DIR).join(DIRECTORY).join(unit.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_in_a_namespace_asks_the_machines_loopback() {
        let machines = "# stub\nnameserver 127.0.0.53\noptions edns0\nsearch example.org\n";
        let behind = "nameserver 192.0.2.1\nnameserver ::1\nsearch other.org\n";
        let rest = "options edns0\nsearch example.org\n";
        let with = |own, machines| {
            let text = resolv_conf(own, machines, behind);
            text.split_once('\n').map(|(_, text)| text.to_owned()).unwrap_or_default()
        };
        let bridge = Some(Ipv4Addr::new(10, 1, 5, 1));
        assert_eq!(with(bridge, machines), format!("nameserver 10.1.5.1\n{rest}"));
        assert_eq!(with(None, machines), format!("nameserver 192.0.2.1\n{rest}"));
        assert_eq!(with(None, "nameserver 198.51.100.7\n"), "nameserver 198.51.100.7\n");
    }
}
