//! The machine's record in the hub, under the machine's lease: written when the session begins, when it begins
//! anew, and when the machine's subnet becomes known.

use super::{Machine, complain};
use model::{LeaseId, MachineRecord, Subnet, keys};
use registry::Store;
use std::time::Duration;
use tokio::sync::watch;
use tracing::info;

/// Between attempts to write it.
const PAUSE: Duration = Duration::from_millis(250);

pub(super) async fn run(
    machine: Machine,
    store: Store,
    mut lease: watch::Receiver<Option<LeaseId>>,
    mut record: MachineRecord,
    mut subnet: watch::Receiver<Option<Subnet>>,
) -> anyhow::Result<()> {
    let key = keys::machine(&machine.id);
    let (mut written, mut complained) = (None, false);
    loop {
        let current = *lease.borrow_and_update();
        record.subnet = *subnet.borrow_and_update();
        let wanted = current.map(|lease| (lease, record.subnet));
        if let Some((lease, _)) = wanted.filter(|_| wanted != written) {
            let value = serde_json::to_vec(&record).expect("records always render");
            match store.put(&key, value, Some(lease)).await {
                Ok(revision) => {
                    info!(%revision, subnet = ?record.subnet, "machine present");
                    (written, complained) = (wanted, false);
                }
                Err(error) => {
                    complain(&mut complained, &error, "machine not announced yet");
                    tokio::time::sleep(PAUSE).await;
                }
            }
            continue;
        }
        // Both senders live as long as the daemon; when one is gone there is nothing left to announce.
        let changed = tokio::select! {
            changed = lease.changed() => changed,
            changed = subnet.changed() => changed,
        };
        if changed.is_err() {
            return std::future::pending().await;
        }
    }
}
