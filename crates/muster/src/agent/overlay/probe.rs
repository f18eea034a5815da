//! The overlay's doctor: asks every peer through the overlay, and names who is to blame for what does not come back.

use api::network::{Finding, Findings, NetworkPeer};
use muster_core::overlay::{Culprit, Desired, Probes, diagnose};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, sockopt};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

/// A packet between machines of one cluster takes a fraction of this.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often a packet is sent before it counts as lost.
const ATTEMPTS: u16 = 2;
/// Headers of IPv4 and ICMP, in bytes.
const HEADERS: usize = 28;
/// What a small probe carries.
const SMALL: usize = 56;
/// Nobody listens there (RFC 863's discard): a refusal is an answer.
const PORT: u16 = 9;

/// What is examined: one family's datapath, and how its packets travel.
#[derive(Debug, Clone, Default)]
pub(super) struct Patient {
    pub(super) desired: Option<Desired>,
    pub(super) peers: Vec<NetworkPeer>,
    pub(super) transport: String,
}

/// Examines all peers at once.
pub(super) async fn examine(patient: Patient) -> Findings {
    let Some(desired) = patient.desired else { return Findings::default() };
    let mut probes = tokio::task::JoinSet::new();
    for (net, peer) in &desired.peers {
        let (IpAddr::V4(base), IpAddr::V4(machine)) = (net.network(), peer.public_ip) else { continue };
        // Where there is no device of ours on the other side, the container bridge is what answers.
        let inside = if desired.tunnel.is_some() { base } else { Ipv4Addr::from(u32::from(base) + 1) };
        let view = patient.peers.iter().find(|view| view.subnet == net.to_string()).cloned();
        let Some(view) = view else { continue };
        let device = desired.device().unwrap_or(&desired.underlay).to_owned();
        let (transport, mtu) = (patient.transport.clone(), desired.mtu);
        probes.spawn_blocking(move || one(view, inside, machine, &transport, &device, mtu));
    }
    let mut peers: Vec<Finding> = probes.join_all().await;
    peers.sort_by(|one, other| one.peer.subnet.cmp(&other.peer.subnet));
    Findings { peers }
}

fn one(
    peer: NetworkPeer,
    inside: Ipv4Addr,
    machine: Ipv4Addr,
    transport: &str,
    device: &str,
    mtu: u32,
) -> Finding {
    let full = usize::try_from(mtu).unwrap_or_default().saturating_sub(HEADERS);
    let small = ping(inside, SMALL);
    let probes = Probes {
        small: small.is_some(),
        full: small.is_some() && ping(inside, full).is_some(),
        tcp: answers_tcp(inside),
        underlay: ping(machine, SMALL).is_some() || answers_tcp(machine),
    };
    let (culprit, remedy) = diagnose(probes, transport, device, mtu);
    let culprit = match culprit {
        Culprit::Nobody => "nobody",
        Culprit::Underlay => "underlay",
        Culprit::Firewall => "firewall",
        Culprit::Mtu => "mtu",
        Culprit::Checksum => "checksum",
    };
    Finding {
        peer,
        round_trip: small.map(|taken| u64::try_from(taken.as_micros()).unwrap_or(u64::MAX)),
        underlay: probes.underlay,
        full_size: probes.full,
        tcp: probes.tcp,
        culprit: culprit.to_owned(),
        remedy,
    }
}

fn answers_tcp(to: Ipv4Addr) -> bool {
    match std::net::TcpStream::connect_timeout(&SocketAddr::new(to.into(), PORT), PATIENCE) {
        Ok(_) => true,
        Err(error) => error.kind() == io::ErrorKind::ConnectionRefused,
    }
}

/// An echo with `size` bytes that must not be fragmented; how long it took.
fn ping(to: Ipv4Addr, size: usize) -> Option<Duration> {
    let socket = socket().ok()?;
    let id = u16::try_from(std::process::id() & 0xffff).unwrap_or_default();
    (1..=ATTEMPTS).find_map(|sequence| {
        let start = Instant::now();
        let packet = echo(id, sequence, size);
        rustix::net::sendto(&socket, &packet, SendFlags::empty(), &SocketAddrV4::new(to, 0)).ok()?;
        let mut buffer = vec![0; size + 256];
        while start.elapsed() < PATIENCE {
            let (read, _, from) = rustix::net::recvfrom(&socket, &mut buffer[..], RecvFlags::empty()).ok()?;
            let from = from.and_then(|from| SocketAddrV4::try_from(from).ok());
            if from.is_some_and(|from| *from.ip() == to) && is_reply(&buffer[..read], id, sequence) {
                return Some(start.elapsed());
            }
        }
        None
    })
}

fn socket() -> io::Result<OwnedFd> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP))?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE))?;
    sockopt::set_ip_mtu_discover(&socket, sockopt::Ipv4PathMtuDiscovery::DO)?;
    Ok(socket)
}

/// RFC 792: an echo request.
fn echo(id: u16, sequence: u16, size: usize) -> Vec<u8> {
    let mut packet = vec![8, 0, 0, 0];
    packet.extend(id.to_be_bytes());
    packet.extend(sequence.to_be_bytes());
    packet.resize(8 + size, 0x6d);
    let sum = packet
        .chunks(2)
        .fold(0_u32, |sum, pair| sum + u32::from(pair[0]) * 256 + pair.get(1).copied().map_or(0, u32::from));
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    let checksum = !u16::try_from(folded & 0xffff).unwrap_or_default();
    packet[2..4].copy_from_slice(&checksum.to_be_bytes());
    packet
}

/// Behind the IPv4 header, which a raw socket gives too.
fn is_reply(packet: &[u8], id: u16, sequence: u16) -> bool {
    let header = packet.first().map_or(0, |first| usize::from(first & 0xf) * 4);
    let Some(icmp) = packet.get(header..header + 8) else { return false };
    icmp[0] == 0 && icmp[4..6] == id.to_be_bytes() && icmp[6..8] == sequence.to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_carries_its_checksum() {
        for size in [0, 1, 56, 1422] {
            let packet = echo(7, 1, size);
            let sum: u32 = packet
                .chunks(2)
                .map(|pair| u32::from(pair[0]) * 256 + pair.get(1).copied().map_or(0, u32::from))
                .sum();
            assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "{size}");
        }
    }
}
