//! The API's server: routes, and passing on to the machine that knows.
//!
//! No decision is made here: a [`Service`] answers. Invariant: whatever a client sends, the answer is JSON of a
//! documented type, a stream of such lines or frames, or an error body with a 4xx or 5xx status.

use crate::{
    client::{Client, ClientError, Endpoint},
    discovery::{self, Discovery},
    fleet::{self, MetadataChange},
    frames::{self, Frame},
    network::{self, Network},
    operations::{self, Operations},
    rollouts::{self, Rollouts},
    types::{ApiError, MachineList, Names, Run, Shell, Unit, UnitChange, UnitList, UnitsChanged, Watched},
};
use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures_util::StreamExt;
use model::{MachineId, UnitName};
use serde::{Serialize, de::DeserializeOwned};
use std::{convert::Infallible, fmt, future::Future, net::SocketAddr, str::FromStr, time::Duration};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

/// Unit files are small; a request for some hundred of them stays below this.
const MAX_BODY: usize = 8 * 1024 * 1024;
/// Set on a request that was passed on, which is never passed on again.
const PASSED_ON: &str = "muster-passed-on";
/// Pieces of a client's input on their way to a program that reads slowly.
const INPUT_BUFFER: usize = 8;
/// A client that opens a shell says at once what it wants.
const FIRST_FRAME: Duration = Duration::from_secs(5);

/// Where a unit runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// On the machine that was asked.
    Here,
    /// On the machine whose API is there.
    There(SocketAddr),
}

/// What the server answers from.
pub trait Service: Clone + Send + Sync + 'static {
    /// All machines.
    fn machines(&self) -> impl Future<Output = Result<MachineList, ApiError>> + Send;
    /// All units.
    fn units(&self) -> impl Future<Output = Result<UnitList, ApiError>> + Send;
    /// One unit, without what machines have against it; `None` when it is not known. Cheaper than [`Self::units`].
    fn unit(&self, unit: &UnitName) -> impl Future<Output = Result<Option<Unit>, ApiError>> + Send;
    /// Makes all of `changes`, or none. The machines need not be present.
    fn change_metadata(
        &self,
        changes: Vec<MetadataChange>,
    ) -> impl Future<Output = Result<(), ApiError>> + Send;
    /// Checks all of `changes`, then makes them.
    fn change(&self, changes: Vec<UnitChange>)
    -> impl Future<Output = Result<UnitsChanged, ApiError>> + Send;
    /// Makes the cluster forget units. All must be known.
    fn destroy(&self, units: Vec<UnitName>) -> impl Future<Output = Result<UnitsChanged, ApiError>> + Send;
    /// Each of `units` as it is, then again at every change, until the receiver is dropped.
    fn watch(
        &self,
        units: Vec<UnitName>,
    ) -> impl Future<Output = Result<mpsc::Receiver<Watched>, ApiError>> + Send;
    /// Where `unit` runs.
    fn locate(&self, unit: &UnitName) -> impl Future<Output = Result<Place, ApiError>> + Send;
    /// Where the API of `machine` is.
    fn place(&self, machine: &MachineId) -> impl Future<Output = Result<Place, ApiError>> + Send;
    /// Runs something beside `unit` on this machine; it ends when the receiver is dropped.
    fn run(
        &self,
        unit: UnitName,
        run: Run,
    ) -> impl Future<Output = Result<mpsc::Receiver<Frame>, ApiError>> + Send;
    /// Runs a program on this machine itself; it ends when `input` ends or the receiver is dropped.
    fn shell(
        &self,
        shell: Shell,
        input: mpsc::Receiver<Frame>,
    ) -> impl Future<Output = Result<mpsc::Receiver<Frame>, ApiError>> + Send;
}

/// Serves the API on `listener` until `stop`.
pub async fn serve<S, L>(service: S, listener: L, stop: CancellationToken) -> std::io::Result<()>
where
    S: Service + Operations + Rollouts + Discovery + Network,
    L: axum::serve::Listener,
    L::Addr: std::fmt::Debug,
{
    axum::serve(listener, router(service)).with_graceful_shutdown(stop.cancelled_owned()).await
}

