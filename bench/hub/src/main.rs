//! The embedded hub beside Debian's etcd: the same loads on both, in turns, on one machine.
//!
//! `hub-bench [ROUNDS] [SECONDS] [FILTER]` writes `bench/hub.md`. Each round runs every load on a fresh etcd and a fresh
//! hub, one after the other; a figure is the median of the rounds, a verdict is about the ratio. Loopback only, single
//! node, every put synced by both. Invariant: both servers are processes of their own, and end with this one.

mod load;
mod report;
mod server;

use crate::report::Report;
use crate::server::{Kind, Server};
use anyhow::{Context, Result};
use std::time::Duration;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let first = arguments.next();
    if first.as_deref() == Some("serve") {
        return server::serve(arguments);
    }
    let rounds: usize = first.map_or(Ok(3), |rounds| rounds.parse()).context("ROUNDS is a number")?;
    let seconds = arguments.next().map_or(Ok(3.0), |s| s.parse()).context("SECONDS is a number")?;
    let filter = arguments.next().unwrap_or_default();
    // The load gets one thread: the other core is the server's.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut report = Report::default();
    for round in 1..=rounds {
        for load in load::all() {
            if !load.name.contains(&filter) {
                continue;
            }
            // Who begins changes with the round.
            let order = if round % 2 == 1 { [Kind::Etcd, Kind::Hub] } else { [Kind::Hub, Kind::Etcd] };
            for kind in order {
                let figures = runtime.block_on(load::run(&load, kind, Duration::from_secs_f64(seconds)))?;
                println!("round {round}, {}, {kind:?}: {figures}", load.name);
                report.add(load.name, kind, figures);
            }
        }
    }
    let text = report.text(rounds, seconds);
    println!("{text}");
    if filter.is_empty() {
        std::fs::write("bench/hub.md", text).context("could not write bench/hub.md")?;
    }
    Ok(())
}

/// A server on fresh data.
fn start(kind: Kind) -> Result<Server> {
    Server::start(kind, tempfile::tempdir()?)
}
