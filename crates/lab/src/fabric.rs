//! The network between the machines: a namespace with a bridge, `br0`, whose ports are named like the machines. Two
//! nft sets say who is cut from whom. Frames are dropped on the bridge, ARP too: neither side sees an error, exactly
//! as when a switch fails. The client outside is the bridge's own address.
//!
//! Cuts belong to port names, so they outlive a machine's kill and start; a paused machine is in a set of its own,
//! so that resuming it heals nothing.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{UnmountFlags, unmount};
use serde::{Deserialize, Serialize};

use crate::config::{MachineName, Settings};
use crate::{Error, Output, Result, run};

/// Priority -200 is before br_netfilter (0): after it, its detour through iptables would jump over these chains and
/// nothing would be cut.
const TABLE: &str = "\
table bridge cut {
    set pair { type ifname . ifname; }
    set port { type ifname; }
    set paused { type ifname; }
    chain forw { type filter hook forward priority -200;
        iifname . oifname @pair drop
        iifname @port drop; oifname @port drop
        iifname @paused drop; oifname @paused drop
    }
    chain inp { type filter hook input priority -200; iifname @port drop; iifname @paused drop; }
    chain outp { type filter hook output priority -200; oifname @port drop; oifname @paused drop; }
}
";

/// Something that is cut now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cut {
    /// Frames from the first machine to the second are dropped. A partition is two of these.
    OneWay(String, String),
    /// The machine's cable: it reaches nobody.
    Cable(String),
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cut::OneWay(from, to) => write!(f, "{from} -> {to}"),
            Cut::Cable(machine) => write!(f, "{machine} from everybody"),
        }
    }
}

/// The bridge of a lab that is up.
#[derive(Debug, Clone)]
pub(crate) struct Fabric {
    netns: PathBuf,
}

impl Fabric {
    pub(crate) fn of(settings: &Settings) -> Fabric {
        Fabric { netns: netns_dir(&settings.dir()).join("fabric") }
    }

    /// Makes the namespace, the bridge and the table.
    pub(crate) fn create(settings: &Settings) -> Result<Fabric> {
        let fabric = Fabric::of(settings);
        let dir = netns_dir(&settings.dir());
        fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
        fs::write(&fabric.netns, "").map_err(Error::io("create", &fabric.netns))?;
        let mut net = std::ffi::OsString::from("--net=");
        net.push(&fabric.netns);
        let script = format!(
            "ip link set lo up\n\
             ip link add br0 type bridge stp_state 0 forward_delay 0\n\
             ip link set br0 up\n\
             ip addr add {}/24 dev br0\n",
            settings.outside()
        );
        run::ok(run::host("unshare", [net.as_os_str(), "sh".as_ref(), "-ec".as_ref(), script.as_ref()]))?;
        fabric.nft(TABLE)?;
        Ok(fabric)
    }

    /// A command in the fabric's network namespace and the host's everything else.
    fn enter<S: AsRef<OsStr>>(&self, argv: impl IntoIterator<Item = S>) -> Command {
        let mut command = run::host("nsenter", enter_args(&self.netns));
        command.args(argv);
        command
    }

    fn nft(&self, script: &str) -> Result<()> {
        run::feed(self.enter(["nft", "-f", "-"]), script.as_bytes()).map(drop)
    }

    pub(crate) fn cut_pair(&self, from: MachineName, to: MachineName) -> Result<()> {
        self.nft(&add("pair", &pair(from, to)))
    }

    pub(crate) fn cut_port(&self, machine: MachineName) -> Result<()> {
        self.nft(&add("port", &port(machine)))
    }

    pub(crate) fn heal_pair(&self, from: MachineName, to: MachineName) -> Result<()> {
        self.nft(&delete("pair", &pair(from, to)))
    }

    pub(crate) fn heal_port(&self, machine: MachineName) -> Result<()> {
        self.nft(&delete("port", &port(machine)))
    }

    pub(crate) fn pause(&self, machine: MachineName, paused: bool) -> Result<()> {
        let change = if paused { add } else { delete };
        self.nft(&change("paused", &port(machine)))
    }

    pub(crate) fn heal_all(&self) -> Result<()> {
        self.nft("flush set bridge cut pair\nflush set bridge cut port\n")
    }

    pub(crate) fn cuts(&self) -> Result<Vec<Cut>> {
        let json = run::ok(self.enter(["nft", "-j", "list", "table", "bridge", "cut"]))?;
        parse_cuts(&json).map_err(|source| Error::Description { path: self.netns.clone(), source })
    }
}

/// Where the namespaces' files are. The lab's own, so `/run/netns` stays as it is.
pub(crate) fn netns_dir(dir: &Path) -> PathBuf {
    dir.join("netns")
}

