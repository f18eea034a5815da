//! Rollouts: which unit gets its new text next, and when to give the former one back.
//!
//! Level-triggered: each step follows from the record in the hub and from what the cluster looks like, so that a new
//! leader goes on where the old one was; only patience begins anew with it. Not here: writing. Invariants: a rollout
//! takes no unit out of service while as many as it may are out of service already; it gives back only what it
//! replaced, and only where nobody else has replaced it since.

mod look;

use crate::cluster::Cluster;
use look::{Look, looks};
use model::{
    DesiredState, Progress, RolloutRecord, RolloutState, RolloutUnit, Timestamp, UnitName,
    rollout::KEPT_VERSIONS,
};
use std::{collections::BTreeMap, time::Duration};

/// Units that are written in one step: with guards and history they must fit into one transaction of etcd, which
/// takes 128 operations.
const BATCH: usize = 20;
/// An error, or no machine that fits, counts when it lasts this long: shorter ones are only the order of events.
const GRACE: Duration = Duration::from_secs(2);

/// A write to a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Gives it the next text; a template that the cluster does not know is made.
    Replace {
        /// Which unit.
        unit: UnitName,
        /// The text.
        text: String,
        /// Its hash.
        hash: String,
    },
    /// Gives it its former text back, as if it had never been replaced.
    Restore {
        /// Which unit.
        unit: UnitName,
        /// The text.
        text: String,
        /// Its hash.
        hash: String,
    },
    /// Starts it again, because what it follows has been replaced.
    Relaunch {
        /// Which unit.
        unit: UnitName,
    },
}

/// Something to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The unit, or the rollout's name.
    pub unit: UnitName,
    /// Why.
    pub reason: String,
    /// The whole.
    pub message: String,
}

/// What a step comes to: to be written in one transaction.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// The rollout after it.
    pub record: RolloutRecord,
    /// Units to write.
    pub changes: Vec<Change>,
    /// What to tell when that is written.
    pub notices: Vec<Notice>,
    /// When to decide again at the latest.
    pub wake: Option<Timestamp>,
}

/// One rollout's patience with its units.
#[derive(Debug, Default)]
pub struct Rollout {
    watches: BTreeMap<UnitName, Watch>,
}

/// What was seen of a unit.
#[derive(Debug, Clone, Copy)]
struct Watch {
    progress: Progress,
    /// Not in order since then, or in order until then.
    since: Timestamp,
    /// In order since then.
    good: Option<Timestamp>,
    /// With an error since then.
    trouble: Option<Timestamp>,
}

impl Rollout {
    /// What to do now. The same again, until it is written or something has changed.
    pub fn step(
        &mut self,
        now: Timestamp,
        name: &UnitName,
        record: &RolloutRecord,
        cluster: &Cluster,
    ) -> Decision {
        let mut record = record.clone();
        if matches!(record.state, RolloutState::Running | RolloutState::Paused) {
            join(name, &mut record, cluster);
        }
        let looks = looks(cluster, record.units.iter().map(|entry| &entry.unit));
        let state = record.state;
        let decision = Decision { record, changes: Vec::new(), notices: Vec::new(), wake: None };
        let mut turn = Turn { now, name, cluster, looks, watches: &mut self.watches, decision, started: 0 };
        match state {
            RolloutState::Running | RolloutState::Paused => turn.forward(),
            RolloutState::RollingBack => turn.back(),
            RolloutState::Done | RolloutState::Failed | RolloutState::RolledBack => {}
        }
        turn.decision
    }
}

/// How long a unit has been as it is.
enum Standing {
    /// In order, and for long enough.
    Settled,
    /// In order, or it may still become so.
    Going,
    /// It will not become so, or not in time.
    Lost(String),
}

struct Turn<'a> {
    now: Timestamp,
    name: &'a UnitName,
    cluster: &'a Cluster,
    /// How its units look.
    looks: BTreeMap<UnitName, Look>,
    watches: &'a mut BTreeMap<UnitName, Watch>,
    decision: Decision,
    /// Units that this step takes out of service.
    started: usize,
}

