//! Which connections there are: no more than there are files for, and none whose client says nothing.
//!
//! Without a bound a client that opens connections takes the files that the log needs, and the accept loop spins. And which
//! protocol a client speaks shows in its first bytes, and only then do hyper's and h2's own time limits begin: so those
//! bytes have one here. Invariant: a connection that has a place and has said enough is what it wraps.

use futures_util::StreamExt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};
use tokio_stream::Stream;
use tonic::transport::server::Connected;
use tracing::warn;

/// How long the first bytes may take: some round trips of the slowest network, with losses.
const PATIENCE: Duration = Duration::from_secs(10);

/// The preface of HTTP/2; no request of HTTP/1.1 with a host is shorter.
const ENOUGH: usize = 24;

/// Files for everything else: the data, and whatever else the process does.
const OTHER_FILES: u64 = 128;

/// How long nothing is accepted when the system has no room: it must not be asked without pause.
const PAUSE: Duration = Duration::from_millis(100);

/// Connections as they come, if there is a place.
pub(crate) struct Connections<S> {
    incoming: S,
    places: Arc<Semaphore>,
    full: bool,
    pause: Option<Pin<Box<Sleep>>>,
}

impl<S> Connections<S> {
    /// With as many places as the process may have files open, less those for other things.
    pub(crate) fn new(incoming: S) -> Self {
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let places = files.map_or(Semaphore::MAX_PERMITS, |files| {
            usize::try_from(files.saturating_sub(OTHER_FILES).max(files / 2))
                .unwrap_or(Semaphore::MAX_PERMITS)
        });
        let places = Arc::new(Semaphore::new(places.min(Semaphore::MAX_PERMITS)));
        Self { incoming, places, full: false, pause: None }
    }
}

impl<S, T> Stream for Connections<S>
where
    S: Stream<Item = io::Result<T>> + Unpin,
{
    type Item = io::Result<Opening<T>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            match ready!(self.incoming.poll_next_unpin(cx)) {
                Some(Ok(connection)) => match Arc::clone(&self.places).try_acquire_owned() {
                    Ok(place) => {
                        self.full = false;
                        return Poll::Ready(Some(Ok(Opening::new(connection, place))));
                    }
                    // Hanging up tells the client at once; those who have a place keep it.
                    Err(_) if self.full => {}
                    Err(_) => {
                        self.full = true;
                        warn!(
                            "as many connections as there may be open files; new ones are refused (LimitNOFILE=)"
                        );
                    }
                },
                Some(Err(error)) if is_out_of_room(&error) => {
                    warn!(%error, "could not accept a connection");
                    self.pause = Some(Box::pin(sleep(PAUSE)));
                }
                Some(Err(_)) => {} // the client's end of it
                None => return Poll::Ready(None),
            }
        }
    }
}

fn is_out_of_room(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let full = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|errno| full.contains(&errno))
}

/// A connection that ends if its client does not begin.
#[derive(Debug)]
pub(crate) struct Opening<T> {
    inner: T,
    /// Until enough has been read.
    waiting: Option<(Pin<Box<Sleep>>, usize)>,
    _place: OwnedSemaphorePermit,
}

impl<T> Opening<T> {
    fn new(inner: T, place: OwnedSemaphorePermit) -> Self {
        Self { inner, waiting: Some((Box::pin(sleep(PATIENCE)), 0)), _place: place }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Opening<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.inner).poll_read(cx, buffer);
        if let Some((over, bytes)) = &mut this.waiting {
            *bytes += buffer.filled().len() - before;
            if *bytes >= ENOUGH {
                this.waiting = None;
            } else if read.is_pending() && over.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Opening<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

impl<T: Connected> Connected for Opening<T> {
    type ConnectInfo = T::ConnectInfo;

    fn connect_info(&self) -> T::ConnectInfo {
        self.inner.connect_info()
    }
}
