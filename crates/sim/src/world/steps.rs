//! What is done to the cluster, carried out: orders of clients and faults.
//!
//! Orders are written as the API writes them. Invariant: an order or a fault that makes no sense now (power for a
//! machine that has it) does nothing.

use super::{BOOT, CONNECTION_PATIENCE, Event, RESTART, SHUTDOWN, World};
use crate::{
    message::{Answer, Guard, Host, Input, Write},
    step::Step,
};
use model::{
    DesiredState, MachineId, Maintenance, MaintenanceRecord, MoveRecord, RECORD_VERSION, Revision, Timestamp,
    UnitName, UnitRecord, Unknown, keys,
};
use std::{collections::VecDeque, time::Duration};

/// A client whose hub is away tries again after this.
const AGAIN: Duration = Duration::from_secs(1);

impl World {
    pub(super) fn step(&mut self, step: Step) {
        let exists = |host: &Host| host.0 < self.machines.len();
        match &step {
            Step::Submit(..)
            | Step::Start(_)
            | Step::Stop(_)
            | Step::Unload(_)
            | Step::Destroy(_)
            | Step::Drain(_)
            | Step::Cordon(_)
            | Step::Uncordon(_)
            | Step::Move(..) => self.order(step),
            Step::Kill(host)
            | Step::Boot(host)
            | Step::Shutdown(host)
            | Step::Reboot(host)
            | Step::KillDaemon(host)
            | Step::Freeze(host)
            | Step::Thaw(host)
            | Step::Cut(host, _)
            | Step::Heal(host)
            | Step::BreakWatches(host)
            | Step::StallWatches(host)
            | Step::Drift(host, _) => {
                if exists(host) {
                    let host = *host;
                    self.trace.detail(self.now, || format!("fault: {step}"));
                    self.fault(host, &step);
                }
            }
            Step::HubDown => {
                if self.hub.up {
                    self.trace.story(self.now, || "the hub is down".to_owned());
                    let streams = self.hub.crash();
                    self.break_streams(streams);
                }
            }
            Step::HubUp => {
                if !self.hub.up {
                    self.trace.story(self.now, || "the hub is up".to_owned());
                    self.hub.restart(self.now);
                }
            }
            Step::Duplicates(on) => self.duplicates = *on,
            Step::Behave(unit, behaviour) => {
                self.behaviours.insert(unit.clone(), *behaviour);
            }
        }
    }

    fn fault(&mut self, host: Host, step: &Step) {
        match step {
            Step::Kill(_) if self.machines[host.0].powered => {
                self.power_off(host);
                self.trace.story(self.now, || format!("{host} loses power"));
            }
            Step::Boot(_) => self.queue.push(self.now, Event::PowerOn(host)),
            Step::Shutdown(_) => self.shut_down(host),
            Step::Reboot(_) => {
                self.shut_down(host);
                self.queue.push(self.now + SHUTDOWN + BOOT, Event::PowerOn(host));
            }
            Step::KillDaemon(_) if self.machines[host.0].daemon.is_some() => {
                self.machines[host.0].kill_daemon();
                let streams = self.hub.disconnect(|peer| peer.host == host);
                drop(streams);
                let boot = self.machines[host.0].boot;
                let delay = self.delay(RESTART, RESTART * 4);
                self.queue.push(self.now + delay, Event::Daemon(host, boot));
            }
            Step::Freeze(_) => {
                let machine = &mut self.machines[host.0];
                if machine.daemon.is_some() {
                    machine.frozen.get_or_insert_with(VecDeque::new);
                }
            }
            Step::Thaw(_) => {
                let waiting = self.machines[host.0].frozen.take().unwrap_or_default();
                let Some(peer) = self.machines[host.0].daemon.as_ref().map(|daemon| daemon.peer()) else {
                    return;
                };
                for input in waiting {
                    self.deliver(peer, input);
                }
            }
            Step::Cut(_, direction) => {
                let cut = self.machines[host.0].link.cut(self.now, *direction);
                self.queue.push(self.now + CONNECTION_PATIENCE, Event::Broken(host, cut));
            }
            Step::Heal(_) => {
                // What was sent first arrives first.
                for event in self.machines[host.0].link.heal() {
                    let arrives = self.now + self.hop();
                    let arrives = self.machines[host.0].link.in_order(arrives);
                    self.queue.push(arrives, event);
                }
            }
            Step::BreakWatches(_) => {
                let streams = self.hub.disconnect(|peer| peer.host == host);
                self.break_streams(streams);
            }
            Step::StallWatches(_) => {
                self.rules.stalled();
                self.hub.stall(|peer| peer.host == host);
            }
            Step::Drift(_, ppm) => {
                let now = self.now;
                let clock = &mut self.machines[host.0].clock;
                // What it shows does not jump.
                let shown = clock.shows(now);
                clock.drift = *ppm;
                let would = clock.shows(now);
                clock.offset = (clock.offset + (shown - would)).saturating_sub(would - shown);
            }
            _ => {}
        }
    }

    pub(super) fn power_off(&mut self, host: Host) {
        self.machines[host.0].power_off();
        let streams = self.hub.disconnect(|peer| peer.host == host);
        drop(streams);
    }

