//! Network namespaces joined by a bridge, and small TCP and UDP conversations between them.
//!
//! Invariant: nothing is left behind. A namespace is held by a child process that ends when this process does,
//! however that happens, and the namespace with it.

use model::{MachineId, NetworkConfig, Subnet, SubnetKey, network::MacAddress};
use muster_core::overlay::{Desired, Firewall, Lease, Op, Underlay, own_lease, plan};
use net::{Kernel, enable_forwarding, enable_forwarding6};
use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    panic::resume_unwind,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

/// Long enough for a busy machine; a conversation that works takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long silence must last to count as silence. Shorter would call a slow answer none.
const SILENCE: Duration = Duration::from_millis(600);

/// Where everybody listens.
const PORT: u16 = 3000;

/// A network namespace.
pub struct Namespace {
    holder: Child,
}

impl Namespace {
    pub fn new() -> Self {
        // `cat` ends at the end of its input, which comes when this process drops the pipe or dies.
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "ip link set lo up && echo ready && exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare(1) of util-linux is needed");
        let mut line = String::new();
        let output = holder.stdout.as_mut().expect("the output is a pipe");
        BufReader::new(output).read_line(&mut line).expect("the namespace's holder answers");
        assert_eq!(
            line, "ready\n",
            "no network namespace can be made: run these tests as root with iproute2 installed, \
             or under `unshare --user --map-root-user --net --mount`"
        );
        Self { holder }
    }

    pub fn pid(&self) -> u32 {
        self.holder.id()
    }

    /// Runs `work` on a thread of its own that is inside the namespace, as are the programs that it starts.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/proc/{}/ns/net", self.pid())).expect("the namespace is there");
        let inside = move || {
            rustix::thread::move_into_link_name_space(namespace.as_fd(), None).expect("root may enter");
            work()
        };
        thread::scope(|scope| scope.spawn(inside).join()).unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Runs `work` with a connection to the namespace's kernel.
    pub fn kernel<T: Send>(&self, work: impl AsyncFnOnce(&Kernel) -> T + Send) -> T {
        self.block_on(async || work(&Kernel::connect().await.expect("a netlink socket")).await)
    }

    pub fn block_on<T: Send>(&self, work: impl AsyncFnOnce() -> T + Send) -> T {
        self.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(work())
        })
    }

    /// Runs a program with blank-separated arguments, and gives what it printed.
    pub fn run(&self, line: &str) -> String {
        self.enter(|| {
            let mut words = line.split_whitespace();
            let program = words.next().expect("a program");
            let output = Command::new(program).args(words).output();
            let output = output.unwrap_or_else(|error| panic!("`{program}` is needed: {error}"));
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{line}: {stderr}");
            String::from_utf8_lossy(&output.stdout).into_owned()
        })
    }

    pub fn sysctl(&self, name: &str, value: &str) {
        let path = format!("/proc/sys/net/{name}");
        self.enter(|| fs::write(&path, value).unwrap_or_else(|error| panic!("{path}: {error}")));
    }

    /// Answers every TCP connection to port 3000 with the address that it came from.
    pub fn serve(&self) {
        let listener =
            self.enter(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).expect("the port is free"));
        // Ends with the process; the namespace cannot be left behind by a socket.
        thread::spawn(move || {
            for connection in listener.incoming() {
                let Ok(mut connection) = connection else { return };
                let Ok(from) = connection.peer_addr() else { continue };
                let _ = write!(connection, "{}", from.ip().to_canonical());
            }
        });
    }

    /// The address under which the server at `to` saw us.
    pub fn ask(&self, to: impl Into<IpAddr>, port: u16, patience: Duration) -> io::Result<String> {
        let to = SocketAddr::new(to.into(), port);
        self.enter(move || {
            let mut connection = TcpStream::connect_timeout(&to, patience)?;
            connection.set_read_timeout(Some(patience))?;
            let mut answer = String::new();
            connection.read_to_string(&mut answer)?;
            Ok(answer)
        })
    }

    /// Asserts that the server at `to` answers, and that it saw the address `seen_as`.
    #[track_caller]
    pub fn reaches(&self, to: impl Into<IpAddr>, seen_as: impl Into<IpAddr>) {
        let (to, seen_as) = (to.into(), seen_as.into());
        let answer = self.ask(to, PORT, PATIENCE);
        assert_eq!(answer.unwrap_or_else(|error| panic!("{to}: {error}")), seen_as.to_string());
    }

    #[track_caller]
    pub fn cannot_reach(&self, to: impl Into<IpAddr>) {
        let to = to.into();
        let answer = self.ask(to, PORT, SILENCE);
        assert!(answer.is_err(), "{to} answered, and saw {answer:?}");
    }

    pub fn hear(&self, port: u16) -> UdpSocket {
        let socket = self.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).expect("the port is free"));
        socket.set_read_timeout(Some(SILENCE)).expect("a time");
        socket
    }

    /// Sends a datagram with the source address `from` to `ear`, which listens at `to`: is it heard?
    pub fn is_heard(&self, from: Ipv4Addr, ear: &UdpSocket, to: Ipv4Addr) -> bool {
        let port = ear.local_addr().expect("bound").port();
        self.enter(move || {
            let mouth = UdpSocket::bind((from, 0)).expect("an address of ours");
            mouth.send_to(b"psst", (to, port)).expect("a route");
        });
        ear.recv_from(&mut [0; 16]).is_ok()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

/// A machine of the cluster, with a bridge and one container on it.
pub struct Machine {
    pub number: u8,
    pub host: Namespace,
    pub container: Namespace,
    pub id: MachineId,
    pub ip: Ipv4Addr,
    pub subnet: Subnet,
    pub container_ip: Ipv4Addr,
}

impl Machine {
    fn new(number: u8, fabric: &Namespace) -> Self {
        let machine = Self {
            number,
            host: Namespace::new(),
            container: Namespace::new(),
            id: format!("{number:032x}").parse().expect("an id"),
            ip: Ipv4Addr::new(192, 168, 77, number),
            subnet: Subnet::from_key(&format!("10.1.{number}.0-24")).expect("a key"),
            container_ip: Ipv4Addr::new(10, 1, number, 2),
        };
        let (host, container) = (&machine.host, &machine.container);
        plug(fabric, host, machine.ip);
        host.run("ip route add default via 192.168.77.254");
        host.run("ip link add docker0 type bridge");
        host.run(&format!("ip address add 10.1.{number}.1/24 dev docker0"));
        host.run("ip link set docker0 up");
        host.run(&format!("ip link add c0 type veth peer name eth0 netns {}", container.pid()));
        host.run("ip link set c0 master docker0 up");
        container.run(&format!("ip address add {}/24 dev eth0", machine.container_ip));
        container.run("ip link set eth0 up");
        container.run(&format!("ip route add default via 10.1.{number}.1"));
        // Ours must be the only rules that stop a spoofed source.
        host.sysctl("ipv4/conf/all/rp_filter", "0");
        host.sysctl("ipv4/conf/eth0/rp_filter", "0");
        host.block_on(enable_forwarding).expect("forwarding can be enabled");
        container.serve();
        host.serve();
        machine
    }

    pub fn underlay(&self) -> Underlay {
        self.host.kernel(async |kernel| kernel.underlay(None).await.expect("a default route"))
    }

    /// Gives the machine and its container addresses of IPv6 too.
    pub fn second_family(&self) {
        let Self { number, host, container, .. } = self;
        host.run(&format!("ip address add fd77::{number}/64 dev eth0 nodad"));
        host.run(&format!("ip address add fd00:0:0:{number}::1/64 dev docker0 nodad"));
        container.run(&format!("ip address add fd00:0:0:{number}::2/64 dev eth0 nodad"));
        container.run(&format!("ip route add default via fd00:0:0:{number}::1"));
        host.block_on(enable_forwarding6).expect("forwarding can be enabled");
    }

    /// Both of its subnets.
    pub fn both(&self) -> SubnetKey {
        format!("10.1.{n}.0-24&fd00:0:0:{n}::-64", n = self.number).parse().expect("a key")
    }

    /// The container's address of IPv6.
    pub fn container_ip6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0, 0, self.number.into(), 0, 0, 0, 2)
    }

    /// Makes the machine's kernel what it should be, and gives the operations that this took.
    pub fn converge(&self, desired: &Desired) -> Vec<Op> {
        let ops = self.plan(desired);
        let applied = self.host.kernel(async |kernel| kernel.apply_all(&ops).await);
        assert!(applied.failures.is_empty(), "{ops:?}: {:?}", applied.failures);
        assert_eq!(applied.made, ops.len());
        ops
    }

    pub fn plan(&self, desired: &Desired) -> Vec<Op> {
        self.host
            .kernel(async |kernel| plan(desired, &kernel.observe(desired).await.expect("the kernel answers")))
    }
}

