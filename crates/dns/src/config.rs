//! What can be set, and where the usual resolvers are.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::{
    fmt, fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

/// Where the machine's own resolvers are listed (resolv.conf(5)).
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// DNS's port.
const PORT: u16 = 53;

/// `[router.dns]`: names for the cluster's services.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct DnsConfig {
    /// Whether this machine answers questions.
    pub enabled: bool,
    /// Where it listens, UDP and TCP. Besides, it listens on port 53 of the containers' bridge.
    pub listen: Vec<SocketAddr>,
    /// The domain under which services are: `someapp.svc.<zone>`.
    pub zone: String,
    /// Who is asked about all other names: `9.9.9.9` or `[2620:fe::fe]:53`. None: those of /etc/resolv.conf.
    pub upstreams: Vec<Upstream>,
    /// Who else may ask about all other names, besides this machine and the cluster's containers: `192.168.0.0/16`.
    /// Questions about services are answered to everybody who reaches the server.
    pub allow: Vec<IpNet>,
}

impl Default for DnsConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            // Next to systemd-resolved's 127.0.0.53.
            listen: vec![SocketAddr::from((Ipv4Addr::new(127, 0, 0, 54), PORT))],
            zone: "cluster.internal".to_owned(),
            upstreams: Vec::new(),
            allow: Vec::new(),
        }
    }
}

/// Why the server could not start.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// There is nowhere to listen.
    #[error("no address to listen on: set `listen` to at least one, or `enabled = false`")]
    NoAddress,
    /// The zone is no domain name.
    #[error(
        "the zone `{zone}` is no domain name: use letters, digits and hyphens between dots, as in `cluster.internal`"
    )]
    Zone {
        /// What was set.
        zone: String,
    },
    /// The machine's resolvers could not be read.
    #[error("could not read {path}: set `upstreams`")]
    Resolvers {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// An address to listen on is somebody else's.
    #[error("could not listen on {address}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// A resolver that is asked about other people's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Upstream(pub SocketAddr);

impl FromStr for Upstream {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, PORT)).or_else(|_| text.parse());
        address
            .map(Self)
            .map_err(|_| format!("`{text}` is no resolver: an IP address is needed, or one with a port"))
    }
}

impl TryFrom<String> for Upstream {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Upstream> for String {
    fn from(upstream: Upstream) -> Self {
        upstream.to_string()
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl DnsConfig {
    pub(crate) fn check(&self) -> Result<(), DnsError> {
        if self.listen.is_empty() {
            return Err(DnsError::NoAddress);
        }
        let is_label = |label: &str| {
            let fits = |c: char| c.is_ascii_alphanumeric() || c == '-';
            (1..=63).contains(&label.len())
                && label.chars().all(fits)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        // Names below it need some room.
        match self.zone.len() <= 100 && self.zone.split('.').all(is_label) {
            true => Ok(()),
            false => Err(DnsError::Zone { zone: self.zone.clone() }),
        }
    }

    /// The resolvers to ask, without ourselves.
    pub(crate) fn resolvers(&self) -> Result<Vec<SocketAddr>, DnsError> {
        let is_other = |resolver: &SocketAddr| {
            let is_same = |own: &SocketAddr| {
                own.port() == resolver.port()
                    && (own.ip() == resolver.ip() || own.ip().is_unspecified() && resolver.ip().is_loopback())
            };
            !self.listen.iter().any(is_same)
        };
        let resolvers = match self.upstreams.as_slice() {
            [] => match fs::read_to_string(RESOLV_CONF) {
                Ok(text) => of_resolv_conf(&text),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
                Err(source) => return Err(DnsError::Resolvers { path: RESOLV_CONF.into(), source }),
            },
            upstreams => upstreams.iter().map(|upstream| upstream.0).collect(),
        };
        Ok(resolvers.into_iter().filter(is_other).collect())
    }
}

fn of_resolv_conf(text: &str) -> Vec<SocketAddr> {
    let nameserver = |line: &str| {
        let mut words = line.split_whitespace();
        // An address with a zone, `fe80::1%eth0`, is left out: it is no address everywhere.
        (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok()).flatten()
    };
    text.lines().filter_map(nameserver).map(|ip: IpAddr| SocketAddr::new(ip, PORT)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_read_and_we_are_not_among_them() {
        let text = "# by somebody\nnameserver 9.9.9.9\nsearch a b\nnameserver\t2620:fe::fe # x\nnameserver fe80::1%eth0\n";
        let expected = ["9.9.9.9:53", "[2620:fe::fe]:53"].map(|address| address.parse().expect("an address"));
        assert_eq!(of_resolv_conf(text), expected);
        let upstreams = ["127.0.0.54", "127.0.0.53", "9.9.9.9:5353"].map(|text| text.parse().expect("one"));
        let config = DnsConfig { upstreams: upstreams.to_vec(), ..DnsConfig::default() };
        let expected = ["127.0.0.53:53", "9.9.9.9:5353"].map(|address| address.parse().expect("an address"));
        assert_eq!(config.resolvers().expect("given"), expected);
        assert!(
            "resolver.example".parse::<Upstream>().expect_err("no address").contains("`resolver.example`")
        );
    }

    #[test]
    fn what_cannot_work_is_told() {
        let error = |config: DnsConfig| config.check().expect_err("wrong").to_string();
        assert!(error(DnsConfig { listen: Vec::new(), ..DnsConfig::default() }).starts_with("no address"));
        for zone in ["", "a..b", "-a.b", "a_b", "ä", ".internal", "internal."] {
            assert!(
                error(DnsConfig { zone: zone.to_owned(), ..DnsConfig::default() }).contains(zone),
                "{zone}"
            );
        }
        assert!(DnsConfig::default().check().is_ok());
    }
}
