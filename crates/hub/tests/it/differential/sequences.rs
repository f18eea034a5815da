//! Thousands of short sequences on servers that they share: keys, transactions, leases, compaction and watches.
//!
//! A sequence has a prefix and leases of its own, so nothing has to be started for it; servers that a failed sequence
//! left apart are replaced. proptest makes the sequences and shrinks one that fails, whose requests are then
//! printed. Three pairs of servers work side by side, since a watch of the past waits a tenth of a second in etcd.
//! Invariant: both servers are asked the same in the same order, and are at the same revision in between.

use super::generate::{Generator, Scope};
use super::watches::Watches;
use super::{Etcd, agree};
use crate::dice::Dice;
use crate::raw::{call, channel, only_revision, open};
use crate::{Fixture, effort};
use etcd_client::proto as pb;
use proptest::collection::vec;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use std::cell::RefCell;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tonic::Status;
use tonic::transport::Channel;

/// Pairs of servers.
const PAIRS: u8 = 3;

/// Sequences per pair.
const SEQUENCES: u32 = 300;

/// Something wrong with the hub's answers, to see that it is found.
type Fault = fn(&mut pb::PbDeleteResponse);

/// A hub and an etcd that have been asked the same.
struct Pair {
    hub: Channel,
    etcd: Channel,
    sequences: i64,
    compacted: i64,
    fault: Option<Fault>,
    /// How much was compared.
    events: usize,
    refusals: usize,
    _fixture: Fixture,
    _etcd: Etcd,
    _dir: TempDir,
}

/// A sequence under way.
struct Run<'a> {
    pair: &'a mut Pair,
    scope: Scope,
    current: i64,
    watches: Watches,
    /// What was asked.
    script: Vec<String>,
}

macro_rules! ask {
    ($run:expr, $path:literal, $request:expr, $answer:ty) => {{
        let request = $request;
        $run.script.push(format!("{request:?}"));
        let hub: Result<$answer, Status> = call(&$run.pair.hub, $path, request.clone()).await;
        let etcd: Result<$answer, Status> = call(&$run.pair.etcd, $path, request.clone()).await;
        let header = |mut answer: $answer| {
            only_revision(&mut answer.header);
            answer
        };
        let (hub, etcd) = (hub.map(header).map(|answer| $run.pair.injected(answer)), etcd.map(header));
        let answer = agree(&request, hub, etcd)?;
        $run.pair.refusals += usize::from(answer.is_none());
        answer.and_then(|answer| answer.header)
    }};
}

impl Pair {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (etcd, fixture) = (Etcd::start(dir.path()).await, Fixture::start().await);
        Self {
            hub: channel(&fixture.hub.address().to_string()).await,
            etcd: channel(&etcd.address).await,
            sequences: 0,
            compacted: 0,
            fault: None,
            events: 0,
            refusals: 0,
            _fixture: fixture,
            _etcd: etcd,
            _dir: dir,
        }
    }

    fn injected<T: 'static>(&self, mut answer: T) -> T {
        if let Some(fault) = self.fault
            && let Some(delete) = (&mut answer as &mut dyn std::any::Any).downcast_mut()
        {
            fault(delete);
        }
        answer
    }

    async fn revision_of(server: &Channel) -> Option<i64> {
        let range = pb::PbRangeRequest { key: b"a".to_vec(), ..Default::default() };
        let answer: Result<pb::PbRangeResponse, Status> = call(server, "/etcdserverpb.KV/Range", range).await;
        answer.ok()?.header.map(|header| header.revision)
    }

    /// New servers, if these have grown apart.
    async fn rejoin(&mut self) {
        if Self::revision_of(&self.hub).await != Self::revision_of(&self.etcd).await {
            let fault = self.fault;
            *self = Self::start().await;
            self.fault = fault;
        }
    }

    /// One sequence, a tape per step; the error is the difference and the way there.
    async fn sequence(&mut self, steps: &[Vec<u16>]) -> Result<(), String> {
        self.rejoin().await;
        self.sequences += 1;
        let number = self.sequences;
        let scope = Scope { prefix: format!("{number:08}/"), leases: number * 4 };
        let watches = Watches::open(&self.hub, &self.etcd).await?;
        let current = Self::revision_of(&self.hub).await.ok_or("no revision")?;
        let mut run = Run { pair: self, scope, current, watches, script: Vec::new() };
        let outcome = run.all(steps).await;
        let (script, leases) = (run.script.join("\n"), run.scope.leases);
        for id in leases + 1..=leases + 4 {
            let revoke = pb::PbLeaseRevokeRequest { id };
            for server in [&self.hub, &self.etcd] {
                // Most do not exist.
                let _: Result<pb::PbLeaseRevokeResponse, _> =
                    call(server, "/etcdserverpb.Lease/LeaseRevoke", revoke).await;
            }
        }
        outcome.map_err(|difference| format!("{difference}\nafter\n{script}"))
    }
}

