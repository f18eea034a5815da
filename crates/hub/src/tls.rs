//! TLS on the hub's port, and the names in client certificates.
//!
//! rustls with ring, given explicitly: the process may have another default provider or none. Invariant: with a client
//! authority nobody gets as far as a request without a certificate that it signed, so a common name told here is one
//! that it vouches for.

use crate::HubError;
use crate::caller::Peer;
use crate::certificate::common_name;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{self, RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream;
use tonic::transport::server::{Connected, TcpIncoming};
use tracing::debug;

/// How long a client may take to shake hands.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Hands shaken at the same time; whoever comes then waits in the listener's queue.
const HANDSHAKES: usize = 256;

/// What the port speaks, over TLS.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// TLS on the port. All files are PEM.
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
    pub(crate) fn load(&self) -> Result<Arc<ServerConfig>, HubError> {
        let provider: Arc<CryptoProvider> = Arc::new(ring::default_provider());
        let (certs, key) = (certificates(&self.cert)?, private_key(&self.key)?);
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|source| unusable(&self.cert, source))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for authority in certificates(path)? {
                    roots.add(authority).map_err(|source| unusable(path, source))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                    .build()
                    .map_err(|error| unusable(path, rustls::Error::General(error.to_string())))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config =
            builder.with_single_cert(certs, key).map_err(|source| unusable(&self.cert, source))?;
        config.alpn_protocols = PROTOCOLS.iter().map(|name| name.to_vec()).collect();
        Ok(Arc::new(config))
    }
}

fn unusable(path: &Path, source: rustls::Error) -> HubError {
    HubError::Tls { path: path.to_owned(), source }
}

fn unreadable(path: &Path, error: pem::Error) -> HubError {
    let source = match error {
        pem::Error::Io(source) => source,
        other => io::Error::new(io::ErrorKind::InvalidData, other.to_string()),
    };
    HubError::TlsFile { path: path.to_owned(), source }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, HubError> {
    let read = CertificateDer::pem_file_iter(path).map_err(|error| unreadable(path, error))?;
    let read: Vec<_> = read.collect::<Result<_, _>>().map_err(|error| unreadable(path, error))?;
    if read.is_empty() { Err(unreadable(path, pem::Error::NoItemsFound)) } else { Ok(read) }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, HubError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| unreadable(path, error))
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
    acceptor: Option<TlsAcceptor>,
    shaking: FuturesUnordered<BoxFuture<'static, io::Result<Connection>>>,
}

impl Incoming {
    pub(crate) fn new(tcp: TcpIncoming, tls: Option<Arc<ServerConfig>>) -> Self {
        Self { tcp, acceptor: tls.map(TlsAcceptor::from), shaking: FuturesUnordered::new() }
    }
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let Some(acceptor) = &this.acceptor else {
            return this.tcp.poll_next_unpin(cx).map(|next| next.map(|tcp| tcp.map(Connection::Plain)));
        };
        while this.shaking.len() < HANDSHAKES {
            match this.tcp.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(tcp))) => this.shaking.push(Box::pin(shake(acceptor.clone(), tcp))),
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

async fn shake(acceptor: TlsAcceptor, tcp: TcpStream) -> io::Result<Connection> {
    let shaken = tokio::time::timeout(HANDSHAKE, acceptor.accept(tcp)).await;
    let stream = shaken.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let common_name = certificate.and_then(|certificate| common_name(certificate)).map(Arc::from);
    Ok(Connection::Tls(Box::new(stream), Peer { common_name, ..Peer::default() }))
}
