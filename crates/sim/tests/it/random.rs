//! Thousands of seeds. `SIM_SEEDS=100000` runs more, `SIM_SEED=7` one with its whole trace.

use crate::seeds::{self, number};
use sim::{
    random::{Broken, Scenario},
    trace::Level,
};
use std::time::Duration;

/// As many as take about half a minute on two slow cores.
const SEEDS: u64 = 3000;

#[test]
fn no_seed_breaks_a_rule() {
    if let Some(seed) = number("SIM_SEED") {
        match Scenario::of(seed).run(None, Level::Full) {
            Ok(survived) => {
                println!("{}", survived.trace.join("\n"));
                println!("seed {seed} breaks no rule: {} events, rest {:?}", survived.events, survived.rest);
            }
            Err(broken) => {
                println!("{}", broken.trace.join("\n"));
                panic!("{}", told(seed, &broken));
            }
        }
        return;
    }
    let seeds = number("SIM_SEEDS").unwrap_or(SEEDS);
    let run =
        |seed| Scenario::of(seed).run(None, Level::Off).map(|survived| (survived.events, survived.rest));
    let add = |sum: &mut (u64, Duration), one: (u64, Duration)| *sum = (sum.0 + one.0, sum.1.max(one.1));
    let (events, rest) =
        seeds::all(seeds, run, add).unwrap_or_else(|(seed, broken)| panic!("{}", told(seed, &broken)));
    println!("{seeds} seeds, {events} events, at rest {rest:?} after the faults at the latest");
}

/// The violation, with as few steps as it needs.
fn told(seed: u64, broken: &Broken) -> String {
    let small = broken.scenario.shrink(broken.violation.rule, None);
    let again = small.run(None, Level::Story).expect_err("it was shrunk so that it fails");
    format!("seed {seed} (SIM_SEED={seed} replays it): {}\nwith fewer steps:\n{again}", broken.violation)
}

#[test]
fn a_seed_makes_the_same_run_each_time() {
    for seed in 0..5 {
        let (first, second) = (Scenario::of(seed), Scenario::of(seed));
        assert_eq!(first.to_string(), second.to_string());
        let runs = [first, second].map(|scenario| scenario.run(None, Level::Off));
        let [Ok(first), Ok(second)] = runs else { panic!("seed {seed} fails") };
        assert_eq!((first.events, first.rest), (second.events, second.rest));
    }
}
