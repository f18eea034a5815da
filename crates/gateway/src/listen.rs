//! Listening sockets: one for each worker on each address, so that the kernel spreads connections over them.
//!
//! They outlive what accepts on them. Whoever takes over gets the sockets themselves, with the connections that wait in
//! their queues; a second socket on the same address would leave those behind. Invariant: an address is never without a
//! listening socket from the first start to the last stop.

use crate::GatewayError;
use socket2::{Domain, Socket, Type};
use std::collections::BTreeMap;
use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// How many connections may wait for a worker to accept them.
const QUEUE: i32 = 4096;

/// What a socket is for. Its text is the name under which systemd keeps it (`FDNAME=`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Listener {
    /// HTTP on an address.
    Http(SocketAddr),
    /// HTTPS on an address.
    Https(SocketAddr),
    /// A service's port.
    Tcp(u16),
}

impl Listener {
    pub(crate) fn is_tls(&self) -> bool {
        matches!(self, Self::Https(_))
    }
}

/// A name that systemd takes: no colon.
impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dashed = |address: &SocketAddr| address.to_string().replace(':', "_");
        match self {
            Self::Http(address) => write!(f, "muster-http-{}", dashed(address)),
            Self::Https(address) => write!(f, "muster-https-{}", dashed(address)),
            Self::Tcp(port) => write!(f, "muster-tcp-{port}"),
        }
    }
}

/// A name that is not one of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no listener of the gateway")]
pub struct ListenerError(String);

impl FromStr for Listener {
    type Err = ListenerError;
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let address = |text: &str| text.replace('_', ":").parse().ok();
        let found = if let Some(rest) = name.strip_prefix("muster-https-") {
            address(rest).map(Self::Https)
        } else if let Some(rest) = name.strip_prefix("muster-http-") {
            address(rest).map(Self::Http)
        } else {
            name.strip_prefix("muster-tcp-").and_then(|port| port.parse().ok()).map(Self::Tcp)
        };
        found.ok_or_else(|| ListenerError(name.to_owned()))
    }
}

/// Sockets of a gateway that was here before, by what they are for.
pub type Inherited = Vec<(Listener, OwnedFd)>;

/// The sockets of one listener.
#[derive(Debug, Clone)]
pub(crate) struct Sockets {
    /// Tells sockets apart that replaced others.
    pub(crate) id: usize,
    sockets: Arc<Vec<TcpListener>>,
}

impl Sockets {
    /// Those that a worker accepts on: every socket is some worker's.
    pub(crate) fn of(&self, worker: usize, threads: usize) -> impl Iterator<Item = &TcpListener> {
        let share = self.sockets.iter().enumerate();
        share.filter(move |(index, _)| index % threads == worker).map(|(_, socket)| socket)
    }

    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.sockets.first()?.local_addr().ok()
    }
}

static IDS: AtomicUsize = AtomicUsize::new(0);

/// Binds an address, on as many sockets as there are threads. Those that were inherited are used first.
pub(crate) fn bind(
    address: SocketAddr,
    threads: usize,
    inherited: Vec<OwnedFd>,
) -> Result<Sockets, GatewayError> {
    let error = |source| GatewayError::Listen { address, source };
    let mut sockets: Vec<TcpListener> = inherited.into_iter().map(Into::into).collect();
    for socket in &sockets {
        socket.set_nonblocking(true).map_err(error)?;
    }
    let mut address = address;
    while sockets.len() < threads {
        let socket =
            Socket::new(Domain::for_address(address), Type::STREAM.cloexec(), None).map_err(error)?;
        if address.is_ipv6() {
            socket.set_only_v6(true).map_err(error)?;
        }
        socket.set_reuse_address(true).map_err(error)?;
        socket.set_reuse_port(true).map_err(error)?;
        socket.set_nonblocking(true).map_err(error)?;
        socket.bind(&address.into()).map_err(error)?;
        socket.listen(QUEUE).map_err(error)?;
        let socket: TcpListener = socket.into();
        // Port 0 is a free one, the same for all.
        address = socket.local_addr().map_err(error)?;
        sockets.push(socket);
    }
    Ok(Sockets { id: IDS.fetch_add(1, Relaxed), sockets: Arc::new(sockets) })
}

/// Copies of all sockets, for whoever takes over.
pub(crate) fn copies(all: &BTreeMap<Listener, Sockets>) -> std::io::Result<Inherited> {
    let mut copies = Vec::new();
    for (listener, sockets) in all {
        for socket in sockets.sockets.iter() {
            copies.push((listener.clone(), socket.try_clone()?.into()));
        }
    }
    Ok(copies)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_systemd() {
        for listener in [
            Listener::Http("0.0.0.0:80".parse().expect("an address")),
            Listener::Https("[::1]:443".parse().expect("an address")),
            Listener::Tcp(5432),
        ] {
            let name = listener.to_string();
            assert!(!name.contains(':') && name.len() < 256);
            assert_eq!(name.parse(), Ok(listener));
        }
        assert!("stored".parse::<Listener>().is_err());
    }
}
