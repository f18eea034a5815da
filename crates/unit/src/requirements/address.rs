//! `Address=own`: a unit that is no container, with an address of its own.
//!
//! Responsible for reading the option and for what it cannot be combined with. Not responsible for the address: the
//! machine that runs the unit chooses it.
//! Invariant: a unit that comes through with it has its network from nobody else.

use super::Reader;
use crate::{Problem, UnitOption, kind::truthy, words::Word};

/// systemd's longest name (255 bytes), less what the name of the service beside the unit has around it.
const LONGEST: usize = 255 - "muster-address@.service".len();

impl Reader<'_> {
    pub(super) fn address(&mut self, option: &UnitOption, word: &Word) -> Result<(), Problem> {
        if self.specifiers.expand(&word.text) != "own" {
            let remedy = "the machine chooses the address; without the option the unit has its machine's";
            return Err(self.needs(option, word, "`own`", remedy.to_owned()));
        }
        self.address = Some(option.place(word.part.clone()));
        Ok(())
    }

    /// What has its network from somebody else, or has none.
    pub(super) fn refuse_address(&self) -> Result<(), Problem> {
        let Some(place) = self.address else { return Ok(()) };
        let refuse = |message: String, remedy: String| Err(self.file.problem(place, message, remedy));
        if self.name.kind() != "service" {
            let message = format!("a {} unit cannot have an address of its own", self.name.kind());
            return refuse(message, "remove it; services can".to_owned());
        }
        if self.name.as_str().len() > LONGEST {
            let message = "the unit's name is too long for `Address=own`".to_owned();
            return refuse(message, format!("shorten it to {LONGEST} bytes"));
        }
        if let Some((engine, line)) = self.container() {
            let message = "a container has an address of its own already".to_owned();
            let remedy = format!("remove it: {engine} gives the container of line {line} its address");
            return refuse(message, remedy);
        }
        for name in ["NetworkNamespacePath", "PrivateNetwork"] {
            let Some(option) = self.file.named("Service", name).last() else { continue };
            let value = option.value.trim();
            if if name == "PrivateNetwork" { truthy(value) } else { !value.is_empty() } {
                let message = format!("`Address=own` cannot be used with `{name}=`");
                let remedy = format!("remove it, or the other one in line {}", option.name_place().line);
                return refuse(message, remedy);
            }
        }
        Ok(())
    }

    /// The engine whose client `ExecStart=` runs, perhaps in a shell, and the line.
    fn container(&self) -> Option<(String, u32)> {
        self.file.named("Service", "ExecStart").find_map(|option| {
            let words = option.value.split(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | ';'));
            let mut engine = None;
            for word in words {
                match word.trim_start_matches(['-', '@', ':', '+', '!']).rsplit('/').next() {
                    Some(program @ ("docker" | "podman")) => engine = Some(program.to_owned()),
                    Some("run" | "start") if engine.is_some() => {
                        return Some((engine?, option.name_place().line));
                    }
                    _ => {}
                }
            }
            None
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::{Problem, Requirements, UnitFile};

    fn read(name: &str, text: &str) -> Result<Requirements, Problem> {
        let file = UnitFile::parse(text).expect("parses");
        super::super::read(&name.parse().expect("a unit name"), &file).map(|(requirements, _)| requirements)
    }

    #[test]
    fn a_plain_service_may_have_an_address_of_its_own() {
        let plain =
            "[Service]\nExecStart=/usr/bin/web\nPrivateNetwork=no\nNetworkNamespacePath=\n[X-Fleet]\n";
        assert!(read("a@1.service", &format!("{plain}Address=own")).expect("ours").own_address);
        assert!(!read("a@1.service", plain).expect("ours").own_address);
    }

    #[test]
    fn what_has_its_network_from_somebody_else_is_refused() {
        let long = format!("{}.service", "a".repeat(240));
        for (name, service, value, expected) in [
            ("a.service", "", "10.1.5.7", "2:9: `Address` needs `own` (the machine chooses"),
            ("a.socket", "", "own", "2:9: a socket unit cannot have an address"),
            (long.as_str(), "", "own", "2:9: the unit's name is too long"),
            (
                "a.service",
                "ExecStart=-/usr/bin/docker run --rm a",
                "own",
                "2:9: a container has an address of its own already (remove it: docker gives the container of line 4",
            ),
            (
                "a.service",
                "PrivateNetwork=yes",
                "own",
                "2:9: `Address=own` cannot be used with `PrivateNetwork=`",
            ),
            (
                "a.service",
                "NetworkNamespacePath=/run/netns/x",
                "own",
                "2:9: `Address=own` cannot be used with `NetworkNamespacePath=` (remove it, or the other one in line 4",
            ),
        ] {
            let text = format!("[X-Fleet]\nAddress={value}\n[Service]\n{service}\n");
            let told = read(name, &text).expect_err(value).to_string();
            assert!(told.starts_with(expected), "{text}: {told}");
        }
    }
}
