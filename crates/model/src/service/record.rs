//! What the hub holds about a service beside its endpoints: the rich record of each instance, what operators and agents
//! say about an instance, how the service is to be balanced, and what each router serves.

use super::{Instance, ServiceName};
use crate::{MachineId, RECORD_VERSION, Revision, Timestamp, UnitName, Unknown};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::{collections::BTreeMap, time::Duration};

/// What an instance speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http,
    /// HTTP/2 without TLS.
    H2c,
    /// gRPC: HTTP/2 without TLS, with trailers.
    Grpc,
    /// Bytes.
    Tcp,
    /// Bytes, encrypted end to end.
    Tls,
}

/// How an instance is, as the registrar that checks it sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// No check has passed yet; there is no upstream key.
    Starting,
    /// Checks pass.
    #[default]
    Passing,
    /// Checks fail now and then; traffic still goes there.
    Warning,
    /// Checks fail; there is no upstream key.
    Critical,
}

/// The rich record of an instance: `/services/<svc>/meta/<instance>`, written beside the plain upstream key in one
/// transaction and under the same lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceMeta {
    /// The record's version.
    pub v: u32,
    /// `<IPv4 address>:<port>`, as in the upstream key, which is there only while traffic may come.
    pub addr: String,
    /// What it speaks.
    #[serde(default)]
    pub proto: Protocol,
    /// Its share of the traffic relative to the others; 100 by custom.
    #[serde(default = "full_weight")]
    pub weight: u32,
    /// The machine it runs on.
    pub machine: MachineId,
    /// That machine's name.
    #[serde(default)]
    pub machine_name: String,
    /// The unit.
    pub unit: UnitName,
    /// How often it has been started: an address that is used again is another instance.
    #[serde(default)]
    pub generation: u64,
    /// When it was started, in milliseconds since 1970.
    pub started: Timestamp,
    /// How it is.
    #[serde(default)]
    pub health: Health,
    /// Why it is not passing, in a line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What its unit says of the whole service and somebody else has said otherwise before, in a line: it has no effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conflict: Option<String>,
    /// How long its share of the traffic grows after its arrival.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "optional_duration")]
    pub slow_start: Option<Duration>,
    /// Free words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Where Prometheus finds its metrics: `/metrics` on the service's port, or `:9100/metrics`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<String>,
    /// What this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

fn full_weight() -> u32 {
    100
}

/// What is said about an instance from outside: `/services/<svc>/state/<instance>`, without a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InstanceState {
    /// It is about to stop: nothing new is sent there, and what is under way is finished.
    Drain,
    /// An operator has taken it out; the same for traffic, until an operator takes that back.
    Maintenance,
}

impl InstanceState {
    /// Reads the key's value: the plain word, as a person would put it.
    pub fn parse(value: &[u8]) -> Option<Self> {
        match value.trim_ascii() {
            b"drain" => Some(Self::Drain),
            b"maintenance" | b"maint" => Some(Self::Maintenance),
            _ => None,
        }
    }

    /// The key's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Maintenance => "maintenance",
        }
    }
}

/// How a service's traffic is distributed: `/services/<svc>/config`, without a lease.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct ServiceConfig {
    /// The record's version.
    pub v: u32,
    /// Host names under which it is reached besides its own name: exact, or `*.example.com`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// Path prefixes that it answers for; all of them when there is none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    /// `p2c` (the default), `round-robin`, `least-conn`, `hash:ip`, `hash:header:NAME` or `hash:cookie:NAME`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub balance: Option<String>,
    /// `cookie`: a client stays with the instance that it came to first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sticky: Option<String>,
    /// A TCP port of the gateway for it alone; its bytes are passed on unread.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_port: Option<u16>,
    /// How long an answer may take to begin.
    #[serde(skip_serializing_if = "Option::is_none", with = "optional_duration")]
    pub timeout: Option<Duration>,
    /// How many other instances a request may be tried on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
    /// The largest request body, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_body: Option<u64>,
    /// How long a request waits while the service has no instance; 0 for not at all.
    #[serde(skip_serializing_if = "Option::is_none", with = "optional_duration")]
    pub hold: Option<Duration>,
    /// Whether plain HTTP is sent to HTTPS.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub redirect: bool,
    /// Who wrote it first, when a registrar did: the unit whose section said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub written_by: Option<String>,
    /// What this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// What a router serves: `/muster/router/v1/<machine>/applied`, under the machine's lease. Whoever drains an instance
