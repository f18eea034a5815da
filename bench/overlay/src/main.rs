//! Benchmarks the cluster network on one box, in network namespaces that it makes and removes: throughput and latency
//! beside the same datapath made by hand, how long a comparison with the kernel takes, and how soon a machine that comes
//! is known to the others. Writes bench/overlay.md.
//!
//! `overlay-bench` runs everything; `overlay-bench paths`, `resync` or `joins` a part of it, which is only printed.
//! `--muster FILE` takes another `muster` than the one beside this program.

/// The same by ip(8) and bridge(8), and wireguard-go.
mod by_hand;
/// Leases of machines that do not exist.
mod crowd;
/// The daemon with a hub.
mod joins;
/// Namespaces, shared with the tests of `net`.
#[allow(dead_code, unreachable_pub, reason = "written for another crate's tests, which use more of it")]
#[path = "../../../crates/net/tests/it/lab.rs"]
mod lab;
/// Backends beside each other.
mod paths;
/// One path.
mod pump;
/// Comparisons with the kernel.
mod resync;

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

/// What is said of the peer that cannot be run here.
const FLANNEL: &str = "\nBeside it, measured in November 2026 on another two busy cores: real flanneld 0.21.5, from a lease's transaction until the route is on \
                       all of three\npeers, median of 20: 5.1 ms, at most 8.8, of which etcd's transaction took 4.4 (with 3 peers in the network); \
                       raw netlink, 250 peers × 3 requests one\nafter the other: 25.6 ms. flanneld forgets a peer that goes 3.4 ms after its lease; \
                       Muster a second after it, on purpose: leases that go\ntogether are not believed.\n";

fn main() -> Result<()> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut muster = std::env::current_exe()?.with_file_name("muster");
    if let Some(at) = arguments.iter().position(|argument| argument == "--muster") {
        muster = PathBuf::from(arguments.get(at + 1).context("--muster needs a file")?);
        arguments.drain(at..at + 2);
    }
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let text = match words[..] {
        ["paths"] => paths::report()?,
        ["resync"] => resync::report()?,
        ["joins"] => joins::report(&muster)?,
        [] => return all(&muster),
        _ => bail!("usage: overlay-bench [--muster FILE] [paths | resync | joins]"),
    };
    println!("{text}");
    Ok(())
}

fn all(muster: &Path) -> Result<()> {
    let before = load()?;
    let sections = [joins::report(muster)?, FLANNEL.to_owned(), resync::report()?, paths::report()?];
    let text = format!(
        "# The cluster network\n\nWritten by `make bench-overlay` on Linux {}, {} processors; load average {before} before it, {} after (its own). How it is \
         measured:\n[README.md](README.md#the-cluster-network-beside-one-made-by-hand).\n{}",
        std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim(),
        std::thread::available_parallelism()?,
        load()?,
        sections.concat()
    );
    let file = Path::new("bench/overlay.md");
    std::fs::write(file, &text).with_context(|| format!("failed to write {}", file.display()))?;
    println!("{text}");
    Ok(())
}

/// The average of the last minute.
fn load() -> Result<String> {
    let text = std::fs::read_to_string("/proc/loadavg")?;
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
