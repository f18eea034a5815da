//! Updates: a unit's former texts, and rollouts of a new one. Types, routes and client of these in one place.
//!
//! No decision is made here. Invariant: an update is one record in the hub; the engine that leads carries it out,
//! whether or not its client is still there.

use crate::{
    client::{Client, ClientError, path_segment, whole},
    server::{Asked, At, Said, line, parse, stream},
    types::ApiError,
};
use axum::{
    Json, Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::BytesMut;
use futures_util::{Stream, StreamExt};
use hyper::Method;
use model::{Progress, RolloutRecord, RolloutState, Timestamp, UnitName};
use serde::{Deserialize, Serialize};
use std::future::Future;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// `GET /v1/units/{name}/history`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// Which unit.
    pub unit: UnitName,
    /// The texts that it had, the oldest first; the last one is the one that it has.
    pub versions: Vec<Version>,
}

/// A text of a unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Counted from 1.
    pub number: u64,
    /// The unit file's hash.
    pub hash: String,
    /// The unit file.
    pub text: String,
    /// When it was replaced; absent for the one that the unit has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaced: Option<Timestamp>,
    /// Who replaced it; empty when nobody said so.
    #[serde(default)]
    pub by: String,
}

/// The body of `POST /v1/rollouts`: give a unit, or a template and all its instances, a text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutOrder {
    /// The unit or the template.
    pub name: UnitName,
    /// The unit file; without it, one that the unit had before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Which of the former ones; without it, the one before the one that it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// How many units may be out of service at the same time.
    #[serde(default = "one")]
    pub at_once: u32,
    /// Milliseconds that a unit may take until it is ready.
    #[serde(default = "a_minute")]
    pub ready_timeout: u64,
    /// Milliseconds that a unit must stay ready.
    #[serde(default = "two_seconds")]
    pub settle: u64,
    /// Whether to give the former text back when it fails.
    #[serde(default = "yes")]
    pub rollback: bool,
    /// Who wants it.
    #[serde(default)]
    pub by: String,
}

fn one() -> u32 {
    1
}

fn a_minute() -> u64 {
    60_000
}

fn two_seconds() -> u64 {
    2_000
}

fn yes() -> bool {
    true
}

/// What to do with a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Command {
    /// Replace no further unit for now.
    Pause,
    /// Go on.
    Resume,
    /// Give what was replaced its former text back.
    Abort,
}

/// The body of `POST /v1/rollouts/{name}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutCommand {
    /// What to do.
    pub command: Command,
    /// Who wants it.
    #[serde(default)]
    pub by: String,
}

/// An update, under way or the last one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// The unit or the template.
    pub name: UnitName,
    /// The new text's hash.
    pub hash: String,
    /// How it stands.
    pub state: RolloutState,
    /// Why.
    #[serde(default)]
    pub message: String,
    /// How many units may be out of service at the same time.
    pub at_once: u32,
    /// Who ordered it.
    #[serde(default)]
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// Its units, in the order in which they are replaced.
    pub units: Vec<RolloutUnit>,
}

/// How far an update is with one unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutUnit {
    /// Which unit.
    pub unit: UnitName,
    /// How far it is.
    pub progress: Progress,
    /// The name of its machine, if it has been on one since.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub machine: String,
    /// What is to be said about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

impl Rollout {
    /// The hub's record, without the texts.
    pub fn of(name: UnitName, record: &RolloutRecord) -> Self {
        let unit = |unit: &model::RolloutUnit| RolloutUnit {
            unit: unit.unit.clone(),
            progress: unit.progress,
            machine: unit.machine.clone(),
            message: unit.message.clone(),
        };
        Self {
            name,
            hash: record.hash.clone(),
            state: record.state,
            message: record.message.clone(),
            at_once: record.at_once,
            by: record.by.clone(),
            at: record.at,
            units: record.units.iter().map(unit).collect(),
        }
    }
}

/// `GET /v1/rollouts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutList {
    /// By name; of each the last one.
    pub rollouts: Vec<Rollout>,
}

/// Whether to go on with what becomes of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct RolloutQuery {
    #[serde(default)]
    watch: bool,
}

