//! HTTP/1.1 on the port that gRPC has: `/health`, `/version`, `/metrics`, the JSON gateway (`/v3`) and the v2 keys
//! API (`/v2`).
//!
//! As in etcd, whoever does not speak gRPC gets these pages. Invariant: nothing here reads or changes keys but
//! through the gRPC services ([`inside`]), so that both doors lead to the same room with the same guards.

/// How many calls there were.
mod calls;
/// The JSON gateway.
pub(crate) mod gateway;
/// gRPC calls from inside.
pub(crate) mod inside;
/// Prometheus' page.
mod metrics;
/// Messages as tables.
pub(crate) mod schema;
/// JSON and protobuf.
pub(crate) mod transcode;

use crate::maintenance::VERSION;
use crate::request::{Queue, Request as Ask};
use crate::storage::Identity;
use crate::v2;
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{ALLOW, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::response::Response;
use axum::routing::any;
use bytes::Bytes;
use calls::Calls;
use http_body_util::{BodyExt as _, Limited};
use inside::Services;
use tonic::Status;
use tonic::service::Routes;

/// What `/version` says of the cluster: the version that its members agree on, without the last number.
const CLUSTER_VERSION: &str = "3.5.0";

/// Adds the pages to the gRPC services.
pub(crate) fn routes(grpc: Routes, queue: Queue, identity: Identity) -> Routes {
    let calls = Calls::default();
    let grpc = grpc
        .prepare()
        .into_axum_router()
        .layer(axum::middleware::from_fn_with_state(calls.clone(), calls::count));
    let services = Services::new(grpc.clone());
    let pages = Router::new()
        .route("/health", any(health))
        .with_state(queue.clone())
        .route("/metrics", any(metrics_page))
        .with_state((queue, calls))
        .route("/version", any(version));
    let gateway = Router::new()
        .route("/v3/{*path}", any(gateway::serve))
        .route("/v3beta/{*path}", any(gateway::serve))
        .with_state(services.clone());
    let router = grpc
        .merge(pages)
        .merge(gateway)
        .merge(v2::routes(services, identity))
        .reset_fallback()
        .fallback(unknown);
    Routes::from(router)
}

/// A call that no service has, or a page that is not there.
async fn unknown(headers: HeaderMap) -> Response {
    let grpc = headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    if grpc {
        return Status::unimplemented("unknown service").into_http();
    }
    plain(StatusCode::NOT_FOUND, "404 page not found\n")
}

/// etcd 3.4's form: a string, and 503 if there is an alarm.
async fn health(method: Method, State(queue): State<Queue>) -> Response {
    if method != Method::GET {
        return not_allowed("GET");
    }
    let healthy = queue.ask(Ask::Status).await.is_ok_and(|health| health.alarms.is_empty());
    let status = if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = format!("{{\"health\":\"{healthy}\"}}");
    respond(status, "text/plain; charset=utf-8", body)
}

async fn version(method: Method) -> Response {
    if method != Method::GET && method != Method::HEAD {
        return not_allowed("GET,HEAD");
    }
    json(StatusCode::OK, format!("{{\"etcdserver\":\"{VERSION}\",\"etcdcluster\":\"{CLUSTER_VERSION}\"}}"))
}

async fn metrics_page(State((queue, calls)): State<(Queue, Calls)>) -> Response {
    match queue.ask(Ask::Status).await {
        Ok(health) => {
            let page = metrics::page(&health, queue.keys(), &calls);
            respond(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", page)
        }
        Err(status) => plain(StatusCode::SERVICE_UNAVAILABLE, status.message()),
    }
}

/// A page.
pub(crate) fn respond(status: StatusCode, kind: &'static str, body: String) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// A JSON page.
pub(crate) fn json(status: StatusCode, body: String) -> Response {
    respond(status, "application/json", body)
}

/// What Go's `http.Error` writes.
pub(crate) fn plain(status: StatusCode, text: &str) -> Response {
    let mut response = respond(status, "text/plain; charset=utf-8", text.to_owned());
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// A refusal of a method.
pub(crate) fn not_allowed(allowed: &'static str) -> Response {
    let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

/// All of a body, unless it is too long or breaks off.
pub(crate) async fn read_body(body: Body, limit: usize) -> Option<Bytes> {
    Limited::new(body, limit).collect().await.ok().map(http_body_util::Collected::to_bytes)
}
