//! Machines of ours and one of flannel's on one network, with a real etcd between them. flannel's machine is flanneld
//! itself where the variable `FLANNELD` names it (0.21.3 or later), and otherwise one that does by hand what flanneld
//! does: the same requests, the same bytes, the same entries in the kernel.

use super::{
    Running, World, eventually,
    lab::{Machine, Namespace},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use model::{keys, network::NodeRecord};
use muster_core::overlay::{Family, vtep_mac};
use registry::Store;
use serde_json::{Value, json};
use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};
use tempfile::TempDir;

const SUBNETS: &str = "/coreos.com/network/subnets/";
/// Where etcd listens.
const URL: &str = "http://192.168.77.100:2379";

/// A real etcd on the machines' network.
struct Etcd {
    host: Namespace,
    child: Child,
    _data: TempDir,
}

impl Etcd {
    fn start(world: &World) -> Self {
        let (host, data) = (world.cluster.outsider(100), tempfile::tempdir().expect("a directory"));
        let child = host.enter(|| {
            Command::new("etcd")
                .arg("--data-dir")
                .arg(data.path())
                .args(["--listen-client-urls", URL, "--advertise-client-urls", URL])
                .args(["--listen-peer-urls", "http://127.0.0.1:2380", "--logger", "zap"])
                .args(["--initial-advertise-peer-urls", "http://127.0.0.1:2380"])
                .args(["--initial-cluster", "default=http://127.0.0.1:2380"])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("a real etcd is needed: apt-get install --no-install-recommends etcd-server")
        });
        let etcd = Self { host, child, _data: data };
        eventually("etcd answers", || etcd.try_ask("kv/range", &json!({ "key": "YQ==" })).is_some());
        etcd
    }

    /// A request to the JSON gateway.
    fn ask(&self, path: &str, body: &Value) -> Value {
        self.try_ask(path, body).unwrap_or_else(|| panic!("etcd refuses {path} {body}"))
    }

    fn try_ask(&self, path: &str, body: &Value) -> Option<Value> {
        self.host.enter(|| {
            let (url, body) = (format!("{URL}/v3/{path}"), body.to_string());
            let output = Command::new("curl").args(["-sf", "--max-time", "5", "-d", &body, &url]).output();
            serde_json::from_slice(&output.expect("curl is needed").stdout).ok()
        })
    }

    /// Every lease: key below [`SUBNETS`] and value.
    fn leases(&self) -> Vec<(String, String)> {
        let end = format!("{}0", SUBNETS.trim_end_matches('/'));
        let range = json!({ "key": STANDARD.encode(SUBNETS), "range_end": STANDARD.encode(end) });
        let text = |value: &Value| {
            let bytes = STANDARD.decode(value.as_str().expect("base64")).expect("base64");
            String::from_utf8(bytes).expect("flannel's values are text")
        };
        let answer = self.ask("kv/range", &range);
        let kvs = answer["kvs"].as_array().cloned().unwrap_or_default();
        kvs.iter().map(|kv| (text(&kv["key"])[SUBNETS.len()..].to_owned(), text(&kv["value"]))).collect()
    }

    fn lease(&self, key: &str) -> Option<String> {
        self.leases().into_iter().find(|(found, _)| found == key).map(|(_, value)| value)
    }

