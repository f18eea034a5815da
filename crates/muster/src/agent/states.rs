//! States of units on their way to the hub: one key a unit, under the machine's lease.
//!
//! While a write is under way further changes gather, and go in the next one together: a burst of a hundred
//! starts costs a few transactions. Invariant: the hub gets the newest state of every unit, though not every state
//! in between; a new lease gets them all again.

use super::{Machine, complain};
use model::{LeaseId, UnitName, UnitState, keys};
use registry::{Store, Write};
use std::{collections::BTreeMap, time::Duration};
use tokio::sync::watch;
use tracing::debug;

/// etcd takes 128 operations in a transaction.
const CHUNK: usize = 100;
/// Between attempts.
const PAUSE: Duration = Duration::from_millis(250);

/// What the hub should have of this machine.
pub(super) type States = BTreeMap<UnitName, UnitState>;

/// States, and whether nothing will be started here any more, because the machine shuts down.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Report {
    pub(super) states: States,
    pub(super) last: bool,
}

/// Publishes what `reports` holds, for ever. `quiet` becomes true when the hub has what stands since the machine
/// starts nothing any more: from then on a unit that the hub calls dead is dead.
pub(super) async fn publish(
    machine: Machine,
    store: Store,
    mut lease: watch::Receiver<Option<LeaseId>>,
    mut reports: watch::Receiver<Report>,
    quiet: watch::Sender<bool>,
) {
    let mut published = States::new();
    let mut under = None;
    let mut complained = false;
    loop {
        let current = *lease.borrow_and_update();
        let Some(current) = current else {
            if lease.changed().await.is_err() {
                return;
            }
            continue;
        };
        if under != Some(current) {
            // What an earlier run of this daemon left there may be of units that are gone since.
            match store.list(&keys::states_of(&machine.id)).await {
                Ok(listing) => published = left_behind(&listing.items, current),
                Err(error) => {
                    complain(&mut complained, &error, "states not published yet");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            }
            under = Some(current);
        }
        let Report { states: wanted, last } = reports.borrow_and_update().clone();
        let writes = differences(&machine, &published, &wanted, current);
        if writes.is_empty() {
            quiet.send_if_modified(|before| std::mem::replace(before, last) != last);
            let changed = tokio::select! {
                changed = reports.changed() => changed,
                changed = lease.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
            continue;
        }
        match write(&store, &writes).await {
            Ok(()) => {
                debug!(changes = writes.len(), "states published");
                (published, complained) = (wanted, false);
            }
            Err(error) => {
                complain(&mut complained, &error, "states not published");
                tokio::time::sleep(PAUSE).await;
                // How far it came is not known: compare with the hub again.
                under = None;
            }
        }
    }
}

async fn write(store: &Store, writes: &[Write]) -> Result<(), registry::StoreError> {
    for chunk in writes.chunks(CHUNK) {
        store.commit(&[], chunk).await?;
    }
    Ok(())
}

/// What the hub has of this machine. What stands under another lease must be written again.
fn left_behind(items: &[registry::KeyValue], lease: LeaseId) -> States {
    let read = |kv: &registry::KeyValue| {
        let (_, unit) = keys::machine_and_unit(keys::STATES, &kv.key)?;
        let mut state: UnitState = serde_json::from_slice(&kv.value).ok()?;
        if kv.lease != Some(lease) {
            state.v = 0;
        }
        Some((unit, state))
    };
    items.iter().filter_map(read).collect()
}

fn differences(machine: &Machine, published: &States, wanted: &States, lease: LeaseId) -> Vec<Write> {
    let puts =
        wanted.iter().filter(|(unit, state)| published.get(*unit) != Some(*state)).map(|(unit, state)| {
            let value = serde_json::to_vec(state).expect("states always render");
            Write::Put { key: keys::state(&machine.id, unit), value: value.into(), lease: Some(lease) }
        });
    let gone = published.keys().filter(|unit| !wanted.contains_key(*unit));
    let deletes = gone.map(|unit| Write::Delete(keys::state(&machine.id, unit)));
    puts.chain(deletes).collect()
}
