//! Stops that nobody notices: rows 3, 6 and 7.

use super::{Rig, Row};
use crate::Traffic;
use anyhow::{Context, Result, ensure};
use std::time::{Duration, Instant};

/// Rows 3 and 6: every copy is replaced again and again, half the time under GETs and half under POSTs, until enough
/// requests were sent.
pub fn rolling(rig: &Rig, updates: usize, requests: u64) -> Result<Vec<Row>> {
    let cluster = &rig.cluster;
    let since = super::now();
    let (mut accounts, mut peers) = (Vec::new(), Vec::new());
    for method in ["get", "post"] {
        let options = ["--rate", "1000", "--connections", "64", "--method", method];
        let beside = ["--rate", "100", "--connections", "64", "--method", method];
        let nginx = Traffic::start_at(cluster, &rig.nginx(), "someapp", &beside)?;
        let begun = Instant::now();
        let outcome = rig.under_load("someapp", &options, || {
            for round in 0..updates / 2 {
                cluster.sh(&format!(
                    "sed -i 's/^Description=.*/Description=someapp, copy %i, {method} {round}/' someapp-registered@.service"
                ))?;
                cluster.sh("muster update someapp-registered@.service")?;
            }
            // What is left of the requests, with nothing moving, so that the count does not depend on the box.
            let due = Duration::from_secs(requests / 2 / 1000 + 1);
            std::thread::sleep(due.saturating_sub(begun.elapsed()));
            Ok(())
        });
        peers.push(nginx.stop()?);
        accounts.push(outcome?.0);
    }
    let sum = |accounts: &[crate::Account], field: &str| -> u64 {
        accounts.iter().map(|account| account.count(field)).sum()
    };
    // What each copy that ended said of itself, on whichever machine it was.
    let (mut ended, mut late) = (0_u64, 0_u64);
    for machine in cluster.lab.machines() {
        let from = format!("--since=@{}", since / 1000);
        let text = machine.exec_ok(&[
            "journalctl",
            "--quiet",
            "--output=cat",
            &from,
            "--grep",
            "pages, [0-9]+ of them",
        ]);
        for line in text.unwrap_or_default().lines() {
            let count = line.split("pages, ").nth(1).and_then(|rest| rest.split(' ').next());
            late += count
                .and_then(|text| text.parse::<u64>().ok())
                .context("a copy counted its late requests")?;
            ended += 1;
        }
    }
    let replaced = u64::try_from(updates * 4)?;
    ensure!(ended >= replaced, "{ended} copies told their end, {replaced} were replaced");
    let (asked, failed) = (sum(&accounts, "requests"), sum(&accounts, "failed"));
    let (opened, anew) = (sum(&accounts, "opened"), sum(&accounts, "reconnects"));
    Ok(vec![
        Row {
            number: Some(3),
            promise: "a copy is told to stop → no new request reaches it",
            how: format!(
                "{ended} copies stopped by `muster update` under 1000 requests/s; each app counts what comes after SIGTERM"
            ),
            figure: format!("{late} requests after SIGTERM"),
            peer: "0 of 78,144 (pingora prototype)".to_owned(),
            held: late == 0,
        },
        Row {
            number: Some(6),
            promise: "40 rolling restarts, GET and POST: 0 failed of ≥ 100,000, 64 connections, none anew",
            how: format!("`muster update someapp-registered@.service` ×{updates}, four copies each"),
            figure: format!(
                "{asked} requests, {failed} failed, {opened} connections opened for two loads of 64, {anew} of them anew; GET: {}; POST: {}",
                accounts[0].line(),
                accounts[1].line()
            ),
            peer: format!(
                "nginx on m1, reloaded by Muster, 100/s: GET: {}; POST: {}",
                peers[0].line(),
                peers[1].line()
            ),
            held: asked >= requests && failed == 0 && anew == 0 && opened == 128,
        },
    ])
}

/// Row 7: keys of a service change a hundred times a second.
pub fn churn(rig: &Rig, seconds: u64) -> Result<Row> {
    let cluster = &rig.cluster;
    cluster.m1().write_file("/root/churn.py", include_str!("churn.py"), 0o644)?;
    let addresses: Vec<_> = rig.copies()?.into_iter().map(|(_, address)| address).collect();
    ensure!(addresses.len() == 4, "four copies must be registered");
    // Two keys stay, two come and go.
    let script = format!("python3 churn.py churn 100 {seconds} {}", addresses.join(" "));
    cluster.sh(&format!("python3 churn.py churn 100 0 {}", addresses.join(" ")))?;
    let options = ["--rate", "1000", "--connections", "64", "--no-check"];
    let nginx = Traffic::start_at(
        cluster,
        &rig.nginx(),
        "churn",
        &["--rate", "100", "--connections", "64", "--no-check"],
    )?;
    let outcome = rig.under_load("churn", &options, || cluster.sh(&script));
    let peer = nginx.stop()?;
    let (account, said) = outcome?;
    rig.withdraw("churn")?;
    let changes: f64 = said.trim().parse().context("the script printed no number")?;
    Ok(Row {
        number: Some(7),
        promise: "100 membership changes a second for 10 s: 0 failed, 0 reconnects",
        how: format!(
            "`churn.py churn 100 {seconds}` on m1, under 1000 GET/s by clients that do not look at a connection before they use it"
        ),
        figure: format!("{changes:.0} changes/s; {}", account.line()),
        peer: format!("nginx on m1, 100/s: {}", peer.line()),
        held: changes >= 95.0
            && account.count("failed") == 0
            && account.count("reconnects") == 0
            && account.count("opened") == 64,
    })
}
