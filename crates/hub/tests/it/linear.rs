//! Linearizability of a hub that is killed again and again while clients use it.
//!
//! Six clients put, compare-and-put, delete and read six keys, two watch them, and the hub, a process of its own, gets
//! SIGKILL at a random moment and is started on what it left, some tens of times. Then two checkers judge what was
//! recorded: [`revisions`] replays the history by revision, [`register`] searches an order per key without
//! believing any revision. A call that got no answer may have happened or not. `HUB_PROOF=n` runs `n` such
//! rounds instead of one; each has a seed, which is printed.

/// What is recorded.
mod record;
/// The checker that searches.
mod register;
/// The checker that replays.
mod revisions;

use crate::child::ChildHub;
use crate::dice::Dice;
use crate::{effort, soon};
use etcd_client::{
    Client, Compare, CompareOp, GetOptions, KeyValue, Txn, TxnOp, TxnOpResponse, WatchOptions,
};
use record::{Answer, Call, Change, KEYS, Kv, Op, State, Told, Watched};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How long clients and killer are at it, per round.
const ROUND: Duration = Duration::from_secs(9);

const CLIENTS: u64 = 6;

/// What clients, watchers and the killer share.
#[derive(Clone)]
struct Scene {
    start: Instant,
    /// Where the hub of the moment listens; empty is the end.
    address: watch::Receiver<String>,
    /// How many calls were answered so far.
    answered: Arc<AtomicU64>,
}

impl Scene {
    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// A client of the next hub; none at the end.
    async fn connect(&mut self) -> Option<Client> {
        loop {
            let address = self.address.borrow_and_update().clone();
            if address.is_empty() {
                return None;
            }
            // A first answer, so that a connection that comes to nothing is no call of unknown outcome.
            if let Ok(mut client) = Client::connect([address], None).await
                && client.status().await.is_ok()
            {
                return Some(client);
            }
            self.address.changed().await.ok()?;
        }
    }
}

fn name(key: usize) -> String {
    format!("k{key}")
}

fn number(value: &[u8]) -> u64 {
    std::str::from_utf8(value).unwrap().parse().unwrap()
}

fn kv(kv: &KeyValue) -> Kv {
    Kv {
        value: number(kv.value()),
        created: kv.create_revision(),
        modified: kv.mod_revision(),
        version: kv.version(),
    }
}

fn key_of(kv: &KeyValue) -> Option<usize> {
    kv.key_str().unwrap().strip_prefix('k')?.parse().ok()
}

fn state(kvs: &[KeyValue]) -> State {
    let mut state = State::default();
    for found in kvs {
        state[key_of(found).unwrap()] = Some(kv(found));
    }
    state
}

async fn perform(client: &mut Client, op: &Op) -> Result<Answer, etcd_client::Error> {
    Ok(match op {
        Op::Put { key, value } => {
            let put = client.put(name(*key), value.to_string(), None).await?;
            Answer::Wrote(put.header().unwrap().revision())
        }
        Op::PutBoth { keys, value } => {
            let put = |key: &usize| TxnOp::put(name(*key), value.to_string(), None);
            let done = client.txn(Txn::new().and_then(keys.iter().map(put).collect::<Vec<_>>())).await?;
            Answer::Wrote(done.header().unwrap().revision())
        }
        Op::Swap { key, seen, value } => {
            let revision = seen.map_or(0, |kv| kv.modified);
            let txn = Txn::new()
                .when(vec![Compare::mod_revision(name(*key), CompareOp::Equal, revision)])
                .and_then(vec![TxnOp::put(name(*key), value.to_string(), None)])
                .or_else(vec![TxnOp::get(name(*key), None)]);
            let done = client.txn(txn).await?;
            let revision = done.header().unwrap().revision();
            match done.op_responses().pop() {
                Some(TxnOpResponse::Get(found)) => {
                    Answer::Found { revision, kv: found.kvs().first().map(kv) }
                }
                _ => Answer::Wrote(revision),
            }
        }
        Op::Delete { key } => {
            let deleted = client.delete(name(*key), None).await?;
            let revision = deleted.header().unwrap().revision();
            match deleted.deleted() {
                0 => Answer::Found { revision, kv: None },
                _ => Answer::Wrote(revision),
            }
        }
        Op::Get { key } => {
            let found = client.get(name(*key), None).await?;
            Answer::Found { revision: found.header().unwrap().revision(), kv: found.kvs().first().map(kv) }
        }
        Op::GetAll => {
            let found = client.get("k", Some(GetOptions::new().with_prefix())).await?;
            Answer::All { revision: found.header().unwrap().revision(), state: state(found.kvs()) }
        }
    })
}

/// Calls until the end; after a call without an answer waits for the next hub.
async fn client(mut scene: Scene, seed: u64, number: u64) -> Vec<Call> {
    let mut dice = Dice::seeded(seed ^ (number << 32));
    let mut calls = Vec::new();
    let mut seen = State::default();
    let mut values = number * 1_000_000_000;
    while let Some(mut client) = scene.connect().await {
        loop {
            values += 1;
            let op = Op::random(&mut dice, values, &seen);
            let called = scene.now();
            let answer = tokio::time::timeout(crate::DEADLINE, perform(&mut client, &op)).await;
            let answer = answer.expect("an answer or an error within the deadline").ok();
            let returned = scene.now();
            let ended = answer.is_none();
            if let Some(answer) = &answer {
                scene.answered.fetch_add(1, Ordering::Relaxed);
                op.learn(answer, &mut seen);
            }
            calls.push(Call { op, called, answer: answer.map(|answer| (returned, answer)) });
            if ended || scene.address.borrow().is_empty() {
                break;
            }
        }
    }
    calls
}

