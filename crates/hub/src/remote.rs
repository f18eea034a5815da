//! A running hub or etcd, asked from outside: what `muster hub` needs beyond keys.
//!
//! Works on any server of etcd's v3 API. Invariant: every call ends, with an answer or with an error that says which
//! server was asked for what.

use crate::snapshot::{HashCheck, SnapshotError, SnapshotFile, SnapshotStatus};
use etcd_client::{Client, CompactionOptions, ConnectOptions, Error, GetOptions};
use mvcc::Revision;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;
use tokio::fs::{self, File, OpenOptions};
use tokio::io::AsyncWriteExt;

/// To reach a server: more than a slow network takes, less than a person waits.
const CONNECT: Duration = Duration::from_secs(5);

/// For an answer, or the next piece of one: etcd's own limit for a request is 7 s.
const ANSWER: Duration = Duration::from_secs(15);

/// For a compaction or a defragmentation, which rewrite all data.
const LONG: Duration = Duration::from_secs(600);

/// Why a server did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// Nobody listens, or nobody answers.
    #[error(
        "{endpoints} cannot be reached: name the endpoint of a hub or etcd that runs (--endpoints http://ADDRESS:2379)"
    )]
    Unreachable {
        /// Who was asked.
        endpoints: String,
        /// Why.
        #[source]
        source: Option<Cause>,
    },
    /// It says no.
    #[error("{endpoints} did not {what}")]
    Refused {
        /// Who was asked.
        endpoints: String,
        /// What it was asked to do.
        what: &'static str,
        /// Why.
        #[source]
        source: Cause,
    },
    /// A snapshot's file cannot be written.
    #[error("could not write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A snapshot arrived damaged.
    #[error("the snapshot arrived damaged")]
    Snapshot(#[from] SnapshotError),
}

impl RemoteError {
    /// Whether a server refused in these words of etcd's.
    pub(crate) fn says(&self, refusal: mvcc::Error) -> bool {
        matches!(self, Self::Refused { source, .. } if source.to_string() == refusal.to_string())
    }
}

/// What the server said, or the network; in the server's own words if it said anything.
#[derive(Debug)]
pub struct Cause(Box<Error>);

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            Error::GRpcStatus(status) => f.write_str(status.message()),
            other => other.fmt(f),
        }
    }
}

impl std::error::Error for Cause {}

/// A server, or the members of a cluster.
#[derive(Clone)]
pub struct Remote {
    endpoints: String,
    pub(crate) client: Client,
}

/// How a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Its version of etcd's API.
    pub version: String,
    /// The revision it is at.
    pub revision: Revision,
    /// Bytes on disk.
    pub db_size: i64,
    /// Keys that exist.
    pub keys: i64,
    /// Leases.
    pub leases: u64,
    /// The member that answered.
    pub member: u64,
    /// The member that leads the cluster; 0 if none does.
    pub leader: u64,
    /// Members of the cluster.
    pub members: u64,
    /// What it complains of.
    pub errors: Vec<String>,
}

impl Remote {
    /// Connects to one server, or to any of a cluster's members.
    pub async fn connect(endpoints: &[String]) -> Result<Self, RemoteError> {
        let names = endpoints.join(",");
        let options = ConnectOptions::new().with_connect_timeout(CONNECT);
        let unreachable = |source| RemoteError::Unreachable { endpoints: names.clone(), source };
        let client = tokio::time::timeout(CONNECT, Box::pin(Client::connect(endpoints, Some(options))))
            .await
            .map_err(|_| unreachable(None))?
            .map_err(|error| unreachable(Some(Cause(Box::new(error)))))?;
        Ok(Self { endpoints: names, client })
    }

    /// Waits for an answer. Boxes the call first: those of gRPC clients are large.
    pub(crate) fn ask<T>(
        &self,
        what: &'static str,
        answer: impl Future<Output = Result<T, Error>>,
    ) -> impl Future<Output = Result<T, RemoteError>> {
        self.ask_within(ANSWER, what, Box::pin(answer))
    }

