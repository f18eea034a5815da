//! From a start until it is served: rows 1, 2 and 13, and a bare key.

use super::{Rig, Row, now, percentile, spread};
use crate::{eventually, measure};
use anyhow::{Context, Result};
use std::{
    thread,
    time::{Duration, Instant},
};

const LOAD: [&str; 4] = ["--rate", "500", "--connections", "32"];

/// Rows 1 and 2: a fifth copy starts again and again under load.
pub fn starts(rig: &Rig, rounds: usize) -> Result<Vec<Row>> {
    let unit = "someapp-registered@5";
    let service = format!("{unit}.service");
    let entry = rig.entry()?;
    let (mut after_check, mut after_listening, mut after_order) = (Vec::new(), Vec::new(), Vec::new());
    let (mut own, mut runtime) = (Vec::new(), Vec::new());
    rig.under_load("someapp", &LOAD, || {
        for _ in 0..rounds {
            rig.forget(&entry)?;
            let ordered = now();
            rig.cluster.muster(&["start", unit])?;
            rig.registered(5)?;
            let first = eventually_served(rig, &entry, unit)? as f64;
            let home = rig.cluster.home(&service)?.context("it runs somewhere")?;
            let said = |unit: &str, needle: &str| -> Result<f64> {
                let at = rig.journal(&home, unit, ordered, needle)?;
                Ok(at.with_context(|| format!("{unit} did not say `{needle}`"))? as f64)
            };
            let listening = said(&service, "serves on port")?;
            let passed = said("muster.service", &format!("instance={unit} health=Passing"))?;
            after_check.push(first - passed);
            after_listening.push(first - listening);
            after_order.push(first - ordered as f64);
            own.push(listening - ordered as f64);
            // The same container without us, on the same machine.
            let begun = now();
            let script = "docker rm --force bare >/dev/null 2>&1; docker run --rm --name bare someapp 2>&1 | { read -r line; date +%s%3N; docker kill bare >/dev/null; cat >/dev/null; }";
            let up: u64 = home.exec_ok(&["sh", "-c", script])?.trim().parse().context("date printed no number")?;
            runtime.push((up - begun) as f64);
            rig.cluster.muster(&["destroy", unit])?;
            rig.registered(4)?;
        }
        Ok(())
    })?;
    let excess: Vec<f64> = after_order.iter().zip(&runtime).map(|(all, docker)| all - docker).collect();
    Ok(vec![
        Row {
            number: Some(1),
            promise: "first check passed → first routed request: p50 < 20, p99 < 100 ms; from listening: < 100 ms p50",
            how: format!("`muster start {unit}` ×{rounds} under 500 requests/s; journal and access log"),
            figure: format!(
                "after the check {}; after listening {}",
                spread(&after_check),
                spread(&after_listening)
            ),
            peer: "sidekick: its key up to 45 s late, then 145 ms p50 to nginx".to_owned(),
            held: percentile(&after_check, 50) < 20.0
                && percentile(&after_check, 99) < 100.0
                && percentile(&after_listening, 50) < 100.0,
        },
        Row {
            number: Some(2),
            promise: "start ordered → first routed request: the container runtime's own time + 150 ms p50",
            how: format!(
                "the same; beside it the unit's own two commands (`docker rm`, `docker run`) by hand ×{rounds} on the same machine"
            ),
            figure: format!(
                "{}, of which until it listens {:.0}",
                spread(&after_order),
                percentile(&own, 50)
            ),
            peer: format!("by hand until it listens: {}", spread(&runtime)),
            held: percentile(&excess, 50) <= 150.0,
        },
    ])
}

/// When the first request that `unit` answered had come.
fn eventually_served(rig: &Rig, entry: &lab::Machine, unit: &str) -> Result<u64> {
    let mut first = None;
    eventually("the new copy answers", || {
        first = rig.logged(entry)?.into_iter().find(|line| line.instance == unit).map(|line| line.at);
        Ok(first.is_some())
    })?;
    first.context("it answered")
}

/// Puts a key by the hub's JSON API, then asks until the other address answers: prints milliseconds, a line each.
const PUT_AND_ASK: &str = include_str!("put_and_ask.py");

