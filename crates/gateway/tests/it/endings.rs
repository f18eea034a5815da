//! Endpoints that drain, restart or are gone: WebSockets are told, requests wait, and nobody is sent to where nothing is.

use crate::app::App;
use crate::support::{
    Client, LONG, applied, config, endpoint, eventually, get, start, start_with, table, table_with,
};
use bytes::Bytes;
use gateway::{Balance, Gateway, GatewayConfig, Policy, Table};
use hyper_util::rt::{TokioExecutor, TokioIo};
use model::Protocol;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

/// "Going away", as a server says it.
const BYE: [u8; 4] = [0x88, 2, 0x03, 0xe9];

fn with(address: SocketAddr, change: impl FnOnce(&mut gateway::Endpoint)) -> Table {
    let mut table = table(&[]);
    let mut one = endpoint("web@1", address);
    change(&mut one);
    table.services.values_mut().next().expect("one").endpoints.push(one);
    table
}

/// A WebSocket through the gateway, and the app's end of it.
fn websocket(listener: &TcpListener, gateway: SocketAddr) -> (Client, TcpStream) {
    let mut client = Client::connect(gateway);
    client.send("GET /ws HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    let (mut app, _) = listener.accept().expect("the gateway");
    app.set_read_timeout(Some(LONG)).expect("an option");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        app.read_exact(&mut byte).expect("a head");
        head.push(byte[0]);
    }
    app.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        .expect("it takes it");
    assert_eq!(client.answer().expect("an answer").status, 101);
    (client, app)
}

/// A close frame as a client sends it: the code under a mask.
fn is_masked_bye(bytes: [u8; 8]) -> bool {
    let code = [bytes[6] ^ bytes[2], bytes[7] ^ bytes[3]];
    bytes[..2] == [0x88, 0x82] && u16::from_be_bytes(code) == 1001
}

fn take<const N: usize>(app: &mut TcpStream) -> [u8; N] {
    let mut bytes = [0; N];
    app.read_exact(&mut bytes).expect("they come");
    bytes
}

fn is_over(gateway: &Gateway) {
    let applied = gateway.applied();
    eventually(|| applied.borrow().draining.values().sum::<u64>() == 0);
}

#[test]
fn websockets_at_an_endpoint_that_has_drained_are_closed_in_order() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let at = listener.local_addr().expect("it is bound");
    let (gateway, address) = start(with(at, |_| {}));
    let (mut client, mut app) = websocket(&listener, address);
    let (mut late, mut slow_app) = websocket(&listener, address);
    let (mut rude, rude_app) = websocket(&listener, address);
    let hello = [0x81, 0x82, 1, 2, 3, 4, b'h' ^ 1, b'i' ^ 2];
    client.stream.write_all(&hello).expect("it is open");
    assert_eq!(take(&mut app), hello);
    // While it drains everything goes on.
    gateway.update(with(at, |one| one.draining = true), 1);
    applied(&gateway, 1);
    app.write_all(&[0x81, 2, b'y', b'o']).expect("it is open");
    assert_eq!(client.bytes(4), [0x81, 2, b'y', b'o']);
    // Half a frame is on its way when the drain is over: the other half comes first.
    slow_app.write_all(&[0x82, 6, b'a', b'b', b'c']).expect("it is open");
    assert_eq!(late.bytes(5), [0x82, 6, b'a', b'b', b'c']);
    gateway.update(table(&[]), 2);
    applied(&gateway, 2);
    assert_eq!(client.bytes(4), BYE);
    assert!(is_masked_bye(take(&mut app)));
    slow_app.write_all(&[b'd', b'e', b'f', 0x81, 1, b'!']).expect("it is open");
    assert_eq!(late.bytes(7), [&b"def"[..], &BYE].concat());
    assert!(is_masked_bye(take(&mut slow_app)));
    // Each side answers, and then the connection ends.
    for (client, app) in [(&mut client, &mut app), (&mut late, &mut slow_app)] {
        client.stream.write_all(&[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe9]).expect("it is open");
        app.write_all(&BYE).expect("it is open");
        assert!(client.is_closed());
        assert_eq!(app.read(&mut [0; 1]).ok(), Some(0));
    }
    // Who does not answer is not waited for.
    assert_eq!(rude.bytes(4), BYE);
    assert!(rude.is_closed());
    is_over(&gateway);
    drop(rude_app);
}