impl Turn<'_> {
    fn record(&self) -> &RolloutRecord {
        &self.decision.record
    }

    fn entry(&mut self, index: usize) -> &mut RolloutUnit {
        &mut self.decision.record.units[index]
    }

    fn tell(&mut self, unit: UnitName, reason: impl Into<String>, message: String) {
        self.decision.notices.push(Notice { unit, reason: reason.into(), message });
    }

    /// The new text goes on.
    fn forward(&mut self) {
        let mut failure = None;
        for index in 0..self.record().units.len() {
            if let Some(why) = self.advance(index) {
                failure.get_or_insert((index, why));
            }
        }
        if let Some((index, why)) = failure {
            return self.fail(index, &why);
        }
        if self.record().state == RolloutState::Paused {
            return;
        }
        self.replace_next();
        let over = |unit: &RolloutUnit| match unit.progress {
            Progress::Ready => unit.former.is_none() || self.in_order(unit),
            Progress::Gone => true,
            _ => false,
        };
        if self.record().units.iter().all(over) {
            self.finish();
        }
    }

    /// Takes in how far a unit is; gives why the rollout fails.
    fn advance(&mut self, index: usize) -> Option<String> {
        let entry = self.record().units[index].clone();
        let unit = entry.unit.clone();
        let Some(known) = self.cluster.units.get(&unit) else {
            if entry.progress != Progress::Gone {
                self.entry(index).progress = Progress::Gone;
                self.entry(index).message = "it was destroyed meanwhile".to_owned();
            }
            return None;
        };
        match entry.progress {
            Progress::Waiting if known.record.hash == self.record().hash => {
                self.entry(index).progress = Progress::Ready;
                self.entry(index).message = "it has that text already".to_owned();
                None
            }
            // What it did not replace is not its concern, and has failed by itself if it has.
            Progress::Ready if entry.former.is_none() => None,
            Progress::Updating | Progress::Ready => {
                if known.record.hash != self.record().hash {
                    return Some("it was replaced by somebody else meanwhile".to_owned());
                }
                self.restart_followers(index);
                let on = self.machine(&unit);
                match self.standing(&entry) {
                    Standing::Lost(why) => return Some(why),
                    Standing::Settled if entry.progress == Progress::Updating => {
                        if self.record().units[index].followers.is_empty() {
                            let entry = self.entry(index);
                            (entry.progress, entry.machine) = (Progress::Ready, on.clone());
                            self.tell(
                                unit.clone(),
                                "ready",
                                format!("{unit} is ready with its new text{}", at(&on)),
                            );
                        }
                    }
                    Standing::Settled | Standing::Going => {}
                }
                None
            }
            _ => None,
        }
    }

    /// Units that followed this one and have stopped with it are started again once it is there.
    fn restart_followers(&mut self, index: usize) {
        let entry = self.record().units[index].clone();
        if entry.followers.is_empty() || !self.in_order(&entry) {
            return;
        }
        let mut left = Vec::new();
        for follower in entry.followers {
            let launched = |unit: &&UnitName| {
                let known = self.cluster.units.get(*unit);
                known.is_some_and(|known| known.record.desired == DesiredState::Launched)
            };
            if !launched(&&follower) {
                continue;
            }
            let states = self.cluster.states.get(&follower);
            let mut states = states.into_iter().flat_map(BTreeMap::values);
            let full = self.decision.changes.len() >= BATCH;
            if full || states.clone().any(|state| state.active == "deactivating") {
                left.push(follower);
            } else if !states.any(model::UnitState::is_running) {
                let message = format!("{follower} starts again after {}", entry.unit);
                self.tell(follower.clone(), "what it follows was replaced", message);
                self.decision.changes.push(Change::Relaunch { unit: follower });
            }
        }
        self.entry(index).followers = left;
    }

    /// Gives the new text to as many as may be out of service.
    fn replace_next(&mut self) {
        let waiting = |unit: &RolloutUnit| unit.progress == Progress::Waiting;
        for index in self.worst_first(waiting) {
            if !self.may_take(index, Progress::Updating) {
                break;
            }
            let entry = self.record().units[index].clone();
            let Some(known) = self.cluster.units.get(&entry.unit) else { continue };
            let (former, former_text) = (known.record.hash.clone(), known.record.text.clone());
            let ended = matches!(self.look(&entry.unit), Look::Ended(_));
            let followers = self.running_followers(&entry.unit);
            let on = self.machine(&entry.unit);
            let (text, hash) = (self.record().text.clone(), self.record().hash.clone());
            self.decision.record.former.insert(former.clone(), former_text);
            let entry = self.entry(index);
            (entry.progress, entry.former) = (Progress::Updating, Some(former));
            (entry.ended, entry.followers, entry.machine) = (ended, followers, on.clone());
            let unit = entry.unit.clone();
            self.started += 1;
            self.tell(unit.clone(), "update", format!("{unit} gets its new text{}", at(&on)));
            self.decision.changes.push(Change::Replace { unit, text, hash });
        }
    }

    /// Units with `MachineOf=` this one that run.
    fn running_followers(&self, unit: &UnitName) -> Vec<UnitName> {
        let follows = |known: &crate::cluster::Unit| {
            known.record.desired == DesiredState::Launched
                && known
                    .requirements
                    .as_ref()
                    .is_ok_and(|requirements| requirements.machine_of.contains(unit))
        };
        let runs = |name: &UnitName| {
            let states = self.cluster.states.get(name);
            states.into_iter().flat_map(BTreeMap::values).any(model::UnitState::is_running)
        };
        let followers = self.cluster.units.iter().filter(|(name, known)| follows(known) && runs(name));
        followers.map(|(name, _)| name.clone()).collect()
    }

    /// Everything has the new text: the template gets it, too, so that new instances are made with it.
    fn finish(&mut self) {
        let (text, hash) = (self.record().text.clone(), self.record().hash.clone());
        let known = self.cluster.units.get(self.name);
        if self.name.is_template() && known.is_none_or(|known| known.record.hash != hash) {
            self.decision.changes.push(Change::Replace { unit: self.name.clone(), text, hash });
        }
        let replaced = self.record().units.iter().filter(|unit| unit.former.is_some()).count();
        let message = match replaced {
            1 => "1 unit updated".to_owned(),
            n => format!("{n} units updated"),
        };
        self.end(RolloutState::Done, message);
    }

    fn end(&mut self, state: RolloutState, message: String) {
        let record = &mut self.decision.record;
        record.state = state;
        record.message.clone_from(&message);
        // They are not needed any longer, and the record stays.
        record.former.clear();
        self.tell(self.name.clone(), state.as_str(), format!("update of {}: {message}", self.name));
    }

    /// One unit was not ready: the rollout stops.
    fn fail(&mut self, index: usize, why: &str) {
        let on = self.machine(&self.record().units[index].unit.clone());
        let entry = self.entry(index);
        entry.message = why.to_owned();
        if !on.is_empty() {
            entry.machine = on;
        }
        let message = format!("{}: {why}", entry.unit);
        if self.record().rollback {
            self.decision.record.state = RolloutState::RollingBack;
            self.decision.record.message.clone_from(&message);
            self.tell(
                self.name.clone(),
                message.clone(),
                format!("update of {} rolls back: {message}", self.name),
            );
            self.back();
        } else {
            self.end(RolloutState::Failed, message);
        }
    }

    /// What was replaced gets its former text back, what is out of service first.
    fn back(&mut self) {
        for index in 0..self.record().units.len() {
            self.retreat(index);
        }
        let replaced = |unit: &RolloutUnit| {
            unit.former.is_some() && matches!(unit.progress, Progress::Updating | Progress::Ready)
        };
        for index in self.worst_first(replaced) {
            if !self.may_take(index, Progress::RollingBack) {
                break;
            }
            let entry = &self.record().units[index];
            let hash = entry.former.clone().unwrap_or_default();
            let unit = entry.unit.clone();
            let Some(text) = self.record().former.get(&hash).cloned() else {
                let entry = self.entry(index);
                (entry.progress, entry.message) = (Progress::Gone, "its former text is not known".to_owned());
                continue;
            };
            let followers = self.running_followers(&unit);
            let entry = self.entry(index);
            entry.progress = Progress::RollingBack;
            // Those that stopped with it and were not started again yet are still to be.
            entry.followers.extend(followers);
            entry.followers.sort();
            entry.followers.dedup();
            self.started += 1;
            self.tell(unit.clone(), "roll back", format!("{unit} gets its former text back"));
            self.decision.changes.push(Change::Restore { unit, text, hash });
        }
        let busy = |unit: &RolloutUnit| {
            unit.former.is_some()
                && matches!(unit.progress, Progress::Updating | Progress::Ready | Progress::RollingBack)
        };
        if !self.record().units.iter().any(busy) {
            let message = self.record().message.clone();
            self.end(RolloutState::RolledBack, message);
        }
    }

    /// Takes in how far a unit is on its way back.
    fn retreat(&mut self, index: usize) {
        let entry = self.record().units[index].clone();
        let Some(former) = &entry.former else { return };
        let wanted = match entry.progress {
            Progress::Updating | Progress::Ready => &self.record().hash,
            Progress::RollingBack => former,
            Progress::Waiting | Progress::RolledBack | Progress::Gone => return,
        };
        match self.cluster.units.get(&entry.unit) {
            Some(known) if known.record.hash == *wanted => {}
            known => {
                let what = if known.is_some() { "replaced by somebody else" } else { "destroyed" };
                self.entry(index).progress = Progress::Gone;
                self.entry(index).message = format!("it was {what} meanwhile");
                return;
            }
        }
        if entry.progress != Progress::RollingBack {
            return;
        }
        self.restart_followers(index);
        let on = self.machine(&entry.unit);
        match self.standing(&entry) {
            Standing::Going => {}
            Standing::Settled if self.record().units[index].followers.is_empty() => {
                let entry = self.entry(index);
                (entry.progress, entry.machine) = (Progress::RolledBack, on);
            }
            Standing::Settled => {}
            // There is nothing better to go back to.
            Standing::Lost(why) => {
                let entry = self.entry(index);
                entry.progress = Progress::RolledBack;
                entry.message = format!("not ready with its former text either: {why}");
            }
        }
    }

    /// Units of a kind: those that are out of service already cost nothing and go first.
    fn worst_first(&self, kind: impl Fn(&RolloutUnit) -> bool) -> Vec<usize> {
        let units = self.record().units.iter().enumerate().filter(|(_, unit)| kind(unit));
        let (good, bad): (Vec<_>, Vec<_>) = units.partition(|(_, unit)| self.in_order(unit));
        bad.into_iter().chain(good).map(|(index, _)| index).collect()
    }

    /// Whether this unit may be taken out of service for a while.
    fn may_take(&self, index: usize, under_way: Progress) -> bool {
        let limit = usize::try_from(self.record().at_once).unwrap_or(usize::MAX).max(1);
        let units = &self.record().units;
        let busy = units.iter().filter(|unit| unit.progress == under_way).count();
        // Those of this step still look as they did before.
        let counts = |unit: &&RolloutUnit| match unit.progress {
            Progress::Waiting => under_way == Progress::Updating,
            Progress::Updating | Progress::Ready | Progress::RollingBack => unit.former.is_some(),
            Progress::RolledBack | Progress::Gone => false,
        };
        let out = units.iter().filter(counts).filter(|unit| !self.in_order(unit)).count();
        let free = out + self.started < limit || !self.in_order(&units[index]);
        busy < limit && free && self.decision.changes.len() < BATCH
    }

    fn look(&self, unit: &UnitName) -> Look {
        self.looks.get(unit).cloned().unwrap_or_else(|| Look::Coming("not known".to_owned()))
    }

    fn in_order(&self, entry: &RolloutUnit) -> bool {
        match self.look(&entry.unit) {
            Look::Good => true,
            Look::Ended(_) => entry.ended,
            Look::Coming(_) | Look::Trouble(_) | Look::Broken(_) => false,
        }
    }

    /// How a unit that was replaced stands, by what is seen of it now and was seen before.
    fn standing(&mut self, entry: &RolloutUnit) -> Standing {
        let (now, look) = (self.now, self.look(&entry.unit));
        let fresh = Watch { progress: entry.progress, since: now, good: None, trouble: None };
        let watch = self.watches.entry(entry.unit.clone()).or_insert(fresh);
        let begins = |progress| matches!(progress, Progress::Updating | Progress::RollingBack);
        if watch.progress != entry.progress && begins(entry.progress) {
            *watch = fresh;
        }
        watch.progress = entry.progress;
        let timeout = Duration::from_millis(self.decision.record.ready_timeout);
        let settle = Duration::from_millis(self.decision.record.settle);
        let good = |watch: &mut Watch| {
            let good = *watch.good.get_or_insert(now);
            (watch.since, watch.trouble) = (now, None);
            let settled = now.since(good) >= settle;
            (
                if settled { Standing::Settled } else { Standing::Going },
                (!settled).then(|| good.after(settle)),
            )
        };
        let late = now.since(watch.since) >= timeout;
        let (standing, wake) = match look {
            Look::Good => good(watch),
            Look::Ended(_) if entry.ended => good(watch),
            Look::Broken(why) => (Standing::Lost(why), None),
            Look::Ended(why) | Look::Trouble(why) | Look::Coming(why) if late => {
                (Standing::Lost(format!("not ready after {timeout:?}: {why}")), None)
            }
            Look::Ended(why) | Look::Trouble(why) => {
                watch.good = None;
                let since = *watch.trouble.get_or_insert(now);
                let lost = now.since(since) >= GRACE;
                let wake = since.after(GRACE).min(watch.since.after(timeout));
                (if lost { Standing::Lost(why) } else { Standing::Going }, (!lost).then_some(wake))
            }
            Look::Coming(_) => {
                (watch.good, watch.trouble) = (None, None);
                (Standing::Going, Some(watch.since.after(timeout)))
            }
        };
        let wakes = self.decision.wake.into_iter().chain(wake);
        self.decision.wake = wakes.min();
        standing
    }

    /// The name of the machine that a unit is scheduled to.
    fn machine(&self, unit: &UnitName) -> String {
        let machine = self.cluster.machine_of(unit).and_then(|id| self.cluster.machines.get(id));
        machine.map(|machine| machine.name.clone()).unwrap_or_default()
    }
}

