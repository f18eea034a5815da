//! The role on real kernels: a network namespace for each machine, a hub in memory. Named after the points in which the
//! overlay has to be better than what it replaces. What a namespace cannot show (Docker) is in the end-to-end tests.

/// What passes between the machines; shared like `lab`.
#[allow(unreachable_pub, reason = "written for another crate's tests")]
#[path = "../../../../net/tests/it/capture.rs"]
mod capture;
/// Together with flannel's machines.
mod interop;
/// Namespaces, shared with the tests of `net`.
#[allow(dead_code, unreachable_pub, reason = "written for another crate's tests, which use more of it")]
#[path = "../../../../net/tests/it/lab.rs"]
mod lab;
/// The hub away, empty, compacted, without a leader.
mod outage;
/// Several networks.
mod several;
/// What can be seen and forged between the machines.
mod wire;

use super::{Network, Overlay, Places, TERMS, Terms, View, claim::Claim};
use crate::{agent::Machine, config::Config};
use lab::{Cluster, Namespace};
use model::{SubnetKey, SubnetLease, keys, network::NodeRecord};
use muster_core::overlay::{Underlay, own_lease, vtep_mac};
use registry::{Store, Write};
use std::{
    collections::BTreeSet,
    fs::File,
    net::Ipv4Addr,
    os::fd::AsFd,
    path::Path,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Long enough for a busy box. What is promised is less, and printed.
const DEADLINE: Duration = Duration::from_secs(20);

#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
    println!("{what}: {:?}", start.elapsed());
    start.elapsed()
}

/// The role, running inside a machine.
struct Running {
    stop: CancellationToken,
    thread: Option<thread::JoinHandle<()>>,
    view: View,
    ready: watch::Receiver<bool>,
}

impl Running {
    fn stop(mut self) {
        self.stop.cancel();
        self.thread.take().expect("it runs").join().expect("the role does not panic");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Machines with their files and a hub.
struct World {
    cluster: Cluster,
    store: Store,
    files: Vec<TempDir>,
    terms: Terms,
}

fn block<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work)
}

impl World {
    /// Each machine has the subnet that its container is in by its record.
    fn new(size: u8, config: &str) -> Self {
        let world = Self {
            cluster: Cluster::new(size),
            store: Store::memory(),
            files: (0..size).map(|_| tempfile::tempdir().expect("a directory")).collect(),
            terms: TERMS,
        };
        world.put(keys::NETWORK_CONFIG, config);
        for machine in &world.cluster.machines {
            let record = NodeRecord::new(machine.subnet.into(), machine.ip);
            world.put(&keys::network_node(&machine.id), &serde_json::to_string(&record).expect("renders"));
        }
        world
    }

    fn vxlan(size: u8) -> Self {
        Self::new(size, r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}"#)
    }

    fn put(&self, key: &str, value: &str) {
        block(self.store.put(key, value.to_owned(), None)).expect("memory does not fail");
    }

    fn lease(&self, index: usize) -> Option<SubnetLease> {
        let key = keys::subnet(self.cluster.machines[index].subnet);
        let kv = block(self.store.get(&key)).expect("memory does not fail")?;
        serde_json::from_slice(&kv.value).ok()
    }

    fn start(&self, index: usize) -> Running {
        self.start_on(index, self.store.clone())
    }

    fn start_on(&self, index: usize, store: Store) -> Running {
        self.start_with(index, async || store)
    }

    /// `store` is asked for inside the machine, so that its connection is made from there.
    fn start_with(&self, index: usize, store: impl AsyncFnOnce() -> Store + Send + 'static) -> Running {
        let first = Network::all(&Config::default().overlay).remove(0);
        self.start_network(index, first, store)
    }

