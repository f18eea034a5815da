//! A hub that is asked in process: everything that a client can reach, without sockets.
//!
//! One hub serves many inputs, like a real one, and is replaced now and then so that it stays small. Invariant: after
//! each input it is healthy.

use crate::http::gateway;
use crate::{AuthConfig, Hub, HubConfig};
use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::time::timeout;
use tonic::codegen::Service as _;

/// Inputs that one hub serves.
const INPUTS: u32 = 2000;

/// How long a stream that waits for news is listened to.
const PATIENCE: Duration = Duration::from_millis(10);

/// How much of an answer is read.
const MOST: usize = 1 << 20;

struct Served {
    runtime: Runtime,
    hub: Option<Hub>,
    router: Router,
    directory: PathBuf,
    inputs: u32,
}

static SERVED: Mutex<Option<Served>> = Mutex::new(None);

impl Served {
    fn start() -> Self {
        let directory = std::env::temp_dir().join(format!("hub-fuzz-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory); // of the last one
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let hub = runtime.block_on(Hub::start(HubConfig {
            limits: crate::Limits::default(),
            data_dir: directory.clone(),
            listen: ([127, 0, 0, 1], 0).into(),
            advertise: None,
            name: "fuzz".to_owned(),
            auth: AuthConfig { bcrypt_cost: 4, ..AuthConfig::default() },
            tls: None,
        }));
        let hub = hub.expect("a hub");
        let router = hub.routes.clone().prepare().into_axum_router();
        Self { runtime, hub: Some(hub), router, directory, inputs: 0 }
    }

    /// The answer's status and the beginning of its body; none if it takes its time.
    fn ask(&mut self, request: Request<Body>) -> Option<(StatusCode, Vec<u8>)> {
        let mut router = self.router.clone();
        self.runtime.block_on(async move {
            let response = timeout(PATIENCE, router.call(request)).await.ok()?.expect("it cannot fail");
            let status = response.status();
            let (mut body, mut read) = (response.into_body(), Vec::new());
            while read.len() < MOST
                && let Ok(Some(Ok(frame))) = timeout(PATIENCE, body.frame()).await
            {
                read.extend(frame.into_data().unwrap_or_default());
            }
            Some((status, read))
        })
    }

    fn check(&mut self) {
        for _ in 0..200 {
            let request = Request::get("/health").body(Body::empty()).expect("a request");
            if let Some((status, _)) = self.ask(request) {
                assert_eq!(status, StatusCode::OK, "the hub is not healthy any more");
                return;
            }
        }
        panic!("the hub does not answer any more");
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.hub = None;
        let _ = std::fs::remove_dir_all(&self.directory); // only a temporary directory
    }
}

fn with_hub(request: Request<Body>) -> Option<(StatusCode, Vec<u8>)> {
    let mut served = SERVED.lock().unwrap_or_else(PoisonError::into_inner);
    if served.as_ref().is_some_and(|served| served.inputs > INPUTS) {
        *served = None;
    }
    let served = served.get_or_insert_with(Served::start);
    served.inputs += 1;
    let answer = served.ask(request);
    served.check();
    answer
}

/// An HTTP/1.1 request: `METHOD TARGET` on the first line, then the body.
pub fn http(data: &[u8]) {
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (head, body) = data.split_at(end);
    let Ok(head) = str::from_utf8(head) else { return };
    let Some((method, target)) = head.split_once(' ') else { return };
    if target.contains("auth/enable") {
        return; // that locks out all that follow
    }
    let kind =
        if target.starts_with("/v2") { "application/x-www-form-urlencoded" } else { "application/json" };
    let request = Request::builder().method(method).uri(target).header("content-type", kind);
    let body = body.get(1..).unwrap_or_default().to_vec();
    let Ok(request) = request.body(Body::from(body)) else { return };
    if let Some((status, body)) = with_hub(request) {
        // A unary call that is refused has an error of the client's, or one that its words explain.
        assert!(status != StatusCode::INTERNAL_SERVER_ERROR || !body.is_empty());
    }
}

/// A gRPC call: which one, whether to frame the message, and the message.
pub fn grpc(data: &[u8]) {
    let Some((head, message)) = data.split_first_chunk::<2>() else { return };
    let calls = gateway::rpcs();
    let path = calls[usize::from(head[0]) % calls.len()];
    if path.ends_with("AuthEnable") {
        return;
    }
    let mut body = Vec::new();
    if head[1] % 4 != 0 {
        body.push(0);
        body.extend(u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    }
    body.extend(message);
    let request = Request::post(path).header("content-type", "application/grpc").header("te", "trailers");
    let Ok(request) = request.body(Body::from(body)) else { return };
    if let Some((status, _)) = with_hub(request) {
        assert_eq!(status, StatusCode::OK, "gRPC says what is wrong in its trailers");
    }
}