#[test]
fn websockets_stay_where_nothing_drained() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let at = listener.local_addr().expect("it is bound");
    let (gateway, address) = start(with(at, |_| {}));
    let (mut client, mut app) = websocket(&listener, address);
    // Its check failed, or its key expired: it may well work.
    gateway.update(table(&[]), 1);
    applied(&gateway, 1);
    app.write_all(&[0x81, 2, b'y', b'o']).expect("it is open");
    assert_eq!(client.bytes(4), [0x81, 2, b'y', b'o']);
    // A gateway that ends tells everybody.
    let ending = std::thread::spawn(move || gateway.shutdown(Duration::from_secs(4)));
    assert_eq!(client.bytes(4), BYE);
    assert!(is_masked_bye(take(&mut app)));
    assert!(client.is_closed());
    assert!(ending.join().expect("no panic"));
}

#[test]
fn an_app_that_speaks_http2_is_asked_for_no_websocket() {
    let app = App::start("web@1");
    let (_gateway, address) = start(with(app.address, |one| one.protocol = Protocol::H2c));
    let mut client = Client::connect(address);
    client.send("GET /ws HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    let answer = client.answer().expect("an answer");
    assert_eq!(answer.status, 501, "{}", answer.text());
    assert_eq!(app.connections(), 0);
}

#[test]
fn a_single_instance_that_restarts_costs_no_request() {
    let app = App::start("web@1");
    let (gateway, address) = start(table_with(&[&app], Policy { hold: LONG, ..Policy::default() }));
    assert_eq!(get(address, "/").status, 200);
    app.kill();
    let (begun, asked) = (std::sync::atomic::AtomicUsize::new(0), 60);
    let answers: Vec<u16> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..asked)
            .map(|n| {
                let begun = &begun;
                scope.spawn(move || {
                    let mut client = Client::connect(address);
                    begun.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    // Nothing was sent yet, so it does not matter what it is.
                    let body = "x".repeat(100_000);
                    if n % 2 == 0 { client.get("/").status } else { client.post("/echo", &body).status }
                })
            })
            .collect();
        eventually(|| begun.load(std::sync::atomic::Ordering::SeqCst) == asked);
        eventually(|| !gateway.metrics().contains("held_total{service=\"web\"} 0"));
        // Long enough for many looks.
        std::thread::sleep(Duration::from_millis(600));
        let again = App::start_on("web@1", app.address);
        let answers = asking.into_iter().map(|asking| asking.join().expect("no panic")).collect();
        assert_eq!(again.count(), asked, "each came once");
        answers
    });
    assert!(answers.iter().all(|status| *status == 200), "{answers:?}");
    // One looks for all: those that wait do not all try again and again.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let connects: u64 =
        runtime.block_on(gateway.snapshot()).services.values().flatten().map(|e| e.connects).sum();
    assert!(connects <= 4 * asked as u64, "{connects} connections were tried for {asked} requests");
}

#[test]
fn who_waits_for_an_instance_gets_the_next_one_and_not_for_ever() {
    let app = App::start("web@1");
    let policy = Policy { hold: LONG, ..Policy::default() };
    let (gateway, address) = start(table_with(&[&app], policy.clone()));
    app.kill();
    let asking = std::thread::spawn(move || get(address, "/"));
    eventually(|| !gateway.metrics().contains("held_total{service=\"web\"} 0"));
    // The registrar takes the dead one out, and the next one is another.
    gateway.update(table_with(&[], policy.clone()), 1);
    let next = App::start("web@2");
    gateway.update(table_with(&[&next], policy), 2);
    assert_eq!(asking.join().expect("no panic").text(), "web@2");
    next.kill();
    let none = Policy { hold: Duration::ZERO, ..Policy::default() };
    gateway.update(table_with(&[&next], none), 3);
    applied(&gateway, 3);
    assert_eq!(get(address, "/").status, 503);
    let short = Policy { hold: Duration::from_millis(300), ..Policy::default() };
    gateway.update(table_with(&[&app, &next], short), 4);
    applied(&gateway, 4);
    let answer = get(address, "/");
    assert_eq!((answer.status, answer.text().as_str()), (503, "no instance of web could be reached\n"));
}

#[test]
fn a_connection_waits_for_its_service_as_well() {
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a port");
    let at = nobody.local_addr().expect("it is bound");
    let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
    drop(nobody);
    let mut table = with(at, |_| {});
    table.services.values_mut().next().expect("one").policy.hold = LONG;
    table.tcp.insert(port, "web".parse().expect("a name"));
    let (gateway, _) = start(table);
    let mut client = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    client.set_read_timeout(Some(LONG)).expect("an option");
    client.write_all(b"hello").expect("it is open");
    eventually(|| !gateway.metrics().contains("held_total{service=\"web\"} 0"));
    let listener = TcpListener::bind(at).expect("it is free");
    loop {
        // One that only looks comes and goes.
        let (mut app, _) = listener.accept().expect("the gateway");
        app.set_read_timeout(Some(LONG)).expect("an option");
        let mut word = [0; 5];
        if app.read_exact(&mut word).is_ok() {
            assert_eq!(&word, b"hello");
            app.write_all(b"there").expect("it is open");
            break;
        }
    }
    let mut word = [0; 5];
    client.read_exact(&mut word).expect("an answer");
    assert_eq!(&word, b"there");
}

