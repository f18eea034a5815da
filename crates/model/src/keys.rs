//! The hub's key schema: every key that Muster reads or writes is made and taken apart here.

use crate::{EventId, MachineId, ServiceName, UnitName, network::SubnetKey};
use std::ops::Range;

/// Everything of our own.
pub const MUSTER: &str = "/muster/v1/";
/// Machines, units, schedule and states, and what operators ask for: all that a view of the cluster is made of. What
/// happened (events) and who leads is not in it.
pub const VIEW: Range<&str> = MACHINES.."/muster/v10";
/// Which cluster this hub is of: an id that every machine notes when it joins.
pub const CLUSTER: &str = "/muster/v1/cluster";
/// Presence of machines: `<id>` → [`crate::MachineRecord`], under the machine's lease.
pub const MACHINES: &str = "/muster/v1/machines/";
/// Units: `<unit>` → [`crate::UnitRecord`].
pub const UNITS: &str = "/muster/v1/units/";
/// What machines must run: `<machine>/<unit>` → [`crate::ScheduleRecord`].
pub const SCHEDULE: &str = "/muster/v1/schedule/";
/// Orders to move units: `<unit>` → [`crate::MoveRecord`]. The leader deletes each when it has decided.
pub const MOVES: &str = "/muster/v1/moves/";
/// Updates under way, and the last one of each: `<template or unit>` → [`crate::RolloutRecord`].
pub const ROLLOUTS: &str = "/muster/v1/rollouts/";
/// Texts that units had before: `<unit>/<number>` → [`crate::HistoryRecord`]. Beside [`MUSTER`] and not under it:
/// whoever lists or follows the cluster needs none of them.
pub const HISTORY: &str = "/muster/history/v1/";
/// What machines do run: `<machine>/<unit>` → [`crate::UnitState`], under the machine's lease.
pub const STATES: &str = "/muster/v1/states/";
/// What administrators want of machines: `<machine>` → [`crate::MaintenanceRecord`]. No key: nothing special.
pub const MAINTENANCE: &str = "/muster/v1/maintenance/";
/// Metadata set on machines from outside: `<machine>` → [`crate::MetadataRecord`], merged over the machine's own.
pub const METADATA: &str = "/muster/v1/metadata/";
/// What happened and why: `<id>` → [`crate::EventRecord`], each under a lease of about a day.
pub const EVENTS: &str = "/muster/v1/events/";
/// Who leads: the engine's election, under a lease of its own that is shorter than machines'.
pub const LEADER: &str = "/muster/v1/engine/leader";
/// The cluster network's configuration, in flannel's own form.
pub const NETWORK_CONFIG: &str = "/coreos.com/network/config";
/// All of the cluster network: its configuration, its leases, and our own records beside them.
pub const NETWORK: &str = "/coreos.com/network/";
/// Which subnet each machine has for good: `<machine>` → [`crate::network::NodeRecord`]. flanneld reads only what
/// begins with `/coreos.com/network/subnets`.
pub const NETWORK_NODES: &str = "/coreos.com/network/nodes/";
/// Leases of subnets, in flannel's own form: `<ip>-<len>` → [`crate::SubnetLease`].
pub const SUBNETS: &str = "/coreos.com/network/subnets/";
/// Registered services.
pub const SERVICES: &str = "/services/";
/// What each router serves: `<machine>/applied` → [`crate::RouterRecord`], under the machine's lease.
pub const ROUTERS: &str = "/muster/router/v1/";

/// The presence of `machine`.
pub fn machine(machine: &MachineId) -> String {
    format!("{MACHINES}{machine}")
}

/// The record of `unit`.
pub fn unit(unit: &UnitName) -> String {
    format!("{UNITS}{unit}")
}

/// Everything that `machine` must run.
pub fn schedule_of(machine: &MachineId) -> String {
    format!("{SCHEDULE}{machine}/")
}

/// What `machine` must do with `unit`.
pub fn schedule(machine: &MachineId, unit: &UnitName) -> String {
    format!("{SCHEDULE}{machine}/{unit}")
}

