//! The watches of a sequence: one stream on each server, and what both were told.
//!
//! Which events share an answer depends on the moment, so what is compared is, per watch, everything in order. Where
//! etcd's order of an answer and an event depends on the moment too (cancel, compaction), [`Watches::settle`] first waits until
//! every watch has had all that is due. Invariant: no answer divides a revision.

use super::generate::{Generator, KEYS, Scope};
use crate::raw::{call, open};
use etcd_client::proto as pb;
use pb::PbWatchRequestUnion as Union;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// More than etcd needs to bring a watch up to date, which it does ten times a second.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a watch was told.
#[derive(Debug, Clone, PartialEq)]
enum Told {
    Created { revision: i64, reason: String },
    Event(pb::PbEvent),
    Canceled { compacted: i64, reason: String },
}

/// One server's stream.
struct Side {
    requests: mpsc::Sender<pb::PbWatchRequest>,
    answers: Streaming<pb::PbWatchResponse>,
    told: BTreeMap<i64, Vec<Told>>,
    /// Ids in the order in which they were created; -1 is a refusal.
    created: Vec<i64>,
}

/// A watch that goes on.
#[derive(Debug)]
struct Live {
    id: i64,
    /// The first revision that it wants.
    next: i64,
    key: Vec<u8>,
    range_end: Vec<u8>,
    puts: bool,
    deletes: bool,
}

/// The watches of one sequence on both servers.
pub(crate) struct Watches {
    hub: Side,
    etcd: Side,
    live: Vec<Live>,
    explicit: i64,
}

fn revision(event: &pb::PbEvent) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

impl Side {
    async fn open(channel: &Channel) -> Result<Self, Status> {
        let (requests, receiver) = mpsc::channel(16);
        // etcd answers the call with its first message, so there must be one: it tells how far it is.
        let progress = pb::PbWatchRequest { request_union: Some(Union::ProgressRequest(Default::default())) };
        requests.send(progress).await.map_err(|_| Status::internal("no stream"))?;
        let answers = open(channel, "/etcdserverpb.Watch/Watch", receiver).await?;
        Ok(Self { requests, answers, told: BTreeMap::new(), created: Vec::new() })
    }

    /// Reads until `done`.
    async fn read(&mut self, what: &str, done: impl Fn(&Self) -> bool) -> Result<(), String> {
        while !done(self) {
            let answer = tokio::time::timeout(PATIENCE, self.answers.message()).await;
            let answer = answer.map_err(|_| format!("waited in vain for {what}; so far {:?}", self.told))?;
            let answer = answer.map_err(|status| status.to_string())?.ok_or("the stream ended")?;
            self.take(answer)?;
        }
        Ok(())
    }

    fn take(&mut self, answer: pb::PbWatchResponse) -> Result<(), String> {
        let told = self.told.entry(answer.watch_id).or_default();
        if answer.created {
            let revision = answer.header.as_ref().map_or(0, |header| header.revision);
            told.push(Told::Created { revision, reason: answer.cancel_reason.clone() });
            self.created.push(answer.watch_id);
        } else if answer.canceled {
            told.push(Told::Canceled { compacted: answer.compact_revision, reason: answer.cancel_reason });
        }
        let before = told.iter().rev().find_map(|told| match told {
            Told::Event(event) => Some(revision(event)),
            _ => None,
        });
        if before.is_some() && before == answer.events.first().map(revision) {
            return Err(format!("watch {} has revision {before:?} in two answers", answer.watch_id));
        }
        told.extend(answer.events.into_iter().map(Told::Event));
        Ok(())
    }

    fn has(&self, id: i64, last: i64) -> bool {
        let at_end = |told: &Told| match told {
            Told::Event(event) => revision(event) >= last,
            _ => false,
        };
        self.told.get(&id).is_some_and(|told| told.iter().any(at_end))
    }

    fn is_canceled(&self, id: i64) -> bool {
        self.told.get(&id).is_some_and(|told| told.iter().any(|told| matches!(told, Told::Canceled { .. })))
    }
}

