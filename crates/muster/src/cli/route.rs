//! What this machine's gateway serves and knows, from its admin port.
//!
//! Invariant: nothing is changed; routes are made by services' configuration.

use super::output::{self, Format};
use crate::config;
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde_json::Value;
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

/// The gateway answers within milliseconds, or it is in trouble.
const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Subcommand)]
pub enum Route {
    /// List what the gateway serves: hosts and paths, TCP ports, and each endpoint with how it does.
    ///
    /// Example: muster route ls
    Ls(List),
}

#[derive(Args)]
pub struct List {
    /// The gateway's admin address; by default that of this machine's configuration.
    #[arg(long)]
    admin: Option<SocketAddr>,
    /// How it is written.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
    /// Without the headings.
    #[arg(long)]
    no_legend: bool,
}

impl Route {
    pub fn run(&self) -> Result<ExitCode> {
        let Self::Ls(list) = self;
        let admin = match list.admin {
            Some(admin) => admin,
            None => configured()?,
        };
        let served = ask(admin)?;
        match list.output {
            Format::Json => output::json(&served)?,
            _ => list.show(&served)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl List {
    fn show(&self, served: &Value) -> Result<()> {
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let heading = |words: &'static [&'static str]| (!self.no_legend).then_some(words);
        let mut routes = Vec::new();
        for route in served["routes"].as_array().into_iter().flatten() {
            let host = match &route["host"] {
                Value::Object(host) => host.iter().next().map_or_else(String::new, |(kind, name)| {
                    let star = if kind == "suffix" { "*." } else { "" };
                    format!("{star}{}", text(name))
                }),
                _ => "*".to_owned(),
            };
            routes.push(vec![host, text(&route["prefix"]), text(&route["service"])]);
        }
        for (port, service) in served["tcp"].as_object().into_iter().flatten() {
            routes.push(vec![format!("tcp port {port}"), "-".to_owned(), text(service)]);
        }
        for name in served["services"].as_object().into_iter().flatten().map(|(name, _)| name) {
            routes.push(vec![name.clone(), "/".to_owned(), name.clone()]);
        }
        output::table(heading(&["HOST", "PATH", "SERVICE"]), routes)?;
        output::line("")?;
        let mut rows = Vec::new();
        for (service, endpoints) in served["services"].as_object().into_iter().flatten() {
            for endpoint in endpoints.as_array().into_iter().flatten() {
                let standing = if endpoint["draining"] == true {
                    "draining".to_owned()
                } else {
                    text(&endpoint["standing"])
                };
                let latency = endpoint["latency_micros"].as_f64().unwrap_or_default() / 1e3;
                rows.push(vec![
                    service.clone(),
                    text(&endpoint["instance"]),
                    text(&endpoint["address"]),
                    standing,
                    text(&endpoint["inflight"]),
                    text(&endpoint["idle"]),
                    format!("{latency:.1} ms"),
                ]);
            }
        }
        let columns = heading(&["SERVICE", "INSTANCE", "ADDRESS", "STANDING", "INFLIGHT", "IDLE", "LATENCY"]);
        output::table(columns, rows)?;
        for (listener, problem) in served["problems"].as_object().into_iter().flatten() {
            eprintln!("warning: {listener}: {}", text(problem));
        }
        Ok(())
    }
}

/// Where the admin port of this machine's gateway is.
fn configured() -> Result<SocketAddr> {
    let file = std::env::var_os("MUSTER_CONFIG").map(PathBuf::from);
    let gateway = config::load(file.as_deref(), |name| std::env::var(name).ok())?.config.router.gateway;
    if !gateway.enabled {
        bail!(
            "there is no gateway on this machine: ask where [router.gateway] is enabled, or name one with --admin"
        );
    }
    gateway.admin.context("[router.gateway] admin says that nobody may ask: set an address there")
}

/// One request; the gateway's admin port speaks HTTP/1.1 and needs no more.
fn ask(admin: SocketAddr) -> Result<Value> {
    let unreachable = || {
        format!("the gateway at {admin} does not answer: does muster run here? (`systemctl status muster`)")
    };
    let mut stream = TcpStream::connect_timeout(&admin, PATIENCE).with_context(unreachable)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET /routes HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n")
        .with_context(unreachable)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(unreachable)?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(unreachable)?;
    if !head.starts_with("HTTP/1.1 200") {
        bail!("{admin} is no gateway's admin port: {}", head.lines().next().unwrap_or_default());
    }
    serde_json::from_str(body).with_context(|| format!("{admin} is no gateway's admin port"))
}
