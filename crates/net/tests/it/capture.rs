//! What passes the switch between machines.

use super::lab::Namespace;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, recv, socket_with, sockopt};
use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

/// Everything that passes the switch.
pub struct Capture {
    stop: Arc<AtomicBool>,
    reader: thread::JoinHandle<Vec<Vec<u8>>>,
}

impl Capture {
    pub fn start(switch: &Namespace) -> Self {
        // ETH_P_ALL, in the network's byte order.
        let all = NonZeroU32::new(u32::from(3_u16.to_be())).map(Protocol::from_raw);
        let open = || socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, all);
        let socket = switch.enter(open).expect("root may listen");
        sockopt::set_socket_recv_buffer_size_force(&socket, 64 << 20).expect("root may");
        let timeout = Some(Duration::from_millis(50));
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, timeout).expect("a time");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let reader = thread::spawn(move || {
            let mut frames = Vec::new();
            let mut buffer = vec![0; 1 << 17];
            loop {
                match recv(&socket, &mut buffer[..], RecvFlags::empty()) {
                    Ok((length, _)) => frames.push(buffer[..length].to_vec()),
                    Err(_) if stopped.load(Ordering::Relaxed) => return frames,
                    Err(_) => {}
                }
            }
        });
        Self { stop, reader }
    }

    /// The frames since the start.
    pub fn stop(self) -> Vec<Vec<u8>> {
        self.stop.store(true, Ordering::Relaxed);
        self.reader.join().expect("no panic")
    }
}