    async fn ask_within<T>(
        &self,
        limit: Duration,
        what: &'static str,
        answer: Pin<Box<impl Future<Output = Result<T, Error>>>>,
    ) -> Result<T, RemoteError> {
        let endpoints = self.endpoints.clone();
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) if unavailable(&error) => {
                Err(RemoteError::Unreachable { endpoints, source: Some(Cause(Box::new(error))) })
            }
            Ok(Err(source)) => Err(RemoteError::Refused { endpoints, what, source: Cause(Box::new(source)) }),
            Err(_) => Err(RemoteError::Unreachable { endpoints, source: None }),
        }
    }

    /// The revision it is at, and how many keys it has in a range.
    pub(crate) async fn count(
        &self,
        key: impl Into<Vec<u8>>,
        options: GetOptions,
    ) -> Result<(Revision, i64), RemoteError> {
        let mut kv = self.client.kv_client();
        let answer = self.ask("count its keys", kv.get(key, Some(options.with_count_only()))).await?;
        Ok((Revision(answer.header().map_or(0, etcd_client::ResponseHeader::revision)), answer.count()))
    }

    /// The revision it is at.
    pub async fn revision(&self) -> Result<Revision, RemoteError> {
        Ok(self.count("\0", GetOptions::new()).await?.0)
    }

    /// How it is.
    pub async fn status(&self) -> Result<Status, RemoteError> {
        let mut client = self.client.clone();
        let status = self.ask("tell its status", client.status()).await?;
        let (revision, keys) = self.count("", GetOptions::new().with_all_keys()).await?;
        let leases = self.ask("list its leases", client.leases()).await?.leases().len() as u64;
        let members = self.ask("list its members", client.member_list()).await?.members().len() as u64;
        Ok(Status {
            version: status.version().to_owned(),
            revision,
            db_size: status.db_size(),
            keys,
            leases,
            member: status.header().map_or(0, etcd_client::ResponseHeader::member_id),
            leader: status.leader(),
            members,
            errors: status.errors().to_vec(),
        })
    }

    /// Forgets the history below `revision`, or below the present; tells which it was.
    pub async fn compact(&self, revision: Option<Revision>) -> Result<Revision, RemoteError> {
        let revision = match revision {
            Some(revision) => revision,
            None => self.revision().await?,
        };
        let mut client = self.client.clone();
        let options = CompactionOptions::new().with_physical();
        let answer = Box::pin(client.compact(revision.0, Some(options)));
        self.ask_within(LONG, "compact its history", answer).await?;
        Ok(revision)
    }

    /// Gives unused disk back.
    pub async fn defragment(&self) -> Result<(), RemoteError> {
        let mut client = self.client.clone();
        self.ask_within(LONG, "defragment its data", Box::pin(client.defragment())).await.map(|_| ())
    }

    /// Saves a snapshot to `file`, which is there whole or not at all; one of that name is replaced. `tell` hears how
    /// many bytes came and how many are to come.
    pub async fn save_snapshot(
        &self,
        file: &Path,
        mut tell: impl FnMut(u64, u64),
    ) -> Result<SnapshotStatus, RemoteError> {
        let part = part(file);
        let saved = match self.receive(&part, &mut tell).await {
            Ok(()) => self.put_in_place(&part, file).await,
            Err(error) => Err(error),
        };
        if saved.is_err() {
            let _ = fs::remove_file(&part).await; // the first error is the one to tell
        }
        saved
    }

    async fn receive(&self, part: &Path, tell: &mut impl FnMut(u64, u64)) -> Result<(), RemoteError> {
        let write = |source| RemoteError::Write { path: part.to_owned(), source };
        const WHAT: &str = "send a snapshot";
        let mut client = self.client.clone();
        let mut stream = self.ask(WHAT, client.snapshot()).await?;
        // All of the hub's secrets are in it.
        let open = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(part).await;
        let mut file = open.map_err(write)?;
        let mut came = 0;
        while let Some(piece) = self.ask(WHAT, stream.message()).await? {
            file.write_all(piece.blob()).await.map_err(write)?;
            came += piece.blob().len() as u64;
            tell(came, piece.remaining_bytes());
        }
        file.sync_all().await.map_err(write)
    }

    /// Checks what came before it takes the place of the last good one.
    async fn put_in_place(&self, part: &Path, file: &Path) -> Result<SnapshotStatus, RemoteError> {
        let write = |source| RemoteError::Write { path: file.to_owned(), source };
        let path = part.to_owned();
        let read = tokio::task::spawn_blocking(move || SnapshotFile::read(&path, HashCheck::Required));
        let status = read.await.map_err(|panic| write(io::Error::other(panic)))??.status;
        fs::rename(part, file).await.map_err(write)?;
        let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(parent.unwrap_or_else(|| Path::new(".")))
            .await
            .map_err(write)?
            .sync_all()
            .await
            .map_err(write)?;
        Ok(status)
    }
}

fn part(file: &Path) -> PathBuf {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    file.with_file_name(name)
}

fn unavailable(error: &Error) -> bool {
    match error {
        Error::TransportError(_) | Error::IoError(_) => true,
        Error::GRpcStatus(status) => status.code() == tonic::Code::Unavailable,
        _ => false,
    }
}
