//! Puts load on an HTTP service and accounts for every request.
//!
//! Exit codes: 0 everything was answered with 2xx or 3xx, 1 something was not, 2 used wrongly.

use clap::Parser;
use gateway_bench::{Load, Method, Pace, Tally};
use std::net::{SocketAddr, ToSocketAddrs};
use std::process::ExitCode;
use std::time::Duration;

/// Puts load on an HTTP service and accounts for every request.
///
/// Examples:
///   load 127.0.0.1:80 --host someapp --for 30s
///   load 127.0.0.1:80 --host someapp --rate 1000 --connections 64 --method post --tally x-instance
#[derive(Parser)]
#[command(verbatim_doc_comment)]
struct Arguments {
    /// Where to: address and port.
    address: String,
    /// The Host header; the address by default.
    #[arg(long)]
    host: Option<String>,
    /// The path.
    #[arg(long, default_value = "/")]
    path: String,
    /// get, head or post.
    #[arg(long, default_value = "get")]
    method: String,
    /// The size of a POST's body, in bytes.
    #[arg(long, default_value_t = 64)]
    body: usize,
    /// A further header, `Name: value`; more than once if needed.
    #[arg(long)]
    header: Vec<String>,
    /// Connections.
    #[arg(long, short, default_value_t = 64)]
    connections: usize,
    /// Requests a second over all connections; without it each connection sends as fast as it is answered.
    #[arg(long)]
    rate: Option<f64>,
    /// For how long.
    #[arg(long = "for", default_value = "10s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// Until standard input ends, instead.
    #[arg(long)]
    until_eof: bool,
    /// When a request counts as lost.
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// A connection for each request.
    #[arg(long)]
    no_keep_alive: bool,
    /// Use connections again without looking whether the server has ended them.
    #[arg(long)]
    no_check: bool,
    /// A response header whose values are counted.
    #[arg(long)]
    tally: Option<String>,
    /// Threads.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// `json` for programs.
    #[arg(short = 'o', long)]
    output: Option<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let Some(load) = load(&arguments) else { return ExitCode::from(2) };
    match run(load, arguments.until_eof) {
        Ok(tally) => {
            match arguments.output.as_deref() {
                Some("json") => match serde_json::to_string(&tally.summary()) {
                    Ok(json) => println!("{json}"),
                    Err(error) => eprintln!("error: {error}"),
                },
                _ => show(&tally),
            }
            if tally.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) }
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(1)
        }
    }
}

fn run(load: Load, until_eof: bool) -> std::io::Result<Tally> {
    if !until_eof {
        return gateway_bench::run(load);
    }
    let running = gateway_bench::start(Load { duration: None, ..load })?;
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    running.stop()
}

fn load(arguments: &Arguments) -> Option<Load> {
    let Some(address): Option<SocketAddr> =
        arguments.address.to_socket_addrs().ok().and_then(|mut all| all.next())
    else {
        eprintln!("error: `{}` is no address with a port, such as 127.0.0.1:80", arguments.address);
        return None;
    };
    let method = match arguments.method.to_ascii_lowercase().as_str() {
        "get" => Method::Get,
        "head" => Method::Head,
        "post" => Method::Post,
        other => {
            eprintln!("error: `{other}` is not get, head or post");
            return None;
        }
    };
    Some(Load {
        host: arguments.host.clone().unwrap_or_else(|| arguments.address.clone()),
        path: arguments.path.clone(),
        method,
        body: arguments.body,
        headers: arguments.header.clone(),
        connections: arguments.connections.max(1),
        pace: arguments.rate.filter(|rate| *rate > 0.0).map_or(Pace::Closed, Pace::Rate),
        duration: Some(arguments.duration),
        timeout: arguments.timeout,
        keep_alive: !arguments.no_keep_alive,
        check: !arguments.no_check,
        tally: arguments.tally.clone(),
        threads: arguments.threads.max(1),
        ..Load::new(address, "")
    })
}

fn show(tally: &Tally) {
    let ms = |part| tally.latency.at(part).as_secs_f64() * 1e3;
    println!(
        "{} requests in {:.1} s ({:.0}/s): {} ok, {} failed",
        tally.requests,
        tally.took.as_secs_f64(),
        tally.rate(),
        tally.ok(),
        tally.failed()
    );
    for (status, count) in &tally.status {
        println!("  status {status}: {count}");
    }
    println!(
        "  reset {}, timeout {}, no connection {}, no answer at all {}",
        tally.reset, tally.timeout, tally.unconnected, tally.nonsense
    );
    println!(
        "  connections opened {}, of them after the server had ended one {}",
        tally.opened, tally.reconnects
    );
    println!(
        "  latency ms: p50 {:.2}, p90 {:.2}, p99 {:.2}, p99.9 {:.2}, max {:.2}",
        ms(0.5),
        ms(0.9),
        ms(0.99),
        ms(0.999),
        tally.latency.max().as_secs_f64() * 1e3
    );
    for (value, count) in &tally.values {
        println!("  {value}: {count}");
    }
    for (at, what) in tally.failures.iter().take(10) {
        println!("  at {:.3} s: {what}", at.as_secs_f64());
    }
}
