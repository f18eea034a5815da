//! What is spoken besides HTTP/1.1: HTTP/2 with and without TLS, gRPC's streams and trailers, upgrades, TCP, PROXY.

use crate::app::App;
use crate::support::{
    Client, LONG, applied, config, endpoint, eventually, get, http, start, start_with, table, table_with,
};
use bytes::Bytes;
use gateway::{CertificateFiles, Gateway, GatewayConfig, Listener, Policy, Table, Takeover};
use http_body_util::{BodyExt, channel::Channel};
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use model::Protocol;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::rustls;

fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.expect("a runtime").block_on(async { tokio::time::timeout(LONG, future).await.expect("in time") })
}

/// An app that speaks HTTP/2: sends back what comes, piece by piece, and ends with trailers.
async fn grpc_app() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let service = hyper::service::service_fn(echo);
                let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    address
}

type EchoBody = Channel<Bytes, hyper::Error>;

async fn echo(request: Request<Incoming>) -> Result<Response<EchoBody>, hyper::Error> {
    let (mut sender, body) = Channel::new(4);
    let mut response = Response::new(body);
    let te = request.headers().get("te").is_some_and(|te| te == "trailers");
    let said = format!("{:?} {} {te}", request.version(), request.uri());
    response.headers_mut().insert("x-saw", said.parse().expect("a value"));
    let mut incoming = request.into_body();
    tokio::spawn(async move {
        while let Some(Ok(frame)) = incoming.frame().await {
            // What ends a stream is an empty frame too, and nothing to send back.
            if let Ok(data) = frame.into_data()
                && !data.is_empty()
            {
                let _ = sender.send_data(data).await;
            }
        }
        let mut trailers = hyper::HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().expect("a value"));
        let _ = sender.send_trailers(trailers).await;
    });
    Ok(response)
}

fn grpc_table(address: SocketAddr) -> Table {
    let mut table = table(&[]);
    let mut endpoint = endpoint("rpc@1", address);
    endpoint.protocol = Protocol::Grpc;
    table.services.values_mut().next().expect("one").endpoints.push(endpoint);
    table
}

#[test]
fn grpc_streams_both_ways_and_ends_with_trailers() {
    block_on(async {
        let (_gateway, address) = start(grpc_table(grpc_app().await));
        let stream = tokio::net::TcpStream::connect(address).await.expect("it listens");
        let (mut client, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .expect("h2");
        tokio::spawn(connection);
        let (mut pieces, body) = Channel::<Bytes, hyper::Error>::new(4);
        let request = Request::post("http://web/pkg.Service/Method")
            .header("te", "trailers")
            .header("content-type", "application/grpc")
            .body(body)
            .expect("a request");
        let response = client.send_request(request).await.expect("an answer");
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["x-saw"], "HTTP/2.0 http://web/pkg.Service/Method true");
        let mut body = response.into_body();
        // The answer to a piece comes before the next one is sent.
        for n in 0..20 {
            let piece = Bytes::from(format!("piece {n}"));
            pieces.send_data(piece.clone()).await.expect("it is taken");
            let frame = body.frame().await.expect("a frame").expect("whole");
            assert_eq!(frame.into_data().ok(), Some(piece));
        }
        drop(pieces);
        let last = body.frame().await.expect("a frame").expect("whole").into_trailers().expect("trailers");
        assert_eq!(last["grpc-status"], "0");
        assert!(body.frame().await.is_none());
        // Many at once on one connection, to an HTTP/2 app.
        let mut all = tokio::task::JoinSet::new();
        for n in 0..100 {
            let mut client = client.clone();
            all.spawn(async move {
                let (mut sender, body) = Channel::<Bytes, hyper::Error>::new(1);
                let request = Request::post(format!("http://web/{n}")).body(body).expect("a request");
                let answered = client.send_request(request);
                sender.send_data(Bytes::from("x")).await.ok();
                drop(sender);
                let response = answered.await.expect("an answer");
                response.into_body().collect().await.expect("whole").to_bytes()
            });
        }
        while let Some(body) = all.join_next().await {
            assert_eq!(body.expect("no panic"), "x");
        }
    });
}