impl Live {
    fn covers(&self, key: &[u8]) -> bool {
        match self.range_end.as_slice() {
            b"" => key == self.key,
            b"\0" => key >= self.key.as_slice(),
            end => self.key.as_slice() <= key && key < end,
        }
    }
}

impl Live {
    /// Whether it watches any of each `step`th key.
    fn covers_any(&self, scope: &Scope, step: usize) -> bool {
        KEYS.iter().step_by(step).any(|key| self.covers(format!("{}{key}", scope.prefix).as_bytes()))
    }
}

impl Watches {
    pub(crate) async fn open(hub: &Channel, etcd: &Channel) -> Result<Self, String> {
        let side = async |channel| Side::open(channel).await.map_err(|status| status.to_string());
        Ok(Self { hub: side(hub).await?, etcd: side(etcd).await?, live: Vec::new(), explicit: 100 })
    }

    async fn send(&self, union: Union) -> Result<(), String> {
        for side in [&self.hub, &self.etcd] {
            let request = pb::PbWatchRequest { request_union: Some(union.clone()) };
            side.requests.send(request).await.map_err(|_| "the stream ended".to_owned())?;
        }
        Ok(())
    }

    /// Watches something at random; what it was, for the record.
    pub(crate) async fn create(
        &mut self,
        make: &mut Generator<'_>,
        compacted: i64,
    ) -> Result<String, String> {
        // The message's type is not exported under a name, so it is made where it is known.
        let mut union = Union::CreateRequest(Default::default());
        let Union::CreateRequest(create) = &mut union else { return Err("it was one".to_owned()) };
        create.key = make.key();
        create.range_end = make.range_end();
        create.prev_kv = make.dice.one_in(2);
        create.start_revision = match make.dice.roll(5) {
            0 | 1 => 0,
            2 => make.current + 1 + make.dice.roll(4) as i64,
            3 => (make.current - make.dice.roll(30) as i64).max(1),
            _ => make.current - make.dice.roll(4) as i64,
        };
        create.filters = make.dice.pick(&[vec![], vec![], vec![], vec![0], vec![1], vec![1, 0]]);
        create.fragment = make.dice.one_in(4);
        create.watch_id = match make.dice.roll(4) {
            0 | 1 => 0,
            2 => {
                self.explicit += 1;
                self.explicit
            }
            _ => self.live.first().map_or(0, |live| live.id), // taken
        };
        if create.key.is_empty() {
            // That would be the first of all keys, where other sequences have been.
            create.key = make.scope.prefix.clone().into();
        }
        let (key, range_end) = (create.key.clone(), create.range_end.clone());
        let (puts, deletes) = (!create.filters.contains(&0), !create.filters.contains(&1));
        let mut live = Live { id: 0, next: 0, key, range_end, puts, deletes };
        if !live.covers_any(make.scope, 1) || !(puts || deletes) {
            // Nobody can see when etcd has brought such a one up to date; a compaction before that cancels it.
            create.start_revision = 0;
        }
        if compacted > 0 && create.start_revision == compacted {
            // A deletion at just the compacted revision is told to such a watch; Debian's etcd has lost it, a defect that was
            // mended in 2024 (etcd-io/etcd#18089). What the hub does is tested in `watch.rs`.
            create.start_revision += 1;
        }
        let (start, text) = (create.start_revision, format!("{create:?}"));
        let count = self.hub.created.len() + 1;
        self.send(union).await?;
        for side in [&mut self.hub, &mut self.etcd] {
            side.read("a created watch", |side| side.created.len() == count).await?;
        }
        let id = self.hub.created[count - 1];
        if id != self.etcd.created[count - 1] {
            return Err(format!("{text}: watch {id} of the hub is {} of etcd", self.etcd.created[count - 1]));
        }
        if id != -1 {
            if start > 0 && start < compacted {
                for side in [&mut self.hub, &mut self.etcd] {
                    side.read("a watch of the past to be canceled", |side| side.is_canceled(id)).await?;
                }
            } else {
                (live.id, live.next) = (id, if start == 0 { make.current + 1 } else { start });
                self.live.push(live);
            }
        }
        Ok(format!("watch {id}: {text}"))
    }

