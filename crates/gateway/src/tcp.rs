//! Ports whose bytes go to a service as they are, and tunnels after an upgrade.
//!
//! Invariant: a tunnel that neither side uses ends, and one side's end is passed on to the other.

use crate::proxy_protocol;
use crate::serve;
use crate::service::{Flight, Service};
use crate::upstream::Upstream;
use crate::worker::Worker;
use muster_core::balance::{Outcome, Wish, hash};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tracing::debug;

/// Accepts connections to a service's port until it is aborted.
pub(crate) async fn accept(worker: Rc<Worker>, listener: TcpListener, port: u16) {
    loop {
        let (stream, address, counted) = serve::next(&worker, &listener).await;
        let worker = Rc::clone(&worker);
        tokio::task::spawn_local(async move {
            if let Err(error) = connection(&worker, stream, address, port).await {
                debug!(client = %address, port, %error, "connection ended");
            }
            drop(counted);
        });
    }
}

async fn connection(
    worker: &Rc<Worker>,
    mut client: TcpStream,
    address: SocketAddr,
    port: u16,
) -> io::Result<()> {
    client.set_nodelay(true)?;
    let name = worker.shared.tcp_service(port);
    let Some(service) = name.and_then(|name| worker.service(&name)) else {
        return Err(io::Error::new(io::ErrorKind::NotFound, "no service has this port"));
    };
    let mut early = bytes::BytesMut::new();
    let mut from = address;
    if worker.config().proxy_protocol {
        let limit = worker.config().limits.header_timeout;
        let read = proxy_protocol::read(&mut client, &mut early);
        from = tokio::time::timeout(limit, read).await.map_err(|_| timed_out())??.unwrap_or(address);
    }
    let own = client.local_addr()?;
    let (flight, mut endpoint) = connect(worker, &service, from).await?;
    let policy = service.policy();
    if policy.proxy_protocol {
        endpoint.write_all(&proxy_protocol::header(from, own)).await?;
    }
    endpoint.write_all(&early).await?;
    let bytes = tunnel(client, endpoint, policy.tunnel_timeout).await?;
    flight.complete(bytes);
    Ok(())
}

pub(crate) fn timed_out() -> io::Error {
    io::ErrorKind::TimedOut.into()
}

/// A connection to one of the service's endpoints. Nothing was sent, so every one may be tried.
async fn connect(
    worker: &Rc<Worker>,
    service: &Rc<Service>,
    client: SocketAddr,
) -> io::Result<(Flight, TcpStream)> {
    let policy = service.policy();
    let mut tried = Vec::new();
    let hash = hash(0, client.ip().to_canonical().to_string().as_bytes());
    let started = worker.now();
    // Nothing was sent yet, so it may wait for an endpoint as long as any other.
    loop {
        let enough = tried.len() > policy.retries as usize;
        let wish = Wish { hash: Some(hash), stick: None, tried: &tried, may_probe: true };
        let picked = if enough { None } else { service.pick(worker.now(), worker.roll(), &wish) };
        let Some((mut flight, upstream)) = picked else {
            let left = policy.hold.saturating_sub(worker.now().saturating_sub(started));
            if !left.is_zero() {
                service.wait(left).await;
                tried.clear();
                continue;
            }
            return Err(io::Error::new(io::ErrorKind::NotConnected, "no endpoint can be reached"));
        };
        let upstream: Rc<Upstream> = upstream;
        match upstream.tcp(policy.connect_timeout).await {
            Ok(stream) => {
                flight.tell(worker.now(), Outcome::Answered(Duration::ZERO));
                return Ok((flight, stream));
            }
            Err(_) => {
                flight.tell(worker.now(), Outcome::Unreachable);
                tried.push(flight.place);
            }
        }
    }
}

/// Passes bytes on in both directions until both have ended, or nothing has come from either for so long. Gives how
/// many went to the client.
pub(crate) async fn tunnel<A, B>(client: A, endpoint: B, idle: Duration) -> io::Result<u64>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_endpoint, mut to_endpoint) = tokio::io::split(endpoint);
    let last = std::cell::Cell::new(tokio::time::Instant::now());
    let up = copy(&mut from_client, &mut to_endpoint, &last);
    let down = copy(&mut from_endpoint, &mut to_client, &last);
    let both = async { tokio::try_join!(up, down) };
    let watch = async {
        loop {
            let end = last.get() + idle;
            if tokio::time::Instant::now() >= end {
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    };
    tokio::select! {
        copied = both => copied.map(|(_, down)| down),
        () = watch => Err(timed_out()),
    }
}

/// Bytes read at once.
const PIECE: usize = 16 << 10;

async fn copy<R, W>(from: &mut R, to: &mut W, last: &std::cell::Cell<tokio::time::Instant>) -> io::Result<u64>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut piece = vec![0; PIECE];
    let mut all = 0;
    loop {
        let length = from.read(&mut piece).await?;
        if length == 0 {
            to.shutdown().await?;
            return Ok(all);
        }
        to.write_all(&piece[..length]).await?;
        to.flush().await?;
        all += length as u64;
        last.set(tokio::time::Instant::now());
    }
}
