//! A machine's identity and what it tells the cluster about itself.

use crate::{RECORD_VERSION, Subnet, Timestamp, Unknown};
use serde::{Deserialize, Serialize};
use std::{borrow::Borrow, collections::BTreeMap, fmt, net::Ipv4Addr, str::FromStr};

/// A machine's identity: machine-id(5), 32 lower-case hexadecimal digits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MachineId(String);

/// Why a text is no machine-id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no machine-id: 32 lower-case hexadecimal digits are needed, as in /etc/machine-id")]
pub struct MachineIdError(String);

impl MachineId {
    /// All 32 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first 8 digits: what people read and type.
    pub fn short(&self) -> &str {
        &self.0[..8]
    }

    /// True for the whole id and for its short form, as fleet matched `MachineID=`.
    pub fn matches(&self, text: &str) -> bool {
        text == self.as_str() || text == self.short()
    }
}

impl FromStr for MachineId {
    type Err = MachineIdError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() == 32 && text.bytes().all(hex) {
            Ok(Self(text.to_owned()))
        } else {
            Err(MachineIdError(text.to_owned()))
        }
    }
}

impl TryFrom<String> for MachineId {
    type Error = MachineIdError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// Ids sort and compare as their texts do.
impl Borrow<str> for MachineId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl From<MachineId> for String {
    fn from(id: MachineId) -> Self {
        id.0
    }
}

impl fmt::Display for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short())
    }
}

/// `key=value` pairs that describe a machine and that `MachineMetadata=` selects by.
pub type Metadata = BTreeMap<String, String>;

/// What a machine has to give to units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// Physical memory, in bytes.
    pub memory: u64,
    /// Processors that are online.
    pub cpus: u32,
}

/// What an administrator wants of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Maintenance {
    /// What runs there stays, nothing new comes.
    Cordoned,
    /// Nothing new comes, and what runs there moves to other machines.
    Draining,
}

impl Maintenance {
    /// The word that the hub, the API and the tables use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cordoned => "cordoned",
            Self::Draining => "draining",
        }
    }
}

impl fmt::Display for Maintenance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The value of [`crate::keys::maintenance`]. A machine without one is open to everything.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MaintenanceRecord {
    /// Record version.
    pub v: u32,
    /// What is wanted.
    pub state: Maintenance,
    /// Since when.
    pub since: Timestamp,
    /// Who wanted it.
    #[serde(default)]
    pub by: String,
    /// What for.
    #[serde(default)]
    pub reason: String,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// Metadata set on a machine from outside: the value of [`crate::keys::metadata`]. It outlives the machine's
/// presence, so that it may be set for a machine that is not there yet.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct MetadataRecord {
    /// Record version.
    pub v: u32,
    /// Values that win over the machine's own; `None` takes the machine's own away.
    #[serde(default)]
    pub metadata: BTreeMap<String, Option<String>>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl MetadataRecord {
    /// A record that changes nothing yet.
    pub fn new() -> Self {
        Self { v: RECORD_VERSION, ..Self::default() }
    }

    /// What a machine's metadata come to with this laid over them.
    pub fn over(&self, own: &Metadata) -> Metadata {
        let mut merged = own.clone();
        for (key, value) in &self.metadata {
            match value {
                Some(value) => merged.insert(key.clone(), value.clone()),
                None => merged.remove(key),
            };
        }
        merged
    }
}

/// A machine's presence: the value of [`crate::keys::machine`], under the machine's lease.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachineRecord {
    /// Record version.
    pub v: u32,
    /// The host name.
    pub name: String,
    /// The machine's own address on the machines' network (not on the cluster network).
    pub address: Ipv4Addr,
    /// Port of the machine's API on that address; absent when it listens on its unix socket only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_port: Option<u16>,
    /// The machine's metadata.
    #[serde(default)]
    pub metadata: Metadata,
    /// The machine's share of the cluster network, once it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<Subnet>,
    /// What the machine has to give; absent from machines whose Muster does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<Capacity>,
    /// Which installation this is: an id made when the daemon first ran. Two machines with one machine-id differ
    /// in it, and a machine that crashed and came back does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// The machine shuts down: its units shall run elsewhere now. Those with `OnPartition=stop` only when its own
    /// states say that they have stopped here.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leaving: bool,
    /// Muster's version.
    pub version: String,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl MachineRecord {
    /// A record with no metadata and no subnet yet.
    pub fn new(name: String, address: Ipv4Addr, version: String) -> Self {
        Self {
            v: RECORD_VERSION,
            name,
            address,
            api_port: None,
            metadata: Metadata::new(),
            subnet: None,
            capacity: None,
            instance: None,
            leaving: false,
            version,
            unknown: Unknown::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_id_is_32_hexadecimal_digits() {
        let id: MachineId = "0123456789abcdef0123456789abcdef\n".parse().expect("valid");
        assert_eq!(id.short(), "01234567");
        assert!(id.matches("01234567"));
        assert!(!id.matches("0123"));
        for bad in ["", "0123", "0123456789ABCDEF0123456789abcdef", "g123456789abcdef0123456789abcdef"] {
            assert!(bad.parse::<MachineId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn metadata_from_outside_win_and_take_away() {
        let text = r#"{"v":1,"metadata":{"disk":null,"region":"us"}}"#;
        let record: MetadataRecord = serde_json::from_str(text).expect("parses");
        let own = Metadata::from([("disk".into(), "ssd".into()), ("zone".into(), "a".into())]);
        let merged = Metadata::from([("region".into(), "us".into()), ("zone".into(), "a".into())]);
        assert_eq!(record.over(&own), merged);
        assert_eq!(serde_json::to_string(&record).expect("renders"), text);
    }

    #[test]
    fn unknown_fields_survive() {
        let text = r#"{"v":1,"name":"m1","address":"10.0.0.1","metadata":{},"version":"9","zone":"b"}"#;
        let record: MachineRecord = serde_json::from_str(text).expect("parses");
        assert_eq!(serde_json::to_string(&record).expect("renders"), text);
    }
}
