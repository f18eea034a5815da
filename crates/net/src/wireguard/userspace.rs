//! WireGuard in this process: a TUN device, a UDP socket, and `boringtun`'s state machine per peer between them.
//!
//! Three tasks share what is here: `outbound` (device to network), `inbound` (network to device) and the timers. They
//! read a snapshot of the peers per batch of packets, so that replacing peers stops nobody. A peer's state machine and
//! its endpoint are behind locks of their own, because both directions need them and shall run on two processors; no
//! lock is held while a task waits.
//!
//! Nothing queues here without bound: packets wait in the device's queue and the socket's buffer, which the kernel
//! bounds, and before a handshake in the state machine's (256 packets per peer). What does not fit is lost, as on any
//! network.
//!
//! Invariant: a peer's endpoint changes only by `set_peers` or by a packet that its keys authenticated.

use crate::{
    NetError,
    wireguard::{WgPeer, WgPeerState, WireguardConfig, allowed::Allowed, key::PublicKey, seconds},
};
use boringtun::{
    noise::{Tunn, TunnResult, errors::WireGuardError, rate_limiter::RateLimiter},
    x25519,
};
use socket::Socket;
use std::{
    collections::HashMap,
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};
use tracing::{error, info, warn};
use tun_rs::{AsyncDevice, DeviceBuilder};

mod inbound;
mod outbound;
mod socket;

/// WireGuard's timers are in seconds, with a third of one as jitter; a quarter is fine enough for all of them.
const TICK: Duration = Duration::from_millis(250);

/// Handshakes in a second above which a sender must first prove that it receives at its address. Each costs some
/// 200 µs of a processor, so that unproven ones take at most a twentieth of it. A hundred machines that start at once
/// are served in the same second all the same: who is told to prove it does so at once.
const UNPROVEN_HANDSHAKES: u64 = 250;

/// A receiver's index is 32 bits, of which `boringtun` takes the low 8 to number a peer's sessions.
const INDEX_BITS: u32 = 24;

/// The device, with the tasks that work it.
pub(super) struct Device {
    shared: Arc<Shared>,
    index: u32,
    tasks: JoinSet<()>,
}

/// What the tasks share.
struct Shared {
    secret: x25519::StaticSecret,
    public: x25519::PublicKey,
    psk: Option<[u8; 32]>,
    limiter: Arc<RateLimiter>,
    tun: AsyncDevice,
    socket: Socket,
    peers: RwLock<Arc<Peers>>,
    open: AtomicBool,
}

/// A set of peers, never changed.
#[derive(Default)]
struct Peers {
    all: Vec<Entry>,
    by_key: HashMap<PublicKey, usize>,
    by_index: HashMap<u32, usize>,
    allowed: Allowed,
}

/// A peer as it was asked for, and its live part, which survives from set to set.
struct Entry {
    wanted: WgPeer,
    live: Arc<Peer>,
}

struct Peer {
    index: u32,
    tunn: Mutex<Tunn>,
    endpoint: Mutex<SocketAddr>,
    rx_bytes: AtomicU64,
    tx_bytes: AtomicU64,
}

impl Device {
    pub(super) fn open(config: &WireguardConfig) -> Result<Self, NetError> {
        let refused = |action: &str| {
            let action = format!("{action} {}", config.name);
            move |source| NetError::Refused { action, source }
        };
        // First the port: it is what somebody else may have.
        let socket = Socket::bind(config.listen_port).map_err(|source| NetError::Refused {
            action: format!("listen on UDP port {} for WireGuard", config.listen_port),
            source,
        })?;
        let builder = DeviceBuilder::new().name(&config.name).mtu(config.mtu).enable(true);
        // Packets of one stream come and go as one large packet, which saves most of the calls.
        let tun = builder
            .with(|linux| {
                linux.offload(true);
            })
            .build_async();
        let tun = tun.map_err(refused("make the TUN device"))?;
        let index = tun.if_index().map_err(refused("read the index of"))?;
        let secret = config.private_key.secret().clone();
        let public = x25519::PublicKey::from(&secret);
        let shared = Arc::new(Shared {
            psk: config.psk.as_ref().map(|psk| psk.bytes()),
            limiter: Arc::new(RateLimiter::new(&public, UNPROVEN_HANDSHAKES)),
            secret,
            public,
            tun,
            socket,
            peers: RwLock::default(),
            open: AtomicBool::new(true),
        });
        let mut tasks = JoinSet::new();
        let mtu = usize::from(config.mtu);
        tasks.spawn(until_it_fails(shared.clone(), async move |shared| outbound::run(shared, mtu).await));
        tasks.spawn(until_it_fails(shared.clone(), async |shared| inbound::run(shared).await));
        tasks.spawn(keep_time(shared.clone()));
        info!(device = config.name, port = config.listen_port, "WireGuard runs in userspace");
        Ok(Self { shared, index, tasks })
    }

