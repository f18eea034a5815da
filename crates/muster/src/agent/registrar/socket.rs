//! The socket at which a unit's stop asks for its drain, and waits: `muster drain-unit`, which systemd runs before the
//! unit's own `ExecStop=`.
//!
//! One line in, `UNIT alive|ended`, one line out when it is over. Invariant: whoever asks is answered or cut off; what
//! it does then is stop.

use crate::config::RUN_DIR;
use anyhow::{Context, Result};
use model::UnitName;
use std::{
    fs::Permissions,
    io::{BufRead, BufReader, ErrorKind, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
};
use tracing::debug;

/// Below [`RUN_DIR`].
const SOCKET: &str = "registrar.sock";
/// A daemon that is being replaced is back within this time.
const PATIENCE: Duration = Duration::from_secs(3);
/// The longest `Drain=` and what is around it; systemd has its own limit, too.
const LONGEST: Duration = Duration::from_secs(24 * 3600 + 60);

/// A drain that is asked for: of which unit, whether it is alive, and where the answer goes.
pub(super) type Asked = (UnitName, bool, oneshot::Sender<()>);

/// Listens; what comes goes to `sender`.
pub(super) fn serve(sender: mpsc::Sender<Asked>) -> Result<impl Future<Output = ()> + Send + 'static> {
    let path = Path::new(RUN_DIR).join(SOCKET);
    let _ = std::fs::remove_file(&path);
    let listener =
        UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    Ok(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(answer(stream, sender.clone()))),
                Err(error) => {
                    debug!(%error, "drain not taken in");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    })
}

async fn answer(mut stream: UnixStream, sender: mpsc::Sender<Asked>) {
    let (reader, mut writer) = stream.split();
    let mut line = String::new();
    let mut reader = tokio::io::BufReader::new(reader);
    if reader.read_line(&mut line).await.is_err() {
        return;
    }
    let mut words = line.split_whitespace();
    let unit = words.next().and_then(|unit| unit.parse::<UnitName>().ok());
    let (Some(unit), alive) = (unit, words.next() == Some("alive")) else {
        let _ = writer.write_all(b"no such unit\n").await;
        return;
    };
    let (answer, over) = oneshot::channel();
    if sender.send((unit, alive, answer)).await.is_ok() && over.await.is_ok() {
        let _ = writer.write_all(b"drained\n").await;
    }
}

/// Asks the daemon to drain `unit`, and waits until that is over.
pub(crate) fn ask(unit: &UnitName, alive: bool) -> Result<()> {
    let path = Path::new(RUN_DIR).join(SOCKET);
    let begun = Instant::now();
    let mut stream = loop {
        match std::os::unix::net::UnixStream::connect(&path) {
            Ok(stream) => break stream,
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused)
                    && begun.elapsed() < PATIENCE =>
            {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(error) => {
                return Err(error).with_context(|| {
                    format!("the daemon does not answer at {}: {unit} stops without a drain", path.display())
                });
            }
        }
    };
    stream.set_read_timeout(Some(LONGEST))?;
    writeln!(stream, "{unit} {}", if alive { "alive" } else { "ended" })?;
    let mut said = String::new();
    BufReader::new(stream).read_line(&mut said)?;
    anyhow::ensure!(said.trim() == "drained", "the daemon has ended: {unit} stops without a drain");
    Ok(())
}
