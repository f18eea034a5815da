//! The engine alone, without a hub: how many units it places a second, what it costs when a machine dies, and how
//! much memory its view of the cluster takes. Writes bench/engine.md.
//!
//! Not here: reading records and unit files, and writing the schedule; those are the hub's and the driver's time.
//! Invariant: every figure is of a run in which every unit was placed and no unit twice.

use anyhow::{Context, Result, ensure};
use model::{Capacity, DesiredState, MachineId, MachineRecord, Revision, Timestamp, UnitName};
use muster_core::{
    cluster::{Delta, UnitDelta},
    engine::{Effect, Engine, Event},
};
use std::{
    collections::{BTreeSet, HashSet},
    fmt::Write,
    time::{Duration, Instant},
};

/// Machines, units, and rounds.
const SIZES: [(u32, u32, usize); 2] = [(1_000, 30_000, 3), (10_000, 1_000_000, 1)];

/// What kinds of units a cluster has.
#[derive(Clone, Copy)]
enum Mix {
    /// No unit asks for anything.
    Plain,
    /// A fifth each: templates, sidekicks with `MachineOf=`, metadata and limits, plain ones, `Conflicts=`.
    Mixed,
}

struct Round {
    placed: f64,
    single: Duration,
    heal: Duration,
    moved: usize,
    examined: f64,
    memory: f64,
}

fn main() -> Result<()> {
    let mut text = String::from(
        "# The engine alone\n\nWritten by `make bench-engine` (see `bench/engine/src/main.rs`): medians of three rounds with 30,000 \
         units, one round with a million, on one core, without hub and network.\n\n\
         | machines | units | kinds | placements/s, all at once | one start | machines asked a unit | a machine dies: \
         decided in | units moved | memory |\n|---|---|---|---|---|---|---|---|---|\n",
    );
    for (machines, units, number) in SIZES {
        for (kinds, mix) in [("plain", Mix::Plain), ("mixed", Mix::Mixed)] {
            let rounds = (0..number).map(|_| round(machines, units, mix)).collect::<Result<Vec<_>>>()?;
            let median = |figure: fn(&Round) -> f64| {
                let mut figures: Vec<f64> = rounds.iter().map(figure).collect();
                figures.sort_by(f64::total_cmp);
                figures[number / 2]
            };
            writeln!(
                text,
                "| {machines} | {units} | {kinds} | {:.0} | {:.0} µs | {:.1} | {:.1} ms | {:.0} | {:.0} MiB |",
                median(|r| r.placed),
                median(|r| r.single.as_secs_f64() * 1e6),
                median(|r| r.examined),
                median(|r| r.heal.as_secs_f64() * 1e3),
                median(|r| f64::from(u32::try_from(r.moved).unwrap_or(u32::MAX))),
                // Later rounds use again what the first one freed.
                rounds.iter().map(|r| r.memory).fold(0.0, f64::max),
            )?;
            eprintln!("{}", text.lines().last().unwrap_or_default());
        }
    }
    text.push_str(
        "\nPlain: units that ask for nothing. Mixed: a fifth each of template instances, sidekicks with `MachineOf=`, units \
         with `MachineMetadata=` and limits, plain units, and units whose `Conflicts=` keeps six to two hundred of them \
         apart. Memory is what the process has more once the engine knows and has placed everything.\n",
    );
    let path = std::env::current_dir()?.join("bench/engine.md");
    std::fs::write(&path, &text).with_context(|| format!("cannot write {}", path.display()))?;
    print!("{text}");
    Ok(())
}

