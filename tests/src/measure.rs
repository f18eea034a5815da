//! How long things take on a running cluster of four machines, beside what the older systems took.
//!
//! Each figure is what a user would stop with a watch: from the command being given to the effect being there,
//! starting the command included. What it is compared with was measured on the real fleet 1.0 with its defaults on a
//! two-core machine of the same kind; the shell pipeline runs here, in the same run. No test asserts any of it.

use crate::{Cluster, eventually};
use anyhow::{Context, Result, ensure};
use lab::Machine;
use std::{
    fs,
    process::Command,
    thread,
    time::{Duration, Instant},
};

/// A unit as fleet's own functional tests have it.
const HELLO: &str =
    "[Service]\nExecStart=/bin/bash -c \"while true; do echo Hello, World %i!; sleep 1; done\"\n";
/// The least that a unit can be.
const TRIVIAL: &str = "[Service]\nExecStart=/bin/sleep infinity\n";
/// In the long run nginx is reloaded every 2 s at most; changes come further apart than that.
const APART: Duration = Duration::from_millis(2100);

/// One row of the table.
#[derive(Debug, Clone)]
pub struct Figure {
    /// What was measured.
    pub what: &'static str,
    /// The samples, in `unit`.
    pub samples: Vec<f64>,
    /// `s`, `ms`, `MB` or `%`.
    pub unit: &'static str,
    /// What the older system took, and which.
    pub peer: String,
    /// What the design wants.
    pub target: &'static str,
}

impl Figure {
    fn seconds(what: &'static str, samples: Vec<Duration>, peer: &str, target: &'static str) -> Self {
        let samples = samples.iter().map(Duration::as_secs_f64).collect();
        Self { what, samples, unit: "s", peer: peer.to_owned(), target }
    }

    fn millis(what: &'static str, samples: &[Duration], peer: String, target: &'static str) -> Self {
        let samples = samples.iter().map(|sample| sample.as_secs_f64() * 1e3).collect();
        Self { what, samples, unit: "ms", peer, target }
    }

    /// The middle sample, and the range where there are several.
    pub fn show(&self) -> String {
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        let digits = if matches!(self.unit, "s" | "%") { 2 } else { 0 };
        let number = |value: f64| format!("{value:.digits$}");
        match sorted.as_slice() {
            [] => "not measured".to_owned(),
            [one] => format!("{} {}", number(*one), self.unit),
            many if many.len() >= 20 => {
                let rank = |share: usize| number(many[(many.len() * share).div_ceil(100) - 1]);
                format!("p50 {}, p99 {} {} ({} runs)", rank(50), rank(99), self.unit, many.len())
            }
            [first, .., last] => {
                let middle = number(sorted[sorted.len() / 2]);
                format!(
                    "{middle} {} ({}–{}, {} runs)",
                    self.unit,
                    number(*first),
                    number(*last),
                    sorted.len()
                )
            }
        }
    }
}

/// The table as Markdown.
pub fn table(figures: &[Figure]) -> String {
    let mut text = "| what | Muster | older system | aim |\n|---|---|---|---|\n".to_owned();
    for figure in figures {
        text.push_str(&format!(
            "| {} | {} | {} | {} |\n",
            figure.what,
            figure.show(),
            figure.peer,
            figure.target
        ));
    }
    text
}

/// The table for a terminal.
pub fn plain(figures: &[Figure]) -> String {
    let rows: Vec<[String; 4]> =
        std::iter::once(["".into(), "Muster".into(), "older system".into(), "aim".into()])
            .chain(figures.iter().map(|f| [f.what.to_owned(), f.show(), f.peer.clone(), f.target.to_owned()]))
            .collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..4).map(width).collect();
    let cell = |row: &[String; 4], column: usize| {
        format!("{}{}", row[column], " ".repeat(widths[column] - row[column].chars().count()))
    };
    rows.iter()
        .map(|row| format!("  {}\n", (0..4).map(|c| cell(row, c)).collect::<Vec<_>>().join("  ").trim_end()))
        .collect()
}

fn timed(action: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let start = Instant::now();
    action()?;
    Ok(start.elapsed())
}

/// `muster start` of four units until it returns, which it does when all four are active.
pub fn start_four(cluster: &Cluster, runs: usize) -> Result<Figure> {
    cluster.m1().write_file("/root/hello@.service", HELLO, 0o644)?;
    cluster.sh("muster submit hello@.service")?;
    let mut samples = Vec::new();
    for _ in 0..runs {
        samples.push(timed(|| cluster.muster(&["start", "hello@{1..4}"]).map(drop))?);
        cluster.muster(&["destroy", "hello@{1..4}"])?;
    }
    Ok(Figure::seconds("start of 4 units until all are active", samples, "fleet 4.2 s", "≤ 0.5 s"))
}

