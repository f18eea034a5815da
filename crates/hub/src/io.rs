//! Connections as h2 should see them.
//!
//! Two things make small frames dear, and fan-out is nothing but small frames. h2 gives each frame of 256 bytes or more
//! a system call of its own if the connection can write several buffers at once; if it cannot, frames of up to 1 KiB
//! are gathered into one write of 16 KiB. And tokio runs a task that was just woken before all that wait, so a
//! connection would write the first frame that one of its streams has, and then the next. So a connection here does not
//! say that it can write several buffers, and before it writes it lets the other tasks run once: what they have for it
//! goes along. Invariant: beside that a connection is what it wraps; a write is put off once, never twice in a row.

use crate::caller::Peer;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// 0 is none.
static NEXT_CONNECTION: AtomicU64 = AtomicU64::new(1);

/// A connection whose small writes are gathered.
#[derive(Debug)]
pub(crate) struct Gathering<T> {
    inner: T,
    number: u64,
    writes: Writes,
}

/// What a write does. A connection's task reads until nothing is left, then it writes: so the end of reading is where
/// one round of it ends and the next begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writes {
    /// Let others run first.
    PutOff,
    /// They run now, or have run.
    Yielded,
    /// As in the rest of the round after they ran.
    Through,
}

impl<T> Gathering<T> {
    pub(crate) fn new(inner: T) -> Self {
        let number = NEXT_CONNECTION.fetch_add(1, Ordering::Relaxed);
        Self { inner, number, writes: Writes::PutOff }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Gathering<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.inner).poll_read(cx, buffer);
        if read.is_pending() {
            self.writes = match self.writes {
                Writes::Yielded => Writes::Through,
                Writes::PutOff | Writes::Through => Writes::PutOff,
            };
        }
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Gathering<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.writes == Writes::PutOff {
            self.writes = Writes::Yielded;
            cx.waker().wake_by_ref(); // whoever wakes itself comes after those that wait
            return Poll::Pending;
        }
        self.writes = Writes::Through;
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl<T: Connected<ConnectInfo = Peer>> Connected for Gathering<T> {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        Peer { connection: self.number, ..self.inner.connect_info() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    /// Counts how often the task was woken.
    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_write_is_put_off_once_in_a_round() {
        let wakes = Arc::new(Wakes::default());
        let waker = Arc::clone(&wakes).into();
        let mut cx = Context::from_waker(&waker);
        let (ours, _theirs) = tokio::io::duplex(1024);
        let mut connection = Gathering::new(ours);
        let mut buffer = [0; 16];
        for round in 1..=3 {
            // The connection's task: reads until nothing is left, then writes.
            let mut read = |connection: &mut Gathering<_>, cx: &mut Context<'_>| {
                assert!(Pin::new(connection).poll_read(cx, &mut ReadBuf::new(&mut buffer)).is_pending());
            };
            read(&mut connection, &mut cx);
            assert!(Pin::new(&mut connection).poll_write(&mut cx, b"a").is_pending());
            assert_eq!(wakes.0.load(Ordering::Relaxed), round, "and comes again after the others");
            read(&mut connection, &mut cx);
            for _ in 0..2 {
                assert!(Pin::new(&mut connection).poll_write(&mut cx, b"a").is_ready());
            }
        }
    }

    #[test]
    fn whoever_only_writes_is_put_off_once() {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let (ours, _theirs) = tokio::io::duplex(1024);
        let mut connection = Gathering::new(ours);
        assert!(Pin::new(&mut connection).poll_write(&mut cx, b"a").is_pending());
        for _ in 0..3 {
            assert!(Pin::new(&mut connection).poll_write(&mut cx, b"a").is_ready());
        }
    }
}
