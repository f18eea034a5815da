//! Decisions about single units, and properties of all of them.

use super::*;
use Activity::{Alive, Dead, Stopping};
use DesiredState::{Launched, Loaded};
use proptest::prelude::*;

fn wanted(hash: &str, desired: DesiredState, launch: u64) -> Wanted {
    Wanted { hash: hash.to_owned(), desired, launch }
}

fn done(hash: &str, launch: u64) -> Done {
    Done { hash: hash.to_owned(), launch, ..Done::default() }
}

/// With everything known.
fn ask(wanted: Option<&Wanted>, done: Option<&Done>, activity: Activity) -> Option<Ask> {
    next(wanted, done, activity, Trust::Leased)
}

#[test]
fn a_unit_is_loaded_then_started_once() {
    let want = wanted("a", Launched, 1);
    assert_eq!(ask(Some(&want), None, Dead), Some(Ask::Load));
    assert_eq!(ask(Some(&want), Some(&done("a", 0)), Dead), Some(Ask::Start));
    assert_eq!(ask(Some(&want), Some(&done("a", 1)), Alive), None);
    assert_eq!(ask(Some(&want), Some(&done("a", 1)), Dead), None, "it ended on its own");
    let again = wanted("a", Launched, 2);
    assert_eq!(ask(Some(&again), Some(&done("a", 1)), Dead), Some(Ask::Start), "it was ordered again");
}

#[test]
fn files_go_and_change_only_when_the_unit_has_stopped() {
    assert_eq!(ask(None, Some(&done("a", 1)), Alive), Some(Ask::Stop));
    assert_eq!(ask(None, Some(&done("a", 1)), Stopping), None);
    assert_eq!(ask(None, Some(&done("a", 1)), Dead), Some(Ask::Unload));
    let changed = wanted("b", Launched, 1);
    assert_eq!(ask(Some(&changed), Some(&done("a", 1)), Alive), Some(Ask::Stop));
    assert_eq!(ask(Some(&changed), Some(&done("a", 1)), Stopping), None);
    assert_eq!(ask(Some(&changed), Some(&done("a", 1)), Dead), Some(Ask::Load));
}

#[test]
fn a_restart_is_a_stop_that_was_seen_and_a_start() {
    let halt = wanted("a", Loaded, 1);
    assert_eq!(ask(Some(&halt), Some(&done("a", 1)), Alive), Some(Ask::Stop));
    let again = wanted("a", Launched, 2);
    assert_eq!(ask(Some(&again), Some(&done("a", 1)), Stopping), None, "not before it has stopped");
    assert_eq!(ask(Some(&again), Some(&done("a", 1)), Dead), Some(Ask::Start));
    assert_eq!(ask(Some(&again), Some(&done("a", 1)), Alive), Some(Ask::Start), "nothing, for systemd");
}

#[test]
fn stopping_a_unit_keeps_it_loaded_and_is_done_once() {
    let want = wanted("a", Loaded, 1);
    assert_eq!(ask(Some(&want), Some(&done("a", 1)), Alive), Some(Ask::Stop));
    assert_eq!(ask(Some(&want), Some(&done("a", 1)), Dead), Some(Ask::Rest));
    let rested = Done { rested: true, ..done("a", 1) };
    assert_eq!(ask(Some(&want), Some(&rested), Dead), None);
    assert_eq!(ask(Some(&want), Some(&rested), Alive), None, "systemd started it with its service");
    assert_eq!(ask(Some(&want), Some(&done("a", 0)), Alive), None, "never started by us");
}