/// A hundred units over four machines: started until all are active, listed, destroyed until none is left.
pub fn hundred(cluster: &Cluster, runs: usize) -> Result<Vec<Figure>> {
    cluster.m1().write_file("/root/triv@.service", TRIVIAL, 0o644)?;
    cluster.sh("muster submit triv@.service")?;
    let (mut starts, mut lists, mut destroys) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..runs {
        starts.push(timed(|| cluster.muster(&["start", "triv@{1..100}"]).map(drop))?);
        let running = cluster
            .units()?
            .iter()
            .filter(|row| row.unit.starts_with("triv@") && row.active == "active")
            .count();
        ensure!(running == 100, "{running} of 100 units are active");
        for _ in 0..5 {
            // Timed inside the machine: entering it takes as long as the list itself.
            let script = "s=$(date +%s%N); muster list-units >/dev/null; e=$(date +%s%N); echo $((e-s))";
            let nanos: u64 = cluster.sh(script)?.trim().parse().context("date printed no number")?;
            lists.push(Duration::from_nanos(nanos));
        }
        destroys.push(timed(|| cluster.muster(&["destroy", "triv@{1..100}"]).map(drop))?);
        let left = cluster
            .units()?
            .iter()
            .filter(|row| row.unit.starts_with("triv@"))
            .filter(|row| !row.active.is_empty())
            .count();
        ensure!(left == 0, "{left} units are left after destroy");
    }
    Ok(vec![
        Figure::seconds("start of 100 trivial units over 4 machines", starts, "fleet 6.3 s", "≤ 2 s"),
        Figure::seconds("their destruction, until none is left", destroys, "fleet 87–108 s", "≤ 2 s"),
        Figure::millis("list-units with 100 units", &lists, "fleet 35 ms".to_owned(), "≤ 10 ms"),
    ])
}

/// What 100 units that run and do nothing cost the daemons in `time`, in hundredths of a processor: m1's with hub,
/// API and nginx role, and the others' with neither.
pub fn idle(cluster: &Cluster, time: Duration) -> Result<Vec<Figure>> {
    cluster.m1().write_file("/root/triv@.service", TRIVIAL, 0o644)?;
    cluster.sh("muster submit triv@.service")?;
    cluster.muster(&["start", "triv@{1..100}"])?;
    // What starting them still brings about is over by then.
    thread::sleep(Duration::from_secs(2));
    let machines = cluster.lab.machines();
    let used = || machines.iter().map(processor_time).collect::<Result<Vec<_>>>();
    let (before, start) = (used()?, Instant::now());
    thread::sleep(time);
    let (after, passed) = (used()?, start.elapsed());
    cluster.muster(&["destroy", "triv@{1..100}"])?;
    let share = |(before, after): (&Duration, &Duration)| {
        after.saturating_sub(*before).as_secs_f64() / passed.as_secs_f64() * 100.0
    };
    let mut samples: Vec<_> = before.iter().zip(&after).map(share).collect();
    let rest = samples.split_off(1.min(samples.len()));
    let figure = |what, samples, peer: &str| Figure {
        what,
        samples,
        unit: "%",
        peer: peer.to_owned(),
        target: "≤ 0.3 %",
    };
    Ok(vec![
        figure("processor, 100 units idle, all roles", samples, "fleetd 1.1 % + etcd 1.6 %"),
        figure("processor, 100 units idle, agent", rest, "fleetd 0.4 %"),
    ])
}

/// What the daemon has used since it began.
fn processor_time(machine: &Machine) -> Result<Duration> {
    let script = "cat /proc/$(systemctl show --property=MainPID --value muster)/task/*/schedstat";
    let text = machine.exec_ok(&["sh", "-c", script])?;
    let nanos = text.lines().filter_map(|line| line.split(' ').next()?.parse::<u64>().ok());
    Ok(Duration::from_nanos(nanos.sum()))
}

/// The machine whose engine leads.
fn leader(cluster: &Cluster) -> Result<Option<Machine>> {
    let Ok(record) = cluster.muster(&["kv", "get", "/muster/v1/engine/leader"]) else { return Ok(None) };
    let ids = cluster.list("machines")?;
    let named = ids.iter().find(|row| row["id"].as_str().is_some_and(|id| record.contains(id)));
    let name = named.and_then(|row| row["name"].as_str());
    Ok(name.map(|name| cluster.lab.machine(name)).transpose()?)
}

