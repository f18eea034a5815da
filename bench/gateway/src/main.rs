//! Benchmarks the gateway beside nginx, haproxy and caddy, in turns on one machine, and writes bench/gateway.md.
//!
//! `gateway-bench` runs everything. `gateway-bench serve PORT ENDPOINT…` is the gateway alone with one thread, and
//! `gateway-bench app ADDRESS…` the endpoints; the benchmark starts both as processes of their own.

use anyhow::{Context, Result, bail};
use gateway::{Endpoint, Gateway, GatewayConfig, Service, Table};
use gateway_bench::peers::{PEERS, Peer, Started};
use gateway_bench::{Load, Method, Pace, app, run, start};
use model::Protocol;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// Rounds; each peer has a turn in each.
const ROUNDS: usize = 5;
/// How long a turn is.
const TURN: Duration = Duration::from_secs(4);
const CONNECTIONS: usize = 64;
/// Where everything listens: below the ports that the kernel gives away.
const FIRST_PORT: u16 = 21000;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["serve", port, ref endpoints @ ..] => serve(port, endpoints),
        ["app", ref addresses @ ..] => {
            let addresses = addresses.iter().map(|address| address.parse()).collect::<Result<Vec<_>, _>>();
            app::run(&addresses.context("an address has a port")?)
        }
        ["black-hole"] => black_hole(),
        [] => all(),
        _ => bail!("usage: gateway-bench [serve PORT ENDPOINT… | app ADDRESS… | black-hole]"),
    }
}

fn table(endpoints: &[SocketAddr]) -> Result<Table> {
    let endpoint = |(n, address): (usize, &SocketAddr)| Endpoint {
        instance: format!("app@{n}"),
        address: *address,
        weight: 100,
        generation: 1,
        draining: false,
        protocol: Protocol::Http,
    };
    let service = Service {
        endpoints: endpoints.iter().enumerate().map(endpoint).collect(),
        policy: Default::default(),
    };
    let mut table = Table::default();
    table.services.insert("app".parse()?, service);
    Ok(table)
}

fn config(port: u16) -> GatewayConfig {
    GatewayConfig {
        http: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, port))],
        admin: None,
        threads: 1,
        ..GatewayConfig::default()
    }
}

fn serve(port: &str, endpoints: &[&str]) -> Result<()> {
    let endpoints = endpoints.iter().map(|endpoint| endpoint.parse()).collect::<Result<Vec<_>, _>>()?;
    let _gateway = Gateway::start(config(port.parse()?), table(&endpoints)?)?;
    loop {
        std::thread::park();
    }
}

struct Apps(Child);

impl Drop for Apps {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may be gone
        let _ = self.0.wait(); // the same
    }
}

fn apps(endpoints: &[SocketAddr]) -> Result<Apps> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("app").args(endpoints.iter().map(|endpoint| endpoint.to_string()));
    let apps = Apps(command.spawn()?);
    for endpoint in endpoints {
        let deadline = Instant::now() + Duration::from_secs(10);
        while std::net::TcpStream::connect(endpoint).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    Ok(apps)
}

/// One turn of one peer.
#[derive(Debug, Clone, Copy)]
struct Turn {
    micros: f64,
    rate: f64,
    p50: Duration,
    p99: Duration,
    failed: u64,
}