fn router<S: Service + Operations + Rollouts + Discovery + Network>(service: S) -> Router {
    Router::new()
        .route("/v1/machines", get(machines::<S>))
        .route("/v1/units", get(units::<S>).post(change::<S>))
        .route("/v1/units/destroy", post(destroy::<S>))
        .route("/v1/units/watch", post(watch::<S>))
        .route("/v1/units/{name}", get(unit::<S>))
        .route("/v1/units/{name}/run", post(run::<S>))
        .route("/v1/machines/{machine}/units/{name}/run", post(run_there::<S>))
        .route("/v1/machines/{machine}/shell", post(shell::<S>))
        .route("/v1/openapi.json", get(openapi))
        .merge(operations::routes::<S>())
        .merge(rollouts::routes::<S>())
        .merge(discovery::routes::<S>())
        .merge(network::routes::<S>())
        .with_state(service.clone())
        .merge(fleet::router(service))
        .fallback(|| async { ApiError::not_found("there is nothing under this path") })
        .method_not_allowed_fallback(|| async {
            ApiError { code: 405, message: "this path does not know that method".to_owned() }
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, [(header::CONTENT_TYPE, "application/json")], self.body()).into_response()
    }
}

/// A JSON body whose errors are ours.
pub(crate) struct Said<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Said<T> {
    type Rejection = ApiError;
    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let bytes = Bytes::from_request(request, state)
            .await
            .map_err(|error| ApiError { code: error.status().as_u16(), message: error.body_text() })?;
        serde_json::from_slice(&bytes)
            .map(Said)
            .map_err(|error| ApiError::bad_request(format!("unable to decode body: {error}")))
    }
}

/// What a path names; errors are ours.
pub(crate) struct At<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for At<T> {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let named = axum::extract::Path::from_request_parts(parts, state).await;
        named
            .map(|axum::extract::Path(named)| At(named))
            .map_err(|error| ApiError::bad_request(error.body_text()))
    }
}

/// What a query asks for; errors are ours.
pub(crate) struct Asked<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let asked = axum::extract::Query::from_request_parts(parts, state).await;
        asked
            .map(|axum::extract::Query(asked)| Asked(asked))
            .map_err(|error| ApiError::bad_request(error.body_text()))
    }
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], include_str!("openapi.json")).into_response()
}

async fn machines<S: Service>(State(service): State<S>) -> Result<Json<MachineList>, ApiError> {
    service.machines().await.map(Json)
}

async fn units<S: Service>(State(service): State<S>) -> Result<Json<UnitList>, ApiError> {
    service.units().await.map(Json)
}

async fn unit<S: Service>(State(service): State<S>, At(name): At<String>) -> Result<Json<Unit>, ApiError> {
    let name: UnitName = parse(&name)?;
    let list = service.units().await?;
    list.units
        .into_iter()
        .find(|unit| unit.name == name)
        .map(Json)
        .ok_or_else(|| ApiError::not_found(format!("unit {name} does not exist")))
}

async fn change<S: Service>(
    State(service): State<S>,
    Said(changes): Said<Vec<UnitChange>>,
) -> Result<Json<UnitsChanged>, ApiError> {
    service.change(changes).await.map(Json)
}

async fn destroy<S: Service>(
    State(service): State<S>,
    Said(names): Said<Names>,
) -> Result<Json<UnitsChanged>, ApiError> {
    service.destroy(names.units).await.map(Json)
}

async fn watch<S: Service>(State(service): State<S>, Said(names): Said<Names>) -> Result<Response, ApiError> {
    let changes = service.watch(names.units).await?;
    Ok(stream("application/x-ndjson", ReceiverStream::new(changes).map(|change| line(&change))))
}

async fn run<S: Service>(
    State(service): State<S>,
    At(name): At<String>,
    headers: HeaderMap,
    Said(what): Said<Run>,
) -> Result<Response, ApiError> {
    let name = parse(&name)?;
    match service.locate(&name).await? {
        Place::There(address) if !passed_on(&headers) => {
            let output = other(address).run_raw(&name, &what).await;
            output.map(raw).map_err(|error| from_other(error, &format!("the machine of {name}"), address))
        }
        // One that was passed on stays here, whatever the hub says by now: no request goes round in circles.
        Place::Here | Place::There(_) => service.run(name, what).await.map(framed),
    }
}

