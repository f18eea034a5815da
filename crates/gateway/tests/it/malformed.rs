//! Requests that are wrong, cut short, or can be read in two ways. Nothing crashes, and the app sees each request once
//! or not at all.

use crate::app::App;
use crate::support::{Client, config, get, raw, raw_within, start, start_with, table};
use std::io::Write;
use std::net::Shutdown;
use std::time::Duration;

fn status(answer: &str) -> &str {
    answer.get(9..12).unwrap_or_default()
}

#[test]
fn requests_that_can_be_read_in_two_ways_are_refused() {
    let app = App::start("web@1");
    let (_gateway, address) = start(table(&[&app]));
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: web\r\n\r\n";
    for head in [
        // Two lengths.
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: 5, 5",
        "Content-Length: +5",
        "Content-Length: -5",
        "Content-Length: 0x5",
        "Content-Length: 5 5",
        "Content-Length:",
        "Content-Length: 99999999999999999999999",
        // Encodings that some know and some do not.
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: gzip",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: identity, chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding:\x0bchunked",
        "Transfer_Encoding: chunked\r\nTransfer-Encoding: x",
        // Lines that some join and some do not.
        "Content-Length: 5\r\n X: y",
        "X: y\r\n\tTransfer-Encoding: chunked",
        "X: y\nContent-Length: 5",
        "X: y\rContent-Length: 5",
        "X: \0\r\nContent-Length: 5",
        " X: y",
        ": y",
        "X y",
    ] {
        let answer = raw(
            address,
            format!("POST /x HTTP/1.1\r\nHost: web\r\n{head}\r\n\r\n0\r\n\r\n{smuggled}").as_bytes(),
        );
        assert_eq!(status(&answer), "400", "{head:?}: {answer}");
        assert_eq!(
            answer.matches("HTTP/1.1 ").count(),
            1,
            "one answer, and the connection ends: {head:?}: {answer}"
        );
    }
    assert_eq!(app.count(), 0, "{:?}", app.seen());
    // One after a good one is refused just the same.
    let good = "POST /good HTTP/1.1\r\nHost: web\r\nContent-Length: 2\r\n\r\nhi";
    let bad =
        "POST /bad HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let answer = raw(address, format!("{good}{bad}{smuggled}").as_bytes());
    assert_eq!((status(&answer), answer.matches("HTTP/1.1 ").count()), ("200", 2), "{answer}");
    assert_eq!(app.seen().iter().map(|s| s.line.as_str()).collect::<Vec<_>>(), ["POST /good HTTP/1.1"]);
}

#[test]
fn it_must_be_clear_which_host_is_meant() {
    let app = App::start("web@1");
    let (_gateway, address) = start(table(&[&app]));
    for head in [
        "GET / HTTP/1.1\r\n",
        "GET / HTTP/1.1\r\nHost: web\r\nHost: web\r\n",
        "GET / HTTP/1.1\r\nHost: web\r\nHost: other\r\n",
        "GET / HTTP/1.1\r\nHost: \r\n",
        "GET / HTTP/1.1\r\nHost: web/x\r\n",
        "GET / HTTP/1.1\r\nHost: user@web\r\n",
        "GET / HTTP/1.1\r\nHost: web:x\r\n",
        "GET / HTTP/1.1\r\nHost: web, other\r\n",
        "GET http://other/ HTTP/1.1\r\nHost: web\r\n",
        "GET http://web:81/ HTTP/1.1\r\nHost: web:80\r\n",
        "GET http://user@web/ HTTP/1.1\r\nHost: web\r\n",
    ] {
        assert_eq!(status(&raw(address, format!("{head}\r\n").as_bytes())), "400", "{head}");
    }
    assert_eq!(status(&raw(address, b"CONNECT web:80 HTTP/1.1\r\nHost: web:80\r\n\r\n")), "405");
    assert_eq!(app.count(), 0);
}