fn turn(peer: &Started, method: Method) -> Result<Turn> {
    let load = |duration| Load {
        connections: CONNECTIONS,
        method,
        duration: Some(duration),
        ..Load::new(peer.address, "app")
    };
    run(load(Duration::from_millis(500)))?; // connections are made, code is warm
    let before = peer.cpu();
    let tally = run(load(TURN))?;
    let spent = peer.cpu() - before;
    Ok(Turn {
        micros: spent.as_secs_f64() * 1e6 / tally.latency.count().max(1) as f64,
        rate: tally.rate(),
        p50: tally.latency.at(0.5),
        p99: tally.latency.at(0.99),
        failed: tally.failed(),
    })
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn all() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let at = |n: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, FIRST_PORT + n));
    let endpoints: Vec<_> = (1..=4).map(at).collect();
    let _apps = apps(&endpoints)?;
    let mut text = String::from(
        "# The gateway beside nginx, haproxy and caddy\n\nWritten by `make bench-gateway`; one machine for everything: \
         load, balancer and apps share its processors, so the\nfigure to compare is the processor time a request costs the \
         balancer. Each has one thread, keeps connections to four\nendpoints, and adds the same headers as far as it can. \
         Medians of the rounds; the ratio is the median of each round's.\n",
    );
    for (method, title) in [(Method::Get, "GET"), (Method::Post, "POST of 64 bytes")] {
        let mut turns: Vec<(Peer, Vec<Turn>)> = Vec::new();
        let mut running = Vec::new();
        for (n, peer) in PEERS.into_iter().enumerate() {
            if peer.is_there() {
                running.push((peer, peer.start(FIRST_PORT + 10 + n as u16, &endpoints, directory.path())?));
                turns.push((peer, Vec::new()));
            } else {
                eprintln!("{}: not here, and Debian's package could not be installed: LEFT OUT", peer.name());
                let _ = writeln!(text, "\n**{} is missing here and was left out.**", peer.name());
            }
        }
        for round in 0..ROUNDS {
            for ((_, started), (peer, turns)) in running.iter().zip(&mut turns) {
                let turn = turn(started, method)?;
                eprintln!("{title} round {round} {:8}: {turn:?}", peer.name());
                turns.push(turn);
            }
        }
        let _ = writeln!(
            text,
            "\n## {title}, {CONNECTIONS} connections, as fast as they are answered\n\n| balancer | CPU µs per request | \
             of nginx | requests/s | p50 ms | p99 ms | failed |\n|---|---|---|---|---|---|---|"
        );
        let nginx = turns.iter().find(|(peer, _)| *peer == Peer::Nginx).map(|(_, turns)| turns.clone());
        for (peer, turns) in &turns {
            let ratio = nginx.as_ref().map_or(f64::NAN, |nginx| {
                median(turns.iter().zip(nginx).map(|(own, nginx)| own.micros / nginx.micros))
            });
            let ms =
                |of: fn(&Turn) -> Duration| median(turns.iter().map(|turn| of(turn).as_secs_f64() * 1e3));
            let _ = writeln!(
                text,
                "| {} | {:.1} | {ratio:.2} | {:.0} | {:.2} | {:.2} | {} |",
                peer.name(),
                median(turns.iter().map(|turn| turn.micros)),
                median(turns.iter().map(|turn| turn.rate)),
                ms(|turn| turn.p50),
                ms(|turn| turn.p99),
                turns.iter().map(|turn| turn.failed).sum::<u64>()
            );
        }
    }
    text += &churn(&endpoints)?;
    text += &in_a_network_of_its_own()?;
    let file = std::path::Path::new("bench/gateway.md");
    std::fs::write(file, &text).with_context(|| format!("failed to write {}", file.display()))?;
    println!("{text}");
    Ok(())
}

