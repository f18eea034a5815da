//! `status`, `journal`, `exec`: programs run beside a unit on whichever machine has it.

use super::{names, output};
use anyhow::{Result, bail};
use api::{Client, frames::Frame, types::Run};
use clap::Args;
use futures_util::StreamExt;
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
        let mut worst = 0;
        for (place, (_, unit)) in names(&self.units)?.into_iter().enumerate() {
            if place > 0 {
                output::line("")?;
            }
            worst = worst.max(show(client, &unit, Run::Status).await?);
        }
        Ok(ExitCode::from(worst))
    }
}

impl Journal {
    pub async fn run(self, client: &Client) -> Result<ExitCode> {
        let unit = UnitName::from_argument(&self.unit)?;
        let run = Run::Journal { lines: self.lines, follow: self.follow, output: self.output };
        show(client, &unit, run).await.map(ExitCode::from)
    }
}

impl Exec {
    pub async fn run(self, client: &Client) -> Result<ExitCode> {
        let unit = UnitName::from_argument(&self.unit)?;
        let code = show(client, &unit, Run::Exec { command: self.command, network: self.net }).await?;
        // The shell's and Docker's codes for "cannot run" and "not found".
        if matches!(code, 126 | 127) && !self.net {
            eprintln!(
                "hint: the unit may have no such program; --net runs this machine's own in the unit's network"
            );
        }
        Ok(ExitCode::from(code))
    }
}

/// Passes the program's output on; gives its exit code.
async fn show(client: &Client, unit: &UnitName, run: Run) -> Result<u8> {
    let mut frames = client.run(unit, &run).await?;
    while let Some(frame) = frames.next().await {
        match frame? {
            Frame::Stdout(bytes) => output::print(&bytes)?,
            Frame::Stderr(bytes) => io::stderr().write_all(&bytes)?,
            Frame::Exit(code) => return Ok(u8::try_from(code).unwrap_or(1)),
        }
    }
    bail!("the connection to the machine of {unit} broke before the program ended")
}
