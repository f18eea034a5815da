//! The container engine's API over its unix socket: where a container is, how it is, and what happens to containers.
//! Docker's API, which Podman's socket speaks too.
//!
//! Not here: what follows from it. Invariant: every question has a deadline; only the stream of events waits, and
//! whoever reads it is told when it may have missed something.
#![warn(missing_docs)]

/// Which container a unit's is, read off its file.
pub mod naming;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, StatusCode, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use ipnet::Ipv4Net;
use serde::Deserialize;
use std::{collections::BTreeMap, net::Ipv4Addr, path::PathBuf, time::Duration};
use tokio::{net::UnixStream, sync::mpsc};
use tracing::{debug, info};

/// The engine answers within milliseconds, or it is in trouble.
const ANSWER: Duration = Duration::from_secs(5);
/// Between attempts to get events.
const AGAIN: Duration = Duration::from_secs(1);
/// Events under way. A reader that is behind holds the engine's stream up.
const BUFFER: usize = 256;
/// The longest event that is taken in; one has a line.
const LONGEST: usize = 1024 * 1024;

/// A container engine.
#[derive(Debug, Clone)]
pub struct Engine {
    socket: PathBuf,
}

/// Why the engine did not answer.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Nobody listens there.
    #[error("no container engine at {socket}")]
    Socket {
        /// Where.
        socket: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The connection broke.
    #[error("the container engine broke off")]
    Broken(#[from] hyper::Error),
    /// It said no.
    #[error("the container engine answers {status}: {message}")]
    Refused {
        /// HTTP's status.
        status: StatusCode,
        /// What it said.
        message: String,
    },
    /// It said what nobody understands.
    #[error("the container engine's answer is not understood")]
    Unreadable(#[from] serde_json::Error),
    /// It said nothing.
    #[error("the container engine does not answer within {} s", ANSWER.as_secs())]
    Silent,
}

/// A container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Whether its process runs.
    pub running: bool,
    /// Its address on its network; on the default bridge where it is on several.
    pub address: Option<Ipv4Addr>,
    /// It has the machine's own network.
    pub host_network: bool,
    /// What its own health check says: `starting`, `healthy` or `unhealthy`; none if it has none.
    pub health: Option<String>,
}

/// A network that containers may be on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// What it gives away.
    pub pools: Vec<Pool>,
}

/// Addresses that a network gives away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    /// The network's own.
    pub subnet: Ipv4Net,
    /// The part of it that containers get: all of it, unless the network says otherwise.
    pub range: Ipv4Net,
}

