//! One connection that speaks HTTP/1.1, one request at a time. It knows no more of HTTP than responses with a length,
//! in chunks, or without a body.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A connection to the server.
pub(crate) struct Wire {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// It has answered before.
    pub(crate) used: bool,
}

/// A response without its body.
pub(crate) struct Response {
    pub(crate) status: u16,
    /// The server ends the connection.
    pub(crate) last: bool,
    /// The value of the header that is tallied.
    pub(crate) tallied: Option<String>,
}

impl Wire {
    pub(crate) async fn connect(address: SocketAddr, timeout: Duration) -> io::Result<Self> {
        let connecting = tokio::time::timeout(timeout, TcpStream::connect(address)).await;
        let stream = connecting.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::with_capacity(16 << 10), used: false })
    }

    /// Whether the server has not ended the connection, as far as the kernel knows: what a careful client looks at before
    /// it uses a connection again.
    pub(crate) fn is_open(&self) -> bool {
        let mut byte = [0u8; 1];
        let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
        matches!(rustix::net::recv(&self.stream, &mut byte, flags), Err(rustix::io::Errno::AGAIN))
    }

    /// Sends a request and reads its response to the end.
    pub(crate) async fn exchange(
        &mut self,
        request: &[u8],
        no_body: bool,
        tally: Option<&str>,
    ) -> io::Result<Response> {
        self.stream.write_all(request).await?;
        let (response, length) = loop {
            let end = self.head().await?;
            let head = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
            self.buffer.drain(..end);
            let (response, length) = read_head(&head, no_body, tally)?;
            if response.status >= 200 {
                break (response, length);
            }
        };
        match length {
            Length::Known(length) => self.skip(length).await?,
            Length::Chunks => loop {
                let line = self.line().await?;
                let size = line.split(';').next().unwrap_or_default().trim();
                let size = usize::from_str_radix(size, 16).map_err(|_| broken("chunk"))?;
                if size == 0 {
                    while !self.line().await?.is_empty() {}
                    break;
                }
                self.skip(size + 2).await?;
            },
            Length::UntilEnd => loop {
                self.buffer.clear();
                if self.stream.read_buf(&mut self.buffer).await? == 0 {
                    break;
                }
            },
        }
        self.used = true;
        Ok(response)
    }

    async fn fill(&mut self) -> io::Result<()> {
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    async fn head(&mut self) -> io::Result<usize> {
        let mut from = 0;
        loop {
            let found = self.buffer[from..].windows(4).position(|four| four == b"\r\n\r\n");
            if let Some(at) = found {
                return Ok(from + at + 4);
            }
            from = self.buffer.len().saturating_sub(3);
            if self.buffer.len() > 1 << 20 {
                return Err(broken("head"));
            }
            self.fill().await?;
        }
    }

    async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|two| two == b"\r\n") {
                let line = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
                self.buffer.drain(..end + 2);
                return Ok(line);
            }
            self.fill().await?;
        }
    }

    async fn skip(&mut self, mut length: usize) -> io::Result<()> {
        loop {
            let step = length.min(self.buffer.len());
            self.buffer.drain(..step);
            length -= step;
            if length == 0 {
                return Ok(());
            }
            self.fill().await?;
        }
    }
}

enum Length {
    Known(usize),
    Chunks,
    UntilEnd,
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the response's {what} is none"))
}

fn read_head(head: &str, no_body: bool, tally: Option<&str>) -> io::Result<(Response, Length)> {
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok());
    let mut response =
        Response { status: status.ok_or_else(|| broken("first line"))?, last: false, tallied: None };
    let mut length = Length::UntilEnd;
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            length = Length::Known(value.parse().map_err(|_| broken("length"))?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            length = Length::Chunks;
        } else if name.eq_ignore_ascii_case("connection") {
            response.last = value.eq_ignore_ascii_case("close");
        } else if tally.is_some_and(|tally| name.eq_ignore_ascii_case(tally)) {
            response.tallied = Some(value.to_owned());
        }
    }
    if no_body || response.status == 204 || response.status == 304 || response.status < 200 {
        length = Length::Known(0);
    }
    response.last |= matches!(length, Length::UntilEnd);
    Ok((response, length))
}
