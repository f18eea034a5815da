//! fleet's HTTP API v1, at `/fleet/v1` and `/v1-alpha`: for fleetctl 1.0 and whatever else was written against fleet.
//!
//! Responsible for fleet's paths, statuses and texts, and for what its client relies on without saying so: the state
//! of an unknown unit is no 404 (fleetctl 1.0 panics at that), and a unit that was told to stop is called launched
//! until it has stopped and somebody has looked (its `restart` waits for that). Not responsible for decisions: the
//! [`Service`] makes them, as for our own API. Invariant: a request that is wrong in any part stores nothing and is
//! answered by a 4xx that names the part.

/// Bodies of requests.
mod body;
/// How long a unit that was told to stop is still called launched.
mod lag;
/// Pages and their tokens.
mod page;
/// Bodies of answers.
mod view;

use crate::{
    server::{At, Service},
    types::{ApiError, Unit, UnitChange},
};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Query, State, rejection::QueryRejection},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    middleware::map_response,
    response::{IntoResponse, Response},
    routing::any,
};
use lag::Lag;
use model::{DesiredState, MachineId, UnitName, UnitNameError};
use serde::Serialize;
use std::time::Duration;

/// What fleet said whenever it could not work, and what its own tests look for.
const NO_HUB: &str = "fleet server unable to communicate with etcd";
/// How long a start waits for the stop before it. The order to stop was given a moment ago; a unit that takes longer
/// is stopping by then, and systemd starts it when it has ended.
const STOP: Duration = Duration::from_secs(10);
/// fleet's API that this is, and what answers.
const SERVER: &str = concat!("fleetd/v1.0.0+muster.", env!("CARGO_PKG_VERSION"));

/// What the handlers answer from.
#[derive(Clone)]
struct Fleet<S> {
    service: S,
    lag: Lag,
}

type Asked = Result<Query<Vec<(String, String)>>, QueryRejection>;

/// All of fleet's paths.
pub(crate) fn router<S: Service>(service: S) -> Router {
    let mut router = Router::new().route("/", any(nothing));
    for prefix in ["/fleet/v1", "/v1-alpha"] {
        router = router
            .route(prefix, any(nothing))
            .route(&format!("{prefix}/machines"), any(machines::<S>))
            .route(&format!("{prefix}/units"), any(units::<S>))
            .route(&format!("{prefix}/units/{{name}}"), any(unit::<S>))
            .route(&format!("{prefix}/state"), any(states::<S>))
            .route(&format!("{prefix}/state/{{name}}"), any(state::<S>))
            .route(&format!("{prefix}/discovery"), any(discovery));
    }
    let sign = |mut response: Response| async {
        response.headers_mut().insert(header::SERVER, HeaderValue::from_static(SERVER));
        response
    };
    router.layer(map_response(sign)).with_state(Fleet { service, lag: Lag::default() })
}

async fn nothing() -> ApiError {
    wrong_method("")
}

async fn discovery(method: Method) -> Result<Response, ApiError> {
    if method != Method::GET {
        return Err(ApiError::bad_request("only HTTP GET supported against this resource"));
    }
    let text = include_str!("fleet/discovery.json");
    Ok(([(header::CONTENT_TYPE, "application/json")], text).into_response())
}

async fn machines<S: Service>(
    State(fleet): State<Fleet<S>>,
    method: Method,
    query: Asked,
    body: Bytes,
) -> Result<Response, ApiError> {
    match method {
        Method::GET => {
            let page = page::Page::of(&asked(query)?)?;
            let list = fleet.service.machines().await.map_err(fleets)?;
            let (machines, next) = page.cut(list.machines);
            Ok(json(&view::MachinePage::new(machines, next)))
        }
        Method::PATCH => {
            fleet.service.change_metadata(body::patch(&body)?).await.map_err(fleets)?;
            Ok(empty(StatusCode::NO_CONTENT))
        }
        _ => Err(wrong_method("only GET and PATCH supported against this resource")),
    }
}

async fn units<S: Service>(
    State(fleet): State<Fleet<S>>,
    method: Method,
    query: Asked,
) -> Result<Response, ApiError> {
    only_get(&method)?;
    let page = page::Page::of(&asked(query)?)?;
    let list = fleet.service.units().await.map_err(fleets)?;
    let (units, next) = page.cut(list.units);
    Ok(json(&view::UnitPage::new(&units, next)))
}

