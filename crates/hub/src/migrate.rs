//! All keys, leases, users and roles of one server copied to another: from a hub into an etcd cluster, or back.
//!
//! A list at one revision, then a watch from there on, until the copy has caught up; then both are read again and
//! compared. Only the client's API is used, so any two servers of etcd's v3 API will do; revisions, history and passwords
//! do not come along (a snapshot keeps those). The source may be in use: the comparison is at one of its revisions. The target
//! must not be. Invariant: success means that every key in range was read from both and was the same, lease included.

/// Users and roles.
mod access;
/// Reading both sides, key by key.
mod cursor;
/// Leases that follow their original.
mod lease;
/// Writing in batches.
mod writer;

pub use access::Access;

use crate::remote::{Remote, RemoteError};
use cursor::{Item, Merge, Span};
use etcd_client::{EventType, WatchOptions};
use lease::Leases;
use mvcc::{Revision, crc32c};
use std::time::Duration;
use tokio::time::timeout;
use writer::Writer;

/// How often to begin anew, if the source's history was compacted meanwhile, or a lease ran out on one side first.
const ATTEMPTS: u32 = 5;

/// Keys per line of the proof.
const RANGE: u64 = 1000;

/// How long the next event may take that is known to have happened.
const EVENT: Duration = Duration::from_secs(30);

/// After so many looks at a source that does not rest, the copy is near enough: the proof is at a fixed revision.
const LOOKS: u32 = 20;

/// What the time to live of a copied lease is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LeaseTime {
    /// What remained of the original when it was copied. A renewal is for no longer than that either, so whoever renews
    /// at the pace of the original comes too late.
    Remaining,
    /// What the original was granted, as after a restart of its server: what nobody renews lives up to that much longer.
    #[default]
    Granted,
}

/// What to copy, and how.
#[derive(Debug, Clone, Default)]
pub struct Migration {
    /// Only keys that begin with this, and their leases; empty for everything.
    pub prefix: Vec<u8>,
    /// Make a target equal that has keys in range already: they are overwritten or deleted.
    pub force: bool,
    /// How long copied leases live.
    pub leases: LeaseTime,
}

/// What is being done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Copies what was there at `revision`.
    Copying {
        /// The source's revision.
        revision: Revision,
        /// Keys done.
        keys: u64,
        /// Keys in all.
        of: u64,
    },
    /// Copies what changed since.
    Following {
        /// Done up to this revision of the source.
        applied: Revision,
        /// The source is here.
        current: Revision,
    },
    /// Compares.
    Comparing {
        /// Keys done.
        keys: u64,
    },
    /// Begins anew.
    Again {
        /// Why.
        why: String,
    },
}

/// A range of keys that is the same on both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Same {
    /// The first key.
    pub first: Vec<u8>,
    /// The last key.
    pub last: Vec<u8>,
    /// How many there are.
    pub keys: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
    /// CRC-32C of keys, values and leases, as read from the target.
    pub crc: u32,
}

/// That the copy is equal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// The source's revision that was compared.
    pub revision: Revision,
    /// The target's revision afterwards.
    pub target: Revision,
    /// The source's revision afterwards: if it is greater, it was written to meanwhile, and that is not copied.
    pub source_now: Revision,
    /// Keys in all.
    pub keys: u64,
    /// Leases that were copied and live on both sides.
    pub leases: u64,
    /// Users and roles; none if only a prefix was copied.
    pub access: Access,
    /// Range by range.
    pub ranges: Vec<Same>,
}

/// Why a copy was not made.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// A server did not do its part.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// There are keys where the copy goes.
    #[error(
        "the target has {keys} keys there already: use an empty one, or --force to overwrite and delete them"
    )]
    NotEmpty {
        /// How many.
        keys: i64,
    },
    /// A role or a user is there already, and is another.
    #[error("the target has a {what} `{name}` that differs: remove it there, or --force to make it equal")]
    AccessDiffers {
        /// Role or user.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// There is no randomness for passwords.
    #[error("could not make up a password")]
    Random(#[source] getrandom::Error),
    /// The watch ended.
    #[error("the watch on the source ended: {why}")]
    WatchEnded {
        /// Why, as far as it is known.
        why: String,
    },
    /// It does not become equal.
    #[error(
        "after {ATTEMPTS} attempts the copy is not equal: {why}; stop who else writes to the target, and try again"
    )]
    NotEqual {
        /// What was wrong last.
        why: String,
    },
    /// Something that a new attempt may mend.
    #[error("{0}")]
    Again(String),
}

/// Copies, and proves it. `tell` hears what is being done.
pub async fn migrate(
    from: &Remote,
    to: &Remote,
    migration: &Migration,
    mut tell: impl FnMut(Step),
) -> Result<Proof, MigrateError> {
    Box::pin(run(from, to, migration, &mut tell)).await // boxed: the calls of gRPC clients are large
}

async fn run(
    from: &Remote,
    to: &Remote,
    migration: &Migration,
    tell: &mut dyn FnMut(Step),
) -> Result<Proof, MigrateError> {
    let span = Span::prefix(&migration.prefix);
    let (_, keys) = to.count(span.start.clone(), span.options()).await?;
    if keys > 0 && !migration.force {
        return Err(MigrateError::NotEmpty { keys });
    }
    let access = if migration.prefix.is_empty() {
        Box::pin(access::copy(from, to, migration.force)).await?
    } else {
        Access::default()
    };
    let mut copy = Copy { from, to, span, access, leases: Leases::new(from, to, migration), tell };
    let mut why = String::new();
    for _ in 0..ATTEMPTS {
        match Box::pin(copy.attempt()).await {
            Err(MigrateError::Again(reason)) => {
                (copy.tell)(Step::Again { why: reason.clone() });
                why = reason;
            }
            other => return other,
        }
    }
    Err(MigrateError::NotEqual { why })
}

