//! The adapter against an engine that says what Docker 20.10 and Podman said, byte for byte as far as it is read.

use containers::{Engine, EngineError, Event};
use std::path::Path;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixListener,
};

const BRIDGED: &str = r#"{"Id":"3f2a","Name":"/app-1","State":{"Status":"running","Running":true,"Health":{"Status":"healthy"}},
"HostConfig":{"NetworkMode":"default"},"NetworkSettings":{"IPAddress":"10.1.5.2","Networks":{"bridge":{"IPAddress":"10.1.5.2"}}}}"#;
const OWN_NETWORK: &str = r#"{"Id":"4","Name":"own","State":{"Running":true},"HostConfig":{"NetworkMode":"web"},
"NetworkSettings":{"IPAddress":"","Networks":{"web":{"IPAddress":"172.18.0.2"}}}}"#;
const ON_HOST: &str = r#"{"Id":"5","Name":"/host","State":{"Running":true,"Health":{"Status":"none"}},
"HostConfig":{"NetworkMode":"host"},"NetworkSettings":{"IPAddress":"","Networks":{"host":{"IPAddress":""}}}}"#;
const EVENTS: &str = "{\"status\":\"start\",\"Type\":\"container\",\"Action\":\"start\",\"Actor\":{\"ID\":\"3f\",\"Attributes\":{\"image\":\"x\",\"name\":\"app-1\"}}}\n\
{\"Type\":\"container\",\"Action\":\"health_status: unhealthy\",\"Actor\":{\"Attributes\":{\"name\":\"app-1\"}}}\n\
{\"Type\":\"container\",\"Action\":\"exec_die\",\"Actor\":{\"Attributes\":{\"name\":\"app-1\"}}}\n\
{\"Type\":\"container\",\"Action\":\"die\",\"Actor\":{\"Attributes\":{\"exitCode\":\"137\",\"name\":\"app-1\"}}}\n";

/// Answers each connection once.
fn engine(directory: &Path) -> Engine {
    let socket = directory.join("engine.sock");
    let listener = UnixListener::bind(&socket).expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.expect("a request");
            let request = String::from_utf8_lossy(&request[..length]).into_owned();
            let path = request.split(' ').nth(1).unwrap_or_default();
            let (status, body) = match path {
                "/containers/app-1/json" => ("200 OK", BRIDGED),
                "/containers/own/json" => ("200 OK", OWN_NETWORK),
                "/containers/web%401/json" => ("200 OK", ON_HOST),
                path if path.starts_with("/events?filters=%7B") => ("200 OK", EVENTS),
                path if path.starts_with("/containers/json?filters=")
                    && path.contains("muster.unit%3Da.service") =>
                {
                    ("200 OK", r#"[{"Id":"77","Names":["/x"]}]"#)
                }
                path if path.starts_with("/containers/json?") => ("200 OK", "[]"),
                "/containers/broken/json" => ("500 Internal Server Error", r#"{"message":"no space left"}"#),
                _ => ("404 Not Found", r#"{"message":"No such container"}"#),
            };
            let head =
                format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n");
            // In two pieces, and cut anywhere.
            let (first, second) = body.split_at(body.len() / 3);
            for piece in [head.as_str(), first, second] {
                stream.write_all(piece.as_bytes()).await.expect("written");
                stream.flush().await.expect("flushed");
                tokio::task::yield_now().await;
            }
        }
    });
    Engine::new(socket)
}

#[tokio::test]
async fn containers_are_found_with_their_addresses() {
    let directory = tempfile::tempdir().expect("a directory");
    let engine = engine(directory.path());
    let app = engine.inspect("app-1").await.expect("answered").expect("there");
    assert_eq!((app.id.as_str(), app.name.as_str(), app.running), ("3f2a", "app-1", true));
    assert_eq!((app.address, app.health.as_deref()), (Some([10, 1, 5, 2].into()), Some("healthy")));
    let own = engine.inspect("own").await.expect("answered").expect("there");
    assert_eq!(own.address, Some([172, 18, 0, 2].into()), "on a network of its own");
    let host = engine.inspect("web@1").await.expect("answered").expect("there");
    assert!(host.host_network && host.address.is_none() && host.health.is_none());
    assert_eq!(engine.inspect("nobody").await.expect("answered"), None);
    let refused = engine.inspect("broken").await.expect_err("refused").to_string();
    assert!(refused.contains("500") && refused.contains("no space left"), "{refused}");
    assert_eq!(engine.labelled("muster.unit", "a.service").await.expect("answered").as_deref(), Some("77"));
    assert_eq!(engine.labelled("muster.unit", "b.service").await.expect("answered"), None);
}

#[tokio::test]
async fn events_come_in_order_and_the_stream_begins_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut events = engine(directory.path()).events();
    let name = || "app-1".to_owned();
    for expected in [
        Event::Begins,
        Event::Started { name: name() },
        Event::Health { name: name() },
        Event::Died { name: name() },
        Event::Begins,
    ] {
        assert_eq!(events.recv().await, Some(expected));
    }
}

#[tokio::test]
async fn an_engine_that_is_not_there_is_an_error() {
    let error = Engine::new("/nonexistent/engine.sock").inspect("a").await.expect_err("nobody");
    assert!(matches!(error, EngineError::Socket { .. }), "{error}");
}