    fn start_network(
        &self,
        index: usize,
        network: Network,
        store: impl AsyncFnOnce() -> Store + Send + 'static,
    ) -> Running {
        let machine = &self.cluster.machines[index];
        let directory = self.files[index].path().to_owned();
        let name = format!("m{}", machine.number);
        let role = Machine { id: machine.id.clone(), name, config: Arc::new(Config::default()) };
        let namespace = File::open(format!("/proc/{}/ns/net", machine.host.pid())).expect("it is there");
        let stop = CancellationToken::new();
        let (ready, is_ready) = watch::channel(false);
        let (sender, receiver) = mpsc::channel();
        let token = stop.clone();
        let terms = self.terms;
        let thread = thread::spawn(move || {
            rustix::thread::move_into_link_name_space(namespace.as_fd(), None).expect("root may enter");
            block(async move {
                let kernel = net::Kernel::connect().await.expect("a netlink socket");
                let places = Places {
                    state: directory.clone(),
                    run: directory.clone(),
                    networks: directory.join("networks"),
                };
                let (store, told) = (store().await, (watch::channel(None).0, ready));
                let mut overlay = Overlay::new(role, network, store, kernel, places, told);
                overlay.terms = terms;
                sender.send(overlay.view()).expect("the test waits");
                overlay.run(token).await.expect("the role does not fail");
            });
        });
        let view = receiver.recv_timeout(DEADLINE).expect("the role starts");
        Running { stop, thread: Some(thread), view, ready: is_ready }
    }

    fn start_all(&self) -> Vec<Running> {
        let running: Vec<Running> = (0..self.cluster.machines.len()).map(|index| self.start(index)).collect();
        let others = running.len() - 1;
        eventually("all machines know each other", || {
            running.iter().all(|one| *one.ready.borrow() && one.view.status().peers.len() == others)
        });
        running
    }

    fn host(&self, index: usize) -> &Namespace {
        &self.cluster.machines[index].host
    }

    fn file(&self, index: usize, name: &str) -> String {
        std::fs::read_to_string(self.files[index].path().join(name)).unwrap_or_default()
    }

    fn containers_meet(&self) {
        for from in &self.cluster.machines {
            for to in self.cluster.machines.iter().filter(|to| to.number != from.number) {
                from.container.reaches(to.container_ip, from.container_ip);
            }
        }
    }
}

#[test]
fn point_01_what_is_removed_by_hand_is_back_in_a_moment() {
    let world = World::vxlan(2);
    let running = world.start_all();
    world.containers_meet();
    let one = world.host(0);
    let mac = vtep_mac(&world.cluster.machines[1].id, 1, muster_core::overlay::Family::V4);
    let shows = |command: &str, part: &str| one.run(command).contains(part);
    for (damage, command, part) in [
        ("ip route del 10.1.2.0/24".to_owned(), "ip route", "10.1.2.0/24 via 10.1.2.0 dev flannel.1"),
        ("ip neighbour del 10.1.2.0 dev flannel.1".to_owned(), "ip neighbour", "10.1.2.0 dev flannel.1"),
        (format!("bridge fdb del {mac} dev flannel.1"), "bridge fdb show dev flannel.1", "dst 192.168.77.2"),
        ("ip address del 10.1.1.0/32 dev flannel.1".to_owned(), "ip address", "10.1.1.0/32"),
        ("nft flush chain inet muster forward".to_owned(), "nft list table inet muster", "ct status dnat"),
    ] {
        assert!(shows(command, part), "{part}");
        one.run(&damage);
        eventually(&damage, || shows(command, part));
    }
    eventually("repairs are counted", || running[0].view.status().repaired >= 4);
    world.containers_meet();
}

#[test]
fn point_02_what_is_left_of_a_peer_that_went_meanwhile_is_collected_and_strangers_stay() {
    let world = World::vxlan(2);
    let mut running = world.start_all();
    running.remove(0).stop();
    drop(running);
    block(world.store.commit(&[], &[Write::Delete(keys::subnet(world.cluster.machines[1].subnet))]))
        .expect("memory does not fail");
    let one = world.host(0);
    one.run("ip route add 10.1.99.0/24 via 192.168.77.9 proto 77");
    one.run("ip route add 10.99.0.0/24 via 192.168.77.9");
    assert!(one.run("ip route").contains("10.1.2.0/24"), "a daemon's end takes nothing away");
    let again = world.start(0);
    eventually("both are gone", || {
        let routes = one.run("ip route");
        !routes.contains("10.1.2.0/24") && !routes.contains("10.1.99.0/24")
    });
    assert!(!one.run("bridge fdb show dev flannel.1").contains("192.168.77.2"));
    assert!(one.run("ip route").contains("10.99.0.0/24"));
    drop(again);
}

