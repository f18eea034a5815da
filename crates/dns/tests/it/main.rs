//! The name server on loopback, asked by hand-made messages over UDP and TCP; upstreams are sockets of the test.

use dns::{DnsConfig, Instance, Server, Snapshot, Upstream};
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::A},
};
use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use tokio::{runtime::Runtime, sync::watch};
use tokio_util::sync::CancellationToken;

mod upstream;

/// Long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

struct Running {
    address: SocketAddr,
    snapshot: watch::Sender<Arc<Snapshot>>,
    metrics: Arc<dns::Metrics>,
    cancel: CancellationToken,
    // Ends the tasks, should the test fail.
    runtime: Runtime,
}

impl Running {
    fn new(snapshot: Snapshot, upstreams: &[SocketAddr]) -> Self {
        // Never this box's own.
        let nobody = [SocketAddr::from((Ipv4Addr::LOCALHOST, 9))];
        let upstreams = if upstreams.is_empty() { &nobody } else { upstreams };
        let config = DnsConfig {
            listen: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))],
            upstreams: upstreams.iter().map(|address| Upstream(*address)).collect(),
            ..DnsConfig::default()
        };
        Self::with(config, snapshot)
    }

    fn with(config: DnsConfig, snapshot: Snapshot) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let (sender, receiver) = watch::channel(Arc::new(snapshot));
        let cancel = CancellationToken::new();
        let _inside = runtime.enter();
        let server = Server::new(&config).expect("a valid configuration");
        let (address, metrics) = (server.addresses()[0], server.metrics());
        runtime.spawn(server.run(receiver, cancel.clone()));
        drop(_inside);
        Self { address, snapshot: sender, metrics, cancel, runtime }
    }

    fn counter(&self, name: &str) -> u64 {
        let counters = self.metrics.counters();
        counters.into_iter().find(|(held, _)| *held == name).expect("a counter").1
    }

    fn ask(&self, name: &str, kind: RecordType) -> Message {
        udp(self.address, &query(name, kind))
    }
}

fn services(count: u8) -> Snapshot {
    let instance = |number: u8| Instance {
        name: format!("someapp@{number}"),
        address: SocketAddrV4::new(Ipv4Addr::new(10, 1, 5, number), 3000),
        weight: 10,
        machine: Some("node1".to_owned()),
        healthy: true,
        draining: false,
    };
    Snapshot {
        network: Some("10.1.0.0/16".parse().expect("a network")),
        services: BTreeMap::from([("someapp".to_owned(), (1..=count).map(instance).collect())]),
        ..Snapshot::default()
    }
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
    message
}

fn udp(server: SocketAddr, message: &Message) -> Message {
    let answer = raw_udp(server, &message.to_vec().expect("bytes")).expect("an answer");
    Message::from_vec(&answer).expect("a message")
}

fn raw_udp(server: SocketAddr, bytes: &[u8]) -> Option<Vec<u8>> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time");
    socket.send_to(bytes, server).expect("sent");
    let mut buffer = [0; 4096];
    socket.recv(&mut buffer).ok().map(|length| buffer[..length].to_vec())
}

fn tcp(server: SocketAddr, messages: &[Message]) -> Vec<Message> {
    let mut connection = TcpStream::connect(server).expect("a connection");
    connection.set_read_timeout(Some(PATIENCE)).expect("a time");
    let exchange = |message: &Message| {
        let bytes = message.to_vec().expect("bytes");
        connection.write_all(&(bytes.len() as u16).to_be_bytes()).expect("sent");
        connection.write_all(&bytes).expect("sent");
        let mut length = [0; 2];
        connection.read_exact(&mut length).expect("an answer");
        let mut answer = vec![0; u16::from_be_bytes(length).into()];
        connection.read_exact(&mut answer).expect("all of it");
        Message::from_vec(&answer).expect("a message")
    };
    messages.iter().map(exchange).collect()
}

