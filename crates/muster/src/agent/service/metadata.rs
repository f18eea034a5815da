//! Machines' metadata, changed while they run.
//!
//! Invariant: the changes of one request are made together or not at all.

use super::{ATTEMPTS, CHUNK, Hub, unavailable};
use api::{ApiError, fleet::MetadataChange};
use model::{MachineId, MetadataRecord, Revision, keys};
use registry::{Guard, Write};
use std::collections::BTreeMap;

impl Hub {
    /// Makes `changes` in one transaction, as often as somebody else is faster.
    pub(super) async fn write_metadata(&self, changes: Vec<MetadataChange>) -> Result<(), ApiError> {
        let mut machines: BTreeMap<MachineId, Vec<(String, Option<String>)>> = BTreeMap::new();
        for change in changes {
            machines.entry(change.machine).or_default().push((change.key, change.value));
        }
        if machines.is_empty() {
            return Ok(());
        }
        if machines.len() > CHUNK {
            let message = format!("a request may change {CHUNK} machines, not {}", machines.len());
            return Err(ApiError::bad_request(message));
        }
        let keys: Vec<_> = machines.keys().map(keys::metadata).collect();
        for _ in 0..ATTEMPTS {
            let found = self.store.get_many(&keys).await.map_err(unavailable)?;
            let (mut guards, mut writes) = (Vec::new(), Vec::new());
            for (key, changes) in keys.iter().zip(machines.values()) {
                let (mut record, revision) = read(&found.items, key)?;
                record.metadata.extend(changes.iter().cloned());
                guards.push(revision.map_or_else(
                    || Guard::Absent(key.clone()),
                    |revision| Guard::Unchanged(key.clone(), revision),
                ));
                writes.push(Write::put(key, serde_json::to_vec(&record).expect("records always render")));
            }
            if self.store.commit(&guards, &writes).await.map_err(unavailable)?.committed {
                return Ok(());
            }
        }
        Err(ApiError::conflict("somebody else keeps changing this metadata; try again"))
    }
}

fn read(found: &[registry::KeyValue], key: &str) -> Result<(MetadataRecord, Option<Revision>), ApiError> {
    let Some(kv) = found.iter().find(|kv| kv.key == key) else {
        return Ok((MetadataRecord::new(), None));
    };
    let record = serde_json::from_slice(&kv.value).map_err(|error| {
        ApiError::conflict(format!(
            "what the hub has under {key} cannot be read ({error}); remove it with `muster kv rm {key}`"
        ))
    })?;
    Ok((record, Some(kv.mod_revision)))
}
