//! Running something beside a unit on this machine, its output sent while it runs: systemd's status, the journal,
//! a program inside the unit.

use crate::container;
use api::{
    ApiError,
    frames::{Frame, MAX_PAYLOAD},
    types::Run,
};
use bytes::Bytes;
use model::UnitName;
use std::{os::unix::process::ExitStatusExt, process::Stdio, time::Duration};
use systemd::Systemd;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::Command,
    sync::mpsc,
};

/// Frames on their way to a slow reader, each of 64 KiB at most; then the program's own pipe fills up and it waits.
const BUFFER: usize = 8;

/// Docker answers within milliseconds, or it is in trouble.
const INSPECT: Duration = Duration::from_secs(10);

/// Starts it. It is killed when the receiver is dropped.
pub(super) async fn start(
    systemd: &Systemd,
    unit: &UnitName,
    run: Run,
) -> Result<mpsc::Receiver<Frame>, ApiError> {
    let mut command = command(systemd, unit, run).await?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    let mut child = command.spawn().map_err(|error| ApiError {
        code: 500,
        message: format!("cannot run {program} on this machine: {error}"),
    })?;
    let (sender, receiver) = mpsc::channel(BUFFER);
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    tokio::spawn(async move {
        let closed = sender.clone();
        let whole = async {
            tokio::join!(copy(stdout, &sender, Frame::Stdout), copy(stderr, &sender, Frame::Stderr));
            let code = match child.wait().await {
                Ok(status) => {
                    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1)
                }
                Err(_) => 1,
            };
            // When nobody listens any more nobody misses it.
            let _ = sender.send(Frame::Exit(code)).await;
        };
        tokio::select! {
            () = whole => {}
            () = closed.closed() => {}
        }
    });
    Ok(receiver)
}

async fn copy(from: Option<impl AsyncRead + Unpin>, to: &mpsc::Sender<Frame>, frame: fn(Bytes) -> Frame) {
    let Some(mut from) = from else { return };
    let mut buffer = vec![0; MAX_PAYLOAD];
    while let Ok(length) = from.read(&mut buffer).await {
        if length == 0 || to.send(frame(Bytes::copy_from_slice(&buffer[..length]))).await.is_err() {
            return;
        }
    }
}

async fn command(systemd: &Systemd, unit: &UnitName, run: Run) -> Result<Command, ApiError> {
    match run {
        Run::Status => Ok(program("systemctl", ["status", "--full", "--no-pager", "--", unit.as_str()])),
        Run::Journal { lines, follow, output } => {
            let lines = lines.to_string();
            let mut command =
                program("journalctl", ["--no-pager", "--unit", unit.as_str(), "--lines", &lines]);
            command.arg(format!("--output={output}"));
            if follow {
                command.arg("--follow");
            }
            Ok(command)
        }
        Run::Exec { command, network } => exec(systemd, unit, command, network).await,
    }
}

async fn exec(
    systemd: &Systemd,
    unit: &UnitName,
    command: Vec<String>,
    network: bool,
) -> Result<Command, ApiError> {
    if command.is_empty() {
        return Err(ApiError::bad_request("exec needs a program to run"));
    }
    let pid = systemd.main_pid(unit).await.map_err(|error| ApiError::conflict(error.to_string()))?;
    let pid = pid.ok_or_else(|| ApiError::conflict(format!("{unit} does not run here just now")))?;
    let container = container::of(pid).map(|container| container.name);
    let mut enter = match (&container, network) {
        (Some(container), false) => program("docker", ["exec", container]),
        (Some(container), true) => {
            let pid = container_pid(container).await?;
            program("nsenter", ["--target", &pid, "--net", "--"])
        }
        (None, false) => program("nsenter", ["--target", &pid.to_string(), "--all", "--"]),
        (None, true) => program("nsenter", ["--target", &pid.to_string(), "--net", "--"]),
    };
    enter.args(command);
    Ok(enter)
}

fn program<'a>(name: &str, arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = Command::new(name);
    command.args(arguments);
    command
}

async fn container_pid(container: &str) -> Result<String, ApiError> {
    let mut inspect = program("docker", ["inspect", "--format", "{{.State.Pid}}", container]);
    let inspect = tokio::time::timeout(INSPECT, inspect.kill_on_drop(true).output()).await;
    let inspect = inspect.map_err(|_| ApiError::unavailable("docker does not answer"))?;
    let output =
        inspect.map_err(|error| ApiError { code: 500, message: format!("cannot run docker: {error}") })?;
    let pid = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !output.status.success() || pid == "0" {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(ApiError::conflict(format!("container {container} does not run: {}", said.trim())));
    }
    Ok(pid)
}
