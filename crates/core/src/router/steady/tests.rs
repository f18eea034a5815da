//! What is held, for how long, and what is not.
//!
//! Times are made up; the property tests check the invariants that `steady` states against a plain model.

use super::*;
use proptest::prelude::*;

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn key(instance: u8) -> String {
    format!("/services/web/upstream/web@{instance}")
}

fn catalog(instances: &[u8]) -> Catalog {
    let mut catalog = Catalog::default();
    for instance in instances {
        catalog.put(&key(*instance), format!("10.1.{instance}.2:3000").as_bytes());
    }
    catalog
}

fn serves(steady: &Steady) -> Vec<u8> {
    let routable = steady.catalog().routable();
    let instances = routable.values().flat_map(|instances| instances.keys());
    instances.map(|name| name.trim_start_matches("web@").parse().expect("a number")).collect()
}

fn gone(instance: u8) -> Gone {
    Gone { service: "web".parse().expect("valid"), instance: format!("web@{instance}") }
}

#[test]
fn one_of_four_goes_at_once() {
    let mut steady = Steady::default();
    assert_eq!(steady.update(s(0), &catalog(&[1, 2, 3, 4])), Effect::Added);
    assert_eq!(steady.update(s(1), &catalog(&[1, 2, 3])), Effect::Removed);
    assert_eq!((serves(&steady), steady.deadline()), (vec![1, 2, 3], None));
    // And half of them is not most of them.
    steady.update(s(2), &catalog(&[1, 2]));
    assert_eq!(serves(&steady), [1, 2]);
}

#[test]
fn most_that_vanish_are_served_on_for_a_while() {
    let mut steady = Steady::default();
    steady.update(s(0), &catalog(&[1, 2, 3, 4]));
    assert_eq!(steady.update(s(100), &catalog(&[4])), Effect::Nothing);
    assert_eq!((serves(&steady), steady.deadline()), (vec![1, 2, 3, 4], Some(s(130))));
    assert_eq!(steady.suspects().collect::<Vec<_>>(), [gone(1), gone(2), gone(3)]);
    assert_eq!(steady.tick(s(129)), Effect::Nothing);
    assert_eq!(steady.tick(s(130)), Effect::Removed);
    assert_eq!((serves(&steady), steady.deadline()), (vec![4], None));
}

#[test]
fn leases_that_end_one_after_another_end_together() {
    let mut steady = Steady::default();
    steady.update(s(0), &catalog(&[1, 2, 3, 4]));
    steady.update(s(100), &catalog(&[2, 3, 4]));
    steady.update(s(101), &catalog(&[3, 4]));
    assert_eq!(serves(&steady), [3, 4]);
    // The third one makes it suspicious that the first two are gone.
    assert_eq!(steady.update(s(102), &catalog(&[4])), Effect::Added);
    assert_eq!(serves(&steady), [1, 2, 3, 4]);
    steady.update(s(103), &catalog(&[]));
    assert_eq!(serves(&steady), [1, 2, 3, 4]);
    // Those that come back are as the hub has them, and half of them is enough to believe the hub again.
    steady.update(s(104), &catalog(&[1]));
    assert_eq!(serves(&steady), [1, 2, 3, 4]);
    steady.update(s(105), &catalog(&[1, 2]));
    assert_eq!((serves(&steady), steady.deadline()), (vec![1, 2], None));
}

#[test]
fn slow_departures_are_believed_but_for_the_last() {
    let mut steady = Steady::default();
    steady.update(s(0), &catalog(&[1, 2, 3]));
    steady.update(s(100), &catalog(&[2, 3]));
    steady.update(s(200), &catalog(&[3]));
    assert_eq!(serves(&steady), [3]);
    steady.update(s(300), &catalog(&[]));
    assert_eq!(serves(&steady), [3]);
    assert_eq!(steady.tick(s(330)), Effect::Removed);
    assert!(serves(&steady).is_empty());
}

