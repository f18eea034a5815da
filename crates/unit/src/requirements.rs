//! `[X-Fleet]`: what a unit demands of the machine that it runs on.
//!
//! Responsible for reading the section's options, in fleet's spellings and the legacy ones, and for the
//! combinations that fleet refused. Not responsible for which machine fulfils them: the engine decides that.
//! Invariant: what comes out can be fulfilled by some machine, as far as the file alone can tell.

mod address;
mod combinations;
mod names;

use crate::{
    Glob, Problem, Resources, UnitFile, UnitOption,
    glob::GlobError,
    nearest::nearest,
    problem::Place,
    words::{BadQuotes, Specifiers, Word, spaced, unknown_specifier, words},
};
use model::{MachineId, UnitName, UnitNameError};
use std::collections::{BTreeMap, BTreeSet};

/// The section's name.
pub(crate) const SECTION: &str = "X-Fleet";
/// What `service` reads.
const REGISTER: &str = "Register";
/// What an unknown key may have been meant to be.
const KNOWN: [&str; 14] = [
    "Address",
    "MachineID",
    "MachineOf",
    "MachineMetadata",
    "Conflicts",
    "Replaces",
    "Global",
    "OnPartition",
    "Register",
    "X-Conflicts",
    "X-ConditionMachineID",
    "X-ConditionMachineBootID",
    "X-ConditionMachineOf",
    "X-ConditionMachineMetadata",
];

/// What `[X-Fleet]` demands, with specifiers expanded. Those of a template are read with a stand-in instance
/// and only good for checking: a template runs nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Requirements {
    /// `MachineID`: the one machine that will do, by its whole id or the id's first 8 digits.
    pub machine_id: Option<String>,
    /// `MachineOf`: units that must be on the same machine, all of them.
    pub machine_of: Vec<UnitName>,
    /// `MachineMetadata`: one of the values of each key.
    pub metadata: BTreeMap<String, BTreeSet<String>>,
    /// `Conflicts`: units that must not be on the same machine. Holds whichever side says so; a unit never
    /// conflicts with itself.
    pub conflicts: Vec<Glob>,
    /// `Replaces`: units that leave the machine when this one comes.
    pub replaces: Vec<Glob>,
    /// `Global`: on every machine that fulfils the rest.
    pub global: bool,
    /// `OnPartition`: what becomes of it while its machine cannot reach the hub.
    pub on_partition: OnPartition,
    /// `Address=own`: it gets an address of its machine's share of the cluster network, in a network namespace of its
    /// own.
    pub own_address: bool,
    /// What it may use at most, from `[Service]` and its kin.
    pub resources: Resources,
}

/// What a machine does with a unit while it cannot reach the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnPartition {
    /// It runs on. Another machine starts a copy once this one counts as lost, so that two may run for a while.
    #[default]
    Keep,
    /// The machine stops it when its lease may have ended, and the engine waits for that: never two copies.
    Stop,
}

/// What an option of the section is about, whatever its spelling.
#[derive(Clone, Copy)]
enum Key {
    /// With the rank of its spelling: the lowest that is there wins.
    MachineId(u8),
    MachineOf,
    Metadata,
    Conflicts,
    Replaces,
    Global,
    OnPartition,
    Address,
}

impl Key {
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "MachineID" => Self::MachineId(0),
            "X-ConditionMachineID" => Self::MachineId(1),
            "X-ConditionMachineBootID" => Self::MachineId(2),
            "MachineOf" | "X-ConditionMachineOf" => Self::MachineOf,
            "MachineMetadata" | "X-ConditionMachineMetadata" => Self::Metadata,
            "Conflicts" | "X-Conflicts" => Self::Conflicts,
            "Replaces" => Self::Replaces,
            "Global" => Self::Global,
            "OnPartition" => Self::OnPartition,
            "Address" => Self::Address,
            _ => return None,
        })
    }
}

/// The requirements as they are read, each with its place.
struct Reader<'a> {
    file: &'a UnitFile,
    name: &'a UnitName,
    specifiers: Specifiers,
    warnings: Vec<Problem>,
    ids: Vec<(u8, String, Place)>,
    peers: Vec<(UnitName, Place)>,
    metadata: BTreeMap<String, BTreeSet<String>>,
    conflicts: Vec<(Glob, Place)>,
    replaces: Vec<(Glob, Place)>,
    global: Option<(bool, Place)>,
    on_partition: OnPartition,
    address: Option<Place>,
}

