//! A client that speaks HTTP/2 frame by frame, right or wrong as it is told. It decides nothing: what comes back is kept
//! as frames.

use crate::support::LONG;
use std::fmt;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const PADDED: u8 = 8;
pub(crate) const WITH_PRIORITY: u8 = 0x20;
/// A whole request without a body.
pub(crate) const WHOLE: u8 = END_STREAM | END_HEADERS;

pub(crate) const NO_ERROR: u32 = 0;
pub(crate) const PROTOCOL_ERROR: u32 = 1;
pub(crate) const FLOW_CONTROL_ERROR: u32 = 3;
pub(crate) const STREAM_CLOSED: u32 = 5;
pub(crate) const FRAME_SIZE_ERROR: u32 = 6;
pub(crate) const REFUSED_STREAM: u32 = 7;
pub(crate) const CANCEL: u32 = 8;
pub(crate) const COMPRESSION_ERROR: u32 = 9;
pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame as bytes.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

pub(crate) fn setting(id: u16, value: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
}

pub(crate) fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &code.to_be_bytes())
}

pub(crate) fn window(stream: u32, more: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &more.to_be_bytes())
}

fn number(first: u8, bits: u8, value: usize) -> Vec<u8> {
    let most = (1usize << bits) - 1;
    if value < most {
        return vec![first | value as u8];
    }
    let (mut bytes, mut rest) = (vec![first | most as u8], value - most);
    while rest >= 128 {
        bytes.push((rest % 128 + 128) as u8);
        rest /= 128;
    }
    bytes.push(rest as u8);
    bytes
}

/// A field, spelled out (RFC 7541, 6.2.2).
pub(crate) fn field(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| [number(0, 7, text.len()), text.as_bytes().to_vec()].concat();
    [vec![0], text(name), text(value)].concat()
}

pub(crate) fn fields(all: &[(&str, &str)]) -> Vec<u8> {
    all.iter().flat_map(|(name, value)| field(name, value)).collect()
}

/// The head of a request to the service `web`, with more fields.
pub(crate) fn head(method: &str, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let start = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "web")];
    [fields(&start), fields(more)].concat()
}

/// A whole GET.
pub(crate) fn get(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, WHOLE, stream, &head("GET", path, &[]))
}

/// A frame that came.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// The error code of a RST_STREAM or GOAWAY.
    pub(crate) fn code(&self) -> Option<u32> {
        let at = match self.kind {
            RST_STREAM => 0,
            GOAWAY => 4,
            _ => return None,
        };
        Some(u32::from_be_bytes(self.payload.get(at..at + 4)?.try_into().ok()?))
    }

    /// The status of a response's head; only the first on a connection is sure to be spelled out.
    pub(crate) fn status(&self) -> Option<u16> {
        if self.kind != HEADERS {
            return None;
        }
        match self.payload[..] {
            // The static table, from 8 on.
            [first @ 0x88..=0x8e, ..] => Some([200, 204, 206, 304, 400, 404, 500][usize::from(first - 0x88)]),
            // A literal with that table's name for it.
            [0x48 | 0x08, length, ref rest @ ..] => {
                let text = rest.get(..usize::from(length & 0x7f))?;
                let text = if length & 0x80 == 0 { text.to_vec() } else { digits(text) };
                String::from_utf8(text).ok()?.parse().ok()
            }
            _ => None,
        }
    }
}

/// Digits in Huffman's code (RFC 7541, appendix B): 0 to 2 are five bits, 3 to 9 six.
fn digits(bytes: &[u8]) -> Vec<u8> {
    let bits: Vec<u8> = bytes.iter().flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1)).collect();
    let value = |bits: &[u8]| bits.iter().fold(0, |value, bit| value << 1 | bit);
    let (mut at, mut text) = (0, Vec::new());
    while at + 5 <= bits.len() {
        let short = value(&bits[at..at + 5]);
        if short <= 2 {
            text.push(b'0' + short);
            at += 5;
        } else if at + 6 <= bits.len() && (0x19..=0x1f).contains(&value(&bits[at..at + 6])) {
            text.push(b'3' + value(&bits[at..at + 6]) - 0x19);
            at += 6;
        } else {
            break;
        }
    }
    text
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names =
            ["DATA", "HEADERS", "PRIORITY", "RST_STREAM", "SETTINGS", "PUSH_PROMISE", "PING", "GOAWAY"];
        let name = names.get(usize::from(self.kind)).copied().unwrap_or("WINDOW_UPDATE or later");
        write!(f, "{name}({}, {} bytes", self.stream, self.payload.len())?;
        if let Some(code) = self.code() {
            write!(f, ", code {code}")?;
        }
        if let Some(status) = self.status() {
            write!(f, ", {status}")?;
        }
        f.write_str(")")
    }
}

