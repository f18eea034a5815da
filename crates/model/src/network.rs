//! The cluster network: its configuration and leases in flannel's own key schema, so that machines running
//! flanneld can share the network. Values are read case-insensitively and written byte for byte as flanneld does.

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize, Serializer, de};
use std::{collections::BTreeMap, fmt, net::Ipv4Addr, str::FromStr};

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
        let v4 = key.split('&').next()?;
        let (address, len) = v4.rsplit_once('-')?;
        Some(Self::new(Ipv4Net::new(address.parse().ok()?, len.parse().ok()?).ok()?))
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The value of [`crate::keys::NETWORK_CONFIG`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// All of the cluster network.
    pub network: Ipv4Net,
    /// Prefix length of each machine's subnet.
    pub subnet_len: u8,
    /// The first subnet that may be leased.
    pub subnet_min: Ipv4Addr,
    /// The last subnet that may be leased.
    pub subnet_max: Ipv4Addr,
    /// How packets travel between machines.
    pub backend: Backend,
}

/// How packets travel between machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// Kernel VXLAN.
    Vxlan {
        /// VXLAN network identifier, 1 to 16777215.
        vni: u32,
        /// UDP port.
        port: u16,
    },
}

/// Why the network's configuration cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkConfigError {
    /// Not JSON, or not an object.
    #[error("the network configuration is no JSON object: {0}")]
    Json(String),
    /// `Network` is missing.
    #[error("`Network` is missing, e.g. \"10.1.0.0/16\"")]
    NoNetwork,
    /// A field cannot be read.
    #[error("`{field}` is {value}: {expected} is needed")]
    Field {
        /// Which field.
        field: &'static str,
        /// What it holds.
        value: String,
        /// What it should hold.
        expected: &'static str,
    },
    /// Subnets do not fit.
    #[error("`SubnetLen` {len} does not fit in {network}: at least four subnets and at most a /30 each")]
    SubnetLen {
        /// The prefix length asked for.
        len: u8,
        /// The network.
        network: Ipv4Net,
    },
    /// A backend that this version does not have.
    #[error("backend `{0}` is not supported: use \"vxlan\"")]
    Backend(String),
}

impl NetworkConfig {
    /// flannel's defaults for `network`, with the VXLAN backend.
    pub fn vxlan(network: Ipv4Net) -> Result<Self, NetworkConfigError> {
        Self::from_str(&format!(r#"{{"Network":"{network}","Backend":{{"Type":"vxlan"}}}}"#))
    }

    /// The JSON that goes under [`crate::keys::NETWORK_CONFIG`].
    pub fn to_json(&self) -> String {
        let Backend::Vxlan { vni, port } = self.backend;
        format!(
            r#"{{"Network":"{}","SubnetLen":{},"SubnetMin":"{}","SubnetMax":"{}","Backend":{{"Type":"vxlan","VNI":{vni},"Port":{port}}}}}"#,
            self.network, self.subnet_len, self.subnet_min, self.subnet_max
        )
    }

    /// True when a lease on `subnet` fits this configuration.
    pub fn allows(&self, subnet: Subnet) -> bool {
        subnet.net().prefix_len() == self.subnet_len
            && (self.subnet_min..=self.subnet_max).contains(&subnet.base())
    }

    /// Every subnet that may be leased, lowest first.
    pub fn subnets(&self) -> impl Iterator<Item = Subnet> + use<> {
        let step = 1_u64 << (32 - self.subnet_len);
        let (min, max, len) = (u32::from(self.subnet_min), u32::from(self.subnet_max), self.subnet_len);
        (u64::from(min)..=u64::from(max)).step_by(step as usize).filter_map(move |base| {
            let base = Ipv4Addr::from(u32::try_from(base).ok()?);
            Some(Subnet::new(Ipv4Net::new(base, len).ok()?))
        })
    }
}

impl FromStr for NetworkConfig {
    type Err = NetworkConfigError;

    /// Reads flannel's JSON. Keys are compared without regard to case, as Go's decoder does, and unknown keys
    /// are ignored.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fields = Fields::parse(text)?;
        let network: Ipv4Net = match fields.text("Network")? {
            None => return Err(NetworkConfigError::NoNetwork),
            Some(value) => value.parse().map_err(|_| NetworkConfigError::Field {
                field: "Network",
                value: format!("{value:?}"),
                expected: "an IPv4 network such as \"10.1.0.0/16\"",
            })?,
        };
        let network = network.trunc();
        let bits = network.prefix_len();
        let subnet_len = match fields.number("SubnetLen")? {
            None if bits <= 22 => 24,
            None => bits.saturating_add(2),
            Some(len) => u8::try_from(len).unwrap_or(u8::MAX),
        };
        if subnet_len > 30 || subnet_len < bits.saturating_add(2) {
            return Err(NetworkConfigError::SubnetLen { len: subnet_len, network });
        }
        let size = 1_u32 << (32 - subnet_len);
        let bound = |field: &'static str, default: u32| -> Result<Ipv4Addr, NetworkConfigError> {
            let Some(value) = fields.text(field)? else { return Ok(Ipv4Addr::from(default)) };
            let wrong = NetworkConfigError::Field {
                field,
                value: format!("{value:?}"),
                expected: "an address inside `Network` that begins a subnet",
            };
            let address: Ipv4Addr = value.parse().map_err(|_| wrong.clone())?;
            let aligned = u32::from(address) % size == 0;
            if network.contains(&address) && aligned { Ok(address) } else { Err(wrong) }
        };
        let first = u32::from(network.network());
        let last = u32::from(network.broadcast());
        let subnet_min = bound("SubnetMin", first + size)?;
        let subnet_max = bound("SubnetMax", last - size + 1)?;
        let backend = match fields.object("Backend")? {
            // flannel falls back to its `udp` backend here; nobody who runs Muster wants that.
            None => Backend::Vxlan { vni: 1, port: 8472 },
            Some(backend) => match backend.text("Type")?.as_deref() {
                Some("vxlan") => Backend::Vxlan {
                    vni: backend.number("VNI")?.map_or(1, |vni| vni as u32),
                    port: match backend.number("Port")?.unwrap_or(0) {
                        0 => 8472,
                        port => u16::try_from(port).map_err(|_| NetworkConfigError::Field {
                            field: "Port",
                            value: port.to_string(),
                            expected: "a UDP port",
                        })?,
                    },
                },
                Some(other) => return Err(NetworkConfigError::Backend(other.to_owned())),
                None => return Err(NetworkConfigError::Backend(String::new())),
            },
        };
        Ok(Self { network, subnet_len, subnet_min, subnet_max, backend })
    }
}

