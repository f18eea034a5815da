//! What the threads of a gateway have in common, and what they are told.
//!
//! Invariant: nothing here is locked while a request is on its way, except to report what drains.

use crate::access_log::AccessLog;
use crate::config::GatewayConfig;
use crate::listen::{Listener, Sockets};
use crate::metrics::{AllCounters, ServiceCounters};
use crate::table::Table;
use crate::tls::Certificates;
use model::{Instance, ServiceName};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::sync::watch;
use tokio_rustls::rustls::ServerConfig;

/// What every thread serves by now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// Every thread serves this revision's table, or a later one's.
    pub revision: u64,
    /// What is under way at endpoints that drain or have left the table, all threads together. One with 0 is done with;
    /// one that is not here is not draining, or gone and done with.
    pub draining: BTreeMap<(ServiceName, Instance), u64>,
}

/// A table with the sockets it needs.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) table: Table,
    pub(crate) revision: u64,
    pub(crate) sockets: BTreeMap<Listener, Sockets>,
}

/// How far the gateway's life is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Running,
    /// Nothing new is accepted, and what is under way may go on for so long.
    Draining {
        until: Instant,
    },
    Over,
}

/// What threads have in common.
pub(crate) struct Shared {
    pub(crate) config: GatewayConfig,
    pub(crate) threads: usize,
    pub(crate) start: Instant,
    pub(crate) connections: AtomicUsize,
    pub(crate) log: Option<Arc<AccessLog>>,
    pub(crate) certificates: Option<Certificates>,
    counters: Mutex<AllCounters>,
    refused: AtomicU64,
    reports: Mutex<Vec<Option<Report>>>,
    applied: watch::Sender<Applied>,
    tcp: Mutex<BTreeMap<u16, ServiceName>>,
}

/// What one thread says.
type Report = (u64, Vec<(ServiceName, Instance, u64)>);

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn new(
        config: GatewayConfig,
        threads: usize,
        start: Instant,
        log: Option<Arc<AccessLog>>,
        certificates: Option<Certificates>,
    ) -> Self {
        Self {
            config,
            threads,
            start,
            connections: AtomicUsize::new(0),
            log,
            certificates,
            counters: Mutex::default(),
            refused: AtomicU64::new(0),
            reports: Mutex::new(vec![None; threads]),
            applied: watch::Sender::new(Applied::default()),
            tcp: Mutex::default(),
        }
    }

    pub(crate) fn applied(&self) -> watch::Receiver<Applied> {
        self.applied.subscribe()
    }

    /// A worker's counters of a service.
    pub(crate) fn counters(&self, worker: usize, service: &ServiceName) -> Arc<ServiceCounters> {
        let mut all = lock(&self.counters);
        let list = all.entry(service.clone()).or_default();
        list.resize_with(self.threads.max(list.len()), Arc::default);
        Arc::clone(&list[worker])
    }

    pub(crate) fn metrics(&self) -> String {
        let revision = self.applied.borrow().revision;
        let connections = self.connections.load(Relaxed);
        crate::metrics::render(&lock(&self.counters), connections, self.refused.load(Relaxed), revision)
    }

    pub(crate) fn refused(&self) {
        self.refused.fetch_add(1, Relaxed);
    }

    /// A thread says what it serves.
    pub(crate) fn report(&self, worker: usize, revision: u64, draining: &[(ServiceName, Instance, u64)]) {
        let mut reports = lock(&self.reports);
        reports[worker] = Some((revision, draining.to_vec()));
        let mut together = Applied { revision: u64::MAX, ..Applied::default() };
        for report in reports.iter() {
            // Before all have spoken nothing is served for certain.
            let Some((revision, draining)) = report else { return };
            together.revision = together.revision.min(*revision);
            for (service, instance, count) in draining {
                *together.draining.entry((service.clone(), instance.clone())).or_default() += count;
            }
        }
        self.applied.send_if_modified(|applied| {
            let changed = *applied != together;
            if changed {
                *applied = together;
            }
            changed
        });
    }

    pub(crate) fn set_tcp(&self, tcp: BTreeMap<u16, ServiceName>) {
        *lock(&self.tcp) = tcp;
    }

    /// Whose port it is.
    pub(crate) fn tcp_service(&self, port: u16) -> Option<ServiceName> {
        lock(&self.tcp).get(&port).cloned()
    }

    pub(crate) fn certificates(&self) -> Option<Arc<ServerConfig>> {
        self.certificates.as_ref().map(Certificates::current)
    }
}
