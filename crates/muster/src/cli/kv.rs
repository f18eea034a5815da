//! Keys of the hub in etcdctl's v2 spelling, on the hub's v3 API: `muster kv …`, and the same when the binary is
//! called `etcdctl`, so that the shell loops of the time run as they are.
//!
//! A directory is what v2 made of it: a prefix that ends in `/`. Texts, error codes and exit codes are etcdctl's,
//! for scripts read them.

use super::access::{self, AccessArgs, Credentials};
use super::output;
use ::access::Access;
use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use model::Revision;
use registry::{Change, Guard, KeyValue, Store, StoreError, Write};
use std::{collections::BTreeSet, io::Read, process::ExitCode, time::Duration};

/// etcdctl's exit code for an answer that is an error.
const REFUSED: u8 = 4;
/// etcd's codes of such answers.
const NOT_FOUND: u32 = 100;
const COMPARE_FAILED: u32 = 101;
const EXISTS: u32 = 105;

#[derive(Args)]
pub struct Kv {
    #[command(flatten)]
    access: AccessArgs,
    #[command(subcommand)]
    command: KvCommand,
}

/// A simple command line client for etcd: the v2 commands of etcdctl, as far as Muster knows them.
#[derive(Parser)]
#[command(name = "etcdctl", version, disable_help_subcommand = true)]
struct Etcdctl {
    /// Where the hub is; by default where this machine's configuration says.
    #[arg(
        long,
        short = 'C',
        aliases = ["endpoint", "peers"],
        value_delimiter = ',',
        global = true
    )]
    endpoints: Vec<String>,
    #[command(flatten)]
    credentials: Credentials,
    /// Accepted for old scripts: there is nothing to synchronise.
    #[arg(long, global = true, hide = true)]
    no_sync: bool,
    #[command(subcommand)]
    command: KvCommand,
}

#[derive(Subcommand)]
enum KvCommand {
    /// Set a key.
    ///
    /// Example: muster kv set --ttl 60 /services/someapp/upstream/someapp@1 10.1.5.2:3000
    Set {
        /// The key.
        key: String,
        /// The value; without it, standard input is read.
        #[arg(allow_hyphen_values = true)]
        value: Option<String>,
        /// Seconds until the key is removed, unless it is set again.
        #[arg(long, default_value_t = 0)]
        ttl: u64,
        /// Only if the key has this value now.
        #[arg(long)]
        swap_with_value: Option<String>,
        /// Only if the key was last changed at this index.
        #[arg(long)]
        swap_with_index: Option<i64>,
    },
    /// Print a key's value.
    ///
    /// Example: muster kv get /services/someapp/upstream/someapp@1
    Get {
        /// The key.
        key: String,
    },
    /// List keys.
    ///
    /// Example: muster kv ls --recursive /services
    Ls {
        /// The directory.
        #[arg(default_value = "/")]
        key: String,
        /// Also what is in directories below.
        #[arg(long, short)]
        recursive: bool,
        /// Add a slash to directories.
        #[arg(short)]
        p: bool,
        /// Accepted for old scripts: the list is always sorted.
        #[arg(long, hide = true)]
        sort: bool,
    },
    /// Remove a key.
    ///
    /// Example: muster kv rm --recursive /services/someapp
    Rm {
        /// The key.
        key: String,
        /// Also what is below it.
        #[arg(long, short)]
        recursive: bool,
        /// Accepted for old scripts: a directory is only a prefix here.
        #[arg(long, hide = true)]
        dir: bool,
    },
    /// Make a new key; fails when it exists.
    ///
    /// Example: muster kv mk /config/owner m1
    Mk {
        /// The key.
        key: String,
        /// The value; without it, standard input is read.
        #[arg(allow_hyphen_values = true)]
        value: Option<String>,
        /// Seconds until the key is removed.
        #[arg(long, default_value_t = 0)]
        ttl: u64,
    },
    /// Change a key; fails when it does not exist.
    ///
    /// Example: muster kv update /config/owner m2
    Update {
        /// The key.
        key: String,
        /// The value; without it, standard input is read.
        #[arg(allow_hyphen_values = true)]
        value: Option<String>,
        /// Seconds until the key is removed.
        #[arg(long, default_value_t = 0)]
        ttl: u64,
    },
    /// Wait for a change and print it.
    ///
    /// Example: muster kv watch --recursive --forever /services
    Watch {
        /// The key.
        key: String,
        /// Also what is below it.
        #[arg(long, short)]
        recursive: bool,
        /// Go on until interrupted.
        #[arg(long, short)]
        forever: bool,
        /// Begin after this index.
        #[arg(long, default_value_t = 0)]
        after_index: i64,
    },
}

