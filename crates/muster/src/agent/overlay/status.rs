//! What others may know of the network: a snapshot that each round replaces, for the API, metrics and the doctor.

use super::{
    Held,
    probe::{self, Patient},
};
use crate::agent::metrics::{Metrics, label};
use api::network::{Findings, NetworkPeer, NetworkStatus};
use model::{MachineId, network::Backend};
use muster_core::overlay::{Desired, Peer, Via, network_mtu};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::sync::watch;

/// A handle on the snapshot. Cheap to clone.
#[derive(Clone)]
pub(in crate::agent) struct View(Arc<watch::Sender<Snapshot>>);

#[derive(Debug, Clone, Default)]
struct Snapshot {
    status: NetworkStatus,
    patient: Patient,
    /// What was refused, and what failed in the last round.
    refused: Option<String>,
    failed: Option<String>,
    /// What Docker does not do.
    docker: Option<String>,
}

impl View {
    pub(super) fn new(machine: MachineId, network: &str) -> Self {
        let (machine, name) = (Some(machine), network.to_owned());
        let status = NetworkStatus { machine, name, ..NetworkStatus::default() };
        Self(Arc::new(watch::Sender::new(Snapshot { status, ..Snapshot::default() })))
    }

    /// What was refused, or nothing any more. Says whether that is news.
    pub(super) fn problem(&self, problem: Option<String>) -> bool {
        self.replace(|snapshot| &mut snapshot.refused, problem)
    }

    /// What failed in the last round. Says whether that is news.
    pub(super) fn last_failure(&self, problem: Option<String>) -> bool {
        self.replace(|snapshot| &mut snapshot.failed, problem)
    }

    /// What Docker does not do, or nothing any more. Says whether that is news.
    pub(super) fn docker(&self, problem: Option<String>) -> bool {
        self.replace(|snapshot| &mut snapshot.docker, problem)
    }

    fn replace(&self, which: fn(&mut Snapshot) -> &mut Option<String>, problem: Option<String>) -> bool {
        let mut news = false;
        self.0.send_modify(|snapshot| {
            let known = which(snapshot);
            news = *known != problem;
            *known = problem;
            let problems = [&snapshot.refused, &snapshot.failed, &snapshot.docker];
            snapshot.status.problem = problems.into_iter().flatten().next().cloned();
        });
        news
    }

    pub(super) fn repaired(&self, changes: u64) {
        self.0.send_modify(|snapshot| snapshot.status.repaired += changes);
    }

    pub(super) fn rules_repaired(&self) {
        self.0.send_modify(|snapshot| snapshot.status.rules_repaired += 1);
    }

    /// A round came to its end.
    pub(super) fn round(
        &self,
        held: &Held,
        desired: &[Desired],
        waiting: usize,
        handshakes: &BTreeMap<String, Duration>,
        taken: Duration,
    ) {
        let peer = |(net, peer): (&ipnet::IpNet, &Peer)| {
            let handshake = match &peer.via {
                Via::Wireguard { key, .. } => handshakes.get(key).map(Duration::as_secs),
                _ => None,
            };
            NetworkPeer {
                subnet: net.to_string(),
                public_ip: peer.public_ip,
                via: match &peer.via {
                    Via::Vxlan(mac) => format!("vxlan {mac}"),
                    Via::Direct => "direct".to_owned(),
                    Via::Wireguard { key, .. } => {
                        format!("wireguard {}…", key.chars().take(8).collect::<String>())
                    }
                },
                last_handshake: handshake,
            }
        };
        let peers: Vec<NetworkPeer> = desired.iter().flat_map(|desired| &desired.peers).map(peer).collect();
        let transport = match &held.config.backend {
            Backend::Vxlan(vxlan) => format!("{}/udp", vxlan.port),
            Backend::Wireguard(wireguard) => format!("{}/udp", wireguard.port),
            Backend::HostGw | Backend::Alloc => held.config.network.to_string(),
        };
        self.0.send_modify(|snapshot| {
            snapshot.patient = Patient { desired: desired.first().cloned(), peers: peers.clone(), transport };
            let status = &mut snapshot.status;
            status.ready = snapshot.failed.is_none();
            status.backend = held.config.backend.name().to_owned();
            status.network = held.config.network.to_string();
            status.subnet = Some(held.key);
            status.public_ip = Some(held.underlay.address.into());
            status.device = desired.first().and_then(Desired::device).unwrap_or_default().to_owned();
            status.mtu = network_mtu(desired);
            status.held = waiting;
            status.peers = peers;
            status.rounds += 1;
            status.last_round = u64::try_from(taken.as_micros()).unwrap_or(u64::MAX);
        });
    }

    /// How the network is.
    pub(in crate::agent) fn status(&self) -> NetworkStatus {
        self.0.borrow().status.clone()
    }

    /// Asks every peer.
    pub(in crate::agent) async fn examine(&self) -> Findings {
        let patient = self.0.borrow().patient.clone();
        probe::examine(patient).await
    }

    /// Has the overlay's metrics on every page.
    pub(in crate::agent) fn measure(&self, metrics: &Metrics) {
        let view = self.clone();
        metrics.register(move |page| {
            let status = view.status();
            let info = [label("backend", &status.backend), label("network", &status.network)].join(",");
            page.metric("gauge", "muster_overlay_info", "The network.", &[(info, "1".to_owned())]);
            page.gauge(
                "muster_overlay_ready",
                "Whether datapath and rules are as they should be.",
                u8::from(status.ready),
            );
            page.gauge(
                "muster_overlay_refused",
                "Whether something is refused or fails.",
                u8::from(status.problem.is_some()),
            );
            page.gauge("muster_overlay_peers", "Other machines.", status.peers.len());
            page.gauge("muster_overlay_peers_held", "Peers that the hub has forgotten.", status.held);
            page.gauge("muster_overlay_mtu_bytes", "What containers may send at once.", status.mtu);
            page.counter(
                "muster_overlay_repairs_total",
                "Changes by others to the datapath, repaired.",
                status.repaired,
            );
            page.counter(
                "muster_overlay_rules_repairs_total",
                "Changes by others to the rules, repaired.",
                status.rules_repaired,
            );
            page.counter(
                "muster_overlay_rounds_total",
                "Comparisons of the kernel with what it should be.",
                status.rounds,
            );
            page.gauge(
                "muster_overlay_last_round_seconds",
                "What the last comparison took.",
                status.last_round as f64 / 1e6,
            );
        });
    }
}
