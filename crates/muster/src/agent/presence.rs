//! The machine's record in the hub, under the machine's lease: written when the session begins, when it begins
//! anew, and when something about the machine changes.
//!
//! Invariants: of two machines with one machine-id only one is in the cluster, the other says so and waits; a machine
//! that crashed and is back takes its own earlier place at once. Nothing else of the daemon speaks for the machine
//! before [`Presence::admitted`] says under which lease it may.

use super::{Machine, complain, identity};
use model::{LeaseId, MachineRecord, Metadata, Revision, Subnet, keys};
use registry::{Guard, KeyValue, Store, StoreError, Write};
use std::time::Duration;
use tokio::sync::watch;
use tracing::{error, info};

/// Between attempts to write it.
const PAUSE: Duration = Duration::from_millis(250);
/// Between looks whether the other machine with this machine-id is gone.
const AGAIN: Duration = Duration::from_secs(1);

pub(super) struct Presence {
    pub(super) machine: Machine,
    pub(super) store: Store,
    pub(super) record: MachineRecord,
    /// The session's lease.
    pub(super) lease: watch::Receiver<Option<LeaseId>>,
    pub(super) subnet: watch::Receiver<Option<Subnet>>,
    pub(super) metadata: watch::Receiver<Metadata>,
    /// The machine shuts down, and its states say all that there is to say.
    pub(super) leaving: watch::Receiver<bool>,
    /// Told when the hub knows that.
    pub(super) announced: watch::Sender<bool>,
    /// Under which lease the machine is in the cluster.
    pub(super) admitted: watch::Sender<Option<LeaseId>>,
}

/// What came of an announcement.
enum Outcome {
    Written(Revision),
    /// Another machine has the machine-id.
    Taken(Box<MachineRecord>),
    /// Somebody changed the record meanwhile.
    Again,
}

impl Presence {
    /// Keeps the record right for ever; ends only when the machine-id has changed.
    pub(super) async fn run(mut self) -> anyhow::Result<()> {
        let (mut written, mut complained) = (None, false);
        let mut refused: Option<MachineRecord> = None;
        loop {
            let lease = *self.lease.borrow_and_update();
            self.record.subnet = *self.subnet.borrow_and_update();
            self.record.metadata = self.metadata.borrow_and_update().clone();
            self.record.leaving = *self.leaving.borrow_and_update();
            let wanted = lease.map(|lease| (lease, self.record.clone()));
            if lease.is_none() {
                self.admit(None);
            }
            let Some((lease, _)) = wanted.as_ref().filter(|_| wanted != written) else {
                self.changed().await;
                continue;
            };
            match self.announce(*lease).await {
                Ok(Outcome::Written(revision)) => {
                    info!(%revision, subnet = ?self.record.subnet, "machine present");
                    self.admit(Some(*lease));
                    self.announced.send_replace(self.record.leaving);
                    (written, complained, refused) = (wanted, false, None);
                }
                Ok(Outcome::Taken(other)) => {
                    self.admit(None);
                    if refused.as_ref() != Some(&other) {
                        let error = taken(&self.machine, &other);
                        error!(error, "not in the cluster, trying on");
                        refused = Some(*other);
                    }
                    tokio::time::sleep(AGAIN).await;
                    identity::still(&self.machine.id)?;
                }
                Ok(Outcome::Again) => {}
                Err(error) => {
                    complain(&mut complained, &error, "machine not announced yet");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn admit(&self, lease: Option<LeaseId>) {
        self.admitted.send_if_modified(|before| std::mem::replace(before, lease) != lease);
    }

    /// All senders live as long as the daemon; when one is gone there is nothing left to announce.
    async fn changed(&mut self) {
        let changed = tokio::select! {
            changed = self.lease.changed() => changed,
            changed = self.subnet.changed() => changed,
            changed = self.metadata.changed() => changed,
            changed = self.leaving.changed() => changed,
        };
        if changed.is_err() {
            std::future::pending().await
        }
    }

    async fn announce(&self, lease: LeaseId) -> Result<Outcome, StoreError> {
        let key = keys::machine(&self.machine.id);
        let current = self.store.get(&key).await?;
        let (guard, old) = match &current {
            None => (Guard::Absent(key.clone()), None),
            Some(kv) => match place(kv, lease, &self.record) {
                Place::Ours => (Guard::Unchanged(key.clone(), kv.mod_revision), None),
                Place::Earlier(old) => (Guard::Unchanged(key.clone(), kv.mod_revision), old),
                Place::Taken(other) => return Ok(Outcome::Taken(other)),
            },
        };
        let value = serde_json::to_vec(&self.record).expect("records always render");
        let write = Write::Put { key, value: value.into(), lease: Some(lease) };
        let outcome = self.store.commit(&[guard], &[write]).await?;
        if !outcome.committed {
            return Ok(Outcome::Again);
        }
        if let Some(old) = old {
            info!(lease = %old, "back before the lease of the last boot has ended: taking its place");
            // What stands under it is of the last boot. If this fails it ends by itself.
            if let Err(error) = self.store.revoke(old).await {
                info!(%error, "the old lease will end by itself");
            }
        }
        Ok(Outcome::Written(outcome.revision))
    }
}

/// Whose record it is that is in the hub.
enum Place {
    Ours,
    /// This installation's, under a lease that nobody renews any more.
    Earlier(Option<LeaseId>),
    Taken(Box<MachineRecord>),
}

fn place(kv: &KeyValue, lease: LeaseId, own: &MachineRecord) -> Place {
    if kv.lease == Some(lease) {
        return Place::Ours;
    }
    match serde_json::from_slice::<MachineRecord>(&kv.value) {
        // A copied disk has the instance too, but not the address.
        Ok(other) if other.instance != own.instance || other.address != own.address => {
            Place::Taken(Box::new(other))
        }
        // What cannot be read is nobody's.
        _ => Place::Earlier(kv.lease),
    }
}

fn taken(machine: &Machine, other: &MachineRecord) -> String {
    format!(
        "another machine has the machine-id {}: {} at {}. Each machine needs its own: on the one that was copied, run \
         `rm /etc/machine-id /var/lib/muster/instance && systemd-machine-id-setup && systemctl restart muster`. If it was this machine \
         itself, it joins when the old lease has ended",
        machine.id, other.name, other.address
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(instance: &str, address: &str) -> MachineRecord {
        let address = address.parse().expect("an address");
        let mut record = MachineRecord::new("m1".to_owned(), address, "0".to_owned());
        record.instance = Some(instance.to_owned());
        record
    }

    fn found(value: &[u8], lease: i64) -> KeyValue {
        KeyValue {
            key: String::new(),
            value: value.to_vec().into(),
            create_revision: Revision(1),
            mod_revision: Revision(1),
            lease: Some(LeaseId(lease)),
        }
    }

    #[test]
    fn only_this_installations_earlier_record_is_replaced() {
        let own = record("a", "10.0.0.1");
        let judge = |other: &MachineRecord, lease| {
            let value = serde_json::to_vec(other).expect("renders");
            place(&found(&value, lease), LeaseId(7), &own)
        };
        assert!(matches!(judge(&own, 7), Place::Ours));
        assert!(matches!(judge(&own, 6), Place::Earlier(Some(LeaseId(6)))));
        assert!(matches!(judge(&record("b", "10.0.0.1"), 6), Place::Taken(_)), "another installation");
        assert!(matches!(judge(&record("a", "10.0.0.2"), 6), Place::Taken(_)), "a copied disk");
        assert!(matches!(place(&found(b"rubbish", 6), LeaseId(7), &own), Place::Earlier(_)));
    }
}