/// What happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The stream begins: what happened before is not known.
    Begins,
    /// A container's process runs.
    Started {
        /// The container's name.
        name: String,
    },
    /// A container's process has ended.
    Died {
        /// The container's name.
        name: String,
    },
    /// A container's own health check has come to another result.
    Health {
        /// The container's name.
        name: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    id: String,
    name: String,
    state: InspectedState,
    #[serde(default)]
    host_config: InspectedHost,
    #[serde(default)]
    network_settings: InspectedNetwork,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InspectedState {
    #[serde(default)]
    running: bool,
    health: Option<InspectedHealth>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InspectedHealth {
    #[serde(default)]
    status: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct InspectedHost {
    network_mode: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct InspectedNetwork {
    #[serde(rename = "IPAddress")]
    address: String,
    networks: BTreeMap<String, InspectedEndpoint>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct InspectedEndpoint {
    #[serde(rename = "IPAddress")]
    address: String,
}

#[derive(Deserialize)]
struct Listed {
    #[serde(rename = "Id")]
    id: String,
}

#[derive(Deserialize)]
struct ListedNetwork {
    #[serde(rename = "Name")]
    name: String,
    #[serde(rename = "IPAM", default)]
    ipam: ListedIpam,
}

#[derive(Deserialize, Default)]
struct ListedIpam {
    /// Docker says null for networks that have no addresses.
    #[serde(rename = "Config", default)]
    config: Option<Vec<ListedPool>>,
}

#[derive(Deserialize)]
struct ListedPool {
    #[serde(rename = "Subnet", default)]
    subnet: String,
    #[serde(rename = "IPRange", default)]
    range: String,
}

impl ListedPool {
    /// None for one of IPv6.
    fn pool(&self) -> Option<Pool> {
        let subnet = self.subnet.parse().ok()?;
        Some(Pool { subnet, range: self.range.parse().unwrap_or(subnet) })
    }
}

#[derive(Deserialize)]
struct Happened {
    #[serde(rename = "Action", default)]
    action: String,
    #[serde(rename = "Actor", default)]
    actor: Actor,
}

#[derive(Deserialize, Default)]
struct Actor {
    #[serde(rename = "Attributes", default)]
    attributes: BTreeMap<String, String>,
}

impl Engine {
    /// The engine that listens at `socket`.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// The container by that name or id; none if there is none.
    pub async fn inspect(&self, name: &str) -> Result<Option<Container>, EngineError> {
        let answer = self.get(&format!("/containers/{}/json", encode(name))).await;
        let text = match answer {
            Err(EngineError::Refused { status: StatusCode::NOT_FOUND, .. }) => return Ok(None),
            other => other?,
        };
        let found: Inspected = serde_json::from_slice(&text)?;
        let network = found.network_settings;
        let others = network.networks.values().map(|endpoint| endpoint.address.as_str());
        let address =
            std::iter::once(network.address.as_str()).chain(others).find_map(|text| text.parse().ok());
        Ok(Some(Container {
            id: found.id,
            name: found.name.trim_start_matches('/').to_owned(),
            running: found.state.running,
            address,
            host_network: found.host_config.network_mode == "host",
            health: found.state.health.map(|health| health.status).filter(|status| status != "none"),
        }))
    }

    /// The id of a running container with that label.
    pub async fn labelled(&self, label: &str, value: &str) -> Result<Option<String>, EngineError> {
        let filter = serde_json::json!({ "label": [format!("{label}={value}")] }).to_string();
        let text = self.get(&format!("/containers/json?filters={}", encode(&filter))).await?;
        let found: Vec<Listed> = serde_json::from_slice(&text)?;
        Ok(found.into_iter().next().map(|listed| listed.id))
    }

    /// The networks that there are.
    pub async fn networks(&self) -> Result<Vec<Network>, EngineError> {
        let found: Vec<ListedNetwork> = serde_json::from_slice(&self.get("/networks").await?)?;
        let network = |found: ListedNetwork| {
            let pools = found.ipam.config.unwrap_or_default();
            Network { name: found.name, pools: pools.iter().filter_map(ListedPool::pool).collect() }
        };
        Ok(found.into_iter().map(network).collect())
    }

    /// What happens to containers from now on, for as long as the receiver is kept.
    pub fn events(&self) -> mpsc::Receiver<Event> {
        let (sender, receiver) = mpsc::channel(BUFFER);
        let engine = self.clone();
        tokio::spawn(async move {
            let mut away = false;
            while !sender.is_closed() {
                if let Err(error) = engine.stream(&sender, &mut away).await
                    && !std::mem::replace(&mut away, true)
                {
                    info!(%error, "no events of containers, trying on");
                }
                tokio::time::sleep(AGAIN).await;
            }
        });
        receiver
    }

    async fn stream(&self, sender: &mpsc::Sender<Event>, away: &mut bool) -> Result<(), EngineError> {
        let filter = serde_json::json!({ "type": ["container"], "event": ["start", "die", "health_status"] });
        let path = format!("/events?filters={}", encode(&filter.to_string()));
        let mut body =
            tokio::time::timeout(ANSWER, self.ask(&path)).await.map_err(|_| EngineError::Silent)??;
        if std::mem::take(away) {
            info!("events of containers again");
        }
        if sender.send(Event::Begins).await.is_err() {
            return Ok(());
        }
        let mut waiting = Vec::new();
        loop {
            let frame = tokio::select! {
                frame = body.frame() => frame,
                () = sender.closed() => return Ok(()),
            };
            let Some(frame) = frame else { return Ok(()) };
            let Ok(data) = frame?.into_data() else { continue };
            waiting.extend_from_slice(&data);
            while let Some(end) = waiting.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = waiting.drain(..=end).collect();
                if let Some(event) = read(&line)
                    && sender.send(event).await.is_err()
                {
                    return Ok(());
                }
            }
            // Some versions end an event with nothing but its brace.
            if let Some(event) = serde_json::from_slice::<Happened>(&waiting).ok().map(|_| read(&waiting)) {
                waiting.clear();
                if let Some(event) = event
                    && sender.send(event).await.is_err()
                {
                    return Ok(());
                }
            }
            if waiting.len() > LONGEST {
                debug!("an event of a container is too long");
                return Ok(());
            }
        }
    }

    async fn get(&self, path: &str) -> Result<Bytes, EngineError> {
        let answer = async { Ok(self.ask(path).await?.collect().await?.to_bytes()) };
        tokio::time::timeout(ANSWER, answer).await.map_err(|_| EngineError::Silent)?
    }

    async fn ask(&self, path: &str) -> Result<Incoming, EngineError> {
        let socket = |source| EngineError::Socket { socket: self.socket.clone(), source };
        let stream = UnixStream::connect(&self.socket).await.map_err(socket)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // It ends with the answer, or when nobody reads that any more.
        tokio::spawn(connection);
        let request = Request::get(path).header("Host", "engine").body(Empty::<Bytes>::new());
        let request = request.expect("paths are encoded");
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer.into_body());
        }
        let text = answer.into_body().collect().await?.to_bytes();
        let said = serde_json::from_slice::<serde_json::Value>(&text).ok();
        let message = said.and_then(|said| said.get("message")?.as_str().map(str::to_owned));
        let message = message.unwrap_or_else(|| String::from_utf8_lossy(&text).trim().to_owned());
        Err(EngineError::Refused { status, message })
    }
}

fn read(line: &[u8]) -> Option<Event> {
    let happened: Happened = serde_json::from_slice(line).ok()?;
    let name = happened.actor.attributes.get("name")?.clone();
    match happened.action.as_str() {
        "start" => Some(Event::Started { name }),
        "die" => Some(Event::Died { name }),
        action if action.starts_with("health_status") => Some(Event::Health { name }),
        _ => None,
    }
}

/// For a path or a query.
fn encode(text: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(byte);
    text.bytes()
        .map(|byte| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}