/// Gives `guest` an `eth0` with the address `ip` on the network that `fabric` carries.
pub fn plug(fabric: &Namespace, guest: &Namespace, ip: Ipv4Addr) {
    let port = format!("p{}", guest.pid());
    fabric.run(&format!("ip link add {port} type veth peer name eth0 netns {}", guest.pid()));
    fabric.run(&format!("ip link set {port} master br0 up"));
    guest.run(&format!("ip address add {ip}/24 dev eth0"));
    guest.run("ip link set eth0 up");
}

/// Machines on one network.
pub struct Cluster {
    pub config: NetworkConfig,
    pub machines: Vec<Machine>,
    pub fabric: Namespace,
}

impl Cluster {
    pub fn new(size: u8) -> Self {
        let fabric = Namespace::new();
        fabric.run("ip link add br0 type bridge");
        fabric.run("ip link set br0 up");
        Self {
            config: NetworkConfig::vxlan("10.1.0.0/16".parse().expect("a network")).expect("valid"),
            machines: (1..=size).map(|number| Machine::new(number, &fabric)).collect(),
            fabric,
        }
    }

    /// A host that is no machine of the cluster, at 192.168.77.`last`.
    pub fn outsider(&self, last: u8) -> Namespace {
        let outsider = Namespace::new();
        plug(&self.fabric, &outsider, Ipv4Addr::new(192, 168, 77, last));
        outsider.serve();
        outsider
    }

