//! Throughput and processor time of one TCP stream between two network namespaces: over a bare veth pair, and over
//! WireGuard in userspace on the same pair; beside them `boringtun` alone, encrypting and decrypting in memory on one
//! thread. Rounds alternate; medians are printed. Needs root.
//!
//! `cargo run --release -p net --example wireguard_bench [ROUNDS [SECONDS]]`
#![expect(clippy::unwrap_used, reason = "a measurement stops at the first surprise")]

#[path = "../tests/it/lab.rs"]
#[allow(dead_code, reason = "the tests need more of it")]
mod lab;

use boringtun::{
    noise::{Tunn, TunnResult},
    x25519::{PublicKey, StaticSecret},
};
use lab::Namespace;
use net::wireguard::{Prefer, WgPeer, Wireguard, WireguardConfig, key::PrivateKey};
use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};
use tokio::runtime::Runtime;

struct Sample {
    bytes: u64,
    wall: Duration,
    processor: Duration,
}

impl Sample {
    fn gigabits(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.wall.as_secs_f64() / 1e9
    }

    fn nanoseconds(&self) -> f64 {
        self.processor.as_nanos() as f64 / self.bytes as f64
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<u64>().expect("a number"));
    let (rounds, seconds) = (arguments.next().unwrap_or(5), arguments.next().unwrap_or(2));
    let time = Duration::from_secs(seconds);
    let (one, two) = (Namespace::new(), Namespace::new());
    one.run(&format!("ip link add eth0 type veth peer name eth0 netns {}", two.pid()));
    let (a, b) = (Node::new(&one, 1), Node::new(&two, 2));
    let (device_a, device_b) = (a.open(b.as_peer()), b.open(a.as_peer()));
    assert_eq!(device_a.kind(), device_b.kind());
    let names = ["veth", "WireGuard in userspace on it", "boringtun in memory, 1420 B"];
    let mut samples: [Vec<Sample>; 3] = Default::default();
    for _ in 0..rounds {
        samples[0].push(stream(&one, &two, Ipv4Addr::new(192, 168, 77, 2), time));
        samples[1].push(stream(&one, &two, Ipv4Addr::new(10, 1, 2, 1), time));
        samples[2].push(in_memory(time));
    }
    let median = |samples: &[Sample], of: fn(&Sample) -> f64| {
        let mut values: Vec<_> = samples.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let load = fs::read_to_string("/proc/loadavg").unwrap();
    println!("{rounds} rounds of {seconds} s, medians; load {}", load.split(' ').next().unwrap());
    println!("{:30} {:>8} {:>7} {:>12} {:>7}", "", "Gbit/s", "ratio", "CPU ns/byte", "ratio");
    let base = (median(&samples[0], Sample::gigabits), median(&samples[0], Sample::nanoseconds));
    for (name, samples) in names.iter().zip(&samples) {
        let (speed, cost) = (median(samples, Sample::gigabits), median(samples, Sample::nanoseconds));
        println!("{name:30} {speed:8.2} {:7.3} {cost:12.3} {:7.2}", speed / base.0, cost / base.1);
    }
}

struct Node<'a> {
    host: &'a Namespace,
    number: u8,
    key: PrivateKey,
    // A thread for either direction, as the daemon has one per processor.
    runtime: Runtime,
}

impl<'a> Node<'a> {
    fn new(host: &'a Namespace, number: u8) -> Self {
        host.run(&format!("ip address add 192.168.77.{number}/24 dev eth0"));
        host.run("ip link set eth0 up");
        // Not one that paces: it would measure how punctual a busy machine is.
        host.sysctl("ipv4/tcp_congestion_control", "reno");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        Self { host, number, key: PrivateKey::random().unwrap(), runtime: runtime.unwrap() }
    }

    fn as_peer(&self) -> WgPeer {
        WgPeer {
            public_key: self.key.public(),
            endpoint: SocketAddr::from(([192, 168, 77, self.number], 51820)),
            allowed_ips: vec![format!("10.1.{}.0/24", self.number).parse().unwrap()],
            keepalive: None,
        }
    }

    fn open(&self, peer: WgPeer) -> Wireguard {
        let config = WireguardConfig {
            name: "flannel-wg".to_owned(),
            private_key: self.key.clone(),
            listen_port: 51820,
            mtu: 1420,
            psk: None,
            prefer: Prefer::Userspace,
        };
        let device = self.host.enter(|| {
            self.runtime.block_on(async {
                let mut device = Wireguard::open(config).await.unwrap();
                device.set_peers(&[peer]).await.unwrap();
                device
            })
        });
        self.host.run(&format!("ip address add 10.1.{}.1/16 dev flannel-wg", self.number));
        device
    }
}

/// One TCP stream for a while.
fn stream(from: &Namespace, to: &Namespace, address: Ipv4Addr, time: Duration) -> Sample {
    let listener = to.enter(|| TcpListener::bind((address, 0)).unwrap());
    let to = listener.local_addr().unwrap();
    let receiver = thread::spawn(move || {
        let (mut connection, _) = listener.accept().unwrap();
        let (mut buffer, mut bytes) = (vec![0; 1 << 17], 0u64);
        loop {
            match connection.read(&mut buffer).unwrap() {
                0 => return bytes,
                length => bytes += length as u64,
            }
        }
    });
    let mut connection = from.enter(|| TcpStream::connect(to).unwrap());
    let block = vec![7; 1 << 17];
    let (start, before) = (Instant::now(), processor());
    while start.elapsed() < time {
        connection.write_all(&block).unwrap();
    }
    drop(connection);
    let bytes = receiver.join().unwrap();
    Sample { bytes, wall: start.elapsed(), processor: processor() - before }
}

/// Both ends of the encryption, one after the other.
fn in_memory(time: Duration) -> Sample {
    let (one, two) = (StaticSecret::from([1; 32]), StaticSecret::from([2; 32]));
    let (public_one, public_two) = (PublicKey::from(&one), PublicKey::from(&two));
    let mut one = Tunn::new(one, public_two, None, None, 1, None);
    let mut two = Tunn::new(two, public_one, None, None, 2, None);
    let mut packet = vec![0; 1420];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&1420u16.to_be_bytes());
    let (mut wire, mut out) = (vec![0; 2048], vec![0; 2048]);
    let hand_over = |result: TunnResult<'_>| match result {
        TunnResult::WriteToNetwork(packet) => packet.to_vec(),
        other => panic!("{other:?}"),
    };
    let initiation = hand_over(one.format_handshake_initiation(&mut wire, false));
    let response = hand_over(two.decapsulate(None, &initiation, &mut wire));
    let keepalive = hand_over(one.decapsulate(None, &response, &mut wire));
    assert!(matches!(two.decapsulate(None, &keepalive, &mut wire), TunnResult::Done));
    let (start, before, mut bytes) = (Instant::now(), processor(), 0);
    while start.elapsed() < time {
        for _ in 0..100 {
            let TunnResult::WriteToNetwork(sent) = one.encapsulate(&packet, &mut wire) else {
                panic!("no session")
            };
            let received = two.decapsulate(None, sent, &mut out);
            assert!(matches!(received, TunnResult::WriteToTunnelV4(..)));
            bytes += packet.len() as u64;
        }
    }
    Sample { bytes, wall: start.elapsed(), processor: processor() - before }
}

/// What this process has used: its threads and, since a veth pair works in its sender's time, most of the network.
fn processor() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).unwrap())
}
