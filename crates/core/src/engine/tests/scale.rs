//! A change costs what it touches: counted, not timed.

use super::*;
use crate::cluster::UnitDelta;
use model::DesiredState;

fn machine(n: u32) -> Delta {
    let mut record = MachineRecord::new(format!("m{n}"), [10, 0, 0, 1].into(), "0".into());
    record.metadata = [("zone".to_owned(), format!("z{}", n % 50))].into();
    Delta::Machine(id(n), Some(record))
}

fn unit(unit: &str, fleet: &str) -> Delta {
    let text = format!("[Service]\nExecStart=/bin/true\n[X-Fleet]\n{fleet}\n");
    let unit = name(unit);
    let requirements = unit::check(&unit, &text).map(|checked| checked.requirements);
    let delta = UnitDelta {
        hash: fleet.to_owned(),
        desired: DesiredState::Launched,
        launch: 1,
        revision: Revision(2),
        requirements: Some(requirements.map_err(|problem| problem.to_string())),
    };
    Delta::Unit(unit, Some(delta))
}

fn placements(out: &[Effect]) -> usize {
    out.iter().filter(|effect| matches!(effect, Effect::Schedule(_))).count()
}

#[test]
fn a_thousand_machines_and_thirty_thousand_units() {
    let mut engine = Engine::new(Revision(7), Timestamp(0));
    let mut deltas: Vec<_> = (1..=1000).map(machine).collect();
    for n in 0..30_000 {
        deltas.push(match n % 5 {
            0 => unit(&format!("app@{n}.service"), ""),
            1 => unit(&format!("side@{}.service", n - 1), "MachineOf=app@%i.service"),
            2 => unit(&format!("zoned@{n}.service"), &format!("MachineMetadata=zone=z{}", n % 50)),
            3 => unit(&format!("plain{n}.service"), ""),
            _ => {
                let kind = n % 1000;
                unit(&format!("apart{kind}@{n}.service"), &format!("Conflicts=apart{kind}@*.service"))
            }
        });
    }
    let mut out = Vec::new();
    engine.step(Timestamp(0), Event::Hub(deltas), &mut out);
    assert_eq!(placements(&out), 30_000);
    assert!(engine.examined() < 30_000 * 8, "{} machines asked for 30,000 units", engine.examined());

    // Each of these concerns one unit or one machine, and costs no more.
    let mut count = |event: Event| {
        let (before, mut out) = (engine.examined(), Vec::new());
        engine.step(Timestamp(1), event, &mut out);
        (engine.examined() - before, placements(&out))
    };
    let (examined, placed) = count(Event::Hub(vec![unit("one-more.service", "")]));
    assert!(examined < 20 && placed == 1, "{examined}");
    let (examined, placed) = count(Event::Hub(vec![unit("picky.service", "MachineMetadata=zone=nowhere")]));
    assert!(examined < 20 && placed == 0, "{examined}");
    let (examined, placed) = count(Event::Hub(vec![Delta::Unit(name("app@500.service"), None)]));
    assert!(examined < 20 && placed == 0, "{examined}");
    let (examined, placed) = count(Event::Hub(vec![machine(5000)]));
    assert!(examined < 20 && placed == 0, "{examined}");
    count(Event::Hub(vec![Delta::Machine(id(7), None)]));
    let (examined, placed) = count(Event::Overdue(BTreeSet::new()));
    assert!((20..=80).contains(&placed) && examined < 1500, "{placed} units moved, {examined} asked");
    // Hearing again what is known costs nothing.
    let (examined, placed) = count(Event::Hub(vec![machine(8)]));
    assert_eq!((examined, placed), (0, 0));
}
