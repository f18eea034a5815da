//! What can go wrong between us and the kernel, as situations that an operator can act on.

use crate::wireguard::key::KeyError;
use ipnet::IpNet;
use std::{io, path::PathBuf, process::ExitStatus};

/// Why the kernel's network could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// No netlink socket, or no subscription to changes.
    #[error("could not open a netlink socket")]
    Socket(#[source] io::Error),
    /// The kernel refused.
    #[error("could not {action}")]
    Refused {
        /// What was asked of it.
        action: String,
        /// Its answer.
        #[source]
        source: io::Error,
    },
    /// The kernel's answer makes no sense, or the socket is gone.
    #[error("could not {action}: {reason}")]
    Netlink {
        /// What was asked of it.
        action: String,
        /// What came instead of an answer.
        reason: String,
    },
    /// No answer in time.
    #[error("no answer within {seconds} s from {from}")]
    Timeout {
        /// The kernel, or the program that was run.
        from: String,
        /// How long we waited.
        seconds: u64,
    },
    /// A route to a peer's subnet exists on an interface that is not ours.
    #[error("{destination} has a route over another interface: remove it, or choose another cluster network")]
    RouteTaken {
        /// The peer's subnet.
        destination: IpNet,
    },
    /// There is no such interface.
    #[error("no interface `{name}`")]
    NoInterface {
        /// The name, or the address that no interface has.
        name: String,
    },
    /// No interface was named, and no default route says which to take.
    #[error("no default route over IPv4: name the interface that reaches the other machines")]
    NoDefaultRoute,
    /// The interface has no address that other machines could reach.
    #[error("interface `{name}` has no global IPv4 address")]
    NoAddress {
        /// The interface.
        name: String,
    },
    /// A network namespace could not be made, entered or removed.
    #[error("could not set up the network namespace {path}")]
    Namespace {
        /// Its file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A bridge that is not ours has another address.
    #[error(
        "bridge `{name}` does not have {address}: if it is Docker's, install Docker's drop-in and `systemctl restart \
         docker`, so that it takes this machine's subnet; otherwise name another in [overlay] bridge"
    )]
    ForeignBridge {
        /// The bridge.
        name: String,
        /// What it should have.
        address: String,
    },
    /// A program could not be run.
    #[error("could not run `{program}`: is it installed?")]
    Spawn {
        /// Which one.
        program: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A program ran and failed.
    #[error("`{command}` failed ({status}): {stderr}")]
    Failed {
        /// The program and its arguments.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        stderr: String,
    },
    /// A file of the kernel's could not be written.
    #[error("could not write {path}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file could not be read.
    #[error("could not read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file of this machine's WireGuard key has something else in it.
    #[error(
        "{path} has no WireGuard key in it ({reason}): put the key back, or remove it to have a new one made"
    )]
    DamagedKey {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: KeyError,
    },
    /// WireGuard in the kernel was asked for.
    #[error(
        "this kernel has no WireGuard: load its module (`modprobe wireguard`), or allow the one in userspace"
    )]
    NoKernelWireguard,
    /// Peers that contradict each other.
    #[error("the WireGuard peers contradict each other: {reason}")]
    WireguardPeers {
        /// Which, and how.
        reason: String,
    },
    /// The interface's name is somebody else's.
    #[error(
        "interface `{name}` is there already and no WireGuard device: remove it with `ip link delete {name}`"
    )]
    NameTaken {
        /// The name.
        name: String,
    },
}
