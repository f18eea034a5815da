//! How long one comparison of the kernel with what it should be takes, with nothing to do and with everything to do.
//! In between, the same entries by `ip -batch` and `bridge -batch`.

use crate::{by_hand, crowd, lab::Cluster, median};
use anyhow::{Result, ensure};
use muster_core::overlay::{Desired, Lease, Op, plan};
use net::Kernel;
use std::{fmt::Write as _, time::Instant};

const ROUNDS: usize = 9;

/// The section of the report.
pub fn report() -> Result<String> {
    let mut text = format!(
        "\n## A comparison of the kernel with what it should be\n\nThe crate `net` alone, {ROUNDS} rounds, medians in ms. *nothing to do*: what is \
         there is read and compared. *all restored*: neighbours,\nforwarding entries and routes of all peers were taken away; read, compared, made \
         again. *one by one*: the same, each operation\nanswered before the next is sent. *by hand*: the same entries, known beforehand, by `ip -batch` \
         and `bridge -batch`. *rules*: the mark\nby which rules are known to be ours, read anew. *peers in*, *all rules*: the peers put into nftables \
         over netlink; by the program `nft`\ntogether with all other rules, as it is done when the rules themselves change.\n\n\
         | peers | nothing to do | all restored | one by one | by hand | all restored / by hand | rules | peers in | all rules |\n\
         |---|---|---|---|---|---|---|---|---|\n"
    );
    for peers in [10, 100, 250, 1000] {
        text += &row(peers)?;
    }
    Ok(text)
}

fn row(peers: u32) -> Result<String> {
    let cluster = Cluster::new(1);
    let machine = &cluster.machines[0];
    let config = crowd::config();
    let strangers: Vec<_> = (0..peers).map(crowd::stranger).collect();
    let leases: Vec<Lease> = strangers.iter().map(crowd::Stranger::lease).collect();
    let entries: Vec<_> = strangers.iter().map(crowd::Stranger::entry).collect();
    let wanted =
        |leases: &[Lease]| Desired::new(&machine.id, &config, machine.subnet, &machine.underlay(), leases);
    let (full, empty) = (wanted(&leases), wanted(&[]));
    ensure!(full.peers.len() == peers as usize, "{} of {peers} peers are wanted", full.peers.len());
    machine.converge(&empty);
    let [mut idle, mut restored, mut singly, mut hand] = <[Vec<f64>; 4]>::default();
    for _ in 0..ROUNDS {
        let times = machine.host.kernel(async |kernel| -> Result<[f64; 3]> {
            let by_one = round(kernel, &full, true).await?;
            clear(kernel, &empty).await?;
            let at_once = round(kernel, &full, false).await?;
            let nothing = round(kernel, &full, false).await?;
            clear(kernel, &empty).await?;
            ensure!(nothing.1 == 0 && at_once.1 == 3 * peers as usize, "the datapath did not come to rest");
            Ok([by_one.0, at_once.0, nothing.0])
        })?;
        singly.push(times[0]);
        restored.push(times[1]);
        idle.push(times[2]);
        hand.push(by_hand::batch(&machine.host, &entries)?.as_secs_f64() * 1e3);
        // What was made by hand is what we would have made.
        let left = machine.plan(&full);
        ensure!(left.is_empty(), "by hand it became something else: {left:?}");
        machine.converge(&empty);
    }
    let firewall = |desired: &Desired| {
        let bridges = ["docker0".to_owned()];
        let desired = std::slice::from_ref(desired);
        muster_core::overlay::Firewall::new(&config, machine.subnet.into(), desired, &bridges)
    };
    let (all, none) = (firewall(&full), firewall(&empty));
    let names = all.sets();
    let [mut marks, mut sets, mut programs] = <[Vec<f64>; 3]>::default();
    machine.host.block_on(async || -> Result<()> {
        for _ in 0..ROUNDS {
            net::apply_firewall(&none).await?;
            let begin = Instant::now();
            net::change_peers(&none, &all).await?;
            sets.push(since(begin));
            let changed = net::rules_mark(&names).await?;
            let begin = Instant::now();
            ensure!(net::rules_mark(&names).await? == changed, "the mark does not stay");
            marks.push(since(begin));
            let begin = Instant::now();
            net::apply_firewall(&all).await?;
            programs.push(since(begin));
        }
        Ok(())
    })?;
    let ratio = median(restored.iter().zip(&hand).map(|(ours, hand)| ours / hand).collect());
    let mut text = format!("| {peers} ");
    for value in [idle, restored, singly, hand] {
        let _ = write!(text, "| {:.2} ", median(value)); // a String takes it all
    }
    let _ = write!(text, "| {ratio:.2} ");
    for value in [marks, sets, programs] {
        let _ = write!(text, "| {:.2} ", median(value)); // the same
    }
    eprintln!("{text}|");
    Ok(text + "|\n")
}

fn since(begin: Instant) -> f64 {
    begin.elapsed().as_secs_f64() * 1e3
}

/// Milliseconds and operations of one comparison.
async fn round(kernel: &Kernel, desired: &Desired, singly: bool) -> Result<(f64, usize)> {
    let begin = Instant::now();
    let ops = plan(desired, &kernel.observe(desired).await?);
    carry_out(kernel, &ops, singly).await?;
    Ok((since(begin), ops.len()))
}

async fn clear(kernel: &Kernel, empty: &Desired) -> Result<()> {
    carry_out(kernel, &plan(empty, &kernel.observe(empty).await?), false).await
}

async fn carry_out(kernel: &Kernel, ops: &[Op], singly: bool) -> Result<()> {
    if singly {
        for op in ops {
            kernel.apply(op).await?;
        }
        return Ok(());
    }
    let mut applied = kernel.apply_all(ops).await;
    match applied.failures.pop() {
        Some(error) => Err(error.into()),
        None => Ok(()),
    }
}
