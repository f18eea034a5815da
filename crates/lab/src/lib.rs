//! A small fleet of machines on one Linux box, for demonstrations and for tests that need the real thing.
//!
//! A machine is a `systemd-nspawn --boot` container with its own systemd, D-Bus, journal, Docker Engine and network
//! namespace; the box's `/usr` is shown read-only, `/etc` and `/var` are its own. All machines of a lab live in one
//! cgroup v2 directory and one tmpfs, which is what makes `kill`, `pause` and `down` exact: nothing of a lab is
//! outside those two, and the box's interfaces, firewall, services and `/etc` are never touched.
//!
//! There is no daemon: every fact about a lab is a file in its tmpfs, so any process may [`Lab::attach`] to a lab
//! that another one brought up, and the one that did may exit.
//!
//! ```no_run
//! use lab::{Lab, LabConfig};
//! let lab = Lab::up(3, LabConfig::default())?;
//! let m1 = lab.machine("m1")?;
//! println!("{}", m1.exec_ok(&["docker", "version"])?);
//! lab.partition("m1", "m2")?;
//! lab.down()?;
//! # Ok::<(), lab::Error>(())
//! ```

/// The one cgroup v2 directory everything runs in: made, killed, frozen, removed.
mod cgroup;
/// What a caller asks for: [`LabConfig`], [`DiskFile`]; and the checked form of it that is kept on disk.
mod config;
/// A machine's root directory: which files it has before its first boot.
mod disk;
/// [`Error`], one variant per situation.
mod error;
/// The network between the machines: a bridge, cables, cuts, and the client outside.
mod fabric;
/// [`Lab`]: up, down, attach.
mod lab;
/// The locks that keep two processes from changing one lab at a time.
mod lock;
/// [`Machine`]: exec, kill, start, stop, pause, files, images.
mod machine;
/// [`missing`]: what the box lacks, and the `apt-get` line that brings it.
mod preflight;
/// Running programs: [`Output`], and errors that carry what the program said.
mod run;
/// What `status` shows.
mod status;

pub use config::{DiskFile, LabConfig, MachineFiles, MachineInfo, MachineName};
pub use error::Error;
pub use fabric::{Cut, Outside};
pub use lab::{Lab, down};
pub use machine::Machine;
pub use preflight::{Missing, missing};
pub use run::Output;
pub use status::{LabStatus, MachineStatus, Power};

/// A result whose error is this crate's.
pub type Result<T, E = Error> = std::result::Result<T, E>;
