//! The network's configuration, with every field and rule that flannel's has.
//!
//! Not here: whether this host can carry it (an address of the host's may lie inside the network); that is for
//! `core::overlay`. Invariant: a [`NetworkConfig`] in hand is one that flanneld would accept too, and whose backend we
//! have.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use super::{Subnet, Subnet6, SubnetKey};

/// flannel's defaults of the backends' ports: the kernel's old one for VXLAN, WireGuard's own.
const VXLAN_PORT: u16 = 8472;
const WIREGUARD_PORT: u16 = 51820;
const WIREGUARD_PORT_V6: u16 = 51821;

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
    /// The same over IPv6, where `EnableIPv6` asks for it.
    pub v6: Option<Network6>,
    /// flannel's `EnableNFTables`. Our rules are nftables' either way.
    pub nftables: bool,
    /// How packets travel between machines.
    pub backend: Backend,
}

/// The cluster network's IPv6 side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network6 {
    /// All of it.
    pub network: Ipv6Net,
    /// Prefix length of each machine's subnet.
    pub subnet_len: u8,
    /// The first subnet that may be leased.
    pub subnet_min: Ipv6Addr,
    /// The last subnet that may be leased.
    pub subnet_max: Ipv6Addr,
}

/// How packets travel between machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// Kernel VXLAN.
    Vxlan(Vxlan),
    /// Routes over the machines' own network, which must be one link.
    HostGw,
    /// Encrypted.
    Wireguard(Wireguard),
    /// Subnets are leased, and nothing forwards between them.
    Alloc,
}

/// Options of the backend `vxlan`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vxlan {
    /// VXLAN network identifier, 1 to 16777215.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// The underlay's MTU in bytes, where it is not the interface's.
    pub mtu: Option<u32>,
    /// Group policy extension: marks travel with packets.
    pub gbp: bool,
    /// Whether the device learns peers from packets.
    pub learning: bool,
    /// Peers on the same link are reached without VXLAN.
    pub direct_routing: bool,
}

/// Options of the backend `wireguard`.
#[derive(Clone, PartialEq, Eq)]
pub struct Wireguard {
    /// UDP port.
    pub port: u16,
    /// UDP port for IPv6 where the two families have a device each.
    pub port_v6: u16,
    /// The underlay's MTU in bytes, where it is not the interface's.
    pub mtu: Option<u32>,
    /// A key that all machines share besides their own, in base64.
    pub psk: Option<String>,
    /// Seconds between packets that keep a NAT's mapping alive; 0 is never.
    pub keepalive: u16,
    /// Which family packets between machines are of.
    pub mode: WireguardMode,
}

impl std::fmt::Debug for Wireguard {
    /// Without the shared key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wireguard")
            .field("port", &self.port)
            .field("mtu", &self.mtu)
            .field("psk", &self.psk.as_ref().map(|_| "…"))
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

/// flannel's `Mode` of the backend `wireguard`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WireguardMode {
    /// A tunnel for each family, over that family.
    #[default]
    Separate,
    /// One tunnel, over IPv4 where there is one.
    Auto,
    /// One tunnel over IPv4.
    Ipv4,
    /// One tunnel over IPv6.
    Ipv6,
}

/// Why the network's configuration cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkConfigError {
    /// Not JSON, or not an object.
    #[error("the network configuration is no JSON object: {0}")]
    Json(String),
    /// `Network` or `IPv6Network` is missing.
    #[error("`{field}` is missing, e.g. {example:?}")]
    NoNetwork {
        /// Which of the two.
        field: &'static str,
        /// What it could be.
        example: &'static str,
    },
    /// `EnableIPv4` is off.
    #[error(
        "`EnableIPv4` is false: a network without IPv4 has no lease keys in flannel's schema; leave it out, or add \
         `EnableIPv6` beside it for both"
    )]
    NoIpv4,
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
    #[error(
        "`{field}` {len} does not fit in {network}: the network must hold at least four subnets, and none may be longer \
         than /{longest}"
    )]
    SubnetLen {
        /// Of which family.
        field: &'static str,
        /// The prefix length asked for.
        len: u8,
        /// The network.
        network: IpNet,
        /// The longest that is allowed.
        longest: u8,
    },
    /// The first subnet comes after the last.
    #[error("`{min}` {first} comes after `{max}` {last}: no subnet is left")]
    Order {
        /// The field with the first.
        min: &'static str,
        /// The field with the last.
        max: &'static str,
        /// Its value.
        first: String,
        /// Its value.
        last: String,
    },
    /// A backend that flannel has and we do not.
    #[error("backend `{name}` is not supported: {instead}")]
    Backend {
        /// Its name.
        name: String,
        /// What to do about it.
        instead: &'static str,
    },
}