    pub(super) async fn set_peers(&mut self, wanted: &[WgPeer]) -> Result<(), NetError> {
        let shared = &self.shared;
        let own = PublicKey::from(*shared.public.as_bytes());
        if let Some(peer) = wanted.iter().find(|peer| peer.public_key == own) {
            let reason = format!("{} has this machine's own key {own}", peer.endpoint);
            return Err(NetError::WireguardPeers { reason });
        }
        let before = shared.peers();
        let mut after = Peers::default();
        let mut fresh = Vec::new();
        for wanted in wanted {
            let held = before.by_key.get(&wanted.public_key).map(|at| &before.all[*at]);
            let live = match held.filter(|held| held.wanted.keepalive == wanted.keepalive) {
                Some(held) => {
                    if held.wanted.endpoint != wanted.endpoint {
                        *lock(&held.live.endpoint) = wanted.endpoint;
                    }
                    held.live.clone()
                }
                None => {
                    let peer = shared.peer(wanted, |index| {
                        before.by_index.contains_key(&index) || after.by_index.contains_key(&index)
                    })?;
                    fresh.push(peer.clone());
                    peer
                }
            };
            let at = after.all.len();
            after.by_key.insert(wanted.public_key, at);
            after.by_index.insert(live.index, at);
            after.all.push(Entry { wanted: wanted.clone(), live });
        }
        let networks = after
            .all
            .iter()
            .enumerate()
            .flat_map(|(at, entry)| entry.wanted.allowed_ips.iter().map(move |network| (*network, at)));
        after.allowed = Allowed::new(networks);
        *shared.peers.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(after);
        // With a keepalive, whoever is behind a NAT must be heard before it can be spoken to.
        let mut buffer = [0; 256];
        for peer in fresh.iter().filter(|peer| lock(&peer.tunn).persistent_keepalive().is_some()) {
            let first = match lock(&peer.tunn).format_handshake_initiation(&mut buffer, false) {
                TunnResult::WriteToNetwork(packet) => packet.len(),
                _ => continue,
            };
            shared.send(peer, &buffer[..first]).await;
        }
        Ok(())
    }

    pub(super) fn peers(&self) -> Vec<WgPeerState> {
        let state = |entry: &Entry| WgPeerState {
            public_key: entry.wanted.public_key,
            endpoint: Some(*lock(&entry.live.endpoint)),
            last_handshake: lock(&entry.live.tunn).time_since_last_handshake(),
            rx_bytes: entry.live.rx_bytes.load(Ordering::Relaxed),
            tx_bytes: entry.live.tx_bytes.load(Ordering::Relaxed),
        };
        self.shared.peers().all.iter().map(state).collect()
    }

    pub(super) fn index(&self) -> u32 {
        self.index
    }

    pub(super) fn is_open(&self) -> bool {
        self.shared.open.load(Ordering::Relaxed)
    }

    pub(super) async fn close(mut self) {
        self.tasks.shutdown().await;
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("index", &self.index).finish_non_exhaustive()
    }
}

impl Shared {
    fn peers(&self) -> Arc<Peers> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The live part of a peer, with an index that nobody has.
    fn peer(&self, wanted: &WgPeer, is_taken: impl Fn(u32) -> bool) -> Result<Arc<Peer>, NetError> {
        let index = loop {
            // Random, so that an index says nothing and a packet of a former life fits nobody.
            let random = getrandom::u32().map_err(|error| NetError::Refused {
                action: "read random bytes for a WireGuard session".to_owned(),
                source: io::Error::other(error),
            })?;
            let index = random >> (u32::BITS - INDEX_BITS);
            if !is_taken(index) {
                break index;
            }
        };
        let tunn = Tunn::new(
            self.secret.clone(),
            wanted.public_key.bytes().into(),
            self.psk,
            wanted.keepalive.map(seconds),
            index,
            Some(self.limiter.clone()),
        );
        Ok(Arc::new(Peer {
            index,
            tunn: Mutex::new(tunn),
            endpoint: Mutex::new(wanted.endpoint),
            rx_bytes: AtomicU64::new(0),
            tx_bytes: AtomicU64::new(0),
        }))
    }

    /// Sends one packet to where the peer was last heard.
    async fn send(&self, peer: &Peer, packet: &[u8]) {
        let endpoint = *lock(&peer.endpoint);
        peer.sent(packet.len());
        self.socket.send(endpoint, packet, None).await;
    }
}

impl Peers {
    /// The peer that an address belongs to.
    fn of(&self, address: IpAddr) -> Option<&Entry> {
        self.allowed.peer(address).map(|at| &self.all[at])
    }
}

impl Peer {
    fn sent(&self, bytes: usize) {
        self.tx_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// The state machine stays usable if a task died with the lock: it changes only at the end of each of its steps.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The kernel's answer once the interface of an open device was deleted is `EBADFD`. Other errors concern a packet,
/// or an interface that is down.
fn is_gone(error: &io::Error) -> bool {
    const EBADFD: i32 = 77;
    error.raw_os_error() == Some(EBADFD)
}

/// Runs a direction until the device is gone.
async fn until_it_fails(shared: Arc<Shared>, direction: impl AsyncFnOnce(&Shared) -> io::Error) {
    let error = direction(&shared).await;
    if shared.open.swap(false, Ordering::Relaxed) {
        error!(%error, "the WireGuard device is gone");
    }
}

/// Handshakes that are due or unanswered, keepalives, keys that become void.
async fn keep_time(shared: Arc<Shared>) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut buffer = [0; 256];
    loop {
        ticks.tick().await;
        shared.limiter.reset_count();
        for entry in &shared.peers().all {
            let peer = &entry.live;
            let due = {
                let mut tunn = lock(&peer.tunn);
                match tunn.update_timers(&mut buffer) {
                    TunnResult::WriteToNetwork(packet) => Some(packet.len()),
                    // It gave up after 90 s without an answer. A peer that shall be kept alive is tried for ever.
                    TunnResult::Err(WireGuardError::ConnectionExpired)
                        if entry.wanted.keepalive.is_some() =>
                    {
                        match tunn.format_handshake_initiation(&mut buffer, false) {
                            TunnResult::WriteToNetwork(packet) => Some(packet.len()),
                            _ => None,
                        }
                    }
                    TunnResult::Err(WireGuardError::ConnectionExpired) => None,
                    TunnResult::Err(error) => {
                        warn!(peer = %entry.wanted.public_key, ?error, "a WireGuard timer failed");
                        None
                    }
                    _ => None,
                }
            };
            if let Some(length) = due {
                shared.send(peer, &buffer[..length]).await;
            }
        }
    }
}