    /// A host at 192.168.77.201 that is no machine of the cluster, and speaks VXLAN to the first one as if it were 10.1.9.0: it
    /// knows the VNI, and `mac`, the address of that machine's device.
    pub fn forger(&self, mac: MacAddress) -> Namespace {
        let forger = self.outsider(201);
        forger.run("ip link add vx type vxlan id 1 local 192.168.77.201 dev eth0 dstport 8472 nolearning");
        forger.run("ip address add 10.1.9.0/32 dev vx");
        forger.run("ip link set vx up");
        forger.run(&format!("ip neighbour add 10.1.1.0 lladdr {mac} dev vx nud permanent"));
        forger.run(&format!("bridge fdb add {mac} dev vx dst 192.168.77.1"));
        forger.run("ip route add 10.1.1.0/24 via 10.1.1.0 dev vx onlink");
        forger
    }

    /// What every machine publishes.
    pub fn leases(&self) -> Vec<Lease> {
        let lease = |machine: &Machine| {
            let own = own_lease(&machine.id, &self.config, &machine.underlay(), None);
            (machine.subnet.into(), Some(own))
        };
        self.machines.iter().map(lease).collect()
    }

    pub fn desired(&self, machine: &Machine) -> Desired {
        Desired::new(&machine.id, &self.config, machine.subnet, &machine.underlay(), &self.leases())
    }

    /// Builds every machine's datapath.
    pub fn converge(&self) {
        self.machines.iter().for_each(|machine| drop(machine.converge(&self.desired(machine))));
    }

    pub fn firewall(&self, machine: &Machine) -> Firewall {
        let desired = self.desired(machine);
        Firewall::new(&self.config, machine.subnet.into(), &[desired], &["docker0".to_owned()])
    }
}
