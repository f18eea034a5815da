//! The cluster network of one machine: which subnet it takes, how the kernel's VXLAN datapath should look, which
//! rules keep the outside out, and what Docker is told. The behaviour is flannel's (same keys, same values, same
//! entries in the kernel), so that machines running flanneld can share the network.
//!
//! Not here: reading the kernel and changing it (crate `net`), watching and writing leases (the registry).
//!
//! Invariant: what is not ours is never touched. [`plan`] names only our device and what hangs on it, and the
//! rules live in one nftables table and two iptables chains of our own.

use model::{MachineId, NetworkConfig, Subnet, SubnetLease, network::Backend, network::VxlanData};
use serde::Serialize;
use std::{collections::BTreeMap, net::Ipv4Addr};

mod env;
mod firewall;
mod plan;
mod subnet;

pub use env::{docker_env, subnet_env};
pub use firewall::{Firewall, IptablesRules, Jump};
pub use plan::{
    Device, FdbEntry, Mismatch, Neighbour, Observed, ObservedDevice, Op, ROUTE_PROTOCOL, Route, Vxlan, plan,
};
pub use subnet::{Choice, Lease, choose_subnet, desired_peers, vtep_mac};

/// What VXLAN over IPv4 adds to each packet, in bytes: inner Ethernet 14, VXLAN 8, UDP 8, IPv4 20.
pub const VXLAN_OVERHEAD: u32 = 50;

/// The interface that carries the machine's own address, over which peers are reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Underlay {
    /// The interface's name.
    pub name: String,
    /// Its number in the kernel.
    pub index: u32,
    /// Its first global IPv4 address: what peers see as `PublicIP`.
    pub address: Ipv4Addr,
    /// Its MTU in bytes.
    pub mtu: u32,
}

/// Another machine of the cluster network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Peer {
    /// Where its VXLAN packets go.
    pub public_ip: Ipv4Addr,
    /// The address of its VXLAN device.
    pub mac: model::network::MacAddress,
}

/// The datapath as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Desired {
    /// Our VXLAN device.
    pub device: Device,
    /// Every other machine's subnet.
    pub peers: BTreeMap<Subnet, Peer>,
}

impl Desired {
    /// The datapath of `machine`, which holds `subnet` and whose packets travel over `underlay`.
    pub fn new(
        machine: &MachineId,
        config: &NetworkConfig,
        subnet: Subnet,
        underlay: &Underlay,
        leases: &[Lease],
    ) -> Self {
        let Backend::Vxlan { vni, port } = config.backend;
        let device = Device {
            name: format!("flannel.{vni}"),
            vni,
            port,
            mac: vtep_mac(machine, vni),
            local: underlay.address,
            underlay: underlay.name.clone(),
            mtu: underlay.mtu.saturating_sub(VXLAN_OVERHEAD),
            address: subnet.base(),
        };
        Self { device, peers: desired_peers(leases, subnet, config) }
    }

    /// What this machine publishes under its subnet's key, so that the others can reach it.
    pub fn lease(&self) -> SubnetLease {
        SubnetLease {
            public_ip: self.device.local,
            public_ipv6: None,
            backend_type: "vxlan".to_owned(),
            backend_data: Some(VxlanData { vni: Some(self.device.vni), vtep_mac: self.device.mac }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_desired_datapath_is_flannels() {
        let machine: MachineId = "0123456789abcdef0123456789abcdef".parse().expect("an id");
        let config = NetworkConfig::vxlan("10.1.0.0/16".parse().expect("a network")).expect("valid");
        let subnet = Subnet::from_key("10.1.5.0-24").expect("a key");
        let address = Ipv4Addr::new(192, 168, 77, 1);
        let underlay = Underlay { name: "eth0".to_owned(), index: 2, address, mtu: 1500 };
        let desired = Desired::new(&machine, &config, subnet, &underlay, &[]);
        let device = &desired.device;
        assert_eq!((device.name.as_str(), device.vni, device.port, device.mtu), ("flannel.1", 1, 8472, 1450));
        assert_eq!((device.address, device.local), (Ipv4Addr::new(10, 1, 5, 0), address));
        let lease = desired.lease();
        assert_eq!((lease.public_ip, lease.backend_type.as_str()), (address, "vxlan"));
        assert_eq!(lease.backend_data.map(|data| (data.vni, data.vtep_mac)), Some((Some(1), device.mac)));
    }
}
