//! `ssh`: a program or a shell on a machine itself, over the API instead of SSH: no keys, no agent, no sshd. Who may
//! use the API may do this, as root.
//!
//! Invariant: the terminal is as it was before when the shell has ended, however it ended.

use super::run::pass;
use anyhow::{Context, Result, bail};
use api::{
    Client,
    frames::{Frame, MAX_PAYLOAD},
    types::{Shell, Tty},
};
use clap::Args;
use futures_util::StreamExt;
use model::{MachineId, UnitName};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use std::{
    io::{self, IsTerminal, Read},
    process::ExitCode,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;

/// Pieces of input on their way.
const BUFFER: usize = 8;

#[derive(Args)]
pub struct Ssh {
    /// The machine: its name, or how its machine-id begins. Then all arguments are the command.
    #[arg(long)]
    pub machine: Option<String>,
    /// The unit whose machine it is. Then all arguments are the command.
    #[arg(long)]
    pub unit: Option<String>,
    /// Ask for a terminal although standard input is none.
    #[arg(long, short = 't')]
    pub tty: bool,
    /// A machine or a unit, and the command; without one, root's shell.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<String>,
}

impl Ssh {
    pub async fn run(self, client: &Client) -> Result<ExitCode> {
        let mut words = self.arguments.as_slice();
        let machine = match (&self.machine, &self.unit) {
            (Some(_), Some(_)) => bail!("Both machine and unit flags provided, please specify only one."),
            (Some(machine), None) => machine_called(client, machine).await?,
            (None, Some(unit)) => machine_of(client, unit).await?,
            (None, None) => {
                let Some((what, rest)) = words.split_first() else {
                    bail!("one machine or unit must be provided");
                };
                words = rest;
                match machine_called(client, what).await? {
                    Some(machine) => Some(machine),
                    None => machine_of(client, what).await?,
                }
            }
        };
        let Some(machine) = machine else {
            bail!("Unable to proceed: could not find matching unit or machine");
        };
        if words.first().is_some_and(|word| word == "--") {
            words = &words[1..];
        }
        let command = if words.is_empty() { None } else { Some(words.join(" ")) };
        let terminal = self.tty || (command.is_none() && io::stdin().is_terminal());
        open(client, &machine, command, terminal).await
    }
}

async fn machine_called(client: &Client, what: &str) -> Result<Option<MachineId>> {
    let machines = client.machines().await?.machines;
    if let Some(machine) = machines.iter().find(|machine| machine.name == what) {
        return Ok(Some(machine.id.clone()));
    }
    let mut found = machines.into_iter().filter(|machine| machine.id.as_str().starts_with(what));
    match (found.next(), found.next()) {
        (Some(_), Some(_)) => bail!("found more than one machine"),
        (found, _) => Ok(found.map(|machine| machine.id)),
    }
}

async fn machine_of(client: &Client, what: &str) -> Result<Option<MachineId>> {
    let name = UnitName::from_argument(what)?;
    let unit = match client.unit(&name).await {
        Ok(unit) => unit,
        Err(api::ClientError::Refused(error)) if error.code == 404 => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if unit.global {
        bail!("{name} is global: name one of its machines");
    }
    Ok(unit.machines.into_iter().find(|on| on.scheduled).map(|on| on.id))
}

async fn open(
    client: &Client,
    machine: &MachineId,
    command: Option<String>,
    terminal: bool,
) -> Result<ExitCode> {
    let (sender, input) = mpsc::channel(BUFFER);
    let tty = terminal.then(tty);
    sender.send(Frame::Begin(Shell { command, tty })).await.context("the channel is new")?;
    let mut windows = signal(SignalKind::window_change())?;
    let sizes = sender.clone();
    // A thread, because reading a terminal cannot be interrupted; it ends with the process.
    std::thread::spawn(move || feed(&sender, !terminal));
    let raw = if terminal { Raw::begin() } else { None };
    let resize = async {
        while windows.recv().await.is_some() {
            let Tty { rows, columns, .. } = tty_size();
            if sizes.send(Frame::Size(rows, columns)).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    let frames = client.shell(machine, ReceiverStream::new(input)).await?;
    let shown = tokio::select! {
        shown = pass(Box::pin(frames.boxed_local()), false, "the machine") => shown,
        () = resize => unreachable!("it never ends"),
    };
    drop(raw);
    Ok(ExitCode::from(shown?))
}

/// Sends standard input, and when it ends says so. A terminal's end is for the far side to see.
fn feed(sender: &mpsc::Sender<Frame>, close: bool) {
    let mut buffer = vec![0; MAX_PAYLOAD];
    let mut stdin = io::stdin().lock();
    while let Ok(length) = stdin.read(&mut buffer) {
        if length == 0 {
            break;
        }
        let piece = Frame::Stdin(bytes::Bytes::copy_from_slice(&buffer[..length]));
        if sender.blocking_send(piece).is_err() {
            return;
        }
    }
    // Nobody listens when the program has ended already.
    let end = if close { Frame::Stdin(bytes::Bytes::new()) } else { Frame::Stdin("\u{4}".into()) };
    let _ = sender.blocking_send(end);
}

fn tty() -> Tty {
    let term = std::env::var("TERM").unwrap_or_else(|_| "xterm-256color".to_owned());
    Tty { term, ..tty_size() }
}

fn tty_size() -> Tty {
    let size = tcgetwinsize(io::stdin()).ok().filter(|size| size.ws_row > 0 && size.ws_col > 0);
    let (rows, columns) = size.map_or((24, 80), |size| (size.ws_row, size.ws_col));
    Tty { rows, columns, term: String::new() }
}

/// The terminal, passing every key on as it is.
struct Raw(Termios);

impl Raw {
    /// `None` where standard input is no terminal.
    fn begin() -> Option<Self> {
        let before = tcgetattr(io::stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Nothing can be done about a terminal that is gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}