fn addresses(message: &Message) -> Vec<Ipv4Addr> {
    let address = |record: &Record| match &record.data {
        RData::A(A(address)) => Some(*address),
        _ => None,
    };
    let mut addresses: Vec<_> = message.answers.iter().filter_map(address).collect();
    addresses.sort();
    addresses
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn services_are_answered_and_followed() {
    let server = Running::new(services(2), &[]);
    let answer = server.ask("SomeApp.svc.cluster.internal.", RecordType::A);
    assert_eq!(addresses(&answer), [Ipv4Addr::new(10, 1, 5, 1), Ipv4Addr::new(10, 1, 5, 2)]);
    assert_eq!((answer.metadata.id, answer.metadata.authoritative), (4711, true));
    assert_eq!(answer.queries[0].name.to_ascii(), "SomeApp.svc.cluster.internal.", "spelled as asked");
    assert!(
        answer.answers.iter().all(|record| record.ttl == 5 && record.name.to_ascii().starts_with("SomeApp"))
    );
    assert_eq!(answer.edns, None, "not asked for");

    let srv = server.ask("_someapp._tcp.svc.cluster.internal.", RecordType::SRV);
    assert_eq!((srv.answers.len(), srv.additionals.len()), (2, 2));
    let RData::SRV(one) = &srv.answers[0].data else { panic!("{srv:?}") };
    assert_eq!((one.port, one.weight), (3000, 10));
    let target = one.target.to_ascii();
    assert_eq!(addresses(&server.ask(&target, RecordType::A)).len(), 1, "{target}");

    let ptr = server.ask("1.5.1.10.in-addr.arpa.", RecordType::PTR);
    assert!(
        matches!(&ptr.answers[0].data, RData::PTR(name) if name.to_ascii() == "someapp-1.someapp.svc.cluster.internal.")
    );
    let soa = server.ask("cluster.internal.", RecordType::SOA);
    assert!(matches!(&soa.answers[0].data, RData::SOA(_)), "{soa:?}");

    let none = server.ask("other.svc.cluster.internal.", RecordType::A);
    assert_eq!((none.metadata.response_code, none.authorities.len()), (ResponseCode::NXDomain, 1));
    let empty = server.ask("someapp.svc.cluster.internal.", RecordType::AAAA);
    assert_eq!((empty.metadata.response_code, empty.authorities.len()), (ResponseCode::NoError, 1));

    // What changes is in the next answer.
    server.snapshot.send_replace(Arc::new(services(1)));
    let answer = server.ask("someapp.svc.cluster.internal.", RecordType::A);
    assert_eq!(addresses(&answer), [Ipv4Addr::new(10, 1, 5, 1)]);
    assert_eq!(server.counter("answered"), 8);
}

#[test]
fn what_does_not_fit_comes_over_tcp() {
    let server = Running::new(services(60), &[]);
    let question = query("someapp.svc.cluster.internal.", RecordType::A);
    let short = udp(server.address, &question);
    assert_eq!((short.answers.len(), short.metadata.truncation), (8, true));
    let [long, again] = tcp(server.address, &[question.clone(), question]).try_into().expect("two answers");
    assert_eq!((addresses(&long).len(), long.metadata.truncation), (60, false));
    assert_eq!(addresses(&again), addresses(&long), "on the same connection");

    // SRV answers are long: eight of them do not fit into 512 bytes, but into what EDNS allows.
    let question = query("someapp.svc.cluster.internal.", RecordType::SRV);
    let bytes = raw_udp(server.address, &question.to_vec().expect("bytes")).expect("an answer");
    assert!(bytes.len() <= 512, "{}", bytes.len());
    assert!(Message::from_vec(&bytes).expect("a message").metadata.truncation);
    let mut larger = question;
    larger.set_edns(Edns::new());
    larger.edns.as_mut().expect("just set").set_max_payload(65_000);
    let bytes = raw_udp(server.address, &larger.to_vec().expect("bytes")).expect("an answer");
    assert!((513..=1232).contains(&bytes.len()), "{}", bytes.len());
    let answer = Message::from_vec(&bytes).expect("a message");
    assert_eq!(answer.answers.len(), 8);
    assert_eq!(answer.edns.expect("it was asked with it").max_payload(), 1232);
}

#[test]
fn nonsense_is_answered_or_passed_over_and_nothing_else_happens() {
    let server = Running::new(services(2), &[]);
    let question = query("someapp.svc.cluster.internal.", RecordType::A);
    let bytes = question.to_vec().expect("bytes");
    let code = |bytes: &[u8]| {
        let answer =
            Message::from_vec(&raw_udp(server.address, bytes).expect("an answer")).expect("a message");
        assert_eq!(answer.metadata.id, 4711);
        answer.metadata.response_code
    };
    assert_eq!(code(&bytes[..bytes.len() - 3]), ResponseCode::FormErr, "cut off");
    assert_eq!(code(&bytes[..12]), ResponseCode::FormErr, "a header");
    let mut several = question.clone();
    several.add_query(question.queries[0].clone());
    assert_eq!(code(&several.to_vec().expect("bytes")), ResponseCode::FormErr);
    let mut none = question.clone();
    none.queries.clear();
    assert_eq!(code(&none.to_vec().expect("bytes")), ResponseCode::FormErr);
    let mut notify = question;
    notify.metadata.op_code = OpCode::Notify;
    assert_eq!(code(&notify.to_vec().expect("bytes")), ResponseCode::NotImp);
    assert_eq!(
        code(&query("cluster.internal.", RecordType::AXFR).to_vec().expect("bytes")),
        ResponseCode::Refused
    );

    // An answer is not answered. Then everything else: every cut, every flipped bit, noise.
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let mut said = server.counter("queries");
    let mut say = |bytes: &[u8]| {
        socket.send_to(bytes, server.address).expect("sent");
        said += 1;
        // Not more than a socket's buffer takes.
        if said.is_multiple_of(64) {
            eventually("it keeps up", || server.counter("queries") >= said);
        }
    };
    (0..bytes.len()).for_each(|length| say(&bytes[..length]));
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        say(&damaged);
    }
    let mut state = 1u32;
    for length in 0..1000 {
        let noise: Vec<_> = (0..length % 300)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .collect();
        say(&noise);
    }
    // A name that points at itself.
    let mut pointer = bytes[..12].to_vec();
    pointer.extend([0xc0, 0x0c, 0, 1, 0, 1]);
    say(&pointer);
    assert_eq!(addresses(&server.ask("someapp.svc.cluster.internal.", RecordType::A)).len(), 2);

    // Over TCP: a length without a message, a message without a question, nothing at all.
    for bytes in [&[0u8, 50, 1][..], &[0, 3, 1, 2, 3], &[0, 0], &[]] {
        let mut connection = TcpStream::connect(server.address).expect("a connection");
        connection.write_all(bytes).expect("sent");
    }
    let question = query("someapp.svc.cluster.internal.", RecordType::A);
    assert_eq!(addresses(&tcp(server.address, &[question])[0]).len(), 2);
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    socket.set_read_timeout(Some(Duration::from_millis(300))).expect("a time");
    let mut answer = query("someapp.svc.cluster.internal.", RecordType::A);
    answer.metadata.message_type = MessageType::Response;
    socket.send_to(&answer.to_vec().expect("bytes"), server.address).expect("sent");
    assert!(socket.recv(&mut [0; 512]).is_err(), "an answer was answered");
}

