//! The JSON gateway: etcd's gRPC API as `POST /v3/…`, the way grpc-gateway 1.9 of etcd 3.4 has it.
//!
//! A path names a call; its body becomes that call's message and its answer becomes JSON again. Knows nothing of
//! what the calls do. Invariant: every answer is one that grpc-gateway could give, in its statuses and its shapes;
//! fields that are unknown are skipped, as etcd 3.4 does.

use super::inside::{Caller, Services};
use super::schema::{self as s, Message};
use super::transcode::{quote, quoted, to_json, to_protobuf};
use super::{json, plain, read_body};
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{Method, Request, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::Value;
use tonic::{Code, Status};

/// Longest body: the largest write in base64, and room.
const MAX_BODY: usize = 4 << 20;

/// How a call's messages come.
#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Unary,
    /// Many answers to one message.
    Answers,
    /// Both ways; the messages end with the body.
    Both,
    /// Both ways; answers go on after the messages have ended.
    Open,
}

struct Call {
    /// Below `/v3/`.
    path: &'static str,
    rpc: &'static str,
    mode: Mode,
    request: &'static Message,
    response: &'static Message,
}

macro_rules! calls {
    ($($path:literal $rpc:literal $mode:ident $request:ident $response:ident;)*) => {
        &[$(Call { path: $path, rpc: $rpc, mode: Mode::$mode, request: &s::$request, response: &s::$response }),*]
    };
}

