//! Updates on real machines: a template's instances get another text one after another, a bad one is taken back.

use crate::{Lab, alone};
use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};
use story::cluster::SOMEAPP;

#[test]
fn a_template_rolls_and_a_bad_one_is_rolled_back() {
    let _alone = alone();
    let cluster = Lab::up(2);
    let write = |text: &str| {
        cluster.m1().write_file("/root/someapp@.service".to_owned(), text, 0o644).expect("written");
    };
    cluster.sh("muster submit someapp@.service someapp-discovery@.service").expect("submitted");
    cluster.sh("muster start 'someapp@{1..4}' someapp-discovery@1").expect("active");
    let text = |unit: &str| cluster.muster(&["cat", unit]).expect("known");
    let homes = || -> BTreeSet<(String, String)> {
        let rows =
            cluster.units().expect("listed").into_iter().filter(|row| row.unit.starts_with("someapp@"));
        rows.map(|row| (row.unit, row.machine)).collect()
    };
    let before = homes();

    // While it rolls, systemd of the machines is asked how many of the four are active.
    let (over, fewest, looks) = (AtomicBool::new(false), AtomicUsize::new(4), AtomicUsize::new(0));
    let second = SOMEAPP.replace("[Service]\n", "[Service]\nEnvironment=COLOUR=green\n");
    let updated = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let active = cluster.units().map(|rows| {
                    let is_app = |unit: &str| unit.starts_with("someapp@");
                    rows.iter().filter(|row| is_app(&row.unit) && row.active == "active").count()
                });
                if let Ok(active) = active {
                    fewest.fetch_min(active, Ordering::Relaxed);
                    looks.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        write(&second);
        let updated =
            cluster.m1().exec(&["sh", "-c", "cd /root && muster update --settle 500ms someapp@.service"]);
        over.store(true, Ordering::Relaxed);
        updated.expect("runs")
    });
    assert!(updated.success(), "{updated:?}");
    assert!(updated.stdout.contains("(4 of 4)") && updated.stdout.contains("done: 4 units"), "{updated:?}");
    assert!(looks.load(Ordering::Relaxed) > 3, "nobody looked");
    assert_eq!(fewest.load(Ordering::Relaxed), 3, "one at a time is out of service, and it is seen");
    assert_eq!(homes(), before, "a unit keeps its machine");
    for unit in ["someapp@.service", "someapp@1", "someapp@4"] {
        assert_eq!(text(unit), second.trim_end(), "{unit}");
    }
    // The sidekick is bound to its app, and stopped with it.
    story::eventually("the first is announced again", || Ok(!cluster.upstreams()?.is_empty()))
        .expect("it is");
    let colours = cluster.muster(&["status", "someapp@3"]).expect("shown");
    assert!(colours.contains("active (running)"), "{colours}");

    // One that cannot run: nothing of it is left, and no more than the first was touched.
    write(&SOMEAPP.replace("ExecStart=/usr/bin/docker", "ExecStart=/bin/false"));
    let refused = cluster
        .m1()
        .exec(&["sh", "-c", "cd /root && muster update --settle 300ms --ready-timeout 3s someapp@.service"])
        .expect("runs");
    assert_eq!(refused.code(), 1, "{refused:?}");
    assert!(refused.stderr.contains("rolled back: someapp@1.service"), "{}", refused.stderr);
    assert!(!refused.stderr.contains("someapp@2.service updating"), "{}", refused.stderr);
    for unit in ["someapp@.service", "someapp@1", "someapp@2"] {
        assert_eq!(text(unit), second.trim_end(), "{unit}");
    }
    let rows = cluster.units().expect("listed");
    assert_eq!(
        rows.iter().filter(|row| row.unit.starts_with("someapp@") && row.active == "active").count(),
        4
    );

    // What failed is not in the history; what was there before it is.
    let history = cluster.muster(&["history", "someapp@.service"]).expect("listed");
    assert_eq!(history.lines().count(), 3, "{history}");
    assert_eq!(cluster.muster(&["history", "someapp@2", "--show", "1"]).expect("shown"), SOMEAPP.trim_end());
    let back = cluster.muster(&["rollback", "someapp@.service", "--at-once", "4", "--settle", "300ms"]);
    assert!(back.as_ref().is_ok_and(|out| out.contains("done: 4 units")), "{back:?}");
    for unit in ["someapp@.service", "someapp@3"] {
        assert_eq!(text(unit), SOMEAPP.trim_end(), "{unit}");
    }
    let list = cluster.muster(&["rollouts"]).expect("listed");
    assert!(list.contains("done") && list.contains("4/4"), "{list}");
    let events = cluster.muster(&["events", "--unit", "someapp@1"]).expect("listed");
    assert!(events.contains("gets its former text back"), "{events}");

    // All of it goes with the units.
    cluster.muster(&["destroy", "someapp@{1..4}", "someapp@.service", "someapp-discovery@1"]).expect("gone");
    let left =
        cluster.sh("muster kv ls --recursive /muster/history /muster/v1/rollouts || true").expect("listed");
    assert_eq!(left.trim(), "", "nothing accumulates");
}

#[test]
fn an_update_goes_on_when_the_leader_dies() {
    let _alone = alone();
    let cluster = Lab::up_with(3, story::cluster::Hub::Etcd);
    let write = |text: &str| {
        cluster.m1().write_file("/root/app@.service".to_owned(), text, 0o644).expect("written");
    };
    write("[Service]\nExecStart=/bin/sleep infinity\n");
    cluster.sh("muster submit app@.service && muster start 'app@{1..6}'").expect("active");
    let leader = cluster.muster(&["kv", "get", "/muster/v1/engine/leader"]).expect("somebody leads");
    let leads = |machine: &lab::Machine| {
        machine.exec_ok(&["cat", "/etc/machine-id"]).is_ok_and(|id| leader.contains(id.trim()))
    };
    let (victims, others): (Vec<_>, Vec<_>) = cluster.lab.machines().into_iter().partition(leads);
    let (victim, asks) = (victims.first().expect("one leads"), others.first().expect("two do not"));
    let rollouts = || asks.exec_ok(&["muster", "rollouts", "--no-legend"]);

    write("[Service]\nEnvironment=COLOUR=green\nExecStart=/bin/sleep infinity\n");
    cluster.sh("muster update --no-block --settle 1s app@.service").expect("ordered");
    story::eventually("the first is ready", || Ok(!rollouts()?.contains(" 0/6"))).expect("it is");
    victim
        .exec_ok(&["sh", "-c", "systemctl mask --runtime muster; systemctl kill --signal=KILL muster"])
        .expect("killed");
    let list = rollouts().expect("listed");
    assert!(list.contains("running"), "it was over before the leader died: {list}");
    story::eventually("another leader has finished it", || Ok(rollouts()?.contains("done"))).expect("it has");
    assert!(rollouts().expect("listed").contains("6/6"));
    let text = asks.exec_ok(&["muster", "cat", "app@6"]).expect("known");
    assert!(text.contains("COLOUR=green"), "{text}");
    let history = asks.exec_ok(&["muster", "history", "app@6"]).expect("listed");
    assert_eq!(history.lines().count(), 3, "each was replaced once: {history}");
}