/// An order to move `unit`.
pub fn move_order(unit: &UnitName) -> String {
    format!("{MOVES}{unit}")
}

/// The update of a unit, or of a template with its instances.
pub fn rollout(name: &UnitName) -> String {
    format!("{ROLLOUTS}{name}")
}

/// All texts that `unit` had before.
pub fn history_of(unit: &UnitName) -> String {
    format!("{HISTORY}{unit}/")
}

/// The text that `unit` had as its version `number`.
pub fn version(unit: &UnitName, number: u64) -> String {
    format!("{HISTORY}{unit}/{number}")
}

/// Takes [`version`] apart.
pub fn unit_and_version(key: &str) -> Option<(UnitName, u64)> {
    let (unit, number) = key.strip_prefix(HISTORY)?.split_once('/')?;
    Some((unit.parse().ok()?, number.parse().ok()?))
}

/// The state of `unit` on `machine`.
pub fn state(machine: &MachineId, unit: &UnitName) -> String {
    format!("{STATES}{machine}/{unit}")
}

/// All states on `machine`.
pub fn states_of(machine: &MachineId) -> String {
    format!("{STATES}{machine}/")
}

/// What administrators want of `machine`.
pub fn maintenance(machine: &MachineId) -> String {
    format!("{MAINTENANCE}{machine}")
}

/// Metadata set on `machine` from outside.
pub fn metadata(machine: &MachineId) -> String {
    format!("{METADATA}{machine}")
}

/// An event.
pub fn event(id: &EventId) -> String {
    format!("{EVENTS}{id}")
}

/// The keys of one cluster network, below a prefix of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkKeys {
    prefix: String,
}

impl Default for NetworkKeys {
    fn default() -> Self {
        Self::new(NETWORK)
    }
}

impl NetworkKeys {
    /// Those below `prefix`, which may end with `/`.
    pub fn new(prefix: &str) -> Self {
        Self { prefix: format!("{}/", prefix.trim_end_matches('/')) }
    }

    /// Before all of them.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// As [`NETWORK_CONFIG`].
    pub fn config(&self) -> String {
        format!("{}config", self.prefix)
    }

    /// As [`subnet`].
    pub fn subnet(&self, subnet: impl Into<SubnetKey>) -> String {
        format!("{}subnets/{}", self.prefix, subnet.into())
    }

    /// What [`Self::subnet`] was made of.
    pub fn subnet_of(&self, key: &str) -> Option<SubnetKey> {
        key.strip_prefix(&self.prefix)?.strip_prefix("subnets/")?.parse().ok()
    }

    /// As [`network_node`].
    pub fn node(&self, machine: &MachineId) -> String {
        format!("{}nodes/{machine}", self.prefix)
    }

    /// The machine that [`Self::node`] was made of.
    pub fn node_of<'a>(&self, key: &'a str) -> Option<&'a str> {
        key.strip_prefix(&self.prefix)?.strip_prefix("nodes/")
    }
}

/// The lease of `subnet`.
pub fn subnet(subnet: impl Into<SubnetKey>) -> String {
    format!("{SUBNETS}{}", subnet.into())
}

/// Which subnet `machine` has.
pub fn network_node(machine: &MachineId) -> String {
    format!("{NETWORK_NODES}{machine}")
}

/// Takes `<machine>/<unit>` apart, behind [`SCHEDULE`] or [`STATES`].
pub fn machine_and_unit(prefix: &str, key: &str) -> Option<(MachineId, UnitName)> {
    let (machine, unit) = key.strip_prefix(prefix)?.split_once('/')?;
    Some((machine.parse().ok()?, unit.parse().ok()?))
}

