//! Where the hub is, and as whom it is asked: flags, then the environment, then this machine's configuration.
//!
//! Invariant: a password that the configuration has goes to the configuration's hub only, not to whatever server is
//! named on a command line. A certificate may be shown to anybody.

use crate::config::{self, with_scheme};
use access::{Access, Login, Password};
use anyhow::{Context, Result, bail};
use clap::Args;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

#[derive(Args, Default)]
pub struct AccessArgs {
    /// The hub or the etcd members, e.g. https://10.0.0.1:2379; by default what this machine's configuration says.
    #[arg(long, alias = "hub", value_delimiter = ',', global = true)]
    endpoints: Vec<String>,
    #[command(flatten)]
    credentials: Credentials,
}

/// By etcdctl's names, those of its v2 commands included; by default those of [hub] in this machine's configuration.
#[derive(Args, Clone, Debug, Default)]
pub struct Credentials {
    /// The authorities by whose word the server's certificate is believed, in PEM.
    #[arg(long, alias = "ca-file", global = true)]
    pub cacert: Option<PathBuf>,
    /// Our certificate, in PEM, for a server that asks for one.
    #[arg(long, alias = "cert-file", global = true)]
    pub cert: Option<PathBuf>,
    /// The certificate's private key, in PEM.
    // Not by the name of the verbs' keys.
    #[arg(id = "private-key", long = "key", value_name = "KEY", alias = "key-file", global = true)]
    pub key: Option<PathBuf>,
    /// The user: NAME, or NAME:PASSWORD. A password that is not given is asked for.
    #[arg(long, alias = "username", global = true)]
    pub user: Option<String>,
    /// The user's password. Other users of this machine can see it while the command runs.
    #[arg(long, global = true)]
    pub password: Option<String>,
    /// A file with the user's password as its first line.
    #[arg(long, global = true, conflicts_with = "password")]
    pub password_file: Option<PathBuf>,
}

impl AccessArgs {
    pub fn access(&self) -> Result<Access> {
        resolve(&self.endpoints, &self.credentials, &configured()?)
    }
}

/// The hub of this machine's configuration.
pub fn configured() -> Result<Access> {
    let file = std::env::var_os("MUSTER_CONFIG").map(PathBuf::from);
    Ok(config::load(file.as_deref(), |name| std::env::var(name).ok())?.config.access())
}

/// What etcdctl takes from the environment where no flag says otherwise; the second names are its v2 commands'.
pub fn from_etcdctl_environment(
    endpoints: &mut Vec<String>,
    credentials: &mut Credentials,
    environment: impl Fn(&str) -> Option<String>,
) {
    let find = |names: [&str; 2]| {
        names
            .iter()
            .find_map(|name| environment(&format!("ETCDCTL_{name}")).filter(|value| !value.is_empty()))
    };
    if endpoints.is_empty() {
        let named = find(["ENDPOINTS", "ENDPOINT"]).unwrap_or_default();
        endpoints.extend(named.split(',').filter(|endpoint| !endpoint.is_empty()).map(str::to_owned));
    }
    let Credentials { cacert, cert, key, user, password, password_file } = credentials;
    *cacert = cacert.take().or_else(|| find(["CACERT", "CA_FILE"]).map(PathBuf::from));
    *cert = cert.take().or_else(|| find(["CERT", "CERT_FILE"]).map(PathBuf::from));
    *key = key.take().or_else(|| find(["KEY", "KEY_FILE"]).map(PathBuf::from));
    *user = user.take().or_else(|| find(["USER", "USERNAME"]));
    if password_file.is_none() {
        *password = password.take().or_else(|| find(["PASSWORD", "PASSWORD"]));
    }
}

/// What is given, completed by what is configured.
pub fn resolve(endpoints: &[String], given: &Credentials, configured: &Access) -> Result<Access> {
    let identity = match (&given.cert, &given.key) {
        (Some(cert), Some(key)) => Some((cert.clone(), key.clone())),
        (None, None) => configured.identity.clone(),
        (Some(_), None) => bail!("--cert needs --key, the certificate's private key"),
        (None, Some(_)) => bail!("--key needs --cert, the key's certificate"),
    };
    let ca = given.cacert.clone().or_else(|| configured.ca.clone());
    let login = match &given.user {
        Some(user) => Some(login(user, given)?),
        None if given.password.is_some() || given.password_file.is_some() => {
            bail!("a password needs its user: --user NAME")
        }
        None if endpoints.is_empty() => configured.login.clone(),
        None => None,
    };
    let endpoints = if endpoints.is_empty() {
        configured.endpoints.clone()
    } else {
        let secure = ca.is_some() || identity.is_some();
        endpoints.iter().map(|endpoint| with_scheme(endpoint, secure)).collect()
    };
    if let Some(other) =
        endpoints.iter().find(|one| !one.starts_with("http://") && !one.starts_with("https://"))
    {
        bail!("`{other}` is no endpoint: say http://ADDRESS:PORT or https://ADDRESS:PORT");
    }
    let access = Access { endpoints, ca, identity, login };
    if access.secure() {
        if let Some(plain) = access.endpoints.iter().find(|one| one.starts_with("http://")) {
            bail!("{plain} is not secured as the other endpoints are: all of them or none");
        }
    } else if given.cacert.is_some() || given.cert.is_some() {
        bail!("{} is http://, which no certificate protects: say https://", access.names());
    }
    Ok(access)
}

