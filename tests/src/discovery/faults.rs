//! What dies, vanishes, or is away: rows 4, 5, 8 and 9.

use super::{Logged, Rig, Row, now, percentile};
use crate::{Traffic, eventually};
use anyhow::{Context, Result, ensure};
use lab::Machine;
use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

const GET: [&str; 4] = ["--rate", "500", "--connections", "64"];
const POST: [&str; 6] = ["--rate", "500", "--connections", "64", "--method", "post"];
const SLOW: [&str; 4] = ["--rate", "300", "--connections", "60"];

/// The last request that was sent to what had died at `since`, in milliseconds after that: one that had to be sent elsewhere.
fn last_lost(logged: &[Logged], since: u64, until: u64) -> Result<u64> {
    let mut meanwhile = logged.iter().filter(|line| (since..until).contains(&line.at)).peekable();
    ensure!(meanwhile.peek().is_some(), "the access log has no request of that time");
    let missed = meanwhile.filter(|line| line.tries > 0).map(|line| line.at);
    Ok(missed.max().unwrap_or(since) - since)
}

/// Row 4: the only process of a copy is killed.
pub fn crashes(rig: &Rig, rounds: usize) -> Result<Row> {
    let entry = rig.entry()?;
    let mut last = Vec::new();
    let mut crash = |copy: usize| -> Result<()> {
        let home =
            rig.cluster.home(&format!("someapp-registered@{copy}.service"))?.context("it runs somewhere")?;
        rig.forget(&entry)?;
        let script = format!(
            "pid=$(docker inspect --format '{{{{.State.Pid}}}}' registered-{copy}); at=$EPOCHREALTIME; kill -9 $pid; echo ${{at%???}} | tr -d .,"
        );
        let killed: u64 =
            home.exec_ok(&["bash", "-c", &script])?.trim().parse().context("bash printed no number")?;
        thread::sleep(Duration::from_secs(2));
        rig.registered(4)?;
        last.push(last_lost(&rig.logged(&entry)?, killed, killed + 2000)? as f64);
        Ok(())
    };
    let copies = || (0..rounds).map(|round| round % 4 + 1);
    let (get, ()) = rig.under_load("someapp", &GET, || copies().try_for_each(&mut crash))?;
    let (post, ()) =
        rig.under_load("someapp", &POST, || copies().take(rounds / 2).try_for_each(&mut crash))?;
    let worst = percentile(&last, 99);
    // A POST that is under way at a crash cannot be repeated: at 500 a second over four copies hardly ever two.
    let (lost, under_way) = (post.count("failed"), u64::try_from(rounds / 2 * 2)?);
    Ok(Row {
        number: Some(4),
        promise: "kill -9 of an app → last request sent there < 50 ms p99; GET 0 failed, POST only those under way",
        how: format!(
            "`kill -9` of the container's process ×{rounds} under 500 GET/s, ×{} under 500 POST/s",
            rounds / 2
        ),
        figure: format!(
            "last after p50 {:.0}, p99 {worst:.0} ms; GET: {}; POST: {lost} failed of {}",
            percentile(&last, 50),
            get.line(),
            post.count("requests")
        ),
        peer: "0 failed GET (pingora prototype)".to_owned(),
        held: worst < 50.0 && get.count("failed") == 0 && lost <= under_way,
    })
}

/// Row 5: a machine's cable is cut.
pub fn black_hole(rig: &Rig) -> Result<Row> {
    let cluster = &rig.cluster;
    let entry = rig.entry()?;
    let running = cluster.units()?;
    let victim = ["m3", "m4"].into_iter().find(|name| running.iter().any(|row| row.machine == **name));
    let victim = cluster.lab.machine(victim.context("no copy runs on m3 or m4")?)?;
    let before: BTreeSet<_> = rig.copies()?.into_iter().collect();
    rig.forget(&entry)?;
    let nginx =
        Traffic::start_at(cluster, &rig.nginx(), "someapp", &["--rate", "100", "--connections", "60"])?;
    let outcome = rig.under_load("someapp", &SLOW, || {
        let cut = now();
        cluster.lab.cut(victim.name())?;
        let begun = Instant::now();
        eventually("the machine's keys are gone", || {
            Ok(!before.is_subset(&rig.copies()?.into_iter().collect()))
        })?;
        let gone = begun.elapsed();
        rig.registered(4)?;
        Ok((cut, gone))
    });
    let peer = nginx.stop()?;
    cluster.lab.join(victim.name())?;
    let (account, (cut, gone)) = outcome?;
    eventually("the machine is back", || Ok(cluster.list("machines")?.len() == 4))?;
    rig.registered(4)?;
    let last = last_lost(&rig.logged(&entry)?, cut, cut + 60_000)?;
    Ok(Row {
        number: Some(5),
        promise: "machine black-holed → no new request sent there after 1 s, its keys gone in ≤ 5.5 s; GET 0 failed, none over 1.5 s",
        how: format!("`bin/lab cut {}` under 300 GET/s on 60 connections", victim.name()),
        figure: format!(
            "last sent there after {last} ms, keys gone after {:.1} s; {}",
            gone.as_secs_f64(),
            account.line()
        ),
        peer: format!("nginx on m1, 100/s: {}", peer.line()),
        held: last < 1000
            && gone.as_secs_f64() <= 5.5
            && account.count("failed") == 0
            && account.slowest() <= 1500.0,
    })
}

