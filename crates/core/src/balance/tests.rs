//! Balancers under requests that succeed, fail and hang, while endpoints come and go.
//!
//! Not here: connections. Shares are counted with dice whose seed is fixed; what must hold whatever happens is tried with
//! random histories.

use super::{Strategy, *};
use proptest::prelude::{Just, any, prop_assert, prop_assert_eq, prop_oneof, proptest};

const SECOND: Duration = Duration::from_secs(1);

fn member(n: usize, weight: u32) -> Member {
    let address = SocketAddr::from(([10, 1, (n / 250) as u8, (n % 250) as u8 + 2], 3000));
    Member { instance: format!("web@{n}"), generation: 1, address, weight, draining: false }
}

fn balancer(strategy: Strategy, members: &[Member]) -> Balancer {
    let mut balancer = Balancer::new(Settings { strategy, slow_start: Duration::ZERO });
    balancer.update(Moment::ZERO, members);
    balancer
}

/// A generator of its own, so that a seed says everything.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }
}

/// Shares of `rounds` requests, with `load` of them under way at any time.
fn shares(balancer: &mut Balancer, count: usize, load: usize, rounds: usize) -> Vec<f64> {
    let mut dice = Dice(7);
    let mut counts = vec![0usize; count];
    let mut under_way = Vec::new();
    for round in 0..rounds {
        let now = Duration::from_micros(round as u64 * 100);
        let wish = Wish { hash: Some(dice.roll()), ..Wish::default() };
        let place = balancer.pick(now, dice.roll(), &wish).expect("somebody is there");
        counts[place.index()] += 1;
        under_way.push(place);
        if under_way.len() > load {
            let done = under_way.swap_remove(dice.roll() as usize % under_way.len());
            balancer.finish(now, done, Outcome::Answered(Duration::from_micros(200)));
        }
    }
    counts.iter().map(|count| *count as f64 / rounds as f64).collect()
}

#[test]
fn weights_are_honoured() {
    let weights = [100, 50, 25, 25];
    let members: Vec<_> = weights.iter().enumerate().map(|(n, weight)| member(n, *weight)).collect();
    for strategy in [Strategy::P2c, Strategy::RoundRobin, Strategy::LeastConn, Strategy::Hash] {
        for load in [0, 64] {
            if (strategy, load) == (Strategy::LeastConn, 0) {
                continue; // with nothing under way the heaviest has the least
            }
            let got = shares(&mut balancer(strategy, &members), 4, load, 20_000);
            for (weight, got) in weights.iter().zip(&got) {
                let wanted = f64::from(*weight) / 200.0;
                assert!((got / wanted - 1.0).abs() < 0.12, "{strategy:?} at {load}: {got} for {wanted}");
            }
        }
    }
}

#[test]
fn a_slow_endpoint_gets_less() {
    let mut balancer = balancer(Strategy::P2c, &[member(0, 100), member(1, 100), member(2, 100)]);
    let mut dice = Dice(3);
    let mut counts = [0; 3];
    for round in 0..3000 {
        let now = Duration::from_millis(round);
        let place = balancer.pick(now, dice.roll(), &Wish::default()).expect("somebody is there");
        counts[place.index()] += 1;
        let took = if place.index() == 0 { 300 } else { 5 };
        balancer.finish(now, place, Outcome::Answered(Duration::from_millis(took)));
    }
    assert!(counts[0] < 300 && counts[0] > 0, "{counts:?}");
    assert!(counts[1] > 900 && counts[2] > 900, "{counts:?}");
}

#[test]
fn an_endpoint_keeps_what_is_known_until_it_is_another_one() {
    let mut balancer = balancer(Strategy::P2c, &[member(0, 100), member(1, 100)]);
    let picked = loop {
        let place = balancer.pick(SECOND, 1, &Wish::default()).expect("somebody is there");
        if place.index() == 0 {
            break place;
        }
        balancer.finish(SECOND, place, Outcome::Nothing);
    };
    assert!(matches!(balancer.finish(SECOND, picked, Outcome::Unreachable), Verdict::Ejected(_)));
    let standing = |balancer: &Balancer| {
        balancer.endpoints().find(|e| e.member.instance == "web@0").expect("it is there").standing
    };
    balancer.update(SECOND, &[member(2, 100), member(1, 100), member(0, 100)]);
    assert!(matches!(standing(&balancer), Standing::Out { .. }));
    // The same address after a new start.
    balancer.update(SECOND, &[Member { generation: 2, ..member(0, 100) }, member(1, 100)]);
    assert_eq!(standing(&balancer), Standing::In);
}

