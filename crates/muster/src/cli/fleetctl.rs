//! The name `fleetctl`: fleetctl 1.0's verbs, flags, texts and streams, on Muster's own API.
//!
//! Our API and not fleet's, because it waits properly, and has status, journal and shell without SSH; it is served on
//! the same sockets. So this speaks to Muster only. Not kept are fleetctl's mistakes: wrong usage exits 2, `-l`, `-f`
//! and `-A` work, `destroy` waits unless told not to, `start` waits for units that take their time. Invariant: what is
//! printed on stdout has happened.

/// Verbs that change units.
mod orders;
/// Where the API is.
mod reach;
/// Lists.
mod tables;

use super::{
    client_runtime, output,
    run::{show, status},
    ssh, tunnel,
};
use anyhow::Result;
use api::{ApiError, Client, ClientError, types::Run};
use clap::{Args, CommandFactory, Parser, Subcommand};
use model::{DesiredState, UnitName};
use std::process::ExitCode;

/// The last fleet, whose command line this is, and what it is.
const VERSION: &str = concat!("v1.0.0+muster.", env!("CARGO_PKG_VERSION"));

/// fleetctl, Muster's: controls the units of a cluster of machines.
#[derive(Parser)]
#[command(name = "fleetctl", version = VERSION, disable_version_flag = true, disable_help_flag = true,
    infer_subcommands = true, before_help = concat!("fleetctl version v1.0.0+muster.", env!("CARGO_PKG_VERSION")))]
struct Fleetctl {
    #[command(flatten)]
    reach: reach::Reach,
    /// Print more of what is done.
    #[arg(long, global = true, env = "FLEETCTL_DEBUG", value_parser = boolean, num_args = 0..=1,
        require_equals = true, default_missing_value = "true", default_value = "false")]
    debug: bool,
    /// Print the version.
    #[arg(long, short = 'v')]
    version: bool,
    /// Print help.
    #[arg(long, short, alias = "h", global = true, action = clap::ArgAction::Help)]
    help: Option<bool>,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Subcommand)]
enum Verb {
    /// Output the contents of a submitted unit.
    Cat(Units),
    /// Destroy one or more units in the cluster.
    Destroy(orders::Halt),
    /// Proxy stdin and stdout to a unix domain socket.
    FdForward(tunnel::FdForward),
    /// Print the journal of a unit in the cluster to stdout.
    Journal(Journal),
    /// Enumerate the current hosts in the cluster.
    ListMachines(tables::Machines),
    /// List the units that exist in the cluster.
    ListUnitFiles(tables::Files),
    /// List the current state of units in the cluster.
    ListUnits(tables::Units),
    /// Schedule one or more units in the cluster, first submitting them if necessary.
    Load(orders::Order),
    /// Instruct systemd to stop and start one or more units in the cluster again.
    Restart(orders::Restart),
    /// Open an interactive shell on a machine in the cluster, or run a command there.
    Ssh(Login),
    /// Instruct systemd to start one or more units in the cluster, first submitting and loading if necessary.
    Start(orders::Order),
    /// Output the status of one or more units in the cluster.
    Status(Status),
    /// Instruct systemd to stop one or more units in the cluster.
    Stop(orders::Halt),
    /// Upload one or more units to the cluster without starting them.
    Submit(orders::Submit),
    /// Unschedule one or more units in the cluster.
    Unload(orders::Halt),
    /// DEPRECATED - No longer works.
    Verify(Units),
    /// Print the version and exit.
    Version,
}

#[derive(Args)]
struct Units {
    /// Units.
    units: Vec<String>,
}

#[derive(Args)]
struct Status {
    /// Units.
    units: Vec<String>,
    /// Accepted for old scripts: no SSH is involved.
    #[arg(long, hide = true)]
    ssh_port: Option<u16>,
}