/// The changes of an answer.
fn changes(events: &[etcd_client::Event]) -> Vec<(i64, Change)> {
    let change = |event: &etcd_client::Event| {
        let of = event.kv().unwrap();
        let now = (event.event_type() == etcd_client::EventType::Put).then(|| kv(of));
        let before = event.prev_kv().map(kv);
        Some((of.mod_revision(), Change { key: key_of(of)?, now, before }))
    };
    events.iter().filter_map(change).collect()
}

/// Watches one key or all, from the first revision on; takes it up again after each kill where it was.
async fn watcher(mut scene: Scene, key: Option<usize>) -> Watched {
    let mut watched = Watched { key, told: Vec::new() };
    let mut next = 2;
    while let Some(mut client) = scene.connect().await {
        let options = WatchOptions::new().with_prev_key().with_start_revision(next);
        let (name, options) = match key {
            Some(key) => (name(key), options),
            None => ("k".to_owned(), options.with_prefix()),
        };
        let Ok(mut stream) = client.watch(name, Some(options)).await else { continue };
        loop {
            let answer = tokio::select! {
                answer = stream.message() => answer,
                _ = scene.address.changed() => {
                    scene.address.mark_changed();
                    break;
                }
            };
            let Ok(Some(answer)) = answer else { break };
            assert!(!answer.canceled(), "{answer:?}");
            let changes = changes(answer.events());
            if let Some((last, _)) = changes.last() {
                next = last + 1;
                let revision = answer.header().unwrap().revision();
                watched.told.push(Told { at: scene.now(), revision, changes });
            }
        }
    }
    watched
}

/// Everything that happened, by revision, as the hub tells it in the end.
async fn history(client: &mut Client) -> BTreeMap<i64, Vec<Change>> {
    let last = client.put("end", "0", None).await.unwrap().header().unwrap().revision();
    let options = WatchOptions::new().with_all_keys().with_prev_key().with_start_revision(2);
    let mut stream = client.watch("", Some(options)).await.unwrap();
    let mut history: BTreeMap<i64, Vec<Change>> = BTreeMap::new();
    let mut reached = 1;
    while reached < last {
        let answer = soon(stream.message()).await.unwrap().unwrap();
        assert!(!answer.canceled(), "{answer:?}");
        for (revision, change) in changes(answer.events()) {
            history.entry(revision).or_default().push(change);
        }
        reached = answer.events().last().map_or(reached, |event| event.kv().unwrap().mod_revision());
    }
    history
}

async fn round(seed: u64) {
    let dir = tempfile::tempdir().unwrap();
    let mut dice = Dice::seeded(seed);
    let mut hub = ChildHub::start(dir.path());
    let (sender, address) = watch::channel(hub.address.clone());
    let scene = Scene { start: Instant::now(), address, answered: Arc::default() };
    let mut clients = JoinSet::new();
    (1..=CLIENTS).for_each(|number| drop(clients.spawn(client(scene.clone(), seed, number))));
    let mut watchers = JoinSet::new();
    [None, Some(0)].into_iter().for_each(|key| drop(watchers.spawn(watcher(scene.clone(), key))));

    let mut kills = 0;
    while scene.start.elapsed() < ROUND {
        let goal = scene.answered.load(Ordering::Relaxed) + 1 + dice.roll(600);
        crate::eventually("calls are answered", async || scene.answered.load(Ordering::Relaxed) >= goal)
            .await;
        hub.kill();
        kills += 1;
        let path = dir.path().to_owned();
        hub = tokio::task::spawn_blocking(move || ChildHub::start(&path)).await.unwrap();
        sender.send_replace(hub.address.clone());
    }
    sender.send_replace(String::new());
    let calls: Vec<Call> = soon(clients.join_all()).await.into_iter().flatten().collect();
    let watched = soon(watchers.join_all()).await;
    let mut last = Client::connect([hub.address.as_str()], None).await.unwrap();
    let history = history(&mut last).await;

    let summary =
        revisions::check(&calls, &history, &watched).unwrap_or_else(|what| panic!("seed {seed}: {what}"));
    for key in 0..KEYS {
        let register = register::history(&calls, key);
        match register::linearizable(&register) {
            Ok(true) => {}
            Ok(false) => {
                panic!("seed {seed}: no order of the calls explains the answers about {}", name(key))
            }
            Err(configurations) => panic!("seed {seed}: undecided after {configurations} configurations"),
        }
    }
    println!("seed {seed}: {kills} kills, {summary}");
    assert!(
        kills > 1 && summary.unknown_that_happened + summary.unknown_that_did_not > 0,
        "nothing was tried"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_again_and_again_it_is_linearizable() {
    for seed in 1..=effort() as u64 {
        round(seed).await;
    }
}