#[test]
fn what_is_under_way_at_an_endpoint_that_is_gone_still_counts() {
    let mut balancer = balancer(Strategy::P2c, &[member(0, 100)]);
    let place = balancer.pick(SECOND, 0, &Wish::default()).expect("somebody is there");
    balancer.update(SECOND, &[member(1, 100)]);
    assert_eq!(balancer.inflight(place), 1);
    assert_eq!(balancer.endpoints().count(), 2);
    // Its place is not given away while somebody holds it.
    let other = balancer.pick(SECOND, 0, &Wish::default()).expect("somebody is there");
    assert_ne!(place, other);
    balancer.finish(SECOND, place, Outcome::Answered(SECOND));
    assert_eq!(balancer.endpoints().count(), 1);
}

#[test]
fn one_request_finds_out_whether_an_endpoint_is_well_again() {
    let mut balancer = balancer(Strategy::RoundRobin, &[member(0, 100), member(1, 100)]);
    let probe = Wish { may_probe: true, ..Wish::default() };
    let mut now = SECOND;
    let mut lengths = Vec::new();
    let mut place = balancer.pick(now, 0, &probe).expect("somebody is there");
    for _ in 0..8 {
        let Verdict::Ejected(length) = balancer.finish(now, place, Outcome::Unreachable) else {
            panic!("it is ejected")
        };
        lengths.push(length);
        assert!((0..20).all(|n| {
            let other = balancer.pick(now, n, &probe).expect("somebody is there");
            balancer.finish(now, other, Outcome::Answered(Duration::ZERO));
            other != place
        }));
        now += length;
        // However long it waits, no request tries what no check has reached.
        let other = balancer.pick(now + SECOND * 100, 0, &probe).expect("somebody is there");
        assert_ne!(other, place);
        balancer.finish(now, other, Outcome::Nothing);
        balancer.reached(place);
        // A POST does not try it, the first GET does, the second does not.
        let post = balancer.pick(now, 0, &Wish::default()).expect("somebody is there");
        assert_ne!(post, place);
        balancer.finish(now, post, Outcome::Answered(Duration::ZERO));
        assert_eq!(balancer.pick(now, 0, &probe), Some(place));
        let second = balancer.pick(now, 0, &probe).expect("somebody is there");
        assert_ne!(second, place);
        balancer.finish(now, second, Outcome::Answered(Duration::ZERO));
    }
    assert!(lengths[0] >= SECOND * 4 / 5 && lengths[0] <= SECOND * 6 / 5, "{lengths:?}");
    assert!(lengths[7] >= SECOND * 24 && lengths[7] <= SECOND * 36, "{lengths:?}");
    assert_eq!(balancer.finish(now, place, Outcome::Answered(Duration::ZERO)), Verdict::Readmitted);
    place = balancer.pick(now, 0, &probe).expect("somebody is there");
    balancer.finish(now, place, Outcome::Answered(Duration::ZERO));
}

#[test]
fn more_than_half_out_is_taken_for_trouble_of_ours() {
    let members: Vec<_> = (0..5).map(|n| member(n, 100)).collect();
    let mut balancer = balancer(Strategy::RoundRobin, &members);
    let mut picked: Vec<_> =
        (0..5).map(|_| balancer.pick(SECOND, 0, &Wish::default()).expect("somebody is there")).collect();
    picked.sort();
    for place in &picked[..2] {
        balancer.finish(SECOND, *place, Outcome::Unreachable);
    }
    balancer.refresh(SECOND);
    assert!(!balancer.view.panic && balancer.view.open.len() == 3);
    balancer.finish(SECOND, picked[2], Outcome::Unreachable);
    balancer.refresh(SECOND);
    assert!(balancer.view.panic && balancer.view.open.len() == 5);
    // A further try prefers one that is in.
    let again = balancer.pick(SECOND, 0, &Wish { tried: &picked[..1], ..Wish::default() });
    assert!(picked[3..].contains(&again.expect("somebody is there")));
}

#[test]
fn a_hash_moves_few_when_endpoints_change() {
    let members: Vec<_> = (0..10).map(|n| member(n, 100)).collect();
    let mut all = balancer(Strategy::Hash, &members);
    let mut fewer = balancer(Strategy::Hash, &members[..9]);
    let name = |balancer: &mut Balancer, key: u64| {
        let wish = Wish { hash: Some(mix(key)), ..Wish::default() };
        let place = balancer.pick(SECOND, key, &wish).expect("somebody is there");
        balancer.finish(SECOND, place, Outcome::Nothing);
        place.index()
    };
    let moved = (0..1000)
        .filter(|key| {
            let (before, after) = (name(&mut all, *key), name(&mut fewer, *key));
            assert!(before == 9 || before == after, "{key} moved from {before} to {after}");
            before != after
        })
        .count();
    assert!((60..150).contains(&moved), "{moved} of 1000 moved");
}

