//! An endpoint as one worker sees it: its connections.
//!
//! Invariant: once it is closed, it has no idle connection, and a connection that becomes idle is closed.

use crate::body::RequestBody;
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use model::Protocol;
use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};
use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Notify;
use tracing::debug;

/// How long an idle connection is kept. Shorter than what servers commonly keep them, so that they close fewer under us.
const IDLE: Duration = Duration::from_secs(15);
/// Idle connections to an endpoint, per worker; more would mean a burst is over.
const MOST_IDLE: usize = 256;
/// How long data may be on its way without a word from the other side. A machine that is gone answers nothing, a slow
/// app's kernel does.
const UNACKNOWLEDGED: Duration = Duration::from_secs(1);
/// HTTP/2 connections to an endpoint, per worker: beyond one only when its streams are used up.
const MOST_SHARED: usize = 8;

/// An endpoint and the connections that one worker has to it.
pub(crate) struct Upstream {
    pub(crate) instance: String,
    pub(crate) address: SocketAddr,
    pub(crate) protocol: Protocol,
    idle: RefCell<Vec<Idle>>,
    shared: RefCell<Vec<http2::SendRequest<RequestBody>>>,
    closed: Cell<bool>,
    /// The table says that nothing new goes there.
    pub(crate) drains: Cell<bool>,
    /// It has drained and is gone: what is still open is to end in order.
    over: Cell<bool>,
    told: Notify,
    pub(crate) connects: Cell<u64>,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

/// An HTTP/1.1 connection to an endpoint.
pub(crate) struct Connection {
    sender: http1::SendRequest<RequestBody>,
    /// The same socket once more, to look at it while hyper owns it.
    socket: OwnedFd,
}

/// Why there is no answer.
pub(crate) enum Failed {
    /// No connection, and so nothing was sent.
    Connect(Box<Request<RequestBody>>),
    /// The request, or part of it, may have arrived.
    Lost(hyper::Error),
}

/// An answer, and the connection it comes on if that can be used again.
pub(crate) type Answer = (Response<Incoming>, Option<Connection>);

impl Upstream {
    pub(crate) fn new(instance: String, address: SocketAddr, protocol: Protocol) -> Self {
        Self {
            instance,
            address,
            protocol,
            idle: RefCell::default(),
            shared: RefCell::default(),
            closed: Cell::new(false),
            drains: Cell::new(false),
            over: Cell::new(false),
            told: Notify::new(),
            connects: Cell::new(0),
        }
    }

    pub(crate) fn is_http2(&self) -> bool {
        matches!(self.protocol, Protocol::H2c | Protocol::Grpc)
    }

    /// Sends a request: on an idle connection that is still good, or on a new one. What was not sent is sent again, for
    /// that is not a second time. `careful`: the request must not get lost on a connection that the endpoint has closed.
    pub(crate) async fn send(
        &self,
        mut request: Request<RequestBody>,
        careful: bool,
        fresh: bool,
        connect_timeout: Duration,
    ) -> Result<Answer, Failed> {
        if self.is_http2() {
            return self.send_shared(request, connect_timeout).await;
        }
        while let Some(mut connection) = if fresh { None } else { self.take(careful) } {
            // It may still be finishing the last response's last byte.
            if !connection.sender.is_ready() && connection.sender.ready().await.is_err() {
                continue;
            }
            match connection.sender.try_send_request(request).await {
                Ok(response) => return Ok((response, Some(connection))),
                Err(error) => request = not_sent(error)?,
            }
        }
        let mut connection = match self.connect(connect_timeout).await {
            Ok(connection) => connection,
            Err(error) => return Err(self.unreachable(&error, request)),
        };
        match connection.sender.try_send_request(request).await {
            Ok(response) => Ok((response, Some(connection))),
            Err(error) => {
                let request = not_sent(error)?;
                Err(self.unreachable(&io::ErrorKind::ConnectionReset.into(), request))
            }
        }
    }

    fn unreachable(&self, error: &io::Error, request: Request<RequestBody>) -> Failed {
        debug!(instance = %self.instance, address = %self.address, %error, "endpoint cannot be reached");
        Failed::Connect(Box::new(request))
    }

    fn take(&self, careful: bool) -> Option<Connection> {
        loop {
            let Idle { connection, .. } = self.idle.borrow_mut().pop()?;
            if connection.sender.is_closed() || (careful && !is_silent(&connection.socket)) {
                continue;
            }
            return Some(connection);
        }
    }

    /// Keeps a connection whose response has ended.
    pub(crate) fn keep(&self, connection: Connection) {
        let mut idle = self.idle.borrow_mut();
        if !self.closed.get() && !connection.sender.is_closed() && idle.len() < MOST_IDLE {
            idle.push(Idle { connection, since: Instant::now() });
        }
    }

    /// Closes idle connections now, and others when they become idle.
    pub(crate) fn close(&self) {
        self.closed.set(true);
        self.flush();
    }

