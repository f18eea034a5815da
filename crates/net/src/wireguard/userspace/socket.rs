//! The UDP socket of a device: one for IPv4 and IPv6, many datagrams in one call of the kernel.
//!
//! Invariant: addresses that leave this file are as people write them: IPv4 is never mapped into IPv6.

use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use rustix::net::{
    AddressFamily, SocketType, bind, socket, sockopt,
    sockopt::{Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery},
};
use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};
use tokio::{io::Interest, net::UdpSocket};
use tracing::debug;

/// Room for some milliseconds of a fast network while the task that empties it waits for a processor. The kernel counts
/// what it takes only when it is used.
const RECEIVE_BUFFER: usize = 4 << 20;

pub(super) struct Socket {
    io: UdpSocket,
    state: UdpSocketState,
    /// Whether the socket is an IPv6 one, and IPv4 is mapped.
    six: bool,
}

impl Socket {
    pub(super) fn bind(port: u16) -> io::Result<Self> {
        let (socket, six) = match dual(port) {
            Ok(socket) => (socket, true),
            // IPv6 is not compiled in, or switched off: EAFNOSUPPORT, EADDRNOTAVAIL.
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                (std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?, false)
            }
            Err(error) => return Err(error),
        };
        let state = UdpSocketState::new((&socket).into())?;
        // That made packets which fit no link on their way be dropped. Like the kernel's WireGuard, fragment them.
        // (Over IPv6 there is no safe call that undoes it; the device's MTU makes it rare.)
        sockopt::set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::DONT)?;
        if six {
            sockopt::set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::DONT)?;
        }
        // Above the limit for everybody, which is small, only with CAP_NET_ADMIN.
        if sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER).is_err() {
            sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER)?;
        }
        socket.set_nonblocking(true)?;
        Ok(Self { io: UdpSocket::from_std(socket)?, state, six })
    }

    /// How many datagrams one call may send.
    pub(super) fn most_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    /// Sends `content`, cut into datagrams of `segment` bytes (the last may be shorter). Waits while the socket's buffer
    /// is full. What cannot be sent is lost: WireGuard sends again what matters to it, and so do those above it.
    pub(super) async fn send(&self, to: SocketAddr, content: &[u8], segment: Option<usize>) {
        let destination = if self.six { SocketAddr::new(mapped(to.ip()), to.port()) } else { to };
        let transmit =
            Transmit { destination, ecn: None, contents: content, segment_size: segment, src_ip: None };
        let sent =
            self.io.async_io(Interest::WRITABLE, || self.state.try_send((&self.io).into(), &transmit)).await;
        if let Err(error) = sent {
            debug!(%to, bytes = content.len(), %error, "a WireGuard packet could not be sent");
        }
    }

    /// Waits for datagrams, and gives how many of the buffers have some. Those of one buffer came from one sender and
    /// are `stride` bytes each (the last may be shorter).
    pub(super) async fn receive(
        &self,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> io::Result<usize> {
        let receive = || self.state.recv((&self.io).into(), buffers, meta);
        let count = self.io.async_io(Interest::READABLE, receive).await?;
        for meta in &mut meta[..count] {
            meta.addr.set_ip(meta.addr.ip().to_canonical());
        }
        Ok(count)
    }
}

fn dual(port: u16) -> io::Result<std::net::UdpSocket> {
    let socket = socket(AddressFamily::INET6, SocketType::DGRAM, None)?;
    sockopt::set_ipv6_v6only(&socket, false)?;
    bind(&socket, &SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))?;
    Ok(socket.into())
}

fn mapped(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().into(),
        IpAddr::V6(_) => address,
    }
}
