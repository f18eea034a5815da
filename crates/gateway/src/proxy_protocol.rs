//! PROXY protocol: for whom a proxy before us speaks, and for whom we speak to an endpoint.
//!
//! Versions 1 and 2 are read, version 2 is written (haproxy's `proxy-protocol.txt`). Invariant: not one byte after the
//! header is lost, and a connection that must have one and has not is refused.

use bytes::{Buf, BytesMut};
use std::io;
use std::net::{IpAddr, SocketAddr};
use tokio::io::{AsyncRead, AsyncReadExt};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// The longest header of version 1, its line end included.
const LONGEST_LINE: usize = 107;
/// The longest header of version 2 that is read; the rest of it is extensions.
const LONGEST: usize = 4096;

/// Reads the header; what came behind it stays in `early`. None if the proxy speaks for itself.
pub(crate) async fn read<S: AsyncRead + Unpin>(
    stream: &mut S,
    early: &mut BytesMut,
) -> io::Result<Option<SocketAddr>> {
    loop {
        if let Some((length, client)) = parse(early)? {
            early.advance(length);
            return Ok(client);
        }
        early.reserve(1024);
        if stream.read_buf(early).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn refused(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// The header's length and what it says; nothing while it is not complete.
fn parse(bytes: &[u8]) -> io::Result<Option<(usize, Option<SocketAddr>)>> {
    let known = bytes.len().min(SIGNATURE.len());
    if bytes[..known] == SIGNATURE[..known] {
        return binary(bytes);
    }
    let known = bytes.len().min(6);
    if bytes[..known] != b"PROXY "[..known] {
        return Err(refused("the connection does not begin with the PROXY protocol"));
    }
    let Some(end) = bytes.windows(2).position(|pair| pair == b"\r\n") else {
        return if bytes.len() >= LONGEST_LINE { Err(refused("PROXY line is too long")) } else { Ok(None) };
    };
    let line = bytes.get(6..end).and_then(|line| str::from_utf8(line).ok());
    let mut words = line.ok_or_else(|| refused("PROXY line is no text"))?.split(' ');
    let client = match words.next() {
        Some("UNKNOWN") => None,
        Some("TCP4" | "TCP6") => {
            let ip = words.next().and_then(|ip| ip.parse::<IpAddr>().ok());
            let port = words.nth(1).and_then(|port| port.parse::<u16>().ok());
            let both = ip.zip(port).ok_or_else(|| refused("PROXY line names no client"))?;
            Some(SocketAddr::from(both))
        }
        _ => return Err(refused("PROXY line of an unknown kind")),
    };
    Ok(Some((end + 2, client)))
}

fn binary(bytes: &[u8]) -> io::Result<Option<(usize, Option<SocketAddr>)>> {
    let Some(head) = bytes.get(12..16) else { return Ok(None) };
    if head[0] >> 4 != 2 {
        return Err(refused("PROXY header of an unknown version"));
    }
    let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
    if length > LONGEST {
        return Err(refused("PROXY header is too long"));
    }
    let Some(rest) = bytes.get(16..16 + length) else { return Ok(None) };
    let client = match (head[0] & 0xf, head[1]) {
        (0, _) => None, // LOCAL: the proxy checks that we are here
        (1, 0x11) if length >= 12 => {
            let ip: [u8; 4] = rest[..4].try_into().map_err(|_| refused("PROXY header is too short"))?;
            Some(SocketAddr::from((ip, u16::from_be_bytes([rest[8], rest[9]]))))
        }
        (1, 0x21) if length >= 36 => {
            let ip: [u8; 16] = rest[..16].try_into().map_err(|_| refused("PROXY header is too short"))?;
            Some(SocketAddr::from((ip, u16::from_be_bytes([rest[32], rest[33]]))))
        }
        (1, 0x00) => None,
        _ => return Err(refused("PROXY header of an unknown kind")),
    };
    Ok(Some((16 + length, client)))
}

/// A header of version 2.
pub(crate) fn header(client: SocketAddr, own: SocketAddr) -> Vec<u8> {
    let mut bytes = SIGNATURE.to_vec();
    let (family, addresses) = match (client.ip().to_canonical(), own.ip().to_canonical()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => (0x11, [&from.octets()[..], &to.octets()[..]].concat()),
        (from, to) => {
            let six = |ip: IpAddr| match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                IpAddr::V6(ip) => ip.octets(),
            };
            (0x21, [six(from), six(to)].concat())
        }
    };
    bytes.extend([0x21, family]);
    bytes.extend((addresses.len() as u16 + 4).to_be_bytes());
    bytes.extend(addresses);
    bytes.extend(client.port().to_be_bytes());
    bytes.extend(own.port().to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_read_and_the_rest_is_kept() {
        let client: SocketAddr = "192.0.2.7:1234".parse().expect("an address");
        let six: SocketAddr = "[2001:db8::7]:1234".parse().expect("an address");
        let own: SocketAddr = "192.0.2.1:80".parse().expect("an address");
        let line = b"PROXY TCP4 192.0.2.7 192.0.2.1 1234 80\r\n".to_vec();
        for (header, wanted) in [
            (line, Some(client)),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (header(client, own), Some(client)),
            (header(six, own), Some(six)),
        ] {
            let whole = [&header[..], b"GET"].concat();
            assert_eq!(parse(&whole).expect("valid"), Some((header.len(), wanted)));
            for cut in 0..header.len() {
                assert_eq!(parse(&header[..cut]).expect("so far"), None, "{cut}");
            }
        }
        for bad in [&b"GET / HTTP/1.1\r\n"[..], b"PROXY TCP4 x y 1 2\r\n", b"PROXY SPX\r\n", &[b'P'; 200]] {
            assert!(parse(bad).is_err());
        }
    }
}
