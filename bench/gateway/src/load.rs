//! A load: connections that send requests, as fast as they are answered or at a rate, for a time or until told to stop.
//!
//! Invariant: each request that was begun is in the account exactly once: answered with a status, or lost for a reason.
//! Nothing is ever sent twice.

use crate::quantiles::Quantiles;
use crate::wire::Wire;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::task::{JoinSet, LocalSet};

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Method {
    /// GET
    #[default]
    Get,
    /// HEAD
    Head,
    /// POST, with a body
    Post,
}

/// When requests are sent.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Pace {
    /// Each connection sends the next as soon as the last is answered.
    #[default]
    Closed,
    /// So many a second over all connections, at fixed times. Latencies count from those times, so a server that stalls
    /// is charged for the requests that could not be sent meanwhile.
    Rate(f64),
}

/// A load.
#[derive(Debug, Clone)]
pub struct Load {
    /// Where the requests go.
    pub address: SocketAddr,
    /// Their `Host`.
    pub host: String,
    /// Their path.
    pub path: String,
    /// What they ask.
    pub method: Method,
    /// The size of a POST's body, in bytes.
    pub body: usize,
    /// Further headers: lines without their ends.
    pub headers: Vec<String>,
    /// How many connections there are.
    pub connections: usize,
    /// When requests are sent.
    pub pace: Pace,
    /// For how long; none for until it is stopped.
    pub duration: Option<Duration>,
    /// A request without an answer for so long is lost.
    pub timeout: Duration,
    /// Connections are used again; otherwise each request makes its own.
    pub keep_alive: bool,
    /// Before a connection is used again it is looked at, and replaced if the server has ended it, as browsers and most
    /// libraries do. A client that does not is harder on the server.
    pub check: bool,
    /// The response header whose values are counted, such as the one by which an instance gives its name.
    pub tally: Option<String>,
    /// How many threads the connections are spread over.
    pub threads: usize,
}

impl Load {
    /// A load of GETs for `/`, on 64 connections, for ten seconds.
    pub fn new(address: SocketAddr, host: &str) -> Self {
        Self {
            address,
            host: host.to_owned(),
            path: "/".to_owned(),
            method: Method::Get,
            body: 64,
            headers: Vec::new(),
            connections: 64,
            pace: Pace::Closed,
            duration: Some(Duration::from_secs(10)),
            timeout: Duration::from_secs(10),
            keep_alive: true,
            check: true,
            tally: None,
            threads: 1,
        }
    }

    fn request(&self) -> Vec<u8> {
        let method = match self.method {
            Method::Get => "GET",
            Method::Head => "HEAD",
            Method::Post => "POST",
        };
        let mut head = format!("{method} {} HTTP/1.1\r\nHost: {}\r\n", self.path, self.host);
        for line in &self.headers {
            head = format!("{head}{line}\r\n");
        }
        if !self.keep_alive {
            head += "Connection: close\r\n";
        }
        if self.method == Method::Post {
            head = format!("{head}Content-Length: {}\r\n", self.body);
        }
        let mut bytes = format!("{head}\r\n").into_bytes();
        if self.method == Method::Post {
            bytes.resize(bytes.len() + self.body, b'x');
        }
        bytes
    }
}

/// What came of a load.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Requests that were begun.
    pub requests: u64,
    /// Answers by status.
    pub status: BTreeMap<u16, u64>,
    /// The connection ended before the answer did.
    pub reset: u64,
    /// There was no answer in time.
    pub timeout: u64,
    /// There was no connection to send it on.
    pub unconnected: u64,
    /// Something came that is no answer.
    pub nonsense: u64,
    /// Connections that were made.
    pub opened: u64,
    /// Connections that were made because the server had ended the one before, without having said so in a response.
    pub reconnects: u64,
    /// Answers by the value of the header that is tallied.
    pub values: BTreeMap<String, u64>,
    /// How long answers took, from when the request was to be sent.
    pub latency: Quantiles,
    /// From the first request to the last answer.
    pub took: Duration,
    /// When requests were lost, or answered with an error: since the beginning, with what happened. The first hundred.
    pub failures: Vec<(Duration, String)>,
}

