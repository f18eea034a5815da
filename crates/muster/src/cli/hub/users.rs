//! `muster hub auth`, `user`, `role`: who may do what in a hub or an etcd, by etcdctl's verbs.
//!
//! Invariant: a new password comes from a file, a terminal or standard input, never from the command line, where others
//! could read it.

use crate::cli::access::{self, AccessArgs};
use crate::cli::output::{self, Format};
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::{Args, Subcommand, ValueEnum};
use hub::remote::Remote;
use mvcc::{Permission, PermissionKind};
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Args)]
#[command(arg_required_else_help = true, subcommand_required = true, disable_help_subcommand = true)]
pub struct Auth {
    #[command(flatten)]
    access: AccessArgs,
    #[command(subcommand)]
    verb: AuthVerb,
}

#[derive(Subcommand)]
enum AuthVerb {
    /// Have every call checked from now on. There must be a user `root` with the role `root`.
    ///
    /// Example: muster hub auth enable
    Enable,
    /// Let everybody do everything from now on.
    ///
    /// Example: muster hub auth disable --user root
    Disable,
}

#[derive(Args)]
#[command(arg_required_else_help = true, subcommand_required = true, disable_help_subcommand = true)]
pub struct User {
    #[command(flatten)]
    access: AccessArgs,
    #[command(subcommand)]
    verb: UserVerb,
}

#[derive(Subcommand)]
enum UserVerb {
    /// Add a user; the password is asked for.
    ///
    /// Example: muster hub user add muster --new-password-file /etc/muster/hub.password
    Add {
        /// The user's name.
        name: String,
        /// A file with the password as its first line.
        #[arg(long)]
        new_password_file: Option<PathBuf>,
        /// The user has no password, and comes by a certificate with this name (CN) only.
        #[arg(long, conflicts_with = "new_password_file")]
        no_password: bool,
    },
    /// Give a user another password. Logins with the old one are over.
    ///
    /// Example: muster hub user passwd ann
    Passwd {
        /// The user's name.
        name: String,
        /// A file with the password as its first line.
        #[arg(long)]
        new_password_file: Option<PathBuf>,
    },
    /// Remove a user.
    ///
    /// Example: muster hub user delete ann
    Delete {
        /// The user's name.
        name: String,
    },
    /// List users.
    ///
    /// Example: muster hub user list
    List {
        /// As a table or as JSON.
        #[arg(long, short, value_enum, default_value_t)]
        output: Format,
    },
    /// Show a user's roles.
    ///
    /// Example: muster hub user get ann
    Get {
        /// The user's name.
        name: String,
        /// As a table or as JSON.
        #[arg(long, short, value_enum, default_value_t)]
        output: Format,
    },
    /// Give a user a role.
    ///
    /// Example: muster hub user grant-role root root
    GrantRole {
        /// The user's name.
        name: String,
        /// The role.
        role: String,
    },
    /// Take a role from a user.
    ///
    /// Example: muster hub user revoke-role ann app
    RevokeRole {
        /// The user's name.
        name: String,
        /// The role.
        role: String,
    },
}

#[derive(Args)]
#[command(arg_required_else_help = true, subcommand_required = true, disable_help_subcommand = true)]
pub struct Role {
    #[command(flatten)]
    access: AccessArgs,
    #[command(subcommand)]
    verb: RoleVerb,
}

