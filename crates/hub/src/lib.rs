//! The embedded hub: a single-node, durable server that speaks etcd's v3 API.
//!
//! Any etcd client can use it. Semantics are `mvcc`'s; here are the disk ([`storage`]), the thread that owns the store
//! ([`apply`]) and the gRPC services. Invariant: a write is answered, and shown to any reader or watcher, only after
//! its fsync. One node, no replication: for high availability use a real etcd cluster instead.

/// The apply thread: executes, makes durable, answers.
mod apply;
/// The Auth service.
mod auth;
/// bbolt's file format.
mod bolt;
/// Who makes a call.
mod caller;
/// The Cluster service.
mod cluster;
/// When the hub compacts by itself.
mod compaction;
/// Which connections there are.
mod connections;
/// Between protobuf and the store's types.
mod convert;
/// From the apply thread to the services.
mod dispatch;
/// The Election service.
mod election;
/// Promises that no input may break.
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
/// Who may do what.
mod guard;
/// How long things took.
mod histogram;
/// HTTP/1.1 on gRPC's port.
mod http;
/// Connections as h2 should see them.
mod io;
/// The KV service.
mod kv;
/// The Lease service.
mod lease;
/// The Lock service.
mod lock;
/// The Maintenance service.
mod maintenance;
/// All keys of one server copied to another.
pub mod migrate;
/// The store of one moment.
mod pieces;
/// Ranges in parts.
mod range_stream;
/// A running hub or etcd, asked from outside.
pub mod remote;
/// What the services ask of the apply thread.
mod request;
/// A hub's data out of a snapshot.
pub mod restore;
/// Calls of the services that are written by hand.
mod rpc;
/// What locks and elections stand on.
mod session;
/// The store as readers see it.
mod shared;
/// Snapshots in etcd's format.
pub mod snapshot;
/// Snapshots in the background.
mod snapshots;
/// What may be added.
mod space;
/// How long-lived streams end.
mod stop;
/// The disk.
mod storage;
/// TLS on the port.
mod tls;
/// The v2 keys API.
mod v2;
/// Whether a hub's data is sound.
pub mod verify;
/// The Watch service.
mod watch;
/// The apply thread's side of watch streams.
mod watchers;
/// A codec for services written by hand.
mod wire;

pub use crate::auth::AuthConfig;
pub use crate::tls::TlsConfig;

use crate::apply::Apply;
use crate::guard::Guard;
use crate::request::Queue;
use crate::shared::Shared;
use crate::space::Space;
use crate::storage::{Opened, Storage};
use crate::tls::{Certificates, Incoming};
use etcd_client::proto as pb;
use futures_util::StreamExt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tracing::info;

/// How long an orderly stop waits for requests in flight.
const DRAIN: Duration = Duration::from_secs(5);

/// Streams per connection. Clients open one per watch and per lease, which h2's default of 200 is too few for; etcd 3.4
/// sets no limit, but then one client that forgets to close them has all of the memory.
const MAX_STREAMS: u32 = 1 << 15;

/// Silent connections are asked for a sign of life after this long, so that the watches of a machine that lost power
/// go away.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// What a hub needs to know.
#[derive(Debug, Clone)]
pub struct HubConfig {
    /// Where its data lives; made if it does not exist.
    pub data_dir: PathBuf,
    /// Where it listens; port 0 picks one.
    pub listen: SocketAddr,
    /// The URL that clients are told (`etcdctl member list`); by default the address it listens on.
    pub advertise: Option<String>,
    /// Its name, as the only member.
    pub name: String,
    /// How users log in, once there are any.
    pub auth: AuthConfig,
    /// TLS on the port; none is plain HTTP/2.
    pub tls: Option<TlsConfig>,
    /// How large it may become.
    pub limits: Limits,
}

/// How large a hub may become, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// What keys, values and their history may take in memory. What would exceed it is refused, until somebody freed
    /// space and disarmed the alarm.
    pub quota: u64,
    /// What the log may grow by until a snapshot replaces it. The disk holds at most about this and three times the
    /// data.
    pub log: u64,
}

