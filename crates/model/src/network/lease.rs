//! The values of subnets' keys, as flanneld writes them, and our own record of who has which subnet.

use super::SubnetKey;
use crate::{RECORD_VERSION, Unknown};
use serde::{Deserialize, Serialize, Serializer, de};
use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// The value of a subnet's key: which machine holds it and how to reach it there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubnetLease {
    /// The holder's address on the machines' network.
    #[serde(rename = "PublicIP")]
    pub public_ip: Ipv4Addr,
    /// The same over IPv6, where the network has it.
    #[serde(rename = "PublicIPv6")]
    pub public_ipv6: Option<Ipv6Addr>,
    /// `vxlan`, or another backend of flannel's.
    #[serde(rename = "BackendType", default, skip_serializing_if = "String::is_empty")]
    pub backend_type: String,
    /// What peers need to know to reach it over IPv4.
    #[serde(rename = "BackendData", default, skip_serializing_if = "Option::is_none")]
    pub backend_data: Option<BackendData>,
    /// What peers need to know to reach it over IPv6.
    #[serde(rename = "BackendV6Data", default, skip_serializing_if = "Option::is_none")]
    pub backend_v6_data: Option<BackendData>,
}

/// What a backend adds to a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum BackendData {
    /// Of `vxlan`.
    Vxlan(VxlanData),
    /// Of `wireguard`.
    Wireguard(WireguardData),
    /// Of a backend that we do not have; `null` where a backend has nothing to say.
    Other(serde_json::Value),
}

impl BackendData {
    /// What a VXLAN peer says.
    pub fn vxlan(&self) -> Option<&VxlanData> {
        match self {
            Self::Vxlan(data) => Some(data),
            _ => None,
        }
    }

    /// What a WireGuard peer says.
    pub fn wireguard(&self) -> Option<&WireguardData> {
        match self {
            Self::Wireguard(data) => Some(data),
            _ => None,
        }
    }
}

/// A VXLAN peer's data in its subnet lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VxlanData {
    /// VXLAN network identifier.
    #[serde(rename = "VNI", default, skip_serializing_if = "Option::is_none")]
    pub vni: Option<u32>,
    /// The MAC address of the peer's VXLAN device.
    #[serde(rename = "VtepMAC")]
    pub vtep_mac: MacAddress,
}

/// A WireGuard peer's data in its subnet lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireguardData {
    /// In base64.
    #[serde(rename = "PublicKey")]
    pub public_key: String,
    /// Where it listens.
    #[serde(rename = "Port", default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// The value of [`crate::keys::network_node`]: which subnet a machine has for good. It has no lease, so that the subnet
/// is still the machine's when everything else about it has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// [`RECORD_VERSION`].
    pub v: u32,
    /// Its subnet.
    pub subnet: SubnetKey,
    /// Its address when it last took the subnet.
    pub public_ip: Ipv4Addr,
    /// What this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl NodeRecord {
    /// A machine at `public_ip` with `subnet`.
    pub fn new(subnet: SubnetKey, public_ip: Ipv4Addr) -> Self {
        Self { v: RECORD_VERSION, subnet, public_ip, unknown: Unknown::new() }
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddress {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2);
            *byte = part
                .and_then(|part| u8::from_str_radix(part, 16).ok())
                .ok_or_else(|| format!("`{text}` is no MAC address"))?;
        }
        if parts.next().is_some() { Err(format!("`{text}` is no MAC address")) } else { Ok(Self(bytes)) }
    }
}

impl Serialize for MacAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddress {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Recorded from flanneld 0.21.5, but for the last two, which follow its code.
    #[test]
    fn point_11_leases_are_written_byte_for_byte_as_flanneld_does() {
        for recorded in [
            r#"{"PublicIP":"192.168.77.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"5e:59:52:05:01:cc"}}"#,
            r#"{"PublicIP":"192.168.77.1","PublicIPv6":"fd77::1","BackendType":"vxlan","BackendData":{"VNI":9,"VtepMAC":"76:00:00:00:00:01"},"BackendV6Data":{"VNI":9,"VtepMAC":"72:00:00:00:00:01"}}"#,
            r#"{"PublicIP":"192.168.77.1","PublicIPv6":null}"#,
            r#"{"PublicIP":"192.168.77.1","PublicIPv6":null,"BackendType":"host-gw"}"#,
            r#"{"PublicIP":"192.168.77.1","PublicIPv6":null,"BackendType":"wireguard","BackendData":{"PublicKey":"AAAA=","Port":51820}}"#,
            r#"{"PublicIP":"192.168.77.1","PublicIPv6":null,"BackendType":"extension","BackendData":"anything"}"#,
        ] {
            let lease: SubnetLease = serde_json::from_str(recorded).expect("parses");
            assert_eq!(serde_json::to_string(&lease).expect("renders"), recorded);
        }
    }

    #[test]
    fn a_node_keeps_what_a_newer_version_wrote() {
        let text = r#"{"v":1,"subnet":"10.1.5.0-24","public_ip":"10.0.0.1","later":true}"#;
        let record: NodeRecord = serde_json::from_str(text).expect("parses");
        assert_eq!(record.subnet.to_string(), "10.1.5.0-24");
        assert_eq!(serde_json::to_string(&record).expect("renders"), text);
    }
}
