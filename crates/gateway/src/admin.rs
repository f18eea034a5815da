//! The port for whoever looks after the gateway: metrics, health, routes. Nothing here is for clients.

use crate::control::Shared;
use crate::gateway::Asker;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tracing::warn;

/// How long a head may take; nobody far away asks here.
const HEAD: Duration = Duration::from_secs(5);

/// Serves until it is aborted.
pub(crate) async fn serve(listener: TcpListener, shared: Arc<Shared>, asker: Asker) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "cannot accept on the admin port");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (shared, asker) = (Arc::clone(&shared), asker.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(Arc::clone(&shared), asker.clone(), request));
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(HEAD);
            let _ = builder.serve_connection(TokioIo::new(stream), service).await; // the client's trouble
        });
    }
}

async fn answer(
    shared: Arc<Shared>,
    asker: Asker,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, kind, text) = if request.method() != Method::GET {
        (StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET\n".to_owned())
    } else {
        match request.uri().path() {
            "/metrics" => (StatusCode::OK, "text/plain; version=0.0.4", shared.metrics()),
            "/_muster/healthz" => (StatusCode::OK, "text/plain", "ok\n".to_owned()),
            "/routes" => match serde_json::to_string_pretty(&asker.snapshot().await) {
                Ok(json) => (StatusCode::OK, "application/json", json),
                Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, "text/plain", error.to_string()),
            },
            _ => (StatusCode::NOT_FOUND, "text/plain", "/metrics, /routes or /_muster/healthz\n".to_owned()),
        }
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    Ok(response)
}