/// Set for the process that has a network of its own.
const ALONE: &str = "GATEWAY_TEST_ALONE";

#[test]
fn a_machine_that_is_gone_is_left_as_fast_over_http2_as_over_http1() {
    if std::env::var_os(ALONE).is_none() {
        // Packets are dropped, and they must be nobody else's.
        let test = "endings::a_machine_that_is_gone_is_left_as_fast_over_http2_as_over_http1";
        let exe = std::env::current_exe().expect("a test");
        let mut command = Command::new("unshare");
        command.arg("--net").arg(exe).args(["--exact", test, "--nocapture"]).env(ALONE, "1");
        let output = command.output().expect("unshare(1) is needed");
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "it needs root and nft(8): {said}");
        println!("{said}");
        return;
    }
    sh("ip link set lo up");
    let [plain, shared] = [Protocol::Http, Protocol::H2c].map(black_hole);
    println!("longest and slow requests: HTTP/1 {plain:?}, HTTP/2 {shared:?}");
    for (longest, slow) in [plain, shared] {
        assert!(slow <= 2, "{slow} requests found out, the longest {longest:?}");
    }
    assert!(shared.0 < 2 * plain.0, "{shared:?} and {plain:?}");
}

fn sh(line: &str) {
    let status = Command::new("sh").arg("-c").arg(line).status().expect("a shell");
    assert!(status.success(), "{line}");
}

/// Drops all packets of one of two endpoints. Gives the longest request, and how many took long.
fn black_hole(protocol: Protocol) -> (Duration, usize) {
    let addresses: [SocketAddr; 2] =
        ["127.0.0.2:3000", "127.0.0.3:3000"].map(|address| address.parse().expect("an address"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let apps: Vec<_> = addresses
        .iter()
        .filter(|_| protocol == Protocol::Http)
        .map(|address| App::start_on("web", *address))
        .collect();
    if protocol == Protocol::H2c {
        addresses.iter().for_each(|address| drop(runtime.spawn(answer(*address))));
        eventually(|| addresses.iter().all(|address| TcpStream::connect(address).is_ok()));
    }
    let mut table = table(&[]);
    let service = table.services.values_mut().next().expect("one");
    service.policy = Policy { balance: Balance::RoundRobin, ..Policy::default() };
    for (n, address) in addresses.iter().enumerate() {
        let mut one = endpoint(&format!("web@{n}"), *address);
        one.protocol = protocol;
        service.endpoints.push(one);
    }
    let (gateway, address) = start_with(GatewayConfig { threads: 1, ..config() }, table);
    let mut client = Client::connect(address);
    for _ in 0..10 {
        assert_eq!(client.get("/").status, 200);
    }
    sh("nft 'add table ip hole; add chain ip hole in { type filter hook input priority 0; }; \
        add rule ip hole in ip daddr 127.0.0.2 drop; add rule ip hole in ip saddr 127.0.0.2 drop'");
    let connects = || {
        let services = runtime.block_on(gateway.snapshot()).services;
        let gone = services.values().flatten().find(|one| one.address == addresses[0]);
        gone.map(|gone| gone.connects)
    };
    let before = connects();
    let mut took = Vec::new();
    for _ in 0..50 {
        let begin = Instant::now();
        assert_eq!(client.get("/").status, 200);
        took.push(begin.elapsed());
    }
    sh("nft delete table ip hole");
    // It was clear at once that there is nobody, and no second request had to find out.
    assert_eq!(connects(), before, "{protocol:?}");
    drop(gateway);
    apps.iter().for_each(App::kill);
    let longest = took.iter().max().copied().unwrap_or_default();
    (longest, took.iter().filter(|took| **took > Duration::from_millis(200)).count())
}

/// An app that speaks HTTP/2.
async fn answer(address: SocketAddr) {
    let listener = tokio::net::TcpListener::bind(address).await.expect("it is free");
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let service = hyper::service::service_fn(async |_| {
                Ok::<_, hyper::Error>(hyper::Response::new(http_body_util::Full::new(Bytes::from("web"))))
            });
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
