//! Every rule can fail: a deliberate mistake in the code round the deciders is noticed, by the rule that is for it.

use sim::{daemon::Mutation, random::Scenario, rules::Rule, trace::Level};

/// Seeds tried until the mistake shows.
const SEEDS: u64 = 400;

fn caught(mutation: Mutation) -> Rule {
    for seed in 0..SEEDS {
        if let Err(broken) = Scenario::of(seed).run(Some(mutation), Level::Off) {
            println!("{mutation:?}: seed {seed}: {}", broken.violation);
            return broken.violation.rule;
        }
    }
    panic!("{mutation:?} was not noticed in {SEEDS} seeds");
}

#[test]
fn an_agent_that_takes_a_lost_hub_for_an_empty_schedule() {
    assert_eq!(caught(Mutation::ForgetsWithoutHub), Rule::StoppedWithReason);
}

#[test]
fn an_agent_that_forgets_what_it_started() {
    assert_eq!(caught(Mutation::ForgetsStarts), Rule::StartedWithReason);
}

#[test]
fn an_engine_that_schedules_twice() {
    assert_eq!(caught(Mutation::SchedulesTwice), Rule::OneOwner);
}

#[test]
fn an_engine_that_writes_after_it_was_deposed() {
    assert_eq!(caught(Mutation::Unguarded), Rule::OnlyTheLeaderWrites);
}

#[test]
fn an_engine_that_does_not_see_lost_machines() {
    let rule = caught(Mutation::BlindToLoss);
    assert!(matches!(rule, Rule::ComesToRest | Rule::DecidedWithReason), "{rule}");
}

#[test]
fn an_engine_that_believes_that_most_machines_died_at_once() {
    assert_eq!(caught(Mutation::NeverHolds), Rule::HoldsStill);
}

#[test]
fn a_machine_without_a_fence() {
    assert_eq!(caught(Mutation::NoFence), Rule::OneFencedCopy);
}
