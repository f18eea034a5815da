//! Network namespaces with one cable each to a bridge of this machine: what a unit with an address of its own runs in.
//!
//! Not here: which address, and for whom. Invariant: everything may be repeated; what is right already is not touched,
//! and a namespace that is there is kept, because somebody may run in it.

use crate::{Kernel, NetError};
use ipnet::Ipv4Net;
use rustix::{
    fs::statfs,
    mount::{UnmountFlags, mount_bind, unmount},
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe},
};
use std::{
    fs::{self, File},
    io,
    net::Ipv4Addr,
    os::fd::{AsFd, AsRawFd},
    panic::resume_unwind,
    path::{Path, PathBuf},
    thread,
};

/// The namespace of the calling thread.
const OWN: &str = "/proc/thread-self/ns/net";
/// What statfs(2) says of a namespace's file (linux/magic.h).
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// A namespace and its cable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leg {
    /// The namespace's file, as `ip netns` keeps them.
    pub path: PathBuf,
    /// The machine's end of the cable; the other one is `eth0`.
    pub port: String,
    /// Where the cable is plugged in. Made if there is none of that name.
    pub bridge: String,
    /// The bridge's own address, which is the way out.
    pub gateway: Ipv4Addr,
    /// The address inside, with the subnet's length.
    pub address: Ipv4Net,
    /// What may be sent at once, in bytes.
    pub mtu: u32,
}

/// Makes the namespace, its cable and what is inside as `leg` has it, in the calling thread's network namespace. A cable
/// that has another address gets this one. Blocks for some milliseconds.
pub fn attach(leg: &Leg) -> Result<(), NetError> {
    let host = own()?;
    let bridge = within(&host, async |kernel| {
        kernel.ensure_bridge(&leg.bridge, leg.gateway, leg.address.prefix_len()).await
    })?;
    let inside = open_or_make(&leg.path)?;
    if !within(&inside, async |kernel| kernel.exists("eth0").await)? {
        within(&host, async |kernel| kernel.remove_link(&leg.port).await)?;
    }
    within(&inside, async |kernel| kernel.ensure_leg(leg, host.as_raw_fd()).await)?;
    within(&host, async |kernel| kernel.ensure_port(&leg.port, bridge, leg.mtu).await)
}

/// Removes the namespace's file and the cable, whatever of them is there. Who still runs inside is alone from then on.
pub fn detach(path: &Path, port: &str) -> Result<(), NetError> {
    let wrong = |source| NetError::Namespace { path: path.to_owned(), source };
    within(&own()?, async |kernel| kernel.remove_link(port).await)?;
    if is_namespace(path) {
        unmount(path, UnmountFlags::DETACH).map_err(|error| wrong(error.into()))?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(wrong(error)),
        _ => Ok(()),
    }
}

fn own() -> Result<File, NetError> {
    File::open(OWN).map_err(|source| NetError::Namespace { path: OWN.into(), source })
}

fn is_namespace(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| u64::try_from(found.f_type).is_ok_and(|kind| kind == NSFS_MAGIC))
}

fn open_or_make(path: &Path) -> Result<File, NetError> {
    let wrong = |source| NetError::Namespace { path: path.to_owned(), source };
    if !is_namespace(path) {
        fs::create_dir_all(path.parent().unwrap_or_else(|| Path::new("/"))).map_err(wrong)?;
        File::create(path).map_err(wrong)?;
        // A thread of its own, which takes its namespace to its end.
        let made = thread::scope(|scope| scope.spawn(|| make(path)).join());
        if let Err(error) = made.unwrap_or_else(|panic| resume_unwind(panic)) {
            let _ = fs::remove_file(path);
            return Err(wrong(error));
        }
    }
    File::open(path).map_err(wrong)
}

/// Leaves the calling thread's network for a new one, and mounts that at `path`.
fn make(path: &Path) -> io::Result<()> {
    #[expect(unsafe_code, reason = "rustix has no safe way into a new namespace")]
    // SAFETY: only UnshareFlags::FILES could make a thread lose sight of descriptors.
    unsafe {
        unshare_unsafe(UnshareFlags::NEWNET)?;
    }
    mount_bind(OWN, path)?;
    Ok(())
}

/// Runs `work` with a connection to the kernel's network in `namespace`, on a thread of its own.
fn within<T: Send>(
    namespace: &File,
    work: impl AsyncFnOnce(&Kernel) -> Result<T, NetError> + Send,
) -> Result<T, NetError> {
    let inside = || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|error| NetError::Socket(error.into()))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(NetError::Socket)?.block_on(async { work(&Kernel::connect().await?).await })
    };
    thread::scope(|scope| scope.spawn(inside).join()).unwrap_or_else(|panic| resume_unwind(panic))
}