    fn delete(&self, key: &str) {
        self.ask("kv/deleterange", &json!({ "key": STANDARD.encode(format!("{SUBNETS}{key}")) }));
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// flannel's machine.
trait Foreign {
    /// Has taken in what etcd has now. A flanneld does so by itself.
    fn follow(&self, etcd: &Etcd);
    /// Its subnet.env.
    fn subnet_env(&self) -> String;
    /// It is gone for good.
    fn leave(self, etcd: &Etcd);
}

fn key(machine: &Machine) -> String {
    format!("10.1.{}.0-24", machine.number)
}

/// The VTEP's address in a lease.
fn mac(value: &str) -> String {
    let value: Value = serde_json::from_str(value).expect("JSON");
    value["BackendData"]["VtepMAC"].as_str().expect("a VTEP").to_owned()
}

/// What flanneld does, done with `ip`, `bridge` and requests to etcd.
struct Played<'a> {
    machine: &'a Machine,
    lease: String,
}

impl<'a> Played<'a> {
    fn join(machine: &'a Machine, etcd: &Etcd) -> Self {
        let (host, ip, key) = (&machine.host, machine.ip, key(machine));
        host.run(&format!(
            "ip link add flannel.1 type vxlan id 1 local {ip} dev eth0 dstport 8472 nolearning"
        ));
        host.run("ip link set flannel.1 mtu 1450");
        host.run(&format!("ip address add {}/32 dev flannel.1", machine.subnet.base()));
        host.run("ip link set flannel.1 up");
        let shown = host.run("ip -o link show flannel.1");
        let mac = shown.split("link/ether ").nth(1).map(|rest| &rest[..17]).expect("an address");
        let value = format!(
            r#"{{"PublicIP":"{ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
        );
        let lease =
            etcd.ask("lease/grant", &json!({ "TTL": "86400" }))["ID"].as_str().expect("an id").to_owned();
        let name = STANDARD.encode(format!("{SUBNETS}{key}"));
        let put = json!({ "key": name, "value": STANDARD.encode(value), "lease": lease });
        let absent = json!({ "key": name, "target": "VERSION", "version": "0", "result": "EQUAL" });
        let taken = etcd.ask("kv/txn", &json!({ "compare": [absent], "success": [{ "requestPut": put }] }));
        assert_eq!(taken["succeeded"], true, "{taken}");
        Self { machine, lease }
    }
}

impl Foreign for Played<'_> {
    fn follow(&self, etcd: &Etcd) {
        for (net, value) in etcd.leases().into_iter().filter(|(net, _)| *net != key(self.machine)) {
            let (mac, lease): (_, Value) = (mac(&value), serde_json::from_str(&value).expect("JSON"));
            let public = lease["PublicIP"].as_str().expect("an address").to_owned();
            let (base, host) = (net.trim_end_matches("-24"), &self.machine.host);
            host.run(&format!("ip neighbour replace {base} lladdr {mac} dev flannel.1 nud permanent"));
            host.run(&format!("bridge fdb replace {mac} dev flannel.1 dst {public} self permanent"));
            host.run(&format!("ip route replace {base}/24 via {base} dev flannel.1 onlink"));
        }
    }

    /// As it was recorded from flanneld 0.21.5.
    fn subnet_env(&self) -> String {
        format!(
            "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.{}.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
            self.machine.number
        )
    }

    fn leave(self, etcd: &Etcd) {
        etcd.ask("lease/revoke", &json!({ "ID": self.lease }));
    }
}

/// The real one.
struct Flanneld<'a> {
    machine: &'a Machine,
    child: Child,
    files: TempDir,
}

impl<'a> Flanneld<'a> {
    fn join(program: &Path, machine: &'a Machine) -> Self {
        let files = tempfile::tempdir().expect("a directory");
        let env = files.path().join("subnet.env");
        // The subnet that its container is in: flanneld takes the one of its last run.
        let before = format!("FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.{}.1/24\n", machine.number);
        std::fs::write(&env, before).expect("written");
        let log = std::fs::File::create(files.path().join("log")).expect("made");
        let child = machine.host.enter(|| {
            Command::new(program)
                .args(["-etcd-endpoints", URL, "-iface", "eth0", "-ip-masq", "-subnet-file"])
                .arg(&env)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
                .unwrap_or_else(|error| panic!("FLANNELD is {}: {error}", program.display()))
        });
        Self { machine, child, files }
    }
}