async fn run_there<S: Service>(
    State(service): State<S>,
    At((machine, name)): At<(String, String)>,
    headers: HeaderMap,
    Said(what): Said<Run>,
) -> Result<Response, ApiError> {
    let (machine, name) = (parse::<MachineId>(&machine)?, parse(&name)?);
    match service.place(&machine).await? {
        Place::Here => service.run(name, what).await.map(framed),
        Place::There(_) if passed_on(&headers) => Err(stray(&machine)),
        Place::There(address) => {
            let output = other(address).run_there_raw(&machine, &name, &what).await;
            output.map(raw).map_err(|error| from_other(error, &format!("machine {machine}"), address))
        }
    }
}

async fn shell<S: Service>(
    State(service): State<S>,
    At(machine): At<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let machine = parse::<MachineId>(&machine)?;
    // Ends when the client is gone.
    let input = body.into_data_stream().map(Result::ok);
    match service.place(&machine).await? {
        Place::Here => {
            let mut input = frames::decoded(input);
            let Ok(Some(Ok(Frame::Begin(what)))) = tokio::time::timeout(FIRST_FRAME, input.next()).await
            else {
                return Err(ApiError::bad_request("the first frame must say what to run"));
            };
            let (sender, receiver) = mpsc::channel(INPUT_BUFFER);
            tokio::spawn(async move {
                while let Some(Ok(frame)) = input.next().await {
                    if sender.send(frame).await.is_err() {
                        return;
                    }
                }
            });
            service.shell(what, receiver).await.map(framed)
        }
        Place::There(_) if passed_on(&headers) => Err(stray(&machine)),
        Place::There(address) => {
            let input =
                input.take_while(|chunk| std::future::ready(chunk.is_some())).filter_map(std::future::ready);
            let output = other(address).shell_raw(&machine, input).await;
            output.map(raw).map_err(|error| from_other(error, &format!("machine {machine}"), address))
        }
    }
}

fn passed_on(headers: &HeaderMap) -> bool {
    headers.contains_key(PASSED_ON)
}

/// A client of another machine's API, which must answer itself.
fn other(address: SocketAddr) -> Client {
    Client::new(Endpoint::Tcp(address)).with_header(PASSED_ON, HeaderValue::from_static("1"))
}

fn from_other(error: ClientError, what: &str, address: SocketAddr) -> ApiError {
    match error {
        ClientError::Unreachable { .. } => ApiError::unavailable(format!(
            "{what} at {} does not answer; if it has just died its units run elsewhere within seconds",
            address.ip()
        )),
        error => error.into_api(),
    }
}

fn stray(machine: &MachineId) -> ApiError {
    ApiError::unavailable(format!("another machine has the address of {machine} now; try again"))
}

fn raw(output: impl futures_util::Stream<Item = Result<Bytes, ClientError>> + Send + 'static) -> Response {
    stream("application/octet-stream", output.map(|chunk| chunk.unwrap_or_default()))
}

fn framed(output: mpsc::Receiver<Frame>) -> Response {
    stream("application/octet-stream", ReceiverStream::new(output).map(|frame| frame.encode()))
}

pub(crate) fn parse<T: FromStr<Err: fmt::Display>>(text: &str) -> Result<T, ApiError> {
    text.parse().map_err(ApiError::bad_request)
}

pub(crate) fn line(value: &impl Serialize) -> Bytes {
    let mut line = serde_json::to_vec(value).expect("API types always render");
    line.push(b'\n');
    line.into()
}

pub(crate) fn stream(
    kind: &'static str,
    chunks: impl futures_util::Stream<Item = Bytes> + Send + 'static,
) -> Response {
    let body = Body::from_stream(chunks.map(Ok::<_, Infallible>));
    ([(header::CONTENT_TYPE, kind)], body).into_response()
}
