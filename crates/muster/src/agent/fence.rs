//! The daemon's side of the fence: the note for the watcher (`muster fence`), and the watcher's service.
//!
//! Invariant: the note's time is never later than the hub's own end of the lease, and it names every fenced unit
//! before that unit is started.

use super::write_file;
use crate::fence::{self, Note};
use anyhow::Context;
use model::{LeaseId, UnitName};
use registry::Acknowledged;
use std::{collections::BTreeSet, time::Duration};
use systemd::{Systemd, SystemdError};
use tokio::{sync::watch, time::Instant};
use tracing::{info, warn};

/// With less time than this left of the lease nothing is started: it might be up only to be stopped again.
const MARGIN: Duration = Duration::from_millis(500);
/// Between attempts to start the watcher.
const AGAIN: Duration = Duration::from_secs(1);

pub(super) struct Fence {
    acknowledged: watch::Receiver<Option<Acknowledged>>,
    /// What the watcher was told last, and by which word of the hub.
    note: Note,
    word: Option<Acknowledged>,
    watcher: Watcher,
}

enum Watcher {
    Off,
    Starting,
    Runs,
    Failed { error: String, at: Instant },
}

impl Fence {
    pub(super) fn new(acknowledged: watch::Receiver<Option<Acknowledged>>) -> Self {
        // The time that an earlier run of this daemon was given still counts.
        let note = Note::read().unwrap_or_default();
        Self { acknowledged, note, word: None, watcher: Watcher::Off }
    }

    /// Waits for the hub's next word on the lease; for ever when no unit here is fenced.
    pub(super) async fn news(&mut self) {
        if self.note.units.is_empty() || self.acknowledged.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether a fenced unit may be started under `lease`.
    pub(super) fn leased(&self, lease: Option<LeaseId>) -> bool {
        let acknowledged = *self.acknowledged.borrow();
        let good = acknowledged
            .is_some_and(|word| Some(word.lease) == lease && word.until > Instant::now() + MARGIN);
        good && matches!(self.watcher, Watcher::Runs)
    }

    /// Notes how long `units` may run. True when the watcher has to be started.
    pub(super) fn update(&mut self, units: &BTreeSet<UnitName>) -> bool {
        let word = *self.acknowledged.borrow_and_update();
        match self.write(units, word) {
            Ok(()) => {}
            Err(error) => {
                warn!(
                    error = format!("{error:#}"),
                    "the fence has no news: units with OnPartition=stop will be stopped"
                );
            }
        }
        let start = match &self.watcher {
            Watcher::Off => true,
            Watcher::Failed { at, .. } => at.elapsed() >= AGAIN,
            Watcher::Starting | Watcher::Runs => false,
        };
        let start = start && !units.is_empty();
        if start {
            self.watcher = Watcher::Starting;
        }
        start
    }

    fn write(&mut self, units: &BTreeSet<UnitName>, word: Option<Acknowledged>) -> anyhow::Result<()> {
        let mut note = Note { until: self.note.until, units: units.clone() };
        if let Some(word) = word.filter(|_| word != self.word) {
            // Rounded down, and read first: whatever comes between, the time is not too late.
            let now = fence::uptime()?;
            let left = word.until.saturating_duration_since(Instant::now());
            note.until = u64::try_from((now + left).as_millis()).unwrap_or(u64::MAX);
        }
        if note != self.note {
            let text = serde_json::to_string(&note).context("a note always renders")?;
            write_file(&Note::path(), &text)?;
            self.note = note;
        }
        self.word = word;
        Ok(())
    }

    /// Starts the watcher.
    pub(super) async fn arm(systemd: Systemd) -> Result<(), String> {
        let program = std::env::current_exe().map_err(|error| format!("own program not found: {error}"))?;
        let program = program.to_str().ok_or("the path of the own program is no UTF-8")?;
        // So Linux calls a file that an update has replaced; the new one is as good.
        let program = program.strip_suffix(" (deleted)").unwrap_or(program);
        let unit = fence::UNIT.parse().expect("the constant is a unit's name");
        let description = "Muster's fence: stops units that may not outlive the machine's lease";
        let started = systemd.run_transient(&unit, description, &[program, "fence"], fence::WATCHDOG).await;
        started.map_err(|error: SystemdError| error.to_string())
    }

    pub(super) fn armed(&mut self, outcome: Result<(), String>) {
        self.watcher = match outcome {
            Ok(()) => {
                info!("fence armed");
                Watcher::Runs
            }
            Err(error) => {
                warn!(error, "the fence's watcher does not run");
                Watcher::Failed { error, at: Instant::now() }
            }
        };
    }

    /// Why the watcher does not run, and when to try again.
    pub(super) fn error(&self) -> Option<&str> {
        match &self.watcher {
            Watcher::Failed { error, .. } => Some(error),
            _ => None,
        }
    }

    /// When the watcher should be started again.
    pub(super) fn retry(&self) -> Option<Instant> {
        match &self.watcher {
            Watcher::Failed { at, .. } => Some(*at + AGAIN),
            _ => None,
        }
    }
}

/// True once for a unit that the fence has stopped.
pub(super) fn was_stopped(unit: &UnitName) -> bool {
    std::fs::remove_file(fence::mark(unit)).is_ok()
}