/// A JSON object whose keys are compared without regard to case.
struct Fields(BTreeMap<String, serde_json::Value>);

impl Fields {
    fn parse(text: &str) -> Result<Self, NetworkConfigError> {
        let object: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(text).map_err(|error| NetworkConfigError::Json(error.to_string()))?;
        Ok(Self::lower(object))
    }

    fn lower(object: serde_json::Map<String, serde_json::Value>) -> Self {
        Self(object.into_iter().map(|(key, value)| (key.to_ascii_lowercase(), value)).collect())
    }

    fn get(&self, field: &str) -> Option<&serde_json::Value> {
        self.0.get(&field.to_ascii_lowercase()).filter(|value| !value.is_null())
    }

    fn text(&self, field: &'static str) -> Result<Option<String>, NetworkConfigError> {
        self.get(field)
            .map(|v| v.as_str().map(str::to_owned).ok_or_else(|| wrong(field, v, "a text")))
            .transpose()
    }

    fn number(&self, field: &'static str) -> Result<Option<u64>, NetworkConfigError> {
        self.get(field).map(|v| v.as_u64().ok_or_else(|| wrong(field, v, "a whole number"))).transpose()
    }

    fn object(&self, field: &'static str) -> Result<Option<Fields>, NetworkConfigError> {
        self.get(field)
            .map(|v| v.as_object().cloned().map(Self::lower).ok_or_else(|| wrong(field, v, "an object")))
            .transpose()
    }
}

fn wrong(field: &'static str, value: &serde_json::Value, expected: &'static str) -> NetworkConfigError {
    NetworkConfigError::Field { field, value: value.to_string(), expected }
}

/// The value of a subnet's key: which machine holds it and how to reach it there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubnetLease {
    /// The holder's address on the machines' network.
    #[serde(rename = "PublicIP")]
    pub public_ip: Ipv4Addr,
    /// Always null here; flanneld writes it.
    #[serde(rename = "PublicIPv6")]
    pub public_ipv6: Option<std::net::Ipv6Addr>,
    /// `vxlan`, or another backend of flannel's.
    #[serde(rename = "BackendType", default, skip_serializing_if = "String::is_empty")]
    pub backend_type: String,
    /// What peers need to know to reach it.
    #[serde(rename = "BackendData", default, skip_serializing_if = "Option::is_none")]
    pub backend_data: Option<VxlanData>,
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

    #[test]
    fn leases_are_written_byte_for_byte_as_flanneld_does() {
        let recorded = r#"{"PublicIP":"192.168.77.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"5e:59:52:05:01:cc"}}"#;
        let lease: SubnetLease = serde_json::from_str(recorded).expect("parses");
        assert_eq!(serde_json::to_string(&lease).expect("renders"), recorded);
    }

    #[test]
    fn keys_of_leases_are_flannels() {
        let subnet = Subnet::from_key("10.5.91.0-24").expect("parses");
        assert_eq!((subnet.to_string().as_str(), subnet.key().as_str()), ("10.5.91.0/24", "10.5.91.0-24"));
        assert_eq!(subnet.bridge(), Ipv4Addr::new(10, 5, 91, 1));
        assert_eq!(
            Subnet::from_key("10.7.63.0-24&fd00:7:0:52::-64").map(Subnet::key).as_deref(),
            Some("10.7.63.0-24")
        );
        assert_eq!(Subnet::from_key("rubbish"), None);
    }

    #[test]
    fn defaults_follow_flannel() {
        let config =
            NetworkConfig::from_str(r#"{"network":"10.1.2.3/16","backend":{"TYPE":"vxlan","vni":7}}"#)
                .expect("valid");
        assert_eq!(config.network.to_string(), "10.1.0.0/16");
        assert_eq!(config.subnet_len, 24);
        assert_eq!(config.subnets().next().map(|s| s.to_string()).as_deref(), Some("10.1.1.0/24"));
        assert_eq!(config.subnets().last().map(|s| s.to_string()).as_deref(), Some("10.1.255.0/24"));
        assert_eq!(config.backend, Backend::Vxlan { vni: 7, port: 8472 });
        assert_eq!(NetworkConfig::from_str(&config.to_json()), Ok(config));
    }

    #[test]
    fn broken_configurations_are_explained() {
        for (text, expected) in [
            ("[]", "no JSON object"),
            ("{}", "`Network` is missing"),
            (r#"{"Network":"10.1.0.0/16","SubnetLen":17}"#, "`SubnetLen` 17 does not fit"),
            (r#"{"Network":"10.1.0.0/16","SubnetMin":"10.2.0.0"}"#, "`SubnetMin`"),
            (r#"{"Network":"10.1.0.0/16","Backend":{"Type":"udp"}}"#, "backend `udp`"),
            (r#"{"Network":7}"#, "`Network` is 7: a text is needed"),
        ] {
            let error = NetworkConfig::from_str(text).expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
