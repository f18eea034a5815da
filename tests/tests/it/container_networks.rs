//! Containers that are not on Docker's default bridge: on a named network of Docker's, and of a runtime that speaks CNI.

use crate::{Lab, alone};
use lab::Machine;
use serde_json::{Value, json};
use std::{io::Write, net::Ipv4Addr, process::Stdio};
use story::eventually;

const PLUGINS: &str = "/usr/lib/cni";
const CONFIG: &str = "/etc/cni/net.d/10-muster.conflist";

/// Tells everybody from which address they came.
const WHO: &str = "import http.server
class Who(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(('from %s' % self.client_address[0]).encode())
http.server.HTTPServer(('', 3001), Who).serve_forever()
";

/// One ICMP echo (RFC 792) and its reply, for a box without ping(8).
const PING: &str = "import socket, struct, sys
def packet(checksum):
    return struct.pack('!BBHHH', 8, 0, checksum, 4711, 1)
total = sum(struct.unpack('!4H', packet(0)))
checksum = ~((total & 0xffff) + (total >> 16)) & 0xffff
echo = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
echo.settimeout(10)
echo.connect((sys.argv[1], 0))
echo.send(packet(checksum))
while True:
    answer = echo.recv(1500)[20:]
    if answer[0] == 0 and answer[4:8] == struct.pack('!HH', 4711, 1):
        break
";

fn ping(machine: &Machine, address: Ipv4Addr) {
    sh(machine, &format!("cat >/root/ping.py <<'END'\n{PING}END\n/usr/bin/python3 /root/ping.py {address}"));
}

fn sh(machine: &Machine, script: &str) -> String {
    machine.exec_ok(&["sh", "-c", script]).expect(script)
}

/// As the guide says: Docker's default bridge goes elsewhere, and `line` is added to `[overlay]`.
fn reconfigure(machine: &Machine, line: &str) {
    sh(machine, "rm /etc/systemd/system/docker.service.d/muster.conf && systemctl daemon-reload");
    sh(machine, "sed -i '1s|{|{\"bip\": \"172.17.0.1/16\",|' /etc/docker/daemon.json");
    sh(machine, &format!("printf '\\n[overlay]\\n{line}\\n' >>/etc/muster/muster.toml"));
    sh(machine, "systemctl restart muster && systemctl restart docker");
}

/// A container of the app on `network`, and its address.
fn container(machine: &Machine, name: &str, network: &str) -> Ipv4Addr {
    sh(machine, &format!("docker run --detach --name {name} --network {network} -e INSTANCE={name} someapp"));
    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    sh(machine, &format!("docker inspect --format '{format}' {name}")).trim().parse().expect("an address")
}

/// `who` on `machine` gets the page of `of` at `address`.
fn reaches(machine: &Machine, who: &str, address: Ipv4Addr, of: &str) {
    let ask = format!("{who} /someapp get http://{address}:3000/ 2>&1 || true");
    eventually(&format!("{of} at {address} answers"), || {
        Ok(sh(machine, &ask).contains(&format!("<h1>{of}<")))
    })
    .expect("it does");
}

/// What `net status` of the machine says, as soon as it is well.
fn subnet(machine: &Machine) -> Ipv4Addr {
    let mut found = None;
    eventually("the network is up", || {
        let output = machine.exec(&["muster", "net", "status", "-o", "json"])?;
        let status: Value = serde_json::from_str(&output.stdout).unwrap_or_default();
        let ready = status["ready"] == true && status["problem"].is_null();
        found = status["subnet"].as_str().and_then(|key| key.split('-').next()?.parse().ok());
        Ok(ready)
    })
    .expect("it is");
    found.expect("it has one")
}

/// Whether `address` is of the lower half of the subnet that begins at `base`.
fn is_containers(address: Ipv4Addr, base: Ipv4Addr) -> bool {
    address.octets()[..3] == base.octets()[..3] && (2..128).contains(&address.octets()[3])
}

#[test]
fn containers_of_named_networks_and_of_cni_are_on_the_cluster_network() {
    let _alone = alone();
    let cluster = Lab::up(3);
    let [m1, m2, m3] = ["m1", "m2", "m3"].map(|name| cluster.lab.machine(name).expect("it is there"));
    let plain = container(&m1, "plain", "bridge");
    a_named_network(&cluster, &m1, &m2, plain);
    a_runtime_that_speaks_cni(&cluster, &m1, &m3, plain);
    a_further_network(&cluster, &m1, &m2);
}

fn a_named_network(cluster: &Lab, m1: &Machine, m2: &Machine, plain: Ipv4Addr) {
    reconfigure(m2, "docker-network = \"muster\"");
    let base = subnet(m2);
    eventually("the network is made", || {
        Ok(m2.exec(&["docker", "network", "inspect", "muster"])?.status.success())
    })
    .expect("made");
    let named = container(m2, "named", "muster");
    assert!(is_containers(named, base), "{named} of {base}");
    let default = container(m2, "default", "bridge");
    assert_ne!(default.octets()[..3], base.octets()[..3], "the default bridge has our subnet too");

    ping(m1, named);
    reaches(m1, "docker exec plain", named, "named");
    reaches(m2, "docker exec named", plain, "plain");
    // It keeps its address on the way.
    sh(
        m1,
        &format!(
            "cat >/root/who.py <<'END'\n{WHO}END\nsystemd-run --quiet --unit=who /usr/bin/python3 /root/who.py"
        ),
    );
    let [a, b, c, _] = plain.octets();
    let who = format!("docker exec named /someapp get http://{a}.{b}.{c}.1:3001/ 2>&1 || true");
    eventually("it is seen under its own address", || Ok(sh(m2, &who).contains(&format!("from {named}"))))
        .expect("it is");

    // A unit with an address of its own is on the same bridge.
    let unit = "[Service]\nExecStart=/usr/local/bin/someapp\nEnvironment=INSTANCE=beside\n\
                [X-Fleet]\nAddress=own\nMachineMetadata=number=2\n";
    cluster
        .sh(&format!("cat >beside.service <<'END'\n{unit}END\nmuster start beside.service"))
        .expect("started");
    let own = sh(m2, "cut -d= -f2 /run/muster/addresses/beside.service").trim().parse().expect("an address");
    reaches(m1, "docker exec plain", own, "beside");
    reaches(m2, "docker exec named", own, "beside");
    assert!(sh(m2, "ip -o link show master muster0").contains(": mu"), "not on the network's bridge");

    // Somebody has made it with other addresses: it is made anew when nobody is on it.
    sh(
        m2,
        "docker rm -f named && docker network rm muster && docker network create --subnet 10.88.0.0/24 muster",
    );
    sh(m2, "systemctl restart muster");
    eventually("it has the machine's addresses again", || {
        Ok(m2.exec(&["docker", "network", "inspect", "muster"])?.stdout.contains(&format!("\"{base}/24\"")))
    })
    .expect("it has");
    let named = container(m2, "again", "muster");
    reaches(m1, "docker exec plain", named, "again");
}

/// What a runtime does by the CNI specification: each plugin of the list in turn, or backwards, with the last one's result.
fn cni(machine: &Machine, command: &str, container: &str, ports: &Value) -> Value {
    let list: Value = serde_json::from_str(&sh(machine, &format!("cat {CONFIG}"))).expect("JSON");
    let mut plugins = list["plugins"].as_array().cloned().expect("a list");
    if command == "DEL" {
        plugins.reverse();
    }
    let mut last = Value::Null;
    for mut plugin in plugins {
        plugin["name"] = list["name"].clone();
        plugin["cniVersion"] = list["cniVersion"].clone();
        if plugin["capabilities"]["portMappings"] == true {
            plugin["runtimeConfig"] = json!({ "portMappings": ports });
        }
        if !last.is_null() {
            plugin["prevResult"] = last.clone();
        }
        let program = format!("{PLUGINS}/{}", plugin["type"].as_str().expect("a type"));
        let environment = format!(
            "CNI_COMMAND={command} CNI_CONTAINERID={container} CNI_NETNS=/run/netns/{container} CNI_IFNAME=eth0 CNI_PATH={PLUGINS}"
        );
        let mut child = machine
            .command(&["sh", "-c", &format!("{environment} {program}")])
            .expect("it runs")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        let input = plugin.to_string();
        child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it reads");
        let output = child.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{program} with {plugin}: {said}");
        if command == "ADD" {
            last = serde_json::from_str(&said).expect("a result");
        }
    }
    last
}

fn a_runtime_that_speaks_cni(cluster: &Lab, m1: &Machine, m3: &Machine, plain: Ipv4Addr) {
    assert!(
        m3.exec(&["test", "-x", "/usr/lib/cni/bridge"]).expect("runs").status.success(),
        "CNI's plugins are needed: apt-get install --no-install-recommends containernetworking-plugins"
    );
    reconfigure(m3, &format!("cni-config = \"{CONFIG}\""));
    let base = subnet(m3);
    let add = |name: &str, ports: Value| -> Ipv4Addr {
        sh(m3, &format!("ip netns add {name}"));
        let result = cni(m3, "ADD", name, &ports);
        sh(
            m3,
            &format!(
                "systemd-run --quiet --unit={name} --setenv=INSTANCE={name} ip netns exec {name} someapp"
            ),
        );
        let address = result["ips"][0]["address"].as_str().and_then(|net| net.split('/').next());
        address.and_then(|address| address.parse().ok()).expect("an address")
    };
    let published = json!([{ "hostPort": 8081, "containerPort": 3000, "protocol": "tcp" }]);
    let (one, two) = (add("pod1", published.clone()), add("pod2", json!([])));
    assert!(is_containers(one, base) && is_containers(two, base) && one != two, "{one} {two} of {base}");
    assert!(sh(m3, "ip netns exec pod1 ip link show eth0").contains("mtu 1450"));

    ping(m1, one);
    reaches(m1, "docker exec plain", one, "pod1");
    reaches(m1, "docker exec plain", two, "pod2");
    let from_pod = format!("ip netns exec pod1 curl --silent --max-time 5 http://{plain}:3000/");
    assert!(sh(m3, &from_pod).contains("<h1>plain<"));
    // A port that is published is open to the world; the address is not.
    let outside = cluster.lab.outside();
    let ask = |address: Ipv4Addr, port: u16| {
        let url = format!("http://{address}:{port}/");
        outside.exec(&["curl", "--silent", "--max-time", "3", &url]).expect("curl runs").stdout
    };
    assert!(ask(m3.address(), 8081).contains("<h1>pod1<"));
    outside
        .exec_ok(&["ip", "route", "replace", &two.to_string(), "via", &m3.address().to_string()])
        .expect("routed");
    assert_eq!(ask(two, 3000), "");

    sh(m3, "systemctl stop pod1");
    cni(m3, "DEL", "pod1", &published);
    assert!(
        !sh(m3, "ls /var/lib/cni/networks/muster").contains(&one.to_string()),
        "its address is not given back"
    );
    assert_eq!(ask(m3.address(), 8081), "");
}

fn a_further_network(cluster: &Lab, m1: &Machine, m2: &Machine) {
    let config = r#"{"Network":"10.2.0.0/16","Backend":{"Type":"vxlan","VNI":2}}"#;
    let set =
        |config: &str| format!("echo '{config}' | muster net config set --prefix /coreos.com/network/blue -");
    cluster.sh(&set(config)).expect("set");
    for machine in [m1, m2] {
        sh(
            machine,
            "printf '\\n[overlay.networks.blue]\\ndocker-network = \"blue\"\\n' >>/etc/muster/muster.toml",
        );
        sh(machine, "systemctl restart muster");
    }
    let status = |machine: &Machine| -> Value {
        let output = machine.exec(&["muster", "net", "status", "-o", "json"]).expect("it answers");
        serde_json::from_str(&output.stdout).unwrap_or_default()
    };
    for machine in [m1, m2] {
        eventually("it is on both networks", || {
            let status = status(machine);
            let blue = &status["others"][0];
            let peers = |network: &Value| network["peers"].as_array().map_or(0, Vec::len);
            Ok(status["ready"] == true && blue["ready"] == true && (peers(&status), peers(blue)) == (2, 1))
        })
        .expect("it is");
        eventually("Docker has the network", || {
            Ok(machine.exec(&["docker", "network", "inspect", "blue"])?.status.success())
        })
        .expect("it has");
    }
    let (one, two) = (container(m1, "blue1", "blue"), container(m2, "blue2", "blue"));
    assert_eq!((&one.octets()[..2], &two.octets()[..2]), (&[10, 2][..], &[10, 2][..]));
    reaches(m1, "docker exec blue1", two, "blue2");
    reaches(m2, "docker exec blue2", one, "blue1");
    assert!(sh(m1, "cat /run/flannel/networks/blue.env").starts_with("FLANNEL_NETWORK=10.2.0.0/16\n"));
    let told = m1.exec_ok(&["muster", "net", "status"]).expect("it answers");
    assert!(told.contains("\nblue\nnetwork  10.2.0.0/16 by vxlan, converged"), "{told}");

    // What clashes is refused by name, and nothing changes.
    cluster.sh(&set(&config.replace(r#","VNI":2"#, ""))).expect("set");
    eventually("it is refused", || {
        let problem = status(m1)["others"][0]["problem"].clone();
        Ok(problem.as_str().is_some_and(|problem| problem.contains("has VNI 1")))
    })
    .expect("it is");
    assert_ne!(m1.exec(&["muster", "net", "status"]).expect("it answers").code(), 0);
    reaches(m1, "docker exec blue1", two, "blue2");
}