/// waits until every router has come to the revision of the drain and has nothing under way there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterRecord {
    /// The record's version.
    pub v: u32,
    /// The machine.
    pub machine: MachineId,
    /// Everything up to this revision is served.
    pub revision: Revision,
    /// Requests and connections under way to instances that are draining; those with none are not listed.
    #[serde(default)]
    pub inflight: BTreeMap<ServiceName, BTreeMap<Instance, u64>>,
    /// What this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl RouterRecord {
    /// A router that serves `revision` and has nothing under way to draining instances.
    pub fn new(machine: MachineId, revision: Revision) -> Self {
        Self { v: RECORD_VERSION, machine, revision, inflight: BTreeMap::new(), unknown: Unknown::new() }
    }

    /// Whether it is done with `instance`, whose drain was marked at `revision`.
    pub fn is_done_with(&self, service: &ServiceName, instance: &str, revision: Revision) -> bool {
        self.revision >= revision
            && self.inflight.get(service).and_then(|all| all.get(instance)).is_none_or(|count| *count == 0)
    }
}

/// Durations as people write them (`10s`, `1m 30s`) in JSON.
mod optional_duration {
    use super::*;

    pub(super) fn serialize<S: Serializer>(
        duration: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => serializer.collect_str(&humantime::format_duration(*duration)),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        let text: Option<String> = Option::deserialize(deserializer)?;
        let parse = |text: String| {
            humantime::parse_duration(&text)
                .map_err(|error| D::Error::custom(format!("`{text}` is no duration such as 10s: {error}")))
        };
        text.map(parse).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_a_round_and_keep_what_they_do_not_know() {
        let text = r#"{"v":1,"hosts":["app.example.com"],"balance":"p2c","hold":"2s","later":true}"#;
        let config: ServiceConfig = serde_json::from_str(text).expect("valid");
        assert_eq!(config.hold, Some(Duration::from_secs(2)));
        let again = serde_json::to_value(&config).expect("valid");
        assert_eq!(again["later"], true);
        assert_eq!(again["hold"], "2s");
        let refused = serde_json::from_str::<ServiceConfig>(r#"{"hold":"soon"}"#).expect_err("no duration");
        assert!(refused.to_string().contains("`soon` is no duration"), "{refused}");
    }

    #[test]
    fn a_router_is_done_when_it_is_far_enough_and_nothing_is_under_way() {
        let machine: MachineId = "0123456789abcdef0123456789abcdef".parse().expect("valid");
        let service: ServiceName = "web".parse().expect("valid");
        let mut router = RouterRecord::new(machine, Revision(7));
        assert!(router.is_done_with(&service, "web@1", Revision(7)));
        assert!(!router.is_done_with(&service, "web@1", Revision(8)));
        router.inflight.insert(service.clone(), BTreeMap::from([("web@1".to_owned(), 1)]));
        assert!(!router.is_done_with(&service, "web@1", Revision(7)));
        assert!(router.is_done_with(&service, "web@2", Revision(7)));
    }

    #[test]
    fn states_are_plain_words() {
        assert_eq!(InstanceState::parse(b"drain\n"), Some(InstanceState::Drain));
        assert_eq!(InstanceState::parse(b"maint"), Some(InstanceState::Maintenance));
        assert_eq!(InstanceState::parse(b"x"), None);
    }
}
