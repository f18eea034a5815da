//! Sockets: who asks, over what, and how many at a time.
//!
//! Listening begins before an address is there (`IP_FREEBIND`): the containers' bridge comes with Docker, which may
//! start later. Invariant: nothing that one client does keeps others from their answers, as far as the processor goes.

use crate::{
    config::{DnsConfig, DnsError},
    forward::Forwarder,
    message::{self, Incoming, Transport},
    metrics::{Metrics, count},
};
use hickory_proto::op::{Message, ResponseCode};
use ipnet::IpNet;
use muster_core::dns::Snapshot;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// Connections at a time. Each costs a task and a socket; clients come with TCP only for long answers.
const CONNECTIONS: usize = 128;

/// How long a connection may say nothing.
const IDLE: Duration = Duration::from_secs(10);

/// How often an address that somebody else has is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Questions about other names of one socket that are under way. The forwarder has a bound of its own, for all.
const WAITING: usize = 512;

/// A name server.
#[derive(Debug)]
pub struct Server {
    sockets: Vec<(SocketAddr, Option<Sockets>)>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    allow: Vec<IpNet>,
    forwarder: Forwarder,
    metrics: Arc<Metrics>,
    seed: AtomicU64,
}

#[derive(Debug)]
struct Sockets {
    udp: UdpSocket,
    tcp: TcpListener,
}

/// Answers questions until `cancel`. The snapshot is looked at for each question; whoever replaces it does not wait for
/// anybody. Fails only for what is wrong in the configuration: an address that somebody else has is tried again and again.
pub async fn serve(
    config: &DnsConfig,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    cancel: CancellationToken,
) -> Result<(), DnsError> {
    Server::new(config)?.run(snapshot, cancel).await;
    Ok(())
}

impl Server {
    /// Checks the configuration, and listens wherever that works at once.
    pub fn new(config: &DnsConfig) -> Result<Self, DnsError> {
        config.check()?;
        let upstreams = config.resolvers()?;
        if upstreams.is_empty() {
            warn!("no resolvers for other names than the cluster's: set `upstreams`");
        }
        let metrics = Arc::<Metrics>::default();
        let open = |address: &SocketAddr| match Sockets::open(*address) {
            Ok(sockets) => (sockets.address().unwrap_or(*address), Some(sockets)),
            Err(error) => {
                warn!(%address, %error, "cannot listen for DNS; trying again");
                (*address, None)
            }
        };
        let shared = Shared {
            allow: config.allow.clone(),
            forwarder: Forwarder::new(upstreams, metrics.clone()),
            metrics,
            seed: AtomicU64::new(getrandom::u64().unwrap_or_default()),
        };
        Ok(Self { sockets: config.listen.iter().map(open).collect(), shared: Arc::new(shared) })
    }

    /// Where it listens, or will: with the port that the kernel chose if 0 was configured.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.sockets.iter().map(|(address, _)| *address).collect()
    }

    /// Its counters.
    pub fn metrics(&self) -> Arc<Metrics> {
        self.shared.metrics.clone()
    }

    /// Answers questions until `cancel`.
    pub async fn run(self, snapshot: watch::Receiver<Arc<Snapshot>>, cancel: CancellationToken) {
        let mut tasks = JoinSet::new();
        for (address, sockets) in self.sockets {
            tasks.spawn(listen_on(self.shared.clone(), address, sockets, snapshot.clone()));
        }
        cancel.cancelled().await;
        tasks.shutdown().await;
    }
}

async fn listen_on(
    shared: Arc<Shared>,
    address: SocketAddr,
    mut sockets: Option<Sockets>,
    snapshot: watch::Receiver<Arc<Snapshot>>,
) {
    let sockets = loop {
        match sockets.take() {
            Some(sockets) => break sockets,
            None => sleep(RETRY).await,
        }
        sockets = Sockets::open(address).ok();
    };
    info!(%address, "answering DNS");
    tokio::join!(
        udp(shared.clone(), Arc::new(sockets.udp), snapshot.clone()),
        tcp(shared, sockets.tcp, snapshot)
    );
}

impl Sockets {
    fn open(address: SocketAddr) -> io::Result<Self> {
        // With port 0 TCP's may be taken by chance.
        let mut tries = if address.port() == 0 { 10 } else { 1 };
        loop {
            let udp: std::net::UdpSocket = open(address, SocketType::DGRAM)?.into();
            let bound = udp.local_addr()?;
            match open(bound, SocketType::STREAM) {
                Ok(tcp) => {
                    listen(&tcp, BACKLOG)?;
                    let udp = UdpSocket::from_std(udp)?;
                    return Ok(Self { udp, tcp: TcpListener::from_std(tcp.into())? });
                }
                Err(error) => {
                    tries -= 1;
                    if tries == 0 {
                        return Err(error);
                    }
                }
            }
        }
    }

    fn address(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }
}

