//! Services as `/services` holds them: a name, its instances, and the endpoint of each.

/// What the hub holds about a service beside its endpoints.
mod record;

pub use record::{Health, InstanceState, Protocol, RouterRecord, ServiceConfig, ServiceMeta};

use serde::{Deserialize, Serialize};
use std::{fmt, net::SocketAddrV4, str::FromStr};

/// The name of a service: a DNS label (RFC 1123), so that it can become a host name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServiceName(String);

/// Why a text is no service name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no service name: lower-case letters, digits and inner hyphens, at most 63")]
pub struct ServiceNameError(String);

impl ServiceName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ServiceName {
    type Err = ServiceNameError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let label = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let fits = (1..=63).contains(&text.len()) && text.bytes().all(label);
        if fits && !text.starts_with('-') && !text.ends_with('-') {
            Ok(Self(text.to_owned()))
        } else {
            Err(ServiceNameError(text.to_owned()))
        }
    }
}

impl TryFrom<String> for ServiceName {
    type Error = ServiceNameError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ServiceName> for String {
    fn from(name: ServiceName) -> Self {
        name.0
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One running copy of a service: the last component of its key, usually the unit's name without `.service`.
pub type Instance = String;

/// Where an instance listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint(pub SocketAddrV4);

/// Why a value under `/services/<svc>/upstream/` is no endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no endpoint: `<IPv4 address>:<port>` is needed, or JSON with `addr`, or with `host` and `port`"
)]
pub struct EndpointError(String);

impl FromStr for Endpoint {
    type Err = EndpointError;

    /// Reads the plain form `10.1.5.2:3000`, and the JSON forms `{"addr":…}`, `{"host":…,"port":…}` and
    /// `{"ip":…,"port":…}` that other registrators write.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let plain = if text.starts_with('{') { json_endpoint(text) } else { Some(text.to_owned()) };
        plain
            .and_then(|plain| plain.parse::<SocketAddrV4>().ok())
            .filter(|address| address.port() != 0 && !address.ip().is_unspecified())
            .map(Self)
            .ok_or_else(|| EndpointError(text.chars().take(80).collect()))
    }
}

fn json_endpoint(text: &str) -> Option<String> {
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    let field = |name: &str| value.get(name);
    if let Some(address) = field("addr").and_then(|v| v.as_str()) {
        return Some(address.to_owned());
    }
    let host = field("host").or_else(|| field("ip"))?.as_str()?;
    let port = field("port")?;
    let port = port.as_u64().or_else(|| port.as_str()?.parse().ok())?;
    Some(format!("{host}:{port}"))
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_in_every_form_in_use() {
        for text in [
            "10.1.5.2:3000",
            " 10.1.5.2:3000\n",
            r#"{"addr":"10.1.5.2:3000"}"#,
            r#"{"host":"10.1.5.2","port":3000,"version":"52c7248a14"}"#,
            r#"{"ip":"10.1.5.2","port":"3000"}"#,
        ] {
            assert_eq!(text.parse::<Endpoint>().expect(text).to_string(), "10.1.5.2:3000");
        }
        for text in [
            "",
            ":3000",
            "10.1.5.2",
            "10.1.5.2:0",
            "0.0.0.0:80",
            "10.1.5.2:99999",
            "{}",
            "a;b:1",
            "{\"addr\":1}",
        ] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }

    #[test]
    fn service_names_are_dns_labels() {
        for good in ["a", "someapp", "web-2"] {
            assert!(good.parse::<ServiceName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a;b", &"a".repeat(64)] {
            assert!(bad.parse::<ServiceName>().is_err(), "{bad}");
        }
    }
}
