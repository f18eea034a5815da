//! Bodies on their way through, and what ends with them.
//!
//! Frames are passed on as they come, never copied. Invariant: whatever a request holds (its count at the endpoint, the
//! connection, its line in the log) is given back exactly once: when the response's body ends, or is given up.

use crate::io::Signs;
use crate::service::Flight;
use crate::upstream::{Connection, Upstream};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

const BROKEN_OFF: &str = "the stream ended before the body";

/// A request's body, on its way to an endpoint.
pub(crate) enum RequestBody {
    Empty,
    /// All of it is here, so it can be sent again.
    Whole(Option<Bytes>),
    Stream(Stream),
}

/// A body as it comes from the client.
pub(crate) struct Stream {
    pub(crate) incoming: Incoming,
    /// How many bytes more it may have.
    pub(crate) left: u64,
    pub(crate) progress: Rc<Progress>,
    pub(crate) signs: Arc<Signs>,
    /// It comes over HTTP/2, where a stream can end without the end of the body.
    pub(crate) http2: bool,
}

/// How far a streamed body is.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// All of it has been passed on.
    pub(crate) done: Cell<bool>,
    /// It was larger than it may be.
    pub(crate) too_large: Cell<bool>,
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(stream) => stream.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Whole(bytes) => bytes.is_none(),
            Self::Stream(stream) => stream.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Stream(stream) => stream.incoming.size_hint(),
        }
    }
}

impl Stream {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let polled = Pin::new(&mut self.incoming).poll_frame(cx);
        self.signs.body.store(polled.is_pending(), Relaxed);
        match polled {
            Poll::Pending => Poll::Pending,
            // hyper takes a reset without an error for the end. Nobody else is to believe that this was all.
            Poll::Ready(None) if self.http2 && !self.incoming.is_end_stream() => {
                Poll::Ready(Some(Err(io::Error::other(BROKEN_OFF))))
            }
            Poll::Ready(None) => {
                self.progress.done.set(true);
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(io::Error::other(error)))),
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    match self.left.checked_sub(data.len() as u64) {
                        Some(left) => self.left = left,
                        None => {
                            self.progress.too_large.set(true);
                            return Poll::Ready(Some(Err(io::Error::other("the body is too large"))));
                        }
                    }
                }
                if self.incoming.is_end_stream() {
                    self.progress.done.set(true);
                }
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.signs.body.store(false, Relaxed);
    }
}

/// A response's body, on its way to the client.
pub(crate) enum ResponseBody {
    /// Our own words.
    Own(Option<Bytes>),
    /// An endpoint's.
    Endpoint { incoming: Incoming, tail: Option<Box<Tail>> },
}

/// What a response holds until its body has ended.
pub(crate) struct Tail {
    pub(crate) flight: Flight,
    pub(crate) upstream: Rc<Upstream>,
    pub(crate) connection: Option<Connection>,
    /// That of the request's body, if it is streamed: the connection is of no use before that has ended.
    pub(crate) progress: Option<Rc<Progress>>,
    pub(crate) bytes: u64,
    /// Counts the request as under way on the client's connection.
    pub(crate) active: Option<crate::forward::Active>,
}

impl Tail {
    /// The body has come to its end.
    pub(crate) fn end(mut self) {
        let sent = self.progress.as_ref().is_none_or(|progress| progress.done.get());
        if let Some(connection) = self.connection.take().filter(|_| sent) {
            self.upstream.keep(connection);
        }
        self.flight.complete(self.bytes);
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match self.get_mut() {
            Self::Own(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Endpoint { incoming, tail } => {
                let mut polled = Pin::new(&mut *incoming).poll_frame(cx).map_err(io::Error::other);
                if let (Poll::Ready(None), Some(tail)) = (&polled, &*tail)
                    && tail.upstream.is_http2()
                    && !incoming.is_end_stream()
                {
                    polled = Poll::Ready(Some(Err(io::Error::other(BROKEN_OFF))));
                }
                if let Some(active) = tail.as_mut().and_then(|tail| tail.active.as_mut()) {
                    active.owes(matches!(polled, Poll::Ready(Some(Ok(_)))));
                }
                match &polled {
                    Poll::Pending => {}
                    Poll::Ready(None) => {
                        if let Some(tail) = tail.take() {
                            tail.end();
                        }
                    }
                    Poll::Ready(Some(Err(_))) => {
                        if let Some(mut tail) = tail.take() {
                            tail.flight.broke();
                        }
                    }
                    Poll::Ready(Some(Ok(frame))) => {
                        if let (Some(data), Some(tail)) = (frame.data_ref(), &mut *tail) {
                            tail.bytes += data.len() as u64;
                        }
                        if incoming.is_end_stream()
                            && let Some(tail) = tail.take()
                        {
                            tail.end();
                        }
                    }
                }
                polled
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_none(),
            Self::Endpoint { incoming, .. } => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Endpoint { incoming, .. } => incoming.size_hint(),
        }
    }
}