static CALLS: &[Call] = calls! {
    "kv/range" "/etcdserverpb.KV/Range" Unary RANGE_REQUEST RANGE_RESPONSE;
    "kv/put" "/etcdserverpb.KV/Put" Unary PUT_REQUEST PUT_RESPONSE;
    "kv/deleterange" "/etcdserverpb.KV/DeleteRange" Unary DELETE_REQUEST DELETE_RESPONSE;
    "kv/txn" "/etcdserverpb.KV/Txn" Unary TXN_REQUEST TXN_RESPONSE;
    "kv/compaction" "/etcdserverpb.KV/Compact" Unary COMPACTION_REQUEST HEADER_ONLY;
    "watch" "/etcdserverpb.Watch/Watch" Open WATCH_REQUEST WATCH_RESPONSE;
    "lease/grant" "/etcdserverpb.Lease/LeaseGrant" Unary LEASE_GRANT_REQUEST LEASE_GRANT_RESPONSE;
    "lease/revoke" "/etcdserverpb.Lease/LeaseRevoke" Unary LEASE_REQUEST HEADER_ONLY;
    "kv/lease/revoke" "/etcdserverpb.Lease/LeaseRevoke" Unary LEASE_REQUEST HEADER_ONLY;
    "lease/keepalive" "/etcdserverpb.Lease/LeaseKeepAlive" Both LEASE_REQUEST LEASE_KEEP_ALIVE_RESPONSE;
    "lease/timetolive" "/etcdserverpb.Lease/LeaseTimeToLive" Unary LEASE_TTL_REQUEST LEASE_TTL_RESPONSE;
    "kv/lease/timetolive" "/etcdserverpb.Lease/LeaseTimeToLive" Unary LEASE_TTL_REQUEST LEASE_TTL_RESPONSE;
    "lease/leases" "/etcdserverpb.Lease/LeaseLeases" Unary EMPTY LEASE_LEASES_RESPONSE;
    "kv/lease/leases" "/etcdserverpb.Lease/LeaseLeases" Unary EMPTY LEASE_LEASES_RESPONSE;
    "cluster/member/add" "/etcdserverpb.Cluster/MemberAdd" Unary MEMBER_ADD_REQUEST MEMBER_ADD_RESPONSE;
    "cluster/member/remove" "/etcdserverpb.Cluster/MemberRemove" Unary MEMBER_REQUEST MEMBERS_RESPONSE;
    "cluster/member/update" "/etcdserverpb.Cluster/MemberUpdate" Unary MEMBER_REQUEST MEMBERS_RESPONSE;
    "cluster/member/promote" "/etcdserverpb.Cluster/MemberPromote" Unary MEMBER_REQUEST MEMBERS_RESPONSE;
    "cluster/member/list" "/etcdserverpb.Cluster/MemberList" Unary MEMBER_LIST_REQUEST MEMBERS_RESPONSE;
    "maintenance/alarm" "/etcdserverpb.Maintenance/Alarm" Unary ALARM_REQUEST ALARM_RESPONSE;
    "maintenance/status" "/etcdserverpb.Maintenance/Status" Unary EMPTY STATUS_RESPONSE;
    "maintenance/defragment" "/etcdserverpb.Maintenance/Defragment" Unary EMPTY HEADER_ONLY;
    "maintenance/hash" "/etcdserverpb.Maintenance/Hash" Unary EMPTY HASH_RESPONSE;
    "maintenance/hashkv" "/etcdserverpb.Maintenance/HashKV" Unary REVISION_REQUEST HASH_KV_RESPONSE;
    "maintenance/snapshot" "/etcdserverpb.Maintenance/Snapshot" Answers EMPTY SNAPSHOT_RESPONSE;
    "maintenance/transfer-leadership" "/etcdserverpb.Maintenance/MoveLeader" Unary MOVE_LEADER_REQUEST HEADER_ONLY;
    "maintenance/downgrade" "/etcdserverpb.Maintenance/Downgrade" Unary DOWNGRADE_REQUEST DOWNGRADE_RESPONSE;
    "auth/enable" "/etcdserverpb.Auth/AuthEnable" Unary EMPTY HEADER_ONLY;
    "auth/disable" "/etcdserverpb.Auth/AuthDisable" Unary EMPTY HEADER_ONLY;
    "auth/status" "/etcdserverpb.Auth/AuthStatus" Unary EMPTY AUTH_STATUS_RESPONSE;
    "auth/authenticate" "/etcdserverpb.Auth/Authenticate" Unary NAME_PASSWORD AUTHENTICATE_RESPONSE;
    "auth/user/add" "/etcdserverpb.Auth/UserAdd" Unary USER_ADD_REQUEST HEADER_ONLY;
    "auth/user/get" "/etcdserverpb.Auth/UserGet" Unary NAME_REQUEST ROLES_RESPONSE;
    "auth/user/list" "/etcdserverpb.Auth/UserList" Unary EMPTY USERS_RESPONSE;
    "auth/user/delete" "/etcdserverpb.Auth/UserDelete" Unary NAME_REQUEST HEADER_ONLY;
    "auth/user/changepw" "/etcdserverpb.Auth/UserChangePassword" Unary USER_CHANGE_REQUEST HEADER_ONLY;
    "auth/user/grant" "/etcdserverpb.Auth/UserGrantRole" Unary USER_ROLE_REQUEST HEADER_ONLY;
    "auth/user/revoke" "/etcdserverpb.Auth/UserRevokeRole" Unary NAME_ROLE_REQUEST HEADER_ONLY;
    "auth/role/add" "/etcdserverpb.Auth/RoleAdd" Unary NAME_REQUEST HEADER_ONLY;
    "auth/role/get" "/etcdserverpb.Auth/RoleGet" Unary ROLE_REQUEST ROLE_GET_RESPONSE;
    "auth/role/list" "/etcdserverpb.Auth/RoleList" Unary EMPTY ROLES_RESPONSE;
    "auth/role/delete" "/etcdserverpb.Auth/RoleDelete" Unary ROLE_REQUEST HEADER_ONLY;
    "auth/role/grant" "/etcdserverpb.Auth/RoleGrantPermission" Unary ROLE_GRANT_REQUEST HEADER_ONLY;
    "auth/role/revoke" "/etcdserverpb.Auth/RoleRevokePermission" Unary ROLE_REVOKE_REQUEST HEADER_ONLY;
    "lock/lock" "/v3lockpb.Lock/Lock" Unary LOCK_REQUEST LOCK_RESPONSE;
    "lock/unlock" "/v3lockpb.Lock/Unlock" Unary UNLOCK_REQUEST HEADER_ONLY;
    "election/campaign" "/v3electionpb.Election/Campaign" Unary CAMPAIGN_REQUEST CAMPAIGN_RESPONSE;
    "election/proclaim" "/v3electionpb.Election/Proclaim" Unary PROCLAIM_REQUEST HEADER_ONLY;
    "election/leader" "/v3electionpb.Election/Leader" Unary LEADER_REQUEST LEADER_RESPONSE;
    "election/observe" "/v3electionpb.Election/Observe" Answers LEADER_REQUEST LEADER_RESPONSE;
    "election/resign" "/v3electionpb.Election/Resign" Unary RESIGN_REQUEST HEADER_ONLY;
};

/// The gRPC calls behind it.
#[cfg(any(test, fuzzing))]
pub(crate) fn rpcs() -> Vec<&'static str> {
    CALLS.iter().map(|call| call.rpc).collect()
}

