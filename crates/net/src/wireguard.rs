//! WireGuard for the overlay's backend of that name: one device, its keys and its peers.
//!
//! The kernel's own where it has one; else `boringtun`'s state machine between a TUN device and a UDP socket, in this
//! process ([`Kind`]). Both take the same peers and give the same state.
//!
//! Not here: which peers there should be, and the device's addresses and routes; those are for the overlay's plan, which
//! treats the device as any other. Invariant: a packet leaves only to the peer whose allowed addresses have its
//! destination, and enters only if its source is among those of the peer whose key decrypted it.

use crate::NetError;
use ipnet::IpNet;
use key::{PresharedKey, PrivateKey, PublicKey};
use std::{collections::HashMap, fmt, net::SocketAddr, time::Duration};

mod allowed;
mod kernel;
pub mod key;
mod userspace;

/// What a device is made of. Fixed for its life: for another key or port, open another device.
#[derive(Debug, Clone)]
pub struct WireguardConfig {
    /// The interface's name, at most 15 bytes: `flannel-wg`.
    pub name: String,
    /// This machine's key.
    pub private_key: PrivateKey,
    /// The UDP port for all peers, over IPv4 and IPv6.
    pub listen_port: u16,
    /// The device's MTU in bytes: the underlay's less 80 fits the header over IPv6 too.
    pub mtu: u16,
    /// A second, symmetric key that all machines share.
    pub psk: Option<PresharedKey>,
    /// Which of the two implementations.
    pub prefer: Prefer,
}

/// Which implementation to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Prefer {
    /// The kernel's, or an error.
    Kernel,
    /// The one in this process, even where the kernel has one.
    Userspace,
    /// The kernel's, else the one in this process.
    #[default]
    Auto,
}

/// Which implementation a device has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The kernel's module. The device outlives the process.
    Kernel,
    /// In this process. The device ends with it.
    Userspace,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Userspace => "userspace",
        })
    }
}

/// Another machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WgPeer {
    /// Who it is.
    pub public_key: PublicKey,
    /// Where it is spoken to first. Once an authentic packet came from elsewhere, it is answered there.
    pub endpoint: SocketAddr,
    /// What is sent to it, and what it may send from.
    pub allowed_ips: Vec<IpNet>,
    /// How often to say something when there is nothing to say, in whole seconds, for a machine behind a NAT.
    pub keepalive: Option<Duration>,
}

/// How it goes with another machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WgPeerState {
    /// Who it is.
    pub public_key: PublicKey,
    /// Where it was last heard, else where it is supposed to be.
    pub endpoint: Option<SocketAddr>,
    /// How long ago the two agreed on keys. `None`: never, or so long ago that the keys are void.
    pub last_handshake: Option<Duration>,
    /// Authentic bytes from it, WireGuard's headers and handshakes included.
    pub rx_bytes: u64,
    /// Bytes to it, WireGuard's headers and handshakes included.
    pub tx_bytes: u64,
}

/// A WireGuard device. Dropping it removes a userspace device and leaves a kernel's as it is, with its sessions, for
/// the next [`open`](Wireguard::open).
#[derive(Debug)]
pub struct Wireguard(Implementation);

#[derive(Debug)]
enum Implementation {
    Kernel(kernel::Device),
    Userspace(userspace::Device),
}

impl Wireguard {
    /// Makes the device in the calling thread's network namespace and sets it up. A device of that name which the
    /// kernel runs is taken over with its peers. Call it inside a tokio runtime.
    pub async fn open(config: WireguardConfig) -> Result<Self, NetError> {
        if config.prefer != Prefer::Userspace
            && let Some(device) = kernel::Device::open(&config).await?
        {
            return Ok(Self(Implementation::Kernel(device)));
        }
        if config.prefer == Prefer::Kernel {
            return Err(NetError::NoKernelWireguard);
        }
        Ok(Self(Implementation::Userspace(userspace::Device::open(&config)?)))
    }