/// Instances that were made meanwhile belong to a template's rollout.
fn join(name: &UnitName, record: &mut RolloutRecord, cluster: &Cluster) {
    if !name.is_template() {
        return;
    }
    for (unit, known) in &cluster.units {
        let ours = unit.template().as_ref() == Some(name) && known.record.hash != record.hash;
        if ours && !record.units.iter().any(|entry| entry.unit == *unit) {
            record.units.push(RolloutUnit::new(unit.clone()));
        }
    }
}

fn at(machine: &str) -> String {
    if machine.is_empty() { String::new() } else { format!(" on {machine}") }
}

/// The units that a rollout of `name` replaces, in the order in which they should be: those that run first, and by
/// number where instances are numbers.
pub fn units_of(cluster: &Cluster, name: &UnitName) -> Vec<UnitName> {
    if !name.is_template() {
        return vec![name.clone()];
    }
    let instances = cluster.units.iter().filter(|(unit, _)| unit.template().as_ref() == Some(name));
    let mut instances: Vec<_> = instances.collect();
    instances.sort_by_cached_key(|(unit, known)| {
        let instance = unit.instance().unwrap_or_default();
        (
            std::cmp::Reverse(known.record.desired),
            instance.parse::<u64>().unwrap_or(u64::MAX),
            (*unit).clone(),
        )
    });
    instances.into_iter().map(|(unit, _)| unit.clone()).collect()
}

/// The former text that a unit loses when it gets its version `version`.
pub fn outlived(version: u64) -> Option<u64> {
    version.checked_sub(KEPT_VERSIONS + 1).filter(|number| *number > 0)
}

#[cfg(test)]
mod tests;
