//! The life of an instance, told event by event, and what must hold whatever happens.

use super::drain::{FAREWELL, UNHEARD};
use super::*;
use model::ServiceConfig;
use proptest::prelude::*;
use unit::check;

const MS: fn(u64) -> Duration = Duration::from_millis;

fn unit() -> UnitName {
    "web@1.service".parse().expect("valid")
}

fn registrations(lines: &str) -> Arc<[Registration]> {
    let text = format!("[Service]\nExecStart=/a\n[X-Service]\nPort=80\n{lines}\n");
    check(&unit(), &text).expect("valid").registrations.into()
}

fn id() -> Id {
    ("web".parse().expect("valid"), "web@1".to_owned())
}

/// A registrar with one unit, its own clock, and what it asked for.
struct World {
    core: Registrar,
    now: Duration,
    registrations: Arc<[Registration]>,
    effects: Vec<Effect>,
}

impl World {
    fn new(lines: &str) -> Self {
        let machine = "0123456789abcdef0123456789abcdef".parse().expect("valid");
        let core = Registrar::new(machine, "m1".to_owned());
        Self { core, now: MS(1000), registrations: registrations(lines), effects: Vec::new() }
    }

    fn does(&mut self, event: Event) -> &mut Self {
        self.effects.clear();
        self.core.step(self.now, event, &mut self.effects);
        self
    }

    fn is(&mut self, activity: Activity) -> &mut Self {
        let at = Timestamp(u64::try_from(self.now.as_millis()).expect("small"));
        let registrations = self.registrations.clone();
        self.does(Event::Unit { unit: unit(), registrations, activity, at })
    }

    fn found(&mut self, address: [u8; 4], run: &str) -> &mut Self {
        let found = Found { address: address.into(), run: run.to_owned(), unhealthy: None };
        self.does(Event::Found(unit(), Ok(found)))
    }

    fn later(&mut self, by: Duration) -> &mut Self {
        self.now += by;
        self.does(Event::Tick)
    }

    /// The check that was asked for last comes to this.
    fn checked(&mut self, outcome: Result<(), &str>) -> &mut Self {
        let asked = self.effects.iter().find_map(|effect| match effect {
            Effect::Check { id, generation, .. } => Some((id.clone(), *generation)),
            _ => None,
        });
        let (id, generation) =
            asked.unwrap_or_else(|| panic!("no check at {:?}: {:?}", self.now, self.effects));
        self.does(Event::Checked { id, generation, outcome: outcome.map_err(str::to_owned) })
    }

    /// So many checks, each at its time.
    fn checks(&mut self, count: u32, outcome: Result<(), &str>) -> &mut Self {
        for _ in 0..count {
            let due = self.core.due().expect("a check is due");
            self.now = self.now.max(due);
            self.does(Event::Tick).checked(outcome);
        }
        self
    }

    fn record(&self) -> Option<Record> {
        self.core.records().1.remove(&id())
    }

    fn upstream(&self) -> bool {
        self.record().is_some_and(|record| record.upstream)
    }

    fn written(&mut self, revision: i64) -> &mut Self {
        let version = self.core.version();
        self.does(Event::Written(version, Revision(revision)))
    }

    fn up(lines: &str) -> Self {
        let mut world = Self::new(lines);
        world.is(Activity::Active).found([10, 1, 5, 2], "a").checked(Ok(())).written(5);
        assert!(world.upstream());
        world
    }

    fn drained(&self) -> bool {
        self.effects.contains(&Effect::Drained(unit()))
    }
}

