//! A client's connection, whatever it came on.
//!
//! Invariant: it tells without a system call and without a lock what has to be known about it from outside: when the
//! client was last heard of, and what it keeps waiting.

use crate::framing::Framing;
use bytes::{Buf, Bytes};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// What is known of a client's connection besides its bytes. Only its worker writes it; it is atomic because a
/// connection that is upgraded has to be `Send`.
#[derive(Debug, Default)]
pub(crate) struct Signs {
    /// The worker's clock when bytes last came, in ticks.
    pub(crate) read: AtomicU32,
    /// The tick at which the first byte of a head came that is not complete; 0 for none.
    pub(crate) head: AtomicU32,
    /// The tick at which the client last stopped taking what is sent to it; 0 if it takes it.
    pub(crate) stuck: AtomicU32,
    /// A request's body is waited for.
    pub(crate) body: AtomicBool,
    /// Requests under way.
    pub(crate) active: AtomicU32,
    /// Requests whose framing cannot be relied on: the number of the first, counted from 1; 0 for none.
    pub(crate) suspect: AtomicU32,
    /// Requests so far.
    pub(crate) requests: AtomicU32,
    /// Requests that were answered.
    pub(crate) answered: AtomicU32,
    /// Requests that the client took back before they were answered.
    pub(crate) abandoned: AtomicU32,
    /// Answers of which the client has not taken what is there for it.
    pub(crate) owed: AtomicU32,
    /// The tick at which it was last given a part of one.
    pub(crate) given: AtomicU32,
    /// Bytes sent to it, less those that came from it: answers to its pings are none of what it is owed.
    pub(crate) taken: AtomicI64,
}

impl Signs {
    fn count(&self, bytes: i64) {
        self.taken.store(self.taken.load(Relaxed).wrapping_add(bytes), Relaxed);
    }
}

/// A client's connection.
pub(crate) struct ClientStream {
    inner: Inner,
    /// What was read before it was known what it is.
    early: Bytes,
    signs: Arc<Signs>,
    clock: Arc<AtomicU32>,
    /// For HTTP/1: follows where requests begin and end.
    framing: Option<Box<Framing>>,
}

pub(crate) enum Inner {
    Plain(TcpStream),
    Tls(Box<TlsStream<Early<TcpStream>>>),
}

impl ClientStream {
    pub(crate) fn new(inner: Inner, early: Bytes, clock: Arc<AtomicU32>) -> Self {
        Self { inner, early, signs: Arc::default(), clock, framing: None }
    }

    /// From now on it is HTTP/1, and its framing is watched.
    pub(crate) fn watch(&mut self) {
        self.framing = Some(Box::default());
    }

    pub(crate) fn signs(&self) -> Arc<Signs> {
        Arc::clone(&self.signs)
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        if this.early.is_empty() {
            ready!(match &mut this.inner {
                Inner::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
                Inner::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
            })?;
        } else {
            let length = this.early.len().min(buffer.remaining());
            buffer.put_slice(&this.early[..length]);
            this.early.advance(length);
        }
        let came = &buffer.filled()[before..];
        if !came.is_empty() {
            let now = this.clock.load(Relaxed);
            this.signs.read.store(now, Relaxed);
            this.signs.count(-(came.len() as i64));
            if this.framing.is_some()
                && this.signs.active.load(Relaxed) == 0
                && this.signs.head.load(Relaxed) == 0
            {
                this.signs.head.store(now, Relaxed);
            }
            if let Some(framing) = &mut this.framing
                && let Some(number) = framing.follow(came)
            {
                this.signs.suspect.store(number, Relaxed);
                this.framing = None;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl ClientStream {
    fn wrote(&self, sent: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &sent {
            self.signs.count(*bytes as i64);
        }
        self.sent(sent)
    }

    fn sent<T>(&self, sent: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        let stuck = &self.signs.stuck;
        match &sent {
            Poll::Ready(_) if stuck.load(Relaxed) == 0 => {}
            Poll::Ready(_) => stuck.store(0, Relaxed),
            Poll::Pending if stuck.load(Relaxed) == 0 => stuck.store(self.clock.load(Relaxed), Relaxed),
            Poll::Pending => {}
        }
        sent
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let sent = match &mut this.inner {
            Inner::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Inner::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        };
        this.wrote(sent)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let sent = match &mut this.inner {
            Inner::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Inner::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        };
        this.wrote(sent)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let sent = match &mut this.inner {
            Inner::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Inner::Tls(stream) => Pin::new(stream).poll_flush(cx),
        };
        this.sent(sent)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().inner {
            Inner::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Inner::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// A stream some of which was read before.
pub(crate) struct Early<S> {
    pub(crate) early: Bytes,
    pub(crate) stream: S,
}

impl<S: AsyncRead + Unpin> AsyncRead for Early<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.early.is_empty() {
            return Pin::new(&mut this.stream).poll_read(cx, buffer);
        }
        let length = this.early.len().min(buffer.remaining());
        buffer.put_slice(&this.early[..length]);
        this.early.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Early<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
