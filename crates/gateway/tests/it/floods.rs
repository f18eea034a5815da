//! Clients that send a great deal, or take nothing, over HTTP/2: what they cost is counted, their connection ends, and
//! others are served all the while.

use crate::app::App;
use crate::frames::*;
use crate::support::{self, LONG, config, endpoint, eventually, start, start_with, table};
use gateway::{Gateway, GatewayConfig, Policy};
use std::io::{ErrorKind, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

fn inflight(gateway: &Gateway) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let snapshot = runtime.block_on(gateway.snapshot());
    snapshot.services.values().flatten().map(|endpoint| endpoint.inflight).sum()
}

/// Sends pieces until the other side ends the connection or takes nothing for a second; gives how many bytes it took.
fn pour(raw: &mut Raw<std::net::TcpStream>, most: usize, piece: impl Fn(u32) -> Vec<u8>) -> usize {
    raw.stream.set_nonblocking(true).expect("an option");
    let (mut all, mut number, mut quiet) = (0, 0, Instant::now());
    let mut rest = Vec::new();
    while all < most && quiet.elapsed() < Duration::from_secs(1) {
        if rest.is_empty() {
            rest = piece(number);
            number += 1;
        }
        match raw.stream.write(&rest) {
            Ok(length) => {
                (all, quiet) = (all + length, Instant::now());
                rest.drain(..length);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(1))
            }
            Err(_) => break,
        }
    }
    raw.stream.set_nonblocking(false).expect("an option");
    all
}

#[test]
fn requests_that_are_taken_back_at_once_end_the_connection() {
    let app = App::start("web@1");
    let (gateway, address) = start(table(&[&app]));
    let mut raw = Raw::connect(address);
    let pairs = |n: u32| [get(2 * n + 1, "/slow/20"), reset(2 * n + 1, CANCEL)].concat();
    raw.send(&(0..5000).flat_map(pairs).collect::<Vec<_>>());
    assert!(raw.end(), "{:?}", raw.came.len());
    assert!(matches!(raw.goaway(), None | Some(ENHANCE_YOUR_CALM)), "{:?}", raw.goaway());
    // Those that the gateway has looked at before it read on.
    assert!(app.count() <= 400, "{}", app.count());
    assert_eq!(support::get(address, "/").status, 200);
    eventually(|| inflight(&gateway) == 0);
}

#[test]
fn requests_that_are_taken_back_one_by_one_end_the_connection_too() {
    let app = App::start("web@1");
    let (gateway, address) = start(table(&[&app]));
    let mut raw = Raw::connect(address);
    let mut sent = 0;
    // Each is under way at the app before it is taken back, so that it has cost something.
    while sent < 1000 && raw.is_alive() {
        if !raw.send(&get(2 * sent + 1, "/slow/5"))
            || !raw.is_alive()
            || !raw.send(&reset(2 * sent + 1, CANCEL))
        {
            break;
        }
        raw.came.clear();
        sent += 1;
    }
    assert!((100..300).contains(&sent), "{sent}");
    assert_eq!(support::get(address, "/").status, 200);
    eventually(|| inflight(&gateway) == 0);
    // Who lets most be answered may take back as many as it likes.
    let mut fair = Raw::connect(address);
    for n in 0..250 {
        let stream = 4 * n + 1;
        assert!(fair.send(&get(stream, "/slow/5")) && fair.send(&reset(stream, CANCEL)));
        assert_eq!(
            fair.ask(stream + 2, "/").map(|frame| frame.stream),
            Some(stream + 2),
            "{n}: {:?}",
            fair.came
        );
        fair.came.clear();
    }
}

#[test]
fn requests_that_make_the_gateway_take_them_back_end_the_connection() {
    let app = App::start("web@1");
    let (_gateway, address) = start(table(&[&app]));
    // CVE-2025-8671: a frame that is wrong for its stream only, and the request is under way.
    let mut raw = Raw::connect(address);
    let pairs = |n: u32| [get(2 * n + 1, "/slow/20"), window(2 * n + 1, 0)].concat();
    raw.send(&(0..5000).flat_map(pairs).collect::<Vec<_>>());
    assert!(raw.end());
    assert!(app.count() <= 400, "{}", app.count());
    // Heads that are wrong: none of them is a request, and there is an end to them all the same.
    let mut raw = Raw::connect(address);
    let wrong = |n: u32| frame(HEADERS, WHOLE, 2 * n + 1, &head("GET", "/", &[("connection", "close")]));
    raw.send(&(0..5000).flat_map(wrong).collect::<Vec<_>>());
    assert!(raw.end());
    assert!(raw.came.iter().filter(|frame| frame.kind == RST_STREAM).count() <= 400);
    assert_eq!(support::get(address, "/").status, 200);
}