async fn unit<S: Service>(
    State(fleet): State<Fleet<S>>,
    At(name): At<String>,
    method: Method,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, ApiError> {
    match method {
        Method::GET => {
            let name = parse(&name)?;
            let unit = fleet.service.unit(&name).await.map_err(fleets)?.ok_or_else(unknown)?;
            let late = fleet.lag.look(&name) && unit.desired == DesiredState::Loaded;
            Ok(json(&view::Unit::new(&unit, late)))
        }
        Method::PUT => put(&fleet, &name, &headers, &body).await,
        Method::DELETE => {
            let name = parse(&name)?;
            fleet.lag.forget(&name);
            fleet.service.destroy(vec![name]).await.map_err(fleets)?;
            Ok(empty(StatusCode::NO_CONTENT))
        }
        _ => Err(wrong_method("only GET, PUT and DELETE supported against this resource")),
    }
}

async fn put<S: Service>(
    fleet: &Fleet<S>,
    item: &str,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Response, ApiError> {
    content_type(headers)?;
    let body = body::unit(body)?;
    let named = body.name.filter(|name| !name.is_empty()).unwrap_or_else(|| item.to_owned());
    if named != item {
        let message = format!("name in URL {item:?} differs from unit name in request body {named:?}");
        return Err(ApiError::bad_request(message));
    }
    let name = parse(item)?;
    let file = if body.options.is_empty() { None } else { Some(file(&body.options)?) };
    let known = fleet.service.unit(&name).await.map_err(fleets)?;
    let new = match (known, file) {
        (None, None) => {
            return Err(ApiError::conflict("unit does not exist and options field empty"));
        }
        (Some(unit), file) if file.as_ref().is_none_or(|file| file.hash() == unit.hash) => {
            let Some(desired) = body.desired else {
                return Err(ApiError::conflict("must provide DesiredState to update existing unit"));
            };
            update(fleet, unit, desired).await?;
            return Ok(empty(StatusCode::NO_CONTENT));
        }
        (_, Some(file)) => file,
        (Some(_), None) => unreachable!("a unit without a file to compare is an update"),
    };
    let text = new.render();
    unit::check(&name, &text).map_err(|problem| options(&problem))?;
    fleet.lag.forget(&name);
    let desired = Some(body.desired.unwrap_or_default());
    let change = UnitChange { name, text: Some(text), desired, replace: true };
    fleet.service.change(vec![change]).await.map_err(fleets)?;
    Ok(empty(StatusCode::CREATED))
}

/// Changes what is wanted of a known unit. To want what is wanted already changes nothing, as in fleet: a unit that
/// has ended is not started again.
async fn update<S: Service>(fleet: &Fleet<S>, unit: Unit, desired: DesiredState) -> Result<(), ApiError> {
    if unit.name.is_template() && desired != DesiredState::Inactive {
        return Err(ApiError::bad_request(format!("cannot activate template \"{}\"", unit.name)));
    }
    if unit.desired == desired {
        return Ok(());
    }
    if desired == DesiredState::Launched && is_told_to_stop(&unit) {
        stopped(&fleet.service, &unit.name).await?;
    }
    match desired {
        DesiredState::Loaded if unit.desired == DesiredState::Launched => fleet.lag.begin(&unit.name),
        _ => fleet.lag.forget(&unit.name),
    }
    let change = UnitChange { name: unit.name, text: None, desired: Some(desired), replace: false };
    fleet.service.change(vec![change]).await.map_err(fleets)?;
    Ok(())
}

/// True while the order to stop has not reached systemd: a start that overtakes it would restart nothing.
fn is_told_to_stop(unit: &Unit) -> bool {
    let alive = |active: &str| matches!(active, "active" | "activating" | "reloading");
    let mut states = unit.machines.iter().filter_map(|on| on.state.as_ref());
    unit.desired == DesiredState::Loaded && states.any(|state| alive(&state.active))
}

/// Waits until the order to stop has been carried out, [`STOP`] at most.
async fn stopped<S: Service>(service: &S, name: &UnitName) -> Result<(), ApiError> {
    let mut changes = service.watch(vec![name.clone()]).await.map_err(fleets)?;
    let wait = async {
        while let Some(watched) = changes.recv().await {
            if !watched.unit.as_ref().is_some_and(is_told_to_stop) {
                return;
            }
        }
    };
    // When it takes too long the start is ordered all the same.
    let _ = tokio::time::timeout(STOP, wait).await;
    Ok(())
}

async fn states<S: Service>(
    State(fleet): State<Fleet<S>>,
    method: Method,
    query: Asked,
) -> Result<Response, ApiError> {
    only_get(&method)?;
    let query = asked(query)?;
    let page = page::Page::of(&query)?;
    let wanted = |key: &str| query.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
    let (machine, unit) = (wanted("machineID"), wanted("unitName"));
    let list = fleet.service.units().await.map_err(fleets)?;
    let mut states: Vec<_> = list.units.iter().flat_map(view::UnitState::all).collect();
    let fits =
        |wanted: Option<&str>, value: &str| wanted.is_none_or(|wanted| wanted.is_empty() || wanted == value);
    states.retain(|state| fits(machine, state.machine_id) && fits(unit, state.name));
    let (states, next) = page.cut(states);
    Ok(json(&view::StatePage { next_page_token: next, states }))
}

/// One state of a unit; an empty object when there is none. fleet dropped the connection then, and fleetctl asks
/// again; at a 404 it panics.
async fn state<S: Service>(
    State(fleet): State<Fleet<S>>,
    At(name): At<String>,
    method: Method,
) -> Result<Response, ApiError> {
    only_get(&method)?;
    let unit = fleet.service.unit(&parse(&name)?).await.map_err(fleets)?;
    let mut states = unit.as_ref().into_iter().flat_map(view::UnitState::all);
    // The machine that is to run it comes first.
    let scheduled = unit.as_ref().and_then(|unit| unit.machines.first()).map(|on| on.id.as_str());
    let chosen = states.clone().find(|state| Some(state.machine_id) == scheduled).or_else(|| states.next());
    Ok(chosen.map_or_else(|| json(&serde_json::json!({})), |state| json(&state)))
}

/// The options as a file.
fn file(given: &[body::UnitOption]) -> Result<unit::UnitFile, ApiError> {
    let parts = given.iter().map(|one| (one.section.as_str(), one.name.as_str(), one.value.as_str()));
    unit::UnitFile::from_options(parts).map_err(|problem| options(&problem))
}

/// fleet's own refusals are told in its words; ours say which field they are about.
fn options(problem: &unit::Problem) -> ApiError {
    let fleets = ["unresolvable requirements: ", " cannot be used with "];
    match fleets.iter().any(|words| problem.message.contains(words)) {
        true => ApiError::bad_request(&problem.message),
        false => ApiError::bad_request(format!("options: {} ({})", problem.message, problem.remedy)),
    }
}

fn parse(name: &str) -> Result<UnitName, ApiError> {
    name.parse().map_err(|error: UnitNameError| ApiError::bad_request(error))
}

fn unknown() -> ApiError {
    ApiError::not_found("unit does not exist")
}

/// Our service's refusals in fleet's words, where fleet has some.
fn fleets(error: ApiError) -> ApiError {
    match error.code {
        503 => ApiError { message: NO_HUB.to_owned(), ..error },
        404 => unknown(),
        _ => error,
    }
}

fn asked(query: Asked) -> Result<Vec<(String, String)>, ApiError> {
    query.map(|Query(pairs)| pairs).map_err(|error| ApiError::bad_request(error.body_text()))
}

fn only_get(method: &Method) -> Result<(), ApiError> {
    match *method {
        Method::GET => Ok(()),
        _ => Err(wrong_method("only GET supported against this resource")),
    }
}

fn wrong_method(message: &str) -> ApiError {
    ApiError { code: 405, message: message.to_owned() }
}

/// Exactly one, and JSON; parameters such as a charset do not matter.
fn content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let wrong = |message: String| Err(ApiError { code: 415, message });
    let given: Vec<_> = headers.get_all(header::CONTENT_TYPE).iter().collect();
    let [kind] = given[..] else {
        return wrong(format!("expected 1 Content-Type, got {}", given.len()));
    };
    let kind = kind.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case("application/json") {
        Ok(())
    } else {
        wrong("only acceptable Content-Type is application/json".to_owned())
    }
}

fn json(value: &impl Serialize) -> Response {
    let body = serde_json::to_vec(value).expect("API types always render");
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

fn empty(status: StatusCode) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], Body::empty()).into_response()
}

/// One key of a machine's metadata, as somebody wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetadataChange {
    /// Which machine, present or not.
    pub machine: MachineId,
    /// Which key.
    pub key: String,
    /// Its value; `None` removes it.
    pub value: Option<String>,
}
