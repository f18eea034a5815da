//! nginx, kept in step with the registered services: `core::router` says when, the `nginx` crate does it.
//!
//! Invariant: while the hub is away, and whenever nginx refuses, the last good endpoints stay.

use super::{
    applied::{Inflight, Reporter},
    steady::{Served, Services, sleep_until},
};
use anyhow::Result;
use model::{Revision, ServiceName};
use muster_core::router::{Batch, Effect, Pace};
use nginx::Nginx;
use render::{Applied, Data, KeyTree};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;
use tracing::{info, warn};

/// After a failure: how long until it is tried again although nothing changed, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// For how long nginx may still send requests to where it was told not to: its old workers accept some until they are
/// told to stop, which is a tenth of a second after the new ones answer. What they have begun by then they finish, and
/// nobody can tell how much that is.
const WORKERS: Duration = Duration::from_millis(500);

/// What changed since it was last looked at, and what came of applying.
pub(super) struct Pacer {
    begin: Instant,
    batch: Batch,
    pace: Pace,
    seen: Served,
    retry: Option<(Instant, Duration)>,
    said: String,
}

impl Pacer {
    pub(super) fn new(pace: Pace) -> Self {
        Self {
            begin: Instant::now(),
            batch: Batch::default(),
            pace,
            seen: Served::default(),
            retry: None,
            said: String::new(),
        }
    }

    /// When there is something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        let due = self.batch.due(&self.pace).map(|due| self.begin + due);
        let retry = self.retry.map(|(at, _)| at);
        // After a failure a change is no reason to hurry.
        due.map(|due| retry.map_or(due, |retry| due.max(retry.min(due + self.pace.interval)))).or(retry)
    }

    /// Takes in what is served now.
    pub(super) fn hear(&mut self, served: &Served) {
        if !served.known {
            return;
        }
        // The first of it is applied in any case: what is shown so far is not known.
        let effect =
            if self.seen.known { served.catalog.effect_since(&self.seen.catalog) } else { Effect::Removed };
        self.batch.note(self.begin.elapsed(), effect);
        self.seen = served.clone();
    }

    /// Something beside the services changed.
    pub(super) fn note(&mut self) {
        self.batch.note(self.begin.elapsed(), Effect::Added);
    }

    pub(super) fn seen(&self) -> &Served {
        &self.seen
    }

    /// Nothing waits to be applied.
    pub(super) fn is_even(&self) -> bool {
        self.seen.known && !self.batch.is_pending() && self.retry.is_none()
    }

    pub(super) fn succeeded(&mut self) {
        self.batch.applied(&self.pace, self.begin.elapsed());
        self.retry = None;
        self.said.clear();
    }

    /// Backs off; true if the error is another one than last time.
    pub(super) fn failed(&mut self, error: &str, most: Duration) -> bool {
        self.batch.applied(&self.pace, self.begin.elapsed());
        let pause = self.retry.map_or(RETRY.0, |(_, pause)| pause * 2).min(most);
        self.retry = Some((Instant::now() + pause, pause));
        let new = self.said != error;
        error.clone_into(&mut self.said);
        new
    }
}

pub(super) async fn run(mut services: Services, mut nginx: Nginx, reporter: Reporter) -> Result<()> {
    let mut pacer = Pacer::new(Pace::default());
    let mut quarantined: BTreeMap<ServiceName, String> = BTreeMap::new();
    // Applied, and to be told when nginx's workers are over it.
    let mut telling: Option<(Instant, Revision)> = None;
    loop {
        let (due, tell) = (pacer.due(), telling.map(|(at, _)| at));
        tokio::select! {
            changed = services.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                pacer.hear(&services.borrow_and_update());
                if pacer.is_even() && telling.is_none() {
                    reporter.report(pacer.seen().revision, Inflight::new());
                }
            }
            () = sleep_until(tell) => if let Some((_, revision)) = telling.take() {
                let revision = if pacer.is_even() { pacer.seen().revision } else { revision };
                reporter.report(revision, Inflight::new());
            },
            () = sleep_until(due) => {
                let served = pacer.seen().clone();
                let data = Data::new(&served.catalog, KeyTree::default());
                match nginx.apply(&data).await {
                    Ok(report) => {
                        pacer.succeeded();
                        for (service, why) in report.quarantined.iter().filter(|(name, why)| quarantined.get(*name) != Some(*why)) {
                            warn!(%service, why, "nginx refuses what the service says: it stays as it was, the others go on");
                        }
                        quarantined = report.quarantined;
                        if report.postponed {
                            pacer.note();
                        }
                        if report.applied == Applied::Changed {
                            let endpoints: usize = data.services.iter().map(|service| service.endpoints.len()).sum();
                            info!(services = data.services.len(), endpoints, "nginx reloaded");
                        }
                        telling = Some((Instant::now() + WORKERS, served.revision));
                    }
                    Err(error) => {
                        // Nobody is served by an nginx that does not run: as soon as it does, it is to know.
                        let most = if matches!(error, render::Error::NotRunning(_)) { RETRY.0 * 2 } else { RETRY.1 };
                        let error = format!("{:#}", anyhow::Error::new(error));
                        if pacer.failed(&error, most) {
                            warn!(error, "nginx does not show the newest endpoints, trying on");
                        }
                    }
                }
            }
        }
    }
}
