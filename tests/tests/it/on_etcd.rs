//! All of Muster on a real etcd: Debian's 3.4 on m1, and no machine embeds a hub.

use crate::{Lab, alone};
use story::{cluster::Hub, eventually};

#[test]
fn the_story_runs_unchanged_on_a_real_etcd() {
    let _alone = alone();
    let cluster = Lab::up_with(3, Hub::Etcd);
    let version = cluster.sh("curl --silent http://127.0.0.1:2379/version").expect("etcd answers");
    assert!(version.contains("\"etcdserver\":\"3.4"), "the hub is etcd: {version}");
    cluster.sh("muster submit someapp@.service someapp-discovery@.service").expect("submitted");
    cluster.muster(&["start", "someapp@{1..3}"]).expect("active");
    cluster.muster(&["start", "someapp-discovery@{1..3}"]).expect("active");
    eventually("three keys are there", || Ok(cluster.upstreams()?.len() == 3)).expect("they are");
    eventually("nginx serves", || Ok(cluster.page()?.contains("someapp@"))).expect("it does");
    let homes: std::collections::BTreeSet<_> = cluster
        .units()
        .expect("listed")
        .into_iter()
        .filter(|row| row.unit.starts_with("someapp@"))
        .map(|row| row.machine)
        .collect();
    assert_eq!(homes.len(), 3);
    cluster.lab.machine("m3").and_then(|machine| machine.kill()).expect("the power is cut");
    eventually("all copies and sidekicks run on two machines", || {
        let running = cluster.units()?;
        let active = running.iter().filter(|row| row.active == "active" && row.machine != "m3").count();
        Ok(active == 6 && cluster.list("machines")?.len() == 2)
    })
    .expect("they do");
}
