//! A unit file as the agent sees it: the text, and the few facts in it that decide how the agent handles the unit.
//!
//! Invariant: a file that cannot be read is handled as one that says nothing.

use model::UnitName;
use std::{sync::Arc, time::Duration};
use unit::{OnPartition, Registration, UnitFile};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct File {
    pub(super) text: Arc<str>,
    pub(super) hash: String,
    /// `OnPartition=stop`.
    pub(super) fenced: bool,
    /// `Address=own`.
    pub(super) own_address: bool,
    /// It has an `[Install]` section.
    pub(super) install: bool,
    /// systemd calls it active as soon as it has a process, whatever becomes of that: `Type=simple`.
    pub(super) hasty: bool,
    /// What it wants registered.
    pub(super) registrations: Arc<[Registration]>,
}

impl File {
    pub(super) fn new(unit: &UnitName, text: Arc<str>) -> Self {
        let hash = UnitFile::parse(&text).map(|file| file.hash()).unwrap_or_default();
        let checked = unit::check(unit, &text).ok();
        let says = |fact: fn(&unit::Checked) -> bool| checked.as_ref().is_some_and(fact);
        Self {
            hash,
            fenced: says(|checked| checked.requirements.on_partition == OnPartition::Stop),
            own_address: says(|checked| checked.requirements.own_address),
            install: says(|checked| checked.file.install_wanted()),
            registrations: checked
                .as_ref()
                .map(|checked| checked.registrations.as_slice().into())
                .unwrap_or_default(),
            hasty: unit.kind() == "service" && says(|checked| hasty(&checked.file)),
            text,
        }
    }
}

impl File {
    /// The text for systemd: where something is registered, every stop begins with a drain.
    pub(super) fn for_systemd(&self, program: &str) -> String {
        let longest = self.registrations.iter().map(|registration| registration.drain).max();
        match (longest, UnitFile::parse(&self.text)) {
            (Some(drain), Ok(file)) if drain > Duration::ZERO => {
                unit::drain::with_drain(&file, program, drain)
            }
            _ => self.text.to_string(),
        }
    }
}

fn hasty(file: &UnitFile) -> bool {
    let simple = file.values("Service", "Type").last().is_none_or(|kind| matches!(kind, "simple" | ""));
    // With a bus name it is `Type=dbus` by default; and what runs after the start waits long enough.
    simple && ["BusName", "ExecStartPost"].iter().all(|name| file.values("Service", name).next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_facts_are_read_off_the_text() {
        let file = |text: &str| File::new(&"a.service".parse().expect("a name"), text.into());
        let plain = file("[Service]\nExecStart=/bin/a\n");
        assert!(plain.hasty && !plain.fenced && !plain.install);
        let other = "[Service]\nType=notify\nExecStart=/bin/a\n[Install]\nWantedBy=b.service\n[X-Fleet]\nOnPartition=stop\n";
        let other = file(other);
        assert!(!other.hasty && other.fenced && other.install);
        assert!(!file("[Service]\nExecStart=/bin/a\nExecStartPost=/bin/b\n").hasty);
        let rubbish = file("rubbish");
        assert!(rubbish.hash.is_empty() && !rubbish.hasty);
    }
}
