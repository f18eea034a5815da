//! Running programs on the host and inside machines, with errors that carry what the program said.
//!
//! Everything goes through the cgroup a process belongs in *before* it runs ([`in_cgroup`]): a process that ran
//! first and was moved later could leave children outside, and `kill` and `pause` would not be exact.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use crate::{Error, Result};

/// What a program that ended left behind. Bytes that are not UTF-8 are replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// How it ended.
    pub status: ExitStatus,
}

impl Output {
    /// Whether it ended with exit code 0.
    pub fn success(&self) -> bool {
        self.status.success()
    }

    /// The exit code as a shell gives it: 128 + the signal for a process that a signal ended.
    pub fn code(&self) -> u8 {
        exit_code(self.status)
    }
}

/// See [`Output::code`].
pub(crate) fn exit_code(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code).unwrap_or(1)
}

/// Runs to the end with nothing on standard input.
pub(crate) fn output(mut command: Command) -> Result<Output> {
    let out = command
        .stdin(Stdio::null())
        .output()
        .map_err(|source| Error::Spawn { program: shown(&command), source })?;
    Ok(Output {
        stdout: String::from_utf8_lossy(&out.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
        status: out.status,
    })
}

/// Runs to the end; anything but exit code 0 is an error. Gives standard output.
pub(crate) fn ok(command: Command) -> Result<String> {
    let program = shown(&command);
    let out = output(command)?;
    if out.success() { Ok(out.stdout) } else { Err(failed(program, &out)) }
}

/// As [`ok`], with `input` on standard input. The input is small (a script): it is written before reading.
pub(crate) fn feed(mut command: Command, input: &[u8]) -> Result<String> {
    let program = shown(&command);
    let spawn_error = |source| Error::Spawn { program: program.clone(), source };
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(spawn_error)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ended early says why on standard error; a broken pipe here says less.
        let _ = stdin.write_all(input);
    }
    let out = child.wait_with_output().map_err(spawn_error)?;
    let out = Output {
        stdout: String::from_utf8_lossy(&out.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
        status: out.status,
    };
    if out.success() { Ok(out.stdout) } else { Err(failed(program, &out)) }
}

pub(crate) fn failed(program: String, out: &Output) -> Error {
    Error::Program { program, status: out.status, stderr: out.stderr.trim_end().to_owned() }
}

/// `program` with arguments, for the host.
pub(crate) fn host<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(program);
    command.args(args);
    // The administrator's programs are not on every user's or service's path.
    command.env("PATH", search_path());
    command
}

/// The caller's `PATH` and the directories of the system's own programs.
pub(crate) fn search_path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}{}/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin", if path.is_empty() { "" } else { ":" })
}

/// A command that first moves itself into `cgroup` and then becomes what is added as arguments. `echo 0` moves the
/// writer, and the shell's `echo` is the shell; 125 is what env(1) and docker use for "did not get that far".
pub(crate) fn in_cgroup(cgroup: &Path) -> Command {
    let enter =
        r#"echo 0 2>/dev/null >"$0" || { echo "$0 is gone or going away" >&2; exit 125; }; exec "$@""#;
    host("/bin/sh", [OsStr::new("-c"), OsStr::new(enter), cgroup.join("cgroup.procs").as_os_str()])
}

/// The command line as a person would type it, shortened: it goes into error texts.
pub(crate) fn shown(command: &Command) -> String {
    show_words(std::iter::once(command.get_program()).chain(command.get_args()))
}

pub(crate) fn show_words<'a>(words: impl IntoIterator<Item = &'a OsStr>) -> String {
    let mut line = String::new();
    for word in words {
        let word = word.to_string_lossy();
        let plain =
            !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c));
        let space = if line.is_empty() { "" } else { " " };
        // A script given as one argument is not worth more than its beginning.
        let short: String = word.chars().take(60).collect();
        let dots = if short.len() < word.len() { "…" } else { "" };
        let quote = if plain { "" } else { "'" };
        let _ = write!(line, "{space}{quote}{short}{dots}{quote}");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines_are_shown_short_and_quoted() {
        let long = "x".repeat(100);
        let words = ["sh", "-c", "echo hello", &long].map(OsStr::new);
        assert_eq!(show_words(words), format!("sh -c 'echo hello' {}…", "x".repeat(60)));
    }

    #[test]
    fn a_failure_carries_what_was_said() {
        let error = ok(host("sh", ["-c", "echo no such thing >&2; exit 3"])).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("exit status: 3") && text.ends_with("no such thing"), "{text}");
    }

    #[test]
    fn codes_are_those_of_a_shell() {
        assert_eq!(output(host("sh", ["-c", "exit 7"])).unwrap().code(), 7);
        assert_eq!(output(host("sh", ["-c", "kill -9 $$"])).unwrap().code(), 137);
    }

    #[test]
    fn input_reaches_the_program() {
        assert_eq!(feed(host("cat", [] as [&str; 0]), b"abc").unwrap(), "abc");
    }
}