/// The leader's daemon is killed and does not come back; until another machine leads. m1 has the hub, so whenever it
/// leads it is made to give that up first.
pub fn leader_kill(cluster: &Cluster, runs: usize) -> Result<Figure> {
    let mut samples = Vec::new();
    for _ in 0..runs {
        let mut first = None;
        eventually("another machine than m1 leads", || {
            first = leader(cluster)?.filter(|machine| machine.name() != "m1");
            if first.is_none() {
                cluster.muster(&["kv", "rm", "/muster/v1/engine/leader"]).ok();
                thread::sleep(Duration::from_millis(500));
            }
            Ok(first.is_some())
        })?;
        let first = first.context("it leads")?;
        // It goes on for a moment after it was elected.
        thread::sleep(Duration::from_secs(1));
        let start = Instant::now();
        // The stop is only so that systemd does not start it again.
        let kill = "systemctl kill --signal=KILL --kill-who=main muster; systemctl stop muster";
        first.exec_ok(&["sh", "-c", kill])?;
        eventually("another one leads", || {
            Ok(leader(cluster)?.is_some_and(|machine| machine.name() != first.name()))
        })?;
        samples.push(start.elapsed());
        first.exec_ok(&["systemctl", "start", "muster"])?;
        let machines = cluster.lab.machines().len();
        eventually("the machine is back", || Ok(cluster.list("machines")?.len() == machines))?;
    }
    Ok(Figure::seconds("leader killed until another leads", samples, "fleet: a lease of 10 s", "≤ 2 s"))
}

/// The power of `victim` is cut; until each of `units` is active on another machine.
pub fn power_cut(cluster: &Cluster, victim: &Machine, units: &[String]) -> Result<Duration> {
    until_elsewhere(cluster, victim, units, || Ok(victim.kill()?))
}

/// `victim` is told to shut down; until each of `units` is active on another machine.
pub fn orderly_stop(cluster: &Cluster, victim: &Machine, units: &[String]) -> Result<Duration> {
    let shut_down = || Ok(victim.exec_ok(&["systemctl", "--no-block", "poweroff"]).map(drop)?);
    until_elsewhere(cluster, victim, units, shut_down)
}

fn until_elsewhere(
    cluster: &Cluster,
    victim: &Machine,
    units: &[String],
    end: impl FnOnce() -> Result<()>,
) -> Result<Duration> {
    let start = Instant::now();
    end()?;
    eventually("the machine's units are active elsewhere", || {
        let running = cluster.units()?;
        let elsewhere = |unit: &String| {
            running.iter().any(|row| {
                row.unit == *unit
                    && row.active == "active"
                    && row.scheduled
                    && !row.machine.is_empty()
                    && row.machine != victim.name()
            })
        };
        Ok(units.iter().all(elsewhere))
    })?;
    Ok(start.elapsed())
}

/// The row for [`power_cut`].
pub fn power_cut_figure(samples: Vec<Duration>) -> Figure {
    Figure::seconds("power cut until its units are active elsewhere", samples, "fleet 28 s", "≤ 8 s")
}

/// The row for [`orderly_stop`].
pub fn orderly_stop_figure(samples: Vec<Duration>) -> Figure {
    Figure::seconds("orderly shutdown until its units are active elsewhere", samples, "fleet 5.1 s", "≤ 1 s")
}

/// A key is put, until nginx sends a request to the new address. `host` is the service's name for nginx on `machine`.
fn put_until_served(
    machine: &Machine,
    host: &str,
    targets: &[(String, String)],
    rounds: usize,
) -> Result<Vec<Duration>> {
    let mut samples = Vec::new();
    for round in 0..rounds {
        let (instance, address) = &targets[round % targets.len()];
        // All in one shell on the machine, so that entering it is not measured.
        let script = format!(
            "s=$(date +%s%N); muster kv set /services/{host}/upstream/{host} {address} >/dev/null; \
             for i in $(seq 1000); do curl -s -m 2 -H 'Host: {host}' http://127.0.0.1/ | grep -q '{instance} at' && break; done; \
             e=$(date +%s%N); echo $((e-s))"
        );
        let nanos: u64 =
            machine.exec_ok(&["sh", "-c", &script])?.trim().parse().context("date printed no number")?;
        samples.push(Duration::from_nanos(nanos));
        thread::sleep(APART);
    }
    Ok(samples)
}

