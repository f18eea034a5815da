//! What an operator asks and orders: why a unit is where it is, machines under maintenance, evening out the load,
//! and what happened. Types, routes and client of these in one place.
//!
//! No decision is made here. Invariant: an order is one record in the hub; the engine that leads carries it out.

use crate::{
    client::{Client, ClientError, whole},
    server::{Asked, At, Said, parse, stream},
    types::ApiError,
};
use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use hyper::Method;
use model::{DesiredState, EventId, EventRecord, MachineId, Maintenance, Revision, UnitName};
use serde::{Deserialize, Serialize};
use std::future::Future;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// A machine as people call it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRef {
    /// Its machine-id.
    pub id: MachineId,
    /// Its host name; empty when it is gone.
    pub name: String,
}

/// `GET /v1/units/{name}/why`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Why {
    /// When this was true.
    pub revision: Revision,
    /// Which unit.
    pub unit: UnitName,
    /// What is wanted of it.
    pub desired: DesiredState,
    /// Where it is scheduled, and the engine's reason for it.
    pub machines: Vec<(MachineRef, String)>,
    /// Units that must be on the same machine, this one included when there are others.
    pub group: Vec<UnitName>,
    /// What each machine says, the best first, then those that refuse.
    pub verdicts: Vec<Verdict>,
}

/// What one machine says to a unit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Which machine.
    pub machine: MachineRef,
    /// Whether the unit is scheduled there.
    pub here: bool,
    /// Its place among those that would take the unit, from 1; absent when it refuses.
    pub rank: Option<u32>,
    /// Units that it has.
    pub units: u32,
    /// Instances of the same template among them.
    pub siblings: u32,
    /// Thousandths of its memory or processors, whichever is more, that limits of its units take.
    pub share: u32,
    /// The rule that refuses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refused>,
}

/// A rule that refuses a unit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Refused {
    /// Of the units that must come together, the one that is refused.
    pub unit: UnitName,
    /// The rule, with what it is about.
    pub rule: serde_json::Value,
    /// The same in words.
    pub text: String,
}

/// The body of `PUT /v1/machines/{machine}/maintenance`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MaintenanceOrder {
    /// What is wanted.
    pub state: Maintenance,
    /// Who wants it.
    #[serde(default)]
    pub by: String,
    /// What for.
    #[serde(default)]
    pub reason: String,
}

/// A unit, or several that follow each other, from one machine to another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Move {
    /// Which units.
    pub units: Vec<UnitName>,
    /// Where they are.
    pub from: MachineRef,
    /// How many units that machine has before.
    pub from_units: u32,
    /// Where they shall go.
    pub to: MachineRef,
    /// How many units that machine has before.
    pub to_units: u32,
}

/// `GET /v1/rebalance`, and the body of `POST /v1/moves`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MovePlan {
    /// In this order.
    pub moves: Vec<Move>,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Sorts by time.
    pub id: EventId,
    /// What.
    #[serde(flatten)]
    pub event: EventRecord,
}

/// `GET /v1/events`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventList {
    /// The oldest first.
    pub events: Vec<Event>,
}

/// Which events, and whether to go on with new ones.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EventQuery {
    /// Only of this unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<UnitName>,
    /// Only of this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<MachineId>,
    /// Whether to stream new ones as they come; also said by `Accept: text/event-stream`.
    #[serde(default)]
    pub watch: bool,
}

impl EventQuery {
    /// Whether the event is one that is asked for.
    pub fn takes(&self, event: &EventRecord) -> bool {
        let unit = self.unit.as_ref().is_none_or(|unit| event.unit.as_ref() == Some(unit));
        unit && self.machine.as_ref().is_none_or(|machine| event.machine.as_ref() == Some(machine))
    }
}

/// What the server answers these from.
pub trait Operations: Clone + Send + Sync + 'static {
    /// Why a unit is where it is, or nowhere.
    fn why(&self, unit: UnitName) -> impl Future<Output = Result<Why, ApiError>> + Send;
    /// Cordons or drains a machine; `None` opens it again.
    fn maintain(
        &self,
        machine: MachineId,
        order: Option<MaintenanceOrder>,
    ) -> impl Future<Output = Result<(), ApiError>> + Send;
    /// What would even out the load.
    fn rebalance(&self) -> impl Future<Output = Result<MovePlan, ApiError>> + Send;
    /// Orders moves.
    fn relocate(&self, plan: MovePlan) -> impl Future<Output = Result<(), ApiError>> + Send;
    /// What happened.
    fn events(&self, query: EventQuery) -> impl Future<Output = Result<EventList, ApiError>> + Send;
    /// What happened, then what happens, until the receiver is dropped.
    fn watch_events(
        &self,
        query: EventQuery,
    ) -> impl Future<Output = Result<mpsc::Receiver<Event>, ApiError>> + Send;
}

