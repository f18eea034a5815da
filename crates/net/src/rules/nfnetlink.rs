//! nftables' own netlink, as far as rules are looked at and sets are changed here: what a program would be too slow for.
//!
//! Not here: what is asked or changed. Invariant: a change is one transaction, of which everything happens or nothing.

use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use std::io;

// From linux/netlink.h, linux/netfilter/nfnetlink.h and linux/netfilter/nf_tables.h.
const NETLINK_NETFILTER: isize = 12;
const GROUP_NFTABLES: u32 = 7;
const SUBSYSTEM: u16 = 10 << 8;
pub(super) const GET_CHAIN: u16 = 4;
pub(super) const GET_RULE: u16 = 7;
pub(super) const NEW_SET_ELEMENTS: u16 = 12;
pub(super) const GET_SET_ELEMENTS: u16 = 13;
pub(super) const DELETE_SET_ELEMENTS: u16 = 14;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const REQUEST: u16 = 0x1;
const ACKNOWLEDGE: u16 = 0x4;
const DUMP: u16 = 0x300;
const CREATE: u16 = 0x400;
const NESTED: u16 = 0x8000;
pub(super) const INET: u8 = 1;
pub(super) const IPV4: u8 = 2;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const HEADER: usize = 16;
const GENERIC: usize = 4;

/// A socket that hears every change of nftables' rules.
pub(crate) fn listen() -> io::Result<TokioSocket> {
    let mut socket = open()?;
    socket.socket_mut().add_membership(GROUP_NFTABLES)?;
    Ok(socket)
}

fn open() -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
    socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// One question or change after the other.
pub(super) struct Asker {
    socket: TokioSocket,
    sequence: u32,
}

impl Asker {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { socket: open()?, sequence: 0 })
    }

    /// The attributes of each thing that the kernel lists; none where there is no such table or set.
    pub(super) async fn dump(
        &mut self,
        what: u16,
        family: u8,
        attributes: &[(u16, &str)],
    ) -> io::Result<Vec<Vec<u8>>> {
        self.sequence += 1;
        let attributes: Vec<u8> = attributes.iter().flat_map(|(kind, value)| string(*kind, value)).collect();
        let head = Head { kind: SUBSYSTEM | what, flags: REQUEST | DUMP, sequence: self.sequence, family };
        self.send(&head.message(0, &attributes)).await?;
        let mut items = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full().await?;
            for (kind, sequence, body) in messages(&datagram) {
                match kind {
                    _ if sequence != self.sequence => {}
                    DONE => return Ok(items),
                    ERROR => match code(body) {
                        // ENOENT: it is not there. EAFNOSUPPORT, EOPNOTSUPP: nor could it be.
                        0 | -2 | -97 | -95 => return Ok(items),
                        code => return Err(io::Error::from_raw_os_error(-code)),
                    },
                    _ => items.extend(body.get(GENERIC..).map(<[u8]>::to_vec)),
                }
            }
        }
    }

    /// Carries out all changes, or none: each is a kind and its attributes.
    pub(super) async fn commit(&mut self, family: u8, changes: &[(u16, Vec<u8>)]) -> io::Result<()> {
        let first = self.sequence + 1;
        let edge = |kind, sequence| Head { kind, flags: REQUEST, sequence, family: 0 }.message(10, &[]);
        let mut batch = edge(BATCH_BEGIN, 0);
        for (kind, attributes) in changes {
            self.sequence += 1;
            let flags = REQUEST | ACKNOWLEDGE | if *kind == NEW_SET_ELEMENTS { CREATE } else { 0 };
            let head = Head { kind: SUBSYSTEM | kind, flags, sequence: self.sequence, family };
            batch.extend(head.message(0, attributes));
        }
        batch.extend(edge(BATCH_END, 0));
        self.send(&batch).await?;
        let mut acknowledged = 0;
        while acknowledged < changes.len() {
            let (datagram, _) = self.socket.recv_from_full().await?;
            for (kind, sequence, body) in messages(&datagram) {
                match code(body) {
                    _ if kind != ERROR => {}
                    0 => acknowledged += usize::from((first..=self.sequence).contains(&sequence)),
                    code => return Err(io::Error::from_raw_os_error(-code)),
                }
            }
        }
        Ok(())
    }

    async fn send(&mut self, datagram: &[u8]) -> io::Result<()> {
        self.socket.send_to(datagram, &SocketAddr::new(0, 0)).await.map(drop)
    }
}