impl Kv {
    pub async fn run(self) -> Result<ExitCode> {
        carry_out(&self.access.access()?, self.command).await
    }
}

/// The command line of `etcdctl`, for checking it.
#[cfg(test)]
pub fn command() -> clap::Command {
    use clap::CommandFactory;
    Etcdctl::command()
}

/// The whole of `etcdctl`.
pub async fn etcdctl() -> Result<ExitCode> {
    if std::env::var("ETCDCTL_API").is_ok_and(|version| version != "2") {
        anyhow::bail!(
            "this etcdctl is Muster's and knows the v2 commands only; for v3 install Debian's etcd-client and \
             call /usr/bin/etcdctl, which works on Muster's hub too"
        );
    }
    let Etcdctl { mut endpoints, mut credentials, command, no_sync: _ } = Etcdctl::parse();
    access::from_etcdctl_environment(&mut endpoints, &mut credentials, |name| std::env::var(name).ok());
    carry_out(&access::resolve(&endpoints, &credentials, &access::configured()?)?, command).await
}

async fn carry_out(access: &Access, command: KvCommand) -> Result<ExitCode> {
    let store = Store::connect(access).await?;
    match answer(&store, command).await {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => match error.downcast::<Refusal>() {
            Ok(refusal) => {
                eprintln!("Error:  {refusal}");
                Ok(ExitCode::from(REFUSED))
            }
            Err(error) => Err(error),
        },
    }
}

/// etcd's answer that it cannot be done.
#[derive(Debug, thiserror::Error)]
#[error("{code}: {text} ({cause}) [{index}]")]
struct Refusal {
    code: u32,
    text: &'static str,
    cause: String,
    index: Revision,
}

fn refusal(code: u32, cause: impl Into<String>, index: Revision) -> anyhow::Error {
    let text = match code {
        NOT_FOUND => "Key not found",
        COMPARE_FAILED => "Compare failed",
        _ => "Key already exists",
    };
    Refusal { code, text, cause: cause.into(), index }.into()
}

async fn answer(store: &Store, command: KvCommand) -> Result<()> {
    match command {
        KvCommand::Set { key, value, ttl, swap_with_value, swap_with_index } => {
            let (key, value) = (absolute(&key), value_or_stdin(value)?);
            let mut guards = Vec::new();
            if swap_with_value.is_some() || swap_with_index.is_some() {
                let Some(current) = store.get(&key).await? else {
                    return Err(refusal(NOT_FOUND, key.as_str(), store.list(&key).await?.revision));
                };
                let is = String::from_utf8_lossy(&current.value).into_owned();
                let value_fits = swap_with_value.is_none_or(|expected| expected == is);
                if !value_fits || swap_with_index.is_some_and(|index| index != current.mod_revision.0) {
                    return Err(refusal(COMPARE_FAILED, format!("it is {is}"), current.mod_revision));
                }
                guards.push(Guard::Unchanged(key.clone(), current.mod_revision));
            }
            write(store, &guards, &key, &value, ttl, COMPARE_FAILED).await
        }
        KvCommand::Mk { key, value, ttl } => {
            let (key, value) = (absolute(&key), value_or_stdin(value)?);
            write(store, &[Guard::Absent(key.clone())], &key, &value, ttl, EXISTS).await
        }
        KvCommand::Update { key, value, ttl } => {
            let (key, value) = (absolute(&key), value_or_stdin(value)?);
            write(store, &[Guard::Present(key.clone())], &key, &value, ttl, NOT_FOUND).await
        }
        KvCommand::Get { key } => {
            let key = absolute(&key);
            match store.get(&key).await? {
                Some(kv) => print_value(&kv),
                None => Err(refusal(NOT_FOUND, key.as_str(), store.list(&key).await?.revision)),
            }
        }
        KvCommand::Ls { key, recursive, p, sort: _ } => list(store, &key, recursive, p).await,
        KvCommand::Rm { key, recursive, dir: _ } => remove(store, &absolute(&key), recursive).await,
        KvCommand::Watch { key, recursive, forever, after_index } => {
            watch(store, &absolute(&key), recursive, forever, after_index).await
        }
    }
}

