//! What happens to the hub must not happen to packets: it is stopped for longer than leases last, loses everything, is
//! compacted while a machine cannot see it, loses its leader. Containers talk all the while, and nothing of it is lost.

use super::{Running, TERMS, Terms, World, block, eventually, lab::Namespace, underlay};
use access::Access;
use hub::{AuthConfig, Hub, HubConfig, Limits, remote::Remote};
use model::{NetworkConfig, SubnetKey, keys};
use muster_core::overlay::own_lease;
use registry::{Store, Write};
use std::{
    fs::File,
    net::{SocketAddr, UdpSocket},
    os::fd::AsFd,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// Where hubs are.
const HUB: &str = "192.168.77.254";
/// Leases end while the hub is away, or as soon as it is back.
const SHORT: Terms = Terms { ttl: Duration::from_secs(3), renewal: Duration::from_millis(700) };

/// Containers that ask each other for an answer, again and again.
struct Pings {
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<(u32, u32)>>,
}

impl Pings {
    /// Each container asks the next.
    fn start(world: &World) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let machines = &world.cluster.machines;
        let mut threads = Vec::new();
        for (at, from) in machines.iter().enumerate() {
            let to = &machines[(at + 1) % machines.len()];
            let socket = |namespace: &Namespace, address: SocketAddr| {
                let socket = namespace.enter(|| UdpSocket::bind(address).expect("the port is free"));
                socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a time");
                socket
            };
            let echo = socket(&to.container, SocketAddr::from(([0, 0, 0, 0], 7)));
            let stopped = stop.clone();
            // Outlives those that ask by its patience.
            thread::spawn(move || {
                let (mut buffer, mut silent) = ([0; 16], 0);
                while silent < 50 {
                    match echo.recv_from(&mut buffer) {
                        Ok((length, from)) => {
                            silent = 0;
                            let _ = echo.send_to(&buffer[..length], from); // whoever asks counts
                        }
                        Err(_) => silent += 1,
                    }
                }
            });
            let mouth = socket(&from.container, SocketAddr::from(([0, 0, 0, 0], 0)));
            let there = SocketAddr::from((to.container_ip, 7));
            threads.push(thread::spawn(move || {
                let (mut asked, mut lost, mut buffer) = (0u32, 0u32, [0; 16]);
                while !stopped.load(Ordering::Relaxed) {
                    asked += 1;
                    let sent = mouth.send_to(&asked.to_be_bytes(), there).is_ok();
                    let mut answered = false;
                    // A busy box may be slow: two seconds.
                    for _ in 0..10 {
                        match mouth.recv(&mut buffer) {
                            Ok(4) if buffer[..4] == asked.to_be_bytes() => {
                                answered = true;
                                break;
                            }
                            Ok(_) => {}
                            Err(_) if !sent => break,
                            Err(_) => {}
                        }
                    }
                    lost += u32::from(!answered);
                    thread::sleep(Duration::from_millis(10));
                }
                (asked, lost)
            }));
        }
        Self { stop, threads }
    }

    #[track_caller]
    fn none_was_lost(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            let (asked, lost) = thread.join().expect("no panic");
            println!("{asked} asked, {lost} lost");
            assert!(asked > 100, "only {asked} asked: nothing was seen");
            assert_eq!(lost, 0, "of {asked}");
        }
    }
}

/// Muster's hub, as a server in a namespace.
struct Served {
    stop: CancellationToken,
    thread: Option<thread::JoinHandle<()>>,
}

impl Served {
    fn start(host: &Namespace, data: &Path) -> Self {
        let stop = CancellationToken::new();
        let (token, data) = (stop.clone(), data.to_owned());
        let namespace = File::open(format!("/proc/{}/ns/net", host.pid())).expect("it is there");
        let (sender, receiver) = mpsc::channel();
        let thread = thread::spawn(move || {
            rustix::thread::move_into_link_name_space(namespace.as_fd(), None).expect("root may enter");
            block(async {
                let config = HubConfig {
                    data_dir: data,
                    listen: format!("{HUB}:2379").parse().expect("an address"),
                    advertise: None,
                    name: "test".to_owned(),
                    auth: AuthConfig::default(),
                    tls: None,
                    limits: Limits::default(),
                };
                let hub = Hub::start(config).await.expect("the hub starts");
                sender.send(()).expect("the test waits");
                token.cancelled().await;
                hub.shutdown().await;
            });
        });
        receiver.recv_timeout(super::DEADLINE).expect("the hub starts");
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // its panic was seen
        }
    }
}

/// Three machines whose hub is at the end of a wire.
struct Wired {
    running: Vec<Running>,
    endpoints: Vec<String>,
    office: Namespace,
    world: World,
    directory: TempDir,
}

impl Wired {
    fn new(config: &str, terms: Terms, ports: &[u16]) -> Self {
        let mut world = World::new(3, config);
        world.terms = terms;
        let office = world.cluster.outsider(254);
        let endpoints = ports.iter().map(|port| format!("http://{HUB}:{port}")).collect();
        let directory = tempfile::tempdir().expect("a directory");
        Self { running: Vec::new(), endpoints, office, world, directory }
    }

