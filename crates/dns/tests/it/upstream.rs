//! Other people's names.

use super::*;
use std::{io, net::TcpListener};

/// An upstream that counts what it is asked, and says what the test wants.
struct Upstreams {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
}

impl Upstreams {
    /// Answers over UDP, and over TCP on the same port, with what `answer` makes of a question.
    fn new(answer: impl Fn(Message, bool) -> Option<Vec<u8>> + Send + Sync + 'static) -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().expect("bound")) {
                break (udp, tcp);
            }
        };
        let address = udp.local_addr().expect("bound");
        let asked = Arc::new(AtomicUsize::new(0));
        let (answer, count) = (Arc::new(answer), asked.clone());
        let over_tcp = answer.clone();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((length, from)) = udp.recv_from(&mut buffer) {
                count.fetch_add(1, Ordering::Relaxed);
                let question = Message::from_vec(&buffer[..length]).expect("a question");
                if let Some(bytes) = answer(question, false) {
                    let _ = udp.send_to(&bytes, from);
                }
            }
        });
        thread::spawn(move || {
            let one = |mut connection: TcpStream| -> io::Result<()> {
                let mut length = [0; 2];
                connection.read_exact(&mut length)?;
                let mut question = vec![0; u16::from_be_bytes(length).into()];
                connection.read_exact(&mut question)?;
                let question = Message::from_vec(&question).expect("a question");
                if let Some(bytes) = over_tcp(question, true) {
                    connection.write_all(&(bytes.len() as u16).to_be_bytes())?;
                    connection.write_all(&bytes)?;
                }
                Ok(())
            };
            tcp.incoming().flatten().for_each(|connection| drop(one(connection)));
        });
        Self { address, asked }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

/// The answer that the question has `count` addresses.
fn answer(question: Message, count: u8) -> Message {
    let mut answer = Message::response(question.metadata.id, OpCode::Query);
    let name = question.queries[0].name.clone();
    answer.queries = question.queries;
    for last in 0..count {
        answer.add_answer(Record::from_rdata(name.clone(), 30, RData::A(A::new(198, 51, 100, last))));
    }
    answer
}

fn bytes(message: Message) -> Option<Vec<u8>> {
    Some(message.to_vec().expect("bytes"))
}

#[test]
fn other_names_are_asked_once_and_then_known() {
    let upstream = Upstreams::new(|question, _| {
        assert_ne!(question.metadata.id, 4711, "an id of its own");
        bytes(answer(question, 1))
    });
    let server = Running::new(services(1), &[upstream.address]);
    for name in ["example.org.", "Example.ORG."] {
        let answer = server.ask(name, RecordType::A);
        assert_eq!(addresses(&answer), [Ipv4Addr::new(198, 51, 100, 0)]);
        assert_eq!((answer.metadata.id, answer.metadata.recursion_available), (4711, true));
        assert!(!answer.metadata.authoritative);
        assert_eq!(answer.queries[0].name.to_ascii(), name);
    }
    assert_eq!((upstream.asked(), server.counter("cache_hits")), (1, 1));
    let question = query("example.org.", RecordType::A);
    assert_eq!(addresses(&tcp(server.address, &[question])[0]).len(), 1);
    // The cluster's own are nobody else's business, not even those that do not exist.
    server.ask("nobody.svc.cluster.internal.", RecordType::A);
    server.ask("9.9.1.10.in-addr.arpa.", RecordType::PTR);
    assert_eq!(upstream.asked(), 1);
}

#[test]
fn a_long_answer_is_fetched_over_tcp_and_given_over_tcp() {
    let upstream = Upstreams::new(|question, tcp| {
        let mut long = answer(question, if tcp { 200 } else { 0 });
        long.metadata.truncation = !tcp;
        bytes(long)
    });
    let server = Running::new(services(1), &[upstream.address]);
    let short = server.ask("long.example.", RecordType::A);
    assert!(short.metadata.truncation);
    let long = tcp(server.address, &[query("long.example.", RecordType::A)]);
    assert_eq!((addresses(&long[0]).len(), long[0].metadata.truncation), (200, false));
}