async fn write(
    store: &Store,
    guards: &[Guard],
    key: &str,
    value: &str,
    ttl: u64,
    otherwise: u32,
) -> Result<()> {
    let lease = match ttl {
        0 => None,
        seconds => Some(store.grant(Duration::from_secs(seconds)).await?),
    };
    let write = Write::Put { key: key.to_owned(), value: value.to_owned().into(), lease };
    let outcome = store.commit(guards, &[write]).await?;
    if outcome.committed {
        return output::line(value);
    }
    if let Some(lease) = lease {
        store.revoke(lease).await?;
    }
    Err(refusal(otherwise, key, outcome.revision))
}

async fn list(store: &Store, key: &str, recursive: bool, slash: bool) -> Result<()> {
    let directory = absolute(key);
    let prefix = below(&directory);
    let listing = store.list(&prefix).await?;
    if listing.items.is_empty() {
        return match store.get(&directory).await? {
            Some(kv) => output::line(kv.key),
            None if directory == "/" => Ok(()),
            None => Err(refusal(NOT_FOUND, directory, listing.revision)),
        };
    }
    let mut lines = BTreeSet::new();
    for kv in &listing.items {
        let rest = &kv.key[prefix.len()..];
        let ends = rest.match_indices('/').map(|(place, _)| place).filter(|place| *place > 0);
        for end in ends.take(if recursive { usize::MAX } else { 1 }) {
            lines.insert(format!("{prefix}{}{}", &rest[..end], if slash { "/" } else { "" }));
        }
        if recursive || !rest.contains('/') {
            lines.insert(kv.key.clone());
        }
    }
    output::print(lines.into_iter().map(|line| line + "\n").collect::<String>())
}

async fn remove(store: &Store, key: &str, recursive: bool) -> Result<()> {
    let before = store.get(key).await?;
    let mut writes = vec![Write::Delete(key.to_owned())];
    if recursive {
        let listing = store.list(&below(key)).await?;
        if before.is_none() && listing.items.is_empty() {
            return Err(refusal(NOT_FOUND, key, listing.revision));
        }
        writes.push(Write::DeletePrefix(below(key)));
    } else if before.is_none() {
        return Err(refusal(NOT_FOUND, key, store.list(key).await?.revision));
    }
    store.commit(&[], &writes).await?;
    match before {
        Some(kv) => output::line(format!("PrevNode.Value: {}", String::from_utf8_lossy(&kv.value))),
        None => Ok(()),
    }
}

async fn watch(store: &Store, key: &str, recursive: bool, forever: bool, after: i64) -> Result<()> {
    let mut from = match after {
        0 => store.list(&below(key)).await?.revision.next(),
        index => Revision(index).next(),
    };
    let concerns = |changed: &str| changed == key || (recursive && changed.starts_with(&below(key)));
    loop {
        let mut watch = match store.watch(key, from).await {
            Ok(watch) => watch,
            Err(StoreError::Unreachable { .. } | StoreError::Timeout { .. }) if forever => {
                tokio::time::sleep(Duration::from_millis(500)).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        loop {
            let changes = match watch.next().await {
                Ok(changes) => changes,
                // A hub that restarts ends the stream; nothing that happened since is skipped.
                Err(StoreError::WatchEnded(_) | StoreError::Unreachable { .. }) if forever => {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    break;
                }
                Err(error) => return Err(error.into()),
            };
            from = changes.revision.next();
            for change in changes.changes.iter().filter(|change| concerns(change.key())) {
                match (change, forever || recursive) {
                    (Change::Put(kv), true) => {
                        output::line(format!("[set] {}", kv.key))?;
                        print_value(kv)?;
                    }
                    (Change::Put(kv), false) => print_value(kv)?,
                    (Change::Delete { key }, true) => output::line(format!("[delete] {key}"))?,
                    (Change::Delete { .. }, false) => output::line("")?,
                }
                if !forever {
                    return Ok(());
                }
            }
        }
    }
}

fn print_value(kv: &KeyValue) -> Result<()> {
    let mut value = kv.value.to_vec();
    value.push(b'\n');
    output::print(value)
}

fn value_or_stdin(value: Option<String>) -> Result<String> {
    match value {
        Some(value) => Ok(value),
        None => {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .context("cannot read the value from standard input")?;
            Ok(text.trim_end_matches('\n').to_owned())
        }
    }
}

/// v2's keys begin with one slash and do not end in one.
fn absolute(key: &str) -> String {
    format!("/{}", key.trim_matches('/'))
}

/// The prefix of everything in a directory.
fn below(directory: &str) -> String {
    if directory == "/" { "/".to_owned() } else { format!("{directory}/") }
}