fn login(user: &str, given: &Credentials) -> Result<Login> {
    let (user, password) = match user.split_once(':') {
        Some((user, password)) => (user, Some(password.to_owned())),
        None => (user, given.password.clone()),
    };
    let password = match (password, &given.password_file) {
        (Some(password), _) => Password::Given(password),
        (None, Some(file)) => Password::File(file.clone()),
        (None, None) => Password::Given(ask_password(&format!("Password of {user}"))?),
    };
    Ok(Login { user: user.to_owned(), password })
}

/// A password that is typed unseen; where nobody types, the first line of standard input.
pub fn ask_password(prompt: &str) -> Result<String> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    let stdin = io::stdin();
    let mut line = String::new();
    if !stdin.is_terminal() {
        stdin.read_line(&mut line).context("cannot read the password from standard input")?;
    } else {
        eprint!("{prompt}: ");
        let _ = io::stderr().flush(); // whoever types knows what is asked
        let before = tcgetattr(&stdin).context("cannot ask for the password")?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&stdin, OptionalActions::Flush, &silent).context("cannot ask for the password")?;
        let read = stdin.read_line(&mut line);
        tcsetattr(&stdin, OptionalActions::Flush, &before)
            .context("the terminal stays silent: type `reset`")?;
        eprintln!();
        read.context("cannot read the password")?;
    }
    let password = line.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        bail!("{prompt}: none was given (--password-file, or standard input)");
    }
    Ok(password.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Access {
        Access {
            endpoints: vec!["https://10.0.0.1:2379".to_owned()],
            ca: Some("/etc/muster/ca.crt".into()),
            identity: Some(("/etc/muster/m1.crt".into(), "/etc/muster/m1.key".into())),
            login: Some(Login {
                user: "muster".to_owned(),
                password: Password::File("/etc/muster/password".into()),
            }),
        }
    }

    fn resolved(endpoints: &[&str], given: &Credentials) -> Result<Access> {
        let endpoints: Vec<_> = endpoints.iter().map(|endpoint| (*endpoint).to_owned()).collect();
        resolve(&endpoints, given, &machine())
    }

    #[test]
    fn a_password_goes_where_the_configuration_sends_it() {
        let nothing = Credentials::default();
        assert_eq!(resolved(&[], &nothing).expect("configured"), machine());
        let other = resolved(&["10.0.0.9:2379"], &nothing).expect("another hub");
        assert_eq!((other.endpoints, other.login), (vec!["https://10.0.0.9:2379".to_owned()], None));
        assert_eq!(other.identity, machine().identity);
        assert!(!resolved(&["http://10.0.0.9:2379"], &nothing).expect("a plain one").secure());
    }

    #[test]
    fn flags_go_before_the_configuration() {
        let mut given = Credentials {
            cacert: Some("ca".into()),
            cert: Some("c".into()),
            key: Some("k".into()),
            user: Some("ann:a:b".to_owned()),
            ..Credentials::default()
        };
        let access = resolved(&[], &given).expect("flags");
        assert_eq!((access.ca, access.identity), (Some("ca".into()), Some(("c".into(), "k".into()))));
        let login = Login { user: "ann".to_owned(), password: Password::Given("a:b".to_owned()) };
        assert_eq!(access.login, Some(login));
        assert!(resolved(&["http://10.0.0.9:2379"], &given).is_err());
        given.key = None;
        assert!(resolved(&[], &given).is_err());
        assert!(resolved(&["https://a:1", "http://b:1"], &Credentials::default()).is_err());
        assert!(resolved(&["ftp://a:1"], &Credentials::default()).is_err());
        let no_user = Credentials { password: Some("x".to_owned()), ..Credentials::default() };
        assert!(resolved(&[], &no_user).is_err());
    }

    #[test]
    fn etcdctl_has_its_environment() {
        let variables = [
            ("ETCDCTL_ENDPOINTS", "https://a:1,https://b:1"),
            ("ETCDCTL_CA_FILE", "ca"),
            ("ETCDCTL_USER", "u:p"),
        ];
        let find =
            |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        let (mut endpoints, mut given) =
            (Vec::new(), Credentials { user: Some("flag:p".to_owned()), ..Credentials::default() });
        from_etcdctl_environment(&mut endpoints, &mut given, find);
        assert_eq!(endpoints, ["https://a:1", "https://b:1"]);
        assert_eq!((given.cacert, given.user), (Some("ca".into()), Some("flag:p".to_owned())));
    }
}