    /// Has tunnels that can be ended in order end.
    pub(crate) fn end(&self) {
        self.over.set(true);
        self.told.notify_waiters();
    }

    /// Waits until tunnels are to end.
    pub(crate) async fn over(&self) {
        while !self.over.get() {
            self.told.notified().await;
        }
    }

    /// Takes part again.
    pub(crate) fn open(&self) {
        self.closed.set(false);
    }

    /// Closes idle connections.
    pub(crate) fn flush(&self) {
        // Taken out first: what is dropped may come back here.
        let idle = std::mem::take(&mut *self.idle.borrow_mut());
        let shared = std::mem::take(&mut *self.shared.borrow_mut());
        drop((idle, shared));
    }

    /// Closes what was idle for too long.
    pub(crate) fn tidy(&self, now: Instant) {
        let old = |idle: &mut Idle| {
            now.saturating_duration_since(idle.since) > IDLE || idle.connection.sender.is_closed()
        };
        let gone: Vec<_> = self.idle.borrow_mut().extract_if(.., old).collect();
        drop(gone);
        self.shared.borrow_mut().retain(|sender| !sender.is_closed());
    }

    pub(crate) fn idle(&self) -> usize {
        self.idle.borrow().len()
    }

    async fn connect(&self, timeout: Duration) -> io::Result<Connection> {
        let stream = self.tcp(timeout).await?;
        let socket = stream.as_fd().try_clone_to_owned()?;
        let (sender, connection) = http1::Builder::new()
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| io::Error::other(error.to_string()))?;
        tokio::task::spawn_local(async move {
            let _ = connection.with_upgrades().await; // whoever waits for an answer is told
        });
        Ok(Connection { sender, socket })
    }

    /// A connection to the endpoint, set up so that a machine that is gone is noticed.
    pub(crate) async fn tcp(&self, timeout: Duration) -> io::Result<TcpStream> {
        self.connects.set(self.connects.get() + 1);
        connect(self.address, timeout).await
    }

    async fn send_shared(
        &self,
        mut request: Request<RequestBody>,
        connect_timeout: Duration,
    ) -> Result<Answer, Failed> {
        loop {
            let known = {
                let mut shared = self.shared.borrow_mut();
                shared.retain(|sender| !sender.is_closed());
                shared.iter().find(|sender| sender.is_ready()).cloned()
            };
            let had = known.is_some();
            let mut sender = match known {
                Some(sender) => sender,
                None => match self.connect_shared(connect_timeout).await {
                    Ok(sender) => sender,
                    Err(error) => return Err(self.unreachable(&error, request)),
                },
            };
            match sender.try_send_request(request).await {
                Ok(response) => return Ok((response, None)),
                Err(error) => {
                    request = not_sent(error)?;
                    if !had {
                        return Err(self.unreachable(&io::ErrorKind::ConnectionReset.into(), request));
                    }
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    async fn connect_shared(&self, timeout: Duration) -> io::Result<http2::SendRequest<RequestBody>> {
        let stream = self.tcp(timeout).await?;
        let (sender, connection) = http2::Builder::new(LocalExec)
            .timer(TokioTimer::new())
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .keep_alive_interval(Duration::from_secs(5))
            .keep_alive_timeout(Duration::from_secs(3))
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| io::Error::other(error.to_string()))?;
        tokio::task::spawn_local(async move {
            let _ = connection.await; // whoever waits for an answer is told
        });
        let mut shared = self.shared.borrow_mut();
        if !self.closed.get() && shared.len() < MOST_SHARED {
            shared.push(sender.clone());
        }
        Ok(sender)
    }
}

/// Whether nothing has come on an idle connection: no bytes, no end. One system call.
fn is_silent(socket: &OwnedFd) -> bool {
    use rustix::net::{RecvFlags, recv};
    let mut byte = [0u8; 1];
    let peeked = recv(socket, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT);
    matches!(peeked, Err(rustix::io::Errno::AGAIN))
}

/// The request, if it was not sent.
fn not_sent(mut error: TrySendError<Request<RequestBody>>) -> Result<Request<RequestBody>, Failed> {
    match error.take_message() {
        Some(request) => Ok(request),
        None => Err(Failed::Lost(error.into_error())),
    }
}

/// Connects, and sets the socket up so that a machine that is gone is noticed.
pub(crate) async fn connect(address: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), None)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    SockRef::from(&socket).set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(Duration::from_secs(5))
            .with_interval(Duration::from_secs(1))
            .with_retries(3),
    )?;
    let connecting = TcpSocket::from_std_stream(socket.into()).connect(address);
    match tokio::time::timeout(timeout, connecting).await {
        Ok(connected) => connected,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer to the attempt to connect")),
    }
}

/// Runs what HTTP/2 needs besides its connections on the worker's own thread.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LocalExec;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for LocalExec {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}