/// Membership that changes a hundred times a second, and every endpoint drained in turn, under load.
fn churn(endpoints: &[SocketAddr]) -> Result<String> {
    let mut text = String::from(
        "\n## Membership\n\nThe gateway alone, with clients that keep 64 connections and do not look at them before they \
         use them again.\n\n| what | requests | failed | connections opened |\n|---|---|---|---|\n",
    );
    let port = FIRST_PORT + 20;
    let whole = table(endpoints)?;
    let gateway = Gateway::start(config(port), whole.clone())?;
    for method in [Method::Get, Method::Post] {
        let load = Load {
            method,
            check: false,
            duration: None,
            pace: Pace::Rate(2000.0),
            ..Load::new(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), "app")
        };
        let mut revision = 0;
        let running = start(load.clone())?;
        let begin = Instant::now();
        for step in 0..1000u32 {
            let mut next = whole.clone();
            for service in next.services.values_mut() {
                service.endpoints.remove(step as usize % 4);
            }
            revision += 1;
            gateway.update(next, revision);
            let due = begin + Duration::from_millis(10) * (step + 1);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        let tally = running.stop()?;
        let _ = writeln!(
            text,
            "| 100 changes a second for 10 s, {method:?} | {} | {} | {} |",
            tally.requests,
            tally.failed(),
            tally.opened
        );
        let running = start(load)?;
        for step in 0..40 {
            let mut next = whole.clone();
            for service in next.services.values_mut() {
                service.endpoints[step % 4].draining = true;
            }
            revision += 1;
            gateway.update(next, revision);
            let applied = gateway.applied();
            loop {
                let applied = applied.borrow();
                if applied.revision >= revision && applied.draining.values().all(|count| *count == 0) {
                    break;
                }
                drop(applied);
                std::thread::sleep(Duration::from_millis(1));
            }
            // Here the instance would be stopped; the next one is another generation.
            let mut back = whole.clone();
            for service in back.services.values_mut() {
                service.endpoints[step % 4].generation += step as u64 + 1;
            }
            revision += 1;
            gateway.update(back, revision);
            std::thread::sleep(Duration::from_millis(100));
        }
        let tally = running.stop()?;
        let _ = writeln!(
            text,
            "| 40 drains, each acknowledged before the next, {method:?} | {} | {} | {} |",
            tally.requests,
            tally.failed(),
            tally.opened
        );
    }
    gateway.shutdown(Duration::from_secs(2));
    Ok(text)
}

/// Runs the black hole in a network namespace, so that dropped packets are nobody else's.
fn in_a_network_of_its_own() -> Result<String> {
    let heading = "\n## A machine that is gone\n\nOne of four endpoints' packets are dropped after 4 of 14 s, with 60 clients that send 300 \
                   requests a second.\n\n";
    let mut command = Command::new("unshare");
    command.arg("--net").arg(std::env::current_exe()?).arg("black-hole");
    let output = command.output().context("failed to run unshare")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        eprintln!("black hole: LEFT OUT: {said}");
        return Ok(format!("{heading}**Could not be measured here: {}**\n", said.trim()));
    }
    Ok(format!("{heading}{}", String::from_utf8_lossy(&output.stdout)))
}

fn sh(line: &str) -> Result<()> {
    let status = Command::new("sh").arg("-c").arg(line).status()?;
    anyhow::ensure!(status.success(), "`{line}` failed");
    Ok(())
}

fn black_hole() -> Result<()> {
    let links = std::fs::read_to_string("/proc/self/net/dev")?;
    anyhow::ensure!(
        links.lines().count() == 3,
        "this is for a network namespace of its own: run it by unshare --net"
    );
    sh("ip link set lo up")?;
    let endpoints: Vec<_> = (2..6).map(|n| SocketAddr::from((Ipv4Addr::new(127, 0, 0, n), 3000))).collect();
    let _apps = apps(&endpoints)?;
    let port = FIRST_PORT;
    let gateway = Gateway::start(config(port), table(&endpoints)?)?;
    let load = Load {
        connections: 60,
        pace: Pace::Rate(300.0),
        duration: Some(Duration::from_secs(14)),
        ..Load::new(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), "app")
    };
    let running = start(load)?;
    std::thread::sleep(Duration::from_secs(4));
    sh("nft 'add table ip hole; add chain ip hole in { type filter hook input priority 0; }; \
        add rule ip hole in ip daddr 127.0.0.2 drop; add rule ip hole in ip saddr 127.0.0.2 drop'")?;
    let tally = running.wait()?;
    println!("| requests | failed | longest ms | p99.9 ms | connections opened |\n|---|---|---|---|---|");
    println!(
        "| {} | {} | {:.0} | {:.0} | {} |",
        tally.requests,
        tally.failed(),
        tally.latency.max().as_secs_f64() * 1e3,
        tally.latency.at(0.999).as_secs_f64() * 1e3,
        tally.opened
    );
    gateway.shutdown(Duration::from_secs(1));
    Ok(())
}
