//! Units that are no containers, with addresses of their own.

use crate::{Lab, alone};
use lab::Machine;
use std::net::Ipv4Addr;
use story::eventually;

/// One on each machine, by its instance; not registered.
const PLAIN: &str = "[Service]
ExecStart=/usr/local/bin/someapp
Environment=INSTANCE=own@%i
[X-Fleet]
Address=own
MachineMetadata=number=%i
";
/// On m2, and registered.
const REGISTERED: &str = "[Service]
ExecStart=/usr/local/bin/someapp
Environment=INSTANCE=web
Restart=always
RestartSec=1s
[X-Fleet]
Address=own
MachineMetadata=number=2
[X-Service]
Port=3000
";

struct World {
    cluster: Lab,
    m1: Machine,
    m2: Machine,
}

impl World {
    fn put(&self, name: &str, text: &str) {
        let script = format!("cat >/root/{name} <<'END'\n{text}END");
        self.m1.exec_ok(&["sh", "-c", &script]).expect("written");
    }

    fn sh(&self, machine: &Machine, script: &str) -> String {
        machine.exec_ok(&["sh", "-c", script]).expect(script)
    }

    /// Starts or restarts Docker, which its unit allows three times a minute.
    fn docker(&self, machine: &Machine, verb: &str) {
        self.sh(machine, &format!("systemctl reset-failed docker; systemctl {verb} docker"));
    }

    /// The address that the unit has on the machine, as that tells it.
    fn address(&self, machine: &Machine, unit: &str) -> Option<Ipv4Addr> {
        let output = machine.exec(&["muster", "net", "status", "-o", "json"]).expect("answers");
        let status: serde_json::Value = serde_json::from_str(&output.stdout).unwrap_or_default();
        let mut units = status["units"].as_array().into_iter().flatten();
        let own = units.find(|own| own["unit"] == unit)?;
        own["address"].as_str()?.parse().ok()
    }

    /// The page that `unit`, on `machine`, gets of `address`.
    fn page(&self, machine: &Machine, unit: &str, address: Ipv4Addr) -> Option<String> {
        let url = format!("http://{address}:3000/");
        let namespace = format!("muster-{unit}");
        let curl = ["ip", "netns", "exec", &namespace, "curl", "--silent", "--max-time", "2", &url];
        let output = machine.exec(&curl).expect("m1 and m2 run");
        (output.code() == 0).then_some(output.stdout)
    }

    fn upstream(&self) -> Option<String> {
        let key = ["muster", "kv", "get", "/services/web/upstream/web"];
        let output = self.m1.exec(&key).expect("m1 answers");
        (output.code() == 0).then(|| output.stdout.trim().to_owned())
    }

    /// What is there of a unit that has an address of its own.
    fn traces(&self, machine: &Machine, unit: &str) -> String {
        self.sh(
            machine,
            &format!(
                "ls -d /run/netns/muster-{unit} /run/muster/addresses/{unit} 2>/dev/null; \
                 systemctl is-active muster-address@{unit}.service; true"
            ),
        )
    }

    /// The unit's process, its namespace, and its cable's number.
    fn run(&self, machine: &Machine, unit: &str) -> (String, String) {
        let pid = self.sh(machine, &format!("systemctl show --property=MainPID --value {unit}"));
        let namespace = self.sh(
            machine,
            &format!("stat --format=%i /run/netns/muster-{unit}; ip netns exec muster-{unit} cat /sys/class/net/eth0/iflink || true"),
        );
        (pid, namespace)
    }

    /// Both reach each other, and the outside neither.
    fn talk(&self, what: &str) -> (Ipv4Addr, Ipv4Addr) {
        let mut found = None;
        eventually(what, || {
            let (Some(own), Some(web)) =
                (self.address(&self.m1, "own@1.service"), self.address(&self.m2, "web.service"))
            else {
                return Ok(false);
            };
            let there = self.page(&self.m1, "own@1.service", web);
            let back = self.page(&self.m2, "web.service", own);
            found = Some((own, web));
            Ok(there.is_some_and(|page| page.contains("<h1>web<"))
                && back.is_some_and(|page| page.contains("<h1>own@1<")))
        })
        .expect(what);
        let (own, web) = found.expect("they were there");
        let registered = || Ok(self.upstream() == Some(format!("{web}:3000")));
        eventually("it is registered under its own address", registered).expect("registered");
        (own, web)
    }
}

