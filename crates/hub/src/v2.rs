//! etcd's v2 API (`/v2/keys`, and what its clients ask around it), on the keys that v3 has.
//!
//! The v2 path `/a/b` is the v3 key `/a/b`; keys without a slash in front, or with two in a row, have no v2 name. A
//! directory is a prefix: it is there while a key below it is, or its *marker* is: the key `/a/` with an empty value,
//! which v2 makes for directories that are empty. A time to live is a lease of its own per key (2 s at the least);
//! what is put into a directory that ends has the directory's lease. Indices are revisions. Where v3 differs it
//! wins: a `set` keeps `createdIndex`, and the directory of a key that ends goes with the last key. Unlike etcd this does
//! not let pages of other origins in (CORS): in a cluster that runs units for whoever writes keys, any web page that
//! somebody opens would be root.
//! Invariant: nothing is stored for v2 alone but the markers.

/// Refusals.
mod error;
/// Parameters.
pub(crate) mod form;
/// Past events.
mod history;
/// Nodes in JSON.
mod node;
/// Decisions.
mod plan;
/// Reading.
mod tree;
/// Waiting.
mod wait;
/// Writing.
mod write;

use crate::http::inside::{Caller, Services};
use crate::http::{json, not_allowed, plain, read_body, respond, transcode};
use crate::storage::Identity;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use axum::response::Response;
use axum::routing::any;
use base64::Engine as _;
use error::{Code, Refusal};
use etcd_client::proto as pb;
use form::Ask;
use history::History;
use node::{Event, rfc3339};
use plan::Action;
use std::sync::Arc;
use std::time::{Instant, SystemTime};
use wait::Wait;

/// The longest form; Go's.
const MAX_FORM: usize = 10 << 20;

#[derive(Clone)]
struct V2 {
    services: Services,
    history: Arc<History>,
    began: (SystemTime, Instant),
    identity: Identity,
}

/// The pages below `/v2`.
pub(crate) fn routes(services: Services, identity: Identity) -> Router {
    let began = (SystemTime::now(), Instant::now());
    let state = V2 { services, history: Arc::default(), began, identity };
    Router::new()
        .route("/v2/keys", any(keys))
        .route("/v2/keys/", any(keys))
        .route("/v2/keys/{*path}", any(keys))
        .route("/v2/members", any(members))
        .route("/v2/members/{id}", any(member))
        .route("/v2/machines", any(machines))
        .route("/v2/stats/{which}", any(stats))
        .route("/v2/auth/enable", any(auth_enabled))
        .with_state(state)
}

async fn keys(State(v2): State<V2>, request: Request<Body>) -> Response {
    let (parts, body) = request.into_parts();
    let mut response = match serve(&v2, &parts, body).await {
        Ok(response) => response,
        Err(refusal) => {
            let mut response = json(refusal.status(), refusal.json());
            index_header(&mut response, refusal.index);
            response
        }
    };
    v2.cluster_header(&mut response);
    // The raft index of a hub is its revision.
    if response.status().is_success()
        && let Some(index) = response.headers().get("X-Etcd-Index").cloned()
    {
        response.headers_mut().insert("X-Raft-Index", index);
        response.headers_mut().insert("X-Raft-Term", HeaderValue::from(v2.identity.term));
    }
    if response.status() == StatusCode::UNAUTHORIZED {
        let challenge = HeaderValue::from_static("Basic realm=\"etcd\"");
        response.headers_mut().insert("WWW-Authenticate", challenge);
    }
    response
}