/// Answers `/v3/…`.
pub(crate) async fn serve(
    State(services): State<Services>,
    Path(path): Path<String>,
    request: Request<Body>,
) -> Response {
    let Some(call) = CALLS.iter().find(|call| call.path == path) else {
        return plain(StatusCode::NOT_FOUND, "Not Found\n");
    };
    if request.method() != Method::POST {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
    }
    let caller = services.caller(request.headers(), request.extensions());
    let Some(body) = read_body(request.into_body(), MAX_BODY).await else {
        return refusal(&Status::invalid_argument("etcdserver: request is too large"));
    };
    let answer = match call.mode {
        Mode::Unary => unary(call, &caller, &body).await,
        _ => stream(call, &caller, &body).await,
    };
    answer.unwrap_or_else(|status| refusal(&status))
}

async fn unary(call: &'static Call, caller: &Caller, body: &[u8]) -> Result<Response, Status> {
    // Like Go's decoder: no body is an empty message, and what follows the first value does not matter.
    let message = messages(call, body).next().transpose()?.unwrap_or_default();
    let answer = caller.call_encoded(call.rpc, message).await?;
    Ok(json(StatusCode::OK, to_json(call.response, answer).map_err(Status::internal)?))
}

async fn stream(call: &'static Call, caller: &Caller, body: &[u8]) -> Result<Response, Status> {
    let messages = messages(call, body);
    let messages: Vec<Bytes> = match call.mode {
        Mode::Answers => vec![messages.take(1).next().transpose()?.unwrap_or_default()],
        // grpc-gateway does not say of a stream whose fault it was.
        _ => messages.collect::<Result<_, _>>().map_err(|status| Status::unknown(status.message()))?,
    };
    let messages = tokio_stream::iter(messages);
    let answers = if call.mode == Mode::Open {
        caller.stream_encoded(call.rpc, messages.chain(futures_util::stream::pending())).await?
    } else {
        caller.stream_encoded(call.rpc, messages).await?
    };
    let lines = answers.map(|answer| {
        let line = answer.and_then(|answer| to_json(call.response, answer).map_err(Status::internal));
        let line = match line {
            Ok(line) => format!("{{\"result\":{line}}}\n"),
            Err(status) => stream_refusal(&status),
        };
        Ok::<_, std::convert::Infallible>(Bytes::from(line))
    });
    let mut response = json(StatusCode::OK, String::new());
    *response.body_mut() = Body::from_stream(lines);
    Ok(response)
}

/// The messages in a body: one JSON value after another.
fn messages<'a>(call: &'static Call, body: &'a [u8]) -> impl Iterator<Item = Result<Bytes, Status>> + 'a {
    let values = serde_json::Deserializer::from_slice(body).into_iter::<Value>();
    values.map(move |value| {
        let value = value.map_err(|error| Status::invalid_argument(complaint(&error, body)))?;
        to_protobuf(call.request, &value).map(Bytes::from).map_err(Status::invalid_argument)
    })
}

/// What Go would say of wrong JSON, where that can be known.
fn complaint(error: &serde_json::Error, body: &[u8]) -> String {
    if error.is_eof() {
        return "unexpected EOF".to_owned();
    }
    let text = error.to_string();
    let place = if text.starts_with("expected `:`") {
        "after object key"
    } else if text.starts_with("expected `,` or `}`") {
        "after object key:value pair"
    } else if text.starts_with("expected `,` or `]`") {
        "after array element"
    } else if text.starts_with("key must be a string") {
        "looking for beginning of object key string"
    } else {
        "looking for beginning of value"
    };
    let line = body.split(|byte| *byte == b'\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
    match line.get(error.column().saturating_sub(1)) {
        Some(byte) => format!("invalid character {} {place}", quoted(char::from(*byte))),
        None => text,
    }
}

/// grpc-gateway's mapping of codes to HTTP.
fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::Cancelled => StatusCode::REQUEST_TIMEOUT,
        Code::InvalidArgument | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::FailedPrecondition => StatusCode::PRECONDITION_FAILED,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn refusal(status: &Status) -> Response {
    let mut text = String::new();
    quote(status.message(), &mut text);
    let code = i32::from(status.code());
    json(http_status(status.code()), format!("{{\"error\":{text},\"message\":{text},\"code\":{code}}}"))
}

/// A refusal after the answers have begun.
fn stream_refusal(status: &Status) -> String {
    let http = http_status(status.code());
    let mut text = String::new();
    quote(status.message(), &mut text);
    let (code, number) = (i32::from(status.code()), http.as_u16());
    let reason = http.canonical_reason().unwrap_or_default();
    format!(
        "{{\"error\":{{\"grpc_code\":{code},\"http_code\":{number},\"message\":{text},\"http_status\":\"{reason}\"}}}}\n"
    )
}
