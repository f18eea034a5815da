//! What the overlay tells the machine, and what it remembers: flannel's `subnet.env`, Docker's options, a CNI
//! configuration, and the network as last known for a boot without the hub.

use super::{super::addresses, Held, write_file};
use crate::config::{Config, OverlaySection};
use anyhow::{Context, Result};
use ipnet::Ipv4Net;
use model::{SubnetKey, SubnetLease};
use muster_core::overlay::{self, Lease};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::process::Command;
use tracing::{debug, info, warn};

/// Docker answers at once, or it is starting.
const DOCKER_TIMEOUT: Duration = Duration::from_secs(20);
/// The bridge of the named Docker network.
pub(super) const DOCKER_BRIDGE: &str = "muster0";
/// The bridge of runtimes that speak CNI.
pub(super) const CNI_BRIDGE: &str = "cni0";

/// Where files go.
#[derive(Debug, Clone)]
pub(in crate::agent) struct Places {
    /// What outlives a reboot.
    pub(in crate::agent) state: PathBuf,
    /// What a reboot clears.
    pub(in crate::agent) run: PathBuf,
    /// Where flannel has the files of networks with a name.
    pub(in crate::agent) networks: PathBuf,
}

/// What a machine needs to join the network while the hub is away.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Cache {
    v: u32,
    pub(super) config: String,
    #[serde(deserialize_with = "either_form")]
    pub(super) subnet: SubnetKey,
    leases: BTreeMap<String, SubnetLease>,
}

/// A subnet as its key, or as a network, which an older version wrote.
fn either_form<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<SubnetKey, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.replace('/', "-").parse().map_err(serde::de::Error::custom)
}

impl Cache {
    /// What our devices were called.
    pub(super) fn devices(&self) -> BTreeSet<String> {
        let config = self.config.parse::<model::NetworkConfig>();
        config.map(|config| overlay::devices(&config)).unwrap_or_default()
    }

    pub(super) fn leases(&self) -> Vec<Lease> {
        let read = |(key, lease): (&String, &SubnetLease)| Some((key.parse().ok()?, Some(lease.clone())));
        self.leases.iter().filter_map(read).collect()
    }
}

impl Places {
    fn cache(&self, network: &str) -> PathBuf {
        let name =
            if network.is_empty() { "overlay.json".to_owned() } else { format!("overlay-{network}.json") };
        self.state.join(name)
    }

    pub(super) fn remember(&self, network: &str, held: &Held, leases: &[Lease]) {
        let known =
            leases.iter().filter_map(|(key, lease)| Some((key.to_string(), lease.clone()?))).collect();
        let cache = Cache { v: 1, config: held.config.to_json(), subnet: held.key, leases: known };
        let text = serde_json::to_string(&cache).expect("leases always render");
        if std::fs::read_to_string(self.cache(network)).is_ok_and(|before| before == text) {
            return;
        }
        if let Err(error) = write_file(&self.cache(network), &text) {
            warn!(%error, "network not remembered: a reboot without the hub will wait for it");
        }
    }