#[test]
fn http2_clients_reach_http1_apps_and_the_other_way_round() {
    let app = App::start("web@1");
    block_on(async {
        let (_gateway, address) = start(table(&[&app]));
        let stream = tokio::net::TcpStream::connect(address).await.expect("it listens");
        let (mut client, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .expect("h2");
        tokio::spawn(connection);
        let body = http_body_util::Full::new(Bytes::from("over h2"));
        let request = Request::post("http://web/echo").body(body).expect("a request");
        let response = client.send_request(request).await.expect("an answer");
        assert_eq!((response.status(), response.version()), (StatusCode::OK, Version::HTTP_2));
        assert_eq!(response.into_body().collect().await.expect("whole").to_bytes(), "over h2");
        assert_eq!(app.seen()[0].header("host"), Some("web"));
        assert_eq!(app.seen()[0].line, "POST /echo HTTP/1.1");
        let rpc = grpc_app().await;
        let (_other, address) = start(grpc_table(rpc));
        let answer = tokio::task::spawn_blocking(move || Client::connect(address).post("/x?y", "over h1"));
        let answer = answer.await.expect("no panic");
        assert_eq!((answer.status, answer.text().as_str()), (200, "over h1"));
        assert_eq!(answer.header("x-saw"), Some("HTTP/2.0 http://web/x?y false"));
    });
}

#[test]
fn websockets_become_tunnels_and_count_as_under_way() {
    let app = App::start("web@1");
    let (gateway, address) = start(table(&[&app]));
    let mut client = Client::connect(address);
    client.send(
        "GET /ws HTTP/1.1\r\nHost: web\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n",
    );
    let answer = client.answer().expect("an answer");
    assert_eq!((answer.status, answer.header("upgrade")), (101, Some("websocket")));
    for n in 0..50 {
        let word = format!("frame {n:02}");
        client.send(&word);
        assert_eq!(client.bytes(16), format!("{word}{word}").as_bytes());
    }
    let mut drained = table(&[&app]);
    drained.services.values_mut().next().expect("one").endpoints[0].draining = true;
    gateway.update(drained, 3);
    applied(&gateway, 3);
    let key = ("web".parse().expect("a name"), "web@1".to_owned());
    assert_eq!(gateway.applied().borrow().draining[&key], 1);
    client.send("still");
    assert_eq!(client.bytes(10), b"stillstill");
    client.stream.shutdown(std::net::Shutdown::Write).expect("it is open");
    assert!(client.is_closed());
    let acknowledged = gateway.applied();
    eventually(|| acknowledged.borrow().draining[&key] == 0);
}

fn tcp_app(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut stream = stream;
                let mut all = Vec::new();
                let _ = stream.read_to_end(&mut all);
                let _ = stream.write_all(&[name.as_bytes(), b":", &all].concat());
            });
        }
    });
    address
}

fn tcp_ask(port: u16, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    stream.write_all(bytes).expect("it takes bytes");
    stream.shutdown(std::net::Shutdown::Write).expect("it is open");
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    all
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port()
}

#[test]
fn tcp_ports_come_and_go_with_the_table() {
    let mut one = table(&[]);
    let port = free_port();
    let service = one.services.values_mut().next().expect("one");
    service.endpoints.push(endpoint("db@1", tcp_app("db@1")));
    service.policy.proxy_protocol = true;
    one.tcp.insert(port, "web".parse().expect("a name"));
    let (gateway, _) = start(table(&[]));
    gateway.update(one.clone(), 1);
    applied(&gateway, 1);
    let answer = tcp_ask(port, b"query");
    // The PROXY header (v2) names the client; then come its bytes.
    assert!(
        answer.starts_with(b"db@1:\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x01\x7f\0\0\x01"),
        "{answer:?}"
    );
    assert!(answer.ends_with(b"query"), "{answer:?}");
    // Another endpoint takes over.
    let service = one.services.values_mut().next().expect("one");
    service.endpoints = vec![endpoint("db@2", tcp_app("db@2"))];
    service.policy.proxy_protocol = false;
    gateway.update(one, 2);
    applied(&gateway, 2);
    assert_eq!(tcp_ask(port, b"query"), b"db@2:query");
    gateway.update(table(&[]), 3);
    applied(&gateway, 3);
    eventually(|| TcpStream::connect(("127.0.0.1", port)).is_err());
    // A port that is taken is told of, and disturbs nothing else.
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("it is bound").port();
    let mut other = table(&[]);
    other.tcp.insert(port, "web".parse().expect("a name"));
    gateway.update(other, 4);
    applied(&gateway, 4);
    let problems = block_on(gateway.snapshot()).problems;
    assert!(problems[&format!("muster-tcp-{port}")].contains("in use"), "{problems:?}");
}

