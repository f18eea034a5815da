//! What an operator, a user or bad luck does to the cluster: the words of scripts, and what random runs are made of.
//!
//! Invariant: a step's text, read again, is the same step; so what a random run did can be replayed as a script.

use crate::{message::Host, systemd::Behaviour};
use model::UnitName;
use std::{fmt, str::FromStr, time::Duration};

/// Which way a link is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Nothing goes through.
    Both,
    /// What the machine sends is lost.
    ToHub,
    /// What the hub sends is lost.
    FromHub,
}

/// One thing that is done to the cluster.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// A unit file is submitted, with these options in `[X-Fleet]`; it replaces another text.
    Submit(UnitName, Vec<String>),
    /// A unit is to be launched.
    Start(UnitName),
    /// A unit is to be loaded only.
    Stop(UnitName),
    /// A unit is to be on no machine.
    Unload(UnitName),
    /// A unit is to be unknown.
    Destroy(UnitName),
    /// The units of a machine shall go elsewhere, and nothing new come.
    Drain(Host),
    /// Nothing new shall come to a machine.
    Cordon(Host),
    /// Units may come to a machine again.
    Uncordon(Host),
    /// A unit shall go to another machine.
    Move(UnitName, Host),
    /// Power is cut.
    Kill(Host),
    /// Power comes back.
    Boot(Host),
    /// The machine is shut down in order.
    Shutdown(Host),
    /// The machine is shut down in order, and boots.
    Reboot(Host),
    /// The daemon is killed; systemd starts it again.
    KillDaemon(Host),
    /// The daemon stands still.
    Freeze(Host),
    /// The daemon goes on.
    Thaw(Host),
    /// The machine and the hub do not reach each other.
    Cut(Host, Direction),
    /// They do again.
    Heal(Host),
    /// The hub's process is gone.
    HubDown,
    /// The hub's process is back.
    HubUp,
    /// The machine's watches break; it notices.
    BreakWatches(Host),
    /// The machine's watches carry nothing any longer; it does not notice.
    StallWatches(Host),
    /// Every change is told twice from now on, or no longer.
    Duplicates(bool),
    /// The machine's clock is too fast by so many millionths.
    Drift(Host, i32),
    /// How a unit behaves when it is started from now on.
    Behave(UnitName, Behaviour),
}

/// Why a line of a script is no step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// The first word is unknown.
    #[error("`{0}` is no command")]
    Unknown(String),
    /// Something is missing behind the command.
    #[error("`{command}` needs {needs}")]
    Needs {
        /// Which command.
        command: String,
        /// What it needs.
        needs: &'static str,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Submit(unit, options) => {
                write!(f, "submit {unit}")?;
                options.iter().try_for_each(|option| write!(f, " {option}"))
            }
            Self::Start(unit) => write!(f, "start {unit}"),
            Self::Stop(unit) => write!(f, "stop {unit}"),
            Self::Unload(unit) => write!(f, "unload {unit}"),
            Self::Destroy(unit) => write!(f, "destroy {unit}"),
            Self::Drain(host) => write!(f, "drain {host}"),
            Self::Cordon(host) => write!(f, "cordon {host}"),
            Self::Uncordon(host) => write!(f, "uncordon {host}"),
            Self::Move(unit, host) => write!(f, "move {unit} {host}"),
            Self::Kill(host) => write!(f, "kill {host}"),
            Self::Boot(host) => write!(f, "boot {host}"),
            Self::Shutdown(host) => write!(f, "shutdown {host}"),
            Self::Reboot(host) => write!(f, "reboot {host}"),
            Self::KillDaemon(host) => write!(f, "kill-daemon {host}"),
            Self::Freeze(host) => write!(f, "freeze {host}"),
            Self::Thaw(host) => write!(f, "thaw {host}"),
            Self::Cut(host, Direction::Both) => write!(f, "cut {host}"),
            Self::Cut(host, Direction::ToHub) => write!(f, "cut {host} to-hub"),
            Self::Cut(host, Direction::FromHub) => write!(f, "cut {host} from-hub"),
            Self::Heal(host) => write!(f, "heal {host}"),
            Self::HubDown => f.write_str("hub-down"),
            Self::HubUp => f.write_str("hub-up"),
            Self::BreakWatches(host) => write!(f, "break-watches {host}"),
            Self::StallWatches(host) => write!(f, "stall-watches {host}"),
            Self::Duplicates(on) => write!(f, "duplicates {}", if *on { "on" } else { "off" }),
            Self::Drift(host, ppm) => write!(f, "drift {host} {ppm}"),
            Self::Behave(unit, behaviour) => write!(f, "behave {unit} {behaviour}"),
        }
    }
}