#[derive(Subcommand)]
enum RoleVerb {
    /// Add a role, which allows nothing yet.
    ///
    /// Example: muster hub role add app
    Add {
        /// The role.
        role: String,
    },
    /// Remove a role, also from its users.
    ///
    /// Example: muster hub role delete app
    Delete {
        /// The role.
        role: String,
    },
    /// List roles.
    ///
    /// Example: muster hub role list
    List {
        /// As a table or as JSON.
        #[arg(long, short, value_enum, default_value_t)]
        output: Format,
    },
    /// Show what a role allows.
    ///
    /// Example: muster hub role get app
    Get {
        /// The role.
        role: String,
        /// As a table or as JSON.
        #[arg(long, short, value_enum, default_value_t)]
        output: Format,
    },
    /// Allow a role's users to read or write a key, a range, or all keys below a prefix.
    ///
    /// Example: muster hub role grant-permission app readwrite /services/ --prefix
    GrantPermission {
        /// The role.
        role: String,
        /// What they may do.
        #[arg(value_enum)]
        kind: Kind,
        #[command(flatten)]
        range: Range,
    },
    /// Take back a permission, named as it was granted.
    ///
    /// Example: muster hub role revoke-permission app /services/ --prefix
    RevokePermission {
        /// The role.
        role: String,
        #[command(flatten)]
        range: Range,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Read,
    Write,
    Readwrite,
}

#[derive(Args)]
struct Range {
    /// The key, or the first of a range.
    key: String,
    /// The key behind the range's last.
    end: Option<String>,
    /// All keys that begin so.
    #[arg(long, conflicts_with = "end")]
    prefix: bool,
}

impl Range {
    fn key_and_end(self) -> Result<(Bytes, Bytes)> {
        let Self { key, end, prefix } = self;
        if key.is_empty() && !prefix {
            bail!("the key is empty; for all keys add --prefix");
        }
        let end = match (prefix, end) {
            (true, _) => behind_prefix(key.as_bytes()),
            (false, Some(end)) => end.into_bytes(),
            (false, None) => Vec::new(),
        };
        // In etcd's ranges no key is the first key of all.
        let key = if key.is_empty() { vec![0] } else { key.into_bytes() };
        Ok((key.into(), end.into()))
    }
}

/// The first key behind all that begin with `prefix`; one zero byte, as in etcd, if there is none.
fn behind_prefix(prefix: &[u8]) -> Vec<u8> {
    match prefix.iter().rposition(|byte| *byte < 0xff) {
        Some(last) => {
            let mut end = prefix[..=last].to_vec();
            end[last] += 1;
            end
        }
        None => vec![0],
    }
}

impl Auth {
    pub async fn run(self) -> Result<ExitCode> {
        let remote = Remote::connect(self.access.access()?).await?;
        match self.verb {
            AuthVerb::Enable => {
                remote.enable_users().await?;
                output::line("users enabled")?;
            }
            AuthVerb::Disable => {
                remote.disable_users().await?;
                output::line("users disabled")?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl User {
    pub async fn run(self) -> Result<ExitCode> {
        let access = self.access.access()?;
        // Asked for before a connection waits for whoever types.
        let password = match &self.verb {
            UserVerb::Add { no_password: true, .. } => None,
            UserVerb::Add { name, new_password_file, .. } | UserVerb::Passwd { name, new_password_file } => {
                Some(new_password(name, new_password_file.as_ref())?)
            }
            _ => None,
        };
        let remote = Remote::connect(access).await?;
        match self.verb {
            UserVerb::Add { name, .. } => {
                remote.add_user(&name, password).await?;
                output::line(format!("user {name} added"))?;
            }
            UserVerb::Passwd { name, .. } => {
                remote.change_password(&name, password.unwrap_or_default()).await?;
                output::line(format!("password of {name} changed"))?;
            }
            UserVerb::Delete { name } => {
                remote.delete_user(&name).await?;
                output::line(format!("user {name} deleted"))?;
            }
            UserVerb::List { output } => names(&remote.users().await?, output)?,
            UserVerb::Get { name, output } => names(&remote.user(&name).await?, output)?,
            UserVerb::GrantRole { name, role } => {
                remote.grant_role(&name, &role).await?;
                output::line(format!("user {name} has the role {role}"))?;
            }
            UserVerb::RevokeRole { name, role } => {
                remote.revoke_role(&name, &role).await?;
                output::line(format!("user {name} has the role {role} no longer"))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Role {
    pub async fn run(self) -> Result<ExitCode> {
        let remote = Remote::connect(self.access.access()?).await?;
        match self.verb {
            RoleVerb::Add { role } => {
                remote.add_role(&role).await?;
                output::line(format!("role {role} added"))?;
            }
            RoleVerb::Delete { role } => {
                remote.delete_role(&role).await?;
                output::line(format!("role {role} deleted"))?;
            }
            RoleVerb::List { output } => names(&remote.roles().await?, output)?,
            RoleVerb::Get { role, output } => permissions(&remote.role(&role).await?, output)?,
            RoleVerb::GrantPermission { role, kind, range } => {
                let (key, range_end) = range.key_and_end()?;
                let kind = match kind {
                    Kind::Read => PermissionKind::Read,
                    Kind::Write => PermissionKind::Write,
                    Kind::Readwrite => PermissionKind::ReadWrite,
                };
                remote.grant_permission(&role, Permission { kind, key, range_end }).await?;
                output::line(format!("role {role} changed"))?;
            }
            RoleVerb::RevokePermission { role, range } => {
                let (key, end) = range.key_and_end()?;
                remote.revoke_permission(&role, &key, &end).await?;
                output::line(format!("role {role} changed"))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn new_password(user: &str, file: Option<&PathBuf>) -> Result<String> {
    let Some(file) = file else { return access::ask_password(&format!("New password of {user}")) };
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    match text.lines().next() {
        Some(password) if !password.is_empty() => Ok(password.to_owned()),
        _ => bail!("{}: its first line is empty, and no password", file.display()),
    }
}

fn names(names: &[String], format: Format) -> Result<()> {
    match format {
        Format::Json => output::json(&names),
        Format::Table => names.iter().try_for_each(output::line),
    }
}

fn permissions(permissions: &[Permission], format: Format) -> Result<()> {
    let kind = |permission: &Permission| match permission.kind {
        PermissionKind::Read => "read",
        PermissionKind::Write => "write",
        PermissionKind::ReadWrite => "readwrite",
    };
    let text = |key: &[u8]| key.escape_ascii().to_string();
    match format {
        Format::Json => {
            let all = permissions.iter().map(
                |one| json!({"permission": kind(one), "key": text(&one.key), "range-end": text(&one.range_end)}),
            );
            output::json(&all.collect::<Vec<_>>())
        }
        Format::Table if permissions.is_empty() => Ok(()),
        Format::Table => {
            let rows = permissions.iter().map(|one| {
                let keys = match one.range_end.as_ref() {
                    b"" => text(&one.key),
                    b"\0" => format!("from {}", text(&one.key)),
                    end if end == behind_prefix(&one.key) => format!("{}*", text(&one.key)),
                    end => format!("{} to before {}", text(&one.key), text(end)),
                };
                vec![kind(one).to_owned(), keys]
            });
            output::table(Some(&["PERMISSION", "KEYS"]), rows)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_etcds() {
        let range = |key: &str, end: Option<&str>, prefix| {
            Range { key: key.to_owned(), end: end.map(str::to_owned), prefix }.key_and_end().ok()
        };
        let pair = |key: &'static [u8], end: &'static [u8]| Some((Bytes::from(key), Bytes::from(end)));
        assert_eq!(range("a", None, false), pair(b"a", b""));
        assert_eq!(range("a", Some("c"), false), pair(b"a", b"c"));
        assert_eq!(range("/services/", None, true), pair(b"/services/", b"/services0"));
        assert_eq!(range("", None, true), pair(b"\0", b"\0"));
        assert_eq!(range("", None, false), None);
        assert_eq!(behind_prefix(b"a\xff"), b"b");
    }
}