/// Reads the section; the warnings come second.
pub(crate) fn read(name: &UnitName, file: &UnitFile) -> Result<(Requirements, Vec<Problem>), Problem> {
    let mut reader = Reader {
        file,
        name,
        specifiers: Specifiers::of(name),
        warnings: vec![],
        ids: vec![],
        peers: vec![],
        metadata: BTreeMap::new(),
        conflicts: vec![],
        replaces: vec![],
        global: None,
        on_partition: OnPartition::Keep,
        address: None,
    };
    for option in file.options().iter().filter(|option| option.section == SECTION) {
        reader.option(option)?;
    }
    reader.finish()
}

/// True for a key that only `[X-Fleet]` has, so that it is lost in any other section.
pub(crate) fn belongs_here(name: &str) -> bool {
    KNOWN.contains(&name) && name != "Conflicts"
}

impl Reader<'_> {
    fn option(&mut self, option: &UnitOption) -> Result<(), Problem> {
        let Some(key) = Key::of(&option.name) else {
            if option.name != REGISTER {
                self.warn_unknown(option);
            }
            return Ok(());
        };
        let cut = words(&option.value).map_err(|BadQuotes { part, message, remedy }| {
            self.file.problem(option.place(part), format!("`{}`: {message}", option.name), remedy)
        })?;
        for word in cut {
            match key {
                Key::Conflicts => {
                    for word in spaced(&word) {
                        let found = self.glob(option, &word)?;
                        self.conflicts.push(found);
                    }
                }
                Key::Replaces => {
                    let found = self.glob(option, &word)?;
                    self.replaces.push(found);
                }
                Key::MachineId(rank) => self.machine_id(option, &word, rank)?,
                Key::MachineOf => self.machine_of(option, &word)?,
                Key::Metadata => self.metadata(option, &word)?,
                Key::Global => self.global(option, &word)?,
                Key::OnPartition => self.on_partition(option, &word)?,
                Key::Address => self.address(option, &word)?,
            }
        }
        Ok(())
    }

    fn warn_unknown(&mut self, option: &UnitOption) {
        let message = format!("unrecognized requirement in [X-Fleet] section: \"{}\"", option.name);
        let remedy = match nearest(&option.name, &KNOWN) {
            Some(known) => format!("did you mean `{known}`?"),
            None => "it is passed over".to_owned(),
        };
        self.warnings.push(self.file.problem(option.name_place(), message, remedy));
    }

    fn machine_id(&mut self, option: &UnitOption, word: &Word, rank: u8) -> Result<(), Problem> {
        let id = self.specifiers.expand(&word.text);
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let whole = id.parse::<MachineId>().is_ok_and(|whole| whole.as_str() == id);
        let short = id.len() == 8 && id.bytes().all(hex);
        if !whole && !short && !self.specifiers.open(&word.text) {
            let remedy = self.empty_instance(&word.text).unwrap_or_else(|| {
                "write the 32 lower-case hexadecimal digits of /etc/machine-id, or the first 8".to_owned()
            });
            return Err(self.needs(option, word, "a machine id", remedy));
        }
        self.ids.push((rank, id, option.place(word.part.clone())));
        Ok(())
    }

    fn machine_of(&mut self, option: &UnitOption, word: &Word) -> Result<(), Problem> {
        let text = self.specifiers.expand(&word.text);
        let peer = match text.parse::<UnitName>() {
            Ok(peer) if !peer.is_template() => peer,
            Ok(peer) => {
                let remedy = self.empty_instance(&word.text).unwrap_or_else(|| {
                    format!("no instance after `@`; name one, such as `{}@1.{}`", peer.prefix(), peer.kind())
                });
                return Err(self.needs(option, word, "a unit name", remedy));
            }
            Err(error) => {
                let remedy = match () {
                    () if text.contains([' ', '\t']) => {
                        "write one name, or each in double quotes: `\"a.service\" \"b.service\"`".to_owned()
                    }
                    () if text.contains(['*', '?', '[']) => {
                        "patterns are for `Conflicts` and `Replaces`".to_owned()
                    }
                    () => self.no_name(&word.text, &text, &error, "1"),
                };
                return Err(self.needs(option, word, "a unit name", remedy));
            }
        };
        let place = option.place(word.part.clone());
        if peer.as_str() == self.specifiers.full() {
            let message = format!("`{}` names the unit itself", option.name);
            return Err(self.file.problem(place, message, "remove it, or name another unit"));
        }
        if !self.peers.iter().any(|(known, _)| *known == peer) {
            self.peers.push((peer, place));
        }
        Ok(())
    }

    fn metadata(&mut self, option: &UnitOption, word: &Word) -> Result<(), Problem> {
        let pair = self.specifiers.expand(&word.text);
        let blank = |c: char| c == ' ' || c == '\t';
        let remedy = match pair.split_once('=') {
            _ if word.text.is_empty() => "write `key=value`".to_owned(),
            None => "write `key=value`".to_owned(),
            Some((_, value)) if value.contains('=') && value.contains(blank) => {
                "put each pair in double quotes: `\"a=b\" \"c=d\"`".to_owned()
            }
            Some((_, value)) if value.contains('=') => "write one `=`, between key and value".to_owned(),
            Some((key, value)) if key.trim_matches(blank) != key || value.trim_matches(blank) != value => {
                "write no blanks around `=`".to_owned()
            }
            Some((key, _)) if key.contains(blank) => "write no blanks in the key".to_owned(),
            Some((key, _)) if key.ends_with(['<', '>', '!']) => {
                "write `key=value`; equality is all there is".to_owned()
            }
            Some(("", _)) => "write a key in front of `=`".to_owned(),
            Some((_, "")) => {
                self.empty_instance(&word.text).unwrap_or_else(|| "write a value behind `=`".to_owned())
            }
            Some((key, value)) => {
                self.metadata.entry(key.to_owned()).or_default().insert(value.to_owned());
                self.warn_specifier(option, word);
                return Ok(());
            }
        };
        Err(self.needs(option, word, "`key=value`", remedy))
    }

    fn glob(&mut self, option: &UnitOption, word: &Word) -> Result<(Glob, Place), Problem> {
        let text = self.specifiers.expand(&word.text);
        let place = option.place(word.part.clone());
        if text.contains([' ', '\t']) {
            let remedy = "write one pattern, or each in double quotes: `\"a.service\" \"b*.service\"`";
            return Err(self.needs(option, word, "a unit name", remedy.to_owned()));
        }
        let glob: Glob = match text.parse() {
            Ok(glob) => glob,
            Err(GlobError::Empty) => {
                let remedy = self.no_name(&word.text, &text, &UnitNameError::Empty, "*");
                return Err(self.needs(option, word, "a unit name", remedy));
            }
            Err(error) => {
                let message = format!("`{}` has a malformed pattern: {error}", option.name);
                return Err(self.file.problem(place, message, "escape a literal `[` or `\\` with `\\`"));
            }
        };
        // A pattern without wildcards that is no name of a unit that can run would never match anything.
        if let Some(literal) = glob.literal() {
            match literal.parse::<UnitName>() {
                Ok(name) if name.is_template() => {
                    let remedy =
                        self.empty_instance(&word.text).unwrap_or_else(|| self.every_instance(&name));
                    return Err(self.needs(option, word, "a unit name", remedy));
                }
                Ok(_) => {}
                Err(error) => {
                    let remedy = self.no_name(&word.text, &literal, &error, "*");
                    return Err(self.needs(option, word, "a unit name", remedy));
                }
            }
            if literal != text && !literal.contains(['*', '?', '[', '\\']) {
                let message = format!("`{}`: `\\` in a pattern escapes the next character", option.name);
                let remedy = format!("this means `{literal}`; write `\\\\` for one `\\`");
                self.warnings.push(self.file.problem(place, message, remedy));
            }
        }
        Ok((glob, place))
    }

    fn on_partition(&mut self, option: &UnitOption, word: &Word) -> Result<(), Problem> {
        self.on_partition = match self.specifiers.expand(&word.text).as_str() {
            "keep" => OnPartition::Keep,
            "stop" => OnPartition::Stop,
            _ => {
                return Err(self.needs(option, word, "`keep` or `stop`", "`keep` is the default".to_owned()));
            }
        };
        Ok(())
    }

    fn global(&mut self, option: &UnitOption, word: &Word) -> Result<(), Problem> {
        let text = self.specifiers.expand(&word.text).to_ascii_lowercase();
        let value = match text.as_str() {
            "true" | "yes" | "1" | "on" | "t" => true,
            "false" | "no" | "0" | "off" | "f" => false,
            _ => return Err(self.needs(option, word, "a boolean", "write `true` or `false`".to_owned())),
        };
        self.global = Some((value, option.place(word.part.clone())));
        Ok(())
    }

    /// "`Option` needs …", at the word.
    fn needs(&self, option: &UnitOption, word: &Word, what: &str, remedy: String) -> Problem {
        let message = format!("`{}` needs {what}", option.name);
        self.file.problem(option.place(word.part.clone()), message, remedy)
    }

    fn warn_specifier(&mut self, option: &UnitOption, word: &Word) {
        if let Some((at, specifier)) = unknown_specifier(&word.text) {
            let start = word.part.start + at;
            let message = format!("`{specifier}` is not expanded in [X-Fleet]");
            let remedy = "`%n`, `%N`, `%p` and `%i` are; it is taken as it stands";
            self.warnings.push(self.file.problem(
                option.place(start..start + specifier.len()),
                message,
                remedy,
            ));
        }
    }

    fn finish(mut self) -> Result<(Requirements, Vec<Problem>), Problem> {
        self.refuse_unresolvable()?;
        self.refuse_combinations()?;
        self.refuse_address()?;
        let lowest = self.ids.iter().map(|(rank, ..)| *rank).min();
        let mut winners = self.ids.iter().filter(|(rank, ..)| Some(*rank) == lowest);
        let machine_id = winners.next().map(|(_, id, _)| id.clone());
        let lost = self.ids.iter().find(|(_, id, _)| Some(id) != machine_id.as_ref());
        if let (Some((_, _, place)), Some(id)) = (lost, &machine_id) {
            let remedy = format!("`{id}` is the one that counts");
            let warning = self.file.problem(*place, "a second machine id is passed over", remedy);
            self.warnings.push(warning);
        }
        let requirements = Requirements {
            machine_id,
            machine_of: self.peers.into_iter().map(|(peer, _)| peer).collect(),
            metadata: self.metadata,
            conflicts: self.conflicts.into_iter().map(|(glob, _)| glob).collect(),
            replaces: self.replaces.into_iter().map(|(glob, _)| glob).collect(),
            global: self.global.is_some_and(|(value, _)| value),
            on_partition: self.on_partition,
            own_address: self.address.is_some(),
            resources: Resources::of(self.name, self.file),
        };
        Ok((requirements, self.warnings))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_in(name: &str, lines: &str) -> Result<(Requirements, Vec<Problem>), Problem> {
        let file = UnitFile::parse(&format!("[X-Fleet]\n{lines}\n")).expect("parses");
        read(&name.parse().expect("a unit name"), &file)
    }

    fn requirements(name: &str, lines: &str) -> Requirements {
        read_in(name, lines).expect(lines).0
    }

    #[test]
    fn all_options_in_both_spellings() {
        let id = "0123456789abcdef0123456789abcdef";
        assert_eq!(requirements("a.service", &format!("MachineID={id}")).machine_id.as_deref(), Some(id));
        let both =
            format!("X-ConditionMachineBootID=00000000\nX-ConditionMachineID=01234567\nMachineID={id}");
        assert_eq!(requirements("a.service", &both).machine_id.as_deref(), Some(id));
        let peers = requirements(
            "a.service",
            "X-ConditionMachineOf=b.service\nMachineOf=\"c.service\" \"b.service\"",
        );
        assert_eq!(
            peers.machine_of.iter().map(UnitName::as_str).collect::<Vec<_>>(),
            ["b.service", "c.service"]
        );
        let globs =
            requirements("a@1.service", "X-Conflicts=b.service  %p@*.service\nConflicts=\"c.*\" \"d* e?\"");
        let patterns: Vec<_> = globs.conflicts.iter().map(Glob::as_str).collect();
        assert_eq!(patterns, ["b.service", "a@*.service", "c.*", "d*", "e?"]);
        let metadata =
            requirements("a.service", "MachineMetadata=\"a=1\" \"a=2\"\nX-ConditionMachineMetadata=b=x y");
        assert_eq!(metadata.metadata.get("a").map(BTreeSet::len), Some(2));
        assert!(metadata.metadata.get("b").is_some_and(|values| values.contains("x y")));
        for (value, expected) in
            [("true", true), ("YES", true), ("1", true), ("on", true), ("t", true), ("off", false)]
        {
            assert_eq!(requirements("a.service", &format!("Global={value}")).global, expected, "{value}");
        }
        assert!(!requirements("a.service", "Global=true\nGlobal=no").global);
    }

    #[test]
    fn templates_pass_with_a_stand_in() {
        let lines =
            "MachineOf=db@%i.service\nConflicts=%p@*.service cache@%i.service\nMachineMetadata=host=%i";
        assert!(read_in("web@.service", lines).is_ok());
        assert!(read_in("web@.service", "MachineID=%i").is_ok());
        assert!(read_in("web@.service", "MachineOf=web@1.service").is_ok());
        let expanded = requirements("web@7.service", lines);
        assert_eq!(expanded.machine_of, ["db@7.service".parse().expect("valid")]);
        assert!(expanded.metadata["host"].contains("7"));
    }

    #[test]
    fn rubbish_is_refused_with_place_and_remedy() {
        for (name, lines, expected) in [
            ("a.service", "MachineID=m1", "2:11: `MachineID` needs a machine id (write the 32"),
            (
                "a.service",
                "MachineID=%i",
                "2:11: `MachineID` needs a machine id (`%i` stands for nothing in `a.service`",
            ),
            (
                "a.service",
                "MachineOf=b",
                "2:11: `MachineOf` needs a unit name (unit name must contain \".\"; did you mean `b.service`?)",
            ),
            ("a.service", "MachineOf=", "2:11: `MachineOf` needs a unit name (write the name"),
            ("a.service", "MachineOf=%i", "2:11: `MachineOf` needs a unit name (`%i` stands for nothing"),
            (
                "a.service",
                "MachineOf=%i.service",
                "2:11: `MachineOf` needs a unit name (`%i` stands for nothing",
            ),
            (
                "a.service",
                "MachineOf=b@%i.service",
                "2:11: `MachineOf` needs a unit name (`%i` stands for nothing",
            ),
            (
                "a.service",
                "MachineOf=b.service c.service",
                "2:11: `MachineOf` needs a unit name (write one name",
            ),
            ("a.service", "MachineOf=b*.service", "2:11: `MachineOf` needs a unit name (patterns are"),
            ("a.service", "MachineOf=%H.service", "2:11: `MachineOf` needs a unit name (`%H` is not"),
            ("a.service", "MachineOf=%n", "2:11: `MachineOf` names the unit itself"),
            ("a@.service", "MachineOf=a@%i.service", "2:11: `MachineOf` names the unit itself"),
            (
                "a.service",
                "Conflicts=b.service web@",
                "2:21: `Conflicts` needs a unit name (no instance after `@`; write `web@*",
            ),
            (
                "a.service",
                "Conflicts=b.foo",
                "2:11: `Conflicts` needs a unit name (invalid unit type: \"foo\"; did",
            ),
            ("a.service", "Conflicts=b[", "2:11: `Conflicts` has a malformed pattern: `[` is never"),
            ("a.service", "Replaces=b.service c.service", "2:10: `Replaces` needs a unit name (write one"),
            ("a.service", "MachineMetadata=a", "2:17: `MachineMetadata` needs `key=value` (write `key"),
            ("a.service", "MachineMetadata=a=b c=d", "2:17: `MachineMetadata` needs `key=value` (put each"),
            (
                "a.service",
                "MachineMetadata=\"a=b\" \"c\"",
                "2:24: `MachineMetadata` needs `key=value` (write `key",
            ),
            (
                "a.service",
                "MachineMetadata=ram>=4",
                "2:17: `MachineMetadata` needs `key=value` (write `key=value`; eq",
            ),
            ("a.service", "MachineMetadata=a=%i", "2:17: `MachineMetadata` needs `key=value` (`%i` stands"),
            (
                "a.service",
                "MachineMetadata=a = b",
                "2:17: `MachineMetadata` needs `key=value` (write no blanks",
            ),
            ("a.service", "OnPartition=run", "2:13: `OnPartition` needs `keep` or `stop`"),
            ("a.service", "Global=maybe", "2:8: `Global` needs a boolean"),
            ("a.service", "MachineMetadata=\"a=b\" c=d", "2:17: `MachineMetadata`: quotes around a part"),
        ] {
            let told = read_in(name, lines).expect_err(lines).to_string();
            assert!(told.starts_with(expected), "{lines}: {told}");
        }
    }

    #[test]
    fn what_is_odd_but_harmless_is_warned_of() {
        for (lines, expected) in [
            (
                "MachinOf=b.service",
                "2:1: unrecognized requirement in [X-Fleet] section: \"MachinOf\" (did you mean `MachineOf`?)",
            ),
            (
                "Weight=3",
                "2:1: unrecognized requirement in [X-Fleet] section: \"Weight\" (it is passed over)",
            ),
            ("MachineMetadata=a=%H", "2:19: `%H` is not expanded"),
            ("Conflicts=a\\x2db.service", "2:11: `Conflicts`: `\\` in a pattern"),
            ("MachineID=01234567\nMachineID=89abcdef", "3:11: a second machine id is passed over"),
        ] {
            let warnings = read_in("a.service", lines).expect(lines).1;
            assert!(
                warnings.len() == 1 && warnings[0].to_string().starts_with(expected),
                "{lines}: {warnings:?}"
            );
        }
        assert!(read_in("a.service", "Register=web:80").expect("ours").1.is_empty());
        let (read, warnings) = read_in("a.service", "OnPartition=stop\nReplaces=b.service").expect("ours");
        assert_eq!((read.on_partition, warnings.len()), (OnPartition::Stop, 0));
    }
}
