//! A client's connection: what it speaks, until when it may.
//!
//! Invariant: a client that is slow, silent or wrong holds up nobody else, and not for ever.

use crate::forward::{self, Client};
use crate::io::{ClientStream, Early, Inner};
use crate::proxy_protocol;
use crate::upstream::LocalExec;
use crate::worker::{Conn, Order, Worker};
use bytes::{Bytes, BytesMut};
use hyper::header::HeaderValue;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::LazyConfigAcceptor;
use tracing::{debug, warn};

/// So many headers hyper parses without asking for memory.
const DEFAULT_HEADERS: usize = 100;

/// So much of an answer waits in memory, for each request of an HTTP/2 connection, when its client does not take it.
const SEND_BUFFER: usize = 64 << 10;
/// So many requests may be taken back on an HTTP/2 connection before anybody has looked at them (CVE-2023-44487).
const UNSEEN_RESETS: usize = 20;

/// What an HTTP/2 connection begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Accepts connections until it is aborted.
pub(crate) async fn accept(worker: Rc<Worker>, listener: TcpListener, tls: bool) {
    loop {
        let (stream, address, counted) = next(&worker, &listener).await;
        let worker = Rc::clone(&worker);
        tokio::task::spawn_local(async move {
            if let Err(error) = connection(worker, stream, address, tls).await {
                debug!(client = %address, %error, "connection ended");
            }
            drop(counted);
        });
    }
}

/// The next connection that there is room for.
pub(crate) async fn next(worker: &Rc<Worker>, listener: &TcpListener) -> (TcpStream, SocketAddr, Counted) {
    let shared = &worker.shared;
    loop {
        while shared.connections.load(Relaxed) >= worker.config().limits.connections {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        match listener.accept().await {
            Ok((stream, address)) => {
                shared.connections.fetch_add(1, Relaxed);
                return (stream, address, Counted(Rc::clone(worker)));
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                // Out of descriptors or memory: others must end first.
                warn!(%error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// A connection that counts as long as it is kept.
pub(crate) struct Counted(Rc<Worker>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.shared.connections.fetch_sub(1, Relaxed);
    }
}

async fn connection(
    worker: Rc<Worker>,
    mut stream: TcpStream,
    address: SocketAddr,
    tls: bool,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let limit = worker.config().limits.header_timeout;
    let greeting = async {
        let mut early = BytesMut::new();
        let mut client = address;
        if worker.config().proxy_protocol {
            client = proxy_protocol::read(&mut stream, &mut early).await?.unwrap_or(address);
        }
        if tls {
            let certificates = worker.shared.certificates();
            let Some(config) = certificates else { return Ok(None) };
            let start = LazyConfigAcceptor::new(Default::default(), Early { early: early.freeze(), stream });
            let start = start.await?;
            let stream = start.into_stream(config).await?;
            let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            return Ok(Some((Inner::Tls(Box::new(stream)), Bytes::new(), h2, client)));
        }
        let h2 = sniff(&mut stream, &mut early).await?;
        io::Result::Ok(h2.map(|h2| (Inner::Plain(stream), early.freeze(), h2, client)))
    };
    let greeted = tokio::time::timeout(limit, greeting).await;
    let Some((inner, early, h2, client)) =
        greeted.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??
    else {
        return Ok(());
    };
    let mut stream = ClientStream::new(inner, early, worker.clock.clone());
    let signs = stream.signs();
    let conn = Rc::new(Conn {
        signs,
        order: Cell::default(),
        waker: RefCell::default(),
        since: Cell::new(worker.clock.load(Relaxed)),
        http: Cell::new(true),
        took: Cell::default(),
    });
    worker.enter(&conn);
    let ip = client.ip().to_canonical();
    let client = Rc::new(Client {
        address: SocketAddr::new(ip, client.port()),
        forwarded: HeaderValue::from_str(&ip.to_string()).map_err(io::Error::other)?,
        tls,
        conn: Rc::clone(&conn),
        worker: Rc::clone(&worker),
    });
    let limits = &worker.config().limits;
    let service = service_fn(move |request| forward::handle(Rc::clone(&client), request));
    if h2 {
        let connection = http2::Builder::new(LocalExec)
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits.streams)
            .max_header_list_size(limits.header_bytes as u32)
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(2 << 20)
            .max_send_buf_size(SEND_BUFFER)
            .max_local_error_reset_streams(limits.resets as usize)
            .max_pending_accept_reset_streams(UNSEEN_RESETS)
            .keep_alive_interval(limits.idle_timeout)
            .keep_alive_timeout(limits.header_timeout)
            .serve_connection(TokioIo::new(stream), service);
        let connection = pin!(connection);
        serve(connection, conn, |c| c.graceful_shutdown()).await
    } else {
        stream.watch();
        let mut builder = http1::Builder::new();
        builder.header_read_timeout(None).max_header_size(limits.header_bytes);
        if limits.headers != DEFAULT_HEADERS {
            builder.max_headers(limits.headers);
        }
        let connection = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
        let connection = pin!(connection);
        serve(connection, conn, |c| c.graceful_shutdown()).await
    }
    .map_err(io::Error::other)
}

/// Reads until it is clear whether HTTP/2 is spoken; nothing if the client goes before.
async fn sniff(stream: &mut TcpStream, early: &mut BytesMut) -> io::Result<Option<bool>> {
    loop {
        let known = early.len().min(PREFACE.len());
        if early[..known] != PREFACE[..known] {
            return Ok(Some(false));
        }
        if known == PREFACE.len() {
            return Ok(Some(true));
        }
        early.reserve(4096);
        if stream.read_buf(early).await? == 0 {
            return Ok((!early.is_empty()).then_some(false));
        }
    }
}

async fn serve<C, F>(connection: Pin<&mut C>, conn: Rc<Conn>, finish: F) -> Result<(), hyper::Error>
where
    C: Future<Output = Result<(), hyper::Error>>,
    F: Fn(Pin<&mut C>) + Unpin,
{
    Serve { connection, conn, finishing: false, finish }.await
}

/// Serves a connection and does what its worker orders, at the price of one look at a cell.
struct Serve<'a, C, F> {
    connection: Pin<&'a mut C>,
    conn: Rc<Conn>,
    finishing: bool,
    finish: F,
}

impl<C, F> Future for Serve<'_, C, F>
where
    C: Future<Output = Result<(), hyper::Error>>,
    F: Fn(Pin<&mut C>) + Unpin,
{
    type Output = Result<(), hyper::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        {
            let mut waker = this.conn.waker.borrow_mut();
            if waker.is_none() {
                *waker = Some(cx.waker().clone());
            }
        }
        match this.conn.order.get() {
            Order::GoOn => {}
            Order::Finish if this.finishing => {}
            Order::Finish => {
                this.finishing = true;
                (this.finish)(this.connection.as_mut());
            }
            Order::Stop => return Poll::Ready(Ok(())),
        }
        this.connection.as_mut().poll(cx)
    }
}
