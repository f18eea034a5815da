//! Where a hub is, and as whom it is spoken to.
//!
//! Not here: connections, and when a login has to be repeated. Invariant: a password is in no text that this makes.

use crate::files::{self, FileError, Identity, Stamp};
use etcd_client::{Certificate, ConnectOptions, TlsOptions};
use std::fmt;
use std::path::{Path, PathBuf};

/// The authorities that Debian trusts, and with it a machine that was told of no others.
const SYSTEM_CA: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Where a hub, or an etcd cluster, is, and as whom it is spoken to. Files are named, not read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// URLs, all `http://` or all `https://`.
    pub endpoints: Vec<String>,
    /// The authorities by whose word its certificate is believed; by default the system's.
    pub ca: Option<PathBuf>,
    /// Our certificate and its key, where it asks for one.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The user, where it has users.
    pub login: Option<Login>,
}

/// A user and the password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// The user's name.
    pub user: String,
    /// The password.
    pub password: Password,
}

/// A password, or where it is.
#[derive(Clone, PartialEq, Eq)]
pub enum Password {
    /// As it was typed.
    Given(String),
    /// A file's first line.
    File(PathBuf),
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Given(_) => f.write_str("a password"),
            Self::File(path) => write!(f, "the password in {}", path.display()),
        }
    }
}

/// What the files said when they were read.
pub struct Ready {
    /// For `https://` endpoints.
    pub tls: Option<TlsOptions>,
    /// The user's name and the password.
    pub login: Option<(String, String)>,
    /// Of the files, from before they were read.
    pub stamp: Stamp,
}

impl Ready {
    /// `options` with TLS as it should be. Logging in is the caller's.
    pub fn options(&self, options: ConnectOptions) -> ConnectOptions {
        match &self.tls {
            Some(tls) => options.with_tls(tls.clone()),
            None => options,
        }
    }
}

impl Access {
    /// To whoever listens there, without certificates and as nobody.
    pub fn open(endpoints: &[String]) -> Self {
        Self { endpoints: endpoints.to_vec(), ..Self::default() }
    }

    /// The endpoints, for messages.
    pub fn names(&self) -> String {
        self.endpoints.join(",")
    }

    /// Whether it speaks TLS.
    pub fn secure(&self) -> bool {
        self.endpoints.iter().any(|endpoint| endpoint.starts_with("https://"))
    }

    /// Reads the files. Blocks, for as long as a disk takes.
    pub fn ready(&self) -> Result<Ready, FileError> {
        let stamp = self.stamp();
        let tls = if self.secure() { Some(self.tls()?) } else { None };
        let login = match &self.login {
            None => None,
            Some(Login { user, password: Password::Given(password) }) => {
                Some((user.clone(), password.clone()))
            }
            Some(Login { user, password: Password::File(path) }) => {
                let text = files::read(path)?;
                let text = String::from_utf8_lossy(&text);
                let first = text.lines().next().unwrap_or_default().to_owned();
                if first.is_empty() {
                    let source =
                        std::io::Error::new(std::io::ErrorKind::InvalidData, "its first line is empty");
                    return Err(FileError::Read { path: path.clone(), source });
                }
                Some((user.clone(), first))
            }
        };
        Ok(Ready { tls, login, stamp })
    }

    fn tls(&self) -> Result<TlsOptions, FileError> {
        let ca = self.ca.as_deref().unwrap_or_else(|| Path::new(SYSTEM_CA));
        if self.ca.is_none() && !ca.exists() {
            return Err(FileError::NoAuthorities { path: ca.to_owned() });
        }
        files::authorities(ca)?;
        let tls = TlsOptions::new().ca_certificate(Certificate::from_pem(files::read(ca)?));
        let Some((cert, key)) = &self.identity else { return Ok(tls) };
        Identity::load(cert, key)?;
        Ok(tls.identity(etcd_client::Identity::from_pem(files::read(cert)?, files::read(key)?)))
    }

    /// That of all files that are named: when it changes, [`ready`](Self::ready) may say something else.
    pub fn stamp(&self) -> Stamp {
        let password = match &self.login {
            Some(Login { password: Password::File(path), .. }) => Some(path),
            _ => None,
        };
        let identity = self.identity.iter().flat_map(|(cert, key)| [cert, key]);
        Stamp::of(self.ca.iter().chain(identity).chain(password).map(PathBuf::as_path))
    }
}

impl From<&Access> for Access {
    fn from(access: &Access) -> Self {
        access.clone()
    }
}

impl From<&[String]> for Access {
    fn from(endpoints: &[String]) -> Self {
        Self::open(endpoints)
    }
}

impl<const N: usize> From<&[String; N]> for Access {
    fn from(endpoints: &[String; N]) -> Self {
        Self::open(endpoints)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn a_password_is_read_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        let login = |password| Some(Login { user: "ann".to_owned(), password });
        let mut access = Access::open(&["http://127.0.0.1:1".to_owned()]);
        access.login = login(Password::Given("geheim".to_owned()));
        assert!(!format!("{access:?}").contains("geheim"));
        access.login = login(Password::File(path.clone()));
        assert!(access.ready().map(drop).unwrap_err().to_string().contains("password"));
        std::fs::write(&path, "\n").unwrap();
        assert!(access.ready().is_err());
        std::fs::write(&path, "geheim\n").unwrap();
        let ready = access.ready().unwrap();
        assert_eq!(ready.login, Some(("ann".to_owned(), "geheim".to_owned())));
        assert!(ready.tls.is_none() && ready.stamp == access.stamp());
        std::fs::write(&path, "geheimer\n").unwrap();
        assert_ne!(ready.stamp, access.stamp());
    }
}
