//! Where fleetctl's flags and variables say that the API is.

use crate::{cli::tunnel::Tunnel, config::SOCKET};
use anyhow::{Context, Result, bail};
use api::Endpoint;
use clap::Args;
use std::{net::ToSocketAddrs, path::PathBuf};

#[derive(Args)]
pub struct Reach {
    /// Location of the API: unix:///run/muster/muster.sock, http://10.0.0.1:49153. Of several the first counts.
    #[arg(long, global = true, env = "FLEETCTL_ENDPOINT")]
    endpoint: Option<String>,
    /// What to talk to: API.
    #[arg(long, global = true, env = "FLEETCTL_DRIVER", default_value = "API")]
    driver: String,
    /// Establish an SSH tunnel through this HOST[:PORT].
    #[arg(long, global = true, env = "FLEETCTL_TUNNEL")]
    tunnel: Option<String>,
    /// Username to use when connecting to the tunnel.
    #[arg(long, global = true, env = "FLEETCTL_SSH_USERNAME", default_value = "core")]
    ssh_username: String,
    /// Seconds until connecting to the tunnel fails.
    #[arg(long, global = true, env = "FLEETCTL_SSH_TIMEOUT", default_value_t = 10.0)]
    ssh_timeout: f64,
    /// File used to store remote machine fingerprints.
    #[arg(long, global = true, env = "FLEETCTL_KNOWN_HOSTS_FILE", default_value = "~/.fleetctl/known_hosts")]
    known_hosts_file: PathBuf,
    /// Verify host keys presented by remote machines before connecting.
    #[arg(long, global = true, env = "FLEETCTL_STRICT_HOST_KEY_CHECKING", value_parser = super::boolean,
        num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "true")]
    strict_host_key_checking: bool,
    /// Accepted for old scripts: only the etcd driver had use for it.
    #[arg(long, global = true, env = "FLEETCTL_REQUEST_TIMEOUT", hide = true)]
    request_timeout: Option<f64>,
    /// Accepted for old scripts: only the etcd driver had use for it.
    #[arg(long, global = true, env = "FLEETCTL_ETCD_KEY_PREFIX", hide = true)]
    etcd_key_prefix: Option<String>,
    /// Accepted for old scripts: fleet had deprecated it.
    #[arg(long, global = true, env = "FLEETCTL_EXPERIMENTAL_API", hide = true, value_parser = super::boolean,
        num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    experimental_api: Option<bool>,
    /// For TLS, which Muster's API does not speak yet.
    #[arg(long, global = true, env = "FLEETCTL_CA_FILE", hide = true, alias = "etcd-cafile")]
    ca_file: Option<PathBuf>,
    /// For TLS, which Muster's API does not speak yet.
    #[arg(long, global = true, env = "FLEETCTL_CERT_FILE", hide = true, alias = "etcd-certfile")]
    cert_file: Option<PathBuf>,
    /// For TLS, which Muster's API does not speak yet.
    #[arg(long, global = true, env = "FLEETCTL_KEY_FILE", hide = true, alias = "etcd-keyfile")]
    key_file: Option<PathBuf>,
}

impl Reach {
    pub fn endpoint(&self) -> Result<Endpoint> {
        match self.driver.as_str() {
            "API" | "api" => {}
            "etcd" => bail!(
                "the etcd driver wrote fleet's keys, which Muster does not have; leave --driver out, and give \
                 --endpoint the address of a machine's API"
            ),
            other => bail!("unrecognized driver \"{other}\""),
        }
        let text = self.endpoint.as_deref().unwrap_or_default();
        let mut all = text.split(',').map(str::trim).filter(|one| !one.is_empty());
        let endpoint = match all.next() {
            None => Endpoint::Unix(SOCKET.into()),
            Some(first) => parse(first)?,
        };
        if all.next().is_some() {
            eprintln!("warning: --endpoint has several values, of which only the first is used: {endpoint}");
        }
        match &self.tunnel {
            Some(host) if !host.is_empty() => Tunnel {
                host: host.clone(),
                username: Some(self.ssh_username.clone()),
                timeout: Some(self.ssh_timeout),
                known_hosts: Some(self.known_hosts_file.clone()),
                strict: Some(self.strict_host_key_checking),
                program: "fleetctl",
            }
            .to(&endpoint),
            _ => Ok(endpoint),
        }
    }
}

/// `unix:///path`, `file:///path`, `http://host[:port]`.
fn parse(text: &str) -> Result<Endpoint> {
    let Some((scheme, rest)) = text.split_once("://") else { bail!("URL scheme undefined") };
    match scheme {
        "unix" | "file" => {
            let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            if !host.is_empty() {
                bail!("unable to connect to host {host:?} with scheme {scheme:?}");
            }
            if path.is_empty() {
                bail!("{text} names no socket: {scheme}://{SOCKET} does");
            }
            Ok(Endpoint::Unix(path.into()))
        }
        "http" => {
            let host = rest.split('/').next().unwrap_or_default();
            let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
            let port = bare.is_some() || !host.contains(':');
            let full = if port { format!("{host}:80") } else { host.to_owned() };
            let mut found = full.to_socket_addrs().with_context(|| format!("cannot resolve {host:?}"))?;
            found.next().map(Endpoint::Tcp).with_context(|| format!("{host:?} has no address"))
        }
        "https" => bail!(
            "{text}: Muster's API speaks no TLS yet; use http:// on a network that you trust, or --tunnel"
        ),
        other => bail!("URL scheme {other:?} is not supported: unix, file and http are"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_in_all_their_forms() {
        for (text, endpoint) in [
            ("unix:///var/run/fleet.sock", "unix:///var/run/fleet.sock"),
            ("file:///run/fleet.sock", "unix:///run/fleet.sock"),
            ("http://127.0.0.1:49153", "http://127.0.0.1:49153"),
            ("http://127.0.0.1:49153/", "http://127.0.0.1:49153"),
            ("http://127.0.0.1", "http://127.0.0.1:80"),
            ("http://[::1]:5", "http://[::1]:5"),
            ("http://[::1]", "http://[::1]:80"),
        ] {
            assert_eq!(parse(text).expect(text).to_string(), endpoint);
        }
        for (text, words) in [
            ("unix://var/run/x", "unable to connect to host \"var\" with scheme \"unix\""),
            ("127.0.0.1:49153", "URL scheme undefined"),
            ("/run/fleet.sock", "URL scheme undefined"),
            ("https://127.0.0.1", "speaks no TLS yet"),
            ("ftp://127.0.0.1", "not supported"),
            ("unix://", "names no socket"),
        ] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
