//! Every rule of `[X-Fleet]` on real machines: where units run, and where they do not.

use crate::{Lab, alone};
use std::collections::BTreeSet;
use story::eventually;

#[test]
fn units_run_where_their_files_say() {
    let _alone = alone();
    let cluster = Lab::up(3);
    let submit = |name: &str, fleet: &str| {
        let text = format!("[Service]\nExecStart=/bin/sleep infinity\n[X-Fleet]\n{fleet}\n");
        cluster.m1().write_file(format!("/root/{name}"), text, 0o644).expect("written");
        cluster.sh(&format!("muster submit {name}")).expect("submitted");
    };
    let machines = |prefix: &str| -> Vec<String> {
        let running = cluster.units().expect("listed");
        running
            .into_iter()
            .filter(|row| row.unit.starts_with(prefix) && row.active == "active")
            .map(|row| row.machine)
            .collect()
    };

    // Every machine of the lab has its number as metadata.
    submit("by-metadata.service", "MachineMetadata=number=2");
    cluster.muster(&["start", "by-metadata"]).expect("active");
    assert_eq!(machines("by-metadata"), ["m2"]);

    let id = cluster
        .lab
        .machine("m3")
        .and_then(|machine| machine.exec_ok(&["cat", "/etc/machine-id"]))
        .expect("it has one");
    submit("by-id.service", &format!("MachineID={}", id.trim()));
    cluster.muster(&["start", "by-id"]).expect("active");
    assert_eq!(machines("by-id"), ["m3"]);

    submit("follower.service", "MachineOf=by-id.service");
    cluster.muster(&["start", "follower"]).expect("active");
    assert_eq!(machines("follower"), ["m3"]);

    submit("apart@.service", "Conflicts=apart@*.service");
    cluster.muster(&["start", "apart@{1..3}"]).expect("active");
    assert_eq!(machines("apart@").into_iter().collect::<BTreeSet<_>>().len(), 3);
    let fourth = cluster.m1().exec(&["muster", "start", "apart@4"]).expect("runs");
    assert!(!fourth.success() && fourth.stderr.contains("conflicts with apart@"), "{}", fourth.stderr);
    cluster.muster(&["destroy", "apart@1"]).expect("destroyed");
    eventually("the fourth takes the free place", || Ok(machines("apart@").len() == 3)).expect("it does");

    // Everywhere, and on a machine that comes back.
    submit("everywhere.service", "Global=true");
    cluster.muster(&["start", "everywhere"]).expect("triggered");
    eventually("it runs on all three", || Ok(machines("everywhere").len() == 3)).expect("it does");
    let m2 = cluster.lab.machine("m2").expect("known");
    m2.kill().expect("the power is cut");
    eventually("two are left", || Ok(machines("everywhere").len() == 2)).expect("they are");
    m2.start().expect("it boots");
    eventually("and three again", || Ok(machines("everywhere").len() == 3)).expect("they are");

    // What no other machine can take waited for m2.
    eventually("the unit is back on m2", || Ok(machines("by-metadata") == ["m2"])).expect("it is");
}
