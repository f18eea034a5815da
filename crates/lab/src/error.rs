//! The one error type of the crate. Variants are situations; each text says what was tried, what went wrong and,
//! where there is one, the next thing to do. An underlying error is the `source` and is not repeated in the text.

use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use crate::preflight::Missing;

/// Why something about a lab failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The box cannot run a lab as it is.
    #[error("{0}")]
    Missing(Missing),
    /// A lab's name is not usable as a prefix of things on the host.
    #[error(
        "lab name `{name}` is not usable: 1 to 8 letters a-z, because network and cgroup names begin with it"
    )]
    Name {
        /// What was given.
        name: String,
    },
    /// Too many machines, or none.
    #[error("a lab has 1 to {max} machines, not {n}")]
    Count {
        /// How many were asked for.
        n: usize,
        /// The most there can be.
        max: usize,
    },
    /// A path for a machine's disk that would end up somewhere else.
    #[error("cannot write `{path}` on a machine's disk: {why}")]
    DiskPath {
        /// The path inside the machine.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// There is no lab of that name.
    #[error("lab `{name}` is not up; `up` brings it up")]
    NotUp {
        /// The lab.
        name: String,
    },
    /// The lab exists, but was made with another setting that cannot change while it is up.
    #[error(
        "lab `{name}` is up with {setting} {is}, and {asked} was asked for; use the same, or `down` it first"
    )]
    Differs {
        /// The lab.
        name: String,
        /// Which setting.
        setting: &'static str,
        /// The lab's value.
        is: String,
        /// The wanted value.
        asked: String,
    },
    /// The lab has no such machine.
    #[error("lab `{lab}` has no machine `{machine}`; it has {known}")]
    NoMachine {
        /// The lab.
        lab: String,
        /// What was asked for.
        machine: String,
        /// What there is, for the reader.
        known: String,
    },
    /// The machine has no PID 1.
    #[error("{machine} is not running; `start` it first")]
    Off {
        /// The machine.
        machine: String,
    },
    /// The machine has a PID 1, and must not for this.
    #[error("{machine} is running; `stop` or `kill` it first")]
    Running {
        /// The machine.
        machine: String,
    },
    /// Nothing can run in a frozen machine: the command would hang until `resume`.
    #[error("{machine} is paused, so nothing can run in it; `resume` it first")]
    Paused {
        /// The machine.
        machine: String,
    },
    /// A boot ended before the machine was ready.
    #[error("{machine} died while it was booting; its console ends with:\n{console}")]
    Died {
        /// The machine.
        machine: String,
        /// Last lines of its console.
        console: String,
    },
    /// A boot did not finish in time. The machine is left as it is, to be looked at.
    #[error(
        "{machine} ({address}) did not finish booting within {} s; it is left running, see `log`. Waiting jobs:\n{jobs}\n\
         its console ends with:\n{console}", .after.as_secs()
    )]
    BootTimeout {
        /// The machine.
        machine: String,
        /// Its address.
        address: Ipv4Addr,
        /// How long was waited.
        after: Duration,
        /// systemd's job queue.
        jobs: String,
        /// Last lines of its console.
        console: String,
    },
    /// A program could not be started at all.
    #[error("could not run `{program}`")]
    Spawn {
        /// The command line.
        program: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A program ran and failed.
    #[error("`{program}` failed ({status}){}{stderr}", if .stderr.is_empty() { "" } else { ": " })]
    Program {
        /// The command line.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        stderr: String,
    },
    /// A file, directory or mount operation failed.
    #[error("could not {what} {path}")]
    Io {
        /// The verb.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A file of the lab is not what this version writes.
    #[error("{path} is not a lab description of this version; `down` the lab and bring it up again")]
    Description {
        /// The file.
        path: PathBuf,
        /// Where it differs.
        #[source]
        source: serde_json::Error,
    },
    /// Something else holds files of the lab open, so the tmpfs cannot go away.
    #[error("{path} is still in use; `fuser -vm {path}` shows by whom, then `down` again")]
    Busy {
        /// The mount point.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// Several things failed, as when machines boot side by side or at teardown, which goes on after an error.
    #[error("{} things failed:\n{}", .0.len(), join(.0))]
    Several(Vec<Error>),
}

impl Error {
    pub(crate) fn io(what: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Error {
        let path = path.as_ref().to_owned();
        move |source| Error::Io { what, path, source }
    }

    /// As [`Error::io`], for rustix.
    pub(crate) fn os(what: &'static str, path: impl AsRef<Path>) -> impl FnOnce(rustix::io::Errno) -> Error {
        let path = path.as_ref().to_owned();
        move |errno| Error::Io { what, path, source: errno.into() }
    }

    /// Nothing, the one error, or all of them.
    pub(crate) fn all(mut errors: Vec<Error>) -> Result<(), Error> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Error::Several(errors)),
        }
    }
}

/// One error per line with its chain, because several errors cannot have one source.
fn join(errors: &[Error]) -> String {
    let line = |e: &Error| {
        let mut text = e.to_string();
        let mut source = std::error::Error::source(e);
        while let Some(s) = source {
            text.push_str(&format!(": {s}"));
            source = s.source();
        }
        text
    };
    errors.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_errors_show_their_causes() {
        let busy = || Error::io("unmount", "/run/x")(io::Error::from_raw_os_error(16));
        let text = Error::all(vec![busy(), Error::NotUp { name: "x".into() }]).unwrap_err().to_string();
        assert!(text.starts_with("2 things failed:\ncould not unmount /run/x: "), "{text}");
        assert!(text.ends_with("lab `x` is not up; `up` brings it up"), "{text}");
        assert!(Error::all(vec![]).is_ok());
        assert!(matches!(Error::all(vec![busy()]), Err(Error::Io { .. })));
    }
}