#[test]
fn an_instance_is_registered_when_its_check_has_passed_and_not_before() {
    let mut world = World::new("");
    world.is(Activity::Inactive);
    assert_eq!(world.record(), None);
    world.is(Activity::Active);
    assert_eq!(world.effects, [Effect::Find(unit())]);
    assert_eq!(world.record(), None, "nobody knows where it is");
    world.found([10, 1, 5, 2], "a").checked(Err("refused"));
    let record = world.record().expect("known");
    assert_eq!(
        (record.upstream, record.meta.health, record.meta.reason.as_deref()),
        (false, Health::Starting, Some("refused"))
    );
    assert!(world.core.due().expect("again") <= world.now + EAGER, "a start does not wait for its interval");
    world.later(EAGER).checked(Ok(()));
    let record = world.record().expect("known");
    assert!(record.upstream && record.meta.addr == "10.1.5.2:80" && record.meta.reason.is_none());
    assert_eq!(world.core.readiness()[&unit()], None);
}

#[test]
fn failures_in_a_row_take_it_out_and_flapping_makes_its_return_slower() {
    let mut world = World::up("Fall=3\nCheckInterval=1s");
    world.checks(2, Err("500"));
    assert!(world.upstream());
    world.checks(1, Ok(())).checks(3, Err("500"));
    let record = world.record().expect("it says why");
    assert_eq!(
        (record.upstream, record.meta.health, record.meta.reason.as_deref()),
        (false, Health::Critical, Some("500"))
    );
    world.checks(1, Ok(()));
    assert!(!world.upstream());
    world.checks(1, Ok(()));
    assert!(world.upstream());
    for needed in [4, 8, 16, 32, 64, 64] {
        world.checks(3, Err("500")).checks(needed - 1, Ok(()));
        assert!(!world.upstream(), "{needed}");
        world.checks(1, Ok(()));
        assert!(world.upstream(), "{needed}");
    }
    // A quiet time takes the damping back.
    world.checks(301, Ok(())).checks(3, Err("500")).checks(2, Ok(()));
    assert!(world.upstream());
}

#[test]
fn a_start_that_takes_too_long_is_critical_and_may_still_pass() {
    let mut world = World::new("StartGrace=5s\nCheckInterval=1s");
    world.is(Activity::Active).found([10, 1, 5, 2], "a").checked(Err("refused"));
    while world.now < Duration::from_secs(7) {
        world.checks(1, Err("refused"));
    }
    let meta = world.record().expect("it says why").meta;
    assert_eq!(meta.health, Health::Critical);
    assert!(
        meta.reason.as_deref().is_some_and(|why| why.contains("StartGrace=5s: refused"))
            || meta.reason.as_deref() == Some("refused")
    );
    world.checks(2, Ok(()));
    assert!(world.upstream());
}

#[test]
fn a_crash_takes_it_out_at_once_and_the_next_run_shows_itself_first() {
    let mut world = World::up("");
    world.does(Event::Found(unit(), Err("its container has ended".to_owned())));
    assert_eq!(world.record(), None, "the engine said so before systemd");
    world.is(Activity::Inactive);
    let first = world.now;
    world.later(MS(100)).is(Activity::Active).found([10, 1, 5, 2], "b");
    assert!(!world.upstream());
    world.checked(Ok(()));
    assert!(world.upstream());
    assert!(world.record().expect("known").meta.started.0 > u64::try_from(first.as_millis()).expect("small"));
}

#[test]
fn another_container_at_another_address_shows_itself_first() {
    let mut world = World::up("");
    world.found([10, 1, 5, 3], "b");
    assert!(!world.upstream());
    world.checked(Ok(()));
    assert_eq!(world.record().expect("known").meta.addr, "10.1.5.3:80");
}

#[test]
fn the_containers_own_health_check_counts() {
    let mut world = World::up("");
    let unhealthy = Some("unhealthy".to_owned());
    let found = Found { address: [10, 1, 5, 2].into(), run: "a".to_owned(), unhealthy };
    world.does(Event::Found(unit(), Ok(found)));
    assert!(!world.upstream());
    world.checks(5, Ok(()));
    assert!(!world.upstream(), "the container still says so");
    world.found([10, 1, 5, 2], "a").checks(2, Ok(()));
    assert!(world.upstream());
}