    fn data(&self) -> std::path::PathBuf {
        self.directory.path().join("hub")
    }

    /// Asks the hub, from its own namespace.
    fn ask<T: Send>(&self, endpoints: &[String], work: impl AsyncFnOnce(Store) -> T + Send) -> T {
        let access = Access::open(endpoints);
        self.office.enter(|| block(async { work(Store::connect(access).await.expect("an address")).await }))
    }

    /// Tells the hub what the world was made with, and starts everybody.
    fn start(&mut self) {
        let listing = block(self.world.store.list(keys::NETWORK)).expect("memory does not fail");
        let writes: Vec<_> =
            listing.items.iter().map(|kv| Write::put(kv.key.clone(), kv.value.clone())).collect();
        let endpoints = self.endpoints.clone();
        eventually("the hub has the network", || {
            self.ask(&endpoints, async |store| store.commit(&[], &writes).await.is_ok())
        });
        for index in 0..3 {
            let access = Access::open(&self.endpoints);
            let connect = async || Store::connect(access).await.expect("an address");
            self.running.push(self.world.start_with(index, connect));
        }
        eventually("all machines know each other", || {
            self.running.iter().all(|one| *one.ready.borrow() && one.view.status().peers.len() == 2)
        });
        self.world.containers_meet();
    }

    /// Which of the three machines' subnets the hub lists.
    fn published(&self) -> Vec<bool> {
        let listed = self.ask(&self.endpoints, async |store| store.list(keys::NETWORK).await);
        let listed = listed.map(|listing| listing.items).unwrap_or_default();
        let has = |key: String| listed.iter().any(|kv| kv.key == key);
        self.world.cluster.machines.iter().map(|machine| has(keys::subnet(machine.subnet))).collect()
    }

    /// A fourth machine, which nobody runs, takes 10.1.`number`.0/24.
    fn newcomer(&self, endpoints: &[String], number: u8) {
        let config: NetworkConfig =
            r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}"#.parse().expect("valid");
        let lease =
            own_lease(&format!("{number:032x}").parse().expect("an id"), &config, &underlay(number), None);
        let key = keys::subnet(format!("10.1.{number}.0-24").parse::<SubnetKey>().expect("a key"));
        let value = serde_json::to_vec(&lease).expect("renders");
        eventually("the newcomer is written", || {
            self.ask(endpoints, async |store| store.put(&key, value.clone(), None).await.is_ok())
        });
    }

    fn all_know(&self, number: u8) {
        let route = format!("10.1.{number}.0/24 via");
        eventually("all have heard of the newcomer", || {
            (0..3).all(|index| self.world.host(index).run("ip route").contains(&route))
        });
    }
}

const VXLAN: &str = r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}"#;

#[test]
fn point_08_a_hub_that_is_away_for_longer_than_leases_last_costs_no_packet() {
    let mut wired = Wired::new(VXLAN, SHORT, &[2379]);
    let hub = Served::start(&wired.office, &wired.data());
    wired.start();
    let pings = Pings::start(&wired.world);
    drop(hub);
    thread::sleep(SHORT.ttl * 3);
    let routes = || (0..3).map(|at| wired.world.host(at).run("ip route").matches("dev flannel.1").count());
    assert!(routes().all(|count| count == 2), "nobody was forgotten");
    let hub = Served::start(&wired.office, &wired.data());
    eventually("every machine holds its subnet", || wired.published() == [true; 3]);
    wired.newcomer(&wired.endpoints, 77);
    wired.all_know(77);
    thread::sleep(SHORT.ttl * 2);
    assert_eq!(wired.published(), [true; 3], "leases are renewed again");
    eventually("nobody is held any more", || wired.running.iter().all(|one| one.view.status().held == 0));
    pings.none_was_lost();
    wired.world.containers_meet();
    wired.running.clear();
    drop(hub);
}