#[derive(Args)]
struct Journal {
    /// Number of recent log lines to return.
    #[arg(long, short = 'n', default_value_t = 10)]
    lines: u32,
    /// Continuously print new entries as they are appended to the journal.
    #[arg(long, short, alias = "f", value_parser = boolean, num_args = 0..=1, require_equals = true,
        default_missing_value = "true", default_value = "false")]
    follow: bool,
    /// Output mode, as of journalctl.
    #[arg(long, short, default_value = "short")]
    output: String,
    /// Only from this machine, for a global unit.
    #[arg(long)]
    machine: Option<String>,
    /// Accepted for old scripts: the daemon reads the journal as root.
    #[arg(long, hide = true, value_parser = boolean, num_args = 0..=1, require_equals = true,
        default_missing_value = "true", default_value = "false")]
    sudo: bool,
    /// Accepted for old scripts: no SSH is involved.
    #[arg(long, hide = true)]
    ssh_port: Option<u16>,
    /// The unit.
    units: Vec<String>,
}

#[derive(Args)]
struct Login {
    /// Accepted for old scripts, and said to have no effect: no SSH is involved.
    #[arg(long, short = 'A', alias = "A", hide = true)]
    forward_agent: bool,
    /// Accepted for old scripts: no SSH is involved.
    #[arg(long, hide = true)]
    ssh_port: Option<u16>,
    #[command(flatten)]
    ssh: ssh::Ssh,
}

/// What Go's flag packages take for a boolean.
fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("true or false is wanted".to_owned()),
    }
}

/// The command line, for checking it.
#[cfg(test)]
pub fn command() -> clap::Command {
    Fleetctl::command()
}

/// The whole of `fleetctl`.
pub fn run() -> Result<ExitCode> {
    let Fleetctl { reach, debug, version, verb, help: _ } = Fleetctl::parse();
    if version {
        return print_version();
    }
    let Some(verb) = verb else {
        output::print(Fleetctl::command().render_help().to_string())?;
        return Ok(ExitCode::SUCCESS);
    };
    let endpoint = match reach.endpoint() {
        Ok(endpoint) => endpoint,
        Err(error) => {
            eprintln!("Unable to initialize client: {error:#}");
            return Ok(ExitCode::FAILURE);
        }
    };
    if debug {
        eprintln!("DEBUG: asking the API at {endpoint}");
    }
    client_runtime()?.block_on(Box::pin(carry_out(&Client::new(endpoint), verb)))
}

fn print_version() -> Result<ExitCode> {
    output::line(format!("fleetctl version {VERSION}"))?;
    Ok(ExitCode::SUCCESS)
}

async fn carry_out(client: &Client, verb: Verb) -> Result<ExitCode> {
    use super::wait::Verb as Goal;
    match verb {
        Verb::Cat(verb) => cat(client, &verb.units).await,
        Verb::Destroy(verb) => verb.run(client, Goal::Destroy).await,
        Verb::FdForward(verb) => verb.run(),
        Verb::Journal(verb) => journal(client, verb).await,
        Verb::ListMachines(verb) => verb.run(client).await,
        Verb::ListUnitFiles(verb) => verb.run(client).await,
        Verb::ListUnits(verb) => verb.run(client).await,
        Verb::Load(verb) => verb.run(client, Goal::Load).await,
        Verb::Restart(verb) => verb.run(client).await,
        Verb::Ssh(verb) => {
            if verb.forward_agent {
                eprintln!("warning: --forward-agent has no effect: no SSH is involved");
            }
            said(verb.ssh.run(client).await)
        }
        Verb::Start(verb) => verb.run(client, Goal::Start).await,
        Verb::Status(verb) => statuses(client, &verb.units).await,
        Verb::Stop(verb) => verb.run(client, Goal::Stop).await,
        Verb::Submit(verb) => verb.run(client).await,
        Verb::Unload(verb) => verb.run(client, Goal::Unload).await,
        Verb::Verify(_) => Ok(super::verify()),
        Verb::Version => print_version(),
    }
}

/// An error as fleetctl tells it: with no name in front.
fn failed(text: impl std::fmt::Display) -> Result<ExitCode> {
    eprintln!("{text}");
    Ok(ExitCode::FAILURE)
}

fn said(outcome: Result<ExitCode>) -> Result<ExitCode> {
    outcome.or_else(|error| failed(format!("{error:#}")))
}

/// A refusal as the Go client told it.
fn told(error: &ClientError) -> String {
    match error {
        ClientError::Refused(ApiError { code, message }) => format!("googleapi: Error {code}: {message}"),
        other => other.to_string(),
    }
}

/// One argument as a unit's name.
fn name(argument: &str) -> Result<UnitName> {
    UnitName::from_argument(argument).map_err(|error| anyhow::anyhow!("{error}"))
}

