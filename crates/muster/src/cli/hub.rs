//! `muster hub …`: the embedded hub alone, and what keeps a hub's data: backups, checks, the move to an etcd cluster.
//!
//! The work is the `hub` crate's; here it is asked for and told about. Invariant: stdout has results only, progress goes
//! to stderr.

/// All keys copied to another server.
mod migrate;
/// How far it is.
mod progress;
/// The hub alone.
mod serve;
/// Users and roles.
mod users;

use super::access::AccessArgs;
use super::output::{self, Format};
use access::Access;
use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};
use hub::remote::Remote;
use hub::snapshot::{HashCheck, SnapshotFile, SnapshotStatus};
use hub::{restore, verify};
use mvcc::Revision;
use progress::Progress;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Args)]
#[command(arg_required_else_help = true, subcommand_required = true, disable_help_subcommand = true)]
pub struct Hub {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run the embedded hub alone: an etcd v3 server.
    ///
    /// Example: muster hub serve --listen 127.0.0.1:2379 --data-dir /var/lib/muster/hub
    #[command(visible_alias = "start")]
    Serve(Box<serve::Serve>),
    /// Show how hubs or etcd members are, each endpoint for itself.
    ///
    /// Example: muster hub status --endpoints http://10.0.0.1:2379 -o json
    Status {
        #[command(flatten)]
        access: AccessArgs,
        /// As a table or as JSON.
        #[arg(long, short, value_enum, default_value_t)]
        output: Format,
    },
    /// Save a snapshot in etcd's format, or look at one.
    ///
    /// Example: muster hub snapshot save /var/backups/hub.db
    Snapshot(SnapshotArgs),
    /// Make a hub's data directory out of a snapshot, of a hub or of a real etcd.
    ///
    /// Keys keep their revisions and leases, users their passwords. Leases begin at their full time. The directory must
    /// not exist or be empty; `etcdctl snapshot restore` does the same for a real etcd.
    ///
    /// Example: muster hub restore /var/backups/hub.db --data-dir /var/lib/muster/hub
    Restore(Restore),
    /// Forget the history below a revision.
    ///
    /// The embedded hub does so by itself; etcd only if it is told to.
    ///
    /// Example: muster hub compact 120000
    Compact {
        /// The lowest revision to keep; without it, the present one.
        revision: Option<i64>,
        #[command(flatten)]
        access: AccessArgs,
    },
    /// Give the disk what is no longer used, on each endpoint in turn. It answers nobody meanwhile.
    ///
    /// Example: muster hub defrag --endpoints http://10.0.0.1:2379
    Defrag {
        #[command(flatten)]
        access: AccessArgs,
    },
    /// Check every record of a hub's data, of which a copy is read: nothing is changed. The hub must not run.
    ///
    /// Example: muster hub verify --data-dir /var/lib/muster/hub
    Verify {
        /// The hub's data.
        #[arg(long, default_value = "/var/lib/muster/hub")]
        data_dir: PathBuf,
        /// As a table or as JSON.
        #[arg(long, short, value_enum, default_value_t)]
        output: Format,
    },
    /// Copy all keys, leases, users and roles into an etcd cluster, or back, and prove that the keys are equal.
    ///
    /// Goes on until the copy has caught up with the source, then reads both and compares every key, value and lease; the
    /// ranges that were compared are printed. The target must be empty. Revisions begin anew and users need new passwords:
    /// to keep both, use `snapshot save` and `etcdctl snapshot restore`.
    ///
    /// Example: muster hub migrate --to http://10.0.0.11:2379,http://10.0.0.12:2379
    Migrate(Box<migrate::Migrate>),
    /// Show what is wrong with a hub, or say that it is over.
    ///
    /// Example: muster hub alarm list
    Alarm(Alarm),
    /// Switch users on or off.
    ///
    /// Example: muster hub auth enable --user root
    Auth(users::Auth),
    /// Add, change and list users.
    ///
    /// Example: muster hub user add root
    User(users::User),
    /// Add, change and list roles: what their users may do.
    ///
    /// Example: muster hub role grant-permission app readwrite /services/ --prefix
    Role(users::Role),
}