/// What a message begins with.
struct Head {
    kind: u16,
    flags: u16,
    sequence: u32,
    family: u8,
}

impl Head {
    /// `resource` is the subsystem of a batch.
    fn message(&self, resource: u16, attributes: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER + GENERIC + attributes.len()).unwrap_or(u32::MAX);
        let mut message = Vec::with_capacity(HEADER + GENERIC + attributes.len());
        message.extend(length.to_ne_bytes());
        message.extend(self.kind.to_ne_bytes());
        message.extend(self.flags.to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend([0; 4]);
        message.extend([self.family, 0]);
        message.extend(resource.to_be_bytes());
        message.extend(attributes);
        message
    }
}

/// An attribute, padded.
pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut attribute = Vec::with_capacity(4 + value.len().next_multiple_of(4));
    attribute.extend(length.to_ne_bytes());
    attribute.extend(kind.to_ne_bytes());
    attribute.extend(value);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    attribute
}

/// An attribute that consists of attributes.
pub(super) fn nested(kind: u16, attributes: &[u8]) -> Vec<u8> {
    attribute(kind | NESTED, attributes)
}

/// An attribute that is a text.
pub(super) fn string(kind: u16, value: &str) -> Vec<u8> {
    attribute(kind, &[value.as_bytes(), b"\0"].concat())
}

/// The kernel's answer: 0, or the negative of an errno(3).
fn code(body: &[u8]) -> i32 {
    body.get(..4).and_then(|bytes| bytes.try_into().ok()).map_or(0, i32::from_ne_bytes)
}

/// Type, sequence number and body of each message in a datagram.
fn messages(mut datagram: &[u8]) -> Vec<(u16, u32, &[u8])> {
    let mut messages = Vec::new();
    while let Some(length) = number(datagram, 0).filter(|length| (HEADER..=datagram.len()).contains(length)) {
        let kind = u16::from_ne_bytes([datagram[4], datagram[5]]);
        let sequence = u32::from_ne_bytes([datagram[8], datagram[9], datagram[10], datagram[11]]);
        messages.push((kind, sequence, &datagram[HEADER..length]));
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    messages
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..at + 4)?.try_into().ok()?;
    usize::try_from(u32::from_ne_bytes(bytes)).ok()
}

/// Kind and value of each attribute.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [a, b, c, d, ..] = *bytes else { return None };
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        // The two highest bits say how the value is encoded.
        Some((u16::from_ne_bytes([c, d]) & 0x3fff, value))
    })
}

/// The value of an attribute; empty where there is none.
pub(super) fn bytes(all: &[u8], wanted: u16) -> &[u8] {
    attributes(all).find(|(kind, _)| *kind == wanted).map(|(_, value)| value).unwrap_or_default()
}

/// The same as a text.
pub(super) fn text(all: &[u8], wanted: u16) -> String {
    let value = bytes(all, wanted);
    String::from_utf8_lossy(value.strip_suffix(b"\0").unwrap_or(value)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers_have_netlinks_form() {
        let head = Head { kind: SUBSYSTEM | GET_RULE, flags: REQUEST | DUMP, sequence: 7, family: INET };
        let message = head.message(0, &string(1, "muster"));
        assert_eq!(message.len(), HEADER + GENERIC + 12);
        let read = messages(&message);
        assert_eq!(read.len(), 1);
        let (kind, sequence, body) = read[0];
        assert_eq!((kind, sequence), (SUBSYSTEM | GET_RULE, 7));
        assert_eq!(text(&body[GENERIC..], 1), "muster");
        assert_eq!(bytes(&body[GENERIC..], 2), b"");
        for end in 0..message.len() {
            assert!(messages(&message[..end]).is_empty(), "half a message is none");
        }
    }
}