async fn cat(client: &Client, units: &[String]) -> Result<ExitCode> {
    let [unit] = units else { return failed("One unit file must be provided") };
    let name = match name(unit) {
        Ok(name) => name,
        Err(error) => return failed(error),
    };
    match client.unit(&name).await {
        Ok(unit) => {
            // As fleet kept it: without comments.
            let file = unit::UnitFile::parse(&unit.text);
            output::print(file.map_or(unit.text, |file| file.render()))?;
            Ok(ExitCode::SUCCESS)
        }
        Err(ClientError::Refused(error)) if error.code == 404 => failed(format!("Unit {name} not found")),
        Err(error) => failed(format!("Error retrieving Unit {name}: {}", told(&error))),
    }
}

/// The unit, if it is on a machine; otherwise why not.
async fn placed(client: &Client, name: &UnitName, absent: &str) -> Result<(), String> {
    match client.unit(name).await {
        Ok(unit) if !unit.global && unit.current() == DesiredState::Inactive => {
            Err(format!("Unit {name} does not appear to be {absent}."))
        }
        Ok(_) => Ok(()),
        Err(ClientError::Refused(error)) if error.code == 404 => Err(format!("Unit {name} does not exist.")),
        Err(error) => Err(format!("Error retrieving Unit {name}: {}", told(&error))),
    }
}

async fn statuses(client: &Client, units: &[String]) -> Result<ExitCode> {
    let mut names = Vec::new();
    for unit in units {
        let name = match name(unit) {
            Ok(name) => name,
            Err(error) => return failed(error),
        };
        if let Err(why) = placed(client, &name, "loaded").await {
            return failed(why);
        }
        names.push(name);
    }
    said(status(client, names).await)
}

async fn journal(client: &Client, verb: Journal) -> Result<ExitCode> {
    let [unit] = &verb.units[..] else { return failed("One unit file must be provided.") };
    let name = match name(unit) {
        Ok(name) => name,
        Err(error) => return failed(error),
    };
    if let Err(why) = placed(client, &name, "running").await {
        return failed(why);
    }
    let run = Run::Journal { lines: verb.lines, follow: verb.follow, output: verb.output };
    said(show(client, &name, verb.machine.as_deref(), &run).await.map(ExitCode::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Fleetctl, clap::Error> {
        Fleetctl::try_parse_from(line.split(' '))
    }

    #[test]
    fn old_spellings_are_understood() {
        for line in [
            "fleetctl list-units -l",
            "fleetctl list-units --l",
            "fleetctl list-units --full --no-legend --fields=unit,hash",
            "fleetctl list-units --full=true --no-legend=false",
            "fleetctl list-m",
            "fleetctl --endpoint http://127.0.0.1:49153 --strict-host-key-checking=false list-machines",
            "fleetctl list-machines --endpoint http://127.0.0.1:49153",
            "fleetctl start --block-attempts=20 --replace hello@1 hello@2",
            "fleetctl start --no-block --sign hello@1",
            "fleetctl journal -f --lines 20 --sudo hello@1",
            "fleetctl journal --f hello@1",
            "fleetctl ssh -A --ssh-port 22 --machine 0123 uptime -p",
            "fleetctl ssh --A hello.service echo foo",
            "fleetctl --experimental-api --request-timeout=3.0 --driver API --etcd-key-prefix / list-units",
            "fleetctl --version",
            "fleetctl -v",
            "fleetctl",
        ] {
            if let Err(error) = parse(line) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn help_is_no_error_and_wrong_usage_is() {
        for line in
            ["fleetctl help", "fleetctl --help", "fleetctl -h", "fleetctl --h", "fleetctl list-units -h"]
        {
            let Err(error) = parse(line) else { panic!("{line} is no request for help") };
            assert_eq!(error.exit_code(), 0, "{line}: {error}");
        }
        for line in
            ["fleetctl st", "fleetctl bogus", "fleetctl list-units --bogus", "fleetctl start --full=x a"]
        {
            let Err(error) = parse(line) else { panic!("{line} is understood") };
            assert_eq!(error.exit_code(), 2, "{line}: {error}");
        }
        assert!(Fleetctl::command().render_help().to_string().contains(VERSION));
    }
}
