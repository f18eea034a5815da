//! Counters, and how Prometheus reads them.
//!
//! Each worker has counters of its own, so counting is a load and a store; whoever reads adds them up. Invariant: only
//! its worker writes a counter.

use hyper::StatusCode;
use model::ServiceName;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of the histogram of latencies, in microseconds.
const BOUNDS: [u64; 12] =
    [500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000];

/// What one worker counts of one service.
#[derive(Debug, Default)]
pub(crate) struct ServiceCounters {
    pub(crate) requests: AtomicU64,
    /// By the first digit of the status.
    answers: [AtomicU64; 6],
    pub(crate) retries: AtomicU64,
    pub(crate) ejections: AtomicU64,
    pub(crate) held: AtomicU64,
    pub(crate) bytes_out: AtomicU64,
    buckets: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
}

impl ServiceCounters {
    /// Adds; only the counter's own worker may.
    pub(crate) fn add(counter: &AtomicU64, more: u64) {
        counter.store(counter.load(Relaxed).wrapping_add(more), Relaxed);
    }

    pub(crate) fn answered(&self, status: StatusCode, took: Duration) {
        let class = usize::from(status.as_u16() / 100).min(5);
        Self::add(&self.answers[class], 1);
        let micros = took.as_micros() as u64;
        let bucket = BOUNDS.iter().position(|bound| micros <= *bound).unwrap_or(BOUNDS.len());
        Self::add(&self.buckets[bucket], 1);
        Self::add(&self.micros, micros);
    }
}

/// By service, then by worker.
pub(crate) type AllCounters = BTreeMap<ServiceName, Vec<Arc<ServiceCounters>>>;

/// A counter: its name, what it is, where it is.
type Metric = (&'static str, &'static str, fn(&ServiceCounters) -> &AtomicU64);

/// In Prometheus' text format.
pub(crate) fn render(all: &AllCounters, connections: usize, refused: u64, revision: u64) -> String {
    let mut text = String::new();
    let mut single = |name: &str, kind: &str, help: &str, value: u64| {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}"); // a String takes it all
    };
    single("muster_gateway_connections", "gauge", "Client connections.", connections as u64);
    single("muster_gateway_refused_total", "counter", "Requests the gateway answered itself.", refused);
    single("muster_gateway_revision", "gauge", "Revision that all threads serve.", revision);
    let simple: [Metric; 5] = [
        ("muster_gateway_requests_total", "Requests.", |c| &c.requests),
        ("muster_gateway_retries_total", "Further tries.", |c| &c.retries),
        ("muster_gateway_ejections_total", "Endpoints taken out for failures.", |c| &c.ejections),
        ("muster_gateway_held_total", "Times that a request waited for an endpoint.", |c| &c.held),
        ("muster_gateway_response_bytes_total", "Bytes of complete responses.", |c| &c.bytes_out),
    ];
    for (name, help, of) in simple {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter");
        for (service, counters) in all {
            let _ = writeln!(text, "{name}{{service=\"{service}\"}} {}", sum(counters, of));
        }
    }
    let name = "muster_gateway_responses_total";
    let _ = writeln!(text, "# HELP {name} Responses by class of status.\n# TYPE {name} counter");
    for (service, counters) in all {
        for class in 1..6 {
            let count: u64 = counters.iter().map(|c| c.answers[class].load(Relaxed)).sum();
            let _ = writeln!(text, "{name}{{service=\"{service}\",code=\"{class}xx\"}} {count}");
        }
    }
    let name = "muster_gateway_response_seconds";
    let _ = writeln!(text, "# HELP {name} Time until the response began.\n# TYPE {name} histogram");
    for (service, counters) in all {
        let mut below = 0;
        for bucket in 0..=BOUNDS.len() {
            below += counters.iter().map(|c| c.buckets[bucket].load(Relaxed)).sum::<u64>();
            let bound = BOUNDS
                .get(bucket)
                .map_or_else(|| "+Inf".to_owned(), |bound| (*bound as f64 / 1e6).to_string());
            let _ = writeln!(text, "{name}_bucket{{service=\"{service}\",le=\"{bound}\"}} {below}");
        }
        let seconds = sum(counters, |c| &c.micros) as f64 / 1e6;
        let _ = writeln!(text, "{name}_sum{{service=\"{service}\"}} {seconds}");
        let _ = writeln!(text, "{name}_count{{service=\"{service}\"}} {below}");
    }
    text
}

fn sum(counters: &[Arc<ServiceCounters>], of: fn(&ServiceCounters) -> &AtomicU64) -> u64 {
    counters.iter().map(|counters| of(counters).load(Relaxed)).sum()
}