/// What is under `/services/<svc>/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceKey<'a> {
    /// Where an instance listens: [`crate::Endpoint`].
    Upstream(&'a str),
    /// More about an instance: [`crate::ServiceMeta`].
    Meta(&'a str),
    /// What is said about an instance: [`crate::InstanceState`].
    State(&'a str),
    /// How the service is balanced: [`crate::ServiceConfig`].
    Config,
}

/// Where an instance of `service` listens.
pub fn upstream(service: &ServiceName, instance: &str) -> String {
    format!("{SERVICES}{service}/upstream/{instance}")
}

/// The rich record of an instance of `service`.
pub fn service_meta(service: &ServiceName, instance: &str) -> String {
    format!("{SERVICES}{service}/meta/{instance}")
}

/// What is said about an instance of `service`.
pub fn instance_state(service: &ServiceName, instance: &str) -> String {
    format!("{SERVICES}{service}/state/{instance}")
}

/// How `service` is balanced.
pub fn service_config(service: &ServiceName) -> String {
    format!("{SERVICES}{service}/config")
}

/// What the router on `machine` serves.
pub fn router(machine: &MachineId) -> String {
    format!("{ROUTERS}{machine}/applied")
}

/// Takes a key under `/services/` apart; `None` for what is none of ours.
pub fn service(key: &str) -> Option<(ServiceName, ServiceKey<'_>)> {
    let (service, rest) = key.strip_prefix(SERVICES)?.split_once('/')?;
    let kind = match rest.split_once('/') {
        None if rest == "config" => ServiceKey::Config,
        Some((kind, instance)) if !instance.is_empty() && !instance.contains('/') => match kind {
            "upstream" => ServiceKey::Upstream(instance),
            "meta" => ServiceKey::Meta(instance),
            "state" => ServiceKey::State(instance),
            _ => return None,
        },
        _ => return None,
    };
    Some((service.parse().ok()?, kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_apart_as_they_were_made() {
        let id: MachineId = "0123456789abcdef0123456789abcdef".parse().expect("valid");
        let name: UnitName = "web@1.service".parse().expect("valid");
        assert_eq!(machine_and_unit(SCHEDULE, &schedule(&id, &name)), Some((id.clone(), name.clone())));
        assert_eq!(machine_and_unit(STATES, &state(&id, &name)), Some((id, name)));
        assert_eq!(machine_and_unit(STATES, "/muster/v1/states/x/y"), None);
        let web: UnitName = "web@.service".parse().expect("valid");
        assert_eq!(unit_and_version(&version(&web, 12)), Some((web.clone(), 12)));
        assert!(version(&web, 12).starts_with(&history_of(&web)));
        assert!(!HISTORY.starts_with(MUSTER), "it would be listed with the cluster");
    }

    #[test]
    fn a_view_has_the_cluster_and_not_its_past() {
        for inside in [MACHINES, UNITS, SCHEDULE, MOVES, STATES, MAINTENANCE, METADATA] {
            assert!(inside.starts_with(MUSTER) && VIEW.contains(&inside), "{inside}");
            assert!(VIEW.contains(&format!("{inside}\u{10ffff}").as_str()), "{inside}");
        }
        for outside in [EVENTS, LEADER, CLUSTER, NETWORK_CONFIG, SERVICES, ROUTERS] {
            assert!(!VIEW.contains(&outside) && !VIEW.contains(&format!("{outside}z").as_str()), "{outside}");
        }
    }

    #[test]
    fn keys_of_services_come_apart_as_they_were_made() {
        let app: ServiceName = "someapp".parse().expect("valid");
        let named = |kind| Some((app.clone(), kind));
        assert_eq!(service(&upstream(&app, "someapp@1")), named(ServiceKey::Upstream("someapp@1")));
        assert_eq!(service(&service_meta(&app, "someapp@1")), named(ServiceKey::Meta("someapp@1")));
        assert_eq!(service(&instance_state(&app, "someapp@1")), named(ServiceKey::State("someapp@1")));
        assert_eq!(service(&service_config(&app)), named(ServiceKey::Config));
        for other in
            ["/services/someapp/other", "/services/someapp/upstream/", "/services/a/upstream/b/c", "/x"]
        {
            assert_eq!(service(other), None, "{other}");
        }
    }
}
