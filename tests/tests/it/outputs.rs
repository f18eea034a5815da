//! Outputs of the router on real machines: nginx follows the services, and what is doubtful leaves nobody without them.

use crate::{Lab, alone};
use story::eventually;

const WEB: &str = "/services/web/upstream/web@";

/// Registers instances that do not exist but for their addresses: whether they answer is not the question.
fn register(cluster: &Lab, numbers: std::ops::RangeInclusive<u8>, lease: Option<&str>) {
    let lease = lease.map(|lease| format!("--lease={lease}")).unwrap_or_default();
    for number in numbers {
        let put = format!("/usr/bin/etcdctl put {lease} {WEB}{number} 10.77.0.{number}:80");
        cluster.sh(&format!("ETCDCTL_API=3 {put}")).expect("written");
    }
}

/// Which of them nginx's file names.
fn in_nginx(cluster: &Lab) -> Vec<u8> {
    let text = cluster.sh("cat /etc/nginx/conf.d/muster.conf 2>/dev/null || true").expect("readable");
    (1..=9).filter(|number| text.contains(&format!("server 10.77.0.{number}:80 "))).collect()
}

fn said(cluster: &Lab, what: &str) -> usize {
    let journal = cluster.sh("journalctl --unit=muster --no-pager --output=cat").expect("readable");
    journal.lines().filter(|line| line.contains(what)).count()
}

#[test]
fn nginx_follows_and_what_vanishes_at_once_is_held() {
    let _alone = alone();
    let cluster = Lab::up(2);
    register(&cluster, 1..=1, None);
    let grant = "ETCDCTL_API=3 /usr/bin/etcdctl lease grant 600 | cut -d' ' -f2";
    let lease = cluster.sh(grant).expect("granted").trim().to_owned();
    register(&cluster, 2..=4, Some(&lease));
    eventually("nginx follows", || Ok(in_nginx(&cluster) == [1, 2, 3, 4])).expect("it does");

    // Prometheus finds them.
    let targets = cluster
        .sh("curl -sf --unix-socket /run/muster/muster.sock http://muster/sd/prometheus")
        .expect("answered");
    let targets: Vec<serde_json::Value> = serde_json::from_str(&targets).expect("JSON");
    assert_eq!(targets.len(), 4, "{targets:?}");
    assert_eq!(targets[0]["labels"]["__meta_muster_service"], "web");

    // What router and drain agree on.
    eventually("what is served is announced", || {
        Ok(cluster.sh("muster kv ls --recursive /muster/router")?.contains("/applied"))
    })
    .expect("it is");

    // Three of four are gone with their lease, as when the machines that renew them cannot reach the hub.
    cluster.sh(&format!("ETCDCTL_API=3 /usr/bin/etcdctl lease revoke {lease}")).expect("revoked");
    eventually("it is doubted", || Ok(said(&cluster, "most of its instances vanished at once") == 1))
        .expect("it is");
    assert_eq!(in_nginx(&cluster), [1, 2, 3, 4]);
    // They come back; then somebody deletes them, which is believed at once.
    register(&cluster, 2..=4, None);
    eventually("it is believed again", || Ok(said(&cluster, "served as the hub has it again") == 1))
        .expect("it is");
    cluster.sh(&format!("ETCDCTL_API=3 /usr/bin/etcdctl del --prefix {WEB}")).expect("deleted");
    eventually("nginx has nobody", || Ok(in_nginx(&cluster).is_empty())).expect("it has not");

    dry_run_shows_a_diff(&cluster);
    a_hub_that_is_away_changes_nothing(&cluster);
}

fn dry_run_shows_a_diff(cluster: &Lab) {
    register(cluster, 5..=5, None);
    let resource = "[template]\\nsrc = \"builtin:haproxy\"\\ndest = \"/root/haproxy.cfg\"\\nreload_cmd = \"touch /root/told\"\\n";
    cluster
        .sh(&format!(
            "mkdir -p /etc/muster/render.d && printf '{resource}' >/etc/muster/render.d/haproxy.toml"
        ))
        .expect("written");
    let diff = cluster.sh("muster render --once --dry-run 2>&1").expect("it runs");
    assert!(
        diff.contains("+    server web-5 10.77.0.5:80") && diff.contains("/root/haproxy.cfg would-change"),
        "{diff}"
    );
    cluster.sh("test ! -e /root/haproxy.cfg && test ! -e /root/told").expect("nothing was written");
    let json = cluster.sh("muster render --once -o json").expect("it runs");
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json[0]["result"], "changed", "{json}");
    cluster.sh("test -e /root/told && grep -q 10.77.0.5 /root/haproxy.cfg").expect("written and told");
    let again = cluster.sh("muster render --once -o json").expect("it runs");
    assert!(again.contains("\"unchanged\""), "{again}");
}

fn a_hub_that_is_away_changes_nothing(cluster: &Lab) {
    // m2 looks after an nginx too, and m1, which embeds the hub, is switched off.
    let m2 = cluster.lab.machine("m2").expect("known");
    let sh = |script: &str| m2.exec_ok(&["sh", "-c", script]);
    sh("printf '\\n[router.nginx]\\nenabled = true\\n' >>/etc/muster/muster.toml && systemctl start nginx && systemctl restart muster").expect("restarted");
    eventually(
        "m2's nginx follows",
        || Ok(sh("cat /etc/nginx/conf.d/muster.conf")?.contains("10.77.0.5:80")),
    )
    .expect("it does");
    cluster.m1().kill().expect("the power is cut");
    eventually("m2 has lost the hub", || {
        Ok(sh("journalctl --unit=muster --no-pager --output=cat")?
            .contains("hub lost, keeping what is known"))
    })
    .expect("it has");
    let known = "curl -s -o /dev/null -w '%{http_code}' -H 'Host: web' http://127.0.0.1/";
    // Nobody is at 10.77.0.5, so nginx says that it could not reach it, and not that there is no such service.
    for _ in 0..5 {
        assert!(sh("cat /etc/nginx/conf.d/muster.conf").expect("readable").contains("10.77.0.5:80"));
        let code = sh(known).expect("nginx answers");
        assert!(code.starts_with("50"), "{code}");
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
}
