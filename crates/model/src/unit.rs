//! Unit names (systemd.unit(5), with fleet's limits) and the hub's records about units.

use crate::{MachineId, RECORD_VERSION, Revision, Unknown};
use serde::{Deserialize, Serialize};
use std::{borrow::Borrow, fmt, str::FromStr};

/// Unit types that systemd knows.
const TYPES: [&str; 12] = [
    "automount",
    "busname",
    "device",
    "mount",
    "path",
    "scope",
    "service",
    "slice",
    "snapshot",
    "socket",
    "swap",
    "target",
];
/// Unit types that may be templates (`name@.type`), `timer` included.
const TEMPLATE_TYPES: [&str; 5] = ["path", "service", "socket", "target", "timer"];
/// systemd's own limit.
const MAX_LENGTH: usize = 256;

/// The name of a unit: `name.service`, the template `name@.service`, or its instance `name@1.service`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UnitName(String);

/// Why a text is no unit name. The texts are fleet's, which scripts may match.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitNameError {
    /// The empty string.
    #[error("unit name cannot be empty")]
    Empty,
    /// More than 256 bytes.
    #[error("unit name exceeds maximum length ({MAX_LENGTH})")]
    TooLong,
    /// No type.
    #[error("unit name must contain \".\"")]
    NoDot,
    /// Nothing after the last dot.
    #[error("unit name cannot end in \".\"")]
    EndsInDot,
    /// A type that systemd does not know.
    #[error("invalid unit type: \"{0}\"")]
    Type(String),
    /// A template or an instance of a type that has none.
    #[error("invalid unit type for template: \"{0}\"")]
    TemplateType(String),
    /// A character that systemd does not allow.
    #[error("invalid character '{0}' in unit name")]
    Character(char),
    /// No prefix.
    #[error("unit name cannot start in \"@\"")]
    StartsInAt,
}

impl UnitName {
    /// The whole name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as somebody types it: `.service` is added where no unit type is given, and directories in
    /// front are dropped, as fleetctl did.
    pub fn from_argument(argument: &str) -> Result<Self, UnitNameError> {
        let name = argument.rsplit('/').next().unwrap_or(argument);
        let suffix = name.rsplit_once('.').map_or("", |(_, suffix)| suffix);
        match suffix {
            "service" | "socket" | "timer" | "path" | "device" | "mount" | "automount" | "target"
            | "slice" | "scope" | "swap" => name.parse(),
            _ if name.is_empty() => Err(UnitNameError::Empty),
            _ => format!("{name}.service").parse(),
        }
    }

    /// Without the type: systemd's `%N`.
    pub fn stem(&self) -> &str {
        self.0.rsplit_once('.').map_or(&*self.0, |(stem, _)| stem)
    }

    /// The type: `service`, `timer`…
    pub fn kind(&self) -> &str {
        self.0.rsplit_once('.').map_or("", |(_, kind)| kind)
    }

    /// What stands before the `@`, or the stem where there is none: systemd's `%p`.
    pub fn prefix(&self) -> &str {
        self.stem().split_once('@').map_or_else(|| self.stem(), |(prefix, _)| prefix)
    }

    /// What stands behind the `@`: systemd's `%i`. `None` for a template and for a unit without `@`.
    pub fn instance(&self) -> Option<&str> {
        self.stem().split_once('@').map(|(_, instance)| instance).filter(|instance| !instance.is_empty())
    }

    /// True for `name@.service`.
    pub fn is_template(&self) -> bool {
        self.stem().split_once('@').is_some_and(|(_, instance)| instance.is_empty())
    }

    /// The template that this instance is made from.
    pub fn template(&self) -> Option<Self> {
        self.instance().map(|_| Self(format!("{}@.{}", self.prefix(), self.kind())))
    }
}

impl FromStr for UnitName {
    type Err = UnitNameError;
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        if name.is_empty() {
            return Err(UnitNameError::Empty);
        }
        if name.len() > MAX_LENGTH {
            return Err(UnitNameError::TooLong);
        }
        let (stem, kind) = name.rsplit_once('.').ok_or(UnitNameError::NoDot)?;
        if kind.is_empty() {
            return Err(UnitNameError::EndsInDot);
        }
        if !TYPES.contains(&kind) && kind != "timer" {
            return Err(UnitNameError::Type(kind.to_owned()));
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || ":_.\\@-".contains(c);
        if let Some(bad) = stem.chars().find(|c| !allowed(*c)) {
            return Err(UnitNameError::Character(bad));
        }
        if stem.is_empty() {
            return Err(UnitNameError::Empty);
        }
        if stem.starts_with('@') {
            return Err(UnitNameError::StartsInAt);
        }
        if stem.contains('@') && !TEMPLATE_TYPES.contains(&kind) {
            return Err(UnitNameError::TemplateType(kind.to_owned()));
        }
        Ok(Self(name.to_owned()))
    }
}

impl TryFrom<String> for UnitName {
    type Error = UnitNameError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// Names sort and compare as their texts do.
impl Borrow<str> for UnitName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl From<UnitName> for String {
    fn from(name: UnitName) -> Self {
        name.0
    }
}

impl fmt::Display for UnitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for UnitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What the cluster is asked to do with a unit. Ordered: each state includes the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DesiredState {
    /// Known to the cluster, on no machine.
    #[default]
    Inactive,
    /// On a machine, its file known to systemd, not started.
    Loaded,
    /// On a machine and started.
    Launched,
}

impl DesiredState {
    /// The word that the hub, the API and the tables use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inactive => "inactive",
            Self::Loaded => "loaded",
            Self::Launched => "launched",
        }
    }
}