fn router(machine: char, revision: i64, inflight: u64) -> (MachineId, RouterRecord) {
    let machine: MachineId = machine.to_string().repeat(32).parse().expect("valid");
    let mut record = RouterRecord::new(machine.clone(), Revision(revision));
    if inflight > 0 {
        record.inflight.insert(id().0, BTreeMap::from([(id().1, inflight)]));
    }
    (machine, record)
}

#[test]
fn a_drain_waits_until_every_router_has_heard_of_it_and_is_done() {
    let mut world = World::up("Drain=10s");
    world.does(Event::Routers([router('a', 5, 0), router('b', 5, 3)].into()));
    world.does(Event::Drain { unit: unit(), alive: true });
    let record = world.record().expect("still there");
    assert!(record.draining && record.upstream && !world.drained());
    world.written(8);
    world.does(Event::Routers([router('a', 8, 0), router('b', 8, 1)].into()));
    assert!(!world.drained() && world.record().is_some());
    world.does(Event::Routers([router('a', 9, 0), router('b', 9, 0)].into()));
    assert_eq!(world.record(), None, "the keys go first");
    assert!(!world.drained());
    world.written(10);
    assert!(world.drained());
    world.is(Activity::Stopping).is(Activity::Inactive);
    assert_eq!(world.record(), None);
    world.is(Activity::Active).found([10, 1, 5, 2], "b").checked(Ok(()));
    assert!(world.upstream(), "the next run is in service");
}

#[test]
fn a_drain_ends_by_itself() {
    let mut world = World::up("Drain=4s");
    world.does(Event::Routers([router('a', 5, 9)].into()));
    world.does(Event::Drain { unit: unit(), alive: true }).written(8).later(MS(3999));
    assert!(world.record().is_some());
    world.later(MS(1));
    assert_eq!(world.record(), None);
    world.written(9);
    assert!(!world.drained(), "routers end what they can end in order");
    world.does(Event::Routers([router('a', 9, 2)].into()));
    assert!(!world.drained());
    world.does(Event::Routers([router('a', 9, 0)].into()));
    assert!(world.drained(), "after Drain=");
    // What cannot be ended is not waited for.
    let mut world = World::up("Drain=4s");
    world.does(Event::Routers([router('a', 5, 9)].into()));
    world.does(Event::Drain { unit: unit(), alive: true }).written(8).later(MS(4000)).written(9);
    let ends = world.now + FAREWELL;
    assert!(world.core.due().is_some_and(|due| due <= ends));
    world.later(FAREWELL - MS(1));
    assert!(!world.drained());
    world.later(MS(1));
    assert!(world.drained());
    // The hub is away: nobody hears of it.
    let mut world = World::up("Drain=60s");
    world.does(Event::Routers([router('a', 5, 9)].into()));
    world.does(Event::Drain { unit: unit(), alive: true }).later(UNHEARD);
    assert_eq!(world.record(), None);
    world.later(UNHEARD);
    assert!(world.drained());
    // Nobody routes.
    let mut world = World::up("Drain=60s");
    world.does(Event::Drain { unit: unit(), alive: true }).written(8).written(9);
    assert!(world.drained());
    // It has ended, and finishes nothing.
    let mut world = World::up("Drain=60s");
    world.does(Event::Routers([router('a', 5, 9)].into()));
    world.does(Event::Drain { unit: unit(), alive: false });
    assert_eq!(world.record(), None);
    // A unit that nobody knows.
    world.does(Event::Drain { unit: "x.service".parse().expect("valid"), alive: true }).written(9);
    assert!(world.effects.contains(&Effect::Drained("x.service".parse().expect("valid"))));
}