/// What the server answers these from.
pub trait Rollouts: Clone + Send + Sync + 'static {
    /// The texts that a unit had.
    fn history(&self, unit: UnitName) -> impl Future<Output = Result<History, ApiError>> + Send;
    /// All updates.
    fn rollouts(&self) -> impl Future<Output = Result<RolloutList, ApiError>> + Send;
    /// Begins an update.
    fn roll(&self, order: RolloutOrder) -> impl Future<Output = Result<Rollout, ApiError>> + Send;
    /// Directs one that is under way.
    fn direct(
        &self,
        name: UnitName,
        command: RolloutCommand,
    ) -> impl Future<Output = Result<Rollout, ApiError>> + Send;
    /// An update as it is, then again at every change, until it is over or the receiver is dropped.
    fn watch_rollout(
        &self,
        name: UnitName,
    ) -> impl Future<Output = Result<mpsc::Receiver<Rollout>, ApiError>> + Send;
}

pub(crate) fn routes<S: Rollouts>() -> Router<S> {
    Router::new()
        .route("/v1/units/{name}/history", get(history::<S>))
        .route("/v1/rollouts", get(rollouts::<S>).post(roll::<S>))
        .route("/v1/rollouts/{name}", get(rollout::<S>).post(direct::<S>))
}

async fn history<S: Rollouts>(
    State(service): State<S>,
    At(name): At<String>,
) -> Result<Json<History>, ApiError> {
    service.history(parse(&name)?).await.map(Json)
}

async fn rollouts<S: Rollouts>(State(service): State<S>) -> Result<Json<RolloutList>, ApiError> {
    service.rollouts().await.map(Json)
}

async fn roll<S: Rollouts>(
    State(service): State<S>,
    Said(order): Said<RolloutOrder>,
) -> Result<Json<Rollout>, ApiError> {
    service.roll(order).await.map(Json)
}

async fn direct<S: Rollouts>(
    State(service): State<S>,
    At(name): At<String>,
    Said(command): Said<RolloutCommand>,
) -> Result<Json<Rollout>, ApiError> {
    service.direct(parse(&name)?, command).await.map(Json)
}

async fn rollout<S: Rollouts>(
    State(service): State<S>,
    At(name): At<String>,
    Asked(query): Asked<RolloutQuery>,
) -> Result<Response, ApiError> {
    let name: UnitName = parse(&name)?;
    if query.watch {
        let changes = service.watch_rollout(name).await?;
        return Ok(stream("application/x-ndjson", ReceiverStream::new(changes).map(|change| line(&change))));
    }
    let mut all = service.rollouts().await?.rollouts.into_iter();
    let found = all.find(|rollout| rollout.name == name);
    let found = found.ok_or_else(|| ApiError::not_found(format!("unit {name} was never updated")))?;
    Ok(Json(found).into_response())
}

impl Client {
    /// The texts that a unit had.
    pub async fn history(&self, unit: &UnitName) -> Result<History, ClientError> {
        let path = format!("/v1/units/{}/history", path_segment(unit));
        self.ask(Method::GET, &path, None::<&()>).await
    }

    /// All updates, of each unit or template the last one.
    pub async fn rollouts(&self) -> Result<RolloutList, ClientError> {
        self.ask(Method::GET, "/v1/rollouts", None::<&()>).await
    }

    /// Begins an update.
    pub async fn roll(&self, order: &RolloutOrder) -> Result<Rollout, ClientError> {
        self.ask(Method::POST, "/v1/rollouts", Some(order)).await
    }

    /// Directs one that is under way.
    pub async fn direct(&self, name: &UnitName, command: &RolloutCommand) -> Result<Rollout, ClientError> {
        self.ask(Method::POST, &format!("/v1/rollouts/{}", path_segment(name)), Some(command)).await
    }

    /// An update as it is, then again at every change until it is over.
    pub async fn watch_rollout(
        &self,
        name: &UnitName,
    ) -> Result<impl Stream<Item = Result<Rollout, ClientError>> + Unpin + use<>, ClientError> {
        let path = format!("/v1/rollouts/{}?watch=true", path_segment(name));
        let response = self.send(Method::GET, &path, whole(None::<&()>)).await?;
        let state = (Box::pin(self.chunks(response)), BytesMut::new(), self.clone());
        Ok(Box::pin(futures_util::stream::unfold(state, |(mut chunks, mut buffer, client)| async move {
            loop {
                if let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                    let line = buffer.split_to(end + 1);
                    let rollout = serde_json::from_slice(&line).map_err(|error| client.broken(&error));
                    return Some((rollout, (chunks, buffer, client)));
                }
                match chunks.next().await? {
                    Ok(chunk) => buffer.extend_from_slice(&chunk),
                    Err(error) => return Some((Err(error), (chunks, buffer, client))),
                }
            }
        })))
    }
}
