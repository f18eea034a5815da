//! Requests and answers. Every list says at which revision of the hub it holds.

use model::{DesiredState, MachineId, Maintenance, Metadata, Revision, Subnet, Timestamp, UnitName};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, net::Ipv4Addr};

/// A machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Its machine-id.
    pub id: MachineId,
    /// Its host name.
    pub name: String,
    /// Its address on the machines' network.
    pub address: Ipv4Addr,
    /// Its share of the cluster network.
    pub subnet: Option<Subnet>,
    /// Its metadata.
    pub metadata: Metadata,
    /// The version of Muster that runs there.
    pub version: String,
    /// What an administrator wants of it; absent when nothing special.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintenance: Option<MachineMaintenance>,
}

/// A machine that takes no units, or is left by them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachineMaintenance {
    /// What is wanted.
    pub state: Maintenance,
    /// Since when.
    pub since: Timestamp,
    /// Who wanted it.
    pub by: String,
    /// What for.
    pub reason: String,
}

/// `GET /v1/machines`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachineList {
    /// When this was true.
    pub revision: Revision,
    /// Ordered by id.
    pub machines: Vec<Machine>,
}

/// A unit, where it is to run, and how it does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Unit {
    /// Its name.
    pub name: UnitName,
    /// Hash of its file's meaning.
    pub hash: String,
    /// The file.
    pub text: String,
    /// What is wanted of it.
    pub desired: DesiredState,
    /// The number of its last start order.
    pub launch: u64,
    /// Whether it runs on every machine that fits.
    pub global: bool,
    /// Where it is to run, and how it does there. Empty while no machine has it.
    pub machines: Vec<UnitOnMachine>,
    /// While no machine can run it: each machine's reason, by the machine's name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub refused: BTreeMap<String, String>,
}

impl Unit {
    /// fleet's `currentState`: how far the cluster got with what is wanted.
    pub fn current(&self) -> DesiredState {
        match self.machines.first().and_then(|on| on.state.as_ref().map(|state| (on, state))) {
            None => DesiredState::Inactive,
            Some((_, state)) if state.hash != self.hash => DesiredState::Inactive,
            Some((_, state)) if self.desired == DesiredState::Launched && state.launch >= self.launch => {
                DesiredState::Launched
            }
            Some((_, state)) if self.desired != DesiredState::Launched && state.is_running() => {
                DesiredState::Launched
            }
            Some(_) => DesiredState::Loaded,
        }
    }
}

/// A unit on one machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UnitOnMachine {
    /// Which machine.
    pub id: MachineId,
    /// Its host name; empty when the machine is gone.
    pub name: String,
    /// Its address.
    pub address: Option<Ipv4Addr>,
    /// Whether it is to run there, or only still does.
    pub scheduled: bool,
    /// Why it is there.
    pub why: String,
    /// What systemd says there; absent until the machine has reported.
    pub state: Option<State>,
}

/// systemd's states of a unit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// LoadState.
    pub load: String,
    /// ActiveState.
    pub active: String,
    /// SubState.
    pub sub: String,
    /// Which file it runs.
    pub hash: String,
    /// Which start order was carried out.
    pub launch: u64,
    /// What went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl State {
    /// True while something of the unit runs or is about to.
    pub fn is_running(&self) -> bool {
        !matches!(self.active.as_str(), "inactive" | "failed")
    }
}

/// `GET /v1/units`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UnitList {
    /// When this was true.
    pub revision: Revision,
    /// Ordered by name.
    pub units: Vec<Unit>,
}

/// A change to one unit, in `POST /v1/units`. All changes of a request are checked before any is made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UnitChange {
    /// Which unit.
    pub name: UnitName,
    /// Its file; without one the unit, or its template, must be known already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// What is wanted of it; without it nothing changes for a known unit, and a new one is inactive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired: Option<DesiredState>,
    /// Whether a file that differs from the known one replaces it.
    #[serde(default)]
    pub replace: bool,
}

/// What a change did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UnitChanged {
    /// Which unit.
    pub name: UnitName,
    /// Whether it was new.
    pub created: bool,
    /// What was wanted before.
    pub before: DesiredState,
    /// What is wanted now.
    pub desired: DesiredState,
    /// What its author should know, rendered.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// Answer to `POST /v1/units`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UnitsChanged {
    /// When it was done.
    pub revision: Revision,
    /// In the order of the request.
    pub units: Vec<UnitChanged>,
}

/// Names of units: the body of `POST /v1/units/destroy` and `POST /v1/units/watch`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Names {
    /// Which units.
    pub units: Vec<UnitName>,
}

/// A line of `POST /v1/units/watch`: first one for each unit as it is, then one for each change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Watched {
    /// Which unit.
    pub name: UnitName,
    /// How it is; absent when it is not known, or no longer.
    pub unit: Option<Unit>,
    /// Machines on which a unit that is no longer known has not stopped yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leftover: Vec<String>,
}

/// What to run beside a unit, on its machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Run {
    /// `systemctl status`.
    Status,
    /// `journalctl`.
    Journal {
        /// How many lines back.
        lines: u32,
        /// Whether to go on with new lines.
        follow: bool,
        /// journalctl's output format.
        output: String,
    },
    /// A program inside the unit.
    Exec {
        /// The program and its arguments.
        command: Vec<String>,
        /// Whether to take the machine's own program and enter only the unit's network.
        network: bool,
    },
}

/// A program on a machine itself, beside no unit, with standard input: the first frame of
/// `POST /v1/machines/<machine>/shell`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shell {
    /// For `/bin/sh -c`; without it, root's login shell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// The terminal at the other end, if it gets one at this end as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tty: Option<Tty>,
}

/// A terminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tty {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
    /// What `$TERM` says of it.
    pub term: String,
}

/// The body of every error answer, in fleet's form.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct ErrorBody {
    error: ApiError,
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct ApiError {
    /// The HTTP status.
    pub code: u16,
    /// What is wrong and what to do.
    pub message: String,
}

impl ApiError {
    /// 400: the request itself is wrong.
    pub fn bad_request(message: impl fmt::Display) -> Self {
        Self { code: 400, message: message.to_string() }
    }

    /// 404: what it names does not exist.
    pub fn not_found(message: impl fmt::Display) -> Self {
        Self { code: 404, message: message.to_string() }
    }

    /// 409: it contradicts what is.
    pub fn conflict(message: impl fmt::Display) -> Self {
        Self { code: 409, message: message.to_string() }
    }

    /// 503: the hub or another machine does not answer.
    pub fn unavailable(message: impl fmt::Display) -> Self {
        Self { code: 503, message: message.to_string() }
    }

    /// As JSON.
    pub(crate) fn body(&self) -> String {
        serde_json::to_string(&ErrorBody { error: self.clone() }).expect("texts and numbers always render")
    }

    /// From JSON, or from whatever a stranger answered.
    pub(crate) fn from_body(code: u16, body: &[u8]) -> Self {
        serde_json::from_slice::<ErrorBody>(body).map_or_else(
            |_| Self { code, message: String::from_utf8_lossy(body).trim().to_owned() },
            |body| body.error,
        )
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
