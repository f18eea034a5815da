//! An app for benchmarks: answers everything with a few bytes, as cheaply as it goes.

use anyhow::{Context, Result};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;

const ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 22\r\n\r\nhello from a small app\n";

/// Listens on addresses until the process is ended.
pub fn run(addresses: &[SocketAddr]) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let mut all = tokio::task::JoinSet::new();
        for address in addresses {
            let listener = TcpListener::bind(address).await;
            let listener = listener.with_context(|| format!("failed to listen on {address}"))?;
            all.spawn_local(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::task::spawn_local(serve(stream));
                }
            });
        }
        while all.join_next().await.is_some() {}
        Ok(())
    })
}

async fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let answer = &ANSWER[..ANSWER.len() - 1];
    let mut buffer = Vec::with_capacity(16 << 10);
    loop {
        let end = loop {
            if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        };
        let head = String::from_utf8_lossy(&buffer[..end]).to_ascii_lowercase();
        let length =
            head.split("\r\n").find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
        let whole = end + length.unwrap_or(0);
        while buffer.len() < whole {
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        }
        buffer.drain(..whole);
        stream.write_all(answer).await?;
    }
}
