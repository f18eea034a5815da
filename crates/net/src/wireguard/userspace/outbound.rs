//! Device to network: which peer a packet is for, its encryption, and the socket.
//!
//! Invariant: packets of one peer leave in the order in which they came.

use super::{Entry, Shared, is_gone, lock};
use boringtun::noise::{Tunn, TunnResult};
use std::{io, net::SocketAddr, time::Duration};
use tokio::{task::yield_now, time::sleep};
use tun_rs::VIRTIO_NET_HDR_LEN;

/// The kernel hands over at most 64 KiB of a stream at once. At the smallest MTU that IPv6 allows these are 54 packets;
/// streams with tiny segments have more, and are then cut off, which their sender repairs.
const PACKETS: usize = 256;

/// What one call may send, below the largest datagram of IPv6.
const TRAIN: usize = 65_000;

/// What encryption adds (32 bytes), or a handshake that takes the packet's place (148 bytes).
const ROOM: usize = 256;

/// A reader that always finds something lets others have a turn this often.
const TURN: u32 = 16;

/// After an error that the next call would give again at once.
const PAUSE: Duration = Duration::from_millis(10);

pub(super) async fn run(shared: &Shared, mtu: usize) -> io::Error {
    let largest = usize::from(u16::MAX);
    let mut raw = vec![0; VIRTIO_NET_HDR_LEN + largest];
    let mut packets = vec![vec![0; mtu.max(1280) + ROOM]; PACKETS];
    let mut sizes = [0; PACKETS];
    let mut train = Train::new(shared.socket.most_segments());
    let mut turns = 0;
    loop {
        let count = match shared.tun.recv_multiple(&mut raw, &mut packets, &mut sizes, 0).await {
            Ok(count) => count,
            Err(error) if is_gone(&error) => return error,
            Err(error) => {
                // A packet that makes no sense, or the kernel is short of something.
                if error.raw_os_error().is_some() {
                    sleep(PAUSE).await;
                }
                continue;
            }
        };
        let peers = shared.peers();
        for (packet, size) in packets.iter().zip(sizes).take(count) {
            let packet = &packet[..size];
            let Some(entry) = Tunn::dst_address(packet).and_then(|to| peers.of(to)) else { continue };
            train.take(shared, entry, packet).await;
        }
        train.leave(shared).await;
        turns += 1;
        if turns % TURN == 0 {
            yield_now().await;
        }
    }
}

/// Datagrams for one endpoint that are sent in one call: all of one size, but the last, which may be shorter.
struct Train {
    buffer: Vec<u8>,
    used: usize,
    /// The size of all but the last.
    segment: usize,
    count: usize,
    most: usize,
    to: Option<SocketAddr>,
    /// Whether the last one is there.
    full: bool,
}

impl Train {
    fn new(most: usize) -> Self {
        Self {
            buffer: vec![0; TRAIN + (1 << 16) + ROOM],
            used: 0,
            segment: 0,
            count: 0,
            most,
            to: None,
            full: false,
        }
    }

    /// Encrypts a packet and couples it, having sent what it does not fit to.
    async fn take(&mut self, shared: &Shared, entry: &Entry, packet: &[u8]) {
        if self.used + packet.len() + ROOM > TRAIN {
            self.leave(shared).await;
        }
        let room = &mut self.buffer[self.used..];
        let length = match lock(&entry.live.tunn).encapsulate(packet, room) {
            TunnResult::WriteToNetwork(encrypted) => encrypted.len(),
            // It waits for the handshake's end.
            _ => return,
        };
        entry.live.sent(length);
        let to = *lock(&entry.live.endpoint);
        let fits = self.to == Some(to) && !self.full && length <= self.segment && self.count < self.most;
        if self.count > 0 && !fits {
            let start = self.used;
            self.leave(shared).await;
            self.buffer.copy_within(start..start + length, 0);
        }
        if self.count == 0 {
            (self.to, self.segment) = (Some(to), length);
        }
        self.full = length < self.segment;
        self.used += length;
        self.count += 1;
    }

    async fn leave(&mut self, shared: &Shared) {
        if let Some(to) = self.to.take() {
            let segment = (self.count > 1).then_some(self.segment);
            shared.socket.send(to, &self.buffer[..self.used], segment).await;
        }
        (self.used, self.segment, self.count, self.full) = (0, 0, 0, false);
    }
}