/// Lets go of every namespace of the lab. Lazily: a process that is still dying may look at it.
pub(crate) fn release(dir: &Path) -> Result<()> {
    let mut errors = Vec::new();
    for file in fs::read_dir(netns_dir(dir)).into_iter().flatten().flatten() {
        match unmount(file.path(), UnmountFlags::DETACH) {
            // The file of an `up` that was interrupted before the mount.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(errno) => errors.push(Error::os("unmount", file.path())(errno)),
        }
    }
    Error::all(errors)
}

fn enter_args(netns: &Path) -> [std::ffi::OsString; 2] {
    let mut net = std::ffi::OsString::from("--net=");
    net.push(netns);
    [net, "--".into()]
}

fn pair(from: MachineName, to: MachineName) -> String {
    format!("\"{from}\" . \"{to}\"")
}

fn port(machine: MachineName) -> String {
    format!("\"{machine}\"")
}

fn add(set: &str, element: &str) -> String {
    format!("add element bridge cut {set} {{ {element} }}\n")
}

/// Adding first makes it right for an element that is not there; both happen in one transaction.
fn delete(set: &str, element: &str) -> String {
    format!("{}delete element bridge cut {set} {{ {element} }}\n", add(set, element))
}

/// The sets `pair` and `port` in nft's JSON (libnftables-json(5)).
fn parse_cuts(json: &str) -> Result<Vec<Cut>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Listing {
        nftables: Vec<Item>,
    }
    #[derive(Deserialize)]
    struct Item {
        set: Option<Set>,
    }
    #[derive(Deserialize)]
    struct Set {
        name: String,
        #[serde(default)]
        elem: Vec<Element>,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Element {
        Pair { concat: (String, String) },
        Port(String),
    }
    let listing: Listing = serde_json::from_str(json)?;
    let sets = listing.nftables.into_iter().filter_map(|item| item.set).filter(|set| set.name != "paused");
    let mut cuts: Vec<Cut> = sets
        .flat_map(|set| set.elem)
        .map(|element| match element {
            Element::Pair { concat: (from, to) } => Cut::OneWay(from, to),
            Element::Port(machine) => Cut::Cable(machine),
        })
        .collect();
    cuts.sort_by_key(ToString::to_string);
    Ok(cuts)
}

/// A client outside the fleet: the host's programs and files, with one address in the machines' network.
#[derive(Debug, Clone)]
pub struct Outside {
    pub(crate) fabric: Fabric,
    pub(crate) cgroup: PathBuf,
    pub(crate) address: Ipv4Addr,
}

impl Outside {
    /// The client's address, also the machines' default gateway.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// A command prepared to run outside; standard streams are the caller's to set. It ends with the lab.
    pub fn command<S: AsRef<OsStr>>(&self, argv: &[S]) -> Command {
        let mut command = run::in_cgroup(&self.cgroup);
        command.arg("nsenter").args(enter_args(&self.fabric.netns)).args(argv);
        command
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// If it could not be started; how it ended is in the [`Output`].
    pub fn exec<S: AsRef<OsStr>>(&self, argv: &[S]) -> Result<Output> {
        run::output(self.command(argv))
    }

    /// Runs to the end and gives standard output without its last newline.
    ///
    /// # Errors
    /// If it did not end with exit code 0; the error carries its standard error.
    pub fn exec_ok<S: AsRef<OsStr>>(&self, argv: &[S]) -> Result<String> {
        let out = self.exec(argv)?;
        if out.success() {
            Ok(out.stdout.trim_end_matches('\n').to_owned())
        } else {
            Err(run::failed(format!("outside: {}", run::show_words(argv.iter().map(AsRef::as_ref))), &out))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> MachineName {
        text.parse().unwrap()
    }

    #[test]
    fn the_table_hooks_before_br_netfilter() {
        assert_eq!(TABLE.matches("priority -200").count(), 3);
        assert!(!TABLE.contains("chain fwd"), "fwd is a keyword of nft");
    }

    #[test]
    fn elements_are_quoted_and_deleting_is_idempotent() {
        assert_eq!(
            add("pair", &pair(name("m1"), name("m2"))),
            "add element bridge cut pair { \"m1\" . \"m2\" }\n"
        );
        assert_eq!(
            delete("port", &port(name("m3"))),
            "add element bridge cut port { \"m3\" }\ndelete element bridge cut port { \"m3\" }\n"
        );
    }

    #[test]
    fn cuts_are_read_from_nft_and_pauses_are_none() {
        let json = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}}, {"table": {"name": "cut"}},
            {"set": {"name": "pair", "elem": [{"concat": ["m2", "m1"]}, {"concat": ["m1", "m2"]}]}},
            {"set": {"name": "port", "elem": ["m3"]}}, {"set": {"name": "paused", "elem": ["m4"]}},
            {"set": {"name": "empty"}}]}"#;
        let cut = |a: &str, b: &str| Cut::OneWay(a.into(), b.into());
        assert_eq!(parse_cuts(json).unwrap(), [cut("m1", "m2"), cut("m2", "m1"), Cut::Cable("m3".into())]);
    }
}