impl Tally {
    /// Answers of 2xx and 3xx.
    pub fn ok(&self) -> u64 {
        self.status.range(200..400).map(|(_, count)| count).sum()
    }

    /// Everything else.
    pub fn failed(&self) -> u64 {
        self.requests - self.ok()
    }

    /// Answers a second.
    pub fn rate(&self) -> f64 {
        self.latency.count() as f64 / self.took.as_secs_f64().max(1e-9)
    }

    fn fail(&mut self, at: Duration, what: String) {
        if self.failures.len() < 100 {
            self.failures.push((at, what));
        }
    }

    /// Takes in what another has.
    pub fn merge(&mut self, other: Self) {
        self.requests += other.requests;
        for (status, count) in other.status {
            *self.status.entry(status).or_default() += count;
        }
        for (value, count) in other.values {
            *self.values.entry(value).or_default() += count;
        }
        self.reset += other.reset;
        self.timeout += other.timeout;
        self.unconnected += other.unconnected;
        self.nonsense += other.nonsense;
        self.opened += other.opened;
        self.reconnects += other.reconnects;
        self.latency.merge(&other.latency);
        self.took = self.took.max(other.took);
        self.failures.extend(other.failures);
        self.failures.sort();
        self.failures.truncate(100);
    }

    /// As one object of JSON.
    pub fn summary(&self) -> Summary {
        let micros = |part| self.latency.at(part).as_micros() as u64;
        Summary {
            requests: self.requests,
            ok: self.ok(),
            failed: self.failed(),
            status: self.status.clone(),
            reset: self.reset,
            timeout: self.timeout,
            unconnected: self.unconnected,
            nonsense: self.nonsense,
            opened: self.opened,
            reconnects: self.reconnects,
            values: self.values.clone(),
            seconds: self.took.as_secs_f64(),
            per_second: self.rate(),
            p50_micros: micros(0.5),
            p90_micros: micros(0.9),
            p99_micros: micros(0.99),
            p999_micros: micros(0.999),
            max_micros: self.latency.max().as_micros() as u64,
            failures: self
                .failures
                .iter()
                .map(|(at, what)| format!("{:.3}s {what}", at.as_secs_f64()))
                .collect(),
        }
    }
}

/// A tally, for programs.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    requests: u64,
    ok: u64,
    failed: u64,
    status: BTreeMap<u16, u64>,
    reset: u64,
    timeout: u64,
    unconnected: u64,
    nonsense: u64,
    opened: u64,
    reconnects: u64,
    values: BTreeMap<String, u64>,
    seconds: f64,
    per_second: f64,
    p50_micros: u64,
    p90_micros: u64,
    p99_micros: u64,
    p999_micros: u64,
    max_micros: u64,
    failures: Vec<String>,
}

/// A load that runs.
pub struct Running {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<io::Result<Tally>>>,
}

impl Running {
    /// Lets requests that are under way finish, begins no others, and tells what came of it. Blocks.
    pub fn stop(self) -> io::Result<Tally> {
        self.stop.store(true, Relaxed);
        self.wait()
    }

    /// Waits for its end. Blocks.
    pub fn wait(self) -> io::Result<Tally> {
        let mut tally = Tally::default();
        for thread in self.threads {
            let part = thread.join().map_err(|_| io::Error::other("a thread of the load has panicked"))??;
            tally.merge(part);
        }
        Ok(tally)
    }
}

/// Runs a load to its end. Blocks.
pub fn run(load: Load) -> io::Result<Tally> {
    start(load)?.wait()
}