/// Sends a signal to the daemons of machines.
fn signal(machines: &[Machine], signal: &str) -> Result<()> {
    let signal = format!("--signal={signal}");
    machines.iter().try_for_each(|machine| {
        machine.exec_ok(&["systemctl", "kill", "--kill-who=main", &signal, "muster"])?;
        Ok(())
    })
}

/// Row 8: the hub is frozen, and meanwhile a copy crashes.
pub fn hub_away(rig: &Rig, time: Duration) -> Result<Row> {
    let cluster = &rig.cluster;
    let entry = rig.entry()?;
    let running = cluster.units()?;
    let victim =
        running.iter().find(|row| row.unit.starts_with("someapp-registered@") && row.machine != "m1");
    let victim = victim.context("all copies run on m1")?;
    let home = cluster.lab.machine(&victim.machine)?;
    let copy = victim.unit.trim_start_matches("someapp-registered@").trim_end_matches(".service").to_owned();
    rig.forget(&entry)?;
    let m1 = [cluster.m1()];
    let (account, killed) = rig.under_load("someapp", &GET, || {
        signal(&m1, "STOP")?;
        let outcome = (|| {
            thread::sleep(time / 2);
            let killed = now();
            home.exec_ok(&["docker", "kill", &format!("registered-{copy}")])?;
            thread::sleep(time / 2);
            Ok(killed)
        })();
        signal(&m1, "CONT")?;
        eventually("all machines are there", || Ok(cluster.list("machines")?.len() == 4))?;
        rig.registered(4)?;
        outcome
    })?;
    let last = last_lost(&rig.logged(&entry)?, killed, killed + 10_000)?;
    Ok(Row {
        number: Some(8),
        promise: "hub down 60 s: 0 failed GET; a crash meanwhile is out of rotation in < 1 s",
        how: format!(
            "SIGSTOP of the hub's daemon for {} s under 500 GET/s, `docker kill` of a copy halfway",
            time.as_secs()
        ),
        figure: format!("{}; last request sent to the dead copy after {last} ms", account.line()),
        peer: "fleet loses services (#746, #1289)".to_owned(),
        held: account.count("failed") == 0 && account.count("requests") > 1000 && last < 1000,
    })
}

/// Row 9: the agents of three of four machines are frozen for longer than their leases live.
pub fn agents_paused(rig: &Rig, time: Duration) -> Result<Row> {
    let cluster = &rig.cluster;
    let m1 = cluster.m1();
    let others: Vec<_> =
        cluster.lab.machines().into_iter().filter(|machine| machine.name() != "m1").collect();
    ensure!(others.len() == 3, "four machines are needed");
    let expected: BTreeSet<String> = cluster
        .upstreams()?
        .into_iter()
        .filter_map(|(key, _)| Some(key.rsplit('/').next()?.to_owned()))
        .collect();
    rig.forget(&m1)?;
    let address = format!("{}:{}", m1.address(), crate::traffic::PORT);
    let nginx =
        Traffic::start_at(cluster, &rig.nginx(), "someapp", &["--rate", "100", "--connections", "32"])?;
    let outcome = rig.under_load_at(&address, "someapp", &GET, || {
        signal(&others, "STOP")?;
        thread::sleep(time);
        let last = now();
        signal(&others, "CONT")?;
        eventually("all machines are there", || Ok(cluster.list("machines")?.len() == 4))?;
        rig.registered(4)?;
        Ok(last)
    });
    let peer = nginx.stop()?;
    let (account, last) = outcome?;
    let logged = rig.logged(&m1)?;
    let answered: BTreeSet<String> = logged
        .iter()
        .filter(|line| (last - 2000..last).contains(&line.at))
        .map(|line| line.instance.clone())
        .collect();
    Ok(Row {
        number: Some(9),
        promise: "mass lease expiry, agents paused 20 s: no healthy copy leaves rotation",
        how: format!(
            "SIGSTOP of three of four daemons for {} s (leases live 5 s) under 500 GET/s at m1's gateway",
            time.as_secs()
        ),
        figure: format!(
            "{} of {} copies answered in the last 2 s of it; {}",
            answered.intersection(&expected).count(),
            expected.len(),
            account.line()
        ),
        peer: format!("nginx on m1, reloaded by Muster, 100/s: {}", peer.line()),
        held: answered.is_superset(&expected) && account.count("failed") == 0,
    })
}