impl fmt::Display for DesiredState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A unit: the value of [`crate::keys::unit`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UnitRecord {
    /// Record version.
    pub v: u32,
    /// The unit file as it was submitted.
    pub text: String,
    /// Hash of the file's meaning; see the `unit` crate.
    pub hash: String,
    /// What is wanted of it.
    pub desired: DesiredState,
    /// Counts the orders to start it, so that a second `start` of a unit that has stopped starts it again.
    #[serde(default)]
    pub launch: u64,
    /// Counts the texts that it had: 1 for the first. The former ones are at [`crate::keys::version`].
    #[serde(default = "first_version")]
    pub version: u64,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub unknown: Unknown,
}

fn first_version() -> u64 {
    1
}

impl UnitRecord {
    /// A unit that was just submitted.
    pub fn new(text: String, hash: String) -> Self {
        Self {
            v: RECORD_VERSION,
            text,
            hash,
            desired: DesiredState::Inactive,
            launch: 0,
            version: first_version(),
            unknown: Unknown::new(),
        }
    }

    /// The same with the next text.
    pub fn replaced(&self, text: String, hash: String) -> Self {
        Self { text, hash, version: self.version.saturating_add(1), ..self.clone() }
    }

    /// The same, its start orders counted from `revision`, at which the hub had no such unit: a unit that was
    /// destroyed and is made again then never repeats a number that some agent has carried out already.
    pub fn counted_from(self, revision: Revision) -> Self {
        Self { launch: u64::try_from(revision.0).unwrap_or(0), ..self }
    }
}

/// What one machine must do with one unit: the value of [`crate::keys::schedule`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScheduleRecord {
    /// Record version.
    pub v: u32,
    /// Which unit file.
    pub hash: String,
    /// `loaded` or `launched`.
    pub desired: DesiredState,
    /// The unit's start order that this answers; see [`UnitRecord::launch`].
    #[serde(default)]
    pub launch: u64,
    /// The engine's term (the revision of its leader key) that decided this.
    pub term: Revision,
    /// Why here, in words.
    pub why: String,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// An order to move a unit to another machine: the value of [`crate::keys::move_order`]. The leader carries it out or
/// refuses it, and deletes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MoveRecord {
    /// Record version.
    pub v: u32,
    /// Where it shall run.
    pub to: MachineId,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl MoveRecord {
    /// An order to move a unit to `to`.
    pub fn new(to: MachineId) -> Self {
        Self { v: RECORD_VERSION, to, unknown: Unknown::new() }
    }
}

/// A unit's state on one machine, as systemd reports it: the value of [`crate::keys::state`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitState {
    /// Record version.
    pub v: u32,
    /// `loaded`, `not-found`, `bad-setting`, `error`, `masked`.
    pub load: String,
    /// `active`, `inactive`, `activating`, `deactivating`, `failed`, `reloading`.
    pub active: String,
    /// The type's own state: `running`, `dead`, `exited`, `start-post`…
    pub sub: String,
    /// Which unit file it runs.
    pub hash: String,
    /// The start order that was carried out last; see [`UnitRecord::launch`].
    #[serde(default)]
    pub launch: u64,
    /// What went wrong when the agent tried to load or start it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl UnitState {
    /// True while something of the unit runs, or is about to.
    pub fn is_running(&self) -> bool {
        !matches!(self.active.as_str(), "inactive" | "failed" | "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> UnitName {
        text.parse().expect("a valid name")
    }

    #[test]
    fn templates_and_instances() {
        let plain = name("web.service");
        assert_eq!((plain.prefix(), plain.instance(), plain.is_template()), ("web", None, false));
        let template = name("web@.service");
        assert_eq!((template.prefix(), template.instance(), template.is_template()), ("web", None, true));
        let instance = name("web@a@b.service");
        assert_eq!((instance.prefix(), instance.instance()), ("web", Some("a@b")));
        assert_eq!(instance.template(), Some(template));
        assert_eq!(name("a.b.service").stem(), "a.b");
    }

    #[test]
    fn what_people_type_becomes_a_name() {
        for (argument, expected) in [
            ("hello", "hello.service"),
            ("foo.bar", "foo.bar.service"),
            ("./units/web@1", "web@1.service"),
            ("backup.timer", "backup.timer"),
        ] {
            assert_eq!(UnitName::from_argument(argument).expect("valid").as_str(), expected);
        }
    }

    #[test]
    fn bad_names_are_refused_with_fleets_words() {
        for (text, expected) in [
            ("", "unit name cannot be empty"),
            ("web", "unit name must contain \".\""),
            ("web.", "unit name cannot end in \".\""),
            ("web.foo", "invalid unit type: \"foo\""),
            ("web@1.mount", "invalid unit type for template: \"mount\""),
            ("we b.service", "invalid character ' ' in unit name"),
            ("@1.service", "unit name cannot start in \"@\""),
        ] {
            assert_eq!(text.parse::<UnitName>().expect_err(text).to_string(), expected);
        }
        assert_eq!(format!("{}.service", "a".repeat(256)).parse::<UnitName>(), Err(UnitNameError::TooLong));
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused(text in ".{0,40}") {
            if let Ok(name) = text.parse::<UnitName>() {
                prop_assert_eq!(name.as_str(), &text);
                prop_assert!(!name.prefix().is_empty());
            }
        }
    }
}