#[derive(Args)]
struct Restore {
    /// The snapshot.
    file: PathBuf,
    /// The directory to make.
    #[arg(long)]
    data_dir: PathBuf,
    /// Take a file without a checksum too: a copy of an etcd's member/snap/db.
    #[arg(long)]
    skip_hash_check: bool,
}

#[derive(Args)]
#[command(arg_required_else_help = true, subcommand_required = true, disable_help_subcommand = true)]
struct Alarm {
    #[command(subcommand)]
    verb: AlarmVerb,
}

#[derive(Subcommand)]
enum AlarmVerb {
    /// List the alarms that are raised.
    ///
    /// Example: muster hub alarm list -o json
    List {
        #[command(flatten)]
        access: AccessArgs,
        /// As a table or as JSON.
        #[arg(long, short, value_enum, default_value_t)]
        output: Format,
    },
    /// Withdraw all alarms, after their cause was seen to.
    ///
    /// Example: muster hub alarm disarm
    Disarm {
        #[command(flatten)]
        access: AccessArgs,
        /// As a table or as JSON.
        #[arg(long, short, value_enum, default_value_t)]
        output: Format,
    },
}

#[derive(Args)]
#[command(arg_required_else_help = true, subcommand_required = true, disable_help_subcommand = true)]
struct SnapshotArgs {
    #[command(subcommand)]
    verb: SnapshotVerb,
}

#[derive(Subcommand)]
enum SnapshotVerb {
    /// Save a snapshot to a file, which is replaced only by a whole one. Writers do not wait.
    ///
    /// Example: muster hub snapshot save /var/backups/hub.db
    Save {
        /// The file.
        file: PathBuf,
        #[command(flatten)]
        access: AccessArgs,
        /// As a table or as JSON.
        #[arg(long, short, value_enum, default_value_t)]
        output: Format,
    },
    /// Check a snapshot and show what it holds.
    ///
    /// Example: muster hub snapshot status /var/backups/hub.db
    Status {
        /// The file.
        file: PathBuf,
        /// As a table or as JSON.
        #[arg(long, short, value_enum, default_value_t)]
        output: Format,
        /// Take a file without a checksum too: a copy of an etcd's member/snap/db.
        #[arg(long)]
        skip_hash_check: bool,
    },
    /// Make a hub's data directory out of a snapshot: `muster hub restore` by etcdctl's name.
    ///
    /// Example: muster hub snapshot restore /var/backups/hub.db --data-dir /var/lib/muster/hub
    Restore(Restore),
}

impl Hub {
    /// Whether this is the server, which logs and is told to stop by signals.
    pub fn serves(&self) -> bool {
        matches!(self.verb, Verb::Serve { .. })
    }

    pub async fn run(self) -> Result<ExitCode> {
        // Boxed where a gRPC client is in it, which is large.
        match self.verb {
            Verb::Serve(serve) => serve.run().await,
            Verb::Status { access, output } => Box::pin(status(&access.access()?, output)).await,
            Verb::Snapshot(SnapshotArgs { verb }) => match verb {
                SnapshotVerb::Save { file, access, output } => save(&access.access()?, &file, output).await,
                SnapshotVerb::Status { file, output, skip_hash_check } => {
                    let snapshot = SnapshotFile::read(&file, check(skip_hash_check))?;
                    show_snapshot(&file, &snapshot.status, output)
                }
                SnapshotVerb::Restore(restore) => restore.run(),
            },
            Verb::Restore(restore) => restore.run(),
            Verb::Compact { revision, access } => {
                let remote = Remote::connect(access.access()?).await?;
                let revision = remote.compact(revision.map(Revision)).await?;
                output::line(format!("compacted revision {revision}"))?;
                Ok(ExitCode::SUCCESS)
            }
            Verb::Defrag { access } => defragment(&access.access()?).await,
            Verb::Verify { data_dir, output } => show_report(&data_dir, output),
            Verb::Migrate(migrate) => migrate.run().await,
            Verb::Alarm(Alarm { verb }) => match verb {
                AlarmVerb::List { access, output } => {
                    show_alarms(&Remote::connect(access.access()?).await?.alarms().await?, output)
                }
                AlarmVerb::Disarm { access, output } => {
                    show_alarms(&Remote::connect(access.access()?).await?.disarm().await?, output)
                }
            },
            Verb::Auth(auth) => auth.run().await,
            Verb::User(user) => user.run().await,
            Verb::Role(role) => role.run().await,
        }
    }
}

