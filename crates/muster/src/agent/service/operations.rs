//! What operators ask and order, answered from the hub's records by the same engine that decides.
//!
//! Nothing is decided here: an order is a record, and the leader carries it out. Invariant: an explanation is of one
//! revision of the hub.

use super::{Hub, unavailable};
use crate::agent::events;
use api::{
    ApiError,
    operations::{
        Event, EventList, EventQuery, MachineRef, MaintenanceOrder, Move, MovePlan, Operations, Refused,
        Verdict, Why,
    },
};
use model::{EventRecord, MachineId, MaintenanceRecord, MoveRecord, RECORD_VERSION, UnitName, keys};
use muster_core::{cluster::Cluster, engine::Engine};
use registry::{Change, Delta, KeyValue, Write};
use tokio::sync::mpsc;

/// Orders to move that are written in one transaction.
const CHUNK: usize = 100;
/// Events on their way to a client that watches.
const WATCH_BUFFER: usize = 256;

impl Operations for Hub {
    async fn why(&self, unit: UnitName) -> Result<Why, ApiError> {
        let (cluster, revision) = self.cluster().await?;
        let why = Engine::of(&cluster).why(&unit);
        let (why, known) = why
            .zip(cluster.units.get(&unit))
            .ok_or_else(|| ApiError::not_found(format!("unit {unit} does not exist")))?;
        let refused = |(unit, refusal): (UnitName, muster_core::engine::Refusal)| Refused {
            unit,
            rule: serde_json::to_value(&refusal).unwrap_or_default(),
            text: refusal.to_string(),
        };
        let scheduled = cluster.schedule.get(&unit);
        let reason = |id: &MachineId| {
            scheduled.and_then(|on| on.get(id)).map(|record| record.why.clone()).unwrap_or_default()
        };
        let verdicts = why.verdicts.into_iter().map(|verdict| Verdict {
            machine: named(&cluster, &verdict.machine),
            here: verdict.here,
            rank: verdict.rank,
            units: verdict.units,
            siblings: verdict.siblings,
            share: verdict.share,
            refused: verdict.refused.map(refused),
        });
        Ok(Why {
            revision,
            desired: known.record.desired,
            machines: why.machines.iter().map(|id| (named(&cluster, id), reason(id))).collect(),
            group: why.group,
            verdicts: verdicts.collect(),
            unit,
        })
    }

    async fn maintain(&self, machine: MachineId, order: Option<MaintenanceOrder>) -> Result<(), ApiError> {
        let key = keys::maintenance(&machine);
        let Some(order) = order else {
            self.store.commit(&[], &[Write::Delete(key)]).await.map_err(unavailable)?;
            return Ok(());
        };
        let present = self.store.get(&keys::machine(&machine)).await.map_err(unavailable)?;
        if present.is_none() {
            let message = format!("there is no machine {machine} (see `muster list-machines`)");
            return Err(ApiError::not_found(message));
        }
        let record = MaintenanceRecord {
            v: RECORD_VERSION,
            state: order.state,
            since: events::now(),
            by: order.by,
            reason: order.reason,
            unknown: Default::default(),
        };
        let value = serde_json::to_vec(&record).expect("records always render");
        self.store.put(&key, value, None).await.map_err(unavailable)?;
        Ok(())
    }

    async fn rebalance(&self) -> Result<MovePlan, ApiError> {
        let (cluster, _) = self.cluster().await?;
        let moves = Engine::of(&cluster).rebalance().into_iter().map(|step| Move {
            units: step.units,
            from: named(&cluster, &step.from),
            from_units: step.from_units,
            to: named(&cluster, &step.to),
            to_units: step.to_units,
        });
        Ok(MovePlan { moves: moves.collect() })
    }

    async fn relocate(&self, plan: MovePlan) -> Result<(), ApiError> {
        for step in &plan.moves {
            if step.units.is_empty() {
                return Err(ApiError::bad_request("a move of no units"));
            }
        }
        // The first of a group takes the others along.
        let orders: Vec<_> =
            plan.moves.iter().filter_map(|step| Some((step.units.first()?, &step.to.id))).collect();
        for chunk in orders.chunks(CHUNK) {
            let write = |(unit, to): &(&UnitName, &MachineId)| {
                let record = MoveRecord::new((*to).clone());
                let value = serde_json::to_vec(&record).expect("records always render");
                Write::put(keys::move_order(unit), value)
            };
            let writes: Vec<_> = chunk.iter().map(write).collect();
            self.store.commit(&[], &writes).await.map_err(unavailable)?;
        }
        Ok(())
    }

    async fn events(&self, query: EventQuery) -> Result<EventList, ApiError> {
        let listing = self.store.list(keys::EVENTS).await.map_err(unavailable)?;
        let events = listing.items.iter().filter_map(read).filter(|event| query.takes(&event.event));
        Ok(EventList { events: events.collect() })
    }

    async fn watch_events(&self, query: EventQuery) -> Result<mpsc::Receiver<Event>, ApiError> {
        // Asked first, so that a hub that is away is an error and not a silence.
        self.store.list(keys::EVENTS).await.map_err(unavailable)?;
        let (sender, receiver) = mpsc::channel(WATCH_BUFFER);
        let mut follow = self.store.follow(keys::EVENTS);
        tokio::spawn(async move {
            let mut last = None;
            loop {
                let delta = tokio::select! {
                    delta = follow.next() => delta,
                    () = sender.closed() => return,
                };
                let news: Vec<KeyValue> = match delta {
                    None => return,
                    Some(Delta::Lost) => continue,
                    Some(Delta::Reset(listing)) => listing.items,
                    Some(Delta::Changes(changes)) => changes
                        .changes
                        .into_iter()
                        .filter_map(|change| match change {
                            Change::Put(kv) => Some(kv),
                            Change::Delete { .. } => None,
                        })
                        .collect(),
                };
                // A list tells again what is known; revisions do not go back.
                for kv in news.iter().filter(|kv| last.is_none_or(|last| kv.mod_revision > last)) {
                    let Some(event) = read(kv).filter(|event| query.takes(&event.event)) else { continue };
                    if sender.send(event).await.is_err() {
                        return;
                    }
                }
                last = last.max(news.iter().map(|kv| kv.mod_revision).max());
            }
        });
        Ok(receiver)
    }
}

fn read(kv: &KeyValue) -> Option<Event> {
    let id = kv.key.strip_prefix(keys::EVENTS)?.parse().ok()?;
    let event: EventRecord = serde_json::from_slice(&kv.value).ok()?;
    Some(Event { id, event })
}

fn named(cluster: &Cluster, id: &MachineId) -> MachineRef {
    let name = cluster.machines.get(id).map(|machine| machine.name.clone()).unwrap_or_default();
    MachineRef { id: id.clone(), name }
}