#[test]
fn streams_have_their_number() {
    let app = App::start("web@1");
    let (gateway, address) = start(table(&[&app]));
    let mut raw = Raw::connect(address);
    raw.send(&(0..300).flat_map(|n| get(2 * n + 1, "/slow/1500")).collect::<Vec<_>>());
    assert!(raw.until(|frame| frame.kind == RST_STREAM));
    assert!(raw.is_alive());
    assert!(inflight(&gateway) <= 256, "{}", inflight(&gateway));
    let refused: Vec<_> = raw.came.iter().filter(|frame| frame.kind == RST_STREAM).collect();
    assert_eq!(refused.len(), 300 - 256, "{refused:?}");
    assert!(refused.iter().all(|frame| frame.code() == Some(REFUSED_STREAM)));
    assert_eq!(support::get(address, "/").status, 200);
    for n in 0..256 {
        let answer = |frame: &Frame| frame.stream == 2 * n + 1 && frame.kind == HEADERS;
        assert!(raw.until(answer), "{n}: {:?}", raw.came);
    }
}

#[test]
fn heads_without_an_end_end_the_connection() {
    let app = App::start("web@1");
    let (_gateway, address) = start(table(&[&app]));
    let open = || frame(HEADERS, END_STREAM, 1, &head("GET", "/bad", &[]));
    // CVE-2024-27316: many small ones, empty ones, large ones, and one field that never ends.
    let field = fields(&[("x", "y")]);
    let endless = [&[0x00, 0x01, b'x', 0x7f, 0xff, 0xff, 0xff, 0x7f][..], &[b'y'; 1000]].concat();
    for (what, piece) in
        [("small", field.clone()), ("empty", Vec::new()), ("large", field.repeat(3000)), ("endless", endless)]
    {
        let mut raw = Raw::connect(address);
        raw.send(&open());
        let took = pour(&mut raw, 64 << 20, |_| frame(CONTINUATION, 0, 1, &piece));
        assert!(took < 16 << 20, "{what}: it took {took} bytes");
        assert!(raw.end(), "{what}: {:?}", raw.came);
    }
    assert_eq!(app.count(), 0);
    assert_eq!(support::get(address, "/").status, 200);
}

#[test]
fn who_takes_no_answers_is_not_listened_to() {
    let app = App::start("web@1");
    let (_gateway, address) = start(table(&[&app]));
    // Each of these asks for an answer, and none is read: what the gateway keeps of them is what sockets hold.
    for (what, piece) in [
        ("pings", frame(PING, 0, 0, b"are you?")),
        ("settings", frame(SETTINGS, 0, 0, &[])),
        ("settings of a kind", setting(4, 65535)),
    ] {
        let mut raw = Raw::connect(address);
        let many = piece.repeat(1000);
        let took = pour(&mut raw, 256 << 20, |_| many.clone());
        assert!(took < 64 << 20, "{what}: it took {took} bytes");
        assert_eq!(support::get(address, "/").status, 200, "{what}");
    }
    // What asks for no answer costs nothing to keep, and nobody else has to wait for its end.
    for (what, piece) in [
        ("priorities", frame(PRIORITY, 0, 3, &[0, 0, 0, 1, 1])),
        ("frames that nobody knows", frame(0xbe, 0, 0, b"whatever")),
        ("windows", window(0, 1)),
    ] {
        let mut raw = Raw::connect(address);
        let many = piece.repeat(1000);
        pour(&mut raw, 8 << 20, |_| many.clone());
        assert_eq!(support::get(address, "/").status, 200, "{what}");
    }
    assert!(app.seen().iter().all(|seen| seen.line == "GET / HTTP/1.1"));
}