async fn serve(v2: &V2, parts: &axum::http::request::Parts, body: Body) -> Result<Response, Refusal> {
    let method = &parts.method;
    if ![Method::HEAD, Method::GET, Method::PUT, Method::POST, Method::DELETE].contains(method) {
        return Ok(not_allowed("HEAD,GET,PUT,POST,DELETE"));
    }
    let form = if is_form(&parts.headers) && (method == Method::PUT || method == Method::POST) {
        let too_large = || Refusal::request(Code::InvalidForm, "http: POST too large");
        Some(read_body(body, MAX_FORM).await.ok_or_else(too_large)?)
    } else {
        None
    };
    let path = parts.uri.path().strip_prefix("/v2/keys").unwrap_or_default();
    let ask = form::parse(method, path, parts.uri.query(), form.as_deref())?;
    let caller = caller(v2, parts).await?;
    let action = match method.as_str() {
        "PUT" => Action::of_put(&ask),
        "POST" => Action::Create,
        "DELETE" => Action::of_delete(&ask),
        _ if ask.wait => return waiting(v2, caller, &ask).await,
        _ => return get(v2, &caller, &ask).await,
    };
    let done = write::write(&caller, &v2.history, action, &ask, method == Method::POST).await;
    v2.history.count(action.name(), done.is_ok());
    let done = done?;
    let created = match action {
        Action::Create => true,
        Action::Set => done.event.prev.is_none(),
        _ => false,
    };
    let deletes = matches!(action, Action::Delete | Action::CompareAndDelete);
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    let mut response = json(status, done.event.json(deletes || !ask.no_value_on_success));
    index_header(&mut response, done.index);
    Ok(response)
}

fn is_form(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    kind.split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .eq_ignore_ascii_case("application/x-www-form-urlencoded")
}

impl V2 {
    /// On all but refusals of a method.
    fn cluster_header(&self, response: &mut Response) {
        if response.status() != StatusCode::METHOD_NOT_ALLOWED
            && let Ok(id) = HeaderValue::try_from(format!("{:x}", self.identity.cluster))
        {
            response.headers_mut().insert("X-Etcd-Cluster-Id", id);
        }
    }
}

fn index_header(response: &mut Response, index: i64) {
    response.headers_mut().insert("X-Etcd-Index", HeaderValue::from(index));
}

/// Calls with the rights of the user that the request names. v2 sends name and password each time, v3 wants a token.
async fn caller(v2: &V2, parts: &axum::http::request::Parts) -> Result<Caller, Refusal> {
    let caller = v2.services.caller(&parts.headers, &parts.extensions);
    let header = parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let Some(encoded) = header.and_then(|header| header.strip_prefix("Basic ")) else { return Ok(caller) };
    let wrong = || Refusal::request(Code::Unauthorized, "Insufficient credentials");
    let decoded = base64::engine::general_purpose::STANDARD.decode(encoded.trim()).map_err(|_| wrong())?;
    let decoded = String::from_utf8(decoded).map_err(|_| wrong())?;
    let (name, password) = decoded.split_once(':').ok_or_else(wrong)?;
    let request = Authenticate { name: name.to_owned(), password: password.to_owned() };
    let caller = caller.with_token("");
    let answer: Result<pb::PbAuthenticateResponse, _> =
        caller.call("/etcdserverpb.Auth/Authenticate", request).await;
    match answer {
        Ok(answer) => Ok(caller.with_token(&answer.token)),
        // Without users everybody may do everything, as in etcd.
        Err(status) if status.code() == tonic::Code::FailedPrecondition => Ok(caller),
        Err(_) => Err(wrong()),
    }
}

/// etcd's AuthenticateRequest.
#[derive(Clone, PartialEq, prost::Message)]
struct Authenticate {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    password: String,
}

async fn get(v2: &V2, caller: &Caller, ask: &Ask) -> Result<Response, Refusal> {
    // Nodes are sorted whether or not that was asked.
    let found = tree::get(caller, &ask.path, ask.recursive).await;
    v2.history.count("get", found.is_ok());
    let (node, index) = found?;
    let mut response = json(StatusCode::OK, Event { action: "get", node, prev: None }.json(true));
    index_header(&mut response, index);
    Ok(response)
}

async fn waiting(v2: &V2, caller: Caller, ask: &Ask) -> Result<Response, Refusal> {
    let wait = wait::wait(caller, Arc::clone(&v2.history), ask).await?;
    let index = wait.index;
    // The head goes out at once, for clients that wait for it with a short patience.
    let stream = ask.stream;
    let lines = futures_util::stream::unfold(Some(wait), move |wait: Option<Wait>| async move {
        let mut wait = wait?;
        let line = wait.next().await?.json(true);
        let wait = if stream { Some(wait) } else { None };
        Some((Ok::<_, std::convert::Infallible>(line), wait))
    });
    let mut response = json(StatusCode::OK, String::new());
    *response.body_mut() = Body::from_stream(lines);
    index_header(&mut response, index);
    Ok(response)
}