    /// Cancels one, perhaps one that does not exist. What was due must be there already.
    pub(crate) async fn cancel(&mut self, choice: u64) -> Result<String, String> {
        let live = (choice as usize) < self.live.len();
        let id = if live { self.live.remove(choice as usize).id } else { 77 };
        let mut union = Union::CancelRequest(Default::default());
        if let Union::CancelRequest(cancel) = &mut union {
            cancel.watch_id = id;
        }
        self.send(union).await?;
        if live {
            for side in [&mut self.hub, &mut self.etcd] {
                side.read("a watch to be canceled", |side| side.is_canceled(id)).await?;
            }
        }
        Ok(format!("cancel {id}"))
    }

    /// Puts and deletes every key, and waits until each watch has had what it must of that; the revision afterwards.
    pub(crate) async fn settle(&mut self, servers: [&Channel; 2], scope: &Scope) -> Result<i64, String> {
        let put = |key: &str| {
            let key = format!("{}{key}", scope.prefix).into();
            let put = pb::PbPutRequest { key, value: b"settled".to_vec(), ..Default::default() };
            pb::PbTxnRequestOp { request: Some(pb::PbTxnOpRequest::RequestPut(put)) }
        };
        let all = pb::PbTxnRequest { success: KEYS.into_iter().map(put).collect(), ..Default::default() };
        let some = pb::PbTxnRequest {
            success: KEYS.into_iter().step_by(2).map(put).collect(),
            ..Default::default()
        };
        let end = format!("{}~", scope.prefix).into();
        let delete = pb::PbDeleteRequest { key: scope.prefix.clone().into(), range_end: end, prev_kv: false };
        let mut revisions = Vec::new();
        for server in servers {
            let done = async {
                let put: pb::PbTxnResponse = call(server, "/etcdserverpb.KV/Txn", all.clone()).await?;
                let gone: pb::PbDeleteResponse =
                    call(server, "/etcdserverpb.KV/DeleteRange", delete.clone()).await?;
                let _: pb::PbTxnResponse = call(server, "/etcdserverpb.KV/Txn", some.clone()).await?;
                let revision =
                    |header: Option<pb::PbResponseHeader>| header.map_or(0, |header| header.revision);
                Ok::<_, Status>((revision(put.header), revision(gone.header)))
            };
            revisions.push(done.await.map_err(|status| status.to_string())?);
        }
        let (put, gone) = revisions[0];
        if revisions[1] != (put, gone) {
            return Err(format!("the hub and etcd are at different revisions: {revisions:?}"));
        }
        for live in &self.live {
            let due = [
                (live.puts && live.covers_any(scope, 2), gone + 1),
                (live.deletes && live.covers_any(scope, 1), gone),
                (live.puts && live.covers_any(scope, 1), put),
            ];
            let Some((_, last)) = due.into_iter().find(|(is_due, at)| *is_due && *at >= live.next) else {
                continue;
            };
            for side in [&mut self.hub, &mut self.etcd] {
                side.read(&format!("revision {last} for {live:?}"), |side| side.has(live.id, last)).await?;
            }
        }
        Ok(gone + 1)
    }

    /// Compares everything that both were told; how many events.
    pub(crate) fn compare(&self) -> Result<usize, String> {
        for id in self.hub.told.keys().chain(self.etcd.told.keys()) {
            let (hub, etcd) = (self.hub.told.get(id), self.etcd.told.get(id));
            if hub != etcd {
                return Err(format!("watch {id} was told different things\n hub: {hub:?}\netcd: {etcd:?}"));
            }
        }
        let events = self.hub.told.values().flatten().filter(|told| matches!(told, Told::Event(_)));
        Ok(events.count())
    }
}