impl Run<'_> {
    async fn all(&mut self, steps: &[Vec<u16>]) -> Result<(), String> {
        for step in steps {
            if let Some(header) = self.step(Dice::tape(step.clone())).await? {
                self.current = header.revision;
            }
        }
        self.settle().await?;
        self.pair.events += self.watches.compare()?;
        Ok(())
    }

    async fn settle(&mut self) -> Result<(), String> {
        self.script.push("settle".to_owned());
        self.current = self.watches.settle([&self.pair.hub, &self.pair.etcd], &self.scope).await?;
        Ok(())
    }

    async fn step(&mut self, mut dice: Dice) -> Result<Option<pb::PbResponseHeader>, String> {
        let kind = dice.roll(28);
        let scope = self.scope.clone();
        let mut make = Generator { dice: &mut dice, scope: &scope, current: self.current };
        Ok(match kind {
            0..7 => ask!(self, "/etcdserverpb.KV/Put", make.put(), pb::PbPutResponse),
            7..11 => ask!(self, "/etcdserverpb.KV/Range", make.range(), pb::PbRangeResponse),
            11 | 12 => ask!(self, "/etcdserverpb.KV/DeleteRange", make.delete(), pb::PbDeleteResponse),
            13..18 => ask!(self, "/etcdserverpb.KV/Txn", make.txn(2), pb::PbTxnResponse),
            18 | 19 => {
                let ttl = if make.dice.one_in(10) { 9_000_000_001 } else { 1000 };
                let grant = pb::PbLeaseGrantRequest { ttl, id: make.some_lease() };
                ask!(self, "/etcdserverpb.Lease/LeaseGrant", grant, pb::PbLeaseGrantResponse)
            }
            20 => {
                let revoke = pb::PbLeaseRevokeRequest { id: make.some_lease() };
                ask!(self, "/etcdserverpb.Lease/LeaseRevoke", revoke, pb::PbLeaseRevokeResponse)
            }
            21 => self.time_to_live(make.some_lease()).await?,
            22 => self.keep_alive(make.some_lease()).await?,
            23 | 24 => {
                let watch = self.watches.create(&mut make, self.pair.compacted).await?;
                self.script.push(watch);
                None
            }
            25 => {
                self.settle().await?;
                let canceled = self.watches.cancel(dice.roll(3)).await?;
                self.script.push(canceled);
                None
            }
            26 => {
                self.settle().await?;
                let revision = self.current + 1 - dice.roll(8) as i64;
                let compact = pb::PbCompactionRequest { revision, physical: dice.one_in(4) };
                let header = ask!(self, "/etcdserverpb.KV/Compact", compact, pb::PbCompactionResponse);
                if header.is_some() {
                    self.pair.compacted = revision;
                }
                header
            }
            _ => self.leases().await?,
        })
    }

    async fn time_to_live(&mut self, id: i64) -> Result<Option<pb::PbResponseHeader>, String> {
        let request = pb::PbLeaseTimeToLiveRequest { id, keys: true };
        self.script.push(format!("{request:?}"));
        let mut answers = Vec::new();
        for server in [&self.pair.hub, &self.pair.etcd] {
            let answer: Result<pb::PbLeaseTimeToLiveResponse, Status> =
                call(server, "/etcdserverpb.Lease/LeaseTimeToLive", request).await;
            answers.push(answer.map(|mut answer| {
                only_revision(&mut answer.header);
                answer.keys.sort(); // etcd keeps them in a map
                // Time passes.
                if answer.ttl > 0 && (answer.granted_ttl - answer.ttl) < 60 {
                    answer.ttl = answer.granted_ttl;
                }
                answer
            }));
        }
        let [hub, etcd] = answers.try_into().map_err(|_| "two were asked".to_owned())?;
        Ok(agree(&request, hub, etcd)?.and_then(|answer| answer.header))
    }

    async fn leases(&mut self) -> Result<Option<pb::PbResponseHeader>, String> {
        self.script.push("leases".to_owned());
        let mut answers = Vec::new();
        for server in [&self.pair.hub, &self.pair.etcd] {
            let request = pb::PbLeaseLeasesRequest {};
            let answer: Result<pb::PbLeaseLeasesResponse, Status> =
                call(server, "/etcdserverpb.Lease/LeaseLeases", request).await;
            answers.push(answer.map(|mut answer| {
                only_revision(&mut answer.header);
                answer.leases.sort_by_key(|lease| lease.id); // etcd sorts by what remains
                answer
            }));
        }
        let [hub, etcd] = answers.try_into().map_err(|_| "two were asked".to_owned())?;
        Ok(agree(&"leases", hub, etcd)?.and_then(|answer| answer.header))
    }

    async fn keep_alive(&mut self, id: i64) -> Result<Option<pb::PbResponseHeader>, String> {
        self.script.push(format!("keep alive {id}"));
        let mut answers = Vec::new();
        for server in [&self.pair.hub, &self.pair.etcd] {
            let (sender, requests) = mpsc::channel(1);
            let _ = sender.send(pb::PbLeaseKeepAliveRequest { id }).await; // there is room
            drop(sender);
            let answer = async {
                let mut stream = open(server, "/etcdserverpb.Lease/LeaseKeepAlive", requests).await?;
                let answer: Option<pb::PbLeaseKeepAliveResponse> = stream.message().await?;
                answer.ok_or_else(|| Status::internal("no answer"))
            };
            answers.push(answer.await.map(|mut answer| {
                only_revision(&mut answer.header);
                answer
            }));
        }
        let [hub, etcd] = answers.try_into().map_err(|_| "two were asked".to_owned())?;
        Ok(agree(&"a keepalive", hub, etcd)?.and_then(|answer| answer.header))
    }
}

