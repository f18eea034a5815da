//! A program as a check.
//!
//! Invariant: when the check is over, for whatever reason, nothing of the program's process group runs any more. (What
//! left its group by setsid(2) is no longer the check's.)

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use std::{io, process::Stdio};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::Command,
    signal::unix::{SignalKind, signal},
};

/// Of what a program says, so much is told.
const SAID: usize = 200;
/// So much of it is kept; the rest is read and forgotten.
const KEPT: usize = 4096;

pub(super) async fn run(words: &[String]) -> Result<(), String> {
    let Some((program, arguments)) = words.split_first() else { return Err("no program".to_owned()) };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.process_group(0).kill_on_drop(true);
    let problem = |error: io::Error| format!("{program}: {error}");
    // Before it begins, so that its end is heard of.
    let mut ends = signal(SignalKind::child()).map_err(problem)?;
    let mut child = command.spawn().map_err(problem)?;
    let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed())).map(Group);
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let over = async move {
        while group.as_ref().is_some_and(Group::leads) && ends.recv().await.is_some() {}
        // Before anybody has waited for the program, so that its number is still its own. Others may hold its pipes open.
        drop(group);
    };
    let (out, err, ()) = tokio::join!(beginning(out), beginning(err), over);
    let status = child.wait().await.map_err(problem)?;
    if status.success() {
        return Ok(());
    }
    let said = if err.is_empty() { out } else { err };
    let said: String = String::from_utf8_lossy(&said).trim().chars().take(SAID).collect();
    let said = if said.is_empty() { said } else { format!(": {}", said.lines().last().unwrap_or_default()) };
    Err(format!("{program}: {status}{said}"))
}

/// A process group that ends when this does.
struct Group(Pid);

impl Group {
    /// Whether the program still runs. Nobody waits for it here, so that its number stays its own.
    fn leads(&self) -> bool {
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        matches!(waitid(WaitId::Pid(self.0), look), Ok(None))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = kill_process_group(self.0, Signal::KILL); // as a rule there is nobody left
    }
}

/// Reads all of it, and gives what it begins with.
async fn beginning(pipe: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let (mut kept, mut piece) = (Vec::new(), [0; KEPT]);
    let Some(mut pipe) = pipe else { return kept };
    while let Ok(length) = pipe.read(&mut piece).await
        && length > 0
    {
        let room = KEPT - kept.len();
        kept.extend_from_slice(&piece[..length.min(room)]);
    }
    kept
}
