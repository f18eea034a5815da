//! Several cluster networks on one machine: which there are, and what they share: one table of rules, and the names of
//! devices.
//!
//! Each has a role of its own, with keys, device and files of its own. Invariants: no two of them have a device or an
//! address in common, the one that was there first stays; the rules that are in force are those of all of them.

use super::files::{CNI_BRIDGE, DOCKER_BRIDGE};
use crate::config::OverlaySection;
use anyhow::{Context, Result, ensure};
use model::{NetworkConfig, keys::NetworkKeys};
use muster_core::overlay::{self, Firewall, ROUTE_PROTOCOL, ROUTE_PROTOCOLS};
use net::{Kernel, RulesMark};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync;
use tracing::debug;

/// One of the machine's cluster networks.
#[derive(Debug, Clone)]
pub(in crate::agent) struct Network {
    /// Empty for the one that every machine has.
    pub(super) name: String,
    pub(super) keys: NetworkKeys,
    /// The mark of its routes.
    pub(super) protocol: u8,
    /// The bridges that its containers are on.
    pub(super) bridges: Vec<String>,
    /// Docker's network with the machine's subnet, and its bridge.
    pub(super) docker: Option<(String, String)>,
    pub(super) shared: Arc<Shared>,
}

impl Network {
    /// All that the configuration names, the one without a name first.
    pub(in crate::agent) fn all(section: &OverlaySection) -> Vec<Self> {
        let shared = Arc::default();
        let docker = section.docker_network.clone().map(|name| (name, DOCKER_BRIDGE.to_owned()));
        let mut bridges = vec![section.bridge.clone()];
        bridges.extend(docker.iter().map(|(_, bridge)| bridge.clone()));
        bridges.extend(section.cni_config.as_ref().map(|_| CNI_BRIDGE.to_owned()));
        let first = Self {
            name: String::new(),
            keys: NetworkKeys::default(),
            protocol: ROUTE_PROTOCOL,
            bridges,
            docker,
            shared: Arc::clone(&shared),
        };
        let others = section.networks.iter().zip(ROUTE_PROTOCOLS).map(|((name, section), protocol)| Self {
            name: name.clone(),
            keys: NetworkKeys::new(&section.prefix(name)),
            protocol,
            bridges: vec![section.bridge(name)],
            docker: section.docker_network.clone().map(|docker| (docker, section.bridge(name))),
            shared: Arc::clone(&shared),
        });
        std::iter::once(first).chain(others).collect()
    }

    /// Whether it is the one that every machine has.
    pub(in crate::agent) fn is_first(&self) -> bool {
        self.name.is_empty()
    }
}

/// What the roles have in common. Held for one look at a map, and for one comparison of the rules; each role would
/// otherwise put its own in the place of the others'.
#[derive(Debug, Default)]
pub(in crate::agent) struct Shared {
    configs: Mutex<BTreeMap<String, NetworkConfig>>,
    rules: sync::Mutex<InForce>,
}

#[derive(Debug, Default)]
struct InForce {
    /// What each network wants.
    firewalls: BTreeMap<String, Firewall>,
    /// What is in force.
    rules: Option<Rules>,
}

/// Rules, and what they looked like when we had put them in place.
#[derive(Debug, PartialEq)]
struct Rules {
    firewall: Firewall,
    /// Which bridges were there.
    bridges: Vec<bool>,
    /// Docker's own chains come some time after its bridge, and ours must be jumped to from them.
    mark: RulesMark,
}

impl Shared {
    /// Notes that the network has this configuration, unless another one is in its way, or something else by `check`.
    pub(super) fn admit(
        &self,
        name: &str,
        config: &NetworkConfig,
        check: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        // A panic elsewhere leaves the map as it was.
        let mut configs = self.configs.lock().unwrap_or_else(PoisonError::into_inner);
        let others = configs.iter().filter(|(other, _)| *other != name);
        let others: BTreeMap<_, _> = others.map(|(name, config)| (name.clone(), config.clone())).collect();
        let clashes = overlay::clashes_between(config, &others);
        let told: Vec<String> = clashes.iter().map(ToString::to_string).collect();
        ensure!(told.is_empty(), "the network's configuration is refused: {}", told.join("; "));
        check()?;
        configs.insert(name.to_owned(), config.clone());
        Ok(())
    }

    /// Puts the rules of all networks in place if they are not, those of `own` as they are now. Says whether somebody else
    /// had changed them.
    pub(super) async fn enforce(&self, kernel: &Kernel, own: Firewall) -> Result<bool> {
        let mut state = self.rules.lock().await;
        state.firewalls.insert(own.name.clone(), own);
        let wanted = state.wanted(kernel).await?;
        state.enforce(wanted).await
    }
}

impl InForce {
    /// The rules of all networks, and what is there of them now.
    async fn wanted(&self, kernel: &Kernel) -> Result<Rules> {
        let mut all = self.firewalls.values().cloned();
        let first = all.next().context("there is one at least")?;
        let firewall = Firewall { others: all.collect(), ..first };
        let mut bridges = Vec::new();
        for name in firewall.bridges.iter().chain(firewall.others.iter().flat_map(|other| &other.bridges)) {
            bridges.push(kernel.exists(name).await?);
        }
        let mark = net::rules_mark(&firewall.sets()).await?;
        Ok(Rules { firewall, bridges, mark })
    }

    /// Changes what differs from `wanted`: the peers alone, where it is only they. Says whether it was somebody else's
    /// doing.
    async fn enforce(&mut self, wanted: Rules) -> Result<bool> {
        let Some(before) = self.rules.take() else { return self.lay_down(wanted).await.map(|()| false) };
        if before == wanted {
            self.rules = Some(before);
            return Ok(false);
        }
        let whole = (&before.bridges, before.mark) == (&wanted.bridges, wanted.mark);
        if whole && before.firewall.same_but_for_peers(&wanted.firewall) {
            match net::change_peers(&before.firewall, &wanted.firewall).await {
                Ok(()) => {
                    let mark = net::rules_mark(&wanted.firewall.sets()).await?;
                    self.rules = Some(Rules { mark, ..wanted });
                    return Ok(false);
                }
                Err(error) => debug!(%error, "all rules are put in place instead"),
            }
        }
        let unasked = (&before.firewall, &before.bridges) == (&wanted.firewall, &wanted.bridges);
        let repaired = unasked && before.mark.own != wanted.mark.own;
        self.lay_down(wanted).await?;
        Ok(repaired)
    }

    /// Puts all rules in place.
    async fn lay_down(&mut self, wanted: Rules) -> Result<()> {
        net::apply_firewall(&wanted.firewall).await?;
        // Docker's chain may have come meanwhile, without a jump in it: then the next look finds a difference.
        let after = net::rules_mark(&wanted.firewall.sets()).await?;
        let mark = RulesMark { docker: wanted.mark.docker, ..after };
        self.rules = Some(Rules { mark, ..wanted });
        Ok(())
    }
}
