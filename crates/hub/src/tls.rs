//! TLS on the hub's port, and the names in client certificates.
//!
//! rustls with ring, given explicitly: the process may have another default provider or none. Invariant: with a client
//! authority nobody gets as far as a request without a certificate that it signed, so a common name told here is one
//! that it vouches for.

use crate::HubError;
use crate::caller::Peer;
use access::{FileError, Identity, Stamp};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{self, ServerConfig};
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream;
use tonic::transport::server::{Connected, TcpIncoming};
use tracing::{debug, error, info};

/// How long a client may take to shake hands.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How long a client that was refused may take to read why.
const FAREWELL: Duration = Duration::from_secs(1);

/// Hands shaken at the same time; whoever comes then waits in the listener's queue.
const HANDSHAKES: usize = 256;

/// What the port speaks, over TLS.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// TLS on the port. All files are PEM. Files that are replaced are used from the next connection on.
#[derive(Debug, Clone)]
pub struct TlsConfig {
    /// The hub's certificate, and those between it and an authority that clients know (etcd's `--cert-file`).
    pub cert: PathBuf,
    /// Its private key (etcd's `--key-file`).
    pub key: PathBuf,
    /// Authorities of client certificates (etcd's `--trusted-ca-file` with `--client-cert-auth`). With it every client
    /// needs a certificate, and its common name is its user if it shows no token.
    pub client_ca: Option<PathBuf>,
}

impl TlsConfig {
    /// Reads the files. Blocks.
    fn load(&self) -> Result<Arc<ServerConfig>, FileError> {
        let provider: Arc<CryptoProvider> = Arc::new(ring::default_provider());
        let Identity { chain, key } = Identity::load(&self.cert, &self.key)?;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|source| unusable(&self.cert, source))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let roots = Arc::new(access::authorities(path)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
                    .build()
                    .map_err(|error| unusable(path, rustls::Error::General(error.to_string())))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config =
            builder.with_single_cert(chain, key).map_err(|source| unusable(&self.cert, source))?;
        config.alpn_protocols = PROTOCOLS.iter().map(|name| name.to_vec()).collect();
        Ok(Arc::new(config))
    }

    fn stamp(&self) -> Stamp {
        let files = [Some(&self.cert), Some(&self.key), self.client_ca.as_ref()];
        Stamp::of(files.into_iter().flatten().map(PathBuf::as_path))
    }
}

fn unusable(path: &Path, source: rustls::Error) -> FileError {
    FileError::Unusable { path: path.to_owned(), source }
}

/// What connections are secured with, as the files have it. Files of no use change nothing: half of a new pair is there
/// before the other.
pub(crate) struct Certificates {
    files: TlsConfig,
    current: Mutex<(Stamp, Arc<ServerConfig>)>,
}

impl Certificates {
    /// Reads the files. Blocks.
    pub(crate) fn load(files: TlsConfig) -> Result<Self, HubError> {
        let stamp = files.stamp();
        let config = files.load()?;
        Ok(Self { files, current: Mutex::new((stamp, config)) })
    }

    /// Those in force now. Looks at the files, and reads them if they were replaced.
    fn current(&self) -> Arc<ServerConfig> {
        let stamp = self.files.stamp();
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.0 != stamp {
            current.0 = stamp;
            match self.files.load() {
                Ok(config) => {
                    info!(certificate = %self.files.cert.display(), "certificate replaced");
                    current.1 = config;
                }
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    error!(error, "new certificate is of no use, going on with the last one");
                }
            }
        }
        Arc::clone(&current.1)
    }
}

/// A connection, whichever way it came.
pub(crate) enum Connection {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>, Peer),
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        match self {
            Self::Plain(_) => Peer::default(),
            Self::Tls(_, peer) => peer.clone(),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream, _) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream, _) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Tls(stream, _) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream, _) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream, _) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream, _) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// Connections that are ready for requests. A client that shakes hands slowly, or not at all, holds up nobody else.
pub(crate) struct Incoming {
    tcp: TcpIncoming,
    certificates: Option<Arc<Certificates>>,
    shaking: FuturesUnordered<BoxFuture<'static, io::Result<Connection>>>,
}

impl Incoming {
    pub(crate) fn new(tcp: TcpIncoming, tls: Option<Certificates>) -> Self {
        Self { tcp, certificates: tls.map(Arc::new), shaking: FuturesUnordered::new() }
    }
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let Some(certificates) = &this.certificates else {
            return this.tcp.poll_next_unpin(cx).map(|next| next.map(|tcp| tcp.map(Connection::Plain)));
        };
        while this.shaking.len() < HANDSHAKES {
            match this.tcp.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(tcp))) => {
                    this.shaking.push(Box::pin(shake(Arc::clone(certificates), tcp)));
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => break,
            }
        }
        loop {
            match this.shaking.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(connection))) => return Poll::Ready(Some(Ok(connection))),
                // The client's trouble: it has been told by an alert, if it got that far.
                Poll::Ready(Some(Err(error))) => debug!(%error, "tls handshake failed"),
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    }
}

async fn shake(certificates: Arc<Certificates>, tcp: TcpStream) -> io::Result<Connection> {
    let config = tokio::task::spawn_blocking(move || certificates.current()).await?;
    let accept = TlsAcceptor::from(config).accept(tcp).into_fallible();
    let shaken = tokio::time::timeout(HANDSHAKE, accept).await;
    let stream = match shaken.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))? {
        Ok(stream) => stream,
        Err((error, tcp)) => {
            let _ = tokio::time::timeout(FAREWELL, farewell(tcp)).await; // the first error is the one to tell
            return Err(error);
        }
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let common_name = certificate.and_then(|certificate| access::common_name(certificate)).map(Arc::from);
    Ok(Connection::Tls(Box::new(stream), Peer { common_name, ..Peer::default() }))
}

/// Lets a client that was refused read the alert that says why. The kernel would throw it away: a connection that is
/// closed before everything that came was read is reset.
async fn farewell(mut tcp: TcpStream) -> io::Result<()> {
    tcp.shutdown().await?;
    let mut unread = [0; 1024];
    while tcp.read(&mut unread).await? > 0 {}
    Ok(())
}
