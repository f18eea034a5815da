//! Registration without sidekicks: the key is there while the instance works, and every stop drains first.

use crate::{Lab, alone};
use lab::Machine;
use std::time::{Duration, Instant};
use story::cluster::eventually;

const KEY: &str = "/services/someapp/upstream/reg@1";
const META: &str = "/services/someapp/meta/reg@1";
const STATE: &str = "/services/someapp/state/reg@1";

/// On m2 alone, so that m1 can watch. Its check is a file, so that it passes and fails when the test says so; its own
/// `ExecStop=` notes what the hub said at that time.
const UNIT: &str = "[Service]
ExecStartPre=-/usr/bin/docker rm -f reg-%i
ExecStart=/usr/bin/docker run --rm --name reg-%i -e INSTANCE=reg@%i someapp
ExecStop=/bin/sh -c 'muster kv get /services/someapp/upstream/reg@%i >/run/at-stop-%i 2>/dev/null || echo gone >/run/at-stop-%i'
ExecStop=/usr/bin/docker stop --time 5 reg-%i
Restart=on-failure
RestartSec=1s
[X-Fleet]
MachineMetadata=number=2
[X-Service]
Name=someapp
Port=3000
Check=exec:/usr/bin/test -e /run/ready-%i
CheckInterval=200ms
Fall=3
Drain=20s
";

struct World {
    cluster: Lab,
    m2: Machine,
}

impl World {
    fn value(&self, key: &str) -> Option<String> {
        let output = self.cluster.m1().exec(&["muster", "kv", "get", key]).expect("m1 answers");
        (output.code() == 0).then(|| output.stdout.trim().to_owned())
    }

    fn meta(&self) -> serde_json::Value {
        self.value(META).and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
    }

    fn on_m2(&self, script: &str) -> String {
        self.m2.exec_ok(&["sh", "-c", script]).expect(script)
    }

    fn registered(&self, what: &str) {
        eventually(what, || Ok(self.value(KEY).is_some_and(|value| value.ends_with(":3000")))).expect(what);
    }

    fn gone(&self, what: &str) {
        eventually(what, || Ok(self.value(KEY).is_none())).expect(what);
    }

    /// What a router would write, as of `revision`.
    fn router(&self, revision: i64) {
        let id = "0123456789abcdef0123456789abcdef";
        let record = format!("{{\"v\":1,\"machine\":\"{id}\",\"revision\":{revision}}}");
        self.cluster
            .m1()
            .exec_ok(&["muster", "kv", "set", &format!("/muster/router/v1/{id}/applied"), &record])
            .expect("written");
    }
}

