//! The services, written to the hub in other programs' formats: SkyDNS's keys for CoreDNS, Traefik's KV schema. The
//! machine that leads writes them, and nobody else: numbered slots cannot be shared out among many.
//!
//! Invariants: every write is guarded by the term; a service's keys change in one transaction (in several only where there
//! are more than fit); keys of services that are gone are removed, whoever wrote them.

use crate::agent::{
    Machine,
    steady::{Follower, Services},
};
use model::{Revision, keys};
use muster_core::router::{
    Catalog,
    project::{SKYDNS, Traefik, skydns},
};
use registry::{CALL_TIMEOUT, Guard, Store, StoreError, Write};
use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    time::Duration,
};
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

/// Writes in one transaction: etcd takes 128 operations.
const CHUNK: usize = 100;
/// Between attempts after an error of the hub.
const PAUSE: Duration = Duration::from_millis(250);
/// How often what was written is compared with what is there: anybody may have deleted some of it.
const RELIST: Duration = Duration::from_secs(60);

type Keys = BTreeMap<String, String>;

/// A format.
enum Format {
    Skydns,
    Traefik(Traefik),
}

impl Format {
    fn prefixes(&self) -> Vec<String> {
        match self {
            Self::Skydns => vec![SKYDNS.to_owned()],
            Self::Traefik(traefik) => traefik.prefixes().to_vec(),
        }
    }

    fn keys(&self, catalog: &Catalog, existing: &Keys) -> Keys {
        match self {
            Self::Skydns => skydns(catalog),
            Self::Traefik(traefik) => traefik.keys(catalog, existing),
        }
    }

    /// Which keys change together.
    fn group<'a>(&self, key: &'a str) -> &'a str {
        match self {
            Self::Skydns => key.strip_prefix(SKYDNS).and_then(|rest| rest.split('/').next()).unwrap_or(key),
            Self::Traefik(_) => Traefik::group(key),
        }
    }
}