#[test]
fn a_proxy_before_us_says_for_whom_it_speaks() {
    let app = App::start("web@1");
    let config = GatewayConfig { proxy_protocol: true, ..config() };
    let (_gateway, address) = start_with(config, table(&[&app]));
    let request = "GET / HTTP/1.1\r\nHost: web\r\n\r\n";
    let mut client = Client::connect(address);
    client.send(&format!("PROXY TCP4 192.0.2.7 192.0.2.1 1234 80\r\n{request}"));
    assert_eq!(client.answer().expect("an answer").status, 200);
    assert_eq!(app.seen()[0].header("x-forwarded-for"), Some("192.0.2.7"));
    assert_eq!(crate::support::raw(address, request.as_bytes()), "", "without it there is no connection");
    assert_eq!(app.count(), 1);
}

/// A certificate for these names, in files, and its DER.
pub(crate) fn certificate(
    directory: &Path,
    name: &str,
    hosts: &[&str],
) -> (CertificateFiles, rustls::pki_types::CertificateDer<'static>) {
    let hosts: Vec<_> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(hosts).expect("a certificate");
    let files = CertificateFiles {
        cert: directory.join(format!("{name}.crt")),
        key: directory.join(format!("{name}.key")),
    };
    std::fs::write(&files.key, made.signing_key.serialize_pem()).expect("a file");
    std::fs::write(&files.cert, made.cert.pem()).expect("a file");
    (files, made.cert.der().clone())
}