    fn shut_down(&mut self, host: Host) {
        let machine = &mut self.machines[host.0];
        if !machine.powered || std::mem::replace(&mut machine.stopping, true) {
            return;
        }
        let boot = machine.boot;
        self.trace.story(self.now, || format!("{host} shuts down"));
        if let Some(peer) = self.machines[host.0].daemon.as_ref().map(|daemon| daemon.peer()) {
            self.deliver(peer, Input::Shutdown);
        }
        let units: Vec<_> = self.machines[host.0].systemd.units.keys().cloned().collect();
        for unit in units {
            if let Some((changed, planned)) = self.machines[host.0].systemd.stop(&unit) {
                self.changed(host, &unit, changed, Some(planned));
            }
        }
        self.queue.push(self.now + SHUTDOWN, Event::PowerOff(host, boot));
    }

    /// A client's order, as the API carries it out: checked, then one guarded write.
    fn order(&mut self, step: Step) {
        if !self.hub.up {
            self.queue.push(self.now + AGAIN, Event::Step(step));
            return;
        }
        if let Err(problem) = self.try_order(&step) {
            self.trace.story(self.now, || format!("client: {step}: {problem}"));
        }
    }

    fn record(&self, unit: &UnitName) -> Option<(UnitRecord, Revision)> {
        let kv = self.hub.get(&keys::unit(unit))?;
        Some((serde_json::from_slice(&kv.value).ok()?, Revision(kv.mod_revision.0)))
    }

    fn try_order(&mut self, step: &Step) -> Result<(), String> {
        let unknown = |unit: &UnitName| format!("unable to find unit {unit}");
        let (unit, desired) = match step {
            Step::Submit(unit, options) => {
                let text = text(options);
                let checked = unit::check(unit, &text).map_err(|problem| problem.render(unit.as_str()))?;
                let hash = checked.file.hash();
                let current = self.record(unit);
                let record = match &current {
                    Some((record, _)) => UnitRecord { text, hash, ..record.clone() },
                    None => UnitRecord::new(text, hash).counted_from(self.hub.revision()),
                };
                return self.write(unit, &record, current.map(|(_, revision)| revision));
            }
            Step::Destroy(unit) => {
                self.record(unit).ok_or_else(|| unknown(unit))?;
                let write = Write::Delete(keys::unit(unit));
                return self.hub.commit(vec![], vec![write]).map(drop).map_err(|error| error.to_string());
            }
            Step::Drain(host) => return self.maintain(*host, Some(Maintenance::Draining)),
            Step::Cordon(host) => return self.maintain(*host, Some(Maintenance::Cordoned)),
            Step::Uncordon(host) => return self.maintain(*host, None),
            Step::Move(unit, host) => {
                self.record(unit).ok_or_else(|| unknown(unit))?;
                let to = self.machine_id(*host)?;
                let value = serde_json::to_vec(&MoveRecord::new(to)).expect("records always render");
                return self.put(keys::move_order(unit), value);
            }
            Step::Start(unit) => (unit, DesiredState::Launched),
            Step::Stop(unit) => (unit, DesiredState::Loaded),
            Step::Unload(unit) => (unit, DesiredState::Inactive),
            _ => return Ok(()),
        };
        let current = self.record(unit);
        let mut record = match &current {
            Some((record, _)) => record.clone(),
            None => {
                let template = unit.template().and_then(|template| self.record(&template));
                let (template, _) = template.ok_or_else(|| unknown(unit))?;
                let checked = unit::check(unit, &template.text).map_err(|p| p.render(unit.as_str()))?;
                UnitRecord::new(template.text, checked.file.hash()).counted_from(self.hub.revision())
            }
        };
        record.desired = desired;
        if desired == DesiredState::Launched {
            record.launch += 1;
        }
        self.write(unit, &record, current.map(|(_, revision)| revision))
    }

    fn machine_id(&self, host: Host) -> Result<MachineId, String> {
        let machine = self.machines.get(host.0).ok_or_else(|| format!("there is no {host}"))?;
        Ok(machine.id.clone())
    }

    fn maintain(&mut self, host: Host, state: Option<Maintenance>) -> Result<(), String> {
        let key = keys::maintenance(&self.machine_id(host)?);
        let Some(state) = state else {
            return self.hub.commit(vec![], vec![Write::Delete(key)]).map(drop).map_err(|e| e.to_string());
        };
        let record = MaintenanceRecord {
            v: RECORD_VERSION,
            state,
            since: Timestamp(0),
            by: "sim".to_owned(),
            reason: String::new(),
            unknown: Unknown::new(),
        };
        self.put(key, serde_json::to_vec(&record).expect("records always render"))
    }

    fn put(&mut self, key: String, value: Vec<u8>) -> Result<(), String> {
        let write = Write::Put { key, value: value.into(), lease: None };
        self.hub.commit(vec![], vec![write]).map(drop).map_err(|error| error.to_string())
    }

    fn write(&mut self, unit: &UnitName, record: &UnitRecord, at: Option<Revision>) -> Result<(), String> {
        let key = keys::unit(unit);
        let guard = match at {
            Some(revision) => Guard::Unchanged(key.clone(), revision),
            None => Guard::Absent(key.clone()),
        };
        let value = serde_json::to_vec(record).expect("records always render");
        let write = Write::Put { key, value: value.into(), lease: None };
        match self.hub.commit(vec![guard], vec![write]) {
            Ok(Answer::Committed { yes: true, .. }) => Ok(()),
            other => Err(format!("not written: {other:?}")),
        }
    }
}

fn text(options: &[String]) -> String {
    let mut text = "[Service]\nExecStart=/bin/app %i\n".to_owned();
    if !options.is_empty() {
        text.push_str("[X-Fleet]\n");
        for option in options {
            // `Environment=` and the like would go elsewhere; `#2` makes another file of the same meaning.
            text.push_str(option);
            text.push('\n');
        }
    }
    text
}
