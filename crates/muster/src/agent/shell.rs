//! Programs on the machine itself, with standard input and, if wanted, a terminal: what `muster ssh` asks for.
//!
//! Invariant: when the client is gone, so is the program, and with it whatever belongs to its terminal.

use super::run::{copy, exit_code};
use api::{
    ApiError,
    frames::Frame,
    types::{Shell, Tty},
};
use rustix::{
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};
use std::{
    fs::{File, OpenOptions},
    io,
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::Path,
    process::Stdio,
};
use tokio::{io::AsyncWriteExt, net::unix::pipe, process::Command, sync::mpsc};

/// Frames on their way to a slow reader, each of 64 KiB at most.
const BUFFER: usize = 8;
/// Root's shell; Debian's machines all have it.
const SHELL: &str = "/bin/bash";

/// Starts it.
pub(super) fn start(shell: Shell, input: mpsc::Receiver<Frame>) -> Result<mpsc::Receiver<Frame>, ApiError> {
    let failed = |error: io::Error| ApiError {
        code: 500,
        message: format!("cannot run a shell on this machine: {error}"),
    };
    let (sender, receiver) = mpsc::channel(BUFFER);
    match &shell.tty {
        Some(tty) => on_terminal(&shell, tty, input, sender).map_err(failed)?,
        None => on_pipes(&shell, input, sender).map_err(failed)?,
    }
    Ok(receiver)
}

/// The program, at home in root's directory.
fn program(shell: &Shell, prefix: &[&str]) -> Command {
    let mut words = prefix.iter().copied().chain([SHELL]);
    let mut command = Command::new(words.next().unwrap_or(SHELL));
    command.args(words);
    match &shell.command {
        Some(text) => command.args(["-c", text]),
        None => command.arg("--login"),
    };
    let home = if Path::new("/root").is_dir() { "/root" } else { "/" };
    command.current_dir(home).env("HOME", home).env("USER", "root").env("LOGNAME", "root");
    command.env_remove("NOTIFY_SOCKET").env_remove("JOURNAL_STREAM").env_remove("INVOCATION_ID");
    command.kill_on_drop(true);
    command
}

fn on_pipes(shell: &Shell, mut input: mpsc::Receiver<Frame>, output: mpsc::Sender<Frame>) -> io::Result<()> {
    let mut command = program(shell, &[]);
    // A group of its own, so that what it started can be ended with it.
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn()?;
    let group = child.id();
    let (mut stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    tokio::spawn(async move {
        let feed = async {
            while let Some(frame) = input.recv().await {
                let Frame::Stdin(bytes) = frame else { continue };
                if bytes.is_empty() {
                    stdin = None;
                } else if let Some(pipe) = &mut stdin {
                    // A program that reads no more is not at fault.
                    let _ = pipe.write_all(&bytes).await;
                }
            }
        };
        let whole = async {
            tokio::join!(copy(stdout, &output, Frame::Stdout), copy(stderr, &output, Frame::Stderr));
            // When nobody listens any more nobody misses it.
            let _ = output.send(Frame::Exit(exit_code(child.wait().await))).await;
        };
        tokio::select! {
            () = whole => {}
            () = feed => end_group(group),
            () = output.closed() => end_group(group),
        }
    });
    Ok(())
}

fn on_terminal(
    shell: &Shell,
    tty: &Tty,
    mut input: mpsc::Receiver<Frame>,
    output: mpsc::Sender<Frame>,
) -> io::Result<()> {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    resize(&ours, tty.rows, tty.columns);
    let theirs = ptsname(&ours, Vec::new())?.into_string().map_err(io::Error::other)?;
    let theirs: File = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(i32::try_from(rustix::fs::OFlags::NOCTTY.bits()).unwrap_or_default())
        .open(theirs)?;
    // It makes the terminal the session's own, which takes unsafe code in Rust.
    let mut command = program(shell, &["setsid", "--ctty", "--wait"]);
    command.env("TERM", &tty.term);
    command.stdin(theirs.try_clone()?).stdout(theirs.try_clone()?).stderr(theirs);
    let mut child = command.spawn()?;
    // The command holds copies of the far side, and while anybody does, reading never ends.
    drop(command);
    rustix::io::ioctl_fionbio(&ours, true)?;
    // To tokio a terminal is as good as a pipe.
    let from = pipe::Receiver::from_file_unchecked(File::from(ours.try_clone()?))?;
    let mut to = pipe::Sender::from_file_unchecked(File::from(ours))?;
    tokio::spawn(async move {
        let feed = async {
            while let Some(frame) = input.recv().await {
                match frame {
                    Frame::Stdin(bytes) if to.write_all(&bytes).await.is_err() => return,
                    Frame::Size(rows, columns) => resize(&to, rows, columns),
                    _ => {}
                }
            }
        };
        let whole = async {
            // It ends with EIO, which is how a terminal says that its last user has gone.
            copy(Some(from), &output, Frame::Stdout).await;
            let _ = output.send(Frame::Exit(exit_code(child.wait().await))).await;
        };
        // Dropping our side of the terminal hangs up on its session.
        tokio::select! {
            () = whole => {}
            () = feed => {}
            () = output.closed() => {}
        }
    });
    Ok(())
}

/// SIGTERM to everything that the program started and that did not leave its group.
fn end_group(group: Option<u32>) {
    let pid = group.and_then(|pid| rustix::process::Pid::from_raw(i32::try_from(pid).ok()?));
    if let Some(pid) = pid {
        // It may have ended by itself.
        let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::TERM);
    }
}

