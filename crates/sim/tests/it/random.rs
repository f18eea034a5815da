//! Thousands of seeds. `SIM_SEEDS=100000` runs more, `SIM_SEED=7` one with its whole trace.

use sim::{
    random::{Broken, Scenario, Survived},
    trace::Level,
};
use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

/// As many as take about half a minute on two slow cores.
const SEEDS: u64 = 3000;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable}: a number")))
}

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
    let next = AtomicU64::new(0);
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let work = || {
        let (mut events, mut longest) = (0, Survived::default());
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return Ok((events, longest));
            }
            match Scenario::of(seed).run(None, Level::Off) {
                Ok(survived) => {
                    events += survived.events;
                    longest = if survived.rest > longest.rest { survived } else { longest };
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
    let (mut events, mut rest) = (0, std::time::Duration::ZERO);
    for end in ends {
        match end {
            Ok((count, longest)) => (events, rest) = (events + count, rest.max(longest.rest)),
            Err((seed, broken)) => panic!("{}", told(seed, &broken)),
        }
    }
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