pub(crate) fn routes<S: Operations>() -> Router<S> {
    Router::new()
        .route("/v1/units/{name}/why", get(why::<S>))
        .route("/v1/machines/{machine}/maintenance", put(maintain::<S>).delete(open::<S>))
        .route("/v1/rebalance", get(rebalance::<S>))
        .route("/v1/moves", post(relocate::<S>))
        .route("/v1/events", get(events::<S>))
}

async fn why<S: Operations>(State(service): State<S>, At(name): At<String>) -> Result<Json<Why>, ApiError> {
    service.why(parse(&name)?).await.map(Json)
}

async fn maintain<S: Operations>(
    State(service): State<S>,
    At(id): At<String>,
    Said(order): Said<MaintenanceOrder>,
) -> Result<Json<serde_json::Value>, ApiError> {
    service.maintain(machine(&id)?, Some(order)).await?;
    Ok(Json(serde_json::json!({})))
}

async fn open<S: Operations>(
    State(service): State<S>,
    At(id): At<String>,
) -> Result<Json<serde_json::Value>, ApiError> {
    service.maintain(machine(&id)?, None).await?;
    Ok(Json(serde_json::json!({})))
}

async fn rebalance<S: Operations>(State(service): State<S>) -> Result<Json<MovePlan>, ApiError> {
    service.rebalance().await.map(Json)
}

async fn relocate<S: Operations>(
    State(service): State<S>,
    Said(plan): Said<MovePlan>,
) -> Result<Json<serde_json::Value>, ApiError> {
    service.relocate(plan).await?;
    Ok(Json(serde_json::json!({})))
}

async fn events<S: Operations>(
    State(service): State<S>,
    Asked(query): Asked<EventQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let accepts = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !query.watch && !accepts.contains("text/event-stream") {
        return Ok(Json(service.events(query).await?).into_response());
    }
    let events = service.watch_events(query).await?;
    let lines = ReceiverStream::new(events).map(|event| {
        let data = serde_json::to_string(&event).expect("API types always render");
        Bytes::from(format!("id: {}\ndata: {data}\n\n", event.id))
    });
    Ok(stream("text/event-stream", lines))
}

fn machine(id: &str) -> Result<MachineId, ApiError> {
    id.parse().map_err(|error: model::machine::MachineIdError| ApiError::bad_request(error))
}

impl Client {
    /// Why a unit is where it is, or nowhere.
    pub async fn why(&self, unit: &UnitName) -> Result<Why, ClientError> {
        self.ask(Method::GET, &format!("/v1/units/{}/why", crate::client::path_segment(unit)), None::<&()>)
            .await
    }

    /// Cordons or drains a machine; `None` opens it again.
    pub async fn maintain(
        &self,
        machine: &MachineId,
        order: Option<&MaintenanceOrder>,
    ) -> Result<(), ClientError> {
        let path = format!("/v1/machines/{machine}/maintenance");
        let method = if order.is_some() { Method::PUT } else { Method::DELETE };
        self.ask::<serde_json::Value>(method, &path, order).await.map(|_| ())
    }

    /// What would even out the load.
    pub async fn rebalance(&self) -> Result<MovePlan, ClientError> {
        self.ask(Method::GET, "/v1/rebalance", None::<&()>).await
    }

    /// Orders moves.
    pub async fn relocate(&self, plan: &MovePlan) -> Result<(), ClientError> {
        self.ask::<serde_json::Value>(Method::POST, "/v1/moves", Some(plan)).await.map(|_| ())
    }

    /// What happened.
    pub async fn events(&self, query: &EventQuery) -> Result<EventList, ClientError> {
        self.ask(Method::GET, &events_path(query), None::<&()>).await
    }

    /// What happened, then what happens.
    pub async fn watch_events(
        &self,
        query: &EventQuery,
    ) -> Result<impl Stream<Item = Result<Event, ClientError>> + Unpin, ClientError> {
        let query = EventQuery { watch: true, ..query.clone() };
        let response = self.send(Method::GET, &events_path(&query), whole(None::<&()>)).await?;
        let state = (Box::pin(self.chunks(response)), BytesMut::new(), self.clone());
        Ok(Box::pin(futures_util::stream::unfold(state, |(mut chunks, mut buffer, client)| async move {
            loop {
                if let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                    let line = buffer.split_to(end + 1);
                    if let Some(data) = line.strip_prefix(b"data: ") {
                        let event = serde_json::from_slice(data).map_err(|error| client.broken(&error));
                        return Some((event, (chunks, buffer, client)));
                    }
                    continue;
                }
                match chunks.next().await? {
                    Ok(chunk) => buffer.extend_from_slice(&chunk),
                    Err(error) => return Some((Err(error), (chunks, buffer, client))),
                }
            }
        })))
    }
}

fn events_path(query: &EventQuery) -> String {
    let mut path = format!("/v1/events?watch={}", query.watch);
    if let Some(unit) = &query.unit {
        path.push_str(&format!("&unit={}", crate::client::path_segment(unit)));
    }
    if let Some(machine) = &query.machine {
        path.push_str(&format!("&machine={machine}"));
    }
    path
}
