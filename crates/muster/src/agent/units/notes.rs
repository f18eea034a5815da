//! What the agent writes down: what it has done since boot (in `/run`, gone with the boot), and the last schedule
//! that it knew (on disk, for a boot without the hub).
//!
//! Invariant: the last schedule is that of the cluster it names; what was remembered of another is nothing.

use super::{super::write_file, file::File};
use crate::config::STATE_DIR;
use model::{DesiredState, RECORD_VERSION, UnitName};
use muster_core::agent::{Done, Wanted};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::sync::watch;
use tracing::warn;

/// Between writes of the schedule: a burst of a hundred orders costs a few.
const PACE: Duration = Duration::from_millis(500);

/// The last known schedule.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Schedule {
    v: u32,
    /// The cluster's id, as in the file `cluster` beside it.
    cluster: String,
    units: BTreeMap<UnitName, Entry>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Entry {
    hash: String,
    desired: DesiredState,
    launch: u64,
    text: Option<String>,
}

/// Files by their units.
pub(super) type Files = BTreeMap<UnitName, File>;

impl Schedule {
    /// What should be remembered.
    pub(super) fn new(cluster: String, wanted: &BTreeMap<UnitName, Wanted>, files: &Files) -> Self {
        let entry = |(unit, wanted): (&UnitName, &Wanted)| {
            let Wanted { hash, desired, launch } = wanted.clone();
            let text = files.get(unit).filter(|file| file.hash == hash).map(|file| file.text.to_string());
            (unit.clone(), Entry { hash, desired, launch, text })
        };
        Self { v: RECORD_VERSION, cluster, units: wanted.iter().map(entry).collect() }
    }

    /// What is remembered of `cluster`; nothing where nothing can be read.
    pub(super) fn remembered(cluster: &str) -> Self {
        let read = || serde_json::from_slice::<Self>(&std::fs::read(path()).ok()?).ok();
        read().filter(|schedule| schedule.cluster == cluster).unwrap_or_default()
    }

    /// The units whose files are known too, and these files.
    pub(super) fn wanted(&self) -> (BTreeMap<UnitName, Wanted>, Files) {
        let known = self.units.iter().filter_map(|(unit, entry)| {
            let Entry { hash, desired, launch, text } = entry.clone();
            let file = File { hash: hash.clone(), ..File::new(unit, text?.into()) };
            Some(((unit.clone(), Wanted { hash, desired, launch }), (unit.clone(), file)))
        });
        known.unzip()
    }
}

fn path() -> PathBuf {
    Path::new(STATE_DIR).join("schedule.json")
}

/// Writes what there is to remember, for ever.
pub(super) async fn remember(mut schedule: watch::Receiver<Option<Schedule>>) {
    while schedule.changed().await.is_ok() {
        let Some(schedule) = schedule.borrow_and_update().clone() else { continue };
        let text = serde_json::to_string(&schedule).expect("names, numbers and texts always render");
        let written = tokio::task::spawn_blocking(move || write_durably(&path(), &text)).await;
        if let Ok(Err(error)) = written {
            warn!(%error, "schedule not remembered: without the hub, a reboot will start an older one");
        }
        tokio::time::sleep(PACE).await;
    }
}

/// As `write_file`, and a power cut leaves the old or the new text.
fn write_durably(path: &Path, text: &str) -> std::io::Result<()> {
    let staged = path.with_extension("new");
    let mut file = std::fs::File::create(&staged)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&staged, path)
}

/// What was done since boot.
pub(super) struct Notes {
    path: PathBuf,
}

impl Notes {
    pub(super) fn new(run: &Path) -> Self {
        Self { path: run.join("units.json") }
    }

    /// Keeps `done` for the next run of this daemon.
    pub(super) fn write(&self, done: &BTreeMap<UnitName, Done>) {
        let text = serde_json::to_string(done).expect("names and numbers always render");
        if let Err(error) = write_file(&self.path, &text) {
            warn!(%error, "what was done is not noted: a restarted daemon may start ended units again");
        }
    }

