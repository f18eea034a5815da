//! The thirteen promises of registration and balancing, measured on four machines under load: `make bench-discovery`.
//!
//! Load comes from outside the cluster through the gateway of m2, which has no hub. Where nginx, rewritten and reloaded, can
//! do the same it runs on m1 in the same run. Moments are read from the gateway's access log (milliseconds) and from
//! machines' journals; all machines have the clock of the one box that they are on.

/// What a load balancer does about what dies, vanishes, or is away.
pub mod faults;
/// nginx under a storm of changes, names under load, processor time.
pub mod outputs;
/// From a start until it is served.
pub mod registration;
/// Stops that nobody notices.
pub mod stops;

use crate::{Account, Cluster, Traffic, cluster, eventually};
use anyhow::{Context, Result};
use lab::Machine;
use std::{
    fs, thread,
    time::{Duration, SystemTime},
};

const LOG: &str = "/var/log/muster/access.log";

/// A row of the table.
#[derive(Debug, Clone)]
pub struct Row {
    /// Its number among the promises; other rows have none.
    pub number: Option<u8>,
    /// What was promised.
    pub promise: &'static str,
    /// What was done, by which command.
    pub how: String,
    /// What was seen.
    pub figure: String,
    /// What something else does in its place.
    pub peer: String,
    /// Whether the promise was kept.
    pub held: bool,
}

/// The rows as Markdown.
pub fn table(rows: &[Row]) -> String {
    let mut text = "| | promise | how | figure | peer | |\n|---|---|---|---|---|---|\n".to_owned();
    for row in rows {
        let number = row.number.map_or_else(String::new, |number| number.to_string());
        let held = if row.held { "held" } else { "**missed**" };
        let Row { promise, how, figure, peer, .. } = row;
        text.push_str(&format!("| {number} | {promise} | {how} | {figure} | {peer} | {held} |\n"));
    }
    text
}

/// A request in the gateway's access log.
#[derive(Debug, Clone)]
pub struct Logged {
    /// When it came, in milliseconds since 1970.
    pub at: u64,
    /// Who answered.
    pub instance: String,
    /// How often it was sent elsewhere after something went wrong.
    pub tries: u64,
}

/// The cluster to measure on.
pub struct Rig {
    /// Four machines.
    pub cluster: Cluster,
}

impl Rig {
    /// Boots the machines and makes the gateways write access logs.
    pub fn up(name: &str, network: [u8; 3]) -> Result<Self> {
        let cluster = Cluster::up(name, network, 4)?;
        for gateway in ["m1", "m2"] {
            let script = format!(
                "mkdir -p /var/log/muster && sed -i '/router.gateway/a access-log = \"{LOG}\"' /etc/muster/muster.toml && \
                 systemctl restart muster"
            );
            cluster.lab.machine(gateway)?.exec_ok(&["sh", "-c", &script])?;
        }
        eventually("all machines are there", || Ok(cluster.list("machines")?.len() == 4))?;
        cluster.sh("muster submit someapp-registered@.service")?;
        Ok(Self { cluster })
    }

    /// Starts four registered copies, unless they are there.
    pub fn four_copies(&self) -> Result<()> {
        self.cluster.muster(&["start", "someapp-registered@{1..4}"])?;
        self.registered(4)
    }

    /// The copies that are registered: their keys and addresses.
    pub fn copies(&self) -> Result<Vec<(String, String)>> {
        let keys = self.cluster.upstreams()?;
        Ok(keys.into_iter().filter(|(key, _)| key.starts_with("/services/someapp/")).collect())
    }

    /// Waits until so many copies are registered.
    pub fn registered(&self, copies: usize) -> Result<()> {
        eventually("all copies are registered", || Ok(self.copies()?.len() == copies))
    }

    /// Deletes the keys of a service that a part has put.
    pub fn withdraw(&self, service: &str) -> Result<()> {
        self.cluster.sh(&format!("muster kv rm --recursive /services/{service} >/dev/null")).map(drop)
    }

    /// The machine whose gateway is asked.
    pub fn entry(&self) -> Result<Machine> {
        Ok(self.cluster.lab.machine("m2")?)
    }

    /// Does something while the gateway is asked for `host`; `options` are the load generator's.
    pub fn under_load<T>(
        &self,
        host: &str,
        options: &[&str],
        action: impl FnOnce() -> Result<T>,
    ) -> Result<(Account, T)> {
        let address = format!("{}:80", self.entry()?.address());
        self.under_load_at(&address, host, options, action)
    }

    /// The same for any address.
    pub fn under_load_at<T>(
        &self,
        address: &str,
        host: &str,
        options: &[&str],
        action: impl FnOnce() -> Result<T>,
    ) -> Result<(Account, T)> {
        let traffic = Traffic::start_at(&self.cluster, address, host, options)?;
        thread::sleep(Duration::from_millis(500));
        let outcome = action();
        let account = traffic.stop()?;
        Ok((account, outcome?))
    }

    /// The address of nginx, which is on m1.
    pub fn nginx(&self) -> String {
        format!("{}:80", self.cluster.m1().address())
    }

    /// Empties a gateway's access log.
    pub fn forget(&self, gateway: &Machine) -> Result<()> {
        gateway.exec_ok(&["truncate", "--size=0", LOG]).map(drop).map_err(Into::into)
    }

    /// What a gateway has logged since [`Self::forget`], in the order of the requests' coming.
    pub fn logged(&self, gateway: &Machine) -> Result<Vec<Logged>> {
        // The last lines are written a moment later.
        thread::sleep(Duration::from_millis(500));
        let path = cluster::on_disk(gateway, LOG);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut lines = text
            .lines()
            .map(|line| {
                let line: serde_json::Value = serde_json::from_str(line)?;
                Ok(Logged {
                    at: line["at"].as_u64().context("a logged request has a time")?,
                    instance: line["instance"].as_str().unwrap_or_default().to_owned(),
                    tries: line["tries"].as_u64().unwrap_or_default(),
                })
            })
            .collect::<Result<Vec<_>>>()?;
        lines.sort_by_key(|line| line.at);
        Ok(lines)
    }

    /// When `needle` first stood in a machine's journal of `unit` at or after `since`, in milliseconds since 1970.
    pub fn journal(&self, machine: &Machine, unit: &str, since: u64, needle: &str) -> Result<Option<u64>> {
        // The journal takes seconds; what came earlier in that second is left out below.
        let from = format!("--since=@{}", since / 1000);
        let command =
            ["journalctl", "--output=json", "--output-fields=MESSAGE", "--quiet", "--unit", unit, &from];
        for line in machine.exec_ok(&command)?.lines() {
            let entry: serde_json::Value = serde_json::from_str(line)?;
            let micros = entry["__REALTIME_TIMESTAMP"].as_str().and_then(|text| text.parse::<u64>().ok());
            let at = micros.context("a journal entry has a time")? / 1000;
            if at >= since && entry["MESSAGE"].as_str().is_some_and(|message| message.contains(needle)) {
                return Ok(Some(at));
            }
        }
        Ok(None)
    }
}

/// Milliseconds since 1970.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A share of sorted samples' rank: 50 is the median.
pub fn percentile(samples: &[f64], share: usize) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * share).div_ceil(100).max(1) - 1;
    sorted.get(rank).copied().unwrap_or(f64::NAN)
}

/// `p50 12, p99 40 ms (50)`.
pub fn spread(samples: &[f64]) -> String {
    format!(
        "p50 {:.0}, p99 {:.0} ms ({} times)",
        percentile(samples, 50),
        percentile(samples, 99),
        samples.len()
    )
}
