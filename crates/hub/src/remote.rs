//! A running hub or etcd, asked from outside: what `muster hub` needs beyond keys.
//!
//! Works on any server of etcd's v3 API. Invariant: every call ends, with an answer or with an error that says which
//! server was asked for what.

/// Users and roles.
mod users;

use crate::snapshot::{HashCheck, SnapshotError, SnapshotFile, SnapshotStatus};
use access::{Access, FileError};
use etcd_client::proto::PbAlarmMember;
use etcd_client::{
    AlarmAction, AlarmOptions, AlarmType, Client, CompactionOptions, ConnectOptions, Error, GetOptions,
};
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
    #[error("{endpoints} cannot be reached (--endpoints names another hub or etcd)")]
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
    /// A certificate, key or password is of no use.
    #[error(transparent)]
    File(#[from] FileError),
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
        matches!(self, Self::Refused { source, .. } if source.said == refusal.to_string())
    }
}

/// What the server said, or the network, and what helps; in the server's own words if it said anything.
#[derive(Debug)]
pub struct Cause {
    said: String,
    remedy: Option<&'static str>,
}

impl Cause {
    fn new(error: &Error, access: &Access) -> Self {
        let said = access::reason(error, access);
        Self { remedy: access::remedy(&said, access), said }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.said)?;
        self.remedy.map_or(Ok(()), |remedy| write!(f, ": {remedy}"))
    }
}

impl std::error::Error for Cause {}

/// A server, or the members of a cluster.
#[derive(Clone)]
pub struct Remote {
    access: Access,
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

/// What a member complains of until somebody says that it is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alarm {
    /// Which member.
    pub member: u64,
    /// What it is, as etcdctl calls it: `NOSPACE`, `CORRUPT`.
    pub kind: &'static str,
}

impl Alarm {
    fn new(wire: &PbAlarmMember) -> Self {
        let kind = match wire.alarm {
            1 => "NOSPACE",
            2 => "CORRUPT",
            _ => "UNKNOWN",
        };
        Self { member: wire.member_id, kind }
    }
}

impl Remote {
    /// Connects to one server, or to any of a cluster's members, and logs in if `access` has a user.
    pub async fn connect(access: impl Into<Access>) -> Result<Self, RemoteError> {
        let access = access.into();
        let ready = access.ready()?;
        // Nothing is asked before a login, and a copy may take longer than a token lives.
        let options = ConnectOptions::new().with_connect_timeout(CONNECT).with_auto_token_refresh(true);
        let options = ready.options(options);
        let connected = async {
            let mut client = Box::pin(Client::connect(&access.endpoints, Some(options))).await?;
            match Box::pin(client.update_user(ready.login)).await {
                Ok(()) => Ok(client),
                // A server without users serves everybody.
                Err(Error::GRpcStatus(status))
                    if status.message() == mvcc::Error::AuthNotEnabled.to_string() =>
                {
                    Ok(client)
                }
                Err(error) => Err(error),
            }
        };
        match tokio::time::timeout(CONNECT, connected).await {
            Ok(Ok(client)) => Ok(Self { access, client }),
            Ok(Err(error)) => Err(failed(&access, "let us in", &error)),
            Err(_) => Err(RemoteError::Unreachable { endpoints: access.names(), source: None }),
        }
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
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(failed(&self.access, what, &error)),
            Err(_) => Err(RemoteError::Unreachable { endpoints: self.access.names(), source: None }),
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

    /// The alarms that are raised.
    pub async fn alarms(&self) -> Result<Vec<Alarm>, RemoteError> {
        Ok(self.raised().await?.iter().map(Alarm::new).collect())
    }

    async fn raised(&self) -> Result<Vec<PbAlarmMember>, RemoteError> {
        let mut client = self.client.clone();
        let listed = client.alarm(AlarmAction::Get, AlarmType::None, None);
        Ok(self.ask("list its alarms", listed).await?.0.alarms)
    }

    /// Withdraws all alarms; tells which. One whose cause lasts comes again.
    pub async fn disarm(&self) -> Result<Vec<Alarm>, RemoteError> {
        let mut withdrawn = Vec::new();
        for alarm in self.raised().await? {
            let kind = if alarm.alarm == 2 { AlarmType::Corrupt } else { AlarmType::Nospace };
            let mut options = AlarmOptions::new();
            options.with_member(alarm.member_id);
            let mut client = self.client.clone();
            let asked = client.alarm(AlarmAction::Deactivate, kind, Some(options));
            let answer = self.ask("withdraw the alarm", asked).await?;
            withdrawn.extend(answer.0.alarms.iter().map(Alarm::new));
        }
        Ok(withdrawn)
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

fn failed(access: &Access, what: &'static str, error: &Error) -> RemoteError {
    let (endpoints, source) = (access.names(), Cause::new(error, access));
    if unavailable(error) {
        RemoteError::Unreachable { endpoints, source: Some(source) }
    } else {
        RemoteError::Refused { endpoints, what, source }
    }
}

/// Whether nobody was asked, or nobody answered. A status with a source was made on this side, of a connection that
/// broke.
fn unavailable(error: &Error) -> bool {
    match error {
        Error::TransportError(_) | Error::IoError(_) => true,
        Error::GRpcStatus(status) => {
            status.code() == tonic::Code::Unavailable || std::error::Error::source(status).is_some()
        }
        _ => false,
    }
}