/// Runs `sequences` of them on a pair; the reason if one fails, and its length.
fn search(number: u8, sequences: u32, fault: Option<Fault>) -> Result<String, (String, usize)> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let mut pair = runtime.block_on(Pair::start());
    pair.fault = fault;
    let pair = RefCell::new(pair);
    let config =
        Config { cases: sequences, failure_persistence: None, max_shrink_iters: 1000, ..Config::default() };
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &[number; 32]);
    let mut runner = TestRunner::new_with_rng(config, random);
    let steps = vec(vec(proptest::num::u16::ANY, 1..40), 1..30);
    let outcome = runner.run(&steps, |steps| {
        let mut pair = pair.borrow_mut();
        runtime.block_on(pair.sequence(&steps)).map_err(TestCaseError::fail)
    });
    match outcome {
        Ok(()) => {
            let Pair { events, refusals, .. } = &*pair.borrow();
            Ok(format!("{sequences} sequences, {events} watched events, {refusals} refusals"))
        }
        Err(TestError::Fail(reason, steps)) => Err((reason.to_string(), steps.len())),
        Err(TestError::Abort(reason)) => Err((reason.to_string(), usize::MAX)),
    }
}

#[test]
fn short_sequences_have_the_same_answers() {
    let pairs: Vec<_> = (1..=PAIRS)
        .map(|number| std::thread::spawn(move || search(number, SEQUENCES * effort(), None)))
        .collect();
    for pair in pairs {
        match pair.join().unwrap() {
            Ok(summary) => println!("{summary}"),
            Err((reason, steps)) => panic!("shrunk to {steps} steps: {reason}"),
        }
    }
}

#[test]
fn a_difference_is_found_and_shrunk() {
    let more: Fault = |answer| answer.deleted += i64::from(answer.deleted > 1);
    let (reason, steps) = search(9, 1000, Some(more)).unwrap_err();
    // Two keys and their deletion: perhaps one transaction and a deletion.
    assert!(steps <= 3, "{steps}: {reason}");
    assert!(reason.contains("PbDeleteResponse") || reason.contains("DeleteRange"), "{reason}");
}
