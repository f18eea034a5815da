//! HTTP/1.1 written and read by hand, so that a mistake of our client's library is not also the test's.

use serde_json::Value;
use std::{collections::BTreeMap, path::PathBuf};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
};

/// Where a server listens.
#[derive(Debug, Clone)]
pub enum Socket {
    Tcp(std::net::SocketAddr),
    Unix(PathBuf),
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The message of an error body, whose code must be the status.
    pub fn message(&self) -> String {
        let body = self.json();
        assert_eq!(body["error"]["code"], self.status, "{self:?}");
        assert_eq!(self.headers["content-type"], "application/json", "{self:?}");
        body["error"]["message"].as_str().unwrap_or_else(|| panic!("{self:?}")).to_owned()
    }
}

/// Sends one request on a connection of its own.
pub async fn ask(socket: &Socket, method: &str, path: &str, headers: &[&str], body: &str) -> Answer {
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: fleet\r\nConnection: close\r\n");
    for header in headers {
        request.push_str(&format!("{header}\r\n"));
    }
    request.push_str(&format!("Content-Length: {}\r\n\r\n{body}", body.len()));
    match socket {
        Socket::Tcp(address) => {
            exchange(TcpStream::connect(address).await.expect("it listens"), &request).await
        }
        Socket::Unix(path) => exchange(UnixStream::connect(path).await.expect("it listens"), &request).await,
    }
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> Answer {
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("answered");
    let answer = String::from_utf8(answer).expect("it is text");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?} is no answer"));
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok());
    let header = |line: &str| {
        let (name, value) = line.split_once(": ")?;
        Some((name.to_ascii_lowercase(), value.to_owned()))
    };
    Answer {
        status: status.unwrap_or_else(|| panic!("{answer:?} has no status")),
        headers: lines.filter_map(header).collect(),
        body: body.to_owned(),
    }
}
