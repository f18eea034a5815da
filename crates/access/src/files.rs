//! Certificates, keys and passwords on disk, in PEM where that is the custom.
//!
//! Invariant: what is returned can be used now: the key belongs to the certificate, and the certificate is valid
//! today; otherwise the error names the file and the remedy.

use crate::certificate::{self, Validity};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, RootCertStore};

/// Why a file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("could not read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is none on this system, and none was named.
    #[error(
        "this system has no authorities of its own in {path}: name the hub's (`ca-file` in [hub], or --cacert)"
    )]
    NoAuthorities {
        /// Where they would be.
        path: PathBuf,
    },
    /// It has nothing of the kind in it.
    #[error("{path} has no {what} in PEM form (between -----BEGIN and -----END)")]
    Nothing {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// It is damaged, or of a kind that is not supported.
    #[error("could not use {path} for TLS")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// The two do not go together.
    #[error("the key {key} does not belong to the certificate {cert}: name the key that it was made with")]
    Mismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's.
        key: PathBuf,
    },
    /// The certificate was valid once.
    #[error("the certificate {path} expired on {end}: have it renewed")]
    Expired {
        /// The file.
        path: PathBuf,
        /// Until when it was valid.
        end: certificate::Time,
    },
    /// The certificate will be valid.
    #[error(
        "the certificate {path} is valid only from {begin} on: set this machine's clock, or make a new one"
    )]
    NotYet {
        /// The file.
        path: PathBuf,
        /// From when on it is valid.
        begin: certificate::Time,
    },
}

/// A certificate, those between it and an authority, and its key.
#[derive(Debug)]
pub struct Identity {
    /// The certificate first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its private key.
    pub key: PrivateKeyDer<'static>,
}

impl Identity {
    /// Reads both files, and checks that they belong together and may be used now.
    pub fn load(cert: &Path, key_file: &Path) -> Result<Self, FileError> {
        let (chain, key) = (certificates(cert)?, private_key(key_file)?);
        match CertifiedKey::from_der(chain.clone(), key.clone_key(), &ring::default_provider()) {
            Ok(_) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                return Err(FileError::Mismatch { cert: cert.to_owned(), key: key_file.to_owned() });
            }
            Err(source @ rustls::Error::InvalidCertificate(_)) => {
                return Err(FileError::Unusable { path: cert.to_owned(), source });
            }
            Err(source) => return Err(FileError::Unusable { path: key_file.to_owned(), source }),
        }
        if let Some(validity) = chain.first().and_then(|first| certificate::validity(first)) {
            check(cert, validity, SystemTime::now())?;
        }
        Ok(Self { chain, key })
    }
}

/// Whether the certificate in `path` may be used at `now`.
pub fn check(path: &Path, validity: Validity, now: SystemTime) -> Result<(), FileError> {
    let path = || path.to_owned();
    if validity.end.is_before(now) {
        return Err(FileError::Expired { path: path(), end: validity.end });
    }
    if !validity.begin.is_before(now) {
        return Err(FileError::NotYet { path: path(), begin: validity.begin });
    }
    Ok(())
}

/// The authorities in a file.
pub fn authorities(path: &Path) -> Result<RootCertStore, FileError> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(path)? {
        roots.add(authority).map_err(|source| FileError::Unusable { path: path.to_owned(), source })?;
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    const WHAT: &str = "certificate";
    let read = CertificateDer::pem_file_iter(path).map_err(|error| unreadable(path, WHAT, error))?;
    let read: Vec<_> = read.collect::<Result<_, _>>().map_err(|error| unreadable(path, WHAT, error))?;
    if read.is_empty() { Err(unreadable(path, WHAT, pem::Error::NoItemsFound)) } else { Ok(read) }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, FileError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| unreadable(path, "private key", error))
}

fn unreadable(path: &Path, what: &'static str, error: pem::Error) -> FileError {
    let path = path.to_owned();
    match error {
        pem::Error::Io(source) => FileError::Read { path, source },
        pem::Error::NoItemsFound => FileError::Nothing { path, what },
        other => {
            FileError::Read { path, source: io::Error::new(io::ErrorKind::InvalidData, other.to_string()) }
        }
    }
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    fs::read(path).map_err(|source| FileError::Read { path: path.to_owned(), source })
}

/// What changes when files are replaced: by another file, or by other contents.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stamp(Vec<Option<(u64, u64, i64, i64)>>);

impl Stamp {
    /// That of `files` as they are now.
    pub fn of<'a>(files: impl IntoIterator<Item = &'a Path>) -> Self {
        let stamp = |file| {
            let found = fs::metadata(file).ok()?;
            Some((found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
        };
        Self(files.into_iter().map(stamp).collect())
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    fn write(dir: &Path, name: &str, from: i32, to: i32) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(to, 1, 1);
        let (cert, key_file) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
        fs::write(&cert, params.self_signed(&key).unwrap().pem()).unwrap();
        fs::write(&key_file, key.serialize_pem()).unwrap();
        (cert, key_file)
    }

    #[test]
    fn what_is_wrong_is_said_with_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let (good, old) = (write(dir.path(), "good", 2000, 4000), write(dir.path(), "old", 2000, 2001));
        let new = write(dir.path(), "new", 3999, 4000);
        assert_eq!(Identity::load(&good.0, &good.1).unwrap().chain.len(), 1);
        assert_eq!(authorities(&good.0).unwrap().len(), 1);
        let said = |cert: &Path, key: &Path| Identity::load(cert, key).unwrap_err().to_string();
        assert!(said(&good.0, &old.1).contains("old.key does not belong to the certificate"));
        assert!(said(&old.0, &old.1).contains("old.pem expired on 2001-01-01 00:00 UTC"));
        assert!(said(&new.0, &new.1).contains("new.pem is valid only from 3999-01-01 00:00 UTC"));
        assert!(said(&good.1, &good.1).contains("good.key has no certificate in PEM form"));
        assert!(said(&good.0, &good.0).contains("good.pem has no private key in PEM form"));
        assert!(said(&dir.path().join("none"), &good.1).ends_with("none"));
        fs::write(dir.path().join("bad"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
            .unwrap();
        assert!(said(&dir.path().join("bad"), &good.1).contains("could not use"));
        assert!(authorities(&dir.path().join("bad")).is_err());
    }

    #[test]
    fn a_replaced_file_has_another_stamp() {
        let dir = tempfile::tempdir().unwrap();
        let (file, other) = (dir.path().join("a"), dir.path().join("b"));
        let stamp = || Stamp::of([file.as_path()]);
        let missing = stamp();
        fs::write(&file, "1").unwrap();
        let first = stamp();
        assert_ne!(missing, first);
        assert_eq!(first, stamp());
        fs::write(&other, "2").unwrap();
        fs::rename(&other, &file).unwrap();
        assert_ne!(first, stamp());
    }
}
