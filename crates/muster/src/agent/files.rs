//! Files made of templates, kept in step with the hub: `[[router.files]]` in the daemon, and `muster render`.
//!
//! Invariants: a resource's trouble is no other resource's; while the hub is away, and while a template or a check fails,
//! what is in place stays.

use super::{
    router::Pacer,
    steady::{Services, sleep_until},
};
use anyhow::Result;
use model::ServiceName;
use muster_core::router::Pace;
use registry::{Change, Delta, Listing, Store, StoreError};
use render::{Applied, Commands, Data, Engine, KeyTree, Resource};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, MissedTickBehavior},
};
use tracing::{info, warn};

/// Deltas on their way from all of a resource's keys; the followers buffer more themselves.
const DELTAS: usize = 16;
/// The longest between two attempts.
const MOST: Duration = Duration::from_secs(60);

/// A resource that is kept.
pub(crate) struct Kept {
    /// What messages call it.
    pub(crate) name: String,
    /// What it says.
    pub(crate) resource: Resource,
    /// Its template and file.
    pub(crate) engine: Engine<Commands>,
}

/// Some of the hub's keys, by what templates call them.
struct Tree {
    root: String,
    /// The key itself and all below it, for each that was asked for.
    prefixes: Vec<String>,
    parts: Vec<Option<BTreeMap<String, String>>>,
}

impl Tree {
    fn new(resource: &Resource) -> Self {
        let prefixes = resource.prefixes();
        Self { root: resource.root(), parts: vec![None; prefixes.len()], prefixes }
    }

    /// The name of a key of the hub for templates; `None` for one that merely begins alike, and for what is no text.
    fn entry(&self, part: usize, key: &str, value: &[u8]) -> Option<(String, String)> {
        let value = String::from_utf8(value.to_vec()).ok()?;
        Some((self.name(part, key)?, value))
    }

    fn name(&self, part: usize, key: &str) -> Option<String> {
        let prefix = &self.prefixes[part];
        let rest = key.strip_prefix(prefix)?;
        let within = rest.is_empty() || rest.starts_with('/') || prefix == "/";
        within.then(|| key[self.root.len()..].to_owned())
    }

    fn reset(&mut self, part: usize, listing: &Listing) -> bool {
        let items = listing.items.iter();
        let new = items.filter_map(|kv| self.entry(part, &kv.key, &kv.value)).collect();
        let changed = self.parts[part].as_ref() != Some(&new);
        self.parts[part] = Some(new);
        changed
    }

    fn change(&mut self, part: usize, change: &Change) -> bool {
        let (name, value) = match change {
            Change::Put(kv) => match self.entry(part, &kv.key, &kv.value) {
                Some((name, value)) => (Some(name), Some(value)),
                None => (self.name(part, &kv.key), None),
            },
            Change::Delete { key } => (self.name(part, key), None),
        };
        let (Some(name), Some(tree)) = (name, &mut self.parts[part]) else { return false };
        match value {
            Some(value) => tree.insert(name, value.clone()) != Some(value),
            None => tree.remove(&name).is_some(),
        }
    }

    /// All of it, once all of it is known.
    fn whole(&self) -> Option<KeyTree> {
        let parts: Option<Vec<_>> = self.parts.iter().map(Option::as_ref).collect();
        Some(Arc::new(parts?.into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect()))
    }
}

/// The keys of a resource as they are now.
pub(crate) async fn keys_now(store: &Store, resource: &Resource) -> Result<KeyTree, StoreError> {
    let mut tree = Tree::new(resource);
    for part in 0..tree.prefixes.len() {
        let listing = store.list(&tree.prefixes[part]).await?;
        tree.reset(part, &listing);
    }
    Ok(tree.whole().unwrap_or_default())
}

