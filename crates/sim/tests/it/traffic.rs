//! Registrars, routers and balancers under faults. `TRAFFIC_SEEDS=100000` runs more seeds, `TRAFFIC_SEED=7` one with its
//! trace.

use sim::{
    trace::Level,
    traffic::{Broken, Planted, Rule, Scenario},
};
use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

/// As many as take some seconds on two slow cores.
const SEEDS: u64 = 600;
/// Seeds tried until a planted mistake shows.
const MISTAKES: u64 = 400;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable}: a number")))
}

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
    let next = AtomicU64::new(0);
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let work = || {
        let (mut events, mut requests, mut rest) = (0, 0, std::time::Duration::ZERO);
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return Ok((events, requests, rest));
            }
            match Scenario::of(seed).run(None, Level::Off) {
                Ok(survived) => {
                    (events, requests) = (events + survived.events, requests + survived.requests);
                    rest = rest.max(survived.rest);
                }
                Err(broken) => {
                    next.store(seeds, Ordering::Relaxed);
                    return Err((seed, broken));
                }
            }
        }
    };
    let ends: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        running.into_iter().map(|thread| thread.join().expect("a run does not panic")).collect()
    });
    let (mut events, mut requests, mut rest) = (0, 0, std::time::Duration::ZERO);
    for end in ends {
        match end {
            Ok((e, r, longest)) => (events, requests, rest) = (events + e, requests + r, rest.max(longest)),
            Err((seed, broken)) => panic!("{}", told(seed, &broken)),
        }
    }
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