impl Foreign for Flanneld<'_> {
    fn follow(&self, _: &Etcd) {}

    fn subnet_env(&self) -> String {
        let read = || std::fs::read_to_string(self.files.path().join("subnet.env")).unwrap_or_default();
        eventually("flanneld has written its file", || read().contains("FLANNEL_IPMASQ"));
        read()
    }

    fn leave(mut self, etcd: &Etcd) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // It leaves its lease to end by itself, in a day.
        etcd.delete(&key(self.machine));
    }
}

impl Drop for Flanneld<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.files.path().join("log")).unwrap_or_default();
            eprintln!("flanneld said:\n{log}");
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start(world: &World, index: usize) -> Running {
    world.start_with(index, async || {
        Store::connect(access::Access::open(&[URL.to_owned()])).await.expect("an address")
    })
}

/// Two machines of ours, then flannel's, then another of ours.
fn share_a_network<'w, F: Foreign>(world: &'w World, join: impl FnOnce(&'w Machine, &Etcd) -> F) {
    let etcd = Etcd::start(world);
    let put = |key: &str, value: &str| {
        etcd.ask("kv/put", &json!({ "key": STANDARD.encode(key), "value": STANDARD.encode(value) }));
    };
    put(keys::NETWORK_CONFIG, r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}"#);
    let [one, two, three, four] = world.cluster.machines.as_slice() else { panic!("four machines") };
    for machine in [one, two, four] {
        let record = NodeRecord::new(machine.subnet.into(), machine.ip);
        put(&keys::network_node(&machine.id), &serde_json::to_string(&record).expect("renders"));
    }
    let know = |what: &str, running: &[Running], peers: usize| {
        eventually(what, || {
            running.iter().all(|one| *one.ready.borrow() && one.view.status().peers.len() == peers)
        });
    };
    let mut running = vec![start(world, 0), start(world, 1)];
    know("ours know each other", &running, 1);
    let foreign = join(three, &etcd);
    know("ours know flannel's machine", &running, 2);
    running.push(start(world, 3));
    know("one that comes later knows all", &running, 3);
    foreign.follow(&etcd);
    eventually("flannel's machine knows all of ours", || {
        three.host.run("ip route").matches("dev flannel.1").count() == 3
    });
    world.containers_meet();

    let theirs = etcd.lease(&key(three)).expect("it has one");
    for machine in [one, two, four] {
        let own = vtep_mac(&machine.id, 1, Family::V4).to_string();
        let expected =
            theirs.replace(&three.ip.to_string(), &machine.ip.to_string()).replace(&mac(&theirs), &own);
        assert_eq!(etcd.lease(&key(machine)), Some(expected), "not flannel's bytes");
    }
    assert_eq!(world.file(0, "subnet.env"), foreign.subnet_env().replace("=10.1.3.1/", "=10.1.1.1/"));

    running.remove(0).stop();
    running.insert(0, start(world, 0));
    know("a daemon that was restarted knows all", &running, 3);
    world.containers_meet();

    foreign.leave(&etcd);
    know("ours have seen it leave", &running, 2);
    eventually("its entries are gone", || {
        let left = one.host.run("ip route") + &one.host.run("bridge fdb show dev flannel.1");
        !left.contains("10.1.3.0/24") && !left.contains(&three.ip.to_string())
    });
    one.container.reaches(four.container_ip, one.container_ip);
}

#[test]
fn point_11_a_peer_that_does_what_flanneld_does_shares_the_network() {
    share_a_network(&World::vxlan(4), Played::join);
}

#[test]
fn point_11_a_real_flanneld_shares_the_network() {
    match std::env::var_os("FLANNELD").map(PathBuf::from) {
        Some(program) => share_a_network(&World::vxlan(4), |machine, _| Flanneld::join(&program, machine)),
        // Not by `eprintln!`, which nobody sees of a test that does not fail.
        None => writeln!(
            std::io::stderr(),
            "\nNOT RUN: point_11_a_real_flanneld_shares_the_network needs a flanneld (0.21.3 or later): \
             FLANNELD=/path/to/flanneld cargo test -p muster point_11"
        )
        .expect("stderr is there"),
    }
}
