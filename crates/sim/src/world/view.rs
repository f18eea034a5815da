//! Tables of how things are, for scripts and reports.

use super::World;
use model::keys;
use std::fmt::Write as _;

impl World {
    /// The table of that name, a line each: `machines`, `units`, `running`. None if there is no such table.
    pub fn show(&self, table: &str) -> Option<Vec<String>> {
        match table {
            "machines" => Some(self.show_machines()),
            "units" => Some(self.show_units()),
            "running" => Some(self.show_running()),
            _ => None,
        }
    }

    fn show_machines(&self) -> Vec<String> {
        let truth = self.rules.truth();
        let line = |machine: &super::Machine| {
            let leads = truth.leader.as_ref().is_some_and(|(leader, _)| leader.machine == machine.id);
            let present = if truth.machines.contains_key(&machine.id) { "present" } else { "gone" };
            let power = if machine.powered { "on" } else { "off" };
            let units = truth.schedule.values().filter(|on| on.contains_key(&machine.id)).count();
            let leads = if leads { "  leads" } else { "" };
            format!("{:<4} {power:<4} {present:<8} {units} units{leads}", machine.host.to_string())
        };
        self.machines.iter().map(line).collect()
    }

    fn show_units(&self) -> Vec<String> {
        let truth = self.rules.truth();
        let mut lines = Vec::new();
        for (name, unit) in truth.units.iter().filter(|(name, _)| !name.is_template()) {
            let mut line = format!("{:<18} {:<9}", name.to_string(), unit.record.desired.to_string());
            for machine in truth.schedule.get(name).into_iter().flat_map(|on| on.keys()) {
                let state = truth.states.get(name).and_then(|on| on.get(machine));
                let state = state.map_or("-", |state| state.active.as_str());
                let _ = write!(line, " {}:{state}", super::Machine::name_of(machine));
            }
            lines.push(line.trim_end().to_owned());
        }
        lines
    }

    /// What really runs, whatever the hub believes.
    fn show_running(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for machine in &self.machines {
            let alive = machine.systemd.units.iter().filter(|(_, unit)| unit.active.is_alive());
            let names: Vec<_> = alive.map(|(name, _)| name.stem().to_owned()).collect();
            lines.push(format!("{:<4} {}", machine.host.to_string(), names.join(" ")).trim_end().to_owned());
        }
        lines
    }

    /// Every key of the hub, for whoever looks for the cause of something.
    pub fn dump(&self) -> Vec<String> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let keys = self.hub.list(keys::MUSTER);
        keys.iter().map(|kv| format!("{} = {}", text(&kv.key), text(&kv.value))).collect()
    }
}