    /// Sets exactly these peers. Sessions of a peer whose key and keepalive stay are kept, and so is where it was last
    /// heard unless its `endpoint` here is another than in the last call.
    pub async fn set_peers(&mut self, peers: &[WgPeer]) -> Result<(), NetError> {
        check(peers)?;
        match &mut self.0 {
            Implementation::Kernel(device) => device.set_peers(peers).await,
            Implementation::Userspace(device) => device.set_peers(peers).await,
        }
    }

    /// How it goes with each peer, in the order of their keys.
    pub async fn peers(&self) -> Result<Vec<WgPeerState>, NetError> {
        let mut peers = match &self.0 {
            Implementation::Kernel(device) => device.peers().await?,
            Implementation::Userspace(device) => device.peers(),
        };
        peers.sort_by_key(|peer| peer.public_key);
        Ok(peers)
    }

    /// Which implementation it is.
    pub fn kind(&self) -> Kind {
        match &self.0 {
            Implementation::Kernel(_) => Kind::Kernel,
            Implementation::Userspace(_) => Kind::Userspace,
        }
    }

    /// The interface's index.
    pub fn index(&self) -> u32 {
        match &self.0 {
            Implementation::Kernel(device) => device.index(),
            Implementation::Userspace(device) => device.index(),
        }
    }

    /// Whether a userspace device still works: not once its interface was deleted. Whether a kernel's interface is
    /// there, the kernel says.
    pub fn is_open(&self) -> bool {
        match &self.0 {
            Implementation::Kernel(_) => true,
            Implementation::Userspace(device) => device.is_open(),
        }
    }

    /// Ends the device's tasks; a userspace device is gone when this returns.
    pub async fn close(self) {
        if let Implementation::Userspace(device) = self.0 {
            device.close().await;
        }
    }
}

/// Refuses what the two implementations would understand differently.
fn check(peers: &[WgPeer]) -> Result<(), NetError> {
    let refused = |reason| Err(NetError::WireguardPeers { reason });
    let mut keys = HashMap::new();
    let mut networks = HashMap::new();
    for peer in peers {
        if let Some(before) = keys.insert(peer.public_key, peer.endpoint) {
            let (key, endpoint) = (peer.public_key, peer.endpoint);
            return refused(format!(
                "{before} and {endpoint} have the same key {key}: give one a key of its own"
            ));
        }
        for network in &peer.allowed_ips {
            match networks.insert(network.trunc(), peer.public_key) {
                Some(before) if before != peer.public_key => {
                    return refused(format!("{network} belongs to both {before} and {}", peer.public_key));
                }
                _ => {}
            }
        }
        if peer.keepalive.is_some_and(|keepalive| seconds(keepalive) == 0) {
            return refused(format!("the keepalive of {} must be 1 to 65535 seconds", peer.public_key));
        }
    }
    Ok(())
}

/// As WireGuard has it: whole seconds, 16 bits. 0 for what does not fit.
fn seconds(keepalive: Duration) -> u16 {
    u16::try_from(keepalive.as_secs()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(key: u8, networks: &[&str]) -> WgPeer {
        WgPeer {
            public_key: PublicKey::from([key; 32]),
            endpoint: SocketAddr::from(([192, 0, 2, key], 51820)),
            allowed_ips: networks.iter().map(|network| network.parse().expect("a network")).collect(),
            keepalive: None,
        }
    }

    #[test]
    fn ambiguous_peers_are_refused() {
        let refusal = |peers: &[WgPeer]| check(peers).expect_err("refused").to_string();
        assert!(check(&[peer(1, &["10.1.1.0/24"]), peer(2, &["10.1.0.0/16"])]).is_ok(), "longest prefix");
        let twice = refusal(&[peer(1, &[]), peer(1, &[])]);
        assert!(twice.contains("have the same key"), "{twice}");
        let both = refusal(&[peer(1, &["10.1.1.0/24"]), peer(2, &["10.1.1.7/24"])]);
        assert!(both.contains("10.1.1.7/24 belongs to both"), "{both}");
        for keepalive in [Duration::ZERO, Duration::from_millis(999), Duration::from_secs(65536)] {
            let wrong = WgPeer { keepalive: Some(keepalive), ..peer(1, &[]) };
            assert!(refusal(&[wrong]).contains("1 to 65535 seconds"));
        }
    }
}
