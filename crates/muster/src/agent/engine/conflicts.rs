//! What two services claim, and what two units say of one service: told as events, by the machine that leads.
//!
//! Not here: who has it (`core::router`). Invariant: each conflict is told once when it comes, and once when it is over.

use crate::agent::events::{self, Events};
use model::{EventKind, EventRecord, keys};
use muster_core::router::{Catalog, Conflict};
use registry::{Change, Delta, Store};
use std::{collections::BTreeSet, convert::Infallible};
use tracing::{info, warn};

/// Tells of conflicts for as long as the machine leads.
pub(super) async fn run(store: &Store, mut events: Events) -> Infallible {
    let mut follow = store.follow(keys::SERVICES);
    let mut catalog = Catalog::default();
    let mut told = BTreeSet::new();
    while let Some(delta) = follow.next().await {
        match delta {
            Delta::Lost => continue,
            Delta::Reset(listing) => {
                let items = listing.items.iter();
                catalog = Catalog::from_listing(items.map(|kv| (kv.key.as_str(), &*kv.value)));
            }
            Delta::Changes(changes) => {
                for change in &changes.changes {
                    match change {
                        Change::Put(kv) => drop(catalog.put(&kv.key, &kv.value)),
                        Change::Delete { key } => drop(catalog.delete(key)),
                    }
                }
            }
        }
        let found = catalog.conflicts();
        for event in news(&told, &found) {
            events.tell(event);
        }
        told = found;
    }
    std::future::pending().await
}

/// What there is to tell.
fn news(told: &BTreeSet<Conflict>, found: &BTreeSet<Conflict>) -> Vec<EventRecord> {
    let event = |conflict: &Conflict, reason: &str, message: String| {
        let reason = format!("{reason} of service {}", conflict.service());
        let mut event = EventRecord::new(events::now(), EventKind::Conflict, reason, message);
        if let Conflict::Config { unit, .. } = conflict {
            event.unit.clone_from(unit);
        }
        event
    };
    let mut news = Vec::new();
    for conflict in found.difference(told) {
        warn!(%conflict, "services contradict each other");
        news.push(event(conflict, "the configuration", conflict.to_string()));
    }
    for conflict in told.difference(found) {
        info!(%conflict, "no longer so");
        news.push(event(conflict, "the configuration", format!("no longer: {conflict}")));
    }
    news
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Revision;
    use std::time::Duration;
    use tokio::time::Instant;

    async fn messages(store: &Store, count: usize) -> Vec<String> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let listing = store.list(keys::EVENTS).await.expect("answers");
            let read =
                |kv: &registry::KeyValue| serde_json::from_slice::<EventRecord>(&kv.value).expect("a record");
            let events: Vec<_> = listing.items.iter().map(read).collect();
            assert!(events.iter().all(|event| event.kind == EventKind::Conflict));
            if events.len() >= count {
                return events.into_iter().map(|event| event.message).collect();
            }
            assert!(Instant::now() < deadline, "{} of {count} events", events.len());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_conflict_is_an_event_when_it_comes_and_when_it_is_over() {
        let store = Store::memory();
        let put = async |key: &str, value: &str| {
            store.put(key, value.to_owned(), None).await.expect("written");
        };
        put(keys::LEADER, "{}").await;
        let leader = store.get(keys::LEADER).await.expect("answers").expect("there");
        let term: Revision = leader.mod_revision;
        let events = Events::new(store.clone(), term);
        let task = tokio::spawn({
            let store = store.clone();
            async move { run(&store, events).await }
        });
        put("/services/a/config", r#"{"hosts":["app.example.com"]}"#).await;
        put("/services/b/config", r#"{"hosts":["app.example.com"]}"#).await;
        let clash = "app.example.com/ is that of service a, and service b claims it, too";
        assert_eq!(messages(&store, 1).await, [clash]);
        put("/services/c/config", r#"{"hosts":["c.example.com"]}"#).await;
        put("/services/b/config", r#"{"hosts":["b.example.com"]}"#).await;
        assert_eq!(messages(&store, 2).await, [clash.to_owned(), format!("no longer: {clash}")]);
        task.abort();
    }
}
