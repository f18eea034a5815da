//! What the gateway serves: routes, services, endpoints, ports. Plain data, replaced as a whole.
//!
//! Not here: where it comes from. Two tables that are equal serve the same.

use model::{Instance, Protocol, ServiceName};
use muster_core::balance::Strategy;
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

/// Everything that is served.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Table {
    /// Which requests go to which service. Besides these, each service answers to its own name and to `<name>.<zone>`.
    pub routes: Vec<Route>,
    /// The services.
    pub services: BTreeMap<ServiceName, Service>,
    /// TCP ports whose bytes go to a service as they are.
    pub tcp: BTreeMap<u16, ServiceName>,
    /// What of the services' configuration is not served, and why: for people.
    pub problems: BTreeMap<ServiceName, String>,
}

/// Requests for a host, under a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Route {
    /// For which host.
    pub host: HostPattern,
    /// Under which path: `/api` stands for itself and what is below it. The longest that fits wins.
    pub prefix: String,
    /// Who answers.
    pub service: ServiceName,
}

/// Hosts that a route is for. An exact name goes before a suffix, a longer suffix before a shorter one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostPattern {
    /// This name.
    Exact(String),
    /// Names that end like this, at a dot: `*.example.com` is the suffix `example.com`.
    Suffix(String),
    /// All names.
    Any,
}

/// Why a text is no host pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no host: a name such as app.example.com, *.example.com or * is needed")]
pub struct HostPatternError(String);

impl std::str::FromStr for HostPattern {
    type Err = HostPatternError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (suffix, name) = match text.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None if text == "*" => return Ok(Self::Any),
            None => (false, text),
        };
        let label = |label: &str| {
            !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        if name.len() > 253 || !name.split('.').all(label) {
            return Err(HostPatternError(text.to_owned()));
        }
        let name = name.to_ascii_lowercase();
        Ok(if suffix { Self::Suffix(name) } else { Self::Exact(name) })
    }
}

/// A service: who answers, and how they are treated.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Service {
    /// Who answers.
    pub endpoints: Vec<Endpoint>,
    /// How they are treated.
    pub policy: Policy,
}

/// An instance that answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Endpoint {
    /// Its name within the service.
    pub instance: Instance,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its share relative to the others'; 100 by custom.
    pub weight: u32,
    /// How often it was started: the same address with another generation is another instance.
    pub generation: u64,
    /// Nothing new goes there.
    pub draining: bool,
    /// What it speaks.
    pub protocol: Protocol,
}

/// How a service's requests are treated. `Policy::default()` is what a service gets that says nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Policy {
    /// How the next endpoint is chosen. Default: `p2c`.
    pub balance: Balance,
    /// Clients stay with the instance that they came to first, by a cookie. Default: no.
    pub sticky: bool,
    /// How long a connection may take to be made. Default: 300 ms.
    pub connect_timeout: Duration,
    /// How long an answer may take to begin. Default: 60 s.
    pub timeout: Duration,
    /// How long after the client's last byte, and the service's, a TCP connection or a tunnel may be silent. Default: 1 h.
    pub tunnel_timeout: Duration,
    /// On how many other endpoints a request may be tried. Default: 2.
    pub retries: u32,
    /// The largest body of a request, in bytes. Default: the gateway's limit.
    pub max_body: Option<u64>,
    /// How long a request waits while the service has no endpoint, before it is told 503. Default: 2 s.
    pub hold: Duration,
    /// Plain HTTP is sent to HTTPS. Default: no.
    pub redirect: bool,
    /// How long the share of a new endpoint grows. Default: at once.
    pub slow_start: Duration,
    /// TCP connections begin with a PROXY protocol header (v2) that names the client. Default: no.
    pub proxy_protocol: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            balance: Balance::default(),
            sticky: false,
            connect_timeout: Duration::from_millis(300),
            timeout: Duration::from_secs(60),
            tunnel_timeout: Duration::from_secs(3600),
            retries: 2,
            max_body: None,
            hold: Duration::from_secs(2),
            redirect: false,
            slow_start: Duration::ZERO,
            proxy_protocol: false,
        }
    }
}

/// How the next endpoint is chosen, and by what.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Balance {
    /// The better of two.
    #[default]
    P2c,
    /// In turn.
    RoundRobin,
    /// The one with the least under way.
    LeastConn,
    /// By a hash of the client's address.
    HashIp,
    /// By a hash of a header.
    HashHeader(String),
    /// By a hash of a cookie.
    HashCookie(String),
}

/// Why a text names no way to choose.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no way to balance: p2c, round-robin, least-conn, hash:ip, hash:header:NAME or hash:cookie:NAME is needed"
)]
pub struct BalanceError(String);

impl std::str::FromStr for Balance {
    type Err = BalanceError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let named = |prefix| text.strip_prefix(prefix).filter(|name: &&str| !name.is_empty());
        match text {
            "p2c" => Ok(Self::P2c),
            "round-robin" => Ok(Self::RoundRobin),
            "least-conn" => Ok(Self::LeastConn),
            "hash:ip" => Ok(Self::HashIp),
            _ => match (named("hash:header:"), named("hash:cookie:")) {
                (Some(name), _) if hyper::header::HeaderName::from_bytes(name.as_bytes()).is_ok() => {
                    Ok(Self::HashHeader(name.to_ascii_lowercase()))
                }
                (None, Some(name)) => Ok(Self::HashCookie(name.to_owned())),
                _ => Err(BalanceError(text.to_owned())),
            },
        }
    }
}

impl Balance {
    /// The balancer's word for it.
    pub(crate) fn strategy(&self) -> Strategy {
        match self {
            Self::P2c => Strategy::P2c,
            Self::RoundRobin => Strategy::RoundRobin,
            Self::LeastConn => Strategy::LeastConn,
            Self::HashIp | Self::HashHeader(_) | Self::HashCookie(_) => Strategy::Hash,
        }
    }
}