impl Restore {
    fn run(self) -> Result<ExitCode> {
        let Self { file, data_dir, skip_hash_check } = self;
        let status = restore::restore(&file, &data_dir, check(skip_hash_check))?;
        let count = [(status.keys, "key"), (status.leases, "lease"), (status.users, "user")];
        let [keys, leases, users] = count.map(|(count, noun)| counted(count, noun));
        let (path, revision) = (data_dir.display(), status.revision);
        output::line(format!("{path}: {keys}, {leases} and {users} at revision {revision}"))?;
        eprintln!("start it with `muster hub serve --data-dir {}`", data_dir.display());
        Ok(ExitCode::SUCCESS)
    }
}

fn show_alarms(alarms: &[hub::remote::Alarm], format: Format) -> Result<ExitCode> {
    match format {
        Format::Json => {
            let all = alarms
                .iter()
                .map(|alarm| json!({"member": format!("{:x}", alarm.member), "alarm": alarm.kind}));
            output::json(&all.collect::<Vec<_>>())?;
        }
        Format::Table if alarms.is_empty() => {}
        Format::Table => {
            let rows = alarms.iter().map(|alarm| vec![format!("{:x}", alarm.member), alarm.kind.to_owned()]);
            output::table(Some(&["MEMBER", "ALARM"]), rows)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// One of the endpoints alone.
fn only(access: &Access, endpoint: &str) -> Access {
    Access { endpoints: vec![endpoint.to_owned()], ..access.clone() }
}

fn check(skip: bool) -> HashCheck {
    if skip { HashCheck::Skipped } else { HashCheck::Required }
}

/// Every endpoint that answers; the code is 3 if only some do.
async fn status(access: &Access, format: Format) -> Result<ExitCode> {
    let mut answers = Vec::new();
    let mut silent = Vec::new();
    for endpoint in &access.endpoints {
        let asked = async { Remote::connect(only(access, endpoint)).await?.status().await };
        match Box::pin(asked).await {
            Ok(status) => answers.push((endpoint, status)),
            Err(error) => silent.push(anyhow::Error::from(error)),
        }
    }
    match format {
        Format::Json => {
            let all = answers.iter().map(|(endpoint, status)| {
                json!({
                    "endpoint": endpoint,
                    "version": status.version,
                    "revision": status.revision.0,
                    "db-size": status.db_size,
                    "keys": status.keys,
                    "leases": status.leases,
                    "member": format!("{:x}", status.member),
                    "leader": format!("{:x}", status.leader),
                    "is-leader": status.leader == status.member,
                    "members": status.members,
                    "errors": status.errors,
                })
            });
            output::json(&all.collect::<Vec<_>>())?;
        }
        Format::Table if answers.is_empty() => {}
        Format::Table => {
            let heading =
                ["ENDPOINT", "VERSION", "REVISION", "DB SIZE", "KEYS", "LEASES", "LEADER", "ERRORS"];
            let rows = answers.iter().map(|(endpoint, status)| {
                vec![
                    (*endpoint).clone(),
                    status.version.clone(),
                    status.revision.to_string(),
                    size(status.db_size.unsigned_abs()),
                    status.keys.to_string(),
                    status.leases.to_string(),
                    if status.leader == status.member {
                        "yes".to_owned()
                    } else {
                        format!("{:x}", status.leader)
                    },
                    if status.errors.is_empty() { "-".to_owned() } else { status.errors.join("; ") },
                ]
            });
            output::table(Some(&heading), rows)?;
        }
    }
    for error in &silent {
        eprintln!("muster: {error:#}");
    }
    Ok(match (answers.is_empty(), silent.is_empty()) {
        (_, true) => ExitCode::SUCCESS,
        (true, false) => ExitCode::FAILURE,
        (false, false) => ExitCode::from(3),
    })
}

async fn save(access: &Access, file: &Path, format: Format) -> Result<ExitCode> {
    // A snapshot is of one member; any other may be a little behind.
    ensure!(access.endpoints.len() == 1, "name the one endpoint to take the snapshot from (--endpoints)");
    let remote = Remote::connect(access).await?;
    let mut progress = Progress::new();
    let status = remote
        .save_snapshot(file, |came, left| {
            progress.tell(false, format!("{} of {}", size(came), size(came + left)))
        })
        .await?;
    progress.end();
    show_snapshot(file, &status, format)
}

fn show_snapshot(file: &Path, status: &SnapshotStatus, format: Format) -> Result<ExitCode> {
    let SnapshotStatus { hash, revision, compacted, total_keys, rows, keys, leases, size: bytes, .. } =
        *status;
    match format {
        Format::Json => output::json(&json!({
            "file": file,
            "hash": hash,
            "revision": revision.0,
            "compacted": compacted.0,
            "total-key": total_keys,
            "rows": rows,
            "keys": keys,
            "leases": leases,
            "total-size": bytes,
            "checksum": status.checksum,
            "auth": status.auth,
            "users": status.users,
            "roles": status.roles,
        }))?,
        Format::Table => {
            let heading = ["FILE", "HASH", "REVISION", "TOTAL KEYS", "KEYS", "LEASES", "USERS", "SIZE"];
            let row = vec![
                file.display().to_string(),
                format!("{hash:x}"),
                revision.to_string(),
                total_keys.to_string(),
                keys.to_string(),
                leases.to_string(),
                status.users.to_string(),
                size(bytes),
            ];
            output::table(Some(&heading), [row])?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn defragment(access: &Access) -> Result<ExitCode> {
    for endpoint in &access.endpoints {
        let remote = Remote::connect(only(access, endpoint)).await?;
        let before = remote.status().await?.db_size;
        remote.defragment().await?;
        let after = remote.status().await?.db_size;
        output::line(format!(
            "{endpoint}: {} before, {} now",
            size(before.unsigned_abs()),
            size(after.unsigned_abs())
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn show_report(data_dir: &Path, format: Format) -> Result<ExitCode> {
    let report = verify::verify(data_dir).context(
        "nothing could be verified (if no hub runs on it and it cannot be opened, make a new one of the last snapshot \
         with `muster hub restore`)",
    )?;
    match format {
        Format::Json => output::json(&json!({
            "data-dir": data_dir,
            "revision": report.revision.0,
            "compacted": report.compacted.0,
            "rows": report.rows,
            "keys": report.keys,
            "leases": report.leases,
            "users": report.users,
            "roles": report.roles,
            "bytes": report.bytes,
            "hash": report.hash,
            "problems": report.problems,
        }))?,
        Format::Table => {
            let heading = ["REVISION", "COMPACTED", "ROWS", "KEYS", "LEASES", "SIZE", "HASH", "PROBLEMS"];
            let row = vec![
                report.revision.to_string(),
                report.compacted.to_string(),
                report.rows.to_string(),
                report.keys.to_string(),
                report.leases.to_string(),
                size(report.bytes),
                format!("{:08x}", report.hash),
                report.problems.len().to_string(),
            ];
            output::table(Some(&heading), [row])?;
            report.problems.iter().try_for_each(output::line)?;
        }
    }
    if report.problems.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!(
        "muster: {} is damaged: make a new directory out of the last snapshot with `muster hub restore`",
        data_dir.display()
    );
    Ok(ExitCode::FAILURE)
}

/// How many of something.
fn counted(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// Bytes, for people.
fn size(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{} kB", bytes / 1000),
        _ => format!("{} MB", bytes / 1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told() {
        assert_eq!((counted(1, "key"), counted(0, "lease")), ("1 key".to_owned(), "0 leases".to_owned()));
        assert_eq!(size(9999), "9999 B");
        assert_eq!(size(12_345), "12 kB");
        assert_eq!(size(2_147_483_648), "2147 MB");
    }
}