    /// What an earlier run did, with the files: from its notes, or where they are lost from the files themselves.
    /// Then the orders that were remembered count as carried out. Notes are there from the daemon's first start on, so
    /// that a run which was killed between loading and noting is not taken for one whose notes are lost.
    pub(super) fn recover(
        &self,
        directory: &Path,
        remembered: &Schedule,
    ) -> (BTreeMap<UnitName, Done>, Files) {
        let noted = std::fs::read_to_string(&self.path).ok();
        let noted: Option<BTreeMap<UnitName, Done>> = noted.and_then(|text| serde_json::from_str(&text).ok());
        let lost = noted.is_none();
        let (mut done, mut files) = (noted.unwrap_or_default(), Files::new());
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let Some(unit) = entry.file_name().to_str().and_then(|name| name.parse::<UnitName>().ok()) else {
                continue;
            };
            let Ok(text) = std::fs::read_to_string(entry.path()) else { continue };
            let file = File::new(&unit, unit::drain::without_drain(&text).into());
            // Notes that are there lack only what a killed run had loaded and not started yet.
            let remembered = remembered.units.get(&unit).filter(|_| lost);
            let launch = remembered.filter(|entry| entry.hash == file.hash);
            let launch = launch.map_or(0, |entry| entry.launch);
            done.entry(unit.clone())
                .or_insert_with(|| Done { hash: file.hash.clone(), launch, ..Done::default() })
                .fenced = file.fenced;
            files.insert(unit, file);
        }
        (done, files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "[Service]\nExecStart=/bin/a\n[X-Fleet]\nOnPartition=stop\n";

    #[test]
    fn a_schedule_is_remembered_with_the_files_that_are_known() {
        let (known, unknown): (UnitName, UnitName) =
            ("a.service".parse().expect("a name"), "b.service".parse().expect("a name"));
        let file = File::new(&known, TEXT.into());
        let hash = file.hash.clone();
        let want = |hash: &str| Wanted { hash: hash.to_owned(), desired: DesiredState::Launched, launch: 3 };
        let wanted = BTreeMap::from([(known.clone(), want(&hash)), (unknown, want("other"))]);
        let files = Files::from([(known.clone(), file)]);
        let schedule = Schedule::new("c".to_owned(), &wanted, &files);
        let text = serde_json::to_string(&schedule).expect("renders");
        let back: Schedule = serde_json::from_str(&text).expect("parses");
        let (wanted, files) = back.wanted();
        assert_eq!(wanted, BTreeMap::from([(known.clone(), want(&hash))]));
        assert_eq!(&*files[&known].text, TEXT);
    }

    #[test]
    fn an_earlier_run_is_found_again_with_and_without_its_notes() {
        let run = tempfile::tempdir().expect("a directory");
        let units = run.path().join("units");
        std::fs::create_dir(&units).expect("made");
        std::fs::write(units.join("a.service"), TEXT).expect("written");
        let unit: UnitName = "a.service".parse().expect("a name");
        let hash = File::new(&unit, TEXT.into()).hash;
        let notes = Notes::new(run.path());
        let recovered = |remembered: &Schedule| notes.recover(&units, remembered).0[&unit].clone();
        let lost = recovered(&Schedule::default());
        assert_eq!((lost.launch, lost.fenced, &lost.hash), (0, true, &hash));
        let wanted = Wanted { hash: hash.clone(), desired: DesiredState::Launched, launch: 3 };
        let remembered =
            Schedule::new("c".to_owned(), &BTreeMap::from([(unit.clone(), wanted)]), &Files::new());
        assert_eq!(recovered(&remembered).launch, 3, "what was ordered counts as done");
        let done = Done { hash, launch: 5, rested: true, fenced: false };
        notes.write(&BTreeMap::from([(unit.clone(), done.clone())]));
        assert_eq!(recovered(&remembered), Done { fenced: true, ..done });
    }
}