/// The pipeline that every tutorial of the time showed, on etcd's own client: watch, read, render, check, reload.
const PIPELINE: &str = r#"export ETCDCTL_API=3 ETCDCTL_ENDPOINTS=$HUB
render() {
    printf 'upstream piped { server %s; }\nserver { listen 80; server_name piped; location / { proxy_pass http://piped; } }\n' \
        "$(/usr/bin/etcdctl get --print-value-only /services/piped/upstream/piped)" >/etc/nginx/conf.d/piped.conf
    nginx -t -q && nginx -s reload
}
/usr/bin/etcdctl watch /services/piped/upstream/piped | while read -r word; do [ "$word" = PUT ] && render; done
"#;

/// Key put until nginx serves it: Muster's own nginx role on m1 beside the shell pipeline on m2, in turns.
pub fn put_to_nginx(cluster: &Cluster, rounds: usize) -> Result<Figure> {
    let targets: Vec<(String, String)> = cluster
        .upstreams()?
        .into_iter()
        .filter_map(|(key, address)| Some((key.rsplit('/').next()?.to_owned(), address)))
        .take(2)
        .collect();
    ensure!(targets.len() == 2, "two copies of someapp must run");
    let (m1, m2) = (cluster.m1(), cluster.lab.machine("m2")?);
    let hub = format!("http://{}:2379", m1.address());
    m2.write_file("/root/pipeline.sh", PIPELINE, 0o755)?;
    m2.exec_ok(&["systemctl", "start", "nginx.service"])?;
    let environment = format!("--setenv=HUB={hub}");
    m2.exec_ok(&["systemd-run", "--quiet", "--unit=pipeline", &environment, "sh", "/root/pipeline.sh"])?;
    // The watch is there once a first round went through.
    eventually("the pipeline serves", || {
        let first = format!(
            "muster kv set /services/piped/upstream/piped {} >/dev/null; sleep 0.3; curl -s -m 2 -H 'Host: piped' http://127.0.0.1/ | grep -q ' at '",
            targets[1].1
        );
        Ok(m2.exec(&["sh", "-c", &first])?.success())
    })?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    put_until_served(&m1, "probe", &targets, 2)?;
    for _ in 0..rounds.div_ceil(2) {
        ours.extend(put_until_served(&m1, "probe", &targets, 2)?);
        theirs.extend(put_until_served(&m2, "piped", &targets, 2)?);
    }
    m2.exec_ok(&["systemctl", "stop", "pipeline.service"])?;
    m2.exec_ok(&["sh", "-c", "rm /etc/nginx/conf.d/piped.conf; systemctl stop nginx"])?;
    cluster.sh("muster kv rm /services/probe/upstream/probe; muster kv rm /services/piped/upstream/piped")?;
    theirs.sort();
    let peer = format!("shell pipeline, same run: {} ms", theirs[theirs.len() / 2].as_millis());
    Ok(Figure::millis("key put until nginx serves it", &ours, peer, "≤ 60 ms"))
}

/// Resident memory of the daemons: m1's with hub and nginx role, the others' with neither.
pub fn memory(cluster: &Cluster) -> Result<Vec<Figure>> {
    let mut samples = Vec::new();
    for machine in cluster.lab.machines().iter().filter(|machine| machine.is_running()) {
        let script =
            "grep VmRSS /proc/$(systemctl show --property=MainPID --value muster)/status | tr -dc 0-9";
        let kilobytes: f64 = machine.exec_ok(&["sh", "-c", script])?.trim().parse().context("no VmRSS")?;
        samples.push(kilobytes / 1024.0);
    }
    let figure = |what, samples, peer: &str, target| Figure {
        what,
        samples,
        unit: "MB",
        peer: peer.to_owned(),
        target,
    };
    let rest = samples.split_off(1.min(samples.len()));
    Ok(vec![
        figure("memory of the daemon, all roles", samples, "fleetd 17 + etcd 43 + flanneld", "≤ 40 MB"),
        figure("memory of the daemon, agent", rest, "fleetd 17 MB", "≤ 20 MB"),
    ])
}

/// What machine this is: figures mean nothing without it.
pub fn box_facts() -> Result<String> {
    let read = |path| fs::read_to_string(path).with_context(|| format!("cannot read {path}"));
    let cpu = read("/proc/cpuinfo")?;
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or(": unknown")
        .trim_start_matches([' ', '\t', ':']);
    let cores = cpu.matches("processor\t").count();
    let load = read("/proc/loadavg")?;
    let kernel = Command::new("uname").arg("-r").output()?;
    let profile = if cfg!(debug_assertions) { "debug build" } else { "release build" };
    Ok(format!(
        "{cores} cores ({model}), Linux {}, {profile}, load average {} at the end; four machines on this one box.",
        String::from_utf8_lossy(&kernel.stdout).trim(),
        load.split(' ').next().unwrap_or("?")
    ))
}