#[test]
fn point_08_a_hub_that_comes_back_empty_is_told_the_same_network_again() {
    // Not the one of the machines' own configuration: that must not take its place.
    let mut wired =
        Wired::new(r#"{"Network":"10.1.0.0/17","Backend":{"Type":"vxlan","VNI":5}}"#, TERMS, &[2379]);
    let hub = Served::start(&wired.office, &wired.data());
    wired.start();
    let pings = Pings::start(&wired.world);
    drop(hub);
    std::fs::remove_dir_all(wired.data()).expect("it is there");
    let hub = Served::start(&wired.office, &wired.data());
    eventually("every machine has its own subnet again", || wired.published() == [true; 3]);
    let config = wired.ask(&wired.endpoints, async |store| store.get(keys::NETWORK_CONFIG).await);
    let config = config.expect("the hub answers").expect("it is there");
    assert!(String::from_utf8_lossy(&config.value).contains("10.1.0.0/17"), "{config:?}");
    // Whatever it leads to comes soon after.
    thread::sleep(Duration::from_secs(3));
    eventually("nobody is held any more", || wired.running.iter().all(|one| one.view.status().held == 0));
    pings.none_was_lost();
    for (at, one) in wired.running.iter().enumerate() {
        let status = one.view.status();
        let own = SubnetKey::from(wired.world.cluster.machines[at].subnet);
        assert_eq!((status.subnet, status.device.as_str()), (Some(own), "flannel.5"));
    }
    wired.world.containers_meet();
    wired.running.clear();
    drop(hub);
}

#[test]
fn point_08_a_history_that_is_compacted_while_a_machine_cannot_see_it_is_caught_up_with() {
    let mut wired = Wired::new(VXLAN, TERMS, &[2379]);
    let hub = Served::start(&wired.office, &wired.data());
    wired.start();
    wired.newcomer(&wired.endpoints, 76);
    wired.all_know(76);
    let pings = Pings::start(&wired.world);
    // The first machine is cut off from the hub, which restarts meanwhile, so that its connection is gone too.
    let one = wired.world.host(0);
    one.run("nft add table inet wall");
    one.run("nft add chain inet wall out { type filter hook output priority -400 ; }");
    one.run(&format!("nft add rule inet wall out ip daddr {HUB} drop"));
    drop(hub);
    let hub = Served::start(&wired.office, &wired.data());
    wired.newcomer(&wired.endpoints, 77);
    let gone = keys::subnet("10.1.76.0-24".parse::<SubnetKey>().expect("a key"));
    wired.ask(&wired.endpoints, async |store| {
        for number in 0..50 {
            store.put("/coreos.com/network/noise", number.to_string(), None).await.expect("the hub answers");
        }
        store.commit(&[], &[Write::Delete(gone)]).await.expect("the hub answers");
    });
    let access = Access::open(&wired.endpoints);
    wired.office.enter(|| {
        block(async {
            Remote::connect(access).await.expect("it answers").compact(None).await.expect("compacted")
        })
    });
    assert!(!one.run("ip route").contains("10.1.77.0/24"), "it cannot know");
    one.run("nft delete table inet wall");
    wired.all_know(77);
    eventually("who went meanwhile is gone", || {
        (0..3).all(|index| !wired.world.host(index).run("ip route").contains("10.1.76.0/24"))
    });
    pings.none_was_lost();
    wired.running.clear();
    drop(hub);
}

/// Members of an etcd cluster, in one namespace.
struct Members {
    children: Vec<Child>,
    _directory: TempDir,
}

const PORTS: [u16; 3] = [2379, 2381, 2383];

impl Members {
    fn start(host: &Namespace) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let peer = |at: usize| format!("http://{HUB}:{}", PORTS[at] + 1);
        let cluster: Vec<String> = (0..3).map(|at| format!("m{at}={}", peer(at))).collect();
        let start = |at: usize| {
            let client = format!("http://{HUB}:{}", PORTS[at]);
            let mut command = Command::new("etcd");
            command
                .args(["--name", &format!("m{at}"), "--data-dir"])
                .arg(directory.path().join(at.to_string()))
                .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
                .args(["--listen-peer-urls", &peer(at), "--initial-advertise-peer-urls", &peer(at)])
                .args(["--initial-cluster", &cluster.join(","), "--logger", "zap", "--log-level", "error"])
                .env_clear()
                .env("PATH", std::env::var_os("PATH").unwrap_or_default())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            let child = host.enter(|| command.spawn());
            child.expect("this test needs a real etcd: apt-get install --no-install-recommends etcd-server")
        };
        Self { children: (0..3).map(start).collect(), _directory: directory }
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill(); // it may be gone
            let _ = child.wait(); // the same
        }
    }
}

#[test]
fn point_08_an_etcd_cluster_that_loses_its_leader_costs_no_packet() {
    let mut wired = Wired::new(VXLAN, TERMS, &PORTS);
    let mut members = Members::start(&wired.office);
    wired.start();
    let pings = Pings::start(&wired.world);
    let leads = |at: usize| {
        let access = Access::open(&wired.endpoints[at..=at]);
        let status = wired.office.enter(|| block(async { Remote::connect(access).await?.status().await }));
        status.is_ok_and(|status| status.members == 3 && status.leader == status.member)
    };
    let mut leader = None;
    eventually("one leads", || {
        leader = (0..3).find(|at| leads(*at));
        leader.is_some()
    });
    let leader = leader.expect("one leads");
    members.children[leader].kill().expect("it runs");
    let others: Vec<_> = wired
        .endpoints
        .iter()
        .enumerate()
        .filter(|(at, _)| *at != leader)
        .map(|(_, one)| one.clone())
        .collect();
    wired.newcomer(&others, 77);
    wired.all_know(77);
    pings.none_was_lost();
    let [first, ..] = others.as_slice() else { panic!("two are left") };
    let listed = wired.ask(std::slice::from_ref(first), async |store| store.list(keys::SUBNETS).await);
    assert_eq!(listed.expect("it answers").items.len(), 4, "nobody lost its subnet");
    wired.world.containers_meet();
    wired.running.clear();
}
