//! `muster hub …`: the embedded hub alone, and what keeps a hub's data: backups, checks, the move to an etcd cluster.
//!
//! The work is the `hub` crate's; here it is asked for and told about. Invariant: stdout has results only, progress goes
//! to stderr.

use super::output::{self, Format};
use crate::{agent, config};
use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand, ValueEnum};
use hub::migrate::{LeaseTime, Migration, Proof, Step};
use hub::remote::Remote;
use hub::snapshot::{HashCheck, SnapshotFile, SnapshotStatus};
use hub::{restore, verify};
use mvcc::Revision;
use serde_json::json;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How often progress is told where it cannot be overwritten.
const TELL: Duration = Duration::from_secs(2);

#[derive(Args)]
#[command(arg_required_else_help = true, subcommand_required = true, disable_help_subcommand = true)]
pub struct Hub {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Args)]
struct Endpoints {
    /// The hub or the etcd members, e.g. http://10.0.0.1:2379; by default what this machine's configuration says.
    #[arg(long, env = "ETCDCTL_ENDPOINTS", value_delimiter = ',')]
    endpoints: Vec<String>,
}

#[derive(Subcommand)]
enum Verb {
    /// Run the embedded hub alone: an etcd v3 server.
    ///
    /// Example: muster hub serve --listen 127.0.0.1:2379 --data-dir /var/lib/muster/hub
    Serve {
        /// Where to listen.
        #[arg(long, default_value = "127.0.0.1:2379")]
        listen: std::net::SocketAddr,
        /// Where to keep the data.
        #[arg(long, default_value = "/var/lib/muster/hub")]
        data_dir: PathBuf,
        /// How many bytes keys, values and their history may take.
        #[arg(long, default_value_t = hub::Limits::default().quota)]
        quota_backend_bytes: u64,
    },
    /// Show how hubs or etcd members are, each endpoint for itself.
    ///
    /// Example: muster hub status --endpoints http://10.0.0.1:2379 -o json
    Status {
        #[command(flatten)]
        endpoints: Endpoints,
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
    Restore {
        /// The snapshot.
        file: PathBuf,
        /// The directory to make.
        #[arg(long)]
        data_dir: PathBuf,
        /// Take a file without a checksum too: a copy of an etcd's member/snap/db.
        #[arg(long)]
        skip_hash_check: bool,
    },
    /// Forget the history below a revision.
    ///
    /// The embedded hub does so by itself; etcd only if it is told to.
    ///
    /// Example: muster hub compact 120000
    Compact {
        /// The lowest revision to keep; without it, the present one.
        revision: Option<i64>,
        #[command(flatten)]
        endpoints: Endpoints,
    },
    /// Give the disk what is no longer used, on each endpoint in turn. It answers nobody meanwhile.
    ///
    /// Example: muster hub defrag --endpoints http://10.0.0.1:2379
    Defrag {
        #[command(flatten)]
        endpoints: Endpoints,
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
    Migrate(Migrate),
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
        endpoints: Endpoints,
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
}

#[derive(Args)]
struct Migrate {
    /// Where to: the members of an etcd cluster, or a hub.
    #[arg(long, required = true, value_delimiter = ',')]
    to: Vec<String>,
    /// Where from; by default the hub of this machine's configuration.
    #[arg(long, value_delimiter = ',')]
    from: Vec<String>,
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

#[derive(Clone, Copy, Default, ValueEnum)]
enum LeaseTimeArg {
    Remaining,
    #[default]
    Granted,
}

impl Hub {
    /// Whether this is the server, which logs and is told to stop by signals.
    pub fn serves(&self) -> bool {
        matches!(self.verb, Verb::Serve { .. })
    }

    pub async fn run(self) -> Result<ExitCode> {
        // Boxed where a gRPC client is in it, which is large.
        match self.verb {
            Verb::Serve { listen, data_dir, quota_backend_bytes } => {
                serve(listen, data_dir, quota_backend_bytes).await
            }
            Verb::Status { endpoints, output } => Box::pin(status(&endpoints.all()?, output)).await,
            Verb::Snapshot(SnapshotArgs { verb }) => match verb {
                SnapshotVerb::Save { file, endpoints, output } => {
                    save(&endpoints.all()?, &file, output).await
                }
                SnapshotVerb::Status { file, output, skip_hash_check } => {
                    let snapshot = SnapshotFile::read(&file, check(skip_hash_check))?;
                    show_snapshot(&file, &snapshot.status, output)
                }
            },
            Verb::Restore { file, data_dir, skip_hash_check } => {
                let status = restore::restore(&file, &data_dir, check(skip_hash_check))?;
                let count = [(status.keys, "key"), (status.leases, "lease"), (status.users, "user")];
                let [keys, leases, users] = count.map(|(count, noun)| counted(count, noun));
                output::line(format!(
                    "{}: {keys}, {leases} and {users} at revision {}",
                    data_dir.display(),
                    status.revision
                ))?;
                eprintln!("start it with `muster hub serve --data-dir {}`", data_dir.display());
                Ok(ExitCode::SUCCESS)
            }
            Verb::Compact { revision, endpoints } => {
                let remote = Remote::connect(&endpoints.all()?).await?;
                let revision = remote.compact(revision.map(Revision)).await?;
                output::line(format!("compacted revision {revision}"))?;
                Ok(ExitCode::SUCCESS)
            }
            Verb::Defrag { endpoints } => defragment(&endpoints.all()?).await,
            Verb::Verify { data_dir, output } => show_report(&data_dir, output),
            Verb::Migrate(migrate) => migrate.run().await,
        }
    }
}

fn check(skip: bool) -> HashCheck {
    if skip { HashCheck::Skipped } else { HashCheck::Required }
}

impl Endpoints {
    fn all(&self) -> Result<Vec<String>> {
        endpoints_or_configured(&self.endpoints)
    }
}

fn endpoints_or_configured(given: &[String]) -> Result<Vec<String>> {
    if !given.is_empty() {
        return Ok(given.iter().map(|endpoint| super::kv::with_scheme(endpoint)).collect());
    }
    let file = std::env::var_os("MUSTER_CONFIG").map(PathBuf::from);
    Ok(config::load(file.as_deref(), |name| std::env::var(name).ok())?.config.hub.reach())
}

async fn serve(listen: std::net::SocketAddr, data_dir: PathBuf, quota: u64) -> Result<ExitCode> {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let auth = hub::AuthConfig::default();
    let limits = hub::Limits { quota, ..hub::Limits::default() };
    let config = hub::HubConfig { data_dir, listen, advertise: None, name, auth, tls: None, limits };
    let mut signals = agent::Signals::new()?;
    let mut hub = hub::Hub::start(config).await?;
    tracing::info!(address = %hub.address(), "hub serves");
    tokio::select! {
        error = hub.finished() => Err(error.into()),
        () = signals.end() => {
            hub.shutdown().await;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Every endpoint that answers; the code is 3 if only some do.
async fn status(endpoints: &[String], format: Format) -> Result<ExitCode> {
    let mut answers = Vec::new();
    let mut silent = Vec::new();
    for endpoint in endpoints {
        let one = std::slice::from_ref(endpoint);
        let asked = async { Remote::connect(one).await?.status().await };
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

async fn save(endpoints: &[String], file: &Path, format: Format) -> Result<ExitCode> {
    // A snapshot is of one member; any other may be a little behind.
    ensure!(endpoints.len() == 1, "name the one endpoint to take the snapshot from (--endpoints)");
    let remote = Remote::connect(endpoints).await?;
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

async fn defragment(endpoints: &[String]) -> Result<ExitCode> {
    for endpoint in endpoints {
        let one = std::slice::from_ref(endpoint);
        let remote = Remote::connect(one).await?;
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

impl Migrate {
    async fn run(self) -> Result<ExitCode> {
        let to: Vec<String> = self.to.iter().map(|endpoint| super::kv::with_scheme(endpoint)).collect();
        let from = endpoints_or_configured(&self.from)?;
        ensure!(
            !from.iter().any(|endpoint| to.contains(endpoint)),
            "the source and the target are the same: {}; name the source with --from",
            to.join(",")
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
             (`etcdctl user passwd NAME`), then `etcdctl auth enable`: until then whoever reaches the target may do \
             everything",
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

/// One line on stderr that changes; where stderr is no terminal, a line now and then.
struct Progress {
    terminal: bool,
    last: Option<Instant>,
    /// A line that is not ended.
    open: bool,
}

impl Progress {
    fn new() -> Self {
        Self { terminal: io::stderr().is_terminal(), last: None, open: false }
    }

    fn step(&mut self, step: &Step) {
        let (important, line) = describe(step);
        self.tell(important, line);
    }

    fn tell(&mut self, important: bool, line: String) {
        let due = self.last.is_none_or(|last| last.elapsed() >= TELL);
        if self.terminal {
            eprint!("\r\x1b[K{line}");
            let _ = io::stderr().flush(); // progress is not worth an error
            self.open = true;
            if important {
                self.end();
            }
        } else if due || important {
            eprintln!("{line}");
        } else {
            return;
        }
        self.last = Some(Instant::now());
    }

    fn end(&mut self) {
        if std::mem::take(&mut self.open) {
            eprintln!();
        }
    }
}

/// What to say of a step, and whether it must not be passed over.
fn describe(step: &Step) -> (bool, String) {
    match step {
        Step::Copying { revision, keys, of } => {
            (*keys == 0 || keys == of, format!("copying revision {revision}: {keys} of {of} keys"))
        }
        Step::Following { applied, current } => {
            (applied == current, format!("following: revision {applied} of {current}"))
        }
        Step::Comparing { keys } => (*keys == 0, format!("comparing: {keys} keys are equal")),
        Step::Again { why } => (true, format!("beginning anew: {why}")),
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
        let step = Step::Copying { revision: Revision(7), keys: 3, of: 9 };
        assert_eq!(describe(&step), (false, "copying revision 7: 3 of 9 keys".to_owned()));
        let step = Step::Following { applied: Revision(7), current: Revision(7) };
        assert_eq!(describe(&step), (true, "following: revision 7 of 7".to_owned()));
        assert_eq!(text(b"a\0\xff"), "a\\x00\\xff");
    }

    #[test]
    fn named_endpoints_get_a_scheme() {
        let given = ["10.0.0.1:2379".to_owned(), "http://m2:2379".to_owned()];
        assert_eq!(
            endpoints_or_configured(&given).ok(),
            Some(vec!["http://10.0.0.1:2379".into(), given[1].clone()])
        );
    }
}