/// Writes for as long as the machine leads.
pub(super) async fn run(machine: &Machine, store: &Store, term: Revision) -> Infallible {
    let section = &machine.config.router;
    let mut formats = Vec::new();
    if section.skydns.enabled {
        formats.push(Format::Skydns);
    }
    if section.traefik.enabled {
        formats.push(Format::Traefik(Traefik::new(&section.traefik.root_key)));
    }
    if formats.is_empty() {
        return std::future::pending().await;
    }
    let (follower, mut services) = Follower::new(store.clone(), section.panic_hold);
    let mut tasks = JoinSet::new();
    tasks.spawn(follower.run());
    let mut complained = false;
    loop {
        match write(&formats, store, term, &mut services, &mut complained).await {
            Ok(never) => match never {},
            Err(error) => {
                if !std::mem::replace(&mut complained, true) {
                    warn!(%error, "services not written for other programs, trying on");
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn write(
    formats: &[Format],
    store: &Store,
    term: Revision,
    services: &mut Services,
    complained: &mut bool,
) -> Result<Infallible, StoreError> {
    loop {
        let mut there = Vec::new();
        for format in formats {
            let mut keys = Keys::new();
            for prefix in format.prefixes() {
                let listing = store.list(prefix).await?;
                keys.extend(
                    listing
                        .items
                        .into_iter()
                        .map(|kv| (kv.key, String::from_utf8_lossy(&kv.value).into_owned())),
                );
            }
            there.push(keys);
        }
        let relist = tokio::time::sleep(RELIST);
        tokio::pin!(relist);
        loop {
            let served = services.borrow_and_update().clone();
            if served.known {
                for (format, there) in formats.iter().zip(&mut there) {
                    bring(format, there, &served.catalog, store, term).await?;
                }
                *complained = false;
            }
            tokio::select! {
                changed = services.changed() => if changed.is_err() {
                    std::future::pending::<()>().await;
                },
                () = &mut relist => break,
            }
        }
    }
}

/// Brings what is there in step.
async fn bring(
    format: &Format,
    there: &mut Keys,
    catalog: &Catalog,
    store: &Store,
    term: Revision,
) -> Result<(), StoreError> {
    let wanted = format.keys(catalog, there);
    let differs = |key: &&String| there.get(*key) != wanted.get(*key);
    let changed: BTreeSet<&String> = wanted.keys().chain(there.keys()).filter(differs).collect();
    let mut groups: BTreeMap<&str, Vec<Write>> = BTreeMap::new();
    for key in changed {
        let write = match wanted.get(key) {
            Some(value) => Write::put(key.clone(), value.clone()),
            None => Write::Delete(key.clone()),
        };
        groups.entry(format.group(key)).or_default().push(write);
    }
    for writes in groups.values() {
        for chunk in writes.chunks(CHUNK) {
            let guard = [Guard::Unchanged(keys::LEADER.to_owned(), term)];
            let outcome = tokio::time::timeout(CALL_TIMEOUT, store.commit(&guard, chunk)).await;
            let Ok(outcome) = outcome else { return Err(StoreError::WatchEnded("no answer".to_owned())) };
            if !outcome?.committed {
                debug!("another machine leads and writes");
                return std::future::pending().await;
            }
        }
    }
    if !groups.is_empty() {
        info!(services = groups.len(), "services written for other programs");
    }
    *there = wanted;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use std::sync::Arc;

    #[tokio::test]
    async fn the_leader_writes_and_removes_and_a_deposed_one_does_neither() {
        let store = Store::memory();
        let mut config = Config::default();
        (config.router.skydns.enabled, config.router.traefik.enabled) = (true, true);
        let id = "0123456789abcdef0123456789abcdef".parse().expect("an id");
        let machine = Machine { id, name: "m1".to_owned(), config: Arc::new(config) };
        for (key, value) in [
            ("traefik/http/routers/mine/rule", "Host(`x`)"),
            ("traefik/http/routers/muster-old/rule", "Host(`old`)"),
            ("/skydns/local/cluster/svc/old/a", "{}"),
            ("/services/web/upstream/web@1", "10.1.1.2:80"),
        ] {
            store.put(key, value, None).await.expect("written");
        }
        let term = store.put(keys::LEADER, "m1", None).await.expect("written");
        let (own, own_machine) = (store.clone(), machine.clone());
        let task = tokio::spawn(async move { run(&own_machine, &own, term).await });
        let until = async |wanted: &[&str]| {
            let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
            loop {
                let mut found = Vec::new();
                for prefix in ["traefik/", "/skydns/"] {
                    found
                        .extend(store.list(prefix).await.expect("listed").items.into_iter().map(|kv| kv.key));
                }
                if found == wanted {
                    return;
                }
                assert!(tokio::time::Instant::now() < deadline, "{found:?} and not {wanted:?}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let always = [
            "traefik/http/routers/mine/rule",
            "traefik/http/routers/muster-placeholder/rule",
            "traefik/http/routers/muster-placeholder/service",
        ];
        let web = [
            "traefik/http/routers/muster-web/rule",
            "traefik/http/routers/muster-web/service",
            "traefik/http/services/muster-web/loadbalancer/servers/0/url",
            "/skydns/local/cluster/svc/web/web@1",
        ];
        let all = [&always[..], &web[..]].concat();
        until(&all).await;
        store
            .commit(&[], &[Write::Delete("/services/web/upstream/web@1".to_owned())])
            .await
            .expect("deleted");
        until(&always).await;
        // Another machine leads.
        store.put(keys::LEADER, "m2", None).await.expect("written");
        store.put("/services/web/upstream/web@1", "10.1.1.2:80", None).await.expect("written");
        tokio::time::sleep(Duration::from_millis(200)).await;
        until(&always).await;
        task.abort();
    }
}
