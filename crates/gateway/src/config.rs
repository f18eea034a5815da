//! `[router.gateway]`: what the gateway needs to know that is not about services.
//!
//! Every field has a default; unknown fields are refused. What changes while it runs is in `Table`.

use serde::{Deserialize, Deserializer};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// `[router.gateway]` in the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct GatewayConfig {
    /// Whether this machine balances traffic itself. Default: false.
    pub enabled: bool,
    /// Where it listens for HTTP. Default: `["0.0.0.0:80"]`.
    pub http: Vec<SocketAddr>,
    /// Where it listens for HTTPS. Nowhere without certificates. Default: `["0.0.0.0:443"]`.
    pub https: Vec<SocketAddr>,
    /// The address on which services get TCP ports of their own. Default: `0.0.0.0`.
    pub tcp_address: IpAddr,
    /// Where metrics, health and routes are told; keep it from strangers. Default: `127.0.0.1:9153`.
    pub admin: Option<SocketAddr>,
    /// Certificates for HTTPS; the first one is shown to clients that name no host or an unknown one. Files that are
    /// replaced are used from the next connection on. Default: none.
    pub certificates: Vec<CertificateFiles>,
    /// Services are reached as `<service>.<zone>` as well as by their bare names. Default: `svc.cluster.internal`.
    pub zone: String,
    /// Where a line of JSON for each request goes: a file, or `-` for standard output. Default: nowhere.
    pub access_log: Option<PathBuf>,
    /// What clients may ask for.
    pub limits: Limits,
    /// Whether clients come through a proxy that says in PROXY protocol (v1 or v2) for whom it speaks: then every
    /// connection must begin with it. Default: false.
    pub proxy_protocol: bool,
    /// How many threads serve, each with its own connections; 0 for one per processor. Default: 0.
    pub threads: usize,
    /// A unix socket on which the next process takes over the listeners of this one. Default: none.
    pub takeover: Option<PathBuf>,
}

/// A certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct CertificateFiles {
    /// The certificate and those between it and an authority that clients know, in PEM.
    pub cert: PathBuf,
    /// Its private key, in PEM.
    pub key: PathBuf,
}

/// `[router.gateway.limits]`: what clients may ask for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Limits {
    /// The largest head of a request, in bytes. Default: 32768.
    pub header_bytes: usize,
    /// The most headers in a request. Default: 100.
    pub headers: usize,
    /// The largest body of a request, in bytes, unless a service says otherwise. Default: 1 GiB.
    pub body_bytes: u64,
    /// How long a client may take to send the head of a request, the TLS handshake included. Default: `10s`.
    #[serde(deserialize_with = "duration")]
    pub header_timeout: Duration,
    /// How long a client may keep a connection without a request, and how long one that sends a body may stall. Default:
    /// `75s`.
    #[serde(deserialize_with = "duration")]
    pub idle_timeout: Duration,
    /// The most client connections, over all listeners; more wait in the kernel's queue. Default: 16384.
    pub connections: usize,
    /// The most requests that a client may have under way on one HTTP/2 connection. Default: 256.
    pub streams: u32,
    /// How many requests a client may take back on one HTTP/2 connection before they are answered, beyond those that it
    /// let be answered; and how many wrong ones it may send there. Then the connection ends. Default: 100.
    pub resets: u32,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        Self {
            enabled: false,
            http: vec![SocketAddr::new(any, 80)],
            https: vec![SocketAddr::new(any, 443)],
            tcp_address: any,
            admin: Some(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 9153)),
            certificates: Vec::new(),
            zone: "svc.cluster.internal".to_owned(),
            access_log: None,
            limits: Limits::default(),
            proxy_protocol: false,
            threads: 0,
            takeover: None,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_bytes: 32 << 10,
            headers: 100,
            body_bytes: 1 << 30,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            connections: 16384,
            streams: 256,
            resets: 100,
        }
    }
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text)
        .map_err(|error| serde::de::Error::custom(format!("`{text}` is no duration such as \"5s\": {error}")))
}