/// Starts a load on threads of its own.
pub fn start(load: Load) -> io::Result<Running> {
    let stop = Arc::<AtomicBool>::default();
    let begin = Instant::now();
    let threads = (0..load.threads.max(1)).map(|thread| {
        let (load, stop) = (load.clone(), Arc::clone(&stop));
        std::thread::Builder::new().name(format!("load-{thread}")).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            LocalSet::new().block_on(&runtime, on_thread(load, thread, begin, stop))
        })
    });
    Ok(Running { stop: Arc::clone(&stop), threads: threads.collect::<io::Result<_>>()? })
}

async fn on_thread(load: Load, thread: usize, begin: Instant, stop: Arc<AtomicBool>) -> io::Result<Tally> {
    let load = std::rc::Rc::new(load);
    let mut connections = JoinSet::new();
    for connection in (0..load.connections).filter(|c| c % load.threads.max(1) == thread) {
        connections.spawn_local(connect(std::rc::Rc::clone(&load), connection, begin, Arc::clone(&stop)));
    }
    let mut tally = Tally::default();
    while let Some(part) = connections.join_next().await {
        tally.merge(part.map_err(io::Error::other)?);
    }
    Ok(tally)
}

/// One connection's requests.
async fn connect(load: std::rc::Rc<Load>, index: usize, begin: Instant, stop: Arc<AtomicBool>) -> Tally {
    let mut tally = Tally::default();
    let request = load.request();
    let end = load.duration.map(|duration| begin + duration);
    let mut wire: Option<Wire> = None;
    let mut round = 0u64;
    loop {
        let due = match load.pace {
            Pace::Closed => Instant::now(),
            Pace::Rate(rate) => {
                let number = round as f64 * load.connections as f64 + index as f64;
                begin + Duration::from_secs_f64(number / rate)
            }
        };
        round += 1;
        if stop.load(Relaxed) || end.is_some_and(|end| due >= end) {
            break;
        }
        if due > Instant::now() {
            tokio::time::sleep_until(due.into()).await;
            if stop.load(Relaxed) {
                break;
            }
        }
        tally.requests += 1;
        if load.check && wire.as_ref().is_some_and(|wire| !wire.is_open()) {
            tally.reconnects += 1;
            wire = None;
        }
        one(&load, &request, &mut wire, due, begin, &mut tally).await;
    }
    tally
}

async fn one(
    load: &Load,
    request: &[u8],
    wire: &mut Option<Wire>,
    due: Instant,
    begin: Instant,
    tally: &mut Tally,
) {
    let mut own = match wire.take() {
        Some(wire) => wire,
        None => match Wire::connect(load.address, load.timeout).await {
            Ok(wire) => {
                tally.opened += 1;
                wire
            }
            Err(error) => {
                tally.unconnected += 1;
                tally.fail(begin.elapsed(), format!("no connection: {error}"));
                // As a client would, not at once again.
                tokio::time::sleep(Duration::from_millis(10)).await;
                return;
            }
        },
    };
    let used = own.used;
    let exchange = own.exchange(request, load.method == Method::Head, load.tally.as_deref());
    let done = tokio::time::timeout(load.timeout, exchange).await;
    let now = Instant::now();
    tally.took = tally.took.max(now - begin);
    match done {
        Err(_) => {
            tally.timeout += 1;
            tally.fail(now - begin, "timeout".to_owned());
        }
        Ok(Err(error)) => {
            if error.kind() == io::ErrorKind::InvalidData {
                tally.nonsense += 1;
            } else {
                tally.reset += 1;
                tally.reconnects += u64::from(used);
            }
            tally.fail(now - begin, error.to_string());
        }
        Ok(Ok(response)) => {
            *tally.status.entry(response.status).or_default() += 1;
            tally.latency.add(now.saturating_duration_since(due));
            if !(200..400).contains(&response.status) {
                tally.fail(now - begin, format!("status {}", response.status));
            }
            if let Some(value) = response.tallied {
                *tally.values.entry(value).or_default() += 1;
            }
            if load.keep_alive && !response.last {
                *wire = Some(own);
            }
        }
    }
}