async fn the_member(v2: &V2) -> Option<pb::PbMember> {
    let caller = v2.services.caller(&HeaderMap::new(), &axum::http::Extensions::new());
    let request = pb::PbMemberListRequest::default();
    let answer: pb::PbMemberListResponse =
        caller.call("/etcdserverpb.Cluster/MemberList", request).await.ok()?;
    answer.members.into_iter().next()
}

fn member_json(member: &pb::PbMember) -> String {
    let list = |urls: &[String]| {
        let mut out = String::from("[");
        for (at, url) in urls.iter().enumerate() {
            if at > 0 {
                out.push(',');
            }
            transcode::quote(url, &mut out);
        }
        out.push(']');
        out
    };
    let mut name = String::new();
    transcode::quote(&member.name, &mut name);
    let (peers, clients) = (list(&member.peer_ur_ls), list(&member.client_ur_ls));
    format!("{{\"id\":\"{:x}\",\"name\":{name},\"peerURLs\":{peers},\"clientURLs\":{clients}}}", member.id)
}

fn unavailable() -> Response {
    plain(StatusCode::SERVICE_UNAVAILABLE, "etcdserver: server stopped\n")
}

/// A cluster of one, which cannot be changed.
async fn members(State(v2): State<V2>, method: Method) -> Response {
    if method != Method::GET && method != Method::HEAD {
        return not_allowed("GET,HEAD");
    }
    let Some(member) = the_member(&v2).await else { return unavailable() };
    let mut response = json(StatusCode::OK, format!("{{\"members\":[{}]}}\n", member_json(&member)));
    v2.cluster_header(&mut response);
    response
}

async fn member(State(v2): State<V2>, Path(id): Path<String>, method: Method) -> Response {
    if method != Method::GET && method != Method::HEAD {
        return not_allowed("GET,HEAD");
    }
    let Some(member) = the_member(&v2).await else { return unavailable() };
    if id == "leader" {
        return json(StatusCode::OK, format!("{}\n", member_json(&member)));
    }
    json(StatusCode::NOT_FOUND, "{\"message\":\"Not found\"}".to_owned())
}

async fn machines(State(v2): State<V2>, method: Method) -> Response {
    if method != Method::GET && method != Method::HEAD {
        return not_allowed("GET,HEAD");
    }
    let Some(member) = the_member(&v2).await else { return unavailable() };
    respond(StatusCode::OK, "text/plain; charset=utf-8", member.client_ur_ls.join(", "))
}

async fn stats(State(v2): State<V2>, Path(which): Path<String>, method: Method) -> Response {
    if method != Method::GET {
        return not_allowed("GET");
    }
    if which == "store" {
        return json(StatusCode::OK, v2.history.json());
    }
    let Some(member) = the_member(&v2).await else { return unavailable() };
    let id = format!("{:x}", member.id);
    match which.as_str() {
        "leader" => json(StatusCode::OK, format!("{{\"leader\":\"{id}\",\"followers\":{{}}}}")),
        "self" => {
            let (began, since) = (rfc3339(v2.began.0), v2.began.1.elapsed());
            let mut name = String::new();
            transcode::quote(&member.name, &mut name);
            let leader = format!("\"leader\":\"{id}\",\"uptime\":\"{since:?}\",\"startTime\":\"{began}\"");
            json(
                StatusCode::OK,
                format!(
                    "{{\"name\":{name},\"id\":\"{id}\",\"state\":\"StateLeader\",\"startTime\":\"{began}\",\"leaderInfo\":{{{leader}}},\"recvAppendRequestCnt\":0,\"sendAppendRequestCnt\":0}}"
                ),
            )
        }
        _ => plain(StatusCode::NOT_FOUND, "404 page not found\n"),
    }
}

/// v2 has no users of its own here; v3's apply to it.
async fn auth_enabled(method: Method) -> Response {
    if method != Method::GET {
        return not_allowed("GET");
    }
    json(StatusCode::OK, "{\"enabled\":false}\n".to_owned())
}
