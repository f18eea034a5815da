//! `muster hub migrate`: a hub's keys, leases, users and roles copied to another server, with the proof that the copy is equal.
//!
//! The copy and the comparison are the `hub` crate's. Invariant: the proof is printed only if there is one.

use super::counted;
use super::progress::Progress;
use crate::cli::access::{self, Credentials};
use crate::cli::output::{self, Format};
use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use hub::migrate::{LeaseTime, Migration, Proof};
use hub::remote::Remote;
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Args)]
pub struct Migrate {
    /// Where to: the members of an etcd cluster, or a hub.
    #[arg(long, required = true, value_delimiter = ',')]
    to: Vec<String>,
    #[command(flatten)]
    to_credentials: ToCredentials,
    /// Where from; by default the hub of this machine's configuration.
    #[arg(long, value_delimiter = ',')]
    from: Vec<String>,
    #[command(flatten)]
    from_credentials: FromCredentials,
    /// Only keys that begin with this, and their leases.
    #[arg(long, default_value = "")]
    prefix: String,
    /// Overwrite and delete what the target has there already.
    #[arg(long)]
    force: bool,
    /// How long copied leases live: as long as they were granted for, or as long as remains, which is for good.
    #[arg(long, value_enum, default_value_t)]
    lease_time: LeaseTimeArg,
    /// As a table or as JSON.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
}

/// As whom the target is spoken to. Certificates are by default those of [hub] in this machine's configuration.
#[derive(Args)]
struct ToCredentials {
    /// The authorities by whose word the target's certificate is believed.
    #[arg(long)]
    to_cacert: Option<PathBuf>,
    /// Our certificate for the target.
    #[arg(long)]
    to_cert: Option<PathBuf>,
    /// That certificate's private key.
    #[arg(long)]
    to_key: Option<PathBuf>,
    /// The user of the target, NAME or NAME:PASSWORD.
    #[arg(long)]
    to_user: Option<String>,
    /// A file with that user's password.
    #[arg(long)]
    to_password_file: Option<PathBuf>,
}

/// As whom the source is spoken to. By default as [hub] in this machine's configuration says.
#[derive(Args)]
struct FromCredentials {
    /// The authorities by whose word the source's certificate is believed.
    #[arg(long)]
    from_cacert: Option<PathBuf>,
    /// Our certificate for the source.
    #[arg(long)]
    from_cert: Option<PathBuf>,
    /// That certificate's private key.
    #[arg(long)]
    from_key: Option<PathBuf>,
    /// The user of the source, NAME or NAME:PASSWORD.
    #[arg(long)]
    from_user: Option<String>,
    /// A file with that user's password.
    #[arg(long)]
    from_password_file: Option<PathBuf>,
}

impl From<ToCredentials> for Credentials {
    fn from(to: ToCredentials) -> Self {
        let ToCredentials { to_cacert, to_cert, to_key, to_user, to_password_file } = to;
        Self {
            cacert: to_cacert,
            cert: to_cert,
            key: to_key,
            user: to_user,
            password: None,
            password_file: to_password_file,
        }
    }
}

impl From<FromCredentials> for Credentials {
    fn from(from: FromCredentials) -> Self {
        let FromCredentials { from_cacert, from_cert, from_key, from_user, from_password_file } = from;
        Self {
            cacert: from_cacert,
            cert: from_cert,
            key: from_key,
            user: from_user,
            password: None,
            password_file: from_password_file,
        }
    }
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum LeaseTimeArg {
    Remaining,
    #[default]
    Granted,
}

impl Migrate {
    pub async fn run(self) -> Result<ExitCode> {
        let configured = access::configured()?;
        let to = access::resolve(&self.to, &self.to_credentials.into(), &configured)?;
        let from = access::resolve(&self.from, &self.from_credentials.into(), &configured)?;
        ensure!(
            !from.endpoints.iter().any(|endpoint| to.endpoints.contains(endpoint)),
            "the source and the target are the same: {}; name the source with --from",
            to.names()
        );
        let migration = Migration {
            prefix: self.prefix.into_bytes(),
            force: self.force,
            leases: match self.lease_time {
                LeaseTimeArg::Remaining => LeaseTime::Remaining,
                LeaseTimeArg::Granted => LeaseTime::Granted,
            },
        };
        let (source, target) = (Remote::connect(&from).await?, Remote::connect(&to).await?);
        let mut progress = Progress::new();
        let tell = |step| progress.step(&step);
        let proof = hub::migrate::migrate(&source, &target, &migration, tell).await;
        progress.end();
        show_proof(&proof?, self.output)
    }
}

fn show_proof(proof: &Proof, format: Format) -> Result<ExitCode> {
    match format {
        Format::Json => output::json(&json!({
            "equal": true,
            "source-revision": proof.revision.0,
            "target-revision": proof.target.0,
            "source-revision-now": proof.source_now.0,
            "keys": proof.keys,
            "leases": proof.leases,
            "roles": proof.access.roles,
            "users": proof.access.users,
            "users-without-password": proof.access.without_password,
            "ranges": proof.ranges.iter().map(|range| json!({
                "first": text(&range.first),
                "last": text(&range.last),
                "keys": range.keys,
                "bytes": range.bytes,
                "crc32c": format!("{:08x}", range.crc),
            })).collect::<Vec<_>>(),
        }))?,
        Format::Table => {
            let heading = ["FIRST KEY", "LAST KEY", "KEYS", "BYTES", "CRC32C", "COMPARED"];
            let rows = proof.ranges.iter().map(|range| {
                vec![
                    text(&range.first),
                    text(&range.last),
                    range.keys.to_string(),
                    range.bytes.to_string(),
                    format!("{:08x}", range.crc),
                    "equal".to_owned(),
                ]
            });
            output::table(Some(&heading), rows)?;
            output::line(format!(
                "equal: {} and {}, the source at revision {}, the target at revision {}",
                counted(proof.keys, "key"),
                counted(proof.leases, "lease"),
                proof.revision,
                proof.target
            ))?;
        }
    }
    if !proof.access.without_password.is_empty() {
        eprintln!(
            "warning: no server tells passwords, so these users have one that nobody knows: {}; give each a new one \
             (`muster hub user passwd NAME`), then `muster hub auth enable`: until then whoever reaches the target may \
             do everything",
            proof.access.without_password.join(", ")
        );
    }
    if proof.source_now > proof.revision {
        eprintln!(
            "warning: the source is at revision {} by now, and what was written since is not in the copy: stop its writers \
             and run this again with --force",
            proof.source_now
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn text(key: &[u8]) -> String {
    key.escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    #[test]
    fn keys_are_shown_as_they_are() {
        assert_eq!(super::text(b"a\0\xff"), "a\\x00\\xff");
    }
}
