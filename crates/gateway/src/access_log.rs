//! A line of JSON for each request.
//!
//! Lines are written by a thread of their own; what it cannot keep up with is left out and counted, for traffic does not
//! wait for a disk. Invariant: a line is whole.

use hyper::StatusCode;
use hyper::http::request::Parts;
use model::ServiceName;
use muster_core::balance::Moment;
use serde::Serialize;
use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant, SystemTime};
use tracing::warn;

/// Lines that wait to be written: some tenths of a second at full load.
const WAITING: usize = 8192;
/// How long a line stays in memory.
const FLUSH: Duration = Duration::from_millis(200);

/// Where lines go.
#[derive(Debug)]
pub(crate) struct AccessLog {
    lines: SyncSender<Vec<u8>>,
    pub(crate) lost: AtomicU64,
    start: Instant,
}

impl AccessLog {
    /// Opens a file, or standard output for `-`.
    pub(crate) fn open(path: &Path, start: Instant) -> io::Result<Arc<Self>> {
        let output: Box<dyn Write + Send> = if path == Path::new("-") {
            Box::new(io::stdout())
        } else {
            Box::new(OpenOptions::new().create(true).append(true).open(path)?)
        };
        let (lines, waiting) = sync_channel(WAITING);
        std::thread::Builder::new()
            .name("gateway-log".to_owned())
            .spawn(move || write(BufWriter::new(output), &waiting))?;
        Ok(Arc::new(Self { lines, lost: AtomicU64::new(0), start }))
    }
}

fn write(mut output: BufWriter<Box<dyn Write + Send>>, lines: &Receiver<Vec<u8>>) {
    loop {
        let written = match lines.recv_timeout(FLUSH) {
            Ok(line) => output.write_all(&line),
            Err(RecvTimeoutError::Timeout) => output.flush(),
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if let Err(error) = written {
            warn!(%error, "access log cannot be written");
            std::thread::sleep(Duration::from_secs(1));
        }
    }
}

/// A line that is being put together.
pub(crate) struct Line {
    log: Arc<AccessLog>,
    started: Moment,
    entry: Entry,
}

#[derive(Serialize)]
struct Entry {
    /// Milliseconds since 1970.
    at: u64,
    client: SocketAddr,
    tls: bool,
    method: String,
    host: String,
    path: String,
    service: ServiceName,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    /// Further tries.
    tries: u32,
    /// Until the response began, in microseconds, at the endpoint that gave it.
    #[serde(skip_serializing_if = "Option::is_none")]
    waited: Option<u64>,
    /// All in all, in microseconds.
    took: u64,
    bytes: u64,
    /// The body came to its end.
    complete: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
}

impl Line {
    pub(crate) fn new(
        log: Arc<AccessLog>,
        client: SocketAddr,
        tls: bool,
        parts: &Parts,
        host: &str,
        service: &ServiceName,
        started: Moment,
    ) -> Self {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let id = parts.headers.get(&crate::headers::X_REQUEST_ID);
        let entry = Entry {
            at: since_1970.as_millis() as u64,
            client,
            tls,
            method: parts.method.to_string(),
            host: host.to_owned(),
            path: parts.uri.path_and_query().map_or("*", |path| path.as_str()).to_owned(),
            service: service.clone(),
            instance: None,
            status: None,
            tries: 0,
            waited: None,
            took: 0,
            bytes: 0,
            complete: false,
            id: id.and_then(|id| id.to_str().ok()).map(str::to_owned),
        };
        Self { log, started, entry }
    }

    pub(crate) fn answered(&mut self, instance: &str, status: StatusCode, tries: u32, waited: Duration) {
        self.entry.instance = Some(instance.to_owned());
        self.entry.status = Some(status.as_u16());
        self.entry.tries = tries;
        self.entry.waited = Some(waited.as_micros() as u64);
    }

    /// The gateway answered itself.
    pub(crate) fn refused(&mut self, status: StatusCode) {
        self.entry.status = Some(status.as_u16());
    }

    /// Hands the line to the thread that writes.
    pub(crate) fn write(mut self: Box<Self>, bytes: u64, complete: bool) {
        let now = self.log.start.elapsed();
        self.entry.took = now.saturating_sub(self.started).as_micros() as u64;
        self.entry.bytes = bytes;
        self.entry.complete = complete;
        let Ok(mut line) = serde_json::to_vec(&self.entry) else { return };
        line.push(b'\n');
        if self.log.lines.try_send(line).is_err() {
            self.log.lost.fetch_add(1, Relaxed);
        }
    }
}