#[test]
fn point_03_a_deleted_device_comes_back_with_its_address_and_all_peers() {
    let world = World::vxlan(3);
    let running = world.start_all();
    let shown = |host: &Namespace| {
        host.run("ip -o link show flannel.1").split("link/ether ").nth(1).map(|rest| rest[..17].to_owned())
    };
    let before = shown(world.host(0));
    world.host(0).run("ip link del flannel.1");
    eventually("the device is back with both peers", || {
        world.host(0).run("ip route").matches("dev flannel.1").count() == 2
    });
    assert_eq!(shown(world.host(0)), before);
    world.containers_meet();
    drop(running);
}

#[test]
fn point_04_a_machine_keeps_its_subnet_when_its_address_changes() {
    let world = World::vxlan(2);
    let running = world.start_all();
    let one = world.host(0);
    let before = running[0].view.status().subnet;
    one.run("ip address add 192.168.77.101/24 dev eth0");
    one.run("ip address del 192.168.77.1/24 dev eth0");
    // Without promotion the kernel drops what depended on the first address.
    one.enter(|| {
        for arguments in
            ["address replace 192.168.77.101/24 dev eth0", "route replace default via 192.168.77.254"]
        {
            let _ = std::process::Command::new("ip").args(arguments.split(' ')).output();
        }
    });
    eventually("the lease has the new address", || {
        world.lease(0).is_some_and(|lease| lease.public_ip == Ipv4Addr::new(192, 168, 77, 101))
    });
    eventually("the peer follows", || {
        world.host(1).run("bridge fdb show dev flannel.1").contains("dst 192.168.77.101")
    });
    assert_eq!(running[0].view.status().subnet, before);
    eventually("the device follows", || {
        world.host(0).run("ip -d link show flannel.1").contains("local 192.168.77.101")
    });
    world.containers_meet();
}