#[test]
fn ten_thousand_questions_at_five_thousand_a_second_are_all_answered() {
    let server = Running::new(services(4), &[]);
    let bytes = query("someapp.svc.cluster.internal.", RecordType::A).to_vec().expect("bytes");
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    socket.connect(server.address).expect("a route");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time");
    let answered = AtomicUsize::new(0);
    const ALL: usize = 10_000;
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 512];
            while answered.load(Ordering::Relaxed) < ALL {
                let length = socket.recv(&mut buffer).expect("no answer was lost");
                assert_eq!(addresses(&Message::from_vec(&buffer[..length]).expect("a message")).len(), 4);
                answered.fetch_add(1, Ordering::Relaxed);
            }
        });
        let start = Instant::now();
        for number in 0..ALL {
            // Not faster than that; and never more under way than a socket's buffer holds, however slow the machine.
            let due = start + Duration::from_micros(200) * number as u32;
            thread::sleep(due.saturating_duration_since(Instant::now()));
            while number > answered.load(Ordering::Relaxed) + 100 {
                thread::yield_now();
            }
            socket.send(&bytes).expect("sent");
        }
    });
    assert_eq!((answered.into_inner(), server.counter("answered")), (ALL, ALL as u64));
}

#[test]
fn it_listens_before_its_address_is_there_and_where_somebody_else_did() {
    // An address for documentation: nobody's.
    let config = |address: SocketAddr| DnsConfig { listen: vec![address], ..DnsConfig::default() };
    let server = Running::with(config("192.0.2.1:0".parse().expect("an address")), services(1));
    assert_ne!(server.address.port(), 0, "bound");

    let held = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = held.local_addr().expect("bound");
    let server = Running::with(config(address), services(1));
    drop(held);
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a time");
    let question = query("someapp.svc.cluster.internal.", RecordType::A).to_vec().expect("bytes");
    eventually("it answers there", || {
        socket.send_to(&question, server.address).expect("sent");
        socket.recv(&mut [0; 512]).is_ok()
    });
    server.cancel.cancel();
    eventually("it lets go of it", || UdpSocket::bind(address).is_ok());
    drop(server.runtime);
}
