//! WireGuard's keys, as `wg` writes them: 32 bytes in base64. A machine's private key is a file of its own.
//!
//! Invariant: a secret is never printed (`Debug` hides it), and its file is complete or absent, readable by its owner
//! only.

use crate::NetError;
use base64::{Engine, prelude::BASE64_STANDARD};
use boringtun::x25519;
use std::{
    fmt, fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
    str::FromStr,
};
use tracing::{info, warn};

const LENGTH: usize = 32;

/// Why a text is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Other characters, or the wrong padding.
    #[error("not base64")]
    NotBase64,
    /// Cut short, or something else.
    #[error("{found} bytes instead of 32")]
    Length {
        /// How many there are.
        found: usize,
    },
    /// What an erased file or an unset variable looks like.
    #[error("all zeros")]
    Zero,
}

/// A machine's secret.
#[derive(Clone)]
pub struct PrivateKey(x25519::StaticSecret);

/// What a machine is known by to its peers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; LENGTH]);

/// A secret that all machines share, beside their own keys.
#[derive(Clone, PartialEq, Eq)]
pub struct PresharedKey([u8; LENGTH]);

impl PrivateKey {
    /// A new one, from the kernel's randomness.
    pub fn random() -> Result<Self, NetError> {
        let mut bytes = [0; LENGTH];
        getrandom::fill(&mut bytes).map_err(|error| NetError::Refused {
            action: "read random bytes for a WireGuard key".to_owned(),
            source: io::Error::other(error),
        })?;
        // As curve25519 wants it, so that `wg` shows the same key as the file has.
        bytes[0] &= 248;
        bytes[31] = bytes[31] & 127 | 64;
        Ok(Self(bytes.into()))
    }

    /// What peers know it by.
    pub fn public(&self) -> PublicKey {
        PublicKey(*x25519::PublicKey::from(&self.0).as_bytes())
    }

    pub(super) fn secret(&self) -> &x25519::StaticSecret {
        &self.0
    }

    fn encode(&self) -> String {
        BASE64_STANDARD.encode(self.0.as_bytes())
    }
}

/// The key in the file `path`; if there is none, a new one is made and written there, mode 0400.
///
/// A damaged file is an error: a new key in its place would cut the machine off from peers that know the old one.
pub fn load_or_create(path: &Path) -> Result<PrivateKey, NetError> {
    match load(path)? {
        Some(key) => Ok(key),
        None => create(path),
    }
}

fn load(path: &Path) -> Result<Option<PrivateKey>, NetError> {
    let read_error = |source| NetError::Read { path: path.to_owned(), source };
    let content = match fs::read(path) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(read_error(error)),
    };
    let mode = fs::metadata(path).map_err(read_error)?.permissions().mode();
    if mode & 0o077 != 0 {
        warn!(path = %path.display(), mode = format!("{:o}", mode & 0o777), "others could read the WireGuard key");
        let tighten = fs::set_permissions(path, fs::Permissions::from_mode(0o400));
        tighten.map_err(|source| NetError::Write { path: path.to_owned(), source })?;
    }
    let text = String::from_utf8_lossy(&content);
    match text.trim().parse() {
        Ok(key) => Ok(Some(key)),
        Err(reason) => Err(NetError::DamagedKey { path: path.to_owned(), reason }),
    }
}

fn create(path: &Path) -> Result<PrivateKey, NetError> {
    let key = PrivateKey::random()?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or_else(|| Path::new("."));
    let written = || -> io::Result<bool> {
        fs::create_dir_all(directory)?;
        let mut builder = tempfile::Builder::new();
        let mut file = builder.permissions(fs::Permissions::from_mode(0o400)).tempfile_in(directory)?;
        writeln!(file, "{}", key.encode())?;
        file.as_file().sync_all()?;
        // Whoever made one in the meantime wins.
        match file.persist_noclobber(path) {
            Ok(_) => fs::File::open(directory)?.sync_all().map(|()| true),
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error.error),
        }
    };
    match written() {
        Ok(true) => {
            info!(path = %path.display(), public_key = %key.public(), "WireGuard key made");
            Ok(key)
        }
        Ok(false) => {
            let gone = || NetError::Read { path: path.to_owned(), source: io::ErrorKind::NotFound.into() };
            load(path)?.ok_or_else(gone)
        }
        Err(source) => Err(NetError::Write { path: path.to_owned(), source }),
    }
}

