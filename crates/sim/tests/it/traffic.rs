//! Registrars, routers and balancers under faults. `TRAFFIC_SEEDS=100000` runs more seeds, `TRAFFIC_SEED=7` one with its
//! trace.

use crate::seeds::{self, number};
use sim::{
    trace::Level,
    traffic::{Broken, Planted, Rule, Scenario},
};
use std::time::Duration;

/// As many as take some seconds on two slow cores.
const SEEDS: u64 = 600;
/// Seeds tried until a planted mistake shows.
const MISTAKES: u64 = 400;

/// The violation, with as few steps as it needs.
fn told(seed: u64, broken: &Broken) -> String {
    let small = broken.scenario.shrink(broken.violation.rule, None);
    let again = small.run(None, Level::Story).expect_err("it was shrunk so that it fails");
    format!("seed {seed} (TRAFFIC_SEED={seed} replays it): {}\nwith fewer steps:\n{again}", broken.violation)
}

#[test]
fn no_seed_breaks_a_rule() {
    if let Some(seed) = number("TRAFFIC_SEED") {
        match Scenario::of(seed).run(None, Level::Story) {
            Ok(survived) => {
                println!("{}", survived.trace.join("\n"));
                println!("seed {seed} breaks no rule: {} events, rest {:?}", survived.events, survived.rest);
            }
            Err(broken) => panic!("{broken}\n{}", told(seed, &broken)),
        }
        return;
    }
    let seeds = number("TRAFFIC_SEEDS").unwrap_or(SEEDS);
    type Sum = (u64, u64, Duration);
    let run = |seed| {
        let survived = Scenario::of(seed).run(None, Level::Off);
        survived.map(|survived| (survived.events, survived.requests, survived.rest))
    };
    let add = |sum: &mut Sum, one: Sum| *sum = (sum.0 + one.0, sum.1 + one.1, sum.2.max(one.2));
    let (events, requests, rest) =
        seeds::all(seeds, run, add).unwrap_or_else(|(seed, broken)| panic!("{}", told(seed, &broken)));
    println!(
        "{seeds} seeds, {events} events, {requests} requests, at rest {rest:?} after the faults at the latest"
    );
}

#[test]
fn a_seed_makes_the_same_run_each_time() {
    for seed in 0..5 {
        let runs = [(); 2].map(|()| Scenario::of(seed).run(None, Level::Story));
        let [Ok(first), Ok(second)] = runs else { panic!("seed {seed} fails") };
        assert_eq!((first.events, &first.trace), (second.events, &second.trace));
    }
}

/// Every rule can fail: the mistake is noticed, by a rule that is for it.
#[test]
fn planted_mistakes_are_noticed() {
    for (mistake, rules) in [
        (Planted::RoutesToDraining, &[Rule::NothingToTheDraining, Rule::StopWaits][..]),
        (Planted::DropsEjected, &[Rule::SomebodyIsChosen]),
        (Planted::IgnoresTheBudget, &[Rule::BudgetHolds]),
        (Planted::AcknowledgesEarly, &[Rule::StopWaits]),
        (Planted::BelievesMassLoss, &[Rule::MassLossIsHeld]),
        (Planted::BelievesInHealth, &[Rule::FailedIsOut]),
        (Planted::ForgetsTheLease, &[Rule::ComesToRest]),
    ] {
        let run = |seed| Scenario::of(seed).run(Some(mistake), Level::Off).err();
        let found = (0..MISTAKES).find_map(|seed| Some((seed, run(seed)?)));
        let (seed, broken) =
            found.unwrap_or_else(|| panic!("{mistake:?} was not noticed in {MISTAKES} seeds"));
        println!("{mistake:?}: seed {seed}: {}", broken.violation);
        assert!(rules.contains(&broken.violation.rule), "{mistake:?}: {}", broken.violation);
    }
}
