//! An app behind the gateway: HTTP/1.1 on plain threads, so that the test sees exactly what came and decides exactly
//! what goes back. Its path tells it how to behave.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A request as it came.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    pub(crate) line: String,
    pub(crate) headers: BTreeMap<String, Vec<String>>,
    pub(crate) body: Vec<u8>,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|all| all.first()).map(String::as_str)
    }
}

#[derive(Debug, Default)]
struct State {
    seen: Mutex<Vec<Seen>>,
    connections: AtomicUsize,
    open: AtomicUsize,
    /// Connections end without an answer.
    deaf: AtomicBool,
    stop: AtomicBool,
    streams: Mutex<Vec<TcpStream>>,
}

pub(crate) struct App {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    state: Arc<State>,
}

impl App {
    pub(crate) fn start(name: &str) -> Self {
        Self::start_on(name, "127.0.0.1:0".parse().expect("an address"))
    }

    pub(crate) fn start_on(name: &str, address: SocketAddr) -> Self {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        socket.set_reuse_address(true).expect("an option");
        socket.bind(&address.into()).expect("a free port");
        socket.listen(1024).expect("a listener");
        let listener: TcpListener = socket.into();
        let address = listener.local_addr().expect("it is bound");
        let state = Arc::new(State::default());
        let (own, said) = (Arc::clone(&state), name.to_owned());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if own.stop.load(SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { return };
                own.connections.fetch_add(1, SeqCst);
                own.open.fetch_add(1, SeqCst);
                if let Ok(copy) = stream.try_clone() {
                    own.streams.lock().expect("whole").push(copy);
                }
                let (own, said) = (Arc::clone(&own), said.clone());
                std::thread::spawn(move || {
                    let copy = stream.try_clone();
                    let _ = serve(&own, &said, stream);
                    // Copies elsewhere would keep it open.
                    let _ = copy.and_then(|stream| stream.shutdown(Shutdown::Both));
                    own.open.fetch_sub(1, SeqCst);
                });
            }
        });
        Self { name: name.to_owned(), address, state }
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().expect("whole").clone()
    }

    pub(crate) fn count(&self) -> usize {
        self.state.seen.lock().expect("whole").len()
    }

    /// Connections made to it.
    pub(crate) fn connections(&self) -> usize {
        self.state.connections.load(SeqCst)
    }

    /// Connections to it that are open.
    pub(crate) fn open(&self) -> usize {
        self.state.open.load(SeqCst)
    }

    /// From now on it takes requests and ends the connection without an answer.
    pub(crate) fn go_deaf(&self, deaf: bool) {
        self.state.deaf.store(deaf, SeqCst);
    }

    /// As if killed: nobody listens, and connections end.
    pub(crate) fn kill(&self) {
        self.state.stop.store(true, SeqCst);
        let _ = TcpStream::connect(self.address);
        for stream in self.state.streams.lock().expect("whole").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        // The accepting thread has let go of the listener as soon as nobody is accepted any more.
        crate::support::eventually(|| TcpStream::connect(self.address).is_err());
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.state.stop.store(true, SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(state: &State, name: &str, stream: TcpStream) -> std::io::Result<()> {
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    while let Some(seen) = read(&mut reader, &mut writer)? {
        let path = seen.line.split(' ').nth(1).unwrap_or_default().to_owned();
        let body = seen.body.clone();
        let websocket = seen.header("upgrade").map(str::to_owned);
        let head_only = seen.line.starts_with("HEAD ");
        state.seen.lock().expect("whole").push(seen);
        if state.deaf.load(SeqCst) {
            return writer.shutdown(Shutdown::Both);
        }
        if let Some(protocol) = websocket {
            write!(
                writer,
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n"
            )?;
            // Says everything twice.
            let mut piece = [0; 1024];
            loop {
                let length = reader.read(&mut piece)?;
                if length == 0 {
                    return Ok(());
                }
                writer.write_all(&[&piece[..length], &piece[..length]].concat())?;
            }
        }
        let mut words = path.trim_start_matches('/').split('/');
        let mut status = "200 OK".to_owned();
        let mut text = name.as_bytes().to_vec();
        match (words.next(), words.next()) {
            (Some("slow"), Some(ms)) => std::thread::sleep(Duration::from_millis(ms.parse().unwrap_or(0))),
            (Some("status"), Some(code)) => status = format!("{code} Whatever"),
            (Some("bytes"), Some(count)) => text = vec![b'x'; count.parse().unwrap_or(0)],
            (Some("echo"), _) => text = body,
            (Some("break"), _) => {
                write!(writer, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nonly this")?;
                return writer.shutdown(Shutdown::Both);
            }
            (Some("drop"), _) => return writer.shutdown(Shutdown::Both),
            (Some("close"), _) => {
                write!(
                    writer,
                    "HTTP/1.1 200 OK\r\nConnection: close\r\nX-Hop: 1\r\nContent-Length: 2\r\n\r\nok"
                )?;
                return writer.shutdown(Shutdown::Both);
            }
            (Some("chunks"), _) => {
                write!(writer, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n")?;
                for part in ["one ", "two ", "three"] {
                    write!(writer, "{:x}\r\n{part}\r\n", part.len())?;
                    writer.flush()?;
                }
                write!(writer, "0\r\nX-Sum: 13\r\n\r\n")?;
                continue;
            }
            (Some("garbage"), _) => {
                write!(writer, "HELLO HTTP\r\n\r\n")?;
                return writer.shutdown(Shutdown::Both);
            }
            _ => {}
        }
        let length = text.len();
        if head_only || status.starts_with("204") || status.starts_with("304") {
            text.clear();
        }
        let mut answer =
            format!("HTTP/1.1 {status}\r\nX-App: {name}\r\nContent-Length: {length}\r\n\r\n").into_bytes();
        answer.extend(text);
        writer.write_all(&answer)?;
    }
    Ok(())
}

/// The next request; none at the end.
fn read(reader: &mut BufReader<TcpStream>, writer: &mut TcpStream) -> std::io::Result<Option<Seen>> {
    let mut seen = Seen::default();
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    seen.line = line.trim_end().to_owned();
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        seen.headers.entry(name.to_ascii_lowercase()).or_default().push(value.trim().to_owned());
    }
    if seen.header("expect").is_some() {
        write!(writer, "HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    if let Some(length) = seen.header("content-length").and_then(|length| length.parse().ok()) {
        seen.body = vec![0; length];
        reader.read_exact(&mut seen.body)?;
    } else if seen.header("transfer-encoding") == Some("chunked") {
        loop {
            line.clear();
            reader.read_line(&mut line)?;
            let size = usize::from_str_radix(line.trim(), 16).map_err(std::io::Error::other)?;
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk)?;
            if size == 0 {
                break;
            }
            seen.body.extend(&chunk[..size]);
        }
    }
    Ok(Some(seen))
}