#[test]
fn a_client_stays_with_its_instance_while_it_takes_requests() {
    let mut members: Vec<_> = (0..4).map(|n| member(n, 100)).collect();
    let mut balancer = balancer(Strategy::P2c, &members);
    let wish = Wish { stick: Some(stick("web@2")), ..Wish::default() };
    for random in 0..50 {
        assert_eq!(balancer.pick(SECOND, random, &wish).map(Place::index), Some(2));
    }
    members[2].draining = true;
    balancer.update(SECOND, &members);
    assert!((0..50).all(|random| balancer.pick(SECOND, random, &wish).map(Place::index) != Some(2)));
}

proptest! {
    #[test]
    fn slow_start_grows_monotonically(ages in proptest::collection::vec(0u64..20_000, 2..20)) {
        let mut ages = ages;
        ages.sort_unstable();
        let slow = Duration::from_secs(10);
        let shares: Vec<_> = ages.iter().map(|age| grown(Duration::from_millis(*age), slow)).collect();
        prop_assert!(shares.windows(2).all(|pair| pair[0] <= pair[1]));
        prop_assert!(shares.iter().all(|share| (FULL / 10..=FULL).contains(share)));
    }

    #[test]
    fn tries_stay_within_the_budget(steps in proptest::collection::vec((any::<bool>(), 0u64..50), 1..2000)) {
        let mut budget = RetryBudget::default();
        let (mut requests, mut tries, mut now) = (0u32, 0u32, Moment::ZERO);
        for (request, passed) in steps {
            now += Duration::from_millis(passed);
            if request {
                requests += 1;
                budget.deposit();
            } else if budget.withdraw(now) {
                tries += 1;
            }
        }
        let allowed = f64::from(requests) * 0.2 + 10.0 + now.as_secs_f64();
        prop_assert!(f64::from(tries) <= allowed + 0.001, "{tries} of {allowed}");
    }

    /// Whatever happens: nothing draining is chosen, a service with a member that may be chosen is never without one,
    /// and what is under way is counted exactly.
    #[test]
    fn the_promises_hold_whatever_happens(
        seed in any::<u64>(),
        strategy in prop_oneof![
            Just(Strategy::P2c), Just(Strategy::RoundRobin), Just(Strategy::LeastConn), Just(Strategy::Hash)
        ],
        steps in 1usize..400,
    ) {
        let mut dice = Dice(seed);
        let mut balancer = Balancer::new(Settings { strategy, slow_start: Duration::from_millis(dice.roll() % 3000) });
        let mut members: Vec<Member> = Vec::new();
        let mut under_way: Vec<(Place, String, u64)> = Vec::new();
        let mut now = Moment::ZERO;
        for _ in 0..steps {
            now += Duration::from_millis(dice.roll() % 700);
            match dice.roll() % 8 {
                0 => {
                    let n = dice.roll() as usize % 6;
                    let name = format!("web@{n}");
                    match members.iter().position(|m| m.instance == name) {
                        None => members.push(member(n, 1 + (dice.roll() % 100) as u32)),
                        Some(at) => match dice.roll() % 3 {
                            0 => { members.remove(at); }
                            1 => members[at].generation += 1,
                            _ => members[at].draining = !members[at].draining,
                        },
                    }
                    balancer.update(now, &members);
                }
                1..4 => {
                    let tried: Vec<_> = match under_way.first() {
                        Some((place, ..)) if dice.roll().is_multiple_of(3) => vec![*place],
                        _ => Vec::new(),
                    };
                    let wish = Wish {
                        hash: Some(dice.roll()),
                        stick: dice.roll().is_multiple_of(4).then(|| stick("web@1")),
                        tried: &tried,
                        may_probe: dice.roll().is_multiple_of(2),
                    };
                    let eligible = members.iter().filter(|m| !m.draining).count();
                    match balancer.pick(now, dice.roll(), &wish) {
                        Some(place) => {
                            let seen = balancer.endpoints().find(|e| e.place == place).expect("it has a slot");
                            let listed = members.iter().find(|m| **m == *seen.member);
                            prop_assert!(listed.is_some_and(|m| !m.draining), "chose {:?}", seen.member);
                            prop_assert!(!tried.contains(&place));
                            under_way.push((place, seen.member.instance.clone(), seen.member.generation));
                        }
                        None => prop_assert!(eligible == 0 || !tried.is_empty(), "{eligible} and none chosen"),
                    }
                }
                _ if !under_way.is_empty() => {
                    let at = dice.roll() as usize % under_way.len();
                    let (place, ..) = under_way.swap_remove(at);
                    let outcome = match dice.roll() % 6 {
                        0 => Outcome::Unreachable,
                        1 => Outcome::Reset,
                        2 => Outcome::Unwell(Duration::from_millis(1)),
                        3 => Outcome::Nothing,
                        _ => Outcome::Answered(Duration::from_millis(dice.roll() % 300)),
                    };
                    balancer.finish(now, place, outcome);
                }
                _ => {}
            }
            let counted: u32 = balancer.endpoints().map(|e| e.inflight).sum();
            prop_assert_eq!(counted as usize, under_way.len());
        }
    }
}