fn open(address: SocketAddr, kind: SocketType) -> io::Result<rustix::fd::OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    if kind == SocketType::STREAM {
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    match address {
        SocketAddr::V4(_) => sockopt::set_ip_freebind(&socket, true)?,
        SocketAddr::V6(_) => {
            sockopt::set_ipv6_v6only(&socket, true)?;
            sockopt::set_ipv6_freebind(&socket, true)?;
        }
    }
    bind(&socket, &address)?;
    Ok(socket)
}

async fn udp(shared: Arc<Shared>, socket: Arc<UdpSocket>, snapshot: watch::Receiver<Arc<Snapshot>>) {
    let mut waiting = JoinSet::new();
    // The largest question that is sensible; a longer one is cut off and then malformed.
    let mut buffer = vec![0; 4096];
    loop {
        while waiting.try_join_next().is_some() {}
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                // What became of an earlier answer, or the kernel is short of memory.
                debug!(%error, "could not receive a DNS message");
                sleep(Duration::from_millis(1)).await;
                continue;
            }
        };
        let question = match shared.read(&buffer[..length]) {
            Incoming::Question(question) => question,
            Incoming::Wrong(answer) => {
                let _ = socket.send_to(&answer, from).await;
                continue;
            }
            Incoming::Nothing => continue,
        };
        let known = shared.known(&snapshot, &question, from.ip(), Transport::Udp);
        if known.is_none() && waiting.len() < WAITING {
            let (shared, socket) = (shared.clone(), socket.clone());
            waiting.spawn(async move {
                let answer = shared.forwarder.ask(&question).await;
                shared.send(&socket, answer, &question, from).await;
            });
            continue;
        }
        let answer = known.unwrap_or_else(|| {
            count(&shared.metrics.overloaded);
            message::answer(&question, ResponseCode::ServFail)
        });
        shared.send(&socket, answer, &question, from).await;
    }
}

async fn tcp(shared: Arc<Shared>, listener: TcpListener, snapshot: watch::Receiver<Arc<Snapshot>>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        // Who comes when all places are taken waits in the kernel.
        let Ok(place) = room.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((connection, from)) => {
                count(&shared.metrics.connections);
                let (shared, snapshot) = (shared.clone(), snapshot.clone());
                connections.spawn(async move {
                    if let Err(error) = converse(&shared, connection, from, &snapshot).await {
                        debug!(%from, %error, "a DNS connection ended");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                // No more file descriptors, perhaps.
                debug!(%error, "could not accept a DNS connection");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Question after question, each after its length in two bytes.
async fn converse(
    shared: &Shared,
    mut connection: TcpStream,
    from: SocketAddr,
    snapshot: &watch::Receiver<Arc<Snapshot>>,
) -> io::Result<()> {
    connection.set_nodelay(true)?;
    loop {
        let length = match timeout(IDLE, connection.read_u16()).await? {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut buffer = vec![0; length.into()];
        timeout(IDLE, connection.read_exact(&mut buffer)).await??;
        let answer = match shared.read(&buffer) {
            Incoming::Question(question) => {
                let known = shared.known(snapshot, &question, from.ip(), Transport::Tcp);
                let answer = match known {
                    Some(answer) => answer,
                    None => shared.forwarder.ask(&question).await,
                };
                message::write(answer, Some(&question), Transport::Tcp).map(|(bytes, _)| bytes)
            }
            Incoming::Wrong(answer) => Some(answer),
            // Who does not speak DNS is not waited for.
            Incoming::Nothing => None,
        };
        let Some(answer) = answer else { return Ok(()) };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        timeout(IDLE, connection.write_all(&[&length.to_be_bytes(), answer.as_slice()].concat())).await??;
    }
}

impl Shared {
    fn read(&self, bytes: &[u8]) -> Incoming {
        count(&self.metrics.queries);
        let incoming = message::read(bytes);
        if !matches!(incoming, Incoming::Question(_)) {
            count(&self.metrics.malformed);
        }
        incoming
    }

    /// The answer that needs no upstream. `None`: one must be asked.
    fn known(
        &self,
        snapshot: &watch::Receiver<Arc<Snapshot>>,
        question: &Message,
        from: IpAddr,
        transport: Transport,
    ) -> Option<Message> {
        let snapshot = snapshot.borrow().clone();
        let seed = self.seed.fetch_add(1, Ordering::Relaxed);
        if let Some(answer) = message::decide(&snapshot, question, transport, seed) {
            count(&self.metrics.answered);
            return Some(answer);
        }
        let from = from.to_canonical();
        let is_container = snapshot.network.is_some_and(|network| IpNet::V4(network).contains(&from));
        if !(from.is_loopback() || is_container || self.allow.iter().any(|network| network.contains(&from))) {
            count(&self.metrics.refused);
            return Some(message::answer(question, ResponseCode::Refused));
        }
        self.forwarder.cached(question)
    }

    async fn send(&self, socket: &UdpSocket, answer: Message, question: &Message, to: SocketAddr) {
        let Some((bytes, truncated)) = message::write(answer, Some(question), Transport::Udp) else { return };
        if truncated {
            count(&self.metrics.truncated);
        }
        if let Err(error) = socket.send_to(&bytes, to).await {
            debug!(%to, %error, "a DNS answer could not be sent");
        }
    }
}
