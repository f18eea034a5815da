//! `status`, `journal`, `exec`: programs run beside a unit on whichever machine has it; on all that have it, for a
//! global unit. Their output is passed on as it comes.

use super::{list::legend, names, output};
use anyhow::{Result, bail};
use api::{
    Client, ClientError,
    frames::Frame,
    types::{Run, UnitOnMachine},
};
use clap::Args;
use futures_util::{Stream, StreamExt, future::join_all};
use model::UnitName;
use std::{
    io::{self, Write},
    process::ExitCode,
};

#[derive(Args)]
pub struct Status {
    /// Units.
    #[arg(required = true)]
    units: Vec<String>,
}

#[derive(Args)]
pub struct Journal {
    /// How many lines back.
    #[arg(long, short = 'n', default_value_t = 10)]
    lines: u32,
    /// Go on with new lines until interrupted.
    #[arg(long, short)]
    follow: bool,
    /// journalctl's output format: short, cat, json…
    #[arg(long, short, default_value = "short")]
    output: String,
    /// Only from this machine, for a global unit: its name, or how its machine-id begins.
    #[arg(long)]
    machine: Option<String>,
    /// Accepted for old scripts: the daemon reads the journal as root.
    #[arg(long, hide = true)]
    sudo: bool,
    /// The unit.
    unit: String,
}

#[derive(Args)]
pub struct Exec {
    /// Run the machine's own program, inside the unit's network only.
    #[arg(long)]
    net: bool,
    /// The unit.
    unit: String,
    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

impl Status {
    pub async fn run(self, client: &Client) -> Result<ExitCode> {
        let names = names(&self.units)?.into_iter().map(|(_, unit)| unit).collect();
        status(client, names).await
    }
}

/// `systemctl status` of all of them; the greatest exit code.
pub async fn status(client: &Client, units: Vec<UnitName>) -> Result<ExitCode> {
    let mut worst = 0;
    for (place, unit) in units.into_iter().enumerate() {
        if place > 0 {
            output::line("")?;
        }
        worst = worst.max(show(client, &unit, None, &Run::Status).await?);
    }
    Ok(ExitCode::from(worst))
}

impl Journal {
    pub async fn run(self, client: &Client) -> Result<ExitCode> {
        let unit = UnitName::from_argument(&self.unit)?;
        let run = Run::Journal { lines: self.lines, follow: self.follow, output: self.output };
        show(client, &unit, self.machine.as_deref(), &run).await.map(ExitCode::from)
    }
}

impl Exec {
    pub async fn run(self, client: &Client) -> Result<ExitCode> {
        let unit = UnitName::from_argument(&self.unit)?;
        let run = Run::Exec { command: self.command, network: self.net };
        let code = pass(client.run(&unit, &run).await?, false, unit.as_str()).await?;
        // The shell's and Docker's codes for "cannot run" and "not found".
        if matches!(code, 126 | 127) && !self.net {
            eprintln!(
                "hint: the unit may have no such program; --net runs this machine's own in the unit's network"
            );
        }
        Ok(ExitCode::from(code))
    }
}

/// Passes on what the program says wherever the unit is; gives its exit code, the greatest of several.
pub async fn show(client: &Client, name: &UnitName, machine: Option<&str>, run: &Run) -> Result<u8> {
    let unit = client.unit(name).await?;
    if !unit.global {
        if let Some(machine) = machine
            && !unit.machines.first().is_some_and(|on| is(on, machine))
        {
            bail!("{name} is not on a machine {machine}");
        }
        return pass(client.run(name, run).await?, false, name.as_str()).await;
    }
    let mut machines = unit.machines;
    machines.retain(|on| on.state.is_some() && machine.is_none_or(|machine| is(on, machine)));
    if machines.is_empty() {
        match machine {
            Some(machine) => bail!("{name} is not on a machine {machine}"),
            None => bail!("unit {name} does not appear to be loaded on any machine"),
        }
    }
    if matches!(run, Run::Journal { follow: true, .. }) {
        // All at once, a line at a time.
        let followed = machines
            .iter()
            .map(async |on| pass(client.run_there(&on.id, name, run).await?, true, &on.name).await);
        return worst(join_all(followed).await);
    }
    let mut codes = Vec::new();
    for (place, on) in machines.iter().enumerate() {
        if place > 0 {
            output::line("")?;
        }
        if machines.len() > 1 {
            output::line(format!("{} ({}):", legend(on, false), on.name))?;
        }
        let shown = match client.run_there(&on.id, name, run).await {
            Ok(frames) => pass(frames, false, &on.name).await,
            Err(error) => Err(error.into()),
        };
        // The others are shown even if one machine does not answer.
        codes.push(shown.inspect_err(|error| eprintln!("{}: {error:#}", on.name)).or(Ok(1)));
    }
    worst(codes)
}

fn is(on: &UnitOnMachine, machine: &str) -> bool {
    on.name == machine || (!machine.is_empty() && on.id.as_str().starts_with(machine))
}

fn worst(codes: Vec<Result<u8>>) -> Result<u8> {
    codes.into_iter().try_fold(0, |worst, code| Ok(code?.max(worst)))
}

/// Passes a program's output on, only whole lines if asked to; gives its exit code.
pub async fn pass(
    mut frames: impl Stream<Item = Result<Frame, ClientError>> + Unpin,
    lines: bool,
    from: &str,
) -> Result<u8> {
    let mut rest = Vec::new();
    while let Some(frame) = frames.next().await {
        match frame? {
            Frame::Stdout(bytes) if lines => {
                rest.extend_from_slice(&bytes);
                if let Some(end) = rest.iter().rposition(|byte| *byte == b'\n') {
                    output::print(rest.drain(..=end).collect::<Vec<_>>())?;
                }
            }
            Frame::Stdout(bytes) => output::print(&bytes)?,
            Frame::Stderr(bytes) => io::stderr().write_all(&bytes)?,
            Frame::Exit(code) => {
                output::print(rest)?;
                return Ok(u8::try_from(code).unwrap_or(1));
            }
            Frame::Begin(_) | Frame::Stdin(_) | Frame::Size(..) => bail!("{from} sent what is no output"),
        }
    }
    bail!("the connection to {from} broke before the program ended")
}
