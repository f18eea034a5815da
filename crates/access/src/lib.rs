//! How a server of etcd's API is reached: its endpoints, the certificates of both sides, the user.
//!
//! What the hub's server and its clients have in common, and therefore neither's: files are read and checked here, and
//! what is wrong with them, or with a connection, is said here with its remedy. Nothing here talks to anybody.

/// The names and dates in certificates.
mod certificate;
/// Where a hub is, and as whom it is spoken to.
mod client;
/// Certificates, keys and passwords on disk.
mod files;
/// Why there is no connection, and what helps.
mod reason;

pub use certificate::{Validity, common_name, validity};
pub use client::{Access, Login, Password, Ready};
pub use files::{FileError, Identity, Stamp, authorities, check};
pub use reason::{reason, remedy};