#[test]
fn bodies_of_nothing_end_the_connection_and_windows_bound_what_is_kept() {
    // An app that takes the request and reads no further.
    let deaf = TcpListener::bind("127.0.0.1:0").expect("a port");
    let mut table = table(&[]);
    let service = table.services.values_mut().next().expect("one");
    service.endpoints.push(endpoint("web@1", deaf.local_addr().expect("it is bound")));
    service.policy = Policy { timeout: LONG, ..Policy::default() };
    let (gateway, address) = start(table);
    let open = || frame(HEADERS, END_HEADERS, 1, &head("POST", "/", &[]));
    // CVE-2019-9518.
    let mut raw = Raw::connect(address);
    raw.send(&open());
    pour(&mut raw, 16 << 20, |_| frame(DATA, 0, 1, &[]).repeat(100));
    assert!(raw.end(), "{:?}", raw.came);
    // Who disregards the window loses the stream or the connection, and what comes after that is thrown away; until then
    // its window is all that is kept.
    let mut raw = Raw::connect(address);
    raw.send(&open());
    pour(&mut raw, 32 << 20, |_| frame(DATA, 0, 1, &[b'x'; 16 << 10]));
    let over = |frame: &Frame| frame.code().is_some();
    raw.until(over);
    let code = raw.came.iter().find(|frame| over(frame)).and_then(Frame::code);
    assert!(raw.ended || code == Some(FLOW_CONTROL_ERROR), "{:?}", raw.came);
    eventually(|| inflight(&gateway) == 0);
}

fn impatient() -> GatewayConfig {
    let mut config = config();
    config.limits.idle_timeout = Duration::from_millis(800);
    config.limits.header_timeout = Duration::from_millis(400);
    config
}

#[test]
fn who_opens_no_window_holds_no_endpoint_for_ever() {
    let app = App::start("web@1");
    let (gateway, address) = start_with(impatient(), table(&[&app]));
    let mut raw = Raw::connect(address);
    // A window of nothing, and it goes on to say that it is there.
    raw.send(&setting(4, 0));
    raw.send(&(0..20).flat_map(|n| get(2 * n + 1, "/bytes/5000000")).collect::<Vec<_>>());
    assert!(raw.until(|frame| frame.kind == HEADERS));
    let deadline = Instant::now() + LONG;
    while raw.is_alive() {
        assert!(Instant::now() < deadline, "{} are under way", inflight(&gateway));
        raw.came.clear();
    }
    eventually(|| inflight(&gateway) == 0);
    // One that takes what it is given, however slowly, is none of these.
    let mut slow = Raw::connect(address);
    slow.send(&[setting(4, 2000), get(1, "/bytes/30000")].concat());
    let mut came = 0;
    while came < 30000 {
        assert!(slow.until(|frame| frame.kind == DATA && !frame.payload.is_empty()), "{came} of 30000");
        came += slow
            .came
            .drain(..)
            .filter(|frame| frame.kind == DATA)
            .map(|frame| frame.payload.len())
            .sum::<usize>();
        std::thread::sleep(Duration::from_millis(120));
        slow.send(&window(1, 2000));
    }
}

#[test]
fn a_body_that_does_not_come_is_not_waited_for() {
    let app = App::start("web@1");
    let (gateway, address) = start_with(impatient(), table(&[&app]));
    let mut stalled = support::Client::connect(address);
    stalled.send("PUT /echo HTTP/1.1\r\nHost: web\r\nContent-Length: 10\r\n\r\nonly");
    assert!(stalled.answer().is_none_or(|answer| answer.status == 408));
    let mut raw = Raw::connect(address);
    let put = head("PUT", "/echo", &[("content-length", "10")]);
    raw.send(&[frame(HEADERS, END_HEADERS, 1, &put), frame(DATA, 0, 1, b"only")].concat());
    let over = |frame: &Frame| frame.stream == 1 && matches!(frame.kind, HEADERS | RST_STREAM);
    let deadline = Instant::now() + LONG;
    while raw.is_alive() && !raw.came.iter().any(over) {
        assert!(Instant::now() < deadline, "{:?}", raw.came);
    }
    assert_eq!((app.count(), inflight(&gateway)), (0, 0));
}