impl NetworkConfig {
    /// flannel's defaults for `network`, with the VXLAN backend.
    pub fn vxlan(network: Ipv4Net) -> Result<Self, NetworkConfigError> {
        Self::from_str(&format!(r#"{{"Network":"{network}","Backend":{{"Type":"vxlan"}}}}"#))
    }

    /// The JSON that goes under [`crate::keys::NETWORK_CONFIG`]: every field that is not flannel's default for it, and
    /// those that name the network.
    pub fn to_json(&self) -> String {
        let Self { network, subnet_len, subnet_min, subnet_max, v6, nftables, backend } = self;
        let mut text = String::from("{");
        if *nftables {
            text.push_str(r#""EnableNFTables":true,"#);
        }
        text.push_str(&format!(
            r#""Network":"{network}","SubnetLen":{subnet_len},"SubnetMin":"{subnet_min}","SubnetMax":"{subnet_max}","#
        ));
        if let Some(Network6 { network, subnet_len, subnet_min, subnet_max }) = v6 {
            text.push_str(&format!(
                r#""EnableIPv6":true,"IPv6Network":"{network}","IPv6SubnetLen":{subnet_len},"IPv6SubnetMin":"{subnet_min}","IPv6SubnetMax":"{subnet_max}","#
            ));
        }
        text.push_str(&format!(r#""Backend":{}}}"#, backend.to_json()));
        text
    }

    /// True when a lease on `subnet` fits this configuration.
    pub fn allows(&self, subnet: Subnet) -> bool {
        subnet.net().prefix_len() == self.subnet_len
            && (self.subnet_min..=self.subnet_max).contains(&subnet.base())
    }

    /// True when a lease under `key` fits this configuration, in every family that it has.
    pub fn allows_key(&self, key: SubnetKey) -> bool {
        let v6 = match (&self.v6, key.v6) {
            (None, None) => true,
            (Some(config), Some(subnet)) => {
                subnet.net().prefix_len() == config.subnet_len
                    && (config.subnet_min..=config.subnet_max).contains(&subnet.base())
            }
            _ => false,
        };
        v6 && self.allows(key.v4)
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

impl Network6 {
    /// Every subnet that may be leased, lowest first.
    pub fn subnets(&self) -> impl Iterator<Item = Subnet6> + use<> {
        let step = 1_u128 << (128 - self.subnet_len);
        let (mut next, max, len) =
            (Some(u128::from(self.subnet_min)), u128::from(self.subnet_max), self.subnet_len);
        std::iter::from_fn(move || {
            let base = next.filter(|base| *base <= max)?;
            next = base.checked_add(step);
            Some(Subnet6::new(Ipv6Net::new(Ipv6Addr::from(base), len).ok()?))
        })
    }
}

impl Backend {
    /// flannel's name for it, as in `Type` and in leases.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Vxlan(_) => "vxlan",
            Self::HostGw => "host-gw",
            Self::Wireguard(_) => "wireguard",
            Self::Alloc => "alloc",
        }
    }

    fn to_json(&self) -> String {
        let mut fields = vec![format!(r#""Type":"{}""#, self.name())];
        let mut flag = |set: bool, name: &str| {
            if set {
                fields.push(format!(r#""{name}":true"#));
            }
        };
        match self {
            Self::Vxlan(vxlan) => {
                flag(vxlan.gbp, "GBP");
                flag(vxlan.learning, "Learning");
                flag(vxlan.direct_routing, "DirectRouting");
                fields.insert(1, format!(r#""VNI":{},"Port":{}"#, vxlan.vni, vxlan.port));
                fields.extend(vxlan.mtu.map(|mtu| format!(r#""MTU":{mtu}"#)));
            }
            Self::Wireguard(wireguard) => {
                let Wireguard { port, port_v6, mtu, psk, keepalive, mode } = wireguard;
                fields.push(format!(r#""ListenPort":{port},"ListenPortV6":{port_v6}"#));
                fields.extend(mtu.map(|mtu| format!(r#""MTU":{mtu}"#)));
                fields.extend(
                    psk.as_ref().map(|psk| format!(r#""PSK":{}"#, serde_json::Value::from(psk.as_str()))),
                );
                fields.push(format!(r#""PersistentKeepaliveInterval":{keepalive},"Mode":"{}""#, mode.name()));
            }
            Self::HostGw | Self::Alloc => {}
        }
        format!("{{{}}}", fields.join(","))
    }

    fn read(fields: Option<&Fields>) -> Result<Self, NetworkConfigError> {
        // flannel's code falls back to its `udp` backend, its documents say `vxlan`. Nobody who runs Muster wants the
        // first, and we do not have it.
        let Some(fields) = fields else { return Ok(Self::Vxlan(Vxlan::default())) };
        let name = fields.text("Type")?.unwrap_or_default();
        match name.as_str() {
            "vxlan" => Ok(Self::Vxlan(Vxlan {
                vni: match fields.number("VNI")? {
                    None => 1,
                    Some(vni) => small(vni)
                        .filter(|vni| (1..1 << 24).contains(vni))
                        .ok_or_else(|| wrong_number("VNI", vni, "a number from 1 to 16777215"))?,
                },
                port: match fields.port("Port")? {
                    None | Some(0) => VXLAN_PORT,
                    Some(port) => port,
                },
                mtu: fields.mtu()?,
                gbp: fields.flag("GBP")?.unwrap_or_default(),
                learning: fields.flag("Learning")?.unwrap_or_default(),
                direct_routing: fields.flag("DirectRouting")?.unwrap_or_default(),
            })),
            "host-gw" => Ok(Self::HostGw),
            "alloc" => Ok(Self::Alloc),
            "wireguard" => {
                let keepalive = fields.number("PersistentKeepaliveInterval")?.unwrap_or_default();
                Ok(Self::Wireguard(Wireguard {
                    port: fields.port("ListenPort")?.filter(|port| *port != 0).unwrap_or(WIREGUARD_PORT),
                    port_v6: fields
                        .port("ListenPortV6")?
                        .filter(|port| *port != 0)
                        .unwrap_or(WIREGUARD_PORT_V6),
                    mtu: fields.mtu()?,
                    psk: fields.text("PSK")?.filter(|psk| !psk.is_empty()),
                    keepalive: u16::try_from(keepalive).map_err(|_| {
                        wrong_number(
                            "PersistentKeepaliveInterval",
                            keepalive,
                            "a number of seconds up to 65535",
                        )
                    })?,
                    mode: match fields.text("Mode")?.as_deref() {
                        None | Some("" | "separate") => WireguardMode::Separate,
                        Some("auto") => WireguardMode::Auto,
                        Some("ipv4") => WireguardMode::Ipv4,
                        Some("ipv6") => WireguardMode::Ipv6,
                        Some(other) => {
                            return Err(NetworkConfigError::Field {
                                field: "Mode",
                                value: format!("{other:?}"),
                                expected: "\"separate\", \"auto\", \"ipv4\" or \"ipv6\"",
                            });
                        }
                    },
                }))
            }
            other => Err(NetworkConfigError::Backend { name: other.to_owned(), instead: instead(other) }),
        }
    }
}

/// What to use in place of a backend that we do not have.
fn instead(name: &str) -> &'static str {
    match name {
        "" => "say which, e.g. {\"Type\":\"vxlan\"}",
        "udp" => {
            "it copies every packet through a process and reaches a fortieth of VXLAN's throughput; use \"vxlan\", \
             which every kernel since 3.12 has"
        }
        "ipip" => {
            "use \"host-gw\" between machines of one link, and \"vxlan\" with \"DirectRouting\" for the rest"
        }
        "ipsec" => "use \"wireguard\", which encrypts too and needs no other daemon",
        "extension" => {
            "commands from the hub are not run; use \"vxlan\", \"host-gw\", \"wireguard\" or \"alloc\""
        }
        _ => "use \"vxlan\", \"host-gw\", \"wireguard\" or \"alloc\"",
    }
}

impl Default for Vxlan {
    fn default() -> Self {
        Self { vni: 1, port: VXLAN_PORT, mtu: None, gbp: false, learning: false, direct_routing: false }
    }
}

impl WireguardMode {
    fn name(self) -> &'static str {
        match self {
            Self::Separate => "separate",
            Self::Auto => "auto",
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
        }
    }
}

impl FromStr for NetworkConfig {
    type Err = NetworkConfigError;

    /// Reads flannel's JSON. Keys are compared without regard to case, as Go's decoder does, and unknown keys
    /// are ignored.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fields = Fields::parse(text)?;
        if fields.flag("EnableIPv4")? == Some(false) {
            return Err(NetworkConfigError::NoIpv4);
        }
        let (network, subnet_len, subnet_min, subnet_max) = read_v4(&fields)?;
        let v6 = fields.flag("EnableIPv6")?.unwrap_or_default().then(|| read_v6(&fields)).transpose()?;
        let nftables = fields.flag("EnableNFTables")?.unwrap_or_default();
        let backend = Backend::read(fields.object("Backend")?.as_ref())?;
        Ok(Self { network, subnet_len, subnet_min, subnet_max, v6, nftables, backend })
    }
}

type Range4 = (Ipv4Net, u8, Ipv4Addr, Ipv4Addr);

fn read_v4(fields: &Fields) -> Result<Range4, NetworkConfigError> {
    let Some(value) = fields.text("Network")? else {
        return Err(NetworkConfigError::NoNetwork { field: "Network", example: "10.1.0.0/16" });
    };
    let wrong = |field, value: &str, expected| NetworkConfigError::Field {
        field,
        value: format!("{value:?}"),
        expected,
    };
    let network: Ipv4Net =
        value.parse().map_err(|_| wrong("Network", &value, "an IPv4 network such as \"10.1.0.0/16\""))?;
    let network = network.trunc();
    let len = subnet_len(fields, "SubnetLen", network.into(), (22, 24), 30)?;
    let size = 1_u32 << (32 - len);
    let bound = |field: &'static str, default: u32| -> Result<Ipv4Addr, NetworkConfigError> {
        let Some(value) = fields.text(field)? else { return Ok(Ipv4Addr::from(default)) };
        let wrong = || wrong(field, &value, "an address inside `Network` that begins a subnet");
        let address: Ipv4Addr = value.parse().map_err(|_| wrong())?;
        let aligned = u32::from(address).is_multiple_of(size);
        if network.contains(&address) && aligned { Ok(address) } else { Err(wrong()) }
    };
    let first = bound("SubnetMin", u32::from(network.network()) + size)?;
    let last = bound("SubnetMax", u32::from(network.broadcast()) - size + 1)?;
    if first > last {
        let (first, last) = (first.to_string(), last.to_string());
        return Err(NetworkConfigError::Order { min: "SubnetMin", max: "SubnetMax", first, last });
    }
    Ok((network, len, first, last))
}

fn read_v6(fields: &Fields) -> Result<Network6, NetworkConfigError> {
    let Some(value) = fields.text("IPv6Network")? else {
        return Err(NetworkConfigError::NoNetwork { field: "IPv6Network", example: "fd00:1::/48" });
    };
    let wrong = |field, value: &str, expected| NetworkConfigError::Field {
        field,
        value: format!("{value:?}"),
        expected,
    };
    let network: Ipv6Net =
        value.parse().map_err(|_| wrong("IPv6Network", &value, "an IPv6 network such as \"fd00:1::/48\""))?;
    let network = network.trunc();
    let len = subnet_len(fields, "IPv6SubnetLen", network.into(), (62, 64), 126)?;
    let size = 1_u128 << (128 - len);
    let bound = |field: &'static str, default: u128| -> Result<Ipv6Addr, NetworkConfigError> {
        let Some(value) = fields.text(field)? else { return Ok(Ipv6Addr::from(default)) };
        let wrong = || wrong(field, &value, "an address inside `IPv6Network` that begins a subnet");
        let address: Ipv6Addr = value.parse().map_err(|_| wrong())?;
        let aligned = u128::from(address).is_multiple_of(size);
        if network.contains(&address) && aligned { Ok(address) } else { Err(wrong()) }
    };
    let first = bound("IPv6SubnetMin", u128::from(network.network()) + size)?;
    let last = bound("IPv6SubnetMax", u128::from(network.broadcast()) - size + 1)?;
    if first > last {
        let (first, last) = (first.to_string(), last.to_string());
        return Err(NetworkConfigError::Order { min: "IPv6SubnetMin", max: "IPv6SubnetMax", first, last });
    }
    Ok(Network6 { network, subnet_len: len, subnet_min: first, subnet_max: last })
}

/// A subnet's prefix length: `usual.1` in a network as large as `/usual.0`, else two bits more than the network's.
fn subnet_len(
    fields: &Fields,
    field: &'static str,
    network: IpNet,
    usual: (u8, u8),
    longest: u8,
) -> Result<u8, NetworkConfigError> {
    let bits = network.prefix_len();
    let len = match fields.number(field)? {
        None if bits <= usual.0 => usual.1,
        None => bits.saturating_add(2),
        Some(len) => u8::try_from(len).unwrap_or(u8::MAX),
    };
    if len > longest || len < bits.saturating_add(2) {
        return Err(NetworkConfigError::SubnetLen { field, len, network, longest });
    }
    Ok(len)
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

    fn flag(&self, field: &'static str) -> Result<Option<bool>, NetworkConfigError> {
        self.get(field).map(|v| v.as_bool().ok_or_else(|| wrong(field, v, "true or false"))).transpose()
    }

    fn port(&self, field: &'static str) -> Result<Option<u16>, NetworkConfigError> {
        let port = self.number(field)?;
        port.map(|port| u16::try_from(port).map_err(|_| wrong_number(field, port, "a UDP port"))).transpose()
    }

    /// Absent and 0 are the interface's. IPv4 needs 576 (RFC 791), and what the headers take comes on top.
    fn mtu(&self) -> Result<Option<u32>, NetworkConfigError> {
        match self.number("MTU")? {
            None | Some(0) => Ok(None),
            Some(mtu) => small(mtu)
                .filter(|mtu| (700..=65535).contains(mtu))
                .map(Some)
                .ok_or_else(|| wrong_number("MTU", mtu, "a number of bytes from 700 to 65535")),
        }
    }

    fn object(&self, field: &'static str) -> Result<Option<Fields>, NetworkConfigError> {
        self.get(field)
            .map(|v| v.as_object().cloned().map(Self::lower).ok_or_else(|| wrong(field, v, "an object")))
            .transpose()
    }
}

fn small(number: u64) -> Option<u32> {
    u32::try_from(number).ok()
}

fn wrong(field: &'static str, value: &serde_json::Value, expected: &'static str) -> NetworkConfigError {
    NetworkConfigError::Field { field, value: value.to_string(), expected }
}

fn wrong_number(field: &'static str, value: u64, expected: &'static str) -> NetworkConfigError {
    NetworkConfigError::Field { field, value: value.to_string(), expected }
}

#[cfg(test)]
mod tests;
