//! The servers under load: processes of their own, ended by their ids.
//!
//! Invariant: a server is killed when its handle is dropped, and its data go with it.

use anyhow::{Context, Result, bail};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Etcd,
    Hub,
}

pub(crate) struct Server {
    child: Child,
    kind: Kind,
    pub(crate) address: String,
    dir: Option<TempDir>,
    pub(crate) started: Instant,
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Server {
    pub(crate) fn start(kind: Kind, dir: TempDir) -> Result<Self> {
        let address = format!("127.0.0.1:{}", free_port()?);
        let mut command = match kind {
            Kind::Hub => {
                let mut command = Command::new(std::env::current_exe()?);
                command.arg("serve").arg(dir.path()).arg(&address);
                command
            }
            Kind::Etcd => etcd(dir.path(), &address)?,
        };
        let started = Instant::now();
        let child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("could not start {kind:?}"))?;
        Ok(Self { child, kind, address, dir: Some(dir), started })
    }

    /// Kills it and starts another on its data.
    pub(crate) fn restart(mut self) -> Result<Self> {
        let dir = self.dir.take().context("it has its data")?;
        let kind = self.kind;
        drop(self);
        Self::start(kind, dir)
    }

    /// CPU time used so far.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        cpu(&format!("/proc/{}/stat", self.child.id()))
    }

    /// Resident memory in bytes.
    pub(crate) fn memory(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
        Ok(kib << 10)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended by itself
        let _ = self.child.wait();
    }
}

/// A program that takes a directory and an address, to be measured instead of etcd: another build of the hub.
const AGAINST: &str = "HUB_BENCH_AGAINST";

fn etcd(dir: &Path, address: &str) -> Result<Command> {
    if let Some(other) = std::env::var_os(AGAINST) {
        let mut command = Command::new(other);
        command.arg(dir).arg(address);
        return Ok(command);
    }
    let (client, peer) = (format!("http://{address}"), format!("http://127.0.0.1:{}", free_port()?));
    let mut command = Command::new("/usr/bin/etcd");
    command.env("ETCD_UNSUPPORTED_ARCH", "arm64").arg("--data-dir").arg(dir);
    command.args(["--name", "bench", "--logger", "zap", "--log-level", "error"]);
    for flag in ["--listen-client-urls", "--advertise-client-urls"] {
        command.args([flag, &client]);
    }
    for flag in ["--listen-peer-urls", "--initial-advertise-peer-urls"] {
        command.args([flag, &peer]);
    }
    command.args(["--initial-cluster", &format!("bench={peer}")]);
    Ok(command)
}

/// Ticks of a process or thread, as time: user and system.
pub(crate) fn cpu(path: &str) -> Result<Duration> {
    let stat = std::fs::read_to_string(path)?;
    let (_, fields) = stat.rsplit_once(") ").context("no stat")?;
    let ticks: u64 = fields.split(' ').skip(11).take(2).map(|field| field.parse().unwrap_or(0)).sum();
    Ok(Duration::from_millis(ticks * 10)) // 100 ticks a second on every Linux of today
}

/// CPU time that the whole machine was busy.
pub(crate) fn machine() -> Result<Duration> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("no stat")?;
    let fields: Vec<u64> = line.split_whitespace().skip(1).map(|field| field.parse().unwrap_or(0)).collect();
    let [user, nice, system, _idle, _wait, irq, softirq, ..] = fields[..] else { bail!("no stat") };
    Ok(Duration::from_millis((user + nice + system + irq + softirq) * 10))
}

/// The hub's process.
pub(crate) fn serve(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let (Some(data_dir), Some(listen)) = (arguments.next(), arguments.next()) else {
        bail!("usage: hub-bench serve DIRECTORY ADDRESS");
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let name = "bench".to_owned();
        let config = hub::HubConfig {
            data_dir: data_dir.into(),
            listen: listen.parse()?,
            advertise: None,
            name,
            tls: None,
            limits: hub::Limits::default(),
            auth: hub::AuthConfig::default(),
        };
        let mut hub = hub::Hub::start(config).await?;
        Err(hub.finished().await.into())
    })
}