#[test]
fn units_that_are_no_containers_have_addresses_of_their_own() {
    let _alone = alone();
    let cluster = Lab::up(2);
    let (m1, m2) = (cluster.m1(), cluster.lab.machine("m2").expect("it is there"));
    let world = World { cluster, m1, m2 };
    let (m1, m2) = (&world.m1, &world.m2);

    for (value, service, told) in [
        ("10.1.5.7", "/bin/true", "bad.service:4:9: `Address` needs `own`"),
        (
            "own",
            "/usr/bin/docker run --rm a",
            "bad.service:4:9: a container has an address of its own already",
        ),
    ] {
        world.put("bad.service", &format!("[Service]\nExecStart={service}\n[X-Fleet]\nAddress={value}\n"));
        let refused = m1.exec(&["sh", "-c", "cd /root && muster submit bad.service"]).expect("answers");
        assert!(refused.code() == 1 && refused.stderr.contains(told), "{}", refused.stderr);
    }

    world.put("own@.service", PLAIN);
    world.put("web.service", REGISTERED);
    world.cluster.sh("muster submit own@.service web.service && muster start own@1 web").expect("started");
    let (own, web) = world.talk("two plain units on two machines reach each other");
    let subnet = |machine: &Machine| world.sh(machine, ". /run/muster/subnet.env; echo $FLANNEL_SUBNET");
    let [a, b, c, d] = web.octets();
    let subnet = subnet(m2).trim().to_owned();
    assert!(subnet == format!("{a}.{b}.{c}.1/24") && d >= 128, "{web} is not in the upper half of {subnet}");
    let pid = world.sh(m2, "systemctl show --property=MainPID --value web");
    let environment = world.sh(m2, &format!("tr '\\0' '\\n' </proc/{}/environ", pid.trim()));
    assert!(environment.lines().any(|line| line == format!("MUSTER_ADDRESS={web}")), "{environment}");
    let outside = world.cluster.lab.outside();
    let via = m2.address().to_string();
    outside.exec_ok(&["ip", "route", "replace", &web.to_string(), "via", &via]).expect("routed");
    let asked = ["curl", "--silent", "--max-time", "2", &format!("http://{web}:3000/")];
    assert_ne!(outside.exec(&asked).expect("runs").code(), 0, "open to the world");

    // By the gateway, and by name from another such unit.
    eventually("the gateway serves it", || {
        let url = format!("http://{}:8080/", m1.address());
        let asked = ["curl", "--silent", "--max-time", "2", "--header", "Host: web", &url];
        Ok(outside.exec(&asked)?.stdout.contains("<h1>web<"))
    })
    .expect("served");
    let pid = world.sh(m1, "systemctl show --property=MainPID --value own@1");
    let lookup = format!("nsenter -t {} -n -m getent hosts web.svc.cluster.internal || true", pid.trim());
    eventually("it has a name", || Ok(world.sh(m1, &lookup).starts_with(&web.to_string()))).expect("named");
    let listed = world.cluster.muster(&["services"]).expect("listed");
    assert!(listed.contains(&format!("{web}:3000")), "{listed}");

    // The daemon's restart keeps everything; so does a crash of the unit, but for its process.
    let before = world.run(m2, "web.service");
    world.sh(m2, "systemctl restart muster.service");
    assert_eq!(world.run(m2, "web.service"), before);
    world.sh(m2, "systemctl kill --signal=SIGKILL web.service");
    eventually("systemd has started it again", || {
        let now = world.run(m2, "web.service");
        Ok(now.0 != before.0 && now.0.trim() != "0")
    })
    .expect("started");
    assert_eq!(world.run(m2, "web.service").1, before.1, "its namespace was made anew");
    assert_eq!(world.talk("both still reach each other"), (own, web));

    // A bare stop leaves nothing; a bare start makes it again.
    let traces = world.traces(m2, "web.service");
    assert!(traces.lines().count() == 3 && traces.contains("active"), "{traces}");
    world.sh(m2, "systemctl stop web.service");
    eventually("nothing is left", || Ok(world.traces(m2, "web.service").trim() == "inactive")).expect("gone");
    assert!(!world.sh(m2, "ip -o link show master docker0").contains(": mu"), "its cable is there");
    assert_eq!(world.upstream(), None);
    world.sh(m2, "systemctl start web.service");
    assert_eq!(world.talk("it has the same address again"), (own, web));

    // What a killed helper left behind is collected.
    world.sh(m2, "ip netns add muster-ghost.service && echo MUSTER_ADDRESS=10.1.5.250 >/run/muster/addresses/ghost.service");
    eventually("it is collected", || Ok(world.traces(m2, "ghost.service").trim() == "inactive"))
        .expect("gone");

    a_machine_boots(&world, (own, web));
    docker_comes_and_goes(&world);
    the_subnet_changes(&world);

    // Our own stop and destroy leave nothing either.
    world.cluster.sh("muster destroy web own@1").expect("destroyed");
    eventually("nothing is left", || {
        let left = world.sh(
            m2,
            "ls /run/netns /run/muster/addresses; ls -d /run/systemd/system/web.service* 2>/dev/null; true",
        );
        Ok(!left.contains("web"))
    })
    .expect("gone");
}

