//! Network to device: whose a datagram is, its decryption, the check of its source, and the device.
//!
//! A handshake is charged to the rate limiter before anything expensive is done for it. Invariant: what reaches the
//! device was decrypted by the peer to whom its source address belongs.

use super::{Entry, Peers, Shared, is_gone, lock};
use boringtun::noise::{Packet, Tunn, TunnResult, handshake::parse_handshake_anon};
use quinn_udp::RecvMeta;
use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
    sync::atomic::Ordering,
};
use tokio::task::yield_now;
use tun_rs::{GROTable, VIRTIO_NET_HDR_LEN};

/// Buffers that one call fills. Each can hold a whole train of datagrams, so that few are enough under load.
const BUFFERS: usize = 8;

/// The largest train.
const LARGEST: usize = 1 << 16;

/// Packets that are given to the device together: those of a train.
const PACKETS: usize = 64;

/// A cookie's first byte: sent instead of an answer to somebody who has proven nothing.
const COOKIE: u8 = 3;

/// A reader that always finds something lets others have a turn this often.
const TURN: u32 = 16;

pub(super) async fn run(shared: &Shared) -> io::Error {
    let mut storage = vec![vec![0; LARGEST]; BUFFERS];
    let mut meta = [RecvMeta::default(); BUFFERS];
    let mut out = Out::new();
    let mut turns = 0;
    loop {
        let received = {
            let mut buffers: Vec<_> = storage.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
            shared.socket.receive(&mut buffers, &mut meta).await
        };
        // Errors of the socket are a sender's answers to what we sent; none of them ends it.
        let count = received.unwrap_or(0);
        let peers = shared.peers();
        for (train, meta) in storage.iter().zip(&meta).take(count) {
            for datagram in train[..meta.len].chunks(meta.stride.max(1)) {
                out.take(shared, &peers, datagram, meta.addr);
                if out.count == PACKETS
                    && let Err(error) = out.write(shared).await
                {
                    return error;
                }
            }
        }
        if let Err(error) = out.write(shared).await {
            return error;
        }
        turns += 1;
        if turns % TURN == 0 || count == 0 {
            yield_now().await;
        }
    }
}

/// What comes of datagrams: packets for the device, and answers.
struct Out {
    scratch: Vec<u8>,
    packets: Vec<Vec<u8>>,
    count: usize,
    coalescing: GROTable,
    answers: Vec<(SocketAddr, Vec<u8>)>,
}

impl Out {
    fn new() -> Self {
        Self {
            scratch: vec![0; LARGEST],
            packets: vec![Vec::with_capacity(2048); PACKETS],
            count: 0,
            coalescing: GROTable::default(),
            answers: Vec::new(),
        }
    }

    fn take(&mut self, shared: &Shared, peers: &Peers, datagram: &[u8], from: SocketAddr) {
        let Ok(packet) = Tunn::parse_incoming_packet(datagram) else { return };
        let of_index = |index: u32| peers.by_index.get(&(index >> 8)).map(|at| &peers.all[*at]);
        let entry = match &packet {
            Packet::HandshakeInit(init) => {
                let mut cookie = [0; 64];
                match shared.limiter.verify_packet(Some(from.ip()), datagram, &mut cookie) {
                    Ok(_) => {}
                    Err(TunnResult::WriteToNetwork(cookie)) => {
                        return self.answers.push((from, cookie.to_vec()));
                    }
                    Err(_) => return,
                }
                let sender = parse_handshake_anon(&shared.secret, &shared.public, init);
                let key = sender.ok().map(|sender| sender.peer_static_public.into());
                key.and_then(|key| peers.by_key.get(&key)).map(|at| &peers.all[*at])
            }
            Packet::HandshakeResponse(response) => of_index(response.receiver_idx),
            Packet::PacketCookieReply(reply) => of_index(reply.receiver_idx),
            Packet::PacketData(data) => of_index(data.receiver_idx),
        };
        let is_cookie = matches!(packet, Packet::PacketCookieReply(_));
        if let Some(entry) = entry {
            self.decrypt(peers, entry, datagram, from, is_cookie);
        }
    }

    fn decrypt(&mut self, peers: &Peers, entry: &Entry, datagram: &[u8], from: SocketAddr, is_cookie: bool) {
        let peer = &entry.live;
        let mut tunn = lock(&peer.tunn);
        let mut answer = |packet: &[u8]| {
            peer.sent(packet.len());
            self.answers.push((from, packet.to_vec()));
        };
        let is_answered = match tunn.decapsulate(Some(from.ip()), datagram, &mut self.scratch) {
            TunnResult::Err(_) => return,
            TunnResult::WriteToNetwork(cookie) if cookie.first() == Some(&COOKIE) => return answer(cookie),
            TunnResult::WriteToNetwork(packet) => {
                answer(packet);
                true
            }
            TunnResult::WriteToTunnelV4(packet, source) => {
                let source = IpAddr::from(source);
                push(&mut self.packets, &mut self.count, peers, entry, packet, source);
                false
            }
            TunnResult::WriteToTunnelV6(packet, source) => {
                let source = IpAddr::from(source);
                push(&mut self.packets, &mut self.count, peers, entry, packet, source);
                false
            }
            TunnResult::Done => false,
        };
        // A cookie is only encrypted with what everybody knows.
        if is_cookie {
            return;
        }
        *lock(&peer.endpoint) = from;
        peer.rx_bytes.fetch_add(datagram.len() as u64, Ordering::Relaxed);
        // The handshake is over: what waited for it.
        while is_answered
            && let TunnResult::WriteToNetwork(packet) = tunn.decapsulate(None, &[], &mut self.scratch)
        {
            answer(packet);
        }
    }

    /// Gives the device its packets, and sends the answers. An error means that the device is gone.
    async fn write(&mut self, shared: &Shared) -> Result<(), io::Error> {
        let batch = &mut self.packets[..std::mem::take(&mut self.count)];
        if !batch.is_empty()
            && let Err(error) =
                shared.tun.send_multiple(&mut self.coalescing, batch, VIRTIO_NET_HDR_LEN).await
            && is_gone(&error)
        {
            return Err(error);
        }
        for (to, packet) in self.answers.drain(..) {
            shared.socket.send(to, &packet, None).await;
        }
        Ok(())
    }
}

/// Keeps a packet for the device if its source is its sender's.
fn push(
    packets: &mut [Vec<u8>],
    count: &mut usize,
    peers: &Peers,
    entry: &Entry,
    packet: &[u8],
    source: IpAddr,
) {
    if !peers.of(source).is_some_and(|owner| owner.live.index == entry.live.index) {
        return;
    }
    let buffer = &mut packets[*count];
    buffer.clear();
    buffer.resize(VIRTIO_NET_HDR_LEN, 0);
    buffer.extend_from_slice(packet);
    *count += 1;
}
