//! The driver on a hub in memory, with orders given through the API's service and a machine that a test makes up.

use super::*;
use crate::agent::service::Hub;
use api::{
    Service,
    rollouts::{Rollout as Seen, RolloutOrder, Rollouts},
    types::UnitChange,
};
use model::{DesiredState, MachineId, MachineRecord, RolloutState, ScheduleRecord, UnitState};
use std::{future::Future, sync::Arc};

fn name(text: &str) -> UnitName {
    text.parse().expect("valid")
}

fn text(program: usize) -> String {
    format!("[Service]\nExecStart=/bin/program-{program}\n")
}

fn machine() -> Machine {
    let id: MachineId = "0123456789abcdef0123456789abcdef".parse().expect("valid");
    Machine { id, name: "m1".to_owned(), config: Arc::default() }
}

struct World {
    store: Store,
    hub: Hub,
}

impl World {
    fn new() -> Self {
        let store = Store::memory();
        Self {
            hub: Hub::new(
                machine(),
                store.clone(),
                None,
                Vec::new(),
                crate::agent::metrics::Metrics::default(),
            ),
            store,
        }
    }

    async fn submit(&self, unit: &str, text: String, desired: DesiredState) {
        let change = UnitChange { name: name(unit), text: Some(text), desired: Some(desired), replace: true };
        self.hub.change(vec![change]).await.expect("made");
    }

    async fn put(&self, key: String, record: &impl serde::Serialize) -> Revision {
        self.store.put(&key, render(record), None).await.expect("written")
    }

    /// A new term: whoever led does not any longer, and need not know it yet.
    async fn elect(&self) -> Revision {
        self.put(keys::LEADER.to_owned(), &"m1").await
    }

    async fn lead(&self) -> tokio::task::JoinHandle<()> {
        let term = self.elect().await;
        let store = self.store.clone();
        tokio::spawn(async move {
            let events = Events::new(store.clone(), term);
            match run(&machine(), &store, term, events).await {}
        })
    }

    async fn order(&self, unit: &str, text: Option<String>) -> Result<Seen, api::ApiError> {
        let order = RolloutOrder {
            name: name(unit),
            text,
            version: None,
            at_once: 1,
            ready_timeout: 60_000,
            settle: 0,
            rollback: true,
            by: "test".to_owned(),
        };
        self.hub.roll(order).await
    }

    async fn state(&self) -> RolloutState {
        self.hub.rollouts().await.expect("listed").rollouts[0].state
    }

    async fn record(&self, unit: &str) -> UnitRecord {
        let found = self.store.get(&keys::unit(&name(unit))).await.expect("read").expect("known");
        serde_json::from_slice(&found.value).expect("readable")
    }

    /// The machine runs the unit as its record says.
    async fn obey(&self, unit: &str) {
        let record = self.record(unit).await;
        let on = machine().id;
        let scheduled = ScheduleRecord {
            v: 1,
            hash: record.hash.clone(),
            desired: record.desired,
            launch: record.launch,
            term: Revision(1),
            why: String::new(),
            unknown: Default::default(),
        };
        self.put(keys::schedule(&on, &name(unit)), &scheduled).await;
        let state = UnitState {
            v: 1,
            load: "loaded".to_owned(),
            active: "active".to_owned(),
            sub: "running".to_owned(),
            hash: record.hash,
            launch: record.launch,
            error: None,
        };
        self.put(keys::state(&on, &name(unit)), &state).await;
    }
}

async fn eventually<F: Future<Output = bool>>(what: &str, mut check: impl FnMut() -> F) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !check().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_new_leader_goes_on_and_the_old_one_writes_nothing() {
    let world = &World::new();
    let presence = MachineRecord::new("m1".to_owned(), [10, 0, 0, 1].into(), String::new());
    world.put(keys::machine(&machine().id), &presence).await;
    world.submit("a@.service", text(1), DesiredState::Inactive).await;
    for unit in ["a@1.service", "a@2.service"] {
        world.submit(unit, text(1), DesiredState::Launched).await;
        world.obey(unit).await;
    }
    let first = world.lead().await;
    world.order("a@.service", Some(text(2))).await.expect("begun");
    let refused = world.order("a@1.service", Some(text(3))).await.expect_err("one at a time");
    assert!(refused.code == 409 && refused.message.contains("under way"), "{refused:?}");
    let replaced = async |unit: &str| world.record(unit).await.text == text(2);
    eventually("the first is replaced", || replaced("a@1.service")).await;

    world.elect().await;
    world.obey("a@1.service").await;
    // Long enough for the one that was deposed to try, which takes it a millisecond.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!replaced("a@2.service").await, "it was deposed");
    let second = world.lead().await;
    eventually("the second is replaced", || replaced("a@2.service")).await;
    assert_eq!(world.state().await, RolloutState::Running);
    world.obey("a@2.service").await;
    eventually("it is done", async || world.state().await == RolloutState::Done).await;
    for unit in ["a@.service", "a@1.service", "a@2.service"] {
        let record = world.record(unit).await;
        assert_eq!((record.text, record.version), (text(2), 2), "{unit} was replaced once");
    }
    first.abort();
    second.abort();
}

#[tokio::test]
async fn history_is_bounded_and_goes_with_its_unit() {
    let world = &World::new();
    for program in 1..=15 {
        world.submit("a.service", text(program), DesiredState::Inactive).await;
    }
    let history = world.hub.history(name("a.service")).await.expect("known");
    let numbers: Vec<_> = history.versions.iter().map(|version| version.number).collect();
    assert_eq!(numbers, (5..=15).collect::<Vec<_>>(), "ten former ones, and the present one");
    assert_eq!(history.versions[0].text, text(5));

    // Back, and the file that was there before that is not lost.
    let leader = world.lead().await;
    world.order("a.service", None).await.expect("begun");
    eventually("it is back", async || world.state().await == RolloutState::Done).await;
    let record = world.record("a.service").await;
    assert_eq!((record.text, record.version), (text(14), 16));

    world.hub.destroy(vec![name("a.service")]).await.expect("gone");
    for prefix in [keys::HISTORY, keys::ROLLOUTS] {
        assert_eq!(world.store.list(prefix).await.expect("listed").items, [], "{prefix}");
    }
    leader.abort();
}

#[tokio::test]
async fn what_belongs_to_no_unit_is_swept() {
    let world = &World::new();
    world.submit("a.service", text(1), DesiredState::Inactive).await;
    world.submit("a.service", text(2), DesiredState::Inactive).await;
    // Replaced and destroyed at the same moment.
    world.put(keys::version(&name("gone.service"), 1), &"rubbish").await;
    let leader = world.lead().await;
    eventually("only the known unit's is left", async || {
        let left = world.store.list(keys::HISTORY).await.expect("listed").items;
        left.len() == 1 && left[0].key == keys::version(&name("a.service"), 1)
    })
    .await;
    leader.abort();
}