fn a_machine_boots(world: &World, before: (Ipv4Addr, Ipv4Addr)) {
    world.m2.stop().expect("it stops");
    world.m2.start().expect("it boots");
    world.cluster.sh("muster start web").expect("started");
    assert_eq!(world.talk("after a boot it has the same address again"), before);
}

fn docker_comes_and_goes(world: &World) {
    let m2 = &world.m2;
    // A Docker that gives away the units' addresses: the unit is not started, and the reason is told.
    world.sh(m2, "systemctl stop web && sed -i 's/ --fixed-cidr=[^\" ]*//' /run/muster/docker.env");
    world.docker(m2, "restart");
    let refused = m2.exec(&["systemctl", "start", "web"]).expect("runs");
    assert_ne!(refused.code(), 0);
    eventually("the reason is told", || {
        let told = world.cluster.muster(&["list-units", "--fields", "unit,error", "--full"])?;
        Ok(told.contains("gives away") && told.contains("systemctl restart docker"))
    })
    .expect("told");
    // None at all: the bridge is ours.
    world.sh(m2, "systemctl restart muster && systemctl stop docker.socket docker && ip link del docker0");
    world.sh(m2, "systemctl start web");
    world.talk("without Docker they reach each other");
    let bridge = world.sh(m2, "ip -d link show docker0");
    assert!(bridge.contains("alias muster"), "{bridge}");
    // It comes back, and takes the bridge over; containers get the other half.
    world.docker(m2, "start");
    let run = "docker run --rm --detach --name beside -e INSTANCE=beside someapp >/dev/null && \
               docker inspect --format '{{.NetworkSettings.IPAddress}}' beside";
    let beside: Ipv4Addr = world.sh(m2, run).trim().parse().expect("an address");
    assert!(beside.octets()[3] < 128, "{beside}");
    let (own, _) = world.talk("Docker has changed nothing");
    eventually("containers and units reach each other", || {
        Ok(world.page(&world.m1, "own@1.service", beside).is_some_and(|page| page.contains("beside")))
    })
    .expect("they do");
    let from_container = format!("docker exec beside /someapp get http://{own}:3000/");
    assert!(world.sh(m2, &from_container).contains("own@1"));
    world.sh(m2, "docker kill beside >/dev/null");
}

fn the_subnet_changes(world: &World) {
    let before = (world.run(&world.m1, "own@1.service"), world.run(&world.m2, "web.service"));
    let config = r#"{"Network":"10.2.0.0/16","Backend":{"Type":"vxlan"}}"#;
    world.cluster.sh(&format!("echo '{config}' | muster net config set -")).expect("set");
    for machine in [&world.m1, &world.m2] {
        eventually("Docker is told", || {
            Ok(world.sh(machine, "cat /run/muster/docker.env").contains("=10.2."))
        })
        .expect("told");
        world.docker(machine, "restart");
    }
    eventually("they have addresses of the new network", || {
        let both = [(&world.m1, "own@1.service"), (&world.m2, "web.service")];
        Ok(both.iter().all(|(machine, unit)| {
            world.address(machine, unit).is_some_and(|address| address.octets()[..2] == [10, 2])
        }))
    })
    .expect("they do");
    world.talk("and reach each other by them");
    let after = (world.run(&world.m1, "own@1.service"), world.run(&world.m2, "web.service"));
    assert_eq!(after, before, "nobody was restarted for it");
}