#[test]
fn point_05_fifty_machines_that_start_at_once_get_fifty_subnets() {
    let store = Store::memory();
    let claims = async {
        let mut tasks = tokio::task::JoinSet::new();
        for number in 1..=50_u8 {
            let store = store.clone();
            tasks.spawn(async move {
                let machine = format!("{number:032x}").parse().expect("an id");
                let underlay = underlay(number);
                let key = || -> anyhow::Result<String> { anyhow::bail!("no WireGuard") };
                let claim = Claim {
                    store: &store,
                    keys: &keys::NetworkKeys::default(),
                    machine: &machine,
                    network: Some(r#"{"Network":"10.1.0.0/18"}"#.parse().expect("valid")),
                    underlay: &underlay,
                    wireguard: &|| key(),
                    previous: None,
                    ttl: Duration::from_secs(60),
                    check: &|_, _| Ok(()),
                };
                let mut attempts = 0;
                loop {
                    attempts += 1;
                    if let Some(claimed) = claim.take().await.expect("a collision is no error") {
                        return (claimed.key, attempts);
                    }
                }
            });
        }
        tasks.join_all().await
    };
    let taken = block(claims);
    println!("attempts: {:?}", taken.iter().map(|(_, attempts)| *attempts).max());
    assert_eq!(taken.iter().map(|(key, _)| *key).collect::<BTreeSet<_>>().len(), 50);
}

fn underlay(last: u8) -> Underlay {
    Underlay {
        name: "eth0".to_owned(),
        index: 2,
        address: Ipv4Addr::new(192, 168, 77, last),
        address6: None,
        links: Vec::new(),
        mtu: 1500,
    }
}

#[test]
fn point_06_a_reservation_survives_start_renewal_and_twice_its_time() {
    let mut world = World::vxlan(2);
    // Short enough to be over during the test, were it kept for a machine that is silent.
    world.terms = Terms { ttl: Duration::from_secs(2), renewal: Duration::from_millis(400) };
    let machine = &world.cluster.machines[0];
    let reserved = "10.1.200.0-24".parse::<SubnetKey>().expect("a key");
    block(world.store.commit(&[], &[Write::Delete(keys::network_node(&machine.id))])).expect("memory");
    let value = format!(r#"{{"PublicIP":"{}"}}"#, machine.ip);
    world.put(&keys::subnet(reserved), &value);
    let lease = || {
        let kv = block(world.store.get(&keys::subnet(reserved))).expect("memory").expect("it is there");
        kv.lease
    };
    for _ in 0..2 {
        let (running, other) = (world.start(0), world.start(1));
        eventually("it has the reserved subnet", || running.view.status().subnet == Some(reserved));
        eventually("the other has a lease", || world.lease(1).is_some());
        thread::sleep(world.terms.ttl * 2);
        assert_eq!(lease(), None, "a reservation never ends");
        assert_eq!(running.view.status().subnet, Some(reserved));
        assert!(world.lease(1).is_some(), "what is renewed does not end");
        running.stop();
        other.stop();
        eventually("a lease that nobody renews ends", || world.lease(1).is_none());
        assert_eq!(lease(), None, "a reservation does not");
    }
}

#[test]
fn point_07_a_crowd_of_peers_is_programmed_in_one_round() {
    let world = World::vxlan(1);
    let running = world.start(0);
    eventually("it is up", || *running.ready.borrow());
    let config = r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}"#.parse().expect("valid");
    let writes: Vec<Write> = (2..=101_u8)
        .map(|number| {
            let id = format!("{number:032x}").parse().expect("an id");
            let lease = own_lease(&id, &config, &underlay(number), None);
            let key = keys::subnet(format!("10.1.{number}.0-24").parse::<SubnetKey>().expect("a key"));
            Write::put(key, serde_json::to_vec(&lease).expect("renders"))
        })
        .collect();
    let rounds = running.view.status().rounds;
    block(world.store.commit(&[], &writes)).expect("memory");
    eventually("100 peers", || world.host(0).run("ip route").matches("dev flannel.1").count() == 100);
    let status = running.view.status();
    println!("a round: {} us, rounds: {}", status.last_round, status.rounds - rounds);
    assert_eq!(status.repaired, 0, "nobody damaged anything");
}

#[test]
fn point_08_a_hub_that_forgot_everything_costs_no_packet_and_is_told_again() {
    let world = World::vxlan(3);
    let running = world.start_all();
    block(world.store.commit(&[], &[Write::DeletePrefix(keys::NETWORK.to_owned())])).expect("memory");
    world.put(keys::NETWORK_CONFIG, r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}"#);
    for _ in 0..20 {
        for host in 0..3 {
            assert_eq!(world.host(host).run("ip route").matches("dev flannel.1").count(), 2);
        }
    }
    eventually("every machine has its own subnet again", || (0..3).all(|index| world.lease(index).is_some()));
    eventually("nobody is held any more", || running.iter().all(|one| one.view.status().held == 0));
    world.containers_meet();
}

#[test]
fn point_08_a_machine_that_boots_without_the_hub_joins_with_what_it_knew() {
    let world = World::vxlan(2);
    let mut running = world.start_all();
    eventually("it is remembered", || world.file(0, "overlay.json").contains("10.1.2.0-24"));
    running.remove(0).stop();
    world.host(0).run("ip link del flannel.1");
    world.host(0).run("nft flush ruleset");
    let nowhere =
        block(Store::connect(access::Access::open(&["http://127.0.0.1:1".to_owned()]))).expect("an address");
    let booted = world.start_on(0, nowhere);
    eventually("it is up", || *booted.ready.borrow());
    world.containers_meet();
    assert!(world.file(0, "subnet.env").contains("FLANNEL_SUBNET=10.1.1.1/24"));
}

#[test]
fn point_09_nobody_outside_reaches_a_container() {
    let world = World::vxlan(2);
    let _running = world.start_all();
    let outsider = world.cluster.outsider(200);
    outsider.run("ip route add 10.1.1.0/24 via 192.168.77.1");
    let one = &world.cluster.machines[0];
    one.host.run("ip route replace default dev eth0");
    outsider.cannot_reach(one.container_ip);
    outsider.reaches(one.ip, Ipv4Addr::new(192, 168, 77, 200));
    world.containers_meet();
}

#[test]
fn point_10_flushed_rules_are_back_under_a_policy_of_drop_and_nothing_is_run_in_between() {
    let world = World::vxlan(2);
    let running = world.start_all();
    world.host(0).run("iptables -P FORWARD DROP");
    world.containers_meet();
    world.host(0).run("nft flush ruleset");
    world.host(0).run("iptables -P FORWARD DROP");
    eventually("the rules are back", || {
        world.host(0).enter(|| {
            let listed = std::process::Command::new("nft").args(["list", "ruleset"]).output().expect("nft");
            let text = String::from_utf8_lossy(&listed.stdout).into_owned();
            text.contains("table inet muster") && text.contains("MUSTER-FORWARD")
        })
    });
    world.containers_meet();
    let repaired = eventually_still(&running[0].view);
    world.host(1).run("nft add table inet others");
    world.host(1).run("ip route add 10.99.0.0/24 via 192.168.77.9");
    assert_eq!(running[1].view.status().rules_repaired, 0, "others' changes are none of ours");
    assert!(repaired >= 1);
}

#[test]
fn point_10_the_first_start_of_docker_is_no_repair() {
    let world = World::vxlan(2);
    let running = world.start_all();
    let one = world.host(0);
    // As dockerd 20.10 does it when it starts.
    for rule in [
        "-P FORWARD DROP",
        "-N DOCKER-USER",
        "-A DOCKER-USER -j RETURN",
        "-I FORWARD -j DOCKER-USER",
        "-N DOCKER",
        "-A FORWARD -o docker0 -j DOCKER",
    ] {
        one.run(&format!("iptables {rule}"));
    }
    eventually("it is jumped to", || one.run("iptables -S DOCKER-USER").contains("-j MUSTER-OVERLAY"));
    world.containers_meet();
    assert_eq!(running[0].view.status().rules_repaired, 0, "nobody damaged anything");
    one.run("iptables -D DOCKER-USER -j MUSTER-OVERLAY");
    eventually("it is jumped to again", || one.run("iptables -S DOCKER-USER").contains("-j MUSTER-OVERLAY"));
    eventually("that is one", || running[0].view.status().rules_repaired == 1);
}

fn eventually_still(view: &View) -> u64 {
    eventually("it is counted", || view.status().rules_repaired >= 1);
    view.status().rules_repaired
}

#[test]
fn point_12_the_mtu_follows_the_interfaces() {
    let world = World::vxlan(2);
    let _running = world.start_all();
    assert!(world.file(0, "subnet.env").contains("FLANNEL_MTU=1450"));
    world.host(0).run("ip link set eth0 mtu 1400");
    eventually("device and file follow", || {
        world.host(0).run("ip link show flannel.1").contains("mtu 1350")
            && world.file(0, "subnet.env").contains("FLANNEL_MTU=1350")
            && world.file(0, "docker.env").contains("--mtu=1350")
    });
}

#[test]
fn point_13_one_switch_encrypts_and_the_subnets_stay() {
    assert!(Path::new("/dev/net/tun").exists(), "WireGuard in userspace needs /dev/net/tun");
    let world = World::vxlan(2);
    let running = world.start_all();
    world.put(keys::NETWORK_CONFIG, r#"{"Network":"10.1.0.0/16","Backend":{"Type":"wireguard"}}"#);
    eventually("both machines went over", || {
        running.iter().all(|one| {
            let status = one.view.status();
            status.backend == "wireguard" && status.peers.len() == 1 && status.ready
        })
    });
    world.containers_meet();
    eventually("they have shaken hands", || {
        running[0].view.status().peers[0].last_handshake.is_some() || {
            world.host(0).run("ip route add 10.98.0.0/24 via 192.168.77.9");
            world.host(0).run("ip route del 10.98.0.0/24");
            false
        }
    });
    assert!(!world.host(0).run("ip link").contains("flannel.1:"), "the former device is gone");
    assert_eq!(world.lease(0).map(|lease| lease.backend_type), Some("wireguard".to_owned()));
}

#[test]
fn host_gw_routes_over_the_machines_network_and_back_again() {
    let world = World::vxlan(2);
    let running = world.start_all();
    world.put(keys::NETWORK_CONFIG, r#"{"Network":"10.1.0.0/16","Backend":{"Type":"host-gw"}}"#);
    eventually("routes lead to the machines", || {
        (0..2).all(|index| world.host(index).run("ip route").contains("via 192.168.77."))
            && running.iter().all(|one| one.view.status().backend == "host-gw" && one.view.status().ready)
    });
    eventually("the device is gone", || !world.host(0).run("ip link").contains("flannel.1"));
    world.containers_meet();
    let outsider = world.cluster.outsider(200);
    outsider.run("ip route add 10.1.1.0/24 via 192.168.77.1");
    world.host(0).run("ip route replace default dev eth0");
    outsider.cannot_reach(world.cluster.machines[0].container_ip);
    world.put(
        keys::NETWORK_CONFIG,
        r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#,
    );
    eventually("VXLAN, but straight on the link", || {
        running.iter().all(|one| one.view.status().backend == "vxlan" && one.view.status().ready)
            && world.host(0).run("ip route").contains("10.1.2.0/24 via 192.168.77.2 dev eth0")
    });
    world.containers_meet();
}

#[test]
fn what_cannot_be_used_is_refused_and_changes_nothing() {
    let world = World::vxlan(2);
    let running = world.start_all();
    // On both: a machine that could follow would, and the other could not reach it any more.
    for host in 0..2 {
        world.host(host).run("ip link add vx type vxlan id 9 dstport 8472 dev eth0");
    }
    for (config, told) in [
        ("{", "no JSON object"),
        (r#"{"Network":"10.1.0.0/16","Backend":{"Type":"udp"}}"#, "backend `udp` is not supported"),
        (r#"{"Network":"10.1.0.0/29"}"#, "does not fit"),
        (
            r#"{"Network":"192.168.0.0/16","Backend":{"Type":"vxlan"}}"#,
            "eth0 of this machine has the address",
        ),
        (
            r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan","VNI":9}}"#,
            "the device vx of this machine has VNI 9",
        ),
    ] {
        world.put(keys::NETWORK_CONFIG, config);
        eventually(config, || running[0].view.status().problem.is_some_and(|problem| problem.contains(told)));
        world.containers_meet();
    }
    // What is taken back is known at once, and not at the next attempt.
    world.put(keys::NETWORK_CONFIG, r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}"#);
    let well = eventually("it is well again", || running[0].view.status().problem.is_none());
    assert!(well < super::REFUSED_PAUSE / 2, "{well:?}");
    // Values that are no leases concern nobody.
    world.put("/coreos.com/network/subnets/10.1.7.0-24", "rubbish");
    world.put("/coreos.com/network/subnets/nonsense", "{}");
    let rounds = running[0].view.status().rounds;
    world.host(0).run("ip route add 10.98.0.0/24 via 192.168.77.9");
    eventually("a round later", || running[0].view.status().rounds > rounds);
    assert_eq!(running[0].view.status().problem, None);
    world.containers_meet();
}

#[test]
fn point_14_ready_means_converged_and_the_doctor_names_the_culprit() {
    let world = World::vxlan(2);
    let running = world.start_all();
    let status = running[0].view.status();
    assert!(status.ready && status.problem.is_none() && status.mtu == 1450, "{status:?}");
    let examine = || {
        let view = running[0].view.clone();
        world.host(0).block_on(async || view.examine().await).peers
    };
    let well = examine();
    assert_eq!((well.len(), well[0].culprit.as_str()), (1, "nobody"), "{well:?}");
    world.host(1).run("nft add table inet wall");
    world.host(1).run("nft add chain inet wall in { type filter hook input priority -50 ; }");
    world.host(1).run("nft add rule inet wall in udp dport 8472 drop");
    let walled = examine();
    assert_eq!(walled[0].culprit, "firewall", "{walled:?}");
    assert!(walled[0].remedy.contains("8472/udp"), "{walled:?}");
    world.host(1).run("nft flush chain inet wall in");
    world.host(1).run("nft add rule inet wall in udp dport 8472 udp length > 1000 drop");
    assert_eq!(examine()[0].culprit, "mtu");
}