#[test]
fn what_was_announced_or_meant_is_not_held() {
    let mut steady = Steady::default();
    let mut draining = catalog(&[1, 2]);
    steady.update(s(0), &draining);
    for instance in [1, 2] {
        draining.put(&key(instance).replace("upstream", "state"), b"drain");
    }
    assert_eq!(steady.update(s(1), &draining), Effect::Removed);
    assert_eq!((serves(&steady), steady.deadline()), (vec![], None));
    steady.update(s(2), &catalog(&[]));
    assert_eq!((serves(&steady), steady.deadline()), (vec![], None));

    steady.update(s(3), &catalog(&[1, 2]));
    steady.update(s(4), &catalog(&[]));
    assert_eq!(serves(&steady), [1, 2]);
    steady.explain(s(4), &gone(1));
    assert_eq!(serves(&steady), [2]);
    steady.explain(s(4), &gone(2));
    assert_eq!((serves(&steady), steady.deadline()), (vec![], None));
}

#[test]
fn an_instance_that_is_marked_while_it_is_held_is_let_go() {
    let mut steady = Steady::default();
    steady.update(s(0), &catalog(&[1, 2]));
    steady.update(s(1), &catalog(&[]));
    let mut marked = Catalog::default();
    marked.put(&key(1).replace("upstream", "state"), b"drain");
    assert_eq!(steady.update(s(2), &marked), Effect::Removed);
    assert_eq!(serves(&steady), [2]);
}

#[test]
fn an_instance_that_moves_is_where_the_hub_says() {
    let mut steady = Steady::default();
    steady.update(s(0), &catalog(&[1]));
    steady.update(s(1), &catalog(&[]));
    let mut moved = Catalog::default();
    moved.put(&key(1), b"10.1.9.2:3000");
    assert_eq!(steady.update(s(2), &moved), Effect::Removed);
    assert_eq!((steady.catalog(), steady.deadline()), (&moved, None));
}

#[test]
fn while_the_hub_is_away_no_hold_ends() {
    let mut steady = Steady::default();
    steady.update(s(0), &catalog(&[1, 2]));
    steady.update(s(1), &catalog(&[]));
    // Away from 10 to 100, and those that register have not been heard yet when it is back.
    steady.was_away(s(90));
    steady.update(s(100), &catalog(&[]));
    assert_eq!((serves(&steady), steady.deadline()), (vec![1, 2], Some(s(121))));
    steady.update(s(102), &catalog(&[1, 2]));
    assert_eq!((serves(&steady), steady.deadline()), (vec![1, 2], None));
}

#[test]
fn rubbish_in_most_entries_holds_as_well() {
    let mut steady = Steady::default();
    let mut all = catalog(&[1, 2, 3]);
    steady.update(s(0), &all);
    for instance in [1, 2, 3] {
        all.put(&key(instance), b"rubbish");
    }
    steady.update(s(1), &all);
    assert_eq!(serves(&steady), [1, 2, 3]);
}

proptest! {
    #[test]
    fn it_is_the_hubs_word_or_a_hold_that_ends(
        steps in proptest::collection::vec((0_u64..15, proptest::collection::btree_set(1_u8..8, 0..8)), 1..40)
    ) {
        let mut steady = Steady::default();
        let mut now = s(0);
        let mut first_missing: BTreeMap<u8, Duration> = BTreeMap::new();
        for (pause, instances) in steps {
            now += s(pause);
            let instances: Vec<u8> = instances.into_iter().collect();
            steady.update(now, &catalog(&instances));
            let served = serves(&steady);
            prop_assert!(instances.iter().all(|there| served.contains(there)), "what is there is served");
            if steady.deadline().is_none() {
                prop_assert_eq!(&served, &instances);
            } else {
                prop_assert!(served.len() > 2 * instances.len(), "{:?} {:?}", served, instances);
            }
            first_missing.retain(|instance, _| served.contains(instance) && !instances.contains(instance));
            for held in served.iter().filter(|held| !instances.contains(held)) {
                let since = *first_missing.entry(*held).or_insert(now);
                prop_assert!(now < since + PANIC_HOLD, "{} is held since {:?} at {:?}", held, since, now);
            }
            if let Some(deadline) = steady.deadline() {
                prop_assert!(deadline > now && deadline <= now + PANIC_HOLD);
            }
        }
        steady.tick(now + PANIC_HOLD);
        prop_assert_eq!(steady.deadline(), None);
    }
}