    pub(super) fn cached(&self, network: &str) -> Option<Cache> {
        let text = std::fs::read_to_string(self.cache(network)).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Tells container runtimes which subnet they have. Files that are right already are not touched. Of a network with
    /// a name there is flannel's file.
    pub(super) fn tell(&self, config: &Config, network: &str, held: &Held, mtu: u32) -> Result<()> {
        if !network.is_empty() {
            let path = self.networks.join(format!("{network}.env"));
            return write_all(vec![(path, overlay::subnet_env(&held.config, held.key, mtu))]);
        }
        let (section, dns) = (&config.overlay, config.router.dns.enabled);
        let units = section.unit_addresses;
        let mut files = vec![
            (self.run.join("subnet.env"), overlay::subnet_env(&held.config, held.key, mtu)),
            (self.run.join("docker.env"), overlay::docker_env(held.key, mtu, dns, units)),
        ];
        if let Some(path) = &section.cni_config {
            files.push((path.clone(), overlay::cni_config(held.key, mtu, units)));
        }
        write_all(files)?;
        let ground = units.then(|| addresses::Ground {
            v: 1,
            subnet: held.key.v4,
            mtu,
            bridge: subnets_bridge(section).to_owned(),
            container_socket: config.registrar.container_socket.clone(),
        });
        addresses::tell(&self.run, ground.as_ref(), config)
    }
}

fn write_all(files: Vec<(PathBuf, String)>) -> Result<()> {
    for (path, text) in files {
        if std::fs::read_to_string(&path).is_ok_and(|before| before == text) {
            continue;
        }
        let cannot = || format!("cannot write {}", path.display());
        std::fs::create_dir_all(path.parent().unwrap_or_else(|| Path::new("/"))).with_context(cannot)?;
        write_file(&path, &text).with_context(cannot)?;
    }
    Ok(())
}

/// The bridge that the machine's subnet is on.
fn subnets_bridge(section: &OverlaySection) -> &str {
    match (&section.docker_network, &section.cni_config) {
        (Some(_), _) => DOCKER_BRIDGE,
        (None, Some(_)) => CNI_BRIDGE,
        (None, None) => &section.bridge,
    }
}

/// What Docker has of one of its networks.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Pool {
    subnet: String,
    #[serde(rename = "IPRange", default)]
    range: String,
}

/// Makes the Docker network `name` with this machine's subnet, of which containers get `range`, if Docker answers and has
/// none of that name. One with other addresses is made anew as long as nothing is attached to it. Says whether there is
/// nothing left to do; an error is for a person.
pub(super) async fn docker_network(
    name: &str,
    bridge: &str,
    key: SubnetKey,
    range: Option<Ipv4Net>,
    mtu: u32,
) -> Result<bool> {
    if docker(&["version"]).await.is_err() {
        debug!("Docker does not answer yet");
        return Ok(false);
    }
    let range = range.map(|range| range.to_string());
    if let Ok(pools) = docker(&["network", "inspect", "--format", "{{json .IPAM.Config}}", name]).await {
        let ours = |pool: &Pool| {
            pool.subnet == key.v4.to_string() && pool.range == range.as_deref().unwrap_or_default()
        };
        let found: Vec<Pool> = serde_json::from_str(&pools).unwrap_or_default();
        if found.iter().any(ours) {
            return Ok(true);
        }
        let cannot = || {
            let (pools, subnet) = (pools.trim(), key.v4);
            format!(
                "Docker's network `{name}` has {pools}, and not {subnet}: stop its containers, and it is made anew"
            )
        };
        docker(&["network", "rm", name]).await.with_context(cannot)?;
    }
    let (subnet, gateway, mtu) = (key.v4.to_string(), key.v4.bridge().to_string(), mtu.to_string());
    let option = |name: &str, value: &str| format!("com.docker.network.{name}={value}");
    let options = [
        option("driver.mtu", &mtu),
        option("bridge.name", bridge),
        option("bridge.enable_ip_masquerade", "false"),
        // Since version 28 Docker drops what other machines send straight to a container; older ones do not know this.
        option("bridge.gateway_mode_ipv4", "nat-unprotected"),
    ];
    let mut arguments = vec!["network", "create", "--subnet", &subnet, "--gateway", &gateway];
    arguments.extend(range.iter().flat_map(|range| ["--ip-range", range.as_str()]));
    arguments.extend(options.iter().flat_map(|option| ["--opt", option.as_str()]));
    arguments.push(name);
    docker(&arguments).await.with_context(|| {
        format!(
            "Docker does not make the network `{name}` with {subnet} (if its default bridge has these addresses: \
             remove the drop-in and give it others, `bip` in /etc/docker/daemon.json)"
        )
    })?;
    info!(network = name, %subnet, "Docker network made");
    Ok(true)
}

async fn docker(arguments: &[&str]) -> Result<String> {
    let run = Command::new("docker").args(arguments).kill_on_drop(true).output();
    let output = tokio::time::timeout(DOCKER_TIMEOUT, run).await.context("docker does not answer")??;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
