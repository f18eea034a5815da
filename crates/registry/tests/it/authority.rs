//! An authority for certificates, and what it signed, as files that are gone with it.

use access::Access;
use hub::TlsConfig;
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair};
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

pub(crate) struct Authority {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        fs::write(dir.path().join("ca.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { dir, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A certificate for `name` and its key; an older one of that name is replaced.
    pub(crate) fn sign(&self, name: &str) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        let files = (self.path(&format!("{name}.crt")), self.path(&format!("{name}.key")));
        for (path, text) in [(&files.0, certificate), (&files.1, key.serialize_pem())] {
            let new = path.with_extension("new");
            fs::write(&new, text).unwrap();
            fs::rename(&new, path).unwrap();
        }
        files
    }

    /// A server that wants certificates of this authority.
    pub(crate) fn server(&self) -> TlsConfig {
        let (cert, key) = self.sign("server");
        TlsConfig { cert, key, client_ca: Some(self.path("ca.crt")) }
    }

    /// To a server with a certificate of this authority, as nobody.
    pub(crate) fn access(&self, endpoint: &str) -> Access {
        Access { ca: Some(self.path("ca.crt")), ..Access::open(&[endpoint.to_owned()]) }
    }
}