impl Default for Limits {
    /// A quota of 2 GiB, which is etcd's, and 64 MiB of log: a start reads no more than that beside the data.
    fn default() -> Self {
        Self { quota: 2 << 30, log: 64 << 20 }
    }
}

/// Why a hub did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The data directory cannot be used.
    #[error("could not use data directory {path}")]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another hub has it.
    #[error("data directory {path} is in use by another hub")]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The data was written by another version.
    #[error("{path} has format {found}, this version knows {known}")]
    Format {
        /// The file.
        path: PathBuf,
        /// The format found.
        found: i64,
        /// The newest format known.
        known: i64,
    },
    /// The data is damaged.
    #[error("{path} is damaged: {what}")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The address cannot be listened on.
    #[error("could not listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A certificate or key is of no use.
    #[error(transparent)]
    Tls(#[from] access::FileError),
    /// The server stopped.
    #[error("the gRPC server stopped")]
    Serve(#[source] Option<tonic::transport::Error>),
    /// The thread that applies requests stopped, or could not be started.
    #[error("the apply thread stopped")]
    Apply(#[source] Option<std::io::Error>),
}

/// A running hub. Dropping it stops it at once, without farewell to its clients; nothing acknowledged is lost.
#[derive(Debug)]
pub struct Hub {
    address: SocketAddr,
    /// Ends streams and the taking of connections.
    closing: CancellationToken,
    /// Ends the apply thread.
    stop: CancellationToken,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    /// Where the services run; none once it is told to end.
    io: Option<Runtime>,
    apply: Option<thread::JoinHandle<()>>,
    apply_ended: oneshot::Receiver<std::io::Error>,
    /// To be asked in process.
    #[cfg(any(test, fuzzing))]
    routes: Routes,
}

impl Hub {
    /// Opens the data and serves it. Ready for clients when this returns.
    pub async fn start(config: HubConfig) -> Result<Self, HubError> {
        let (data_dir, tls, limits) = (config.data_dir.clone(), config.tls.clone(), config.limits);
        let opened = tokio::task::spawn_blocking(move || {
            let tls = tls.map(Certificates::load).transpose()?;
            Ok::<_, HubError>((open(&data_dir, limits)?, tls))
        });
        let (loaded, tls) =
            opened.await.map_err(|panic| HubError::Apply(Some(std::io::Error::other(panic))))??;
        let Loaded { storage, identity, replayed, started } = loaded;
        let listen = |source| HubError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let (revision, keys) = (replayed.store.revision().0, replayed.store.size());

        let shared = Arc::new(Shared::new(replayed.store, started));
        let io = io_runtime().map_err(|error| HubError::Apply(Some(error)))?;
        let (parcels, deliveries) = mpsc::unbounded_channel();
        let (queue, requests) = Queue::new(Arc::clone(&shared));
        let (closing, stop) = (CancellationToken::new(), CancellationToken::new());
        let guard = Guard::new(config.auth.token_ttl);
        let space = Space::new(limits.quota, identity.member);
        let apply = Apply::new(shared, storage, requests, parcels, guard, space);
        io.spawn(dispatch::deliver(deliveries)); // ends with the apply thread
        let (ended, apply_ended) = oneshot::channel();
        let apply_stop = stop.clone();
        let apply = thread::Builder::new()
            .name("hub-apply".to_owned())
            .spawn(move || {
                if let Err(error) = apply.run(apply_stop) {
                    let _ = ended.send(error); // nobody waits during a shutdown
                }
            })
            .map_err(|error| HubError::Apply(Some(error)))?;

        let advertise = config.advertise.unwrap_or_else(|| default_url(address, tls.is_some()));
        let (q, c) = (|| queue.clone(), || closing.clone());
        let kv = kv::KvService { queue: q(), identity };
        let watch = watch::WatchService { queue: q(), identity, stop: c() };
        let lease = lease::LeaseService { queue: q(), identity, stop: c() };
        let cluster = cluster::ClusterService { queue: q(), identity, name: config.name, advertise };
        let maintenance = maintenance::MaintenanceService { queue: q(), identity, stop: c() };
        let auth = auth::AuthService::new(q(), identity, &config.auth);
        let lock = lock::LockService { queue: q(), identity, stop: c() };
        let election = election::ElectionService { queue: q(), identity, stop: c() };
        // tonic's own default of 4 MiB limits requests; answers have no limit.
        let grpc = Routes::new(kv)
            .add_service(watch)
            .add_service(lease)
            .add_service(pb::PbClusterServer::new(cluster))
            .add_service(pb::PbMaintenanceServer::new(maintenance))
            .add_service(auth)
            .add_service(lock)
            .add_service(election);
        // Serving as a whole ("") and nothing finer, like etcd: when it does not, nobody answers.
        let (_, health) = tonic_health::server::health_reporter();
        let grpc = grpc.add_service(health);
        let routes = http::routes(grpc, q(), identity);
        #[cfg(any(test, fuzzing))]
        let served = routes.clone();
        #[cfg(not(any(test, fuzzing)))]
        let served = routes;
        let server = Server::builder()
            .accept_http1(true)
            .max_concurrent_streams(MAX_STREAMS)
            .http2_keepalive_interval(Some(KEEPALIVE))
            .add_routes(served);
        let incoming = Incoming::new(TcpIncoming::from(listener).with_nodelay(Some(true)), tls);
        let incoming = connections::Connections::new(incoming);
        let incoming = incoming.map(|connection| connection.map(io::Gathering::new));
        let server =
            io.spawn(server.serve_with_incoming_shutdown(incoming, closing.clone().cancelled_owned()));
        info!(%address, revision, bytes = keys, "hub started");
        Ok(Self {
            address,
            closing,
            stop,
            server,
            io: Some(io),
            apply: Some(apply),
            apply_ended,
            #[cfg(any(test, fuzzing))]
            routes,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops in order: no new connections, streams end with Unavailable, requests in flight are answered.
    pub async fn shutdown(mut self) {
        self.closing.cancel();
        if tokio::time::timeout(DRAIN, &mut self.server).await.is_err() {
            self.server.abort();
        }
        self.stop.cancel();
        if let Some(apply) = self.apply.take() {
            // Joining only waits for the last commit; a panic there has been reported by the panic hook.
            let _ = tokio::task::spawn_blocking(move || apply.join()).await;
        }
        info!(address = %self.address, "hub stopped");
    }

    /// Resolves if the hub dies by itself, with the reason.
    pub async fn finished(&mut self) -> HubError {
        tokio::select! {
            ended = &mut self.server => HubError::Serve(match ended {
                Ok(Err(error)) => Some(error),
                Ok(Ok(())) | Err(_) => None,
            }),
            ended = &mut self.apply_ended => {
                self.closing.cancel();
                HubError::Apply(ended.ok())
            }
        }
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.closing.cancel();
        self.stop.cancel();
        self.server.abort();
        if let Some(io) = self.io.take() {
            io.shutdown_background(); // a drop must not block on the streams of slow clients
        }
        if let Some(apply) = self.apply.take() {
            // At most one commit long; afterwards the data directory is free for the next hub.
            let _ = apply.join();
        }
    }
}

/// Threads for the services: half of the cores. Answers of one turn that wake one thread cost less than those that wake
/// several, and the apply thread and whoever shares the machine need the others.
fn io_runtime() -> std::io::Result<Runtime> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads((cores / 2).max(1)).thread_name("hub-io").enable_all().build()
}

struct Loaded {
    storage: Storage,
    identity: storage::Identity,
    replayed: mvcc::Replayed,
    /// The zero of the leases' clock.
    started: Instant,
}

fn open(data_dir: &Path, limits: Limits) -> Result<Loaded, HubError> {
    let Opened { mut storage, identity, records } = Storage::open(data_dir)?;
    storage.set_snapshot_after(limits.log);
    let started = Instant::now();
    let replayed = mvcc::Store::replay(records, Duration::ZERO)
        .map_err(|error| HubError::Corrupt { path: data_dir.to_owned(), what: error.to_string() })?;
    Ok(Loaded { storage, identity, replayed, started })
}

fn default_url(address: SocketAddr, tls: bool) -> String {
    let scheme = if tls { "https" } else { "http" };
    if address.ip().is_unspecified() {
        return format!("{scheme}://localhost:{}", address.port());
    }
    format!("{scheme}://{address}")
}
