//! How many gRPC calls there were and how they ended, under the names of Go's gRPC servers.
//!
//! Invariant: a call that started is handled exactly once; one whose client went away before its end was cancelled.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::Response;
use http_body_util::{BodyExt as _, StreamBody};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A service, its unary methods, and the others with their kind.
type Methods = (&'static str, &'static [&'static str], &'static [(&'static str, &'static str)]);

const METHODS: &[Methods] = &[
    ("etcdserverpb.KV", &["Range", "Put", "DeleteRange", "Txn", "Compact"], &[("RangeStream", SERVER)]),
    ("etcdserverpb.Watch", &[], &[("Watch", BOTH)]),
    (
        "etcdserverpb.Lease",
        &["LeaseGrant", "LeaseRevoke", "LeaseTimeToLive", "LeaseLeases"],
        &[("LeaseKeepAlive", BOTH)],
    ),
    (
        "etcdserverpb.Cluster",
        &["MemberAdd", "MemberRemove", "MemberUpdate", "MemberList", "MemberPromote"],
        &[],
    ),
    (
        "etcdserverpb.Maintenance",
        &["Alarm", "Status", "Defragment", "Hash", "HashKV", "MoveLeader", "Downgrade"],
        &[("Snapshot", SERVER)],
    ),
    (
        "etcdserverpb.Auth",
        &[
            "AuthEnable",
            "AuthDisable",
            "AuthStatus",
            "Authenticate",
            "UserAdd",
            "UserGet",
            "UserList",
            "UserDelete",
            "UserChangePassword",
            "UserGrantRole",
            "UserRevokeRole",
            "RoleAdd",
            "RoleGet",
            "RoleList",
            "RoleDelete",
            "RoleGrantPermission",
            "RoleRevokePermission",
        ],
        &[],
    ),
    ("v3lockpb.Lock", &["Lock", "Unlock"], &[]),
    ("v3electionpb.Election", &["Campaign", "Proclaim", "Leader", "Resign"], &[("Observe", SERVER)]),
    ("grpc.health.v1.Health", &["Check"], &[("Watch", SERVER)]),
];

const UNARY: &str = "unary";
const SERVER: &str = "server_stream";
const BOTH: &str = "bidi_stream";

/// gRPC's codes by number.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];
const OK: usize = 0;
const CANCELLED: usize = 1;
const UNKNOWN: usize = 2;

#[derive(Debug)]
struct Method {
    service: &'static str,
    name: &'static str,
    kind: &'static str,
    started: AtomicU64,
    handled: [AtomicU64; CODES.len()],
}

/// The counts.
#[derive(Debug, Clone)]
pub(crate) struct Calls {
    methods: Arc<HashMap<String, Arc<Method>>>,
}

impl Default for Calls {
    fn default() -> Self {
        let mut methods = HashMap::new();
        for (service, unary, others) in METHODS {
            let unary = unary.iter().map(|name| (*name, UNARY));
            for (name, kind) in unary.chain(others.iter().copied()) {
                let method =
                    Method { service, name, kind, started: AtomicU64::new(0), handled: Default::default() };
                methods.insert(format!("/{service}/{name}"), Arc::new(method));
            }
        }
        Self { methods: Arc::new(methods) }
    }
}

impl Calls {
    /// Prometheus' lines: all methods, and of the ways to end those that occurred.
    pub(crate) fn write(&self, out: &mut String) {
        let mut methods: Vec<&Arc<Method>> = self.methods.values().collect();
        methods.sort_unstable_by_key(|method| (method.service, method.name));
        let labels = |method: &Method| {
            let Method { service, name, kind, .. } = method;
            format!("grpc_method=\"{name}\",grpc_service=\"{service}\",grpc_type=\"{kind}\"")
        };
        // Writing to a String does not fail.
        out.push_str("# HELP grpc_server_started_total Total number of RPCs started on the server.\n");
        out.push_str("# TYPE grpc_server_started_total counter\n");
        for method in &methods {
            let started = method.started.load(Ordering::Relaxed);
            let _ = writeln!(out, "grpc_server_started_total{{{}}} {started}", labels(method));
        }
        out.push_str(
            "# HELP grpc_server_handled_total Total number of RPCs completed on the server, regardless of success or failure.\n",
        );
        out.push_str("# TYPE grpc_server_handled_total counter\n");
        for method in &methods {
            for (number, code) in CODES.iter().enumerate() {
                let count = method.handled[number].load(Ordering::Relaxed);
                if count > 0 || number == OK {
                    let labels = labels(method);
                    let _ =
                        writeln!(out, "grpc_server_handled_total{{grpc_code=\"{code}\",{labels}}} {count}");
                }
            }
        }
    }
}

/// A call on its way; counted as handled when dropped.
struct Call {
    method: Arc<Method>,
    code: usize,
}

impl Drop for Call {
    fn drop(&mut self) {
        self.method.handled[self.code].fetch_add(1, Ordering::Relaxed);
    }
}

impl Call {
    fn start(method: &Arc<Method>) -> Self {
        method.started.fetch_add(1, Ordering::Relaxed);
        Self { method: Arc::clone(method), code: CANCELLED }
    }
}

fn code(headers: &HeaderMap) -> Option<usize> {
    let status = headers.get("grpc-status")?.to_str().ok().and_then(|status| status.parse().ok());
    Some(status.filter(|code| *code < CODES.len()).unwrap_or(UNKNOWN))
}

/// Around each call.
pub(crate) async fn count(State(calls): State<Calls>, request: Request, next: Next) -> Response {
    let call = calls.methods.get(request.uri().path()).map(Call::start);
    let response = next.run(request).await;
    let Some(mut call) = call else { return response };
    if let Some(code) = code(response.headers()) {
        call.code = code; // refused: there is nothing but the head
        return response;
    }
    if call.method.kind == UNARY {
        call.code = OK; // what is left cannot fail
        return response;
    }
    // How a stream ended is behind its last message.
    response.map(|body| {
        let frames = futures_util::stream::unfold((body, call), |(mut body, mut call)| async move {
            let frame = body.frame().await?;
            if let Some(trailers) = frame.as_ref().ok().and_then(|frame| frame.trailers_ref()) {
                call.code = code(trailers).unwrap_or(UNKNOWN);
            }
            Some((frame, (body, call)))
        });
        Body::new(StreamBody::new(frames))
    })
}
