//! The WireGuard device of the backend of that name: the only place where its planned peers meet `net::wireguard`.

use anyhow::{Context, Result};
use model::network::Wireguard as Options;
use muster_core::overlay::{Desired, Via, WIREGUARD_DEVICE};
use net::wireguard::{Prefer, WgPeer, Wireguard, WireguardConfig, key};
use std::{collections::BTreeMap, net::SocketAddr, path::Path, time::Duration};

/// The device, if it is open, and the peers that it has.
#[derive(Debug, Default)]
pub(super) struct Tunnel {
    open: Option<(Wireguard, Fixed, Vec<WgPeer>)>,
}

/// What a device cannot change.
#[derive(Debug, Clone, PartialEq)]
struct Fixed {
    port: u16,
    psk: Option<String>,
}

/// This machine's public key in base64; the private one is made once and stays.
pub(super) fn public_key(state: &Path) -> Result<String> {
    Ok(key::load_or_create(&state.join("wireguard.key"))?.public().to_string())
}

impl Tunnel {
    /// Opens the device where it is not open or was deleted, and gives it the peers of `desired`.
    pub(super) async fn ensure(
        &mut self,
        state: &Path,
        options: &Options,
        desired: &[Desired],
    ) -> Result<()> {
        let fixed = Fixed { port: options.port, psk: options.psk.clone() };
        if self.open.as_ref().is_some_and(|(device, of, _)| !device.is_open() || *of != fixed) {
            self.close().await;
        }
        if self.open.is_none() {
            let mtu = desired.iter().map(|desired| desired.mtu).min().unwrap_or(1420);
            let config = WireguardConfig {
                name: WIREGUARD_DEVICE.to_owned(),
                private_key: key::load_or_create(&state.join("wireguard.key"))?,
                listen_port: options.port,
                mtu: u16::try_from(mtu).context("the MTU is larger than WireGuard's")?,
                psk: options.psk.as_ref().map(|psk| psk.parse()).transpose().context("in `PSK`")?,
                prefer: Prefer::Auto,
            };
            let device = Wireguard::open(config).await.context("cannot open the WireGuard device")?;
            tracing::info!(device = WIREGUARD_DEVICE, kind = %device.kind(), "WireGuard device open");
            self.open = Some((device, fixed, Vec::new()));
        }
        let peers = peers(options, desired)?;
        if let Some((device, _, before)) = &mut self.open
            && *before != peers
        {
            device.set_peers(&peers).await.context("cannot set WireGuard's peers")?;
            *before = peers;
        }
        Ok(())
    }

    /// How long ago each peer, by its key, agreed on keys.
    pub(super) async fn handshakes(&self) -> BTreeMap<String, Duration> {
        let Some((device, ..)) = &self.open else { return BTreeMap::new() };
        let peers = device.peers().await.unwrap_or_default();
        peers
            .into_iter()
            .filter_map(|peer| Some((peer.public_key.to_string(), peer.last_handshake?)))
            .collect()
    }

    pub(super) async fn close(&mut self) {
        if let Some((device, ..)) = self.open.take() {
            device.close().await;
        }
    }
}

/// One peer for each key, with its subnets of both families.
fn peers(options: &Options, desired: &[Desired]) -> Result<Vec<WgPeer>> {
    let mut peers: BTreeMap<&str, WgPeer> = BTreeMap::new();
    for (net, peer) in desired.iter().flat_map(|desired| &desired.peers) {
        let Via::Wireguard { key, port } = &peer.via else { continue };
        let Ok(public_key) = key.parse() else {
            tracing::warn!(%net, peer = %peer.public_ip, "the peer's lease has no WireGuard key that can be read");
            continue;
        };
        let keepalive = Some(Duration::from_secs(options.keepalive.into())).filter(|every| !every.is_zero());
        let endpoint = SocketAddr::new(peer.public_ip, *port);
        let known =
            peers.entry(key).or_insert(WgPeer { public_key, endpoint, allowed_ips: Vec::new(), keepalive });
        known.allowed_ips.push(*net);
    }
    Ok(peers.into_values().collect())
}