fn decode(text: &str) -> Result<[u8; LENGTH], KeyError> {
    let bytes = BASE64_STANDARD.decode(text).map_err(|_| KeyError::NotBase64)?;
    let bytes = <[u8; LENGTH]>::try_from(bytes).map_err(|bytes| KeyError::Length { found: bytes.len() })?;
    if bytes == [0; LENGTH] { Err(KeyError::Zero) } else { Ok(bytes) }
}

impl FromStr for PrivateKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text).map(|bytes| Self(bytes.into()))
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text).map(Self)
    }
}

impl FromStr for PresharedKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text).map(Self)
    }
}

impl From<[u8; LENGTH]> for PublicKey {
    fn from(bytes: [u8; LENGTH]) -> Self {
        Self(bytes)
    }
}

impl PublicKey {
    /// As it is sent.
    pub fn bytes(&self) -> [u8; LENGTH] {
        self.0
    }
}

impl PresharedKey {
    pub(super) fn bytes(&self) -> [u8; LENGTH] {
        self.0
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64_STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(hidden)")
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_for_its_owner_only() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("below/wireguard.key");
        let key = load_or_create(&path).expect("made");
        let text = fs::read_to_string(&path).expect("written");
        assert_eq!((text.len(), text.ends_with('\n')), (45, true), "as `wg genkey` writes it");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o7777, 0o400);
        assert_eq!(load_or_create(&path).expect("read").public(), key.public());
        assert_eq!(
            fs::read_dir(path.parent().expect("below")).expect("there").count(),
            1,
            "nothing beside it"
        );
        assert_eq!(key.public().to_string().parse(), Ok(key.public()));
        assert!(!format!("{key:?}").contains(text.trim()), "a secret is not printed");
    }

    #[test]
    fn the_public_key_is_the_one_that_wg_computes() {
        // RFC 7748, section 5.2: the first iteration is the public key of the secret 9.
        let mut nine = [0; LENGTH];
        nine[0] = 9;
        let key: PrivateKey = BASE64_STANDARD.encode(nine).parse().expect("a key");
        let hex: String = key.public().bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079");
    }

    #[test]
    fn a_damaged_file_is_told_and_left_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("wireguard.key");
        for (content, reason) in [
            ("", "0 bytes instead of 32"),
            ("AAAA\n", "3 bytes instead of 32"),
            ("not a key\n", "not base64"),
            ("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n", "all zeros"),
        ] {
            fs::write(&path, content).expect("written");
            let error = load_or_create(&path).expect_err("damaged");
            assert!(
                matches!(&error, NetError::DamagedKey { reason: found, .. } if found.to_string() == reason)
            );
            assert!(error.to_string().contains("remove it"), "a remedy: {error}");
            assert_eq!(fs::read_to_string(&path).expect("there"), content);
        }
        fs::write(&path, format!(" {}\n\n", PrivateKey::random().expect("random").encode()))
            .expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("ours");
        load_or_create(&path).expect("blanks do no harm");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o7777, 0o400, "tightened");
    }

    #[test]
    fn of_those_who_make_one_at_a_time_one_wins() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("wireguard.key");
        let keys: Vec<_> = std::thread::scope(|scope| {
            let makers: Vec<_> = (0..8).map(|_| scope.spawn(|| load_or_create(&path))).collect();
            makers.into_iter().map(|maker| maker.join().expect("no panic").expect("a key").public()).collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
    }
}