fn round(machines: u32, units: u32, mix: Mix) -> Result<Round> {
    let mut out = Vec::new();
    let before = memory()?;
    let mut engine = Engine::new(Revision(1), Timestamp(0));
    engine.step(Timestamp(0), Event::Hub((0..machines).map(machine).collect::<Result<_>>()?), &mut out);
    out.clear();
    let (mut spent, mut placed) = (Duration::ZERO, HashSet::new());
    // As a hub would hand them over: some thousand at a time.
    for from in (0..units).step_by(10_000) {
        let deltas = (from..units.min(from + 10_000)).map(|n| unit(n, mix)).collect::<Result<_>>()?;
        let start = Instant::now();
        engine.step(Timestamp(0), Event::Hub(deltas), &mut out);
        spent += start.elapsed();
        for effect in out.drain(..) {
            if let Effect::Schedule(placement) = effect {
                ensure!(placed.insert(placement.unit), "a unit was placed twice");
            }
        }
    }
    ensure!(placed.len() == units as usize, "{} of {units} units were placed", placed.len());
    drop(placed);
    let memory = memory()? - before;
    let examined = engine.examined() as f64 / f64::from(units);

    let mut times = Vec::new();
    for n in 0..1000 {
        let delta = unit(units + n, Mix::Plain)?;
        let start = Instant::now();
        engine.step(Timestamp(0), Event::Hub(vec![delta]), &mut out);
        times.push(start.elapsed());
    }
    times.sort();
    out.clear();

    let start = Instant::now();
    engine.step(Timestamp(0), Event::Hub(vec![Delta::Machine(id(3)?, None)]), &mut out);
    engine.step(Timestamp(0), Event::Overdue(BTreeSet::new()), &mut out);
    let heal = start.elapsed();
    let moved = out.iter().filter(|effect| matches!(effect, Effect::Schedule(_))).count();
    ensure!(moved > 0, "nothing was healed");
    Ok(Round {
        placed: f64::from(units) / spent.as_secs_f64(),
        single: times[500],
        heal,
        moved,
        examined,
        memory,
    })
}

fn id(n: u32) -> Result<MachineId> {
    // Ids are random in life; the order in which machines come must not be that of their ids.
    let mixed = u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Ok(format!("{mixed:016x}{n:016x}").parse()?)
}

fn machine(n: u32) -> Result<Delta> {
    let mut record = MachineRecord::new(format!("m{n}"), [10, 0, 0, 1].into(), "0".to_owned());
    record.metadata =
        [("zone".to_owned(), format!("z{}", n % 50)), ("disk".to_owned(), "ssd".to_owned())].into();
    record.capacity = Some(Capacity { memory: 1 << 40, cpus: 64 });
    Ok(Delta::Machine(id(n)?, Some(record)))
}

fn unit(n: u32, mix: Mix) -> Result<Delta> {
    let plain = (format!("plain{n}.service"), String::new());
    let (name, asks) = match (mix, n % 5) {
        (Mix::Plain, _) => plain,
        (Mix::Mixed, 0) => (format!("app{}@{n}.service", n % 1000), String::new()),
        (Mix::Mixed, 1) => {
            let peer = n - 1;
            (format!("side@{peer}.service"), format!("[X-Fleet]\nMachineOf=app{}@%i.service\n", peer % 1000))
        }
        (Mix::Mixed, 2) => {
            let zone = (n / 5) % 50;
            let asks = format!("MemoryMax=64M\nCPUQuota=5%\n[X-Fleet]\nMachineMetadata=zone=z{zone}\n");
            (format!("zoned@{n}.service"), asks)
        }
        (Mix::Mixed, 3) => plain,
        (Mix::Mixed, _) => {
            let kind = n % 1000;
            (format!("apart{kind}@{n}.service"), format!("[X-Fleet]\nConflicts=apart{kind}@*.service\n"))
        }
    };
    let name: UnitName = name.parse()?;
    let text = format!("[Service]\nExecStart=/bin/true\n{asks}");
    let checked = unit::check(&name, &text).map_err(|problem| anyhow::anyhow!("{problem}"))?;
    let delta = UnitDelta {
        hash: checked.file.hash(),
        desired: DesiredState::Launched,
        launch: 1,
        revision: Revision(1),
        requirements: Some(Ok(checked.requirements)),
    };
    Ok(Delta::Unit(name, Some(delta)))
}

/// What this process has in memory, in MiB.
fn memory() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kib / 1024.0)
}