/// A bare key until the gateway, nginx and the name server have it.
pub fn bare_key(rig: &Rig, rounds: usize) -> Result<Vec<Row>> {
    let m1 = rig.cluster.m1();
    m1.write_file("/root/put_and_ask.py", PUT_AND_ASK, 0o644)?;
    let upstreams = rig.copies()?;
    let targets: Vec<_> = upstreams
        .iter()
        .take(2)
        .filter_map(|(key, address)| Some(format!("{}={address}", key.rsplit('/').next()?)))
        .collect();
    let ask = |what: &str, rounds: usize, rest: f64| -> Result<Vec<f64>> {
        let script = format!("python3 put_and_ask.py {what} {rounds} {rest} {}", targets.join(" "));
        let text = rig.cluster.sh(&script)?;
        text.lines().map(|line| line.parse().context("the script printed no number")).collect()
    };
    let reloads = rounds / 2;
    let (gateway, nginx, dns) =
        (ask("gateway", rounds, 0.1)?, ask("nginx", reloads, 2.5)?, ask("dns", rounds, 0.1)?);
    rig.withdraw("bare")?;
    Ok(vec![
        Row {
            number: None,
            promise: "a key put → served by the gateway: p50 ≤ 5, p99 ≤ 20 ms",
            how: format!(
                "`put_and_ask.py gateway {rounds}` on m1: etcd's JSON API, then HTTP until the new address answers"
            ),
            figure: format!(
                "p50 {:.1}, p99 {:.1} ms ({} times)",
                percentile(&gateway, 50),
                percentile(&gateway, 99),
                gateway.len()
            ),
            peer: format!("nginx, same script: {}", spread(&nginx)),
            held: percentile(&gateway, 50) <= 5.0 && percentile(&gateway, 99) <= 20.0,
        },
        Row {
            number: None,
            promise: "a key put → served by nginx, no reload pending: p50 ≤ 60 ms",
            how: format!(
                "`put_and_ask.py nginx {reloads}`, 2.5 s apart, each question on a connection of its own (old workers accept some for 100 ms)"
            ),
            figure: spread(&nginx),
            peer: "confd-like pipeline 145 ms p50, 241 p95".to_owned(),
            held: percentile(&nginx, 50) <= 60.0,
        },
        Row {
            number: Some(12),
            promise: "a key put → its name's new address: < 20 ms",
            how: format!("`put_and_ask.py dns {rounds}`: UDP to the containers' name server of m1"),
            figure: format!(
                "p50 {:.1}, p99 {:.1} ms ({} times)",
                percentile(&dns, 50),
                percentile(&dns, 99),
                dns.len()
            ),
            peer: "none".to_owned(),
            held: percentile(&dns, 99) < 20.0,
        },
    ])
}

/// Row 13: the units of the older story, unchanged.
pub fn sidekicks(rig: &Rig, rounds: usize) -> Result<Row> {
    let cluster = &rig.cluster;
    cluster.muster(&["destroy", "someapp-registered@{1..4}"])?;
    rig.registered(0)?;
    cluster.sh("muster submit someapp@.service someapp-discovery@.service")?;
    let (mut put, mut gone) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        cluster.muster(&["start", "someapp@1"])?;
        let begun = Instant::now();
        cluster.muster(&["start", "someapp-discovery@1"])?;
        rig.registered(1)?;
        put.push(begun.elapsed().as_secs_f64() * 1e3);
        let begun = Instant::now();
        cluster.muster(&["destroy", "someapp-discovery@1"])?;
        rig.registered(0)?;
        gone.push(begun.elapsed().as_secs_f64() * 1e3);
        cluster.muster(&["destroy", "someapp@1"])?;
    }
    cluster.muster(&["start", "someapp@{1..4}"])?;
    cluster.muster(&["start", "someapp-discovery@{1..4}"])?;
    rig.registered(4)?;
    // Four keys at one address each, and all of them served before the power is cut.
    thread::sleep(Duration::from_secs(3));
    let running = cluster.units()?;
    let victim = ["m3", "m4"].into_iter().find(|name| running.iter().any(|row| row.machine == **name));
    let victim = cluster.lab.machine(victim.context("nothing runs on m3 or m4")?)?;
    let units: Vec<_> =
        running.iter().filter(|row| row.machine == victim.name()).map(|row| row.unit.clone()).collect();
    let (account, cut) = rig.under_load("someapp", &["--rate", "300", "--connections", "60"], || {
        measure::power_cut(cluster, &victim, &units)
    })?;
    victim.start()?;
    eventually("the machine is back", || Ok(cluster.list("machines")?.len() == 4))?;
    cluster.muster(&["destroy", "someapp-discovery@{1..4}", "someapp@{1..4}"])?;
    rig.registered(0)?;
    Ok(Row {
        number: Some(13),
        promise: "classic sidekicks, unit files unchanged: key < 1 s after start, gone < 1 s after stop; their machine dies: 0 failed GET",
        how: format!(
            "`muster start` and `destroy someapp-discovery@1` ×{rounds}; power cut of {} under 300 GET/s on 60 connections",
            victim.name()
        ),
        figure: format!(
            "put {}; gone {}; {}; elsewhere after {:.1} s",
            spread(&put),
            spread(&gone),
            account.line(),
            cut.as_secs_f64()
        ),
        peer: "the key of the dead copy is served for 15–60 s".to_owned(),
        held: percentile(&put, 100) < 1000.0
            && percentile(&gone, 100) < 1000.0
            && account.count("failed") == 0
            && account.count("requests") > 0,
    })
}
