//! Leases on the target that live as long as their originals.
//!
//! Same ids. Invariant: a copy is renewed when and only when its original was: what died on the source dies on the target.

use super::{LeaseTime, MigrateError, Migration};
use crate::remote::Remote;
use etcd_client::{Error, LeaseGrantOptions};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Between two looks at leases that are about to end.
const LOOK: Duration = Duration::from_millis(500);

/// What a clock of whole seconds may be wrong by.
const ROUNDING: Duration = Duration::from_secs(1);

pub(super) struct Leases<'a> {
    from: &'a Remote,
    to: &'a Remote,
    time: LeaseTime,
    /// All of the source's, or those of copied keys only.
    all: bool,
    copies: BTreeMap<i64, Copied>,
    next_look: Instant,
}

/// A lease on the target.
#[derive(Clone, Copy)]
struct Copied {
    granted: Duration,
    deadline: Instant,
}

impl<'a> Leases<'a> {
    pub(super) fn new(from: &'a Remote, to: &'a Remote, migration: &Migration) -> Self {
        Self {
            from,
            to,
            time: migration.leases,
            all: migration.prefix.is_empty(),
            copies: BTreeMap::new(),
            next_look: Instant::now(),
        }
    }

    /// Copies those without keys too.
    pub(super) async fn copy_all(&mut self) -> Result<(), MigrateError> {
        if self.all {
            for id in ids(self.from).await? {
                self.ensure(id).await?;
            }
        }
        Ok(())
    }

    /// Makes sure that the lease is there; tells which one to attach to: none if the original is gone, for then its
    /// keys are about to go too.
    pub(super) async fn ensure(&mut self, id: i64) -> Result<i64, MigrateError> {
        if id == 0 || self.copies.contains_key(&id) {
            return Ok(id);
        }
        let Some((left, granted)) = time_to_live(self.from, id).await? else { return Ok(0) };
        let ttl = match self.time {
            LeaseTime::Remaining => left,
            LeaseTime::Granted => granted,
        };
        let mut client = self.to.client.lease_client();
        let options = LeaseGrantOptions::new().with_id(id);
        let copied = match client
            .grant(i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX).max(1), Some(options))
            .await
        {
            Ok(answer) => {
                let granted = seconds(answer.ttl());
                Copied { granted, deadline: Instant::now() + granted }
            }
            // From an attempt before, or from a migration before.
            Err(Error::GRpcStatus(status)) if status.message() == mvcc::Error::LeaseExists.to_string() => {
                let gone = || MigrateError::Again("a lease ran out on the target".to_owned());
                let (left, granted) = time_to_live(self.to, id).await?.ok_or_else(gone)?;
                Copied { granted, deadline: Instant::now() + left }
            }
            Err(error) => self.to.ask("grant a lease", async { Err(error) }).await?,
        };
        self.copies.insert(id, copied);
        Ok(id)
    }

    /// Renews copies whose originals were renewed: those that have less than half their time, every now and then; or
    /// `all` of them, now.
    pub(super) async fn renew(&mut self, all: bool) -> Result<(), MigrateError> {
        if !all && Instant::now() < self.next_look {
            return Ok(());
        }
        for (id, copied) in &mut self.copies {
            let now = Instant::now();
            if !all && copied.deadline.saturating_duration_since(now) > copied.granted / 2 {
                continue;
            }
            let Some((left, _)) = time_to_live(self.from, *id).await? else { continue };
            if now + left <= copied.deadline + ROUNDING {
                continue;
            }
            let mut client = self.to.client.lease_client();
            let renewal = async {
                let (mut keeper, mut answers) = client.keep_alive(*id).await?;
                keeper.keep_alive().await?;
                answers.message().await
            };
            let answer = self.to.ask("renew a lease", renewal).await?;
            if answer.is_none_or(|answer| answer.ttl() == 0) {
                self.copies.clear(); // to be copied anew, those that are there being found to be
                return Err(MigrateError::Again("a lease ran out on the target".to_owned()));
            }
            copied.deadline = now + copied.granted;
        }
        self.next_look = Instant::now() + LOOK;
        Ok(())
    }

    /// How many there are on both sides.
    pub(super) async fn alive(&self) -> Result<u64, MigrateError> {
        let (source, target) = (ids(self.from).await?, ids(self.to).await?);
        Ok(self.copies.keys().filter(|id| source.contains(id) && target.contains(id)).count() as u64)
    }
}

async fn ids(remote: &Remote) -> Result<BTreeSet<i64>, MigrateError> {
    let mut client = remote.client.lease_client();
    let answer = remote.ask("list its leases", client.leases()).await?;
    Ok(answer.leases().iter().map(etcd_client::LeaseStatus::id).collect())
}

/// What remains and what was granted; none if there is no such lease.
async fn time_to_live(remote: &Remote, id: i64) -> Result<Option<(Duration, Duration)>, MigrateError> {
    let mut client = remote.client.lease_client();
    let answer = remote.ask("tell a lease's time", client.time_to_live(id, None)).await?;
    Ok((answer.ttl() >= 0).then(|| (seconds(answer.ttl()), seconds(answer.granted_ttl()))))
}

fn seconds(ttl: i64) -> Duration {
    Duration::from_secs(ttl.max(0).unsigned_abs())
}