struct Copy<'a> {
    from: &'a Remote,
    to: &'a Remote,
    span: Span,
    access: Access,
    leases: Leases<'a>,
    tell: &'a mut dyn FnMut(Step),
}

impl Copy<'_> {
    async fn attempt(&mut self) -> Result<Proof, MigrateError> {
        let (revision, of) = self.from.count(self.span.start.clone(), self.span.options()).await?;
        self.leases.copy_all().await?;
        self.copy(revision, of.unsigned_abs()).await?;
        let applied = self.follow(revision).await?;
        self.leases.copy_all().await?;
        self.leases.renew(true).await?;
        self.prove(applied).await
    }

    /// Makes the target what the source was at `revision`.
    async fn copy(&mut self, revision: Revision, of: u64) -> Result<(), MigrateError> {
        let mut merge = Merge::new(self.from, revision, self.to, &self.span);
        let mut writer = Writer::new(self.to);
        let mut keys = 0;
        (self.tell)(Step::Copying { revision, keys, of });
        while let Some((source, target)) = merge.next().await? {
            match (source, target) {
                (Some(source), target) => {
                    keys += 1;
                    if Some(&source) != target.as_ref() {
                        let lease = self.leases.ensure(source.lease).await?;
                        writer.put(Item { lease, ..source }).await?;
                    }
                    if keys % RANGE == 0 || keys == of {
                        (self.tell)(Step::Copying { revision, keys, of });
                        self.leases.renew(false).await?;
                    }
                }
                (None, Some(target)) => writer.delete(target.key).await?,
                (None, None) => {}
            }
        }
        writer.flush().await
    }

    /// Copies what changed after `revision`, until there is nothing more; tells how far it came.
    async fn follow(&mut self, revision: Revision) -> Result<Revision, MigrateError> {
        let mut applied = revision;
        let mut current = self.from.revision().await?;
        if applied == current {
            return Ok(applied);
        }
        let mut watch = self.from.client.watch_client().max_decoding_message_size(usize::MAX);
        // All keys, so that the source's every revision is seen to have passed.
        let options = WatchOptions::new().with_all_keys().with_start_revision(revision.next().0);
        let mut stream = self.from.ask("open a watch", watch.watch("", Some(options))).await?;
        let mut writer = Writer::new(self.to);
        for _ in 0..LOOKS {
            while applied < current {
                (self.tell)(Step::Following { applied, current });
                let ended = |why: String| MigrateError::WatchEnded { why };
                let answer = timeout(EVENT, stream.message())
                    .await
                    .map_err(|_| ended(format!("no event for {} s", EVENT.as_secs())))?
                    .map_err(|error| ended(error.to_string()))?
                    .ok_or_else(|| ended("the server closed it".to_owned()))?;
                if answer.compact_revision() > 0 {
                    let why = format!("the source compacted its history at {}", answer.compact_revision());
                    return Err(MigrateError::Again(why));
                }
                if answer.canceled() {
                    return Err(ended(answer.cancel_reason().to_owned()));
                }
                for event in answer.events() {
                    let Some(kv) = event.kv() else { continue };
                    applied = applied.max(Revision(kv.mod_revision()));
                    if !self.span.contains(kv.key()) {
                        continue;
                    }
                    match event.event_type() {
                        EventType::Put => {
                            let lease = self.leases.ensure(kv.lease()).await?;
                            writer.put(Item { lease, ..Item::from(kv) }).await?;
                        }
                        EventType::Delete => writer.delete(kv.key().to_vec()).await?,
                    }
                }
                self.leases.renew(false).await?;
            }
            writer.flush().await?;
            current = self.from.revision().await?;
            if applied == current {
                break;
            }
        }
        (self.tell)(Step::Following { applied, current });
        Ok(applied)
    }

    /// Reads both sides and compares every key, value and lease.
    async fn prove(&mut self, revision: Revision) -> Result<Proof, MigrateError> {
        let mut merge = Merge::new(self.from, revision, self.to, &self.span);
        let mut ranges: Vec<Same> = Vec::new();
        let mut keys = 0;
        let mut differ = 0u64;
        let mut example = None;
        (self.tell)(Step::Comparing { keys });
        while let Some((source, target)) = merge.next().await? {
            if source != target {
                differ += 1;
                example = example.or_else(|| source.or(target).map(|item| item.key));
                continue;
            }
            let Some(Item { key, value, lease }) = target else { continue };
            keys += 1;
            if keys % RANGE == 1 {
                ranges.push(Same { first: key.clone(), last: Vec::new(), keys: 0, bytes: 0, crc: 0 });
                (self.tell)(Step::Comparing { keys });
                self.leases.renew(false).await?;
            }
            if let Some(range) = ranges.last_mut() {
                range.keys += 1;
                range.bytes += (key.len() + value.len()) as u64;
                // With the lengths, so that nothing can move from one to the other.
                for part in [&key, &value] {
                    range.crc = crc32c(crc32c(range.crc, &(part.len() as u64).to_be_bytes()), part);
                }
                range.crc = crc32c(range.crc, &lease.to_be_bytes());
                range.last = key;
            }
        }
        if let Some(example) = example {
            let why = format!("{differ} keys differ, {} among them", example.escape_ascii());
            return Err(MigrateError::Again(why));
        }
        (self.tell)(Step::Comparing { keys });
        Ok(Proof {
            revision,
            target: self.to.revision().await?,
            source_now: self.from.revision().await?,
            keys,
            leases: self.leases.alive().await?,
            access: self.access.clone(),
            ranges,
        })
    }
}
