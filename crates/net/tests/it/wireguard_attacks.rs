//! WireGuard's device against strangers, forgers and crowds. Peers are bare state machines with a UDP socket here, so
//! that they can say what a device would not.

use crate::{
    capture::Capture,
    lab::{Namespace, plug},
    wireguard::{Net, PATIENCE, PORT, eventually, inner, outer},
};
use boringtun::noise::{Tunn, TunnResult};
use net::wireguard::{WgPeer, key::PublicKey};
use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

/// A peer without a device, which owns 10.1.`number`.0/24.
struct Client {
    number: u8,
    key: PublicKey,
    tunn: Tunn,
    socket: UdpSocket,
}

impl Client {
    fn new(number: u8, host: &Namespace, server: PublicKey) -> Self {
        let mut secret = [number; 32];
        secret[1] = 77;
        let secret = boringtun::x25519::StaticSecret::from(secret);
        let key = PublicKey::from(*boringtun::x25519::PublicKey::from(&secret).as_bytes());
        let tunn = Tunn::new(secret, server.bytes().into(), None, None, number.into(), None);
        let socket = host.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port"));
        socket.connect((outer(1), PORT)).expect("a route");
        socket.set_read_timeout(Some(Duration::from_millis(600))).expect("a time");
        Self { number, key, tunn, socket }
    }

    fn as_peer(&self) -> WgPeer {
        WgPeer {
            public_key: self.key,
            // Where it really is, the server learns from it.
            endpoint: SocketAddr::from(([192, 168, 77, 250], 1)),
            allowed_ips: vec![format!("10.1.{}.0/24", self.number).parse().expect("a network")],
            keepalive: None,
        }
    }