fn resize(terminal: impl AsFd, rows: u16, columns: u16) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // A terminal of the wrong size still works.
    let _ = tcsetwinsize(terminal, size);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the program wrote, and its exit code.
    async fn run(shell: Shell, frames: Vec<Frame>) -> (String, Option<i32>) {
        let (sender, receiver) = mpsc::channel(64);
        for frame in frames {
            sender.send(frame).await.expect("there is room");
        }
        let mut output = start(shell, receiver).expect("starts");
        let (mut text, mut code) = (Vec::new(), None);
        while let Some(frame) = output.recv().await {
            match frame {
                Frame::Stdout(bytes) | Frame::Stderr(bytes) => text.extend_from_slice(&bytes),
                Frame::Exit(status) => code = Some(status),
                other => panic!("{other:?} is no output"),
            }
        }
        drop(sender);
        (String::from_utf8_lossy(&text).into_owned(), code)
    }

    #[tokio::test]
    async fn input_goes_in_and_the_code_comes_out() {
        let shell = Shell { command: Some("cat; echo err >&2; exit 7".to_owned()), tty: None };
        let frames = vec![Frame::Stdin("hello\n".into()), Frame::Stdin("".into())];
        assert_eq!(run(shell, frames).await, ("hello\nerr\n".to_owned(), Some(7)));
    }

    #[tokio::test]
    async fn a_terminal_is_one_and_has_the_size_asked_for() {
        let tty = Tty { rows: 33, columns: 99, term: "xterm-256color".to_owned() };
        let command = Some("stty size; echo $TERM; tty; read line; echo got $line; exit 3".to_owned());
        let frames = vec![Frame::Stdin("word\n".into())];
        let (text, code) = run(Shell { command, tty: Some(tty) }, frames).await;
        assert!(text.contains("33 99") && text.contains("xterm-256color"), "{text}");
        assert!(text.contains("/dev/pts/") && text.contains("got word"), "{text}");
        assert_eq!(code, Some(3));
    }

    #[tokio::test]
    async fn a_client_that_goes_takes_its_program_along() {
        let directory = std::env::temp_dir().join(format!("muster-shell-{}", std::process::id()));
        let _ = std::fs::remove_file(&directory);
        for tty in [None, Some(Tty { rows: 1, columns: 1, term: "dumb".to_owned() })] {
            let command = format!("echo $$; exec sleep 1000 # {}", directory.display());
            let (sender, receiver) = mpsc::channel(1);
            let mut output = start(Shell { command: Some(command), tty }, receiver).expect("starts");
            let Some(Frame::Stdout(pid)) = output.recv().await else { panic!("it says its pid") };
            let pid = String::from_utf8_lossy(&pid).trim().to_owned();
            let gone = || {
                std::fs::read_to_string(format!("/proc/{pid}/stat"))
                    .map_or(true, |stat| stat.contains(") Z "))
            };
            assert!(!gone());
            drop(sender);
            while output.recv().await.is_some() {}
            while !gone() {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        }
    }
}
