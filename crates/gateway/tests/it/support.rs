//! A gateway with a table, and clients that speak byte by byte.

use crate::app::App;
use gateway::{Endpoint, Gateway, GatewayConfig, Listener, Policy, Service, Table};
use model::Protocol;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Generous: the machine may be busy.
pub(crate) const LONG: Duration = Duration::from_secs(20);

pub(crate) fn eventually(mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < deadline, "it never came true");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn config() -> GatewayConfig {
    GatewayConfig {
        http: vec!["127.0.0.1:0".parse().expect("an address")],
        https: vec!["127.0.0.1:0".parse().expect("an address")],
        tcp_address: "127.0.0.1".parse().expect("an address"),
        admin: Some("127.0.0.1:0".parse().expect("an address")),
        threads: 2,
        ..GatewayConfig::default()
    }
}

pub(crate) fn endpoint(name: &str, address: SocketAddr) -> Endpoint {
    Endpoint {
        instance: name.to_owned(),
        address,
        weight: 100,
        generation: 1,
        draining: false,
        protocol: Protocol::Http,
    }
}

/// A table with the service `web` on these apps.
pub(crate) fn table(apps: &[&App]) -> Table {
    table_with(apps, Policy::default())
}

pub(crate) fn table_with(apps: &[&App], policy: Policy) -> Table {
    let endpoints = apps.iter().map(|app| endpoint(&app.name, app.address)).collect();
    let mut table = Table::default();
    table.services.insert("web".parse().expect("a name"), Service { endpoints, policy });
    table
}

pub(crate) fn start(table: Table) -> (Gateway, SocketAddr) {
    start_with(config(), table)
}

pub(crate) fn start_with(config: GatewayConfig, table: Table) -> (Gateway, SocketAddr) {
    let gateway = Gateway::start(config, table).expect("it starts");
    let address = http(&gateway);
    (gateway, address)
}

pub(crate) fn http(gateway: &Gateway) -> SocketAddr {
    let addresses = gateway.addresses();
    let http = addresses.iter().find(|(listener, _)| matches!(listener, Listener::Http(_)));
    *http.expect("it listens for HTTP").1
}

/// Waits until every thread serves a revision.
pub(crate) fn applied(gateway: &Gateway, revision: u64) {
    let applied = gateway.applied();
    eventually(|| applied.borrow().revision >= revision);
}

/// A connection that is read response by response.
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    buffer: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the gateway listens");
        stream.set_read_timeout(Some(LONG)).expect("an option");
        stream.set_nodelay(true).expect("an option");
        Self { stream, buffer: Vec::new() }
    }

    pub(crate) fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).expect("it takes bytes");
    }

    pub(crate) fn get(&mut self, path: &str) -> Answer {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: web\r\n\r\n"));
        self.answer().expect("an answer")
    }

    pub(crate) fn post(&mut self, path: &str, body: &str) -> Answer {
        let length = body.len();
        self.send(&format!("POST {path} HTTP/1.1\r\nHost: web\r\nContent-Length: {length}\r\n\r\n{body}"));
        self.answer().expect("an answer")
    }

    fn fill(&mut self) -> bool {
        let mut piece = [0; 64 << 10];
        match self.stream.read(&mut piece) {
            Ok(0) => false,
            Ok(length) => {
                self.buffer.extend(&piece[..length]);
                true
            }
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => false,
            Err(error) => panic!("no answer: {error}"),
        }
    }

    fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\r\n") {
                let line = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
                self.buffer.drain(..end + 2);
                return Some(line);
            }
            if !self.fill() {
                return None;
            }
        }
    }

    fn take(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < length {
            if !self.fill() {
                return None;
            }
        }
        Some(self.buffer.drain(..length).collect())
    }

    /// The next response; none if the connection ends before it does.
    pub(crate) fn answer(&mut self) -> Option<Answer> {
        let mut head = self.line()?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            head = format!("{head}\n{line}");
        }
        let mut answer = Answer { status, head, body: Vec::new() };
        if status == 100 {
            return self.answer();
        }
        if status == 101 || status == 204 || status == 304 {
            return Some(answer);
        }
        if answer.header("transfer-encoding") == Some("chunked") {
            loop {
                let size = usize::from_str_radix(self.line()?.trim(), 16).ok()?;
                if size == 0 {
                    while !self.line()?.is_empty() {}
                    break;
                }
                let chunk = self.take(size + 2)?;
                answer.body.extend(&chunk[..size]);
            }
        } else if let Some(length) = answer.header("content-length").and_then(|l| l.parse().ok()) {
            answer.body = self.take(length)?;
        }
        Some(answer)
    }

    /// Whether the other side has ended the connection.
    pub(crate) fn is_closed(&mut self) -> bool {
        self.buffer.is_empty() && !self.fill()
    }

    /// Bytes as they come, so many.
    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        self.take(length).expect("they come")
    }
}

pub(crate) fn get(address: SocketAddr, path: &str) -> Answer {
    Client::connect(address).get(path)
}

/// Sends bytes, and gives what came until the connection ended. When nothing has come for a while the client ends its side.
pub(crate) fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    raw_within(address, bytes, Duration::from_secs(2))
}

/// The same, with the while.
pub(crate) fn raw_within(address: SocketAddr, bytes: &[u8], quiet: Duration) -> String {
    let mut client = Client::connect(address);
    client.stream.set_read_timeout(Some(quiet)).expect("an option");
    let _ = client.stream.write_all(bytes); // it may be refused before its end
    let mut piece = [0; 4096];
    let mut ended = false;
    let deadline = Instant::now() + LONG;
    loop {
        match client.stream.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => client.buffer.extend(&piece[..length]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                assert!(Instant::now() < deadline, "it never ends: {:?}", String::from_utf8_lossy(bytes));
                if !ended {
                    ended = true;
                    let _ = client.stream.shutdown(std::net::Shutdown::Write);
                }
            }
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&client.buffer).into_owned()
}
