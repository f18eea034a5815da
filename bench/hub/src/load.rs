//! The loads: closed loops of some clients for some seconds, and what they measured.
//!
//! Connections are shared as real clients share them: eight for calls, sixteen for streams. Invariant: an operation
//! that fails ends the run, so no figure counts failures as work.

use crate::server::{self, Kind, Server};
use anyhow::{Context, Result, bail};
use etcd_client::{Client, WatchOptions};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

const VALUE: usize = 256;

#[derive(Debug, Clone, Copy)]
enum What {
    Put {
        clients: usize,
    },
    Range {
        clients: usize,
    },
    Grant {
        clients: usize,
    },
    KeepAlive {
        leases: usize,
        in_flight: usize,
    },
    /// Watchers of one prefix, so many per stream; every put waits until all have seen it, or puts come at a rate.
    Watch {
        watchers: usize,
        per_stream: usize,
        rate: Option<u32>,
    },
    Idle,
    /// 100,000 keys: memory, then start-up with them.
    Filled,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) name: &'static str,
    what: What,
}

pub(crate) fn all() -> Vec<Load> {
    let load = |name, what| Load { name, what };
    let watch = |watchers, per_stream, rate| What::Watch { watchers, per_stream, rate };
    vec![
        load("put x1", What::Put { clients: 1 }),
        load("put x16", What::Put { clients: 16 }),
        load("put x64", What::Put { clients: 64 }),
        load("put x256", What::Put { clients: 256 }),
        load("range x64", What::Range { clients: 64 }),
        load("grant x64", What::Grant { clients: 64 }),
        load("keepalive 10000", What::KeepAlive { leases: 10_000, in_flight: 64 }),
        load("watch 100", watch(100, 1, None)),
        load("watch 1000", watch(1000, 1, None)),
        load("watch 1000 shared", watch(1000, 50, None)),
        load("watch 1000 at 10/s", watch(1000, 1, Some(10))),
        load("idle", What::Idle),
        load("100k keys", What::Filled),
    ]
}

/// What one run measured; names of figures to values, in the units that the names say.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures(pub(crate) BTreeMap<&'static str, f64>);

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.0 {
            write!(f, "{name} {value:.1}  ")?;
        }
        Ok(())
    }
}

async fn connect(address: &str) -> Result<Client> {
    Ok(Client::connect([address], None).await?)
}

async fn pool(address: &str, size: usize) -> Result<Vec<Client>> {
    let mut clients = Vec::new();
    for _ in 0..size {
        clients.push(connect(address).await?);
    }
    Ok(clients)
}

