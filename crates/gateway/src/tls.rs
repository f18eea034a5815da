//! Certificates for HTTPS: read from files, chosen by the name that a client asks for, replaced when the files are.
//!
//! Invariant: files that are of no use change nothing; what was in force stays in force.

use crate::GatewayError;
use crate::config::CertificateFiles;
use access::{FileError, Identity, Stamp};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::client::verify_server_name;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tracing::{error, info};

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
    Stamp::of(files.iter().flat_map(|files| [files.cert.as_path(), files.key.as_path()]))
}

fn load(files: &[CertificateFiles]) -> Result<Arc<ServerConfig>, FileError> {
    let provider = Arc::new(ring::default_provider());
    let mut keys = Vec::new();
    for CertificateFiles { cert, key } in files {
        let identity = Identity::load(cert, key)?;
        let unusable = |source| FileError::Unusable { path: cert.clone(), source };
        let certified = CertifiedKey::from_der(identity.chain, identity.key, &provider).map_err(unusable)?;
        keys.push(Arc::new(certified));
    }
    let builder = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|source| FileError::Unusable { path: Path::new("certificates").to_owned(), source })?;
    let mut config = builder.with_no_client_auth().with_cert_resolver(Arc::new(ByName(keys)));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.max_early_data_size = 0; // what is sent early can be sent again by anybody
    Ok(Arc::new(config))
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