impl fmt::Display for Behaviour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "start={}ms stop={}ms", self.start.as_millis(), self.stop.as_millis())?;
        if let Some(ends) = self.ends {
            write!(f, " ends={}ms", ends.as_millis())?;
        }
        if self.fails { f.write_str(" fails") } else { Ok(()) }
    }
}

impl FromStr for Host {
    type Err = StepError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = text.strip_prefix('m').and_then(|number| number.parse::<usize>().ok());
        match number.and_then(|number| number.checked_sub(1)) {
            Some(index) => Ok(Self(index)),
            None => Err(StepError::Needs { command: text.to_owned(), needs: "to be a machine, like `m1`" }),
        }
    }
}

impl FromStr for Step {
    type Err = StepError;
    fn from_str(line: &str) -> Result<Self, Self::Err> {
        let mut words = line.split_whitespace();
        let command = words.next().unwrap_or_default();
        let needs = |needs| StepError::Needs { command: command.to_owned(), needs };
        let rest: Vec<_> = words.collect();
        let unit = || -> Result<UnitName, StepError> {
            let word = rest.first().ok_or_else(|| needs("a unit"))?;
            UnitName::from_argument(word).map_err(|_| needs("a unit's name"))
        };
        let host = || rest.first().ok_or_else(|| needs("a machine"))?.parse();
        Ok(match command {
            "submit" => Self::Submit(unit()?, rest[1..].iter().map(|word| (*word).to_owned()).collect()),
            "start" => Self::Start(unit()?),
            "stop" => Self::Stop(unit()?),
            "unload" => Self::Unload(unit()?),
            "destroy" => Self::Destroy(unit()?),
            "drain" => Self::Drain(host()?),
            "cordon" => Self::Cordon(host()?),
            "uncordon" => Self::Uncordon(host()?),
            "move" => {
                Self::Move(unit()?, rest.get(1).ok_or_else(|| needs("a machine behind the unit"))?.parse()?)
            }
            "kill" => Self::Kill(host()?),
            "boot" => Self::Boot(host()?),
            "shutdown" => Self::Shutdown(host()?),
            "reboot" => Self::Reboot(host()?),
            "kill-daemon" => Self::KillDaemon(host()?),
            "freeze" => Self::Freeze(host()?),
            "thaw" => Self::Thaw(host()?),
            "cut" => Self::Cut(
                host()?,
                match rest.get(1).copied() {
                    None => Direction::Both,
                    Some("to-hub") => Direction::ToHub,
                    Some("from-hub") => Direction::FromHub,
                    Some(_) => return Err(needs("`to-hub`, `from-hub` or nothing behind the machine")),
                },
            ),
            "heal" => Self::Heal(host()?),
            "hub-down" => Self::HubDown,
            "hub-up" => Self::HubUp,
            "break-watches" => Self::BreakWatches(host()?),
            "stall-watches" => Self::StallWatches(host()?),
            "duplicates" => Self::Duplicates(rest.first() == Some(&"on")),
            "drift" => {
                let ppm = rest.get(1).and_then(|word| word.parse().ok());
                Self::Drift(host()?, ppm.ok_or_else(|| needs("millionths behind the machine"))?)
            }
            "behave" => Self::Behave(unit()?, behaviour(&rest[1..]).ok_or_else(|| needs(BEHAVIOUR))?),
            other => return Err(StepError::Unknown(other.to_owned())),
        })
    }
}

const BEHAVIOUR: &str = "a unit and some of `start=…ms`, `stop=…ms`, `ends=…ms`, `fails`";

fn behaviour(words: &[&str]) -> Option<Behaviour> {
    let mut behaviour = Behaviour::default();
    for word in words {
        if *word == "fails" {
            behaviour.fails = true;
            continue;
        }
        let (name, span) = word.split_once('=')?;
        let span = Duration::from_millis(span.strip_suffix("ms")?.parse().ok()?);
        match name {
            "start" => behaviour.start = span,
            "stop" => behaviour.stop = span,
            "ends" => behaviour.ends = Some(span),
            _ => return None,
        }
    }
    Some(behaviour)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_what_its_text_says() {
        for line in [
            "submit web@.service Conflicts=web@*.service OnPartition=stop",
            "start web@1.service",
            "move a.service m2",
            "kill m2",
            "cut m1",
            "cut m3 from-hub",
            "hub-down",
            "duplicates on",
            "drift m2 -500",
            "behave a.service start=5ms stop=30000ms ends=7ms fails",
        ] {
            let step: Step = line.parse().expect(line);
            assert_eq!(step.to_string(), line);
        }
        for (line, problem) in [
            ("dance m1", "`dance` is no command"),
            ("kill", "`kill` needs a machine"),
            ("kill 1", "`1` needs to be a machine, like `m1`"),
            ("drift m1 fast", "`drift` needs millionths behind the machine"),
        ] {
            assert_eq!(line.parse::<Step>().expect_err(line).to_string(), problem);
        }
    }
}
