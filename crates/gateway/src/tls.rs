//! Certificates for HTTPS: read from files, chosen by the name that a client asks for, replaced when the files are.
//!
//! Invariant: files that are of no use change nothing; what was in force stays in force.

use crate::GatewayError;
use crate::config::CertificateFiles;
use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio_rustls::rustls::client::verify_server_name;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, ServerConfig};
use tracing::{error, info};

/// Why a certificate is of no use.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read.
    #[error("could not read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file has nothing of the kind in it.
    #[error("{path} has no {what} in PEM form (between -----BEGIN and -----END)")]
    Nothing {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// The key is another certificate's, or of a kind that is not supported.
    #[error("could not use {cert} with the key {key}")]
    Unusable {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
}

/// What tells a file from the one that replaced it: modified when (seconds, nanoseconds), inode, size.
type Stamp = Vec<Option<(i64, i64, u64, u64)>>;

/// What connections are secured with.
pub(crate) struct Certificates {
    files: Vec<CertificateFiles>,
    current: Mutex<(Stamp, Arc<ServerConfig>)>,
}

impl Certificates {
    /// Reads the files. Blocks.
    pub(crate) fn load(files: &[CertificateFiles]) -> Result<Self, GatewayError> {
        let stamp = stamp(files);
        let config = load(files).map_err(|source| GatewayError::Certificate { source })?;
        Ok(Self { files: files.to_vec(), current: Mutex::new((stamp, config)) })
    }

    /// Those in force.
    pub(crate) fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner).1)
    }

    /// Reads the files again if they were replaced. Blocks.
    pub(crate) fn refresh(&self) {
        let stamp = stamp(&self.files);
        if self.current.lock().unwrap_or_else(PoisonError::into_inner).0 == stamp {
            return;
        }
        let loaded = load(&self.files);
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.0 = stamp;
        match loaded {
            Ok(config) => {
                current.1 = config;
                info!("certificates replaced");
            }
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                error!(error, "new certificates are of no use, going on with the last ones");
            }
        }
    }
}

fn stamp(files: &[CertificateFiles]) -> Stamp {
    let all = files.iter().flat_map(|files| [&files.cert, &files.key]);
    all.map(|path| {
        let data = std::fs::metadata(path).ok()?;
        Some((data.mtime(), data.mtime_nsec(), data.ino(), data.size()))
    })
    .collect()
}

fn load(files: &[CertificateFiles]) -> Result<Arc<ServerConfig>, CertificateError> {
    let provider = Arc::new(ring::default_provider());
    let mut keys = Vec::new();
    for CertificateFiles { cert, key } in files {
        let unusable = |source| CertificateError::Unusable { cert: cert.clone(), key: key.clone(), source };
        let certified = CertifiedKey::from_der(chain(cert)?, private_key(key)?, &provider);
        keys.push(Arc::new(certified.map_err(unusable)?));
    }
    let builder = ServerConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().expect("ring has the default versions");
    let mut config = builder.with_no_client_auth().with_cert_resolver(Arc::new(ByName(keys)));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.max_early_data_size = 0; // what is sent early can be sent again by anybody
    Ok(Arc::new(config))
}

fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let what = "certificate";
    let read = CertificateDer::pem_file_iter(path).map_err(|error| unreadable(path, what, error))?;
    let read: Vec<_> = read.collect::<Result<_, _>>().map_err(|error| unreadable(path, what, error))?;
    if read.is_empty() { Err(unreadable(path, what, pem::Error::NoItemsFound)) } else { Ok(read) }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, CertificateError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| unreadable(path, "private key", error))
}

fn unreadable(path: &Path, what: &'static str, error: pem::Error) -> CertificateError {
    match error {
        pem::Error::Io(source) => CertificateError::Read { path: path.to_owned(), source },
        _ => CertificateError::Nothing { path: path.to_owned(), what },
    }
}

/// The first certificate that names the host, or the first of all.
struct ByName(Vec<Arc<CertifiedKey>>);

impl fmt::Debug for ByName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} certificates", self.0.len())
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
        let names = |key: &&Arc<CertifiedKey>| {
            let Some(name) = &name else { return false };
            let parsed = key.end_entity_cert().and_then(ParsedCertificate::try_from);
            parsed.and_then(|parsed| verify_server_name(&parsed, name)).is_ok()
        };
        self.0.iter().find(names).or_else(|| self.0.first()).cloned()
    }
}