/// Waits for the first put; how long after the start of the process it was answered.
async fn ready(server: &Server) -> Result<Duration> {
    while server.started.elapsed() < Duration::from_secs(60) {
        let put = async { connect(&server.address).await?.put("ready", "x", None).await.context("put") };
        if let Ok(Ok(_)) = tokio::time::timeout(Duration::from_secs(5), put).await {
            return Ok(server.started.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    bail!("the server does not answer")
}

/// Measures between its making and its end.
struct Meter<'a> {
    server: &'a Server,
    start: Instant,
    server_cpu: Duration,
    own_cpu: Duration,
    machine: Duration,
}

impl<'a> Meter<'a> {
    fn start(server: &'a Server) -> Result<Self> {
        let (server_cpu, own_cpu) = (server.cpu()?, server::cpu("/proc/self/stat")?);
        Ok(Self { server, start: Instant::now(), server_cpu, own_cpu, machine: server::machine()? })
    }

    fn end(self, operations: u64, mut latencies: Vec<u32>) -> Result<Figures> {
        let elapsed = self.start.elapsed().as_secs_f64();
        let server = (self.server.cpu()?.saturating_sub(self.server_cpu)).as_secs_f64();
        let own = server::cpu("/proc/self/stat")?.saturating_sub(self.own_cpu).as_secs_f64();
        let machine = server::machine()?.saturating_sub(self.machine).as_secs_f64();
        latencies.sort_unstable();
        let percentile = |of: usize| {
            let at = latencies.len().saturating_sub(1) * of / 100;
            latencies.get(at).map_or(0.0, |micros| f64::from(*micros) / 1000.0)
        };
        let operations = operations as f64;
        Ok(Figures(BTreeMap::from([
            ("ops/s", operations / elapsed),
            ("p50 ms", percentile(50)),
            ("p99 ms", percentile(99)),
            ("CPU us/op", server * 1e6 / operations.max(1.0)),
            ("other cores", ((machine - server - own) / elapsed).max(0.0)),
        ])))
    }
}

fn micros(since: Instant) -> u32 {
    u32::try_from(since.elapsed().as_micros()).unwrap_or(u32::MAX)
}

pub(crate) async fn run(load: &Load, kind: Kind, time: Duration) -> Result<Figures> {
    let server = crate::start(kind)?;
    let startup = ready(&server).await?;
    match load.what {
        What::Put { clients } => {
            closed_loop(&server, clients, time, async |client, worker, count| {
                let key = format!("/bench/{:024}", (worker * 1_000_003 + count) % 10_000);
                client.put(key, vec![b'x'; VALUE], None).await.map(|_| ())
            })
            .await
        }
        What::Range { clients } => {
            fill(&server.address, 10_000).await?;
            closed_loop(&server, clients, time, async |client, worker, count| {
                let key = format!("/fill/{:024}", (worker * 7919 + count) % 10_000);
                client.get(key, None).await.map(|_| ())
            })
            .await
        }
        What::Grant { clients } => {
            closed_loop(&server, clients, time, async |client, _, _| {
                client.lease_grant(600, None).await.map(|_| ())
            })
            .await
        }
        What::KeepAlive { leases, in_flight } => keep_alive(&server, leases, in_flight, time).await,
        What::Watch { watchers, per_stream, rate } => watch(&server, watchers, per_stream, rate, time).await,
        What::Idle => {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let memory = server.memory()? as f64 / f64::from(1 << 20);
            Ok(Figures(BTreeMap::from([("start ms", startup.as_secs_f64() * 1000.0), ("RSS MiB", memory)])))
        }
        What::Filled => {
            fill(&server.address, 100_000).await?;
            tokio::time::sleep(Duration::from_secs(1)).await;
            let memory = server.memory()? as f64 / f64::from(1 << 20);
            let server = server.restart()?;
            let startup = ready(&server).await?;
            let again = server.memory()? as f64 / f64::from(1 << 20);
            Ok(Figures(BTreeMap::from([
                ("start ms", startup.as_secs_f64() * 1000.0),
                ("RSS MiB", memory),
                ("RSS restarted MiB", again),
            ])))
        }
    }
}

/// Puts so many keys of 32 bytes, 64 at a time.
async fn fill(address: &str, keys: usize) -> Result<()> {
    let clients = pool(address, 8).await?;
    let mut tasks = JoinSet::new();
    for worker in 0..64 {
        let mut client = clients[worker % 8].clone();
        tasks.spawn(async move {
            for key in (worker..keys).step_by(64) {
                client.put(format!("/fill/{key:026}"), vec![b'x'; VALUE], None).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    Ok(())
}

async fn closed_loop<F>(server: &Server, clients: usize, time: Duration, operation: F) -> Result<Figures>
where
    F: for<'a> AsyncFn(&'a mut Client, usize, usize) -> Result<(), etcd_client::Error> + Copy,
{
    let pool = pool(&server.address, clients.min(8)).await?;
    // The tasks borrow nothing and need not be Send: they run side by side on this one.
    let work = |worker: usize, until: Instant| {
        let mut client = pool[worker % pool.len()].clone();
        async move {
            let mut latencies = Vec::new();
            let mut count = 0;
            while Instant::now() < until {
                let start = Instant::now();
                operation(&mut client, worker, count).await?;
                latencies.push(micros(start));
                count += 1;
            }
            anyhow::Ok(latencies)
        }
    };
    all_of(clients, |worker| work(worker, Instant::now() + Duration::from_millis(500))).await?;
    let meter = Meter::start(server)?;
    let latencies = all_of(clients, |worker| work(worker, Instant::now() + time)).await?;
    meter.end(latencies.len() as u64, latencies)
}

/// Runs futures side by side and gathers what they give.
async fn all_of<T, Fut: Future<Output = Result<Vec<T>>>>(
    count: usize,
    make: impl Fn(usize) -> Fut,
) -> Result<Vec<T>> {
    use futures_util::stream::{FuturesUnordered, StreamExt};
    let mut running: FuturesUnordered<Fut> = (0..count).map(make).collect();
    let mut all = Vec::new();
    while let Some(given) = running.next().await {
        all.append(&mut given?);
    }
    Ok(all)
}

async fn keep_alive(server: &Server, leases: usize, in_flight: usize, time: Duration) -> Result<Figures> {
    let pool = pool(&server.address, 16).await?;
    let streams = all_of(in_flight, |worker| {
        let mut client = pool[worker % pool.len()].clone();
        async move {
            let mut streams = Vec::new();
            for _ in (worker..leases).step_by(in_flight) {
                let lease = client.lease_grant(600, None).await?.id();
                streams.push((worker, client.lease_keep_alive(lease).await?));
            }
            Ok(streams)
        }
    })
    .await?;
    let mut of_worker: BTreeMap<usize, Vec<_>> = BTreeMap::new();
    for (worker, stream) in streams {
        of_worker.entry(worker).or_default().push(stream);
    }
    let of_worker = std::sync::Mutex::new(of_worker);
    let meter = Meter::start(server)?;
    let latencies = all_of(in_flight, |worker| {
        let streams = of_worker.lock().map(|mut all| all.remove(&worker).unwrap_or_default());
        async move {
            let mut streams = streams.unwrap_or_default();
            let (until, mut latencies) = (Instant::now() + time, Vec::new());
            'all: loop {
                for (keeper, answers) in &mut streams {
                    let start = Instant::now();
                    keeper.keep_alive().await?;
                    let answer = answers.message().await?.context("the stream ended")?;
                    if answer.ttl() != 600 {
                        bail!("the lease is gone");
                    }
                    latencies.push(micros(start));
                    if Instant::now() >= until {
                        break 'all;
                    }
                }
            }
            Ok(latencies)
        }
    })
    .await?;
    meter.end(latencies.len() as u64, latencies)
}

async fn watch(
    server: &Server,
    watchers: usize,
    per_stream: usize,
    rate: Option<u32>,
    time: Duration,
) -> Result<Figures> {
    let pool = pool(&server.address, 16).await?;
    let epoch = Instant::now();
    let (seen, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let progress = Arc::new(tokio::sync::Notify::new());
    let mut streams = JoinSet::new();
    for index in 0..watchers / per_stream {
        let mut client = pool[index % pool.len()].clone();
        let options = || Some(WatchOptions::new().with_prefix());
        let mut stream = client.watch("/w/", options()).await?;
        for _ in 1..per_stream {
            stream.watch("/w/", options()).await?;
        }
        let mut created = 0;
        while created < per_stream {
            created += usize::from(stream.message().await?.context("the stream ended")?.created());
        }
        let (seen, stop, progress) = (Arc::clone(&seen), Arc::clone(&stop), Arc::clone(&progress));
        streams.spawn(async move {
            let mut latencies = Vec::new();
            while let Some(message) = stream.message().await? {
                let now = epoch.elapsed().as_micros() as u64;
                for event in message.events() {
                    let sent: u64 = event.kv().context("no key")?.value_str()?.trim().parse()?;
                    latencies.push(u32::try_from(now.saturating_sub(sent)).unwrap_or(u32::MAX));
                }
                let events = message.events().len() as u64;
                let before = seen.fetch_add(events, Ordering::Relaxed);
                if before / watchers as u64 != (before + events) / watchers as u64 {
                    progress.notify_one();
                }
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
            anyhow::Ok(latencies)
        });
    }
    let mut writer = connect(&server.address).await?;
    let meter = Meter::start(server)?;
    let (until, mut puts) = (Instant::now() + time, 0_u64);
    let mut next = Instant::now();
    while Instant::now() < until {
        let value = format!("{:256}", epoch.elapsed().as_micros());
        writer.put("/w/key", value, None).await?;
        puts += 1;
        match rate {
            Some(rate) => {
                next += Duration::from_secs(1) / rate;
                tokio::time::sleep_until(next.into()).await;
            }
            // Up to four puts are on their way at a time, so that nobody waits for the slowest watcher.
            None => {
                while seen.load(Ordering::Relaxed) + 4 * (watchers as u64) < puts * watchers as u64 {
                    progress.notified().await;
                }
            }
        }
    }
    while seen.load(Ordering::Relaxed) < puts * watchers as u64 {
        progress.notified().await;
    }
    let elapsed_events = puts * watchers as u64;
    let mut figures = meter.end(elapsed_events, Vec::new())?;
    stop.store(true, Ordering::Relaxed);
    writer.put("/w/key", format!("{:256}", epoch.elapsed().as_micros()), None).await?;
    let mut latencies = Vec::new();
    while let Some(stream) = streams.join_next().await {
        latencies.append(&mut stream??);
    }
    latencies.sort_unstable();
    for (name, of) in [("p50 ms", 50), ("p99 ms", 99)] {
        let at = latencies.len().saturating_sub(1) * of / 100;
        figures.0.insert(name, latencies.get(at).map_or(0.0, |micros| f64::from(*micros) / 1000.0));
    }
    Ok(figures)
}
