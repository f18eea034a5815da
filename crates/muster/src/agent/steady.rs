//! The services as every output of this machine serves them: one follow of the hub, `core::router` deciding, one
//! snapshot that all outputs share.
//!
//! Invariants: while the hub is away the snapshot stays as it is; what vanished together is served on unless the hub says
//! that somebody deleted it, which it shows by the lease: a key that was deleted leaves its lease behind, one that
//! expired does not.

use model::{Instance, LeaseId, Revision, ServiceName, keys};
use muster_core::router::{Catalog, Gone, Steady};
use registry::{Change, Delta, KeyValue, Store};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tracing::{info, warn};

/// Answers about leases that are under way: there is one question at a time for each key.
const ANSWERS: usize = 64;

/// What to serve.
#[derive(Debug, Clone, Default)]
pub(crate) struct Served {
    /// The services; those that are held included.
    pub(crate) catalog: Arc<Catalog>,
    /// Everything up to this revision is in it.
    pub(crate) revision: Revision,
    /// Whether the hub has been heard at all: before that, nothing is known.
    pub(crate) known: bool,
    /// Whether the hub is there to say what changes.
    pub(crate) current: bool,
    /// Services that are held because most of them vanished at once.
    pub(crate) held: Vec<ServiceName>,
}

/// A subscription to what is to be served.
pub(crate) type Services = watch::Receiver<Served>;

/// Follows the hub; what is to be served is in the receiver.
pub(crate) struct Follower {
    store: Store,
    hold: Duration,
    sender: watch::Sender<Served>,
}

impl Follower {
    /// Holds what vanishes at once for `hold`.
    pub(crate) fn new(store: Store, hold: Duration) -> (Self, Services) {
        let (sender, services) = watch::channel(Served::default());
        (Self { store, hold, sender }, services)
    }

    /// Follows for ever.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let begin = Instant::now();
        let mut steady = Steady::new(self.hold);
        let mut catalog = Catalog::default();
        let mut leases = Leases::default();
        let mut follow = self.store.follow(keys::SERVICES);
        let (answer, mut answers) = mpsc::channel::<(Gone, bool)>(ANSWERS);
        let mut asked: BTreeSet<Gone> = BTreeSet::new();
        let mut revision = Revision(0);
        let mut complained = BTreeMap::new();
        let mut away: Option<Instant> = None;
        loop {
            let deadline = steady.deadline().filter(|_| away.is_none()).map(|at| begin + at);
            tokio::select! {
                delta = follow.next() => match delta {
                    None => return Ok(()),
                    // Nothing is made of an error.
                    Some(Delta::Lost) => {
                        away.get_or_insert_with(Instant::now);
                        self.sender.send_modify(|served| served.current = false);
                        continue;
                    }
                    Some(Delta::Reset(listing)) => {
                        if let Some(since) = away.take() {
                            steady.was_away(since.elapsed());
                        }
                        let items = listing.items.iter();
                        catalog = Catalog::from_listing(items.map(|kv| (kv.key.as_str(), &*kv.value)));
                        listing.items.iter().for_each(|kv| leases.note(kv));
                        revision = listing.revision;
                        steady.update(begin.elapsed(), &catalog);
                    }
                    Some(Delta::Changes(changes)) => {
                        for change in &changes.changes {
                            match change {
                                Change::Put(kv) => {
                                    leases.note(kv);
                                    catalog.put(&kv.key, &kv.value);
                                }
                                Change::Delete { key } => {
                                    catalog.delete(key);
                                }
                            }
                        }
                        revision = revision.max(changes.revision);
                        steady.update(begin.elapsed(), &catalog);
                    }
                },
                Some((gone, meant)) = answers.recv() => if meant {
                    steady.explain(begin.elapsed(), &gone);
                },
                () = sleep_until(deadline) => {
                    steady.tick(begin.elapsed());
                }
            }
            for (key, reason) in catalog.quarantined.iter().filter(|(key, _)| !complained.contains_key(*key))
            {
                warn!(key, reason, "entry passed over");
            }
            complained.clone_from(&catalog.quarantined);
            // Those that nobody has asked after yet.
            let suspects: BTreeSet<Gone> = steady.suspects().collect();
            for gone in suspects.difference(&asked) {
                let lease = leases.of(gone);
                let (store, answer, gone) = (self.store.clone(), answer.clone(), gone.clone());
                tokio::spawn(async move {
                    let meant = was_meant(&store, lease).await;
                    // The follower may have ended.
                    let _ = answer.send((gone, meant)).await;
                });
            }
            asked = suspects;
            leases.forget(&catalog, &asked);
            self.publish(&steady, revision);
        }
    }

    fn publish(&self, steady: &Steady, revision: Revision) {
        let held: Vec<ServiceName> = steady.held().keys().cloned().collect();
        self.sender.send_modify(|served| {
            for service in held.iter().filter(|service| !served.held.contains(service)) {
                warn!(%service, "most of its instances vanished at once: serving them on for a while");
            }
            for service in served.held.iter().filter(|service| !held.contains(service)) {
                info!(%service, "served as the hub has it again");
            }
            if *served.catalog != *steady.catalog() {
                served.catalog = Arc::new(steady.catalog().clone());
            }
            (served.revision, served.known, served.current, served.held) = (revision, true, true, held);
        });
    }
}