    fn initiation(&mut self) -> Vec<u8> {
        let mut buffer = [0; 256];
        match self.tunn.format_handshake_initiation(&mut buffer, true) {
            TunnResult::WriteToNetwork(packet) => packet.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    /// Takes datagrams until a packet comes out of one, having answered what is to be answered.
    fn receive(&mut self) -> Option<Received> {
        let (mut datagram, mut buffer) = ([0; 2048], [0; 2048]);
        let length = self.socket.recv(&mut datagram).ok()?;
        let kind = datagram[0];
        match self.tunn.decapsulate(None, &datagram[..length], &mut buffer) {
            TunnResult::WriteToNetwork(packet) => {
                self.socket.send(packet).expect("sent");
                Some(Received::Answered)
            }
            TunnResult::WriteToTunnelV4(packet, _) => Some(Received::Packet(packet.to_vec())),
            TunnResult::Done if kind == 3 => Some(Received::Cookie),
            // Or an answer to an older initiation.
            TunnResult::Done | TunnResult::Err(_) => Some(Received::Nothing),
            other => panic!("{other:?}"),
        }
    }

    /// A session, whatever it takes.
    fn shake_hands(&mut self) {
        let start = Instant::now();
        loop {
            let packet = self.initiation();
            self.socket.send(&packet).expect("sent");
            if matches!(self.receive(), Some(Received::Answered)) {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "no handshake");
        }
    }

    /// Says `psst` under the address `from` to the server's port 4000.
    fn whisper(&mut self, from: Ipv4Addr) {
        let packet = datagram(from, inner(1), 4000, b"psst");
        let mut buffer = [0; 256];
        match self.tunn.encapsulate(&packet, &mut buffer) {
            TunnResult::WriteToNetwork(packet) => self.socket.send(packet).expect("sent"),
            other => panic!("no session: {other:?}"),
        };
    }
}

#[derive(Debug)]
enum Received {
    Answered,
    Cookie,
    Packet(Vec<u8>),
    Nothing,
}

/// A UDP datagram over IPv4, from port 4000.
fn datagram(from: Ipv4Addr, to: Ipv4Addr, port: u16, content: &[u8]) -> Vec<u8> {
    let length = |bytes: usize| u16::try_from(bytes).expect("short").to_be_bytes();
    let mut packet = vec![0x45, 0];
    packet.extend(length(28 + content.len()));
    packet.extend([0, 1, 0, 0, 64, 17, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    let words = packet.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let sum = words.sum::<u32>();
    let sum = (sum & 0xffff) + (sum >> 16);
    packet[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    packet.extend(4000u16.to_be_bytes());
    packet.extend(port.to_be_bytes());
    packet.extend(length(8 + content.len()));
    // No checksum, as IPv4 allows.
    packet.extend([0, 0]);
    packet.extend(content);
    packet
}

fn stranger(net: &Net) -> Namespace {
    let host = Namespace::new();
    plug(&net.switch, &host, outer(200));
    host
}

#[test]
fn a_source_outside_the_peers_addresses_is_dropped() {
    let mut net = Net::meshed(1);
    let ear = net.nodes[0].host.hear(4000);
    let host = stranger(&net);
    let server = net.nodes[0].key.public();
    let (mut one, two) = (Client::new(101, &host, server), Client::new(102, &host, server));
    let wider = |client: &Client| {
        let mut peer = client.as_peer();
        peer.allowed_ips.push("10.1.105.0/24".parse().expect("a network"));
        peer
    };
    net.nodes[0].set_peers(&[one.as_peer(), two.as_peer()]);
    one.shake_hands();
    let heard = |client: &mut Client, from: [u8; 4]| {
        client.whisper(from.into());
        ear.recv_from(&mut [0; 16]).is_ok()
    };
    assert!(heard(&mut one, [10, 1, 101, 2]), "its own");
    assert!(!heard(&mut one, [10, 1, 102, 2]), "another peer's");
    assert!(!heard(&mut one, [10, 1, 105, 2]), "nobody's");
    assert!(!heard(&mut one, [10, 1, 1, 1]), "the receiver's own");
    net.nodes[0].set_peers(&[wider(&one), two.as_peer()]);
    assert!(heard(&mut one, [10, 1, 105, 2]), "the same packet, once it is allowed");
    // A longer prefix of another peer takes it away again.
    let mut longer = two.as_peer();
    longer.allowed_ips.push("10.1.105.2/32".parse().expect("a network"));
    net.nodes[0].set_peers(&[wider(&one), longer]);
    assert!(!heard(&mut one, [10, 1, 105, 2]), "the longest prefix decides");
    assert!(heard(&mut one, [10, 1, 105, 3]));
}

#[test]
fn forged_and_replayed_packets_change_nothing() {
    let net = Net::meshed(2);
    let [one, two] = net.nodes.as_slice() else { panic!("two machines") };
    let capture = Capture::start(&net.switch);
    one.reaches(two);
    let frames = capture.stop();
    // Ethernet, IPv4 and UDP headers.
    const HEADERS: usize = 14 + 20 + 8;
    let to_two =
        |frame: &&Vec<u8>| frame.len() > HEADERS && frame[30..34] == outer(2).octets() && frame[23] == 17;
    let packets: Vec<_> = frames.iter().filter(to_two).map(|frame| &frame[HEADERS..]).collect();
    assert!(packets.iter().any(|packet| packet[0] == 1) && packets.iter().any(|packet| packet[0] == 4));

    let host = stranger(&net);
    let mouth = host.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port"));
    let before = (two.state(one).endpoint, two.state(one).rx_bytes);
    let say = |packet: &[u8]| {
        mouth.send_to(packet, (outer(2), PORT)).expect("sent");
    };
    for packet in &packets {
        say(packet);
        for at in [0, 1, 4, 8, 20, packet.len() - 1] {
            let mut damaged = packet.to_vec();
            damaged[at] ^= 1;
            say(&damaged);
        }
        (0..packet.len()).for_each(|length| say(&packet[..length]));
    }
    for kind in 0..6 {
        (1..200).for_each(|length| say(&[&[kind, 0, 0, 0], vec![0xff; length].as_slice()].concat()));
    }
    one.reaches(two);
    two.reaches(one);
    assert_eq!(two.state(one).endpoint, before.0);
    // What was replayed is not counted; what the two said since, is.
    let said: usize = packets.iter().map(|packet| packet.len()).sum();
    let counted = two.state(one).rx_bytes - before.1;
    assert!(counted < 4 * said as u64, "{counted} bytes counted of about {} said", 2 * said);
}

#[test]
fn a_flood_of_handshakes_is_asked_for_proof_and_peers_get_through() {
    let mut net = Net::meshed(2);
    let host = stranger(&net);
    let server = net.nodes[0].key.public();
    let mut late = Client::new(101, &host, server);
    let peers = [net.nodes[1].as_peer(), late.as_peer()];
    net.nodes[0].set_peers(&peers);
    let mut attacker = Client::new(199, &host, server);
    let ear = net.nodes[0].host.hear(4000);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        // It knows the server's key and nobody knows its own: what is cheap to check is right.
        let initiation = attacker.initiation();
        let (socket, stop) = (&attacker.socket, &stop);
        let _end = End(stop);
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                // At most a thousand in a second: four times what is served without proof.
                (0..20).for_each(|_| drop(socket.send(&initiation)));
                thread::sleep(Duration::from_millis(20));
            }
        });
        let asked = || {
            let mut buffer = [0; 256];
            matches!(socket.recv(&mut buffer), Ok(64)) && buffer[0] == 3
        };
        eventually("the flood is asked for proof", asked);
        net.nodes[1].reaches(&net.nodes[0]);
        // A peer is asked for it too, and gives it.
        let mut proofs = 0;
        let start = Instant::now();
        loop {
            let packet = late.initiation();
            late.socket.send(&packet).expect("sent");
            match late.receive() {
                Some(Received::Cookie) => proofs += 1,
                Some(Received::Answered) => break,
                _ => {}
            }
            assert!(start.elapsed() < PATIENCE, "no handshake beside the flood");
        }
        println!("asked {proofs} times");
        eventually("the peer is heard", || {
            late.whisper([10, 1, 101, 2].into());
            ear.recv_from(&mut [0; 16]).is_ok()
        });
    });
}

