//! What an operator asks, answered by the cluster in memory: one machine takes every unit, the other refuses.

use crate::memory::{Memory, id};
use api::{
    ApiError,
    operations::{
        Event, EventList, EventQuery, MachineRef, MaintenanceOrder, Move, MovePlan, Operations, Refused,
        Verdict, Why,
    },
    types::MachineMaintenance,
};
use model::{DesiredState, EventId, EventKind, EventRecord, MachineId, Revision, Timestamp, UnitName};
use serde_json::json;
use tokio::sync::mpsc;

fn machine(number: usize) -> MachineRef {
    MachineRef { id: id(number), name: format!("m{}", number + 1) }
}

fn event(number: u64) -> Event {
    let mut event = EventRecord::new(
        Timestamp(number),
        EventKind::Scheduled,
        "fewest units".to_owned(),
        "a.service goes to m1".to_owned(),
    );
    event.unit = "a.service".parse().ok();
    event.machine = Some(id(0));
    Event { id: EventId::new(Timestamp(number), 1, 0), event }
}

impl Operations for Memory {
    async fn why(&self, unit: UnitName) -> Result<Why, ApiError> {
        drop(self.inner()?);
        let verdict = |number, refused: Option<Refused>| Verdict {
            machine: machine(number),
            here: refused.is_none(),
            rank: refused.is_none().then_some(1),
            units: 1,
            siblings: 0,
            share: 0,
            refused,
        };
        let refused = Refused {
            unit: unit.clone(),
            rule: json!({"MachineId": IDENTIFIED}),
            text: format!("MachineID={IDENTIFIED} is another machine"),
        };
        Ok(Why {
            revision: Revision(1),
            desired: DesiredState::Launched,
            machines: vec![(machine(0), "the only machine that fits".to_owned())],
            group: vec![unit.clone()],
            verdicts: vec![verdict(0, None), verdict(1, Some(refused))],
            unit,
        })
    }

    async fn maintain(&self, machine: MachineId, order: Option<MaintenanceOrder>) -> Result<(), ApiError> {
        let maintenance = &mut self.inner()?.maintenance;
        match order {
            Some(MaintenanceOrder { state, by, reason }) => {
                maintenance.insert(machine, MachineMaintenance { state, since: Timestamp(1), by, reason })
            }
            None => maintenance.remove(&machine),
        };
        Ok(())
    }

    async fn rebalance(&self) -> Result<MovePlan, ApiError> {
        drop(self.inner()?);
        let units = vec!["a.service".parse().expect("a name")];
        Ok(MovePlan {
            moves: vec![Move { units, from: machine(0), from_units: 2, to: machine(1), to_units: 0 }],
        })
    }

    async fn relocate(&self, _: MovePlan) -> Result<(), ApiError> {
        self.inner().map(|_| ())
    }

    async fn events(&self, query: EventQuery) -> Result<EventList, ApiError> {
        drop(self.inner()?);
        let events = (1..4).map(event).filter(|event| query.takes(&event.event)).collect();
        Ok(EventList { events })
    }

    async fn watch_events(&self, _: EventQuery) -> Result<mpsc::Receiver<Event>, ApiError> {
        let (sender, receiver) = mpsc::channel(4);
        for number in 1..4 {
            sender.try_send(event(number)).expect("there is room");
        }
        Ok(receiver)
    }
}

const IDENTIFIED: &str = crate::memory::IDS[0];

impl api::Network for Memory {
    fn network(&self) -> Result<api::network::NetworkStatus, ApiError> {
        Ok(api::network::NetworkStatus { backend: "vxlan".to_owned(), mtu: 1450, ..Default::default() })
    }

    async fn examine(&self) -> Result<api::network::Findings, ApiError> {
        Ok(api::network::Findings::default())
    }

    fn metrics(&self) -> String {
        "# TYPE up gauge\nup 1\n".to_owned()
    }
}
