//! How long answers take at 5,000 questions a second on loopback: a server in this process, asked at a steady pace by
//! one client; the median, the 99th percentile and the longest are printed. Beside them a bare echo over the same kind of socket at the
//! same pace: what the machine itself takes.
//!
//! With an address, the server there is asked instead of one in this process.
//!
//! `cargo run --release -p dns --example dns_load [PER_SECOND [SECONDS [ADDRESS:PORT]]]`
#![expect(clippy::unwrap_used, reason = "a measurement stops at the first surprise")]

use dns::{DnsConfig, Instance, Server, Snapshot};
use hickory_proto::{
    op::{Message, MessageType, OpCode, Query},
    rr::{Name, RecordType},
};
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut number = |usual| arguments.next().map_or(usual, |text| text.parse::<u32>().expect("a number"));
    let (pace, seconds) = (number(5_000), number(5));
    let asked = arguments.next().map(|text| text.parse::<SocketAddr>().expect("an address and a port"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let _inside = runtime.enter();
    let (_sender, snapshot) = watch::channel(Arc::new(snapshot()));
    let listen = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))];
    let server = Server::new(&DnsConfig { listen, ..DnsConfig::default() }).unwrap();
    let address = asked.unwrap_or_else(|| server.addresses()[0]);
    runtime.spawn(server.run(snapshot, CancellationToken::new()));
    let echo = runtime.block_on(tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let echo_address = echo.local_addr().unwrap();
    runtime.spawn(async move {
        let mut buffer = [0; 512];
        loop {
            let (length, from) = echo.recv_from(&mut buffer).await.unwrap();
            echo.send_to(&buffer[..length], from).await.unwrap();
        }
    });
    println!("{pace} questions a second for {seconds} s");
    println!("{:10} {:>9} {:>8} {:>8} {:>8}", "", "answered", "p50 µs", "p99 µs", "max µs");
    for (name, to) in [("echo", echo_address), ("dns", address)] {
        let mut times = measure(to, pace, pace * seconds);
        times.sort();
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_micros();
        println!("{name:10} {:>9} {:>8} {:>8} {:>8}", times.len(), at(0.5), at(0.99), at(1.0));
    }
}

/// From when a question was sent until its answer was there.
fn measure(to: SocketAddr, pace: u32, count: u32) -> Vec<Duration> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let (sender, sent) = std::sync::mpsc::channel();
    let receiver = socket.try_clone().unwrap();
    let reader = thread::spawn(move || {
        let (mut times, mut starts, mut buffer) = (Vec::new(), vec![None; 1 << 16], [0; 512]);
        while times.len() < count as usize {
            let Ok(length) = receiver.recv(&mut buffer) else { break };
            let now = Instant::now();
            assert!(length > 12);
            sent.try_iter().for_each(|(id, start): (u16, Instant)| starts[usize::from(id)] = Some(start));
            let id = usize::from(u16::from_be_bytes([buffer[0], buffer[1]]));
            times.extend(starts[id].take().map(|start| now - start));
        }
        times
    });
    let mut message = Message::new(0, MessageType::Query, OpCode::Query);
    message
        .add_query(Query::query(Name::from_ascii("someapp.svc.cluster.internal.").unwrap(), RecordType::A));
    let mut bytes = message.to_vec().unwrap();
    let start = Instant::now();
    for number in 0..count {
        let due = start + Duration::from_secs(1) * number / pace;
        // Sleeping would send in bursts.
        while Instant::now() < due {
            thread::yield_now();
        }
        let id = number as u16;
        bytes[..2].copy_from_slice(&id.to_be_bytes());
        sender.send((id, Instant::now())).unwrap();
        socket.send(&bytes).unwrap();
    }
    reader.join().unwrap()
}

fn snapshot() -> Snapshot {
    let instance = |service: u8, number: u8| Instance {
        name: format!("app{service}@{number}"),
        address: SocketAddrV4::new(Ipv4Addr::new(10, 1, service, number), 3000),
        weight: 10,
        machine: Some(format!("node{}", number % 4)),
        healthy: true,
        draining: false,
    };
    let services = (1..=50)
        .map(|service| (format!("app{service}"), (1..=10).map(|number| instance(service, number)).collect()));
    let mut services: BTreeMap<String, Vec<Instance>> = services.collect();
    services.insert("someapp".to_owned(), (1..=4).map(|number| instance(99, number)).collect());
    Snapshot { services, ..Snapshot::default() }
}
