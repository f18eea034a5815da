//! HTTP/2 as a hostile or broken client speaks it, frame by frame: a row has what is sent and what must come of it. None of
//! it reaches an app, and the gateway goes on serving others. After RFC 9113, RFC 7541 and h2spec's list.
//!
//! Where two codes are allowed, the first is the standard's and the other is what h2 says instead: the connection ends
//! either way.

use crate::app::App;
use crate::frames::*;
use crate::protocols::certificate;
use crate::support::{self, config, endpoint, start, start_with, table};
use gateway::{GatewayConfig, Listener};
use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::rustls;

/// What must come of a row.
#[derive(Debug, Clone, Copy)]
enum Then {
    /// The connection ends with one of these codes.
    Away(&'static [u32]),
    /// Stream 1 ends with one of these codes, or the connection does; as a stream error the connection goes on.
    Reset(&'static [u32]),
    /// Stream 1 is answered so.
    Status(u16),
    /// Nothing: the connection goes on.
    Ignored,
}
use Then::{Away, Ignored, Reset, Status};

type Row<'a> = (&'a str, Vec<u8>, Then);

/// Plays rows, each on a connection of its own.
fn play(address: SocketAddr, rows: &[Row<'_>]) {
    let mut wrong = Vec::new();
    for (what, bytes, then) in rows {
        let mut raw = Raw::connect(address);
        raw.send(bytes);
        let came =
            |raw: &Raw<_>| format!("{what}: wanted {then:?}, came {:?}, ended {}", raw.came, raw.ended);
        let well = match *then {
            Away(codes) => raw.end() && raw.goaway().is_some_and(|code| codes.contains(&code)),
            Reset(codes) => {
                let over =
                    |frame: &Frame| frame.kind == GOAWAY || (frame.kind == RST_STREAM && frame.stream == 1);
                raw.until(over);
                let code = raw.came.iter().find(|frame| over(frame)).and_then(Frame::code);
                let right = code.is_some_and(|code| codes.contains(&code));
                let goes_on = raw.goaway().is_some() || (raw.is_alive() && raw.ask(101, "/good").is_some());
                right && goes_on
            }
            Status(status) => {
                raw.until(|frame| frame.stream == 1 && matches!(frame.kind, HEADERS | RST_STREAM));
                let head = raw.came.iter().find(|frame| frame.stream == 1 && frame.kind == HEADERS);
                head.and_then(Frame::status) == Some(status)
            }
            Ignored => raw.is_alive() && raw.ask(101, "/good").and_then(|frame| frame.status()) == Some(200),
        };
        if !well {
            wrong.push(came(&raw));
        }
    }
    assert!(wrong.is_empty(), "{} of {} rows:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}

/// Every request that came to the app is one that a row did not spoil.
fn only_good(app: &App) {
    let bad: Vec<_> = app.seen().into_iter().filter(|seen| seen.line != "GET /good HTTP/1.1").collect();
    assert!(bad.is_empty(), "{bad:?}");
}

const PROTOCOL: Then = Away(&[PROTOCOL_ERROR]);
const SIZE: Then = Away(&[FRAME_SIZE_ERROR, PROTOCOL_ERROR]);

#[test]
fn frames_of_the_wrong_size_end_the_connection() {
    let app = App::start("web@1");
    let (_gateway, address) = start(table(&[&app]));
    let post = frame(HEADERS, END_HEADERS, 1, &head("POST", "/bad", &[]));
    play(
        address,
        &[
            (
                "DATA above the limit",
                [post, frame(DATA, 0, 1, &[0; 16385])].concat(),
                Away(&[FRAME_SIZE_ERROR]),
            ),
            ("HEADERS above the limit", frame(HEADERS, WHOLE, 1, &[0; 16385]), Away(&[FRAME_SIZE_ERROR])),
            ("an unknown frame above the limit", frame(0xbe, 0, 0, &[0; 16385]), Away(&[FRAME_SIZE_ERROR])),
            ("a PING of 7 bytes", frame(PING, 0, 0, &[0; 7]), SIZE),
            ("a PING of 9 bytes", frame(PING, 0, 0, &[0; 9]), SIZE),
            ("SETTINGS of 5 bytes", frame(SETTINGS, 0, 0, &[0; 5]), SIZE),
            ("an acknowledgement with settings", frame(SETTINGS, ACK, 0, &[0; 6]), SIZE),
            ("a WINDOW_UPDATE of 3 bytes", frame(WINDOW_UPDATE, 0, 0, &[0; 3]), SIZE),
            ("a RST_STREAM of 3 bytes", [get(1, "/good"), frame(RST_STREAM, 0, 1, &[0; 3])].concat(), SIZE),
            ("a PRIORITY of 4 bytes", frame(PRIORITY, 0, 1, &[0; 4]), SIZE),
            ("a GOAWAY of 7 bytes", frame(GOAWAY, 0, 0, &[0; 7]), SIZE),
            ("HEADERS too short for their priority", frame(HEADERS, WHOLE | WITH_PRIORITY, 1, &[0; 3]), SIZE),
        ],
    );
    only_good(&app);
    assert_eq!(support::get(address, "/good").status, 200);
}

#[test]
fn frames_where_they_do_not_belong_end_the_connection() {
    let app = App::start("web@1");
    let (_gateway, address) = start(table(&[&app]));
    let open = || frame(HEADERS, END_HEADERS, 1, &head("POST", "/bad", &[]));
    let half = || frame(HEADERS, END_STREAM, 1, &head("GET", "/bad", &[]));
    let closed = || [open(), reset(1, CANCEL)].concat();
    const CLOSED: Then = Reset(&[STREAM_CLOSED, PROTOCOL_ERROR]);
    play(
        address,
        &[
            ("DATA on stream 0", frame(DATA, 0, 0, b"x"), PROTOCOL),
            ("HEADERS on stream 0", frame(HEADERS, WHOLE, 0, &head("GET", "/bad", &[])), PROTOCOL),
            ("PRIORITY on stream 0", frame(PRIORITY, 0, 0, &[0, 0, 0, 1, 1]), PROTOCOL),
            ("RST_STREAM on stream 0", reset(0, CANCEL), PROTOCOL),
            (
                "CONTINUATION on stream 0",
                [half(), frame(CONTINUATION, END_HEADERS, 0, &[])].concat(),
                PROTOCOL,
            ),
            ("SETTINGS on stream 1", frame(SETTINGS, 0, 1, &[]), PROTOCOL),
            ("PING on stream 1", frame(PING, 0, 1, &[0; 8]), PROTOCOL),
            ("GOAWAY on stream 1", frame(GOAWAY, 0, 1, &[0; 8]), PROTOCOL),
            ("PUSH_PROMISE from a client", frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2]), PROTOCOL),
            ("DATA on an idle stream", frame(DATA, END_STREAM, 1, b"x"), PROTOCOL),
            ("RST_STREAM on an idle stream", reset(1, CANCEL), PROTOCOL),
            ("WINDOW_UPDATE on an idle stream", window(1, 1), PROTOCOL),
            ("a stream with an even number", get(2, "/bad"), PROTOCOL),
            (
                "a stream before one that was used",
                [get(5, "/good"), get(3, "/bad")].concat(),
                Away(&[PROTOCOL_ERROR, STREAM_CLOSED]),
            ),
            (
                "DATA after the end of a stream",
                [get(1, "/slow/300"), frame(DATA, 0, 1, b"x")].concat(),
                CLOSED,
            ),
            ("HEADERS after the end of a stream", [get(1, "/slow/300"), get(1, "/bad")].concat(), CLOSED),
            ("DATA after a RST_STREAM", [closed(), frame(DATA, 0, 1, b"x"), window(1, 5)].concat(), Ignored),
            ("CONTINUATION without HEADERS", frame(CONTINUATION, END_HEADERS, 1, &[]), PROTOCOL),
            (
                "CONTINUATION after the end of a head",
                [open(), frame(CONTINUATION, END_HEADERS, 1, &[])].concat(),
                PROTOCOL,
            ),
            (
                "CONTINUATION of another stream",
                [half(), frame(CONTINUATION, END_HEADERS, 3, &[])].concat(),
                PROTOCOL,
            ),
            ("PING within a head", [half(), frame(PING, 0, 0, &[0; 8])].concat(), PROTOCOL),
            ("HEADERS within a head", [half(), get(3, "/bad")].concat(), PROTOCOL),
            ("an unknown frame within a head", [half(), frame(0xbe, 0, 0, &[])].concat(), PROTOCOL),
            (
                "HEADERS that depend on themselves",
                frame(
                    HEADERS,
                    WHOLE | WITH_PRIORITY,
                    1,
                    &[&[0, 0, 0, 1, 0][..], &head("GET", "/bad", &[])].concat(),
                ),
                Reset(&[PROTOCOL_ERROR]),
            ),
            (
                "PRIORITY that depends on itself",
                frame(PRIORITY, 0, 1, &[0, 0, 0, 1, 1]),
                Reset(&[PROTOCOL_ERROR]),
            ),
            (
                "DATA that is shorter than its padding",
                [open(), frame(DATA, PADDED, 1, &[5, 0, 0])].concat(),
                PROTOCOL,
            ),
            (
                "HEADERS that are shorter than their padding",
                frame(HEADERS, WHOLE | PADDED, 1, &[200, 0]),
                PROTOCOL,
            ),
            (
                "unknown frames and flags",
                [frame(0xbe, 0xff, 7, b"x"), frame(PING, 0xfe, 0, &[0; 8])].concat(),
                Ignored,
            ),
            ("PRIORITY of an idle stream", frame(PRIORITY, 0, 9, &[0, 0, 0, 1, 1]), Ignored),
        ],
    );
    let bad: Vec<_> = app.seen().into_iter().filter(|seen| seen.line.contains("/bad")).collect();
    assert!(bad.is_empty(), "{bad:?}");
    assert_eq!(support::get(address, "/good").status, 200);
}

#[test]
fn settings_and_windows_have_their_ranges() {
    let app = App::start("web@1");
    let (_gateway, address) = start(table(&[&app]));
    let open = frame(HEADERS, END_HEADERS, 1, &head("POST", "/bad", &[]));
    const FLOW: Then = Away(&[FLOW_CONTROL_ERROR, PROTOCOL_ERROR]);
    play(
        address,
        &[
            ("ENABLE_PUSH of 2", setting(2, 2), PROTOCOL),
            ("INITIAL_WINDOW_SIZE of 2^31", setting(4, 1 << 31), FLOW),
            ("MAX_FRAME_SIZE of 16383", setting(5, 16383), PROTOCOL),
            ("MAX_FRAME_SIZE of 2^24", setting(5, 1 << 24), PROTOCOL),
            ("a setting that nobody knows", setting(0xbeef, 7), Ignored),
            ("HEADER_TABLE_SIZE of 2^32 - 1", setting(1, u32::MAX), Ignored),
            ("WINDOW_UPDATE of 0 for the connection", window(0, 0), PROTOCOL),
            (
                "WINDOW_UPDATE of 0 for a stream",
                [open.clone(), window(1, 0)].concat(),
                Reset(&[PROTOCOL_ERROR]),
            ),
            (
                "a window beyond 2^31 - 1 for the connection",
                window(0, i32::MAX as u32),
                Away(&[FLOW_CONTROL_ERROR]),
            ),
            (
                "a window beyond 2^31 - 1 for a stream",
                [open.clone(), window(1, i32::MAX as u32)].concat(),
                Reset(&[FLOW_CONTROL_ERROR]),
            ),
            (
                "a window beyond 2^31 - 1 by a setting",
                [open, window(1, 1), setting(4, i32::MAX as u32)].concat(),
                Away(&[FLOW_CONTROL_ERROR]),
            ),
        ],
    );
    only_good(&app);
}

#[test]
fn compressed_heads_that_cannot_be_read_end_the_connection() {
    let app = App::start("web@1");
    let (_gateway, address) = start(table(&[&app]));
    const HPACK: Then = Away(&[COMPRESSION_ERROR, PROTOCOL_ERROR]);
    let whole = |block: &[u8]| frame(HEADERS, WHOLE, 1, block);
    let start = || head("GET", "/bad", &[]);
    play(
        address,
        &[
            ("index 0", whole(&[0x80]), HPACK),
            ("an index behind the table", whole(&[0xff, 0x80, 0x01]), HPACK),
            ("an index without an end", whole(&[&[0xff][..], &[0xff; 40]].concat()), HPACK),
            ("a name's index behind the table", whole(&[0x7f, 0x80, 0x01, 0x01, b'x']), HPACK),
            ("a literal that is cut", whole(&[&start()[..], &[0x00, 0x05, b'a']].concat()), HPACK),
            (
                "a table above what was offered",
                whole(&[&[0x3f, 0xe1, 0xff, 0x03][..], &start()].concat()),
                HPACK,
            ),
            ("a table's size after a field", whole(&[&start()[..], &[0x20]].concat()), HPACK),
            (
                "Huffman's end of string in a value",
                whole(&[&start()[..], &[0x00, 0x01, b'x', 0x84, 0xff, 0xff, 0xff, 0xff]].concat()),
                HPACK,
            ),
            (
                "Huffman's padding of zeros",
                whole(&[&start()[..], &[0x00, 0x01, b'x', 0x81, 0x18]].concat()),
                HPACK,
            ),
            (
                "padding of more than seven bits",
                whole(&[&start()[..], &[0x00, 0x01, b'x', 0x82, 0x1f, 0xff]].concat()),
                HPACK,
            ),
        ],
    );
    only_good(&app);
    assert_eq!(support::get(address, "/good").status, 200);
}

#[test]
fn heads_that_are_no_requests_are_refused() {
    let app = App::start("web@1");
    let (_gateway, address) = start(table(&[&app]));
    const MALFORMED: Then = Reset(&[PROTOCOL_ERROR]);
    /// Names and values that cannot be are refused while they are decompressed.
    const UNREADABLE: Then = Reset(&[PROTOCOL_ERROR, COMPRESSION_ERROR]);
    let whole = |all: &[(&str, &str)]| frame(HEADERS, WHOLE, 1, &fields(all));
    let with = |name: &str, value: &str| frame(HEADERS, WHOLE, 1, &head("GET", "/bad", &[(name, value)]));
    let path = |path: &str| frame(HEADERS, WHOLE, 1, &head("GET", path, &[]));
    let (method, scheme, target, host) =
        ((":method", "GET"), (":scheme", "http"), (":path", "/bad"), (":authority", "web"));
    play(
        address,
        &[
            ("no method", whole(&[scheme, target, host]), MALFORMED),
            ("no scheme", whole(&[method, target, host]), MALFORMED),
            ("no path", whole(&[method, scheme, host]), Reset(&[PROTOCOL_ERROR])),
            ("an empty path", whole(&[method, scheme, (":path", ""), host]), MALFORMED),
            ("two methods", whole(&[method, method, scheme, target, host]), MALFORMED),
            ("two schemes", whole(&[method, scheme, scheme, target, host]), MALFORMED),
            ("two paths", whole(&[method, scheme, target, (":path", "/x"), host]), MALFORMED),
            ("two authorities", whole(&[method, scheme, target, host, (":authority", "x")]), MALFORMED),
            ("a pseudo-header after a field", whole(&[method, scheme, host, ("x", "y"), target]), MALFORMED),
            (
                "a pseudo-header that nobody knows",
                whole(&[method, scheme, target, host, (":x", "y")]),
                UNREADABLE,
            ),
            (
                "a response's pseudo-header",
                whole(&[method, scheme, target, host, (":status", "200")]),
                MALFORMED,
            ),
            (
                "an extended CONNECT that was not offered",
                whole(&[(":method", "CONNECT"), scheme, target, host, (":protocol", "websocket")]),
                MALFORMED,
            ),
            ("an upper-case name", with("X-Upper", "y"), UNREADABLE),
            ("connection", with("connection", "keep-alive"), MALFORMED),
            ("keep-alive", with("keep-alive", "timeout=5"), MALFORMED),
            ("proxy-connection", with("proxy-connection", "close"), MALFORMED),
            ("transfer-encoding", with("transfer-encoding", "chunked"), MALFORMED),
            ("upgrade", with("upgrade", "websocket"), MALFORMED),
            ("TE that is not trailers", with("te", "gzip"), MALFORMED),
            ("TE that is trailers and more", with("te", "trailers, deflate"), MALFORMED),
            ("a line feed in a value", with("x", "y\nz"), UNREADABLE),
            ("a line end in a value", with("x", "y\r\nTransfer-Encoding: chunked"), UNREADABLE),
            ("a zero in a value", with("x", "y\0z"), UNREADABLE),
            ("a space in a name", with("x y", "z"), UNREADABLE),
            ("a colon in a name", with("x:y", "z"), UNREADABLE),
            ("a line end in a name", with("x\r\ny", "z"), UNREADABLE),
            ("an empty name", with("", "z"), UNREADABLE),
            ("a method with a space", whole(&[(":method", "GET /x"), scheme, target, host]), UNREADABLE),
            ("a path with a space", path("/bad /x"), MALFORMED),
            ("a path with a line end", path("/bad\r\nX: y"), MALFORMED),
            ("a path without a slash", path("bad"), MALFORMED),
            ("a path that is a whole address", path("http://web/bad"), MALFORMED),
            ("a path that is a query only", path("?bad"), Status(400)),
            ("a path with a fragment, which is left out", path("/good#bad"), Status(200)),
            ("a star, and not OPTIONS", path("*"), Status(400)),
            ("CONNECT", whole(&[(":method", "CONNECT"), (":authority", "web:80")]), Status(405)),
            ("no authority", whole(&[method, scheme, target]), Status(400)),
            (
                "an authority and another host",
                whole(&[method, scheme, target, host, ("host", "other")]),
                Status(400),
            ),
            ("two hosts", whole(&[method, scheme, target, ("host", "web"), ("host", "web")]), Status(400)),
            (
                "a user in the authority",
                whole(&[method, scheme, target, (":authority", "user@web")]),
                Status(400),
            ),
            ("a host that is a list", whole(&[method, scheme, target, ("host", "web, other")]), Status(400)),
        ],
    );
    only_good(&app);
    assert_eq!(support::get(address, "/good").status, 200);
}

#[test]
fn a_body_is_as_long_as_it_says_and_whole_or_not_at_all() {
    let app = App::start("web@1");
    let (_gateway, address) = start(table(&[&app]));
    let post = |more: &[(&str, &str)]| frame(HEADERS, END_HEADERS, 1, &head("POST", "/bad", more));
    let five = || post(&[("content-length", "5")]);
    let data = |flags: u8, bytes: &[u8]| frame(DATA, flags, 1, bytes);
    let trailers = |flags: u8, all: &[(&str, &str)]| frame(HEADERS, flags, 1, &fields(all));
    const MALFORMED: Then = Reset(&[PROTOCOL_ERROR]);
    play(
        address,
        &[
            (
                "no body where five bytes were promised",
                frame(HEADERS, WHOLE, 1, &head("POST", "/bad", &[("content-length", "5")])),
                MALFORMED,
            ),
            ("three bytes for five", [five(), data(END_STREAM, b"abc")].concat(), MALFORMED),
            ("ten bytes for five", [five(), data(END_STREAM, b"abcdefghij")].concat(), MALFORMED),
            (
                "five bytes, and another frame of one",
                [five(), data(0, b"abcde"), data(END_STREAM, b"f")].concat(),
                MALFORMED,
            ),
            (
                "three bytes for five, and trailers",
                [five(), data(0, b"abc"), trailers(WHOLE, &[("x", "y")])].concat(),
                MALFORMED,
            ),
            (
                "two lengths that differ",
                [post(&[("content-length", "5"), ("content-length", "6")]), data(END_STREAM, b"abcde")]
                    .concat(),
                MALFORMED,
            ),
            (
                "two lengths",
                [post(&[("content-length", "5"), ("content-length", "5")]), data(END_STREAM, b"abcde")]
                    .concat(),
                Status(400),
            ),
            (
                "a length with a sign",
                [post(&[("content-length", "+5")]), data(END_STREAM, b"abcde")].concat(),
                MALFORMED,
            ),
            (
                "a list of lengths",
                [post(&[("content-length", "5, 5")]), data(END_STREAM, b"abcde")].concat(),
                MALFORMED,
            ),
            (
                "trailers that do not end the stream",
                [post(&[]), data(0, b"abc"), trailers(END_HEADERS, &[("x", "y")])].concat(),
                MALFORMED,
            ),
            (
                "trailers with transfer-encoding",
                [post(&[]), data(0, b"abc"), trailers(WHOLE, &[("transfer-encoding", "chunked")])].concat(),
                MALFORMED,
            ),
        ],
    );
    // Taken back in the middle, for whatever reason: half a body is none, though the app does not know how long it is.
    for code in [CANCEL, NO_ERROR, PROTOCOL_ERROR] {
        for more in [&[][..], &[("content-length", "6")]] {
            let mut raw = Raw::connect(address);
            raw.send(&[post(more), data(0, b"abc")].concat());
            // It is on its way to the app by then.
            assert!((0..3).all(|_| raw.is_alive()));
            raw.send(&reset(1, code));
            assert!(raw.ask(3, "/good").is_some(), "{code}: {:?}", raw.came);
        }
    }
    only_good(&app);
    // h2 leaves a pseudo-header in trailers out; nobody else gets to see it.
    let echo = frame(HEADERS, END_HEADERS, 1, &head("POST", "/echo", &[]));
    let late = trailers(WHOLE, &[(":path", "/bad"), ("x", "y")]);
    let bytes = [echo, data(0, b"abc"), late].concat();
    play(address, &[("trailers with a pseudo-header", bytes, Status(200))]);
    let seen = app.seen().pop().expect("a request");
    assert_eq!((seen.line.as_str(), &seen.body[..]), ("POST /echo HTTP/1.1", &b"abc"[..]));
}

#[test]
fn what_http2_cuts_up_is_one_field_for_an_app_and_fields_have_their_limit() {
    let app = App::start("web@1");
    let (_gateway, address) = start(table(&[&app]));
    let cookies = [("cookie", "a=1"), ("x", "y"), ("cookie", "b=2"), ("cookie", "c=3")];
    let many: Vec<(String, String)> = (0..101).map(|n| (format!("x-{n}"), "y".to_owned())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let crumbs = vec![("cookie", "a=1"); 300];
    let long = "y".repeat(40_000);
    let longest = "y".repeat(150_000);
    let cut = |block: Vec<u8>| {
        let mut pieces = block.chunks(16 << 10);
        let first = frame(HEADERS, END_STREAM, 1, pieces.next().expect("something"));
        let rest = pieces.map(|piece| frame(CONTINUATION, 0, 1, piece));
        [first, rest.collect::<Vec<_>>().concat(), frame(CONTINUATION, END_HEADERS, 1, &[])].concat()
    };
    let with = |more: &[(&str, &str)]| frame(HEADERS, WHOLE, 1, &head("GET", "/good", more));
    play(
        address,
        &[
            ("cookies one by one", with(&cookies), Status(200)),
            ("as many crumbs as a browser may send", with(&crumbs), Status(200)),
            ("more fields than there may be", with(&many), Status(431)),
            ("a longer field than there may be", cut(head("GET", "/bad", &[("x", &long)])), Status(431)),
            (
                "a far longer field",
                cut(head("GET", "/bad", &[("x", &longest)])),
                Away(&[ENHANCE_YOUR_CALM, COMPRESSION_ERROR]),
            ),
        ],
    );
    only_good(&app);
    assert_eq!(app.seen()[0].headers["cookie"], ["a=1; b=2; c=3"]);
}

/// A connection over TLS on which HTTP/2 was agreed on.
fn over_tls(
    address: SocketAddr,
    root: &rustls::pki_types::CertificateDer<'static>,
) -> Raw<rustls::StreamOwned<rustls::ClientConnection, TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(root.clone()).expect("a root");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config = builder.expect("versions").with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = rustls::pki_types::ServerName::try_from("web").expect("a name");
    let connection = rustls::ClientConnection::new(Arc::new(config), name).expect("a configuration");
    let stream = TcpStream::connect(address).expect("it listens");
    let mut stream = rustls::StreamOwned::new(connection, stream);
    stream.conn.complete_io(&mut stream.sock).expect("a handshake");
    assert_eq!(stream.conn.alpn_protocol(), Some(&b"h2"[..]));
    stream.sock.set_read_timeout(Some(Duration::from_millis(100))).expect("an option");
    Raw::on(stream)
}

#[test]
fn over_tls_it_is_no_different() {
    let app = App::start("web@1");
    let directory = tempfile::tempdir().expect("a directory");
    let (files, der) = certificate(directory.path(), "web", &["web"]);
    let (gateway, _) = start_with(GatewayConfig { certificates: vec![files], ..config() }, table(&[&app]));
    let addresses = gateway.addresses();
    let address = *addresses.iter().find(|(l, _)| matches!(l, Listener::Https(_))).expect("HTTPS").1;
    // What was agreed on is what has to be spoken.
    for bytes in
        [&b"GET /bad HTTP/1.1\r\nHost: web\r\n\r\n"[..], b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", &get(1, "/bad")]
    {
        let mut raw = over_tls(address, &der);
        raw.send(bytes);
        assert!(raw.end(), "{:?}", raw.came);
    }
    let begin = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    let mut raw = over_tls(address, &der);
    raw.send(&[begin.clone(), frame(PING, 0, 1, &[0; 8])].concat());
    assert!(raw.end() && raw.goaway() == Some(PROTOCOL_ERROR), "{:?}", raw.came);
    let mut raw = over_tls(address, &der);
    let pairs = |n: u32| [get(2 * n + 1, "/slow/20"), reset(2 * n + 1, CANCEL)].concat();
    raw.send(&[begin.clone(), (0..2000).flat_map(pairs).collect::<Vec<_>>()].concat());
    assert!(raw.end(), "{:?}", raw.came.len());
    let mut raw = over_tls(address, &der);
    raw.send(&begin);
    assert_eq!(raw.ask(1, "/good").and_then(|frame| frame.status()), Some(200));
    assert!(app.seen().iter().all(|seen| !seen.line.contains("/bad")));
}

#[test]
fn an_answer_that_an_app_breaks_off_is_taken_for_whole_by_nobody() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let mut rpc = endpoint("web@1", listener.local_addr().expect("it is bound"));
    rpc.protocol = model::Protocol::H2c;
    let mut table = table(&[]);
    table.services.values_mut().next().expect("one").endpoints.push(rpc);
    let (_gateway, address) = start(table);
    for code in [NO_ERROR, CANCEL] {
        let mut client = support::Client::connect(address);
        client.send("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 0\r\n\r\n");
        let (mut stream, _) = listener.accept().expect("the gateway");
        stream.read_exact(&mut [0; 24]).expect("a preface");
        stream.set_read_timeout(Some(Duration::from_millis(100))).expect("an option");
        let mut app = Raw::on(stream);
        app.send(&frame(SETTINGS, 0, 0, &[]));
        assert!(app.until(|frame| frame.kind == HEADERS));
        // 200, some of it, and no more.
        let stream = app.came.iter().find(|frame| frame.kind == HEADERS).expect("a request").stream;
        app.send(&[frame(HEADERS, END_HEADERS, stream, &[0x88]), frame(DATA, 0, stream, b"half")].concat());
        assert!((0..2).all(|_| app.is_alive()));
        app.send(&reset(stream, code));
        assert_eq!(client.answer(), None, "{code}");
        drop(app);
    }
}