#[test]
fn a_restart_that_nobody_saw_is_found_out() {
    let mut world = World::up("");
    world.does(Event::Drain { unit: unit(), alive: true }).written(8).written(9);
    assert!(world.drained());
    // The unit was stopped and started again between two looks.
    let mut asked = false;
    for _ in 0..4 {
        world.later(AGAIN);
        asked |= world.effects.contains(&Effect::Find(unit()));
    }
    assert!(asked);
    world.found([10, 1, 5, 2], "b").checked(Ok(()));
    assert!(world.upstream());
}

#[test]
fn a_drain_that_nobody_waits_for_any_more_is_no_end() {
    // The daemon got no time until systemd had given up waiting, and the unit was started again.
    let mut world = World::up("");
    world.does(Event::Drain { unit: unit(), alive: true }).written(8).written(9);
    assert!(world.drained() && world.record().is_none());
    world.later(UNASKED - MS(1)).found([10, 1, 5, 2], "a");
    assert_eq!(world.record(), None, "it may be about to stop");
    world.later(MS(1)).found([10, 1, 5, 2], "a").checked(Ok(()));
    assert!(world.upstream(), "it shows itself again");
}

#[test]
fn what_an_earlier_run_has_registered_stays() {
    let before = World::up("").record().expect("known").meta;
    let mut world = World::new("");
    world.does(Event::Adopted(Box::new(before.clone()), id(), true)).is(Activity::Active);
    let record = world.record().expect("as before");
    assert!(record.upstream);
    assert_eq!(record.meta, before);
    world.found([10, 1, 5, 2], "a");
    assert!(world.upstream(), "the same container");
    let mut world = World::new("");
    world.does(Event::Adopted(Box::new(before), id(), true)).is(Activity::Inactive);
    assert_eq!(world.record(), None, "it has ended meanwhile");
}

#[test]
fn what_the_unit_says_of_its_service_is_passed_on() {
    let world = World::up("Host=a.example.com");
    let config = world.record().expect("known").config.expect("it has a host");
    assert_eq!(config, ServiceConfig { written_by: Some("web@.service".to_owned()), ..config.clone() });
    assert_eq!(config.hosts, ["a.example.com"]);
}

proptest! {
    /// Whatever happens: no upstream without an active unit, an address and a passed check, and every drain ends.
    #[test]
    fn an_upstream_is_earned_and_drains_end(steps in prop::collection::vec((0_u8..10, 0_u64..1500), 1..80)) {
        let mut world = World::new("Fall=2\nDrain=3s");
        let mut asked: Option<(Id, u64)> = None;
        let (mut active, mut found, mut passed) = (false, false, false);
        let mut drain: Option<Duration> = None;
        for (step, wait) in steps {
            world.now += MS(wait);
            match step {
                0 => { world.is(Activity::Active); if !active { passed = false; } active = true; }
                1 => { world.is(Activity::Inactive); active = false; passed = false; }
                2 => { world.is(Activity::Stopping); if active { active = false; } }
                3 => { world.found([10, 1, 5, 2], "a"); found = true; }
                4 => { world.does(Event::Found(unit(), Err("gone".to_owned()))); found = false; passed = false; }
                5 | 6 => if let Some((id, generation)) = asked.take() {
                    let outcome = if step == 5 { Ok(()) } else { Err("no".to_owned()) };
                    passed |= step == 5;
                    world.does(Event::Checked { id, generation, outcome });
                },
                7 => { world.does(Event::Drain { unit: unit(), alive: true }); drain.get_or_insert(world.now); }
                8 => { world.written(7); }
                _ => { world.does(Event::Tick); }
            }
            for effect in &world.effects {
                if let Effect::Check { id, generation, .. } = effect {
                    asked = Some((id.clone(), *generation));
                }
            }
            if world.drained() { drain = None; }
            prop_assert!(!world.upstream() || (found && passed), "an upstream that was not earned");
            prop_assert!(drain.is_none_or(|since| world.now < since + MS(3000 + 2 * 2000 + 1500)), "a drain without end");
            if let Some(due) = world.core.due() {
                prop_assert!(world.core.due().is_none_or(|again| again == due));
            }
        }
    }
}