/// Whether a key that is gone was deleted: its lease lives on, or it had none.
async fn was_meant(store: &Store, lease: Option<LeaseId>) -> bool {
    match lease {
        None => true,
        Some(lease) => store.time_left(lease).await.is_ok_and(|left| !left.is_zero()),
    }
}

/// Under which leases upstream keys were written last.
#[derive(Default)]
struct Leases(BTreeMap<(ServiceName, Instance), Option<LeaseId>>);

impl Leases {
    fn note(&mut self, kv: &KeyValue) {
        if let Some((service, keys::ServiceKey::Upstream(instance))) = keys::service(&kv.key) {
            self.0.insert((service, instance.to_owned()), kv.lease);
        }
    }

    fn of(&self, gone: &Gone) -> Option<LeaseId> {
        self.0.get(&(gone.service.clone(), gone.instance.clone())).copied().flatten()
    }

    /// Those of instances that are neither known nor doubted: they may come under doubt for some seconds, so they go only
    /// when there are many.
    fn forget(&mut self, catalog: &Catalog, doubted: &BTreeSet<Gone>) {
        let known: usize = catalog.services.values().map(|view| view.instances.len()).sum();
        if self.0.len() > 2 * known + 1000 {
            self.0.retain(|(service, instance), _| {
                let known =
                    catalog.services.get(service).is_some_and(|view| view.instances.contains_key(instance));
                known || doubted.iter().any(|gone| gone.service == *service && gone.instance == *instance)
            });
        }
    }
}

/// For ever, when there is nothing to wait for.
pub(crate) async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn until(services: &mut Services, what: &str, check: impl Fn(&Served) -> bool) -> Served {
        let found = tokio::time::timeout(Duration::from_secs(20), services.wait_for(check)).await;
        found.expect(what).expect("the follower runs").clone()
    }

    fn endpoints(served: &Served) -> usize {
        served.catalog.routable().values().map(BTreeMap::len).sum()
    }

    async fn register(store: &Store, instance: u8, lease: Option<LeaseId>) {
        let key = format!("/services/web/upstream/web@{instance}");
        store.put(&key, format!("10.1.{instance}.2:80"), lease).await.expect("written");
    }

    #[tokio::test]
    async fn what_expires_is_held_and_what_is_deleted_is_not() {
        let store = Store::memory();
        let (follower, mut services) = Follower::new(store.clone(), Duration::from_secs(60));
        let task = tokio::spawn(follower.run());
        let lease = store.grant(Duration::from_secs(60)).await.expect("granted");
        for instance in 1..=4 {
            register(&store, instance, Some(lease)).await;
        }
        until(&mut services, "all are served", |served| endpoints(served) == 4).await;
        // All that stands under the lease goes with it, as when nobody renewed it.
        store.revoke(lease).await.expect("revoked");
        let served = until(&mut services, "it is held", |served| !served.held.is_empty()).await;
        assert_eq!(endpoints(&served), 4);

        let lease = store.grant(Duration::from_secs(60)).await.expect("granted");
        for instance in 1..=4 {
            register(&store, instance, Some(lease)).await;
        }
        until(&mut services, "the hub is believed again", |served| served.held.is_empty()).await;
        let writes: Vec<_> =
            (1..=4).map(|n| registry::Write::Delete(format!("/services/web/upstream/web@{n}"))).collect();
        store.commit(&[], &writes).await.expect("deleted");
        until(&mut services, "nothing is served", |served| endpoints(served) == 0 && served.held.is_empty())
            .await;

        for instance in 1..=2 {
            register(&store, instance, None).await;
        }
        until(&mut services, "both are served", |served| endpoints(served) == 2).await;
        store.commit(&[], &[registry::Write::DeletePrefix("/services/".to_owned())]).await.expect("deleted");
        until(&mut services, "nothing is served", |served| endpoints(served) == 0 && served.held.is_empty())
            .await;
        task.abort();
    }
}
