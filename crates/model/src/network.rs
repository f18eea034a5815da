//! The cluster network: its configuration and leases in flannel's own key schema, so that machines running
//! flanneld can share the network. Values are read case-insensitively and written byte for byte as flanneld does.

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize, Serializer, de};
use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// The network's configuration.
mod config;
/// Leases of subnets.
mod lease;

pub use config::{Backend, Network6, NetworkConfig, NetworkConfigError, Vxlan, Wireguard, WireguardMode};
pub use lease::{BackendData, MacAddress, NodeRecord, SubnetLease, VxlanData, WireguardData};

/// A machine's share of the cluster network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Subnet(Ipv4Net);

impl Subnet {
    /// The subnet that `address/len` lies in.
    pub fn new(net: Ipv4Net) -> Self {
        Self(net.trunc())
    }

    /// As a network.
    pub fn net(self) -> Ipv4Net {
        self.0
    }

    /// The subnet's first address, which the machine's VXLAN device carries.
    pub fn base(self) -> Ipv4Addr {
        self.0.network()
    }

    /// The first usable address, which the container bridge carries.
    pub fn bridge(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.0.network()) + 1)
    }

    /// The last component of the lease's key: `10.1.5.0-24`.
    pub fn key(self) -> String {
        format!("{}-{}", self.0.network(), self.0.prefix_len())
    }

    /// Reads the last component of a lease's key. Dual-stack keys (`…&v6-len`) give their IPv4 part.
    pub fn from_key(key: &str) -> Option<Self> {
        key.parse().ok().map(|key: SubnetKey| key.v4)
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A machine's share of the cluster network's IPv6 side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Subnet6(Ipv6Net);

impl Subnet6 {
    /// The subnet that `address/len` lies in.
    pub fn new(net: Ipv6Net) -> Self {
        Self(net.trunc())
    }

    /// As a network.
    pub fn net(self) -> Ipv6Net {
        self.0
    }

    /// The subnet's first address, which the machine's VXLAN device carries.
    pub fn base(self) -> Ipv6Addr {
        self.0.network()
    }

    /// The first usable address, which the container bridge carries.
    pub fn bridge(self) -> Ipv6Addr {
        Ipv6Addr::from(u128::from(self.0.network()) + 1)
    }
}

impl fmt::Display for Subnet6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// All that one machine leases: the last component of a lease's key, as flannel spells it: `10.7.63.0-24`, or
/// `10.7.63.0-24&fd00:7:0:52::-64` where the network has both families.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubnetKey {
    /// Its IPv4 subnet.
    pub v4: Subnet,
    /// Its IPv6 subnet.
    pub v6: Option<Subnet6>,
}

impl From<Subnet> for SubnetKey {
    fn from(v4: Subnet) -> Self {
        Self { v4, v6: None }
    }
}

impl fmt::Display for SubnetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.v4.0.network(), self.v4.0.prefix_len())?;
        match self.v6 {
            Some(v6) => write!(f, "&{}-{}", v6.0.network(), v6.0.prefix_len()),
            None => Ok(()),
        }
    }
}

/// A text that is no lease's key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no subnet's key: 10.1.5.0-24 would be one")]
pub struct SubnetKeyError(String);

impl FromStr for SubnetKey {
    type Err = SubnetKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || SubnetKeyError(text.to_owned());
        let (v4, v6) = text.split_once('&').map_or((text, None), |(v4, v6)| (v4, Some(v6)));
        let (address, len) = v4.rsplit_once('-').ok_or_else(wrong)?;
        let net = Ipv4Net::new(address.parse().map_err(|_| wrong())?, len.parse().map_err(|_| wrong())?);
        let v4 = Subnet::new(net.map_err(|_| wrong())?);
        let v6 = v6.map(|v6| {
            let (address, len) = v6.rsplit_once('-')?;
            Some(Subnet6::new(Ipv6Net::new(address.parse().ok()?, len.parse().ok()?).ok()?))
        });
        match v6 {
            None => Ok(Self { v4, v6: None }),
            Some(v6) => Ok(Self { v4, v6: Some(v6.ok_or_else(wrong)?) }),
        }
    }
}

impl Serialize for SubnetKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SubnetKey {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn point_11_keys_of_leases_are_flannels() {
        let subnet = Subnet::from_key("10.5.91.0-24").expect("parses");
        assert_eq!((subnet.to_string().as_str(), subnet.key().as_str()), ("10.5.91.0/24", "10.5.91.0-24"));
        assert_eq!(subnet.bridge(), Ipv4Addr::new(10, 5, 91, 1));
        let dual = "10.7.63.0-24&fd00:7:0:52::-64";
        let key: SubnetKey = dual.parse().expect("recorded from flanneld");
        assert_eq!(key.to_string(), dual);
        assert_eq!(key.v6.map(Subnet6::bridge).map(|a| a.to_string()).as_deref(), Some("fd00:7:0:52::1"));
        assert_eq!(Subnet::from_key(dual), Some(key.v4));
        for rubbish in
            ["rubbish", "10.5.91.0", "10.5.91.0-33", "10.5.91.0-24&", "10.5.91.0-24&fd00::", "-", ""]
        {
            assert!(rubbish.parse::<SubnetKey>().is_err(), "{rubbish}");
        }
    }

    proptest! {
        #[test]
        fn keys_come_back_as_they_were_written(v4: u32, len in 0_u8..=32, v6: Option<(u128, u8)>) {
            let v4 = Subnet::new(Ipv4Net::new(v4.into(), len).expect("a length"));
            let v6 = v6.map(|(base, len)| Subnet6::new(Ipv6Net::new(base.into(), len % 129).expect("a length")));
            let key = SubnetKey { v4, v6 };
            prop_assert_eq!(key.to_string().parse(), Ok(key));
        }
    }
}
