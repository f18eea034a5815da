//! nginx under a storm, names under load, processor time: rows 10, 11 and 12.

use super::{Rig, Row};
use crate::cluster;
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

/// Row 11: keys with values that nobody can use, and good ones that come and go, fifty times a second.
pub fn storm(rig: &Rig, seconds: u64) -> Result<Row> {
    let cluster = &rig.cluster;
    cluster.m1().write_file("/root/churn.py", include_str!("churn.py"), 0o644)?;
    let addresses: Vec<_> = rig.copies()?.into_iter().map(|(_, address)| address).collect();
    // The first half stays: one of it is good, the others are garbage. Three come and go, so that the round of them is no part
    // of the interval between reloads, which would find the same each time.
    let (first, last) = addresses.first().zip(addresses.last()).context("copies are registered")?;
    let garbage = ["10.1.0.1:80; } server {", "${evil}", "300.1.1.1:80"];
    let values = [first, garbage[0], garbage[1], last, garbage[2], first];
    let quoted: Vec<_> = values.iter().map(|value| format!("'{value}'")).collect();
    let since = super::now();
    let begun = Instant::now();
    let (account, ()) = rig.under_load_at(
        &rig.nginx(),
        "someapp",
        &["--rate", "300", "--connections", "32", "--no-keep-alive"],
        || cluster.sh(&format!("python3 churn.py storm 50 {seconds} {}", quoted.join(" "))).map(drop),
    )?;
    let took = begun.elapsed();
    let from = format!("--since=@{}", since / 1000);
    let text = cluster.m1().exec_ok(&["journalctl", "--quiet", "--output=cat", "--unit=muster", &from])?;
    let reloads = text.lines().filter(|line| line.contains("nginx reloaded")).count();
    let shown = cluster.muster(&["services", "-o", "json"])?;
    rig.withdraw("storm")?;
    let shown: serde_json::Value = serde_json::from_str(&shown)?;
    let broken = shown["quarantined"].as_array().into_iter().flatten();
    let told =
        broken.filter_map(|entry| entry["key"].as_str()).any(|key| key.starts_with("/services/storm/"));
    // Four for removals may be ahead of the rest.
    let allowed = took.as_secs_f64() / 2.0 + 4.0;
    Ok(Row {
        number: Some(11),
        promise: "nginx under 50 changes a second with garbage among them: ≤ 1 reload in 2 s (and 4 ahead), other services untouched",
        how: format!(
            "`churn.py storm 50 {seconds}` with `{}` and `{}` among the values, 300 GET/s for someapp, each on a connection of its own, because nginx ends idle ones at every reload",
            garbage[0], garbage[1]
        ),
        figure: format!(
            "{reloads} reloads in {:.0} s, broken value {} in `muster services`; {}",
            took.as_secs_f64(),
            if told { "told" } else { "not told" },
            account.line()
        ),
        peer: "confd: stuck at the first broken value".to_owned(),
        held: reloads >= 1 && reloads as f64 <= allowed && account.count("failed") == 0 && told,
    })
}

/// Row 12: the name server of a machine, asked on that machine.
pub fn names(rig: &Rig, pace: u32, time: Duration) -> Result<Row> {
    let m3 = rig.cluster.lab.machine("m3")?;
    let program = cluster::built()?.join("examples/dns_load");
    ensure!(program.is_file(), "{} was not built: use `make bench-discovery`", program.display());
    m3.write_file("/root/dns_load", fs::read(&program)?, 0o755)?;
    let script = format!("/root/dns_load {pace} {} 127.0.0.54:53", time.as_secs());
    let text = m3.exec_ok(&["sh", "-c", &script])?;
    let row = |name: &str| -> Result<Vec<f64>> {
        let line = text
            .lines()
            .find(|line| line.starts_with(name))
            .with_context(|| format!("no `{name}` in {text}"))?;
        line.split_whitespace().skip(1).map(|word| word.parse().context("a number")).collect()
    };
    let (dns, echo) = (row("dns")?, row("echo")?);
    let asked = f64::from(pace) * time.as_secs_f64();
    let show = |of: &[f64]| format!("p50 {:.0}, p99 {:.0}, longest {:.0} µs", of[1], of[2], of[3]);
    Ok(Row {
        number: Some(12),
        promise: "names: p99 < 1 ms at 5,000 questions/s on loopback, all answered",
        how: format!("`{script}` on m3, four copies registered"),
        figure: format!("{}; {:.0} of {asked:.0} answered", show(&dns), dns[0]),
        peer: format!("bare UDP echo, same machine and pace: {}", show(&echo)),
        held: dns[2] < 1000.0 && dns[0] == asked,
    })
}

/// Row 10: what `make bench-gateway` wrote last.
pub fn efficiency(root: &Path) -> Result<Row> {
    let text = fs::read_to_string(root.join("bench/gateway.md"))
        .context("`make bench-gateway` writes bench/gateway.md")?;
    let ratio = |method: &str, balancer: &str| -> Result<f64> {
        let (_, part) =
            text.split_once(&format!("## {method}")).with_context(|| format!("no {method} in gateway.md"))?;
        let line = part
            .lines()
            .find(|line| line.starts_with(&format!("| {balancer} ")))
            .context("no such balancer")?;
        line.split('|').nth(3).and_then(|cell| cell.trim().parse().ok()).context("no ratio")
    };
    let (get, post) = (ratio("GET", "gateway")?, ratio("POST", "gateway")?);
    Ok(Row {
        number: Some(10),
        promise: "CPU per request ≤ 1.25 × nginx, one thread, and ≤ 0.55 × caddy",
        how: "`make bench-gateway` ([gateway.md](gateway.md))".to_owned(),
        figure: format!("GET {get:.2}, POST {post:.2} × nginx"),
        peer: format!(
            "haproxy {:.2} and {:.2}, caddy {:.2} and {:.2} × nginx",
            ratio("GET", "haproxy")?,
            ratio("POST", "haproxy")?,
            ratio("GET", "caddy")?,
            ratio("POST", "caddy")?
        ),
        held: get <= 1.25
            && post <= 1.25
            && get <= 0.55 * ratio("GET", "caddy")?
            && post <= 0.55 * ratio("POST", "caddy")?,
    })
}
