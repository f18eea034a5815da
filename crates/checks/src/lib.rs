//! Whether an instance works: one check, made from the machine that it runs on.
//!
//! Not here: how often, and what follows (`core::registrar`). Invariants: a check takes no longer than its timeout, and
//! leaves nothing behind: its connection is closed, its program killed with all that it started.
#![warn(missing_docs)]

/// Programs.
mod exec;
/// The certificate does not matter.
mod tls;

use std::{net::Ipv4Addr, ops::RangeInclusive, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use unit::Check;

/// More of an answer than its first line is not needed.
const FIRST_LINE: usize = 1024;
/// Makes one check of what listens at `address`; `port` is the one that is registered. Says why it did not pass.
pub async fn run(check: &Check, address: Ipv4Addr, port: u16, timeout: Duration) -> Result<(), String> {
    let made = async {
        match check {
            Check::None => Ok(()),
            Check::Tcp { port: other } => connect(address, other.unwrap_or(port)).await.map(drop),
            Check::Http { tls, port: other, path, status } => {
                let port = other.unwrap_or(port);
                let stream = connect(address, port).await?;
                if *tls {
                    let stream =
                        tls::handshake(address, stream).await.map_err(|error| format!("TLS: {error}"))?;
                    http(stream, address, port, path, status).await
                } else {
                    http(stream, address, port, path, status).await
                }
            }
            Check::Exec(words) => exec::run(words).await,
            Check::Grpc { service } => grpc(address, port, service).await,
        }
    };
    match tokio::time::timeout(timeout, made).await {
        Ok(outcome) => outcome,
        Err(_) => Err(format!("no answer within {timeout:?} from {address}:{port}")),
    }
}

async fn connect(address: Ipv4Addr, port: u16) -> Result<TcpStream, String> {
    TcpStream::connect((address, port)).await.map_err(|error| format!("{address}:{port}: {error}"))
}

async fn http(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    address: Ipv4Addr,
    port: u16,
    path: &str,
    wanted: &RangeInclusive<u16>,
) -> Result<(), String> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}:{port}\r\nUser-Agent: muster-check\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    let broken = |error: std::io::Error| format!("GET {path}: {error}");
    stream.write_all(request.as_bytes()).await.map_err(broken)?;
    let mut answer = Vec::new();
    while !answer.contains(&b'\n') && answer.len() < FIRST_LINE {
        if stream.read_buf(&mut answer).await.map_err(broken)? == 0 {
            break;
        }
    }
    let line = String::from_utf8_lossy(&answer);
    let line = line.lines().next().unwrap_or_default();
    let mut words = line.split(' ');
    let status = words.next().filter(|word| word.starts_with("HTTP/1")).and_then(|_| words.next());
    match status.and_then(|status| status.parse::<u16>().ok()) {
        Some(status) if wanted.contains(&status) => Ok(()),
        Some(status) => {
            let to = if (300..400).contains(&status) { ", a redirection" } else { "" };
            Err(format!("GET {path} gave {status}{to}"))
        }
        None if answer.is_empty() => Err(format!("GET {path}: closed without an answer")),
        None => Err(format!("GET {path}: no HTTP answer")),
    }
}

async fn grpc(address: Ipv4Addr, port: u16, service: &str) -> Result<(), String> {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}:{port}"));
    let channel = endpoint.map_err(|error| error.to_string())?.connect().await;
    let channel = channel.map_err(|error| format!("{address}:{port}: {error}"))?;
    let request = HealthCheckRequest { service: service.to_owned() };
    let answer = HealthClient::new(channel).check(request).await;
    match answer.map(|answer| answer.into_inner().status()) {
        Ok(ServingStatus::Serving) => Ok(()),
        Ok(other) => Err(format!("gRPC health: {}", other.as_str_name())),
        Err(status) => Err(format!("gRPC health: {} ({:?})", status.message(), status.code())),
    }
}
