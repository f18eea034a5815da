//! What nftables has of our rules, read over netlink and not by a program: cheap enough to look at every announcement.
//!
//! Not here: what the rules should be. Only whether they are still those that were there after we put them in place.
//! Rules of `iptables` are seen where it stores them in nftables, as it does by default since 2018.

use crate::NetError;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash, Hasher},
    io,
    time::Duration,
};

/// The kernel answers at once, or it is busy with a large change of rules.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

// From linux/netlink.h, linux/netfilter/nfnetlink.h and linux/netfilter/nf_tables.h.
const NETLINK_NETFILTER: isize = 12;
const GROUP_NFTABLES: u32 = 7;
const SUBSYSTEM: u16 = 10 << 8;
const GET_CHAIN: u16 = 4;
const GET_RULE: u16 = 7;
const GET_SET_ELEMENTS: u16 = 13;
const REQUEST_DUMP: u16 = 0x301;
const INET: u8 = 1;
const IPV4: u8 = 2;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const HEADER: usize = 16;
const GENERIC: usize = 4;

/// A socket that hears every change of nftables' rules.
pub(crate) fn listen() -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
    socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
    socket.socket_mut().add_membership(GROUP_NFTABLES)?;
    Ok(socket)
}

/// A number that stays the same as long as our rules do, and changes with any of them. `sets` are those that the rules
/// speak of.
pub async fn rules_mark(sets: &[String]) -> Result<u64, NetError> {
    let read = async {
        let mut asker = Asker::new()?;
        let mut hasher = DefaultHasher::new();
        for message in asker.dump(GET_RULE, INET, &[(1, "muster")]).await? {
            (text(&message, 2), bytes(&message, 3)).hash(&mut hasher);
        }
        for set in sets {
            for message in asker.dump(GET_SET_ELEMENTS, INET, &[(1, "muster"), (2, set.as_str())]).await? {
                bytes(&message, 3).hash(&mut hasher);
            }
        }
        for message in asker.dump(GET_CHAIN, IPV4, &[]).await? {
            let (table, name) = (text(&message, 1), text(&message, 3));
            if table == "filter" && (name == "DOCKER-USER" || name.starts_with("MUSTER-")) {
                name.hash(&mut hasher);
            }
        }
        for message in asker.dump(GET_RULE, IPV4, &[(1, "filter")]).await? {
            let chain = text(&message, 2);
            let jumps = || message.windows(7).any(|window| window == b"MUSTER-");
            let jump = ["FORWARD", "DOCKER-USER"].contains(&chain.as_str()) && jumps();
            if jump || chain.starts_with("MUSTER-") {
                (chain, bytes(&message, 3)).hash(&mut hasher);
            }
        }
        Ok(hasher.finish())
    };
    let answered = tokio::time::timeout(ANSWER_TIMEOUT, read).await;
    let timeout = || NetError::Timeout { from: "nftables".to_owned(), seconds: ANSWER_TIMEOUT.as_secs() };
    answered
        .map_err(|_| timeout())?
        .map_err(|source| NetError::Refused { action: "read nftables' rules".to_owned(), source })
}

/// One question after the other.
struct Asker {
    socket: TokioSocket,
    sequence: u32,
}

impl Asker {
    fn new() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// The attributes of each thing that the kernel lists; none where there is no such table or set.
    async fn dump(&mut self, what: u16, family: u8, attributes: &[(u16, &str)]) -> io::Result<Vec<Vec<u8>>> {
        self.sequence += 1;
        let request = request(what, family, self.sequence, attributes);
        self.socket.send_to(&request, &SocketAddr::new(0, 0)).await?;
        let mut items = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full().await?;
            for (kind, sequence, body) in messages(&datagram) {
                match kind {
                    _ if sequence != self.sequence => {}
                    DONE => return Ok(items),
                    ERROR => match i32::from_ne_bytes(
                        body.get(..4).and_then(|b| b.try_into().ok()).unwrap_or_default(),
                    ) {
                        // ENOENT: it is not there. EAFNOSUPPORT, EOPNOTSUPP: nor could it be.
                        0 | -2 | -97 | -95 => return Ok(items),
                        code => return Err(io::Error::from_raw_os_error(-code)),
                    },
                    _ => items.extend(body.get(GENERIC..).map(<[u8]>::to_vec)),
                }
            }
        }
    }
}

fn request(what: u16, family: u8, sequence: u32, attributes: &[(u16, &str)]) -> Vec<u8> {
    let mut message = vec![0; HEADER];
    message.extend([family, 0, 0, 0]);
    for (kind, value) in attributes {
        let length = u16::try_from(4 + value.len() + 1).unwrap_or(u16::MAX);
        message.extend(length.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(value.as_bytes());
        message.push(0);
        message.resize(message.len().next_multiple_of(4), 0);
    }
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    message[..4].copy_from_slice(&length.to_ne_bytes());
    message[4..6].copy_from_slice(&(SUBSYSTEM | what).to_ne_bytes());
    message[6..8].copy_from_slice(&REQUEST_DUMP.to_ne_bytes());
    message[8..12].copy_from_slice(&sequence.to_ne_bytes());
    message
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

/// The value of an attribute; empty where there is none.
fn bytes(mut attributes: &[u8], wanted: u16) -> &[u8] {
    while let [a, b, c, d, ..] = *attributes {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        // The two highest bits say how the value is encoded.
        let kind = u16::from_ne_bytes([c, d]) & 0x3fff;
        let Some(value) = attributes.get(4..length) else { break };
        if kind == wanted {
            return value;
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    &[]
}

fn text(attributes: &[u8], wanted: u16) -> String {
    let value = bytes(attributes, wanted);
    String::from_utf8_lossy(value.strip_suffix(b"\0").unwrap_or(value)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers_have_netlinks_form() {
        let message = request(GET_RULE, INET, 7, &[(1, "muster")]);
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
