//! The cluster network where namespaces are not enough: beside a real Docker, on machines with a systemd.

use crate::{Lab, alone};
use story::eventually;

#[test]
fn point_10_beside_docker_rules_come_back_and_the_doctor_is_content() {
    let _alone = alone();
    let cluster = Lab::up(2);
    let m1 = cluster.m1();
    let status = || -> serde_json::Value {
        serde_json::from_str(&cluster.muster(&["net", "status", "-o", "json"]).unwrap_or_default())
            .unwrap_or_default()
    };
    eventually("the datapath has converged", || {
        Ok(status()["peers"].as_array().is_some_and(|peers| peers.len() == 1))
    })
    .expect("it does");
    assert_eq!(status()["ready"], true);
    eventually("the doctor is content", || Ok(cluster.muster(&["net", "doctor"]).is_ok())).expect("it is");

    m1.exec_ok(&["ip", "link", "del", "flannel.1"]).expect("deleted");
    eventually("the device is back", || Ok(m1.exec(&["ip", "link", "show", "flannel.1"])?.status.success()))
        .expect("it is");
    m1.exec_ok(&["nft", "delete", "table", "inet", "muster"]).expect("deleted");
    eventually("the rules are back", || {
        Ok(m1.exec(&["nft", "list", "table", "inet", "muster"])?.status.success())
    })
    .expect("they are");
    eventually("the doctor is content again", || Ok(cluster.muster(&["net", "doctor"]).is_ok()))
        .expect("it is");
    assert!(status()["repaired"].as_u64().unwrap_or_default() > 0);

    // Another backend, by one command; a broken one changes nothing.
    let set = |text: &str| cluster.sh(&format!("echo '{text}' | muster net config set -"));
    assert!(set(r#"{"Network":"10.1.0.0/16","Backend":{"Type":"udp"}}"#).is_err());
    let subnet = status()["subnet"].clone();
    set(r#"{"Network":"10.1.0.0/16","Backend":{"Type":"host-gw"}}"#).expect("set");
    eventually("machines went over", || Ok(status()["backend"] == "host-gw" && status()["ready"] == true))
        .expect("they do");
    assert_eq!(status()["subnet"], subnet);
    let metrics = m1
        .exec_ok(&[
            "curl",
            "--silent",
            "--unix-socket",
            "/run/muster/muster.sock",
            "http://localhost/metrics",
        ])
        .expect("served");
    assert!(metrics.contains("muster_overlay_ready 1"), "{metrics}");
}
