//! What this machine's routers serve, told to whoever drains an instance: one record for all outputs of the machine.
//! It is as far as the output that is furthest behind, and has under way what all of them have under way.
//!
//! Invariants: the record never claims more than an output has reported; an output that has not served anything yet does
//! not count. It stands under the machine's lease, so that a machine that is gone is waited for by nobody.

use super::{
    Machine, complain,
    steady::{Services, sleep_until},
};
use model::{Instance, LeaseId, Revision, RouterRecord, ServiceName, keys};
use registry::Store;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};

/// Between two writes while an instance drains.
const SOON: Duration = Duration::from_millis(20);
/// Between two writes when nobody waits for them.
const LATER: Duration = Duration::from_secs(1);
/// Between attempts after an error of the hub.
const PAUSE: Duration = Duration::from_millis(250);

/// Requests and connections under way, by instance.
pub(crate) type Inflight = BTreeMap<ServiceName, BTreeMap<Instance, u64>>;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Report {
    revision: Revision,
    inflight: Inflight,
}

/// Collects what outputs report.
#[derive(Clone)]
pub(crate) struct Applied {
    reports: Arc<watch::Sender<BTreeMap<&'static str, Option<Report>>>>,
}

/// One output's way to report. An output that ends takes its report along.
pub(crate) struct Reporter {
    name: &'static str,
    applied: Applied,
}

impl Applied {
    /// No output is there yet.
    pub(crate) fn new() -> Self {
        Self { reports: Arc::new(watch::Sender::new(BTreeMap::new())) }
    }

    /// An output, by a name of its own.
    pub(crate) fn register(&self, name: &'static str) -> Reporter {
        self.reports.send_modify(|reports| {
            reports.insert(name, None);
        });
        Reporter { name, applied: self.clone() }
    }

    /// Keeps the record right for ever. Only where there is an output.
    pub(crate) async fn run(
        self,
        machine: Machine,
        store: Store,
        mut lease: watch::Receiver<Option<LeaseId>>,
        services: Services,
    ) -> anyhow::Result<()> {
        let mut reports = self.reports.subscribe();
        let key = keys::router(&machine.id);
        let mut written: Option<(LeaseId, RouterRecord)> = None;
        let (mut last, mut complained) = (None::<Instant>, false);
        loop {
            let current = *lease.borrow_and_update();
            let record = merge(&machine, &reports.borrow_and_update());
            let wanted = current.zip(record).filter(|wanted| written.as_ref() != Some(wanted));
            let due = wanted.as_ref().map(|wanted| {
                let new = written.as_ref().is_none_or(|(lease, _)| *lease != wanted.0);
                // What was under way at an instance that is gone is waited for as well.
                let ends = written.as_ref().is_some_and(|(_, record)| !record.inflight.is_empty());
                let pause = if new || ends || drains(&services) { SOON } else { LATER };
                last.map_or_else(Instant::now, |last| last + pause)
            });
            tokio::select! {
                changed = lease.changed() => if changed.is_err() {
                    std::future::pending::<()>().await;
                },
                // This task has a sender itself, so that it cannot fail.
                _ = reports.changed() => {}
                () = sleep_until(due) => {
                    let Some((lease, record)) = wanted else { continue };
                    last = Some(Instant::now());
                    let value = serde_json::to_vec(&record).expect("records always render");
                    match store.put(&key, value, Some(lease)).await {
                        Ok(_) => (written, complained) = (Some((lease, record)), false),
                        Err(error) => {
                            complain(&mut complained, &error, "what is served here is not announced yet");
                            tokio::time::sleep(PAUSE).await;
                        }
                    }
                }
            }
        }
    }
}

impl Reporter {
    /// Everything up to `revision` is served, and `inflight` is under way to instances that drain.
    pub(crate) fn report(&self, revision: Revision, inflight: Inflight) {
        let report = Some(Report { revision, inflight });
        self.applied.reports.send_if_modified(|reports| {
            let known = reports.entry(self.name).or_default();
            std::mem::replace(known, report.clone()) != report
        });
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.applied.reports.send_modify(|reports| {
            reports.remove(self.name);
        });
    }
}

/// Whether somebody may wait.
fn drains(services: &Services) -> bool {
    let served = services.borrow();
    served
        .catalog
        .services
        .values()
        .any(|view| view.instances.values().any(|instance| instance.state.is_some()))
}

fn merge(machine: &Machine, reports: &BTreeMap<&'static str, Option<Report>>) -> Option<RouterRecord> {
    let reports = reports.values().flatten();
    let revision = reports.clone().map(|report| report.revision).min()?;
    let mut record = RouterRecord::new(machine.id.clone(), revision);
    for report in reports {
        for (service, instances) in &report.inflight {
            for (instance, count) in instances.iter().filter(|(_, count)| **count > 0) {
                let sum =
                    record.inflight.entry(service.clone()).or_default().entry(instance.clone()).or_default();
                *sum = sum.saturating_add(*count);
            }
        }
    }
    Some(record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn machine() -> Machine {
        let id = "0123456789abcdef0123456789abcdef".parse().expect("an id");
        Machine { id, name: "m1".to_owned(), config: Arc::new(Config::default()) }
    }

    fn inflight(count: u64) -> Inflight {
        let instances = BTreeMap::from([("web@1".to_owned(), count)]);
        BTreeMap::from([("web".parse().expect("a name"), instances)])
    }

    #[tokio::test]
    async fn the_record_is_of_all_outputs_of_the_machine() {
        let (store, machine) = (Store::memory(), machine());
        let lease = store.grant(Duration::from_secs(60)).await.expect("granted");
        let (sender, receiver) = watch::channel(Some(lease));
        let (_served, services) = watch::channel(super::super::steady::Served::default());
        let applied = Applied::new();
        let (nginx, gateway) = (applied.register("nginx"), applied.register("gateway"));
        let task = tokio::spawn(applied.run(machine.clone(), store.clone(), receiver, services));
        let key = keys::router(&machine.id);
        let until = async |revision: i64, count: u64| {
            let deadline = Instant::now() + Duration::from_secs(20);
            loop {
                let found = store.get(&key).await.expect("answers");
                let record = found.map(|kv| {
                    assert_eq!(kv.lease, Some(lease));
                    serde_json::from_slice::<RouterRecord>(&kv.value).expect("a record")
                });
                let counts =
                    record.iter().flat_map(|r| r.inflight.values()).flat_map(|i| i.values()).sum::<u64>();
                if record.is_some_and(|record| record.revision.0 == revision) && counts == count {
                    return;
                }
                assert!(Instant::now() < deadline, "revision {revision}, {count} under way");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        nginx.report(Revision(7), Inflight::new());
        until(7, 0).await;
        gateway.report(Revision(5), inflight(2));
        until(5, 2).await;
        gateway.report(Revision(9), inflight(0));
        until(7, 0).await;
        nginx.report(Revision(8), inflight(1));
        until(8, 1).await;
        drop(nginx);
        until(9, 0).await;
        task.abort();
        drop(sender);
    }
}
