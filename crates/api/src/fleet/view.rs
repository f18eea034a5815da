//! What fleet's API answers: its types, empty fields left out.

use crate::types;
use model::{DesiredState, Metadata};
use serde::Serialize;
use std::net::Ipv4Addr;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct MachinePage {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    machines: Vec<Machine>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
}

#[derive(Serialize)]
struct Machine {
    id: String,
    #[serde(skip_serializing_if = "Metadata::is_empty")]
    metadata: Metadata,
    #[serde(rename = "primaryIP")]
    primary_ip: Ipv4Addr,
}

impl MachinePage {
    pub(super) fn new(machines: Vec<types::Machine>, next_page_token: Option<String>) -> Self {
        let machine = |machine: types::Machine| Machine {
            id: machine.id.to_string(),
            metadata: machine.metadata,
            primary_ip: machine.address,
        };
        Self { machines: machines.into_iter().map(machine).collect(), next_page_token }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct UnitPage {
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    units: Vec<Unit>,
}

impl UnitPage {
    pub(super) fn new(units: &[types::Unit], next_page_token: Option<String>) -> Self {
        Self { next_page_token, units: units.iter().map(|unit| Unit::new(unit, false)).collect() }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Unit {
    #[serde(skip_serializing_if = "Option::is_none")]
    current_state: Option<DesiredState>,
    desired_state: DesiredState,
    #[serde(rename = "machineID", skip_serializing_if = "Option::is_none")]
    machine_id: Option<String>,
    name: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    options: Vec<UnitOption>,
}

#[derive(Serialize)]
struct UnitOption {
    name: String,
    section: String,
    value: String,
}

impl Unit {
    /// `launched`: it is called that, whatever it is.
    pub(super) fn new(unit: &types::Unit, launched: bool) -> Self {
        // What is stored was parsed when it came.
        let file = unit::UnitFile::parse(&unit.text).ok();
        let option = |option: &unit::UnitOption| UnitOption {
            name: option.name.clone(),
            section: option.section.clone(),
            value: option.raw.clone(),
        };
        let on = unit.machines.first().filter(|on| on.scheduled && !unit.global);
        let current = if launched { DesiredState::Launched } else { unit.current() };
        Self {
            current_state: (!unit.global).then_some(current),
            desired_state: unit.desired,
            machine_id: on.map(|on| on.id.to_string()),
            name: unit.name.to_string(),
            options: file.iter().flat_map(|file| file.options().iter().map(option)).collect(),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StatePage<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) next_page_token: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) states: Vec<UnitState<'a>>,
}

#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct UnitState<'a> {
    hash: &'a str,
    #[serde(rename = "machineID")]
    pub(super) machine_id: &'a str,
    pub(super) name: &'a str,
    systemd_active_state: &'a str,
    systemd_load_state: &'a str,
    systemd_sub_state: &'a str,
}

impl<'a> UnitState<'a> {
    /// The unit's state on each machine that has one, ordered by the machine's id.
    pub(super) fn all(unit: &'a types::Unit) -> impl Iterator<Item = Self> + Clone {
        let mut states: Vec<_> = unit
            .machines
            .iter()
            .filter_map(|on| on.state.as_ref().map(|state| (on, state)))
            .map(|(on, state)| Self {
                hash: &state.hash,
                machine_id: on.id.as_str(),
                name: unit.name.as_str(),
                systemd_active_state: &state.active,
                systemd_load_state: &state.load,
                systemd_sub_state: &state.sub,
            })
            .collect();
        states.sort_by_key(|state| state.machine_id);
        states.into_iter()
    }
}