/// A connection, and what has come on it.
pub(crate) struct Raw<S> {
    pub(crate) stream: S,
    buffer: Vec<u8>,
    pub(crate) came: Vec<Frame>,
    pub(crate) ended: bool,
    pings: u64,
}

impl Raw<TcpStream> {
    /// Connects with prior knowledge, and says nothing yet.
    pub(crate) fn silent(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the gateway listens");
        stream.set_nodelay(true).expect("an option");
        stream.set_read_timeout(Some(Duration::from_millis(100))).expect("an option");
        stream.set_write_timeout(Some(LONG)).expect("an option");
        Self::on(stream)
    }

    /// Connects, and begins as it should.
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let mut raw = Self::silent(address);
        raw.send(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat());
        raw
    }
}

impl<S: Read + Write> Raw<S> {
    /// On a stream whose reads end after a while.
    pub(crate) fn on(stream: S) -> Self {
        Self { stream, buffer: Vec::new(), came: Vec::new(), ended: false, pings: 0 }
    }

    /// Sends; false if the other side has ended the connection.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).and_then(|()| self.stream.flush()).is_ok()
    }

    /// Reads until `enough` has come or the connection has ended, and answers pings; false if it takes too long.
    pub(crate) fn until(&mut self, enough: impl Fn(&Frame) -> bool) -> bool {
        let deadline = Instant::now() + LONG;
        let mut looked = 0;
        loop {
            while self.buffer.len() >= 9 {
                let length = u32::from_be_bytes([0, self.buffer[0], self.buffer[1], self.buffer[2]]) as usize;
                if self.buffer.len() < 9 + length {
                    break;
                }
                let bytes: Vec<u8> = self.buffer.drain(..9 + length).collect();
                let stream = u32::from_be_bytes([bytes[5], bytes[6], bytes[7], bytes[8]]);
                let payload = bytes[9..].to_vec();
                if (bytes[3], bytes[4]) == (PING, 0) {
                    self.send(&frame(PING, ACK, 0, &payload));
                }
                self.came.push(Frame { kind: bytes[3], flags: bytes[4], stream, payload });
            }
            if self.came[looked..].iter().any(&enough) {
                return true;
            }
            looked = self.came.len();
            if self.ended || Instant::now() > deadline {
                return false;
            }
            let mut piece = [0; 16 << 10];
            match self.stream.read(&mut piece) {
                Ok(0) => self.ended = true,
                Ok(length) => self.buffer.extend(&piece[..length]),
                Err(error)
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                    ) => {}
                Err(_) => self.ended = true,
            }
        }
    }

    /// Reads until the connection has ended.
    pub(crate) fn end(&mut self) -> bool {
        self.until(|_| false);
        self.ended
    }

    /// Sends a request and waits for its response's status.
    pub(crate) fn ask(&mut self, stream: u32, path: &str) -> Option<Frame> {
        self.send(&get(stream, path));
        self.until(|frame| frame.stream == stream && matches!(frame.kind, HEADERS | RST_STREAM));
        self.came.iter().find(|frame| frame.stream == stream && frame.kind == HEADERS).cloned()
    }

    /// Whether it still answers, by a ping.
    pub(crate) fn is_alive(&mut self) -> bool {
        self.pings += 1;
        let payload = self.pings.to_be_bytes();
        self.send(&frame(PING, 0, 0, &payload));
        self.until(|frame| frame.kind == PING && frame.flags == ACK && frame.payload == payload)
    }

    /// The code of the GOAWAY that has come.
    pub(crate) fn goaway(&self) -> Option<u32> {
        self.came.iter().rfind(|frame| frame.kind == GOAWAY)?.code()
    }
}
