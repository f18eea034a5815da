//! A hub that wants client certificates and logins, set up by the guide's own commands: machines of the cluster notice
//! nothing of logins that expire and of a hub that restarts, and others are told why they are not let in.

use crate::{Lab, alone};
use std::thread;
use story::cluster::{Hub, LOGIN, guide};
use story::eventually;

#[test]
fn a_secured_hub_serves_its_own_machines_and_nobody_else() {
    let _alone = alone();
    let cluster = Lab::up_with(2, Hub::Secured);
    let (m1, m2) = (cluster.m1(), cluster.lab.machine("m2").expect("known"));
    // Users come while the daemons run.
    cluster.sh(&format!("set -e\n{}", guide("users", crate::NETWORK).expect("in the guide"))).expect("users");
    cluster.sh("printf '[Service]\\nExecStart=/bin/sleep infinity\\n' >one@.service && muster submit one@.service").expect("submitted");
    cluster.muster(&["start", "one@{1..2}"]).expect("active");
    let homes = || -> Vec<_> {
        let mut homes: Vec<_> = cluster
            .units()
            .expect("listed")
            .into_iter()
            .map(|row| (row.unit, row.machine, row.active))
            .collect();
        homes.sort();
        homes
    };
    let before = homes();
    assert_eq!(before.iter().filter(|(.., active)| active == "active").count(), 2, "{before:?}");

    // Of commands, only those with a login get anywhere.
    let refused = |command: &str, words: &[&str]| {
        let verdict = m2.exec(&["sh", "-c", command]).expect("runs");
        let said = format!("{}{}", verdict.stdout, verdict.stderr);
        assert!(!verdict.success(), "`{command}` did it: {said}");
        words
            .iter()
            .for_each(|word| assert!(said.contains(word), "`{command}` does not say `{word}`: {said}"));
    };
    let url = format!("https://{}:2379", m1.address());
    m2.exec_ok(&["muster", "kv", "ls", "/muster/v1"]).expect("the machine's own user may");
    refused("muster kv set /other 1", &["permission denied"]);
    refused(&format!("muster kv --endpoints {url} ls /muster"), &["permission denied"]);
    let bare = format!(
        "MUSTER_CONFIG=/dev/null muster hub status --cacert /etc/muster/hub-ca.crt --endpoints {url}"
    );
    refused(&bare, &[&url, "certificate", "--cert and --key"]);
    refused(&format!("MUSTER_CONFIG=/dev/null muster hub status --endpoints {url}"), &["--cacert"]);
    let plain = url.replace("https", "http");
    refused(&format!("MUSTER_CONFIG=/dev/null muster kv --endpoints {plain} ls /"), &["say https://"]);
    refused("muster hub user list --user root --password falsch", &["invalid user ID or password"]);
    let users =
        m2.exec_ok(&["sh", "-c", "muster hub user list --user root --password-file /root/root.password"]);
    assert_eq!(users.expect("root may").lines().collect::<Vec<_>>(), ["muster", "root"]);

    // Time has to pass: a login that is asked about is not over. Then the hub forgets all of them.
    thread::sleep(2 * LOGIN);
    cluster.muster(&["start", "one@3"]).expect("active after logins were over");
    m1.exec_ok(&["systemctl", "restart", "muster"]).expect("restarted");
    eventually("both machines are there", || Ok(cluster.list("machines")?.len() == 2)).expect("they are");
    eventually("it works on", || Ok(cluster.muster(&["start", "one@4"]).is_ok())).expect("it does");
    let after = homes();
    assert!(before.iter().all(|row| after.contains(row)), "nothing was moved: {before:?}, then {after:?}");
    assert_eq!(after.iter().filter(|(.., active)| active == "active").count(), 4, "{after:?}");
}