/// Asks over TLS, and gives which certificate was shown, what was agreed on, and the answer.
async fn ask(
    address: SocketAddr,
    host: &'static str,
    trusted: &[&rustls::pki_types::CertificateDer<'static>],
    alpn: &[&str],
) -> (rustls::pki_types::CertificateDer<'static>, Version, String) {
    let mut roots = rustls::RootCertStore::empty();
    for root in trusted {
        roots.add((*root).clone()).expect("a root");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let stream = tokio::net::TcpStream::connect(address).await.expect("it listens");
    let name = rustls::pki_types::ServerName::try_from(host).expect("a name");
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.expect("TLS");
    let shown = stream.get_ref().1.peer_certificates().expect("one")[0].clone().into_owned();
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let empty = http_body_util::Empty::<Bytes>::new();
    let response = if http2 {
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (mut client, connection) = handshake.await.expect("h2");
        tokio::spawn(connection);
        let request = Request::get(format!("https://{host}/")).body(empty).expect("a request");
        client.send_request(request).await.expect("an answer")
    } else {
        let (mut client, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("h1");
        tokio::spawn(connection);
        let request = Request::get("/").header("host", host).body(empty).expect("a request");
        client.send_request(request).await.expect("an answer")
    };
    let version = response.version();
    let body = response.into_body().collect().await.expect("whole").to_bytes();
    (shown, version, String::from_utf8_lossy(&body).into_owned())
}

#[test]
fn tls_shows_the_certificate_for_the_name_and_takes_new_files() {
    let app = App::start("web@1");
    let directory = tempfile::tempdir().expect("a directory");
    let (first, first_der) = certificate(directory.path(), "first", &["web"]);
    let (second, second_der) = certificate(directory.path(), "second", &["*.example.com"]);
    let mut table = table_with(&[&app], Policy { redirect: true, ..Policy::default() });
    table.routes.push(gateway::Route {
        host: "*.example.com".parse().expect("a host"),
        prefix: "/".to_owned(),
        service: "web".parse().expect("a name"),
    });
    let config = GatewayConfig { certificates: vec![first, second], ..config() };
    let (gateway, plain) = start_with(config, table);
    let addresses = gateway.addresses();
    let address = *addresses.iter().find(|(l, _)| matches!(l, Listener::Https(_))).expect("HTTPS").1;
    assert_eq!(get(plain, "/").status, 308);
    block_on(async {
        let trusted = [&first_der, &second_der];
        let (shown, version, text) = ask(address, "web", &trusted, &["h2", "http/1.1"]).await;
        assert_eq!((shown, version, text.as_str()), (first_der.clone(), Version::HTTP_2, "web@1"));
        let (shown, version, text) = ask(address, "a.example.com", &trusted, &["http/1.1"]).await;
        assert_eq!((shown, version, text.as_str()), (second_der.clone(), Version::HTTP_11, "web@1"));
        assert_eq!(app.seen()[0].header("x-forwarded-proto"), Some("https"));
        // Half of a new pair is there before the other, and is not used.
        let (_, new_der) = certificate(directory.path(), "first", &["web", "web.again"]);
        let deadline = tokio::time::Instant::now() + LONG;
        loop {
            assert!(tokio::time::Instant::now() < deadline, "the new certificate is never shown");
            let (shown, ..) = ask(address, "web", &[&first_der, &new_der], &[]).await;
            if shown == new_der {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
}

/// Asks without a pause from another thread until it is told to stop; gives how many were answered. Each request is a
/// connection of its own, which is what a listener that is gone for a moment would refuse.
fn asking(address: SocketAddr) -> (Arc<std::sync::atomic::AtomicBool>, std::thread::JoinHandle<usize>) {
    let stop = Arc::<std::sync::atomic::AtomicBool>::default();
    let own = Arc::clone(&stop);
    let asking = std::thread::spawn(move || {
        let mut count = 0;
        while !own.load(std::sync::atomic::Ordering::SeqCst) {
            assert_eq!(get(address, "/").status, 200, "after {count}");
            count += 1;
        }
        count
    });
    (stop, asking)
}

#[test]
fn the_next_gateway_takes_the_sockets_over_and_nobody_is_refused() {
    let app = App::start("web@1");
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("takeover.sock");
    assert!(Takeover::ask(&path).expect("a question").is_none(), "there is nobody to ask");
    let config = GatewayConfig { takeover: Some(path.clone()), admin: None, ..config() };
    let (mut gateway, address) = start_with(config.clone(), table(&[&app]));
    let (stop, asking) = asking(address);
    for _ in 0..5 {
        let mut slow = Client::connect(address);
        slow.send("GET /slow/300 HTTP/1.1\r\nHost: web\r\n\r\n");
        let takeover = Takeover::ask(&path).expect("it answers").expect("it is there");
        let mut inherited = Vec::new();
        // As the next process has it in its configuration: the same address.
        let fixed = GatewayConfig { http: vec![address], ..config.clone() };
        for (listener, socket) in takeover.inherited.iter().map(|(l, s)| (l, s.try_clone().expect("a copy")))
        {
            assert!(matches!(listener, Listener::Http(_)));
            inherited.push((Listener::Http(address), socket));
        }
        let next = Gateway::start_with(fixed, table(&[&app]), inherited).expect("it starts");
        assert_eq!(http(&next), address);
        takeover.serving().expect("it hears");
        let taken = gateway.taken_over();
        eventually(|| *taken.borrow());
        assert!(gateway.shutdown(LONG), "what was under way has ended in time");
        // Accepted by either, and answered.
        assert_eq!(slow.answer().expect("an answer").status, 200);
        gateway = next;
    }
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    assert!(asking.join().expect("no request failed") > 0);
}

#[test]
fn sockets_that_were_kept_serve_those_who_waited() {
    let app = App::start("web@1");
    let config = GatewayConfig { admin: None, ..config() };
    let (gateway, address) = start_with(config.clone(), table(&[&app]));
    // What systemd does between two daemons.
    let kept = gateway.sockets().expect("copies");
    assert!(gateway.shutdown(LONG));
    let mut waiting: Vec<_> = (0..8).map(|_| Client::connect(address)).collect();
    for client in &mut waiting {
        client.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n");
    }
    // How it gives them back is in the end-to-end tests: here there is no systemd.
    assert_eq!(kept.len(), 2);
    let inherited = kept.into_iter().map(|(_, socket)| (Listener::Http(address), socket)).collect();
    let config = GatewayConfig { http: vec![address], threads: 1, ..config };
    let _next = Gateway::start_with(config, table(&[&app]), inherited).expect("it starts");
    for client in &mut waiting {
        assert_eq!(client.answer().expect("an answer").status, 200);
    }
}

#[test]
fn a_shutdown_finishes_what_is_under_way_and_tells_idle_clients() {
    let app = App::start("web@1");
    let (gateway, address) = start(table(&[&app]));
    let mut slow = Client::connect(address);
    let mut idle = Client::connect(address);
    let mut busy = Client::connect(address);
    assert_eq!(idle.get("/").status, 200);
    assert_eq!(busy.get("/").status, 200);
    slow.send("GET /slow/800 HTTP/1.1\r\nHost: web\r\n\r\n");
    eventually(|| app.count() == 3);
    let ending = std::thread::spawn(move || gateway.shutdown(Duration::from_secs(6)));
    eventually(|| TcpStream::connect(address).is_err());
    let last = busy.get("/");
    assert_eq!((last.status, last.header("connection")), (200, Some("close")));
    assert_eq!(slow.answer().expect("an answer").status, 200);
    assert!(idle.is_closed(), "at half of the time");
    assert!(ending.join().expect("no panic"));
}
