//! What systemd was asked for and has not finished: until a job has ended and its unit's state was read after that,
//! what is known of the unit may be from before.
//!
//! Not here: asking and reading. Invariant: a unit that was asked to start does not count as dead, and one that was
//! asked to stop does not count as alive, by news that is older than the job's end.

use model::UnitName;
use muster_core::agent::Activity;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::time::Instant;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Start,
    Stop,
}

#[derive(Debug)]
struct Job {
    kind: Kind,
    since: Instant,
    /// Known when systemd has answered.
    id: Option<u32>,
    /// Jobs of the unit that ended before that: signals and answers come by different ways.
    early: Vec<u32>,
    over: bool,
}

/// Jobs under way, by unit.
#[derive(Debug, Default)]
pub(super) struct Jobs(BTreeMap<UnitName, Job>);

impl Jobs {
    /// systemd is asked to start a unit.
    pub(super) fn start(&mut self, unit: &UnitName) {
        self.ask(unit, Kind::Start);
    }

    /// systemd is asked to stop a unit.
    pub(super) fn stop(&mut self, unit: &UnitName) {
        self.ask(unit, Kind::Stop);
    }

    fn ask(&mut self, unit: &UnitName, kind: Kind) {
        let job = Job { kind, since: Instant::now(), id: None, early: Vec::new(), over: false };
        self.0.insert(unit.clone(), job);
    }

    /// systemd has answered: this is the job. True if it is over already: what was read since its end did not count, and
    /// nothing else will have the unit's state read.
    pub(super) fn queued(&mut self, unit: &UnitName, id: u32) -> bool {
        let Some(job) = self.0.get_mut(unit) else { return false };
        job.id = Some(id);
        job.over |= std::mem::take(&mut job.early).contains(&id);
        job.over
    }

    /// A job of the unit has ended; true if that was the start that is under way.
    pub(super) fn ended(&mut self, unit: &UnitName, id: u32) -> bool {
        let Some(job) = self.0.get_mut(unit) else { return false };
        match job.id {
            Some(known) => job.over |= known == id,
            None => job.early.push(id),
        }
        // One whose number is not known yet may be it.
        job.kind == Kind::Start && (job.over || job.id.is_none())
    }

    /// These units' states were read, and nothing has happened to them since the question.
    pub(super) fn read(&mut self, units: &BTreeSet<UnitName>) {
        self.0.retain(|unit, job| !(job.over && units.contains(unit)));
    }

    /// The unit's job came to nothing, or the unit is gone.
    pub(super) fn forget(&mut self, unit: &UnitName) {
        self.0.remove(unit);
    }

    /// systemd's word that a job has ended can be lost: those that were asked for so long ago count as ended.
    pub(super) fn give_up(&mut self, after: Duration) {
        self.0.values_mut().for_each(|job| job.over |= job.since.elapsed() >= after);
    }

    /// Whether a start is under way.
    pub(super) fn starts(&self, unit: &UnitName) -> bool {
        self.0.get(unit).is_some_and(|job| job.kind == Kind::Start)
    }

    /// What the unit does, given what was read of it last.
    pub(super) fn activity(&self, unit: &UnitName, seen: Activity) -> Activity {
        match (self.0.get(unit).map(|job| job.kind), seen) {
            (Some(Kind::Start), Activity::Dead) => Activity::Alive,
            (Some(Kind::Stop), Activity::Alive) => Activity::Stopping,
            (_, seen) => seen,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit() -> UnitName {
        "a.service".parse().expect("a name")
    }

    #[test]
    fn a_job_whose_number_comes_after_its_end_and_a_reading_is_read_again() {
        let (mut jobs, unit) = (Jobs::default(), unit());
        let all = BTreeSet::from([unit.clone()]);
        jobs.start(&unit);
        assert!(jobs.ended(&unit, 7));
        jobs.read(&all);
        assert!(jobs.starts(&unit), "it may be another job that has ended");
        assert!(jobs.queued(&unit, 7), "its state must be read once more");
        jobs.read(&all);
        assert!(!jobs.starts(&unit));
        jobs.start(&unit);
        assert!(!jobs.queued(&unit, 8), "it has not ended");
    }

    #[test]
    fn inactive_from_before_a_start_is_not_believed() {
        let (mut jobs, unit) = (Jobs::default(), unit());
        let all = BTreeSet::from([unit.clone()]);
        jobs.start(&unit);
        assert_eq!(jobs.activity(&unit, Activity::Dead), Activity::Alive);
        jobs.read(&all);
        assert!(jobs.starts(&unit), "read while systemd had not answered");
        // The stop before it ends late, by news of its own.
        jobs.queued(&unit, 7);
        assert!(!jobs.ended(&unit, 6));
        jobs.read(&all);
        assert!(jobs.starts(&unit), "that was another job");
        assert!(jobs.ended(&unit, 7));
        assert_eq!(jobs.activity(&unit, Activity::Dead), Activity::Alive, "not read since");
        jobs.read(&all);
        assert_eq!(jobs.activity(&unit, Activity::Dead), Activity::Dead, "it has ended by itself");
    }

    #[test]
    fn the_end_of_a_job_may_come_before_its_number() {
        let (mut jobs, unit) = (Jobs::default(), unit());
        jobs.start(&unit);
        jobs.ended(&unit, 6);
        jobs.ended(&unit, 7);
        jobs.queued(&unit, 7);
        jobs.read(&BTreeSet::from([unit.clone()]));
        assert!(!jobs.starts(&unit));
    }

    #[test]
    fn a_unit_is_not_asked_twice_to_stop() {
        let (mut jobs, unit) = (Jobs::default(), unit());
        jobs.stop(&unit);
        assert_eq!(jobs.activity(&unit, Activity::Alive), Activity::Stopping, "`active` is from before");
        assert_eq!(jobs.activity(&unit, Activity::Dead), Activity::Dead);
        jobs.queued(&unit, 3);
        assert!(!jobs.ended(&unit, 3));
        jobs.read(&BTreeSet::from([unit.clone()]));
        assert_eq!(
            jobs.activity(&unit, Activity::Alive),
            Activity::Alive,
            "it was started again by somebody"
        );
    }

    #[test]
    fn a_job_whose_end_nobody_told_of_is_given_up() {
        let (mut jobs, unit) = (Jobs::default(), unit());
        jobs.start(&unit);
        jobs.give_up(Duration::from_secs(3600));
        jobs.read(&BTreeSet::from([unit.clone()]));
        assert!(jobs.starts(&unit));
        jobs.give_up(Duration::ZERO);
        jobs.read(&BTreeSet::from([unit.clone()]));
        assert!(!jobs.starts(&unit));
    }
}