#[test]
fn what_is_no_request_is_refused() {
    let app = App::start("web@1");
    let (_gateway, address) = start(table(&[&app]));
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"GET\r\n\r\n",
        b"GET / HTTP/3.0\r\nHost: web\r\n\r\n",
        b"GET / HTTP/1.1 x\r\nHost: web\r\n\r\n",
        b"G\x00T / HTTP/1.1\r\nHost: web\r\n\r\n",
        b"GET /\x01 HTTP/1.1\r\nHost: web\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: web\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nthis is no frame of HTTP/2 at all",
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
        b"\r\n\r\n\r\n",
        b"",
    ] {
        let answer = raw(address, bytes);
        assert!(!answer.starts_with("HTTP/1.1 2"), "{:?}: {answer}", String::from_utf8_lossy(bytes));
    }
    assert_eq!(app.count(), 0);
    assert_eq!(get(address, "/").status, 200);
}

#[test]
fn heads_have_limits() {
    let app = App::start("web@1");
    let mut limited = config();
    limited.limits.header_bytes = 20_000;
    limited.limits.headers = 20;
    let (_gateway, address) = start_with(limited, table(&[&app]));
    let head = |lines: &str| format!("GET / HTTP/1.1\r\nHost: web\r\n{lines}\r\n");
    let many: String = (0..30).map(|n| format!("X-{n}: y\r\n")).collect();
    let fine: String = (0..15).map(|n| format!("X-{n}: y\r\n")).collect();
    let long = format!("X: {}\r\n", "y".repeat(30_000));
    let endless = "y".repeat(200_000);
    assert_eq!(status(&raw(address, head(&fine).as_bytes())), "200");
    assert_eq!(status(&raw(address, head(&many).as_bytes())), "431");
    assert_eq!(status(&raw(address, head(&long).as_bytes())), "431");
    let answer = raw(address, format!("GET /{endless} HTTP/1.1\r\nHost: web\r\n\r\n").as_bytes());
    assert!(matches!(status(&answer), "414" | "431" | ""), "{answer}");
    assert_eq!(app.count(), 1);
}

#[test]
fn requests_that_come_byte_by_byte_are_requests() {
    let app = App::start("web@1");
    let (_gateway, address) = start(table(&[&app]));
    let mut client = Client::connect(address);
    let requests = "POST /echo HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\n\r\nhelloPOST /echo HTTP/1.1\r\nHost: web\r\n\
                    Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
    for byte in requests.bytes() {
        client.stream.write_all(&[byte]).expect("it takes it");
    }
    assert_eq!(client.answer().expect("the first").text(), "hello");
    assert_eq!(client.answer().expect("the second").text(), "hi");
    assert_eq!(app.count(), 2);
}

#[test]
fn requests_that_are_cut_anywhere_reach_the_app_once_or_not_at_all() {
    let app = App::start("web@1");
    let (_gateway, address) = start(table(&[&app]));
    for request in [
        "POST /echo HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\n\r\nhello",
        "POST /echo HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ] {
        for cut in 0..request.len() {
            let before = app.count();
            let mut client = Client::connect(address);
            client.send(&request[..cut]);
            client.stream.shutdown(Shutdown::Write).expect("it is open");
            let answer = client.answer();
            assert!(answer.as_ref().is_none_or(|a| a.status >= 400), "{cut}: {answer:?}");
            assert_eq!(app.count(), before, "half a request is none: {cut}");
        }
    }
    // And those that are reset instead.
    for _ in 0..50 {
        let client = Client::connect(address);
        socket2::SockRef::from(&client.stream)
            .set_linger(Some(std::time::Duration::ZERO))
            .expect("an option");
        let _ = (&client.stream).write_all(b"GET /x HTTP/1.1\r\nHost: web\r\n");
    }
    assert_eq!(get(address, "/after").status, 200);
    assert_eq!(app.count(), 1);
}

#[test]
fn noise_harms_nobody() {
    let app = App::start("web@1");
    let (_gateway, address) = start(table(&[&app]));
    let base =
        b"POST /n HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\nX: y\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let mut state = 42u64;
    let mut roll = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for _ in 0..150 {
        let mut bytes = base.to_vec();
        for _ in 0..1 + roll(3) {
            let at = roll(bytes.len());
            match roll(3) {
                0 => bytes[at] = roll(256) as u8,
                1 => drop(bytes.remove(at)),
                _ => bytes.insert(at, b"\r\n:\0 ;0"[roll(7)]),
            }
        }
        let before = app.count();
        raw_within(address, &bytes, Duration::from_millis(50));
        assert!(app.count() <= before + 1, "{:?}", String::from_utf8_lossy(&bytes));
    }
    assert_eq!(get(address, "/").status, 200);
}
