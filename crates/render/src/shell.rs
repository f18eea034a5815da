//! Programs that check files, and that tell their readers: lines for the shell, as in confd's resource files.
//!
//! Invariant: each ends within its time, or is killed with all that it started.

use crate::{Error, Failure, Output, Rendered};
use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

/// What a check may take.
const CHECK: Duration = Duration::from_secs(20);
/// What telling the reader may take.
const RELOAD: Duration = Duration::from_secs(10);
/// How much of what a program says is passed on.
const SAID: usize = 2000;

/// A reader that is checked and told by commands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Commands {
    /// Says by its exit code whether the file at `{{.src}}` would do.
    pub check: Option<String>,
    /// Tells the reader. `{{.dest}}` is the file.
    pub reload: Option<String>,
    /// The file.
    pub destination: PathBuf,
}

impl Commands {
    /// The command with its places filled in. Without a staged file, `{{.src}}` is the file in place, as in confd.
    fn fill(&self, command: &str, staged: Option<&Path>) -> String {
        let destination = self.destination.display().to_string();
        let source = staged.map_or_else(|| destination.clone(), |staged| staged.display().to_string());
        let mut filled = command.to_owned();
        for (name, value) in [("src", &source), ("dest", &destination)] {
            for place in [format!("{{{{.{name}}}}}"), format!("{{{{ .{name} }}}}"), format!("{{{{{name}}}}}")]
            {
                filled = filled.replace(&place, value);
            }
        }
        filled
    }
}

impl Output for Commands {
    async fn check(&self, staged: &Path, _: &str) -> Result<(), Error> {
        let Some(check) = &self.check else { return Ok(()) };
        let command = self.fill(check, Some(staged));
        run(&command, CHECK).await.map_err(|said| Error::Refused {
            path: self.destination.clone(),
            said: format!("`{command}` {said}"),
        })
    }

    async fn activate(&self, _: &Rendered) -> Result<(), Failure> {
        let Some(reload) = &self.reload else { return Ok(()) };
        let command = self.fill(reload, None);
        run(&command, RELOAD).await.map_err(|said| Failure::Failed(format!("`{command}` {said}")))
    }
}

/// Runs a line in the shell; what it said if it failed.
async fn run(command: &str, limit: Duration) -> Result<(), String> {
    let child = tokio::process::Command::new("/bin/sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("cannot be run: {error}"))?;
    let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
    match tokio::time::timeout(limit, child.wait_with_output()).await {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => {
            let said = [&*output.stderr, &*output.stdout]
                .map(|said| String::from_utf8_lossy(said).trim().to_owned());
            let said: String = said.join("\n").trim().chars().take(SAID).collect();
            Err(format!("failed ({}): {said}", output.status))
        }
        Ok(Err(error)) => Err(format!("cannot be waited for: {error}")),
        Err(_) => {
            // It may be gone by itself in this moment.
            let _ =
                group.map(|group| rustix::process::kill_process_group(group, rustix::process::Signal::KILL));
            Err(format!("did not end within {} s", limit.as_secs()))
        }
    }
}