/// Keeps a file for ever, and looks at it anew every `interval` as well.
pub(crate) async fn keep(
    mut kept: Kept,
    store: Store,
    mut services: Services,
    pace: Pace,
    interval: Option<Duration>,
) -> Result<()> {
    let mut tree = Tree::new(&kept.resource);
    let (sender, mut deltas) = mpsc::channel(DELTAS);
    let mut followers = JoinSet::new();
    for (part, prefix) in tree.prefixes.iter().enumerate() {
        let (mut follow, sender) = (store.follow(prefix), sender.clone());
        followers.spawn(async move {
            while let Some(delta) = follow.next().await {
                if sender.send((part, delta)).await.is_err() {
                    return;
                }
            }
        });
    }
    let mut pacer = Pacer::new(pace);
    let mut quarantined: BTreeMap<ServiceName, String> = BTreeMap::new();
    let mut again = interval.map(|interval| {
        let mut again = tokio::time::interval_at(Instant::now() + interval, interval);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        again
    });
    loop {
        let keys = tree.whole().filter(|_| pacer.seen().known);
        let due = if keys.is_some() { pacer.due() } else { None };
        tokio::select! {
            changed = services.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                let served = services.borrow_and_update().clone();
                pacer.hear(&served);
            }
            Some((part, delta)) = deltas.recv() => {
                let changed = match delta {
                    Delta::Lost => false,
                    Delta::Reset(listing) => tree.reset(part, &listing),
                    Delta::Changes(changes) => {
                        // All of them, however early one makes a difference.
                        let differences = changes.changes.iter().filter(|change| tree.change(part, change));
                        differences.count() > 0
                    }
                };
                if changed {
                    pacer.note();
                }
            }
            () = tick(&mut again) => {
                kept.engine.file().look_again();
                pacer.note();
            }
            () = sleep_until(due) => {
                let data = Data::new(&pacer.seen().catalog, keys.unwrap_or_default());
                match kept.engine.apply(&data).await {
                    Ok(report) => {
                        pacer.succeeded();
                        for (service, why) in report.quarantined.iter().filter(|(name, why)| quarantined.get(*name) != Some(*why)) {
                            warn!(resource = kept.name, %service, why, "what the service says is refused: it stays as it was, the others go on");
                        }
                        quarantined = report.quarantined;
                        if report.postponed {
                            pacer.note();
                        }
                        if report.applied == Applied::Changed {
                            info!(resource = kept.name, file = %kept.resource.dest.display(), "file written");
                        }
                    }
                    Err(error) => {
                        let error = format!("{:#}", anyhow::Error::new(error));
                        if pacer.failed(&error, MOST) {
                            warn!(resource = kept.name, error, "the file stays as it was, trying on");
                        }
                    }
                }
            }
        }
    }
}

async fn tick(interval: &mut Option<tokio::time::Interval>) {
    match interval {
        Some(interval) => {
            interval.tick().await;
        }
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::steady::Follower;

    #[tokio::test]
    async fn a_file_follows_keys_and_services_and_survives_what_cannot_be_rendered() {
        let directory = tempfile::tempdir().expect("a directory");
        let dest = directory.path().join("out");
        let template = "{% for kv in gets('/app/*') %}{{ kv.Key }}={{ atoi(kv.Value) }}\n{% endfor %}\
                        {% for service in services %}{{ service.name }}\n{% endfor %}";
        std::fs::write(directory.path().join("t"), template).expect("written");
        let resource = Resource {
            src: "t".to_owned(),
            dest: dest.clone(),
            prefix: Some("/config".to_owned()),
            keys: vec!["/app".to_owned()],
            ..Resource::default()
        };
        let engine = resource.engine("out", &[directory.path().to_owned()]).expect("parses");
        let store = Store::memory();
        let (follower, services) = Follower::new(store.clone(), Duration::ZERO);
        let mut tasks = JoinSet::new();
        tasks.spawn(follower.run());
        let kept = Kept { name: "out".to_owned(), resource, engine };
        let pace = Pace { interval: Duration::ZERO, removal_interval: Duration::ZERO, ..Pace::default() };
        tasks.spawn(keep(kept, store.clone(), services, pace, None));
        let until = async |expected: &str| {
            let deadline = Instant::now() + Duration::from_secs(20);
            while std::fs::read_to_string(&dest).unwrap_or_default() != expected {
                let now = std::fs::read_to_string(&dest);
                assert!(Instant::now() < deadline, "{expected:?}, and it is {now:?}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        store.put("/config/app/a", "1", None).await.expect("written");
        store.put("/config/apple/b", "2", None).await.expect("written");
        until("/app/a=1\n").await;
        store.put("/services/web/upstream/web", "10.1.1.2:80", None).await.expect("written");
        until("/app/a=1\nweb\n").await;
        store.put("/config/app/a", "no number", None).await.expect("written");
        store.put("/config/app/b", "2", None).await.expect("written");
        tokio::time::sleep(Duration::from_millis(300)).await;
        until("/app/a=1\nweb\n").await;
        store.commit(&[], &[registry::Write::Delete("/config/app/a".to_owned())]).await.expect("deleted");
        until("/app/b=2\nweb\n").await;
    }
}
