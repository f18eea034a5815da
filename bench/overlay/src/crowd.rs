//! Peers that need not exist: leases of machines that nobody runs, as many as one likes.

use ipnet::Ipv4Net;
use model::{MachineId, NetworkConfig, Subnet, SubnetKey, SubnetLease, network::BackendData};
use muster_core::overlay::{Lease, Underlay, own_lease};
use std::net::Ipv4Addr;

/// The network that has room for them; the machines of the measurement are in 10.1.0.0/16.
pub const CONFIG: &str = r#"{"Network":"10.0.0.0/12","SubnetLen":24,"Backend":{"Type":"vxlan"}}"#;

/// The network's configuration.
pub fn config() -> NetworkConfig {
    CONFIG.parse().expect("it is valid")
}

/// The `number`th of them, from 0.
pub struct Stranger {
    /// Its containers' subnet: from 10.2.0.0 on.
    pub subnet: Subnet,
    /// What it publishes.
    pub lease: SubnetLease,
}

/// The `number`th of them, from 0; there are at most 3,000.
pub fn stranger(number: u32) -> Stranger {
    let [_, _, high, low] = number.to_be_bytes();
    let subnet = Subnet::from_key(&format!("10.{}.{low}.0-24", 2 + high)).expect("it is a key");
    let id: MachineId = format!("{:032x}", 0x1000 + number).parse().expect("it is an id");
    let underlay = Underlay {
        name: "eth0".to_owned(),
        index: 2,
        address: Ipv4Addr::new(172, 16, high, low),
        address6: None,
        links: Vec::new(),
        mtu: 1500,
    };
    Stranger { subnet, lease: own_lease(&id, &config(), &underlay, None) }
}

impl Stranger {
    /// As the hub lists it.
    pub fn lease(&self) -> Lease {
        (SubnetKey::from(self.subnet), Some(self.lease.clone()))
    }

    /// Its subnet, its machine's address, and its VTEP's.
    pub fn entry(&self) -> (Ipv4Net, Ipv4Addr, String) {
        let Some(BackendData::Vxlan(data)) = &self.lease.backend_data else { unreachable!("it is VXLAN") };
        (self.subnet.net(), self.lease.public_ip, data.vtep_mac.to_string())
    }
}
