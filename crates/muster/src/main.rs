//! `muster`: the daemon and its client in one binary. Which of them, and which roles, is said by the command line
//! and the configuration; called by the name `etcdctl` it understands that program's v2 commands.

/// The daemon.
mod agent;
/// The client's verbs.
mod cli;
/// The configuration.
mod config;
/// Which container a process is the client of.
mod container;
/// What stops units that may not outlive their machine's lease.
mod fence;

use std::process::ExitCode;

fn main() -> ExitCode {
    let called = std::env::args_os().next().unwrap_or_default();
    let name = std::path::Path::new(&called).file_name().unwrap_or_default();
    let outcome = if name == "etcdctl" { cli::etcdctl() } else { cli::run() };
    outcome.unwrap_or_else(|error| {
        eprintln!("{}: {error:#}", name.to_string_lossy());
        ExitCode::FAILURE
    })
}