/// Ends the flood, however the test ends.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_hundred_peers_are_told_apart() {
    let mut net = Net::meshed(1);
    let ear = net.nodes[0].host.hear(4000);
    let host = stranger(&net);
    let server = net.nodes[0].key.public();
    let mut clients: Vec<_> = (101..=200).map(|number| Client::new(number, &host, server)).collect();
    let peers: Vec<_> = clients.iter().map(Client::as_peer).collect();
    net.nodes[0].set_peers(&peers);
    clients.iter_mut().for_each(Client::shake_hands);
    for client in &mut clients {
        let source = Ipv4Addr::new(10, 1, client.number, 2);
        client.whisper(source);
        let (_, from) = ear.recv_from(&mut [0; 16]).expect("heard");
        assert_eq!(from, SocketAddr::from((source, 4000)));
        ear.send_to(format!("hello {}", client.number).as_bytes(), from).expect("a route");
    }
    // Each gets its own answer, under its own keys.
    for client in &mut clients {
        let answer = loop {
            match client.receive().expect("an answer") {
                Received::Packet(packet) => break packet,
                Received::Cookie | Received::Answered | Received::Nothing => {}
            }
        };
        assert_eq!(&answer[28..], format!("hello {}", client.number).as_bytes());
        assert_eq!(answer[16..20], [10, 1, client.number, 2]);
    }
    let states = net.nodes[0].states();
    assert_eq!(states.len(), 100);
    assert!(
        states.iter().all(|state| state.last_handshake.is_some() && state.rx_bytes > 0 && state.tx_bytes > 0)
    );
    // Half of them go; the rest stay in session.
    net.nodes[0].set_peers(&peers[50..]);
    clients[99].whisper([10, 1, 200, 2].into());
    assert!(ear.recv_from(&mut [0; 16]).is_ok());
    clients[0].whisper([10, 1, 101, 2].into());
    assert!(ear.recv_from(&mut [0; 16]).is_err());
}