#[test]
fn an_old_schedule_starts_what_a_reboot_has_cleared_and_removes_nothing() {
    let old = |wanted: Option<&Wanted>, done: Option<&Done>, activity| {
        next(wanted, done, activity, Trust::Remembered)
    };
    let want = wanted("a", Launched, 1);
    assert_eq!(old(Some(&want), None, Dead), Some(Ask::Load));
    assert_eq!(old(Some(&want), Some(&done("a", 0)), Dead), Some(Ask::Start));
    for activity in [Alive, Dead] {
        assert_eq!(old(None, Some(&done("a", 1)), activity), None);
        assert_eq!(old(Some(&want), Some(&done("b", 1)), activity), None);
        assert_eq!(old(Some(&wanted("a", Loaded, 1)), Some(&done("a", 1)), activity), None);
    }
}

#[test]
fn a_fenced_unit_starts_only_under_a_lease() {
    let want = wanted("a", Launched, 1);
    let fenced = Done { fenced: true, ..done("a", 0) };
    assert_eq!(next(Some(&want), Some(&fenced), Dead, Trust::Remembered), None);
    assert_eq!(next(Some(&want), Some(&fenced), Dead, Trust::Known), None);
    assert_eq!(next(Some(&want), Some(&fenced), Dead, Trust::Leased), Some(Ask::Start));
    assert_eq!(next(None, Some(&fenced), Alive, Trust::Known), Some(Ask::Stop), "stopping is always safe");
}

fn any_trust() -> impl Strategy<Value = Trust> {
    prop_oneof![Just(Trust::Remembered), Just(Trust::Known), Just(Trust::Leased)]
}

fn any_wanted() -> impl Strategy<Value = Option<Wanted>> {
    prop::option::of((0_u8..2, prop::bool::ANY, 1_u64..4).prop_map(|(hash, launched, launch)| {
        wanted(&hash.to_string(), if launched { Launched } else { Loaded }, launch)
    }))
}

fn any_done() -> impl Strategy<Value = Option<Done>> {
    prop::option::of((0_u8..2, 0_u64..4, prop::bool::ANY, prop::bool::ANY).prop_map(
        |(hash, launch, rested, fenced)| Done { rested, fenced, ..done(&hash.to_string(), launch) },
    ))
}

proptest! {
    /// Carried out faithfully, the asks lead from anywhere to what is wanted within a few steps.
    #[test]
    fn decisions_converge(want in any_wanted(), have in any_done(), alive in prop::bool::ANY) {
        let mut have = have;
        let mut activity = if alive && have.is_some() { Alive } else { Dead };
        let (mut stopped, mut started) = (0, 0);
        for _ in 0..6 {
            match ask(want.as_ref(), have.as_ref(), activity) {
                None => break,
                Some(Ask::Stop) => { activity = Dead; stopped += 1 }
                Some(Ask::Unload) => have = None,
                Some(Ask::Load) => have = want.as_ref().map(|w| done(&w.hash, 0)),
                Some(Ask::Rest) => have = have.map(|have| Done { rested: true, ..have }),
                Some(Ask::Start) => {
                    prop_assert!(want.as_ref().is_some_and(|want| want.desired == Launched));
                    activity = Alive;
                    started += 1;
                    have = want.as_ref().map(|w| done(&w.hash, w.launch));
                }
            }
        }
        prop_assert_eq!(ask(want.as_ref(), have.as_ref(), activity), None);
        prop_assert_eq!(want.is_none(), have.is_none());
        prop_assert!(stopped <= 1 && started <= 1);
    }

    /// Less trust never means another ask, only none.
    #[test]
    fn less_trust_asks_for_less(want in any_wanted(), have in any_done(), alive in prop::bool::ANY, trust in any_trust()) {
        let activity = if alive { Alive } else { Dead };
        let full = ask(want.as_ref(), have.as_ref(), activity);
        let less = next(want.as_ref(), have.as_ref(), activity, trust);
        prop_assert!(less.is_none() || less == full);
        if trust == Trust::Remembered {
            prop_assert!(!matches!(less, Some(Ask::Stop | Ask::Unload)));
        }
        if have.is_some_and(|have| have.fenced) && trust != Trust::Leased {
            prop_assert!(less != Some(Ask::Start));
        }
    }
}
