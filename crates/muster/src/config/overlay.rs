//! `[overlay]`: the cluster networks that this machine is on.

use anyhow::{Result, ensure};
use ipnet::Ipv4Net;
use serde::Deserialize;
use std::{collections::BTreeMap, net::Ipv4Addr, path::PathBuf};

/// `[overlay]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct OverlaySection {
    /// Whether this machine is on the cluster network.
    pub enabled: bool,
    /// The cluster network, used when the hub has no network configuration yet.
    pub network: Ipv4Net,
    /// The interface, or its address, by which other machines are reached; the default route's by default.
    pub interface: Option<String>,
    /// The bridge that containers are on.
    pub bridge: String,
    /// A Docker network to make with this machine's subnet, beside the default one. None by default. Containers on it
    /// are on the cluster network; the default bridge then needs another subnet, or none of ours.
    pub docker_network: Option<String>,
    /// Where to write a CNI configuration with this machine's subnet, for other runtimes than Docker. None by default.
    pub cni_config: Option<PathBuf>,
    /// Whether units that are no containers may have an address of their own (`Address=own`). Containers then get the
    /// lower half of the machine's subnet, and such units the upper one.
    pub unit_addresses: bool,
    /// `[overlay.networks.NAME]`: further cluster networks that this machine is on, each with a configuration of its own
    /// in the hub.
    pub networks: BTreeMap<String, NetworkSection>,
}

/// `[overlay.networks.NAME]`
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct NetworkSection {
    /// Its keys are below this; by default where flannel's `--networks` has them, `/coreos.com/network/NAME`.
    pub prefix: Option<String>,
    /// The bridge that its containers are on; by default `muster-NAME`.
    pub bridge: Option<String>,
    /// A Docker network to make on that bridge, with this machine's subnet of it.
    pub docker_network: Option<String>,
}

impl NetworkSection {
    /// Below what its keys are.
    pub fn prefix(&self, name: &str) -> String {
        self.prefix.clone().unwrap_or_else(|| format!("{}{name}", model::keys::NETWORK))
    }

    /// The bridge that its containers are on.
    pub fn bridge(&self, name: &str) -> String {
        self.bridge.clone().unwrap_or_else(|| format!("muster-{name}"))
    }
}

impl OverlaySection {
    /// What networks may be called, and that no two share their keys.
    pub(super) fn check(&self) -> Result<()> {
        let most = muster_core::overlay::ROUTE_PROTOCOLS.len();
        ensure!(self.networks.len() <= most, "overlay.networks: {most} at most");
        let mut prefixes = BTreeMap::from([(model::keys::NETWORK.trim_end_matches('/').to_owned(), "")]);
        for (name, section) in &self.networks {
            let letters = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
            ensure!(
                letters
                    && (1..=8).contains(&name.len())
                    && !matches!(name.as_str(), "config" | "subnets" | "nodes"),
                "overlay.networks.{name}: a network is called by 1 to 8 small letters and digits, which become a part of \
                 its bridge's name; and not `config`, `subnets` or `nodes`"
            );
            let prefix = section.prefix(name);
            ensure!(
                prefix.starts_with('/') && prefix.len() > 1,
                "overlay.networks.{name}.prefix begins with `/`, as in `/coreos.com/network/{name}`"
            );
            let before = prefixes.insert(prefix.trim_end_matches('/').to_owned(), name);
            ensure!(
                before.is_none(),
                "overlay.networks.{name}.prefix is that of another network: give each one of its own"
            );
        }
        Ok(())
    }
}

impl Default for OverlaySection {
    fn default() -> Self {
        let network = Ipv4Net::new(Ipv4Addr::new(10, 1, 0, 0), 16).expect("16 is a prefix length");
        Self {
            enabled: true,
            network,
            interface: None,
            bridge: "docker0".to_owned(),
            docker_network: None,
            cni_config: None,
            unit_addresses: true,
            networks: BTreeMap::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::with;

    #[test]
    fn networks_have_names_and_keys_of_their_own() {
        let both =
            with("[overlay.networks.blue]\n[overlay.networks.red]\nprefix = \"/red\"\n", &[]).expect("valid");
        let prefixes: Vec<_> =
            both.config.overlay.networks.iter().map(|(name, section)| section.prefix(name)).collect();
        assert_eq!(prefixes, ["/coreos.com/network/blue", "/red"]);
        for (text, told) in [
            ("[overlay.networks.subnets]\n", "overlay.networks.subnets: a network is called"),
            ("[overlay.networks.Blue-1]\n", "overlay.networks.Blue-1: a network is called"),
            ("[overlay.networks.blue]\nprefix = \"blue\"\n", "overlay.networks.blue.prefix begins with `/`"),
            ("[overlay.networks.blue]\nprefix = \"/coreos.com/network/\"\n", "that of another network"),
        ] {
            let error = format!("{:#}", with(text, &[]).expect_err(text));
            assert!(error.contains(told), "{text}: {error}");
        }
    }
}