#[test]
fn dead_upstreams_are_passed_over_and_without_any_the_answer_is_servfail() {
    let (silent, failing) = (
        Upstreams::new(|_, _| None),
        Upstreams::new(|question, _| {
            bytes(Message::error_msg(question.metadata.id, OpCode::Query, ResponseCode::ServFail))
        }),
    );
    let good = Upstreams::new(|question, _| bytes(answer(question, 1)));
    let server = Running::new(services(1), &[silent.address, failing.address, good.address]);
    assert_eq!(addresses(&server.ask("example.org.", RecordType::A)).len(), 1);
    assert!(silent.asked() == 1 && good.asked() == 1);

    let server = Running::new(services(1), &[failing.address]);
    assert_eq!(server.ask("example.org.", RecordType::A).metadata.response_code, ResponseCode::ServFail);
    assert_eq!(server.counter("upstream_failures"), 1);
    // While somebody waits for an upstream, the cluster's names are answered.
    let server = Running::new(services(1), &[silent.address]);
    let code = thread::scope(|scope| {
        let waiting = scope.spawn(|| server.ask("example.org.", RecordType::A).metadata.response_code);
        eventually("it is asked", || silent.asked() > 1);
        assert_eq!(addresses(&server.ask("someapp.svc.cluster.internal.", RecordType::A)).len(), 1);
        assert!(!waiting.is_finished());
        waiting.join().expect("no panic")
    });
    assert_eq!(code, ResponseCode::ServFail);
}

#[test]
fn forged_answers_are_not_taken() {
    let upstream = Upstreams::new(|question, _| {
        let mut other = answer(question, 3);
        other.metadata.id ^= 1;
        bytes(other)
    });
    let other_name = Upstreams::new(|mut question, _| {
        question.queries[0].name = Name::from_ascii("evil.example.").expect("a name");
        bytes(answer(question, 3))
    });
    let good = Upstreams::new(|question, _| bytes(answer(question, 1)));
    let server = Running::new(services(1), &[upstream.address, other_name.address, good.address]);
    assert_eq!(addresses(&server.ask("example.org.", RecordType::A)).len(), 1);
    assert!(upstream.asked() == 1 && other_name.asked() == 1);
}

#[test]
fn too_many_questions_at_a_time_are_not_all_passed_on() {
    let silent = Upstreams::new(|_, _| None);
    let server = Running::new(services(1), &[silent.address]);
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    for number in 0..600 {
        let question = query(&format!("n{number}.example."), RecordType::A);
        socket.send_to(&question.to_vec().expect("bytes"), server.address).expect("sent");
        if number % 50 == 49 {
            eventually("it keeps up", || server.counter("queries") > number);
        }
    }
    eventually("some are refused at once", || server.counter("overloaded") > 0);
    assert!(server.counter("forwarded") <= 256 * 2, "{:?}", server.metrics.counters());
    assert_eq!(addresses(&server.ask("someapp.svc.cluster.internal.", RecordType::A)).len(), 1);
}

#[test]
fn strangers_are_answered_about_services_only() {
    use std::process::Command;
    let upstream = Upstreams::new(|question, _| bytes(answer(question, 1)));
    // Not loopback: an address of this box, if it has one.
    let output = Command::new("hostname").arg("-I").output().expect("hostname(1)");
    let own = String::from_utf8_lossy(&output.stdout);
    let Some(own) = own.split_whitespace().find_map(|word| word.parse::<Ipv4Addr>().ok()) else {
        panic!("NOT TESTED: this box has no address besides loopback");
    };
    let ask = |allow: &str| {
        let config = DnsConfig {
            listen: vec![SocketAddr::from((own, 0))],
            upstreams: vec![Upstream(upstream.address)],
            allow: allow.split_whitespace().map(|network| network.parse().expect("a network")).collect(),
            ..DnsConfig::default()
        };
        let server = Running::with(config, services(1));
        let socket = UdpSocket::bind((own, 0)).expect("an address of ours");
        socket.set_read_timeout(Some(PATIENCE)).expect("a time");
        ["example.org.", "someapp.svc.cluster.internal."].map(|name| {
            let question = query(name, RecordType::A).to_vec().expect("bytes");
            socket.send_to(&question, server.address).expect("sent");
            let mut buffer = [0; 512];
            let length = socket.recv(&mut buffer).expect("an answer");
            Message::from_vec(&buffer[..length]).expect("a message").metadata.response_code
        })
    };
    assert_eq!(ask(""), [ResponseCode::Refused, ResponseCode::NoError]);
    assert_eq!(upstream.asked(), 0);
    assert_eq!(ask(&format!("{own}/32")), [ResponseCode::NoError, ResponseCode::NoError]);
}