#[test]
fn an_instance_is_in_service_while_it_works_and_drains_before_it_stops() {
    let _alone = alone();
    let cluster = Lab::up(2);
    let m2 = cluster.lab.machine("m2").expect("it is there");
    let world = World { cluster, m2 };
    let m1 = world.cluster.m1();
    let put = |name: &str, text: &str| {
        let script = format!("cat >/root/{name} <<'END'\n{text}END");
        m1.exec_ok(&["sh", "-c", &script]).expect("written");
    };

    // What cannot be carried out is refused, with its place.
    put("bad.service", "[Service]\nExecStart=/bin/true\n[X-Service]\nPort=3000\nCheck=htp:/x\n");
    let refused = m1.exec(&["sh", "-c", "cd /root && muster submit bad.service"]).expect("answers");
    assert_eq!(refused.code(), 1);
    assert!(
        refused.stderr.contains("bad.service:5:7:") && refused.stderr.contains("did you mean `http`"),
        "{}",
        refused.stderr
    );

    // Nothing before the check passes, also when the container runs for long.
    put("reg@.service", UNIT);
    world.cluster.sh("muster submit reg@.service && muster start --no-block reg@1").expect("ordered");
    eventually("its record says why it is not in service", || Ok(world.meta()["health"] == "starting"))
        .expect("starting");
    eventually("its state says that it is being checked", || {
        let units = world.cluster.units()?;
        Ok(units.iter().any(|row| row.unit == "reg@1.service" && row.active == "activating"))
    })
    .expect("activating");
    assert_eq!(world.value(KEY), None);
    world.on_m2("touch /run/ready-1");
    world.registered("it is registered when the check passes");
    let address = world.on_m2("docker inspect --format '{{.NetworkSettings.IPAddress}}' reg-1");
    assert_eq!(world.value(KEY), Some(format!("{}:3000", address.trim())));
    assert_eq!(
        (&world.meta()["health"], &world.meta()["unit"]),
        (&"passing".into(), &"reg@1.service".into())
    );
    eventually("and its unit is active", || Ok(world.cluster.home("reg@1.service")?.is_some()))
        .expect("active");

    // A check that fails takes it out, and leaves the reason; one that passes brings it back.
    world.on_m2("rm /run/ready-1");
    world.gone("it goes when the check fails");
    assert_eq!(world.meta()["health"], "critical");
    assert!(world.meta()["reason"].as_str().is_some_and(|why| why.contains("test")), "{}", world.meta());
    world.on_m2("touch /run/ready-1");
    world.registered("it is back when the check passes");

    // The daemon's own death changes nothing.
    let before = world.meta();
    world.on_m2("systemctl kill --signal=SIGKILL muster.service");
    let until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until {
        assert!(world.value(KEY).is_some(), "the daemon's death took the key away");
    }
    world.on_m2("systemctl is-active muster.service");
    assert_eq!(world.meta()["generation"], before["generation"], "it was not registered anew");

    // A lease that ended takes the key with it, and the next one has it again.
    world.on_m2("systemctl kill --signal=SIGSTOP muster.service");
    world.gone("a machine that is silent loses its keys");
    world.on_m2("systemctl kill --signal=SIGCONT muster.service");
    world.registered("and registers again when it is back");

    // A crash: gone, and back when the next run passes its check.
    let before = world.meta();
    world.on_m2("rm /run/ready-1; docker kill reg-1");
    let begun = Instant::now();
    world.gone("it goes when its container is killed");
    println!("key gone {:?} after docker kill returned", begun.elapsed());
    world.on_m2("touch /run/ready-1");
    world.registered("systemd's restart is registered");
    assert!(world.meta()["generation"].as_u64() > before["generation"].as_u64());

    // A bare `systemctl stop` waits for the routers, and the key is gone before the unit's own lines run.
    world.router(1);
    world.on_m2("rm -f /run/at-stop-1; systemctl stop --no-block reg@1.service");
    eventually("the drain is marked", || Ok(world.value(STATE).as_deref() == Some("drain"))).expect("marked");
    assert!(world.value(KEY).is_some(), "routers must have time");
    assert_eq!(world.on_m2("docker inspect --format '{{.State.Running}}' reg-1").trim(), "true");
    world.router(1_000_000_000);
    eventually("it is stopped", || {
        Ok(world.on_m2("systemctl show --property=ActiveState --value reg@1.service").trim() == "inactive")
    })
    .expect("stopped");
    assert_eq!(world.on_m2("cat /run/at-stop-1").trim(), "gone");
    assert_eq!((world.value(KEY), world.value(META), world.value(STATE)), (None, None, None));

    // Our own stop goes the same way; and the unit's hash is that of what the user wrote.
    world.cluster.sh("muster start reg@1").expect("started");
    assert!(world.value(KEY).is_some(), "`muster start` waits until it is in service");
    world.on_m2("rm -f /run/at-stop-1");
    world.cluster.sh("muster stop reg@1").expect("stopped");
    assert_eq!(world.on_m2("cat /run/at-stop-1").trim(), "gone");
    assert!(world.cluster.sh("muster cat reg@1").expect("there").lines().eq(UNIT.lines()));

    several_ports_and_dockers_own_check(&world);

    // A machine that loses its power takes its keys with it.
    world.cluster.sh("muster start reg@1").expect("started");
    world.m2.kill().expect("cut");
    world.gone("the key goes with the machine's lease");
    assert_eq!(world.value(META), None);
}

/// Of an image that checks itself; two services, the second one of another port that answers nothing, which nobody checks.
const CHECKED: &str = "[Service]
ExecStartPre=-/usr/bin/docker rm -f checked
ExecStart=/usr/bin/docker run --rm --name checked -e INSTANCE=checked checked
ExecStop=/usr/bin/docker stop --time 5 checked
[X-Fleet]
MachineMetadata=number=2
[X-Service]
Name=checked
Port=3000
Check=none
[X-Service-admin]
Port=9000
Check=none
";

fn several_ports_and_dockers_own_check(world: &World) {
    // The image's own program is what it has to check itself with.
    world.on_m2(
        "docker create --name shell someapp >/dev/null && docker export shell | docker import \
         --change 'ENTRYPOINT [\"/someapp\"]' --change 'HEALTHCHECK --interval=500ms --timeout=500ms --retries=2 \
         CMD [\"/someapp\", \"get\", \"http://127.0.0.1:3000/healthz\"]' - checked >/dev/null && docker rm shell >/dev/null",
    );
    let text = format!("cat >/root/checked.service <<'END'\n{CHECKED}END");
    world.cluster.sh(&text).expect("written");
    world.cluster.sh("muster submit checked.service && muster start checked").expect("started");
    let ip = world.on_m2("docker inspect --format '{{.NetworkSettings.IPAddress}}' checked");
    let of = |service: &str| world.value(&format!("/services/{service}/upstream/checked"));
    let both = || {
        Ok(of("checked") == Some(format!("{}:3000", ip.trim()))
            && of("admin") == Some(format!("{}:9000", ip.trim())))
    };
    eventually("both ports are registered", both).expect("they are");
    // Docker's own check counts, though ours is none.
    world.on_m2("kill -STOP $(docker inspect --format '{{.State.Pid}}' checked)");
    eventually("Docker calls it unhealthy, and so do we", || Ok(of("checked").is_none())).expect("it is out");
    let meta = world.value("/services/checked/meta/checked").expect("its record says why");
    assert!(meta.contains("critical") && meta.contains("unhealthy"), "{meta}");
    world.on_m2("kill -CONT $(docker inspect --format '{{.State.Pid}}' checked)");
    eventually("and it is back when Docker says so", both).expect("it is");
    world.cluster.sh("muster destroy checked").expect("destroyed");
    assert_eq!((of("checked"), of("admin")), (None, None));
}
