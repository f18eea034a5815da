//! `muster hub serve`: the embedded hub alone, with etcd's names for what etcd has too.

use crate::agent;
use anyhow::{Result, ensure};
use clap::Args;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Args)]
pub struct Serve {
    /// Where to listen; as ADDRESS:PORT or, as etcd has it, http://ADDRESS:PORT or https://ADDRESS:PORT.
    #[arg(long, visible_alias = "listen-client-urls", default_value = "127.0.0.1:2379", value_parser = listen)]
    listen: Listen,
    /// The URL that clients are told; by default the one that it listens on.
    #[arg(long, visible_alias = "advertise-client-urls")]
    advertise: Option<String>,
    /// The name it tells; by default the host's.
    #[arg(long)]
    name: Option<String>,
    /// Where to keep the data.
    #[arg(long, default_value = "/var/lib/muster/hub")]
    data_dir: PathBuf,
    /// How many bytes keys, values and their history may take.
    #[arg(long, default_value_t = hub::Limits::default().quota)]
    quota_backend_bytes: u64,
    /// Its certificate, in PEM. With it the hub speaks TLS and nothing else; a file that is replaced is used at once.
    #[arg(long, requires = "key_file")]
    cert_file: Option<PathBuf>,
    /// The certificate's private key, in PEM.
    #[arg(long, requires = "cert_file")]
    key_file: Option<PathBuf>,
    /// Turn away clients without a certificate of the trusted authorities. The name in it (CN) is the client's user.
    #[arg(long, requires = "trusted_ca_file", requires = "cert_file")]
    client_cert_auth: bool,
    /// The authorities of clients' certificates, in PEM.
    #[arg(long, requires = "client_cert_auth")]
    trusted_ca_file: Option<PathBuf>,
    /// How long a login stays valid that nobody uses: seconds, or with a unit ("5m").
    #[arg(long, default_value = "300", value_parser = token_ttl)]
    auth_token_ttl: Duration,
    /// How hard passwords are to guess, and a login is to check; each step doubles it.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(4..=31))]
    bcrypt_cost: u32,
}

/// An address, and whether it was given with `http://` or `https://`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Listen {
    address: SocketAddr,
    secure: Option<bool>,
}

fn listen(text: &str) -> Result<Listen, String> {
    let (secure, address) = match text.split_once("://") {
        None => (None, text),
        Some(("http", address)) => (Some(false), address),
        Some(("https", address)) => (Some(true), address),
        Some(_) => return Err("say ADDRESS:PORT, http://ADDRESS:PORT or https://ADDRESS:PORT".to_owned()),
    };
    let address = address.parse().map_err(|error| format!("{error}: say ADDRESS:PORT, e.g. 0.0.0.0:2379"))?;
    Ok(Listen { address, secure })
}

fn token_ttl(text: &str) -> Result<Duration, String> {
    let ttl = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => humantime::parse_duration(text).map_err(|error| error.to_string())?,
    };
    if ttl.is_zero() { Err("nobody could log in".to_owned()) } else { Ok(ttl) }
}

impl Serve {
    pub async fn run(self) -> Result<ExitCode> {
        let identity = self.cert_file.zip(self.key_file);
        let tls = identity.map(|(cert, key)| hub::TlsConfig { cert, key, client_ca: self.trusted_ca_file });
        match self.listen.secure {
            Some(true) => ensure!(tls.is_some(), "--listen https:// needs --cert-file and --key-file"),
            Some(false) => ensure!(tls.is_none(), "with --cert-file it speaks TLS only: --listen https://"),
            None => {}
        }
        let host = || rustix::system::uname().nodename().to_string_lossy().into_owned();
        let config = hub::HubConfig {
            data_dir: self.data_dir,
            listen: self.listen.address,
            advertise: self.advertise,
            name: self.name.unwrap_or_else(host),
            auth: hub::AuthConfig { bcrypt_cost: self.bcrypt_cost, token_ttl: self.auth_token_ttl },
            tls,
            limits: hub::Limits { quota: self.quota_backend_bytes, ..hub::Limits::default() },
        };
        let mut signals = agent::Signals::new()?;
        let mut hub = hub::Hub::start(config).await?;
        tracing::info!(address = %hub.address(), "hub serves");
        tokio::select! {
            error = hub.finished() => Err(error.into()),
            () = signals.end() => {
                hub.shutdown().await;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etcds_spellings_are_understood() {
        let plain = listen("127.0.0.1:1").expect("an address");
        assert_eq!((plain.address.port(), plain.secure), (1, None));
        assert_eq!(listen("https://0.0.0.0:2379").expect("a URL").secure, Some(true));
        assert!(listen("ftp://0.0.0.0:2379").is_err() && listen("localhost").is_err());
        assert_eq!(token_ttl("300"), token_ttl("5m"));
        assert!(token_ttl("0").is_err() && token_ttl("x").is_err());
    }
}
