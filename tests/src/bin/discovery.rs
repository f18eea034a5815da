//! `make bench-discovery`: the promises of registration and balancing on a lab of its own; rewrites `bench/discovery.md`.
//!
//! Names of parts as arguments run only those and write nothing: `starts`, `keys`, `sidekicks`, `rolling`, `churn`, `crashes`,
//! `black-hole`, `hub`, `agents`, `storm`, `names`, `efficiency`.

use anyhow::{Result, ensure};
use std::{collections::BTreeMap, path::Path, time::Duration};
use story::{
    discovery::{self, Rig, Row, faults, outputs, registration, stops},
    measure,
};

type Part = (&'static str, fn(&Rig, &Path) -> Result<Vec<Row>>);

/// In the order of the least disturbance: who comes later finds a cluster that is whole.
const PARTS: [Part; 12] = [
    ("starts", |rig, _| registration::starts(rig, 50)),
    ("keys", |rig, _| registration::bare_key(rig, 50)),
    ("names", |rig, _| Ok(vec![outputs::names(rig, 5_000, Duration::from_secs(5))?])),
    ("churn", |rig, _| Ok(vec![stops::churn(rig, 10)?])),
    ("storm", |rig, _| Ok(vec![outputs::storm(rig, 20)?])),
    ("rolling", |rig, _| stops::rolling(rig, 10, 110_000)),
    ("crashes", |rig, _| Ok(vec![faults::crashes(rig, 20)?])),
    ("agents", |rig, _| Ok(vec![faults::agents_paused(rig, Duration::from_secs(20))?])),
    ("hub", |rig, _| Ok(vec![faults::hub_away(rig, Duration::from_secs(60))?])),
    ("black-hole", |rig, _| Ok(vec![faults::black_hole(rig)?])),
    ("sidekicks", |rig, _| Ok(vec![registration::sidekicks(rig, 10)?])),
    ("efficiency", |_, root| Ok(vec![outputs::efficiency(root)?])),
];

fn main() -> Result<()> {
    let asked: Vec<String> = std::env::args().skip(1).collect();
    for name in &asked {
        let known: Vec<_> = PARTS.iter().map(|(name, _)| *name).collect();
        ensure!(known.contains(&name.as_str()), "there is no part `{name}`: {}", known.join(", "));
    }
    let rig = Rig::up("discover", [10, 94, 0])?;
    let outcome = run(&rig, &asked);
    rig.cluster.lab.down()?;
    outcome
}

fn run(rig: &Rig, asked: &[String]) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    rig.four_copies()?;
    let mut rows: BTreeMap<(u8, usize), Row> = BTreeMap::new();
    for (name, part) in PARTS {
        if !asked.is_empty() && !asked.iter().any(|asked| asked == name) {
            continue;
        }
        eprintln!("{name}…");
        for row in part(rig, &root)? {
            eprint!(
                "{}",
                discovery::table(std::slice::from_ref(&row)).lines().skip(2).collect::<String>() + "\n"
            );
            rows.insert((row.number.unwrap_or(u8::MAX), rows.len()), row);
        }
    }
    let rows: Vec<Row> = rows.into_values().collect();
    let text = format!(
        "# Registration and discovery\n\nWritten by `make bench-discovery`. {}\n\nLoad comes from outside through the gateway of a machine \
         that has no hub; load, gateways, nginx, hub, four Docker engines and the apps share this box. What was done in which order, \
         and what is a failure: [README.md](README.md). Peers' figures with no run named are from earlier measurements of those programs.\n\n{}",
        measure::box_facts()?,
        discovery::table(&rows)
    );
    if asked.is_empty() {
        std::fs::write(root.join("bench/discovery.md"), text)?;
    }
    Ok(())
}
