//! Requirements of one unit that exclude each other.
//!
//! Responsible for the combinations that fleet refused, in its order and with its texts, which scripts may
//! match. Not responsible for reading the options.
//! Invariant: a refusal points at the later of the two options and names the line of the other.

use super::Reader;
use crate::Problem;

impl Reader<'_> {
    /// A peer that must be here and must not be here. The texts are fleet's.
    pub(super) fn refuse_unresolvable(&self) -> Result<(), Problem> {
        for (peer, peer_place) in &self.peers {
            for (kind, globs) in [("conflict", &self.conflicts), ("replace", &self.replaces)] {
                let Some((glob, place)) = globs.iter().find(|(glob, _)| glob.matches(peer.as_str())) else {
                    continue;
                };
                let message = format!(
                    "unresolvable requirements: peer {:?} matches {kind} {:?}",
                    peer.as_str(),
                    glob.as_str()
                );
                let remedy = format!("remove it, or the `MachineOf` in line {}", peer_place.line);
                return Err(self.file.problem(*place, message, remedy));
            }
        }
        Ok(())
    }

    /// The pairs of options that exclude each other, in fleet's order and with its texts.
    pub(super) fn refuse_combinations(&self) -> Result<(), Problem> {
        let id = self.ids.first().map(|(_, _, place)| *place);
        let peers = self.peers.first().map(|(_, place)| *place);
        let conflicts = self.conflicts.first().map(|(_, place)| *place);
        let replaces = self.replaces.first().map(|(_, place)| *place);
        let global = self.global.filter(|(value, _)| *value).map(|(_, place)| place);
        for (one, other, message) in [
            (id, peers, "MachineID cannot be used with Peers"),
            (id, conflicts, "MachineID cannot be used with Conflicts"),
            (id, global, "MachineID cannot be used with Global"),
            (id, replaces, "MachineID cannot be used with Replaces"),
            (global, peers, "Global cannot be used with Peers"),
            (global, replaces, "Global cannot be used with Replaces"),
            (conflicts, replaces, "Conflicts cannot be used with Replaces"),
        ] {
            if let (Some(one), Some(other)) = (one, other) {
                let (first, second) = if one.line <= other.line { (one, other) } else { (other, one) };
                let remedy = format!("remove it, or the other one in line {}", first.line);
                return Err(self.file.problem(second, message, remedy));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::{Problem, Requirements, UnitFile};

    fn read(lines: &str) -> Result<Requirements, Problem> {
        let file = UnitFile::parse(&format!("[X-Fleet]\n{lines}\n")).expect("parses");
        let name = "a.service".parse().expect("a unit name");
        super::super::read(&name, &file).map(|(requirements, _)| requirements)
    }

    #[test]
    fn combinations_are_refused_with_fleets_texts() {
        for (lines, expected) in [
            (
                "MachineOf=b.service\nConflicts=b.*",
                "3:11: unresolvable requirements: peer \"b.service\" matches conflict \"b.*\"",
            ),
            (
                "MachineOf=b.service\nReplaces=b.*",
                "3:10: unresolvable requirements: peer \"b.service\" matches replace \"b.*\"",
            ),
            ("MachineID=01234567\nMachineOf=b.service", "3:11: MachineID cannot be used with Peers"),
            ("MachineID=01234567\nConflicts=b.service", "3:11: MachineID cannot be used with Conflicts"),
            ("Global=true\nMachineID=01234567", "3:11: MachineID cannot be used with Global"),
            ("MachineID=01234567\nReplaces=b.service", "3:10: MachineID cannot be used with Replaces"),
            ("Global=true\nMachineOf=b.service", "3:11: Global cannot be used with Peers"),
            ("Global=true\nReplaces=b.service", "3:10: Global cannot be used with Replaces"),
            ("Conflicts=b.service\nReplaces=c.service", "3:10: Conflicts cannot be used with Replaces"),
        ] {
            let told = read(lines).expect_err(lines).to_string();
            assert!(told.starts_with(expected), "{lines}: {told}");
        }
        assert!(read("Global=false\nMachineID=01234567").is_ok());
    }
}
