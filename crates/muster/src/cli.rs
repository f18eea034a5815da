//! The command line: what is typed, read into types, and handed to the verb.
//!
//! stdout is data, stderr is the rest. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done in part; `exec`, `status`
//! and `journal` give the code of the program that they ran.

/// Where the hub is, and as whom it is asked.
mod access;
/// `{1..4}` and `{a,b}`, for shells that do not expand them.
mod braces;
/// The name `fleetctl`.
mod fleetctl;
/// The hub alone: serving, backups, moving.
mod hub;
/// Keys of the hub.
mod kv;
/// Machines on one box.
mod lab;
/// Lists of machines and units.
mod list;
/// Machines under maintenance, and evening out the load.
mod maintenance;
/// Manuals, and completion for shells.
mod manual;
/// The cluster network.
mod net;
/// Tables and streams on stdout.
mod output;
/// Files made of templates.
mod render;
/// What the gateway serves.
mod route;
/// `status`, `journal`, `exec`.
mod run;
/// Services, and an operator's word on an instance.
mod services;
/// A shell on a machine.
mod ssh;
/// Through SSH to another machine's API.
mod tunnel;
/// Verbs that change units.
mod units;
/// Verbs that bring another text into units.
mod update;
/// Until an order has been carried out.
mod wait;
/// Verbs that explain.
mod why;

use crate::{agent, config};
use anyhow::{Context, Result};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use model::UnitName;
use std::{path::PathBuf, process::ExitCode};

/// systemctl for a fleet of machines.
#[derive(Parser)]
#[command(name = "muster", version, arg_required_else_help = true, disable_help_subcommand = true)]
struct Cli {
    /// The API to talk to: unix:///run/muster/muster.sock or http://10.0.0.1:49153.
    #[arg(long, global = true, env = "MUSTER_ENDPOINT", default_value = concat!("unix://", "/run/muster/muster.sock"))]
    endpoint: api::Endpoint,
    /// Reach the endpoint through SSH to this HOST[:PORT].
    #[arg(long, global = true, env = "MUSTER_TUNNEL")]
    tunnel: Option<String>,
    /// With --tunnel: the user to log in as; otherwise ssh's own choice, as for the rest.
    #[arg(long, global = true, env = "MUSTER_SSH_USERNAME")]
    ssh_username: Option<String>,
    /// With --tunnel: seconds to connect.
    #[arg(long, global = true, env = "MUSTER_SSH_TIMEOUT")]
    ssh_timeout: Option<f64>,
    /// With --tunnel: where host keys are kept.
    #[arg(long, global = true, env = "MUSTER_KNOWN_HOSTS_FILE")]
    known_hosts_file: Option<PathBuf>,
    /// With --tunnel: whether unknown host keys are asked about instead of taken.
    #[arg(long, global = true, env = "MUSTER_STRICT_HOST_KEY_CHECKING")]
    strict_host_key_checking: Option<bool>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the machines of the cluster.
    ///
    /// Example: muster list-machines
    ListMachines(list::ListMachines),
    /// List the units that machines have, with systemd's states.
    ///
    /// Example: muster list-units --no-legend
    ListUnits(list::ListUnits),
    /// List the units that the cluster knows, with what is wanted of them.
    ///
    /// Example: muster list-unit-files -o json
    ListUnitFiles(list::ListUnitFiles),
    /// Make units known to the cluster.
    ///
    /// Example: muster submit someapp@.service someapp-discovery@.service
    Submit(units::Submit),
    /// Put units on machines without starting them.
    ///
    /// Example: muster load 'someapp@{1..4}'
    Load(units::Order),
    /// Start units on machines that fit, and wait until they are active.
    ///
    /// Example: muster start 'someapp@{1..4}'
    Start(units::Order),
    /// Stop units; they stay on their machines.
    ///
    /// Example: muster stop someapp@3
    Stop(units::Halt),
    /// Stop units and start them again, and wait until they are active; global units on all their machines.
    ///
    /// Example: muster restart someapp@3
    Restart(units::Restart),
    /// Wait until units are active, or have ended, stopped or gone, whoever orders it.
    ///
    /// Example: muster wait --for ended --timeout 10m backup
    Wait(units::Await),
    /// Stop units and take them off their machines; they stay known.
    ///
    /// Example: muster unload someapp@3
    Unload(units::Halt),
    /// Stop units and forget them.
    ///
    /// Example: muster destroy 'someapp@{1..4}'
    Destroy(units::Halt),
    /// Bring new unit files into units that run, one after another, each when the last is ready.
    ///
    /// A template is brought into all its instances. A unit keeps its machine where it still fits. If one does not
    /// become ready, those that were replaced get their former text back, and the exit code is 1. The machine that
    /// leads carries it out: the update goes on without this command.
    ///
    /// Example: muster update someapp@.service
    Update(update::Update),
    /// Bring a former text back into units, like an update.
    ///
    /// Example: muster rollback someapp@ --to 3
    Rollback(update::Rollback),
    /// List the texts that a unit had; the last ten are kept.
    ///
    /// Example: muster history someapp@ --show 3
    History(update::History),
    /// List updates: those under way, and of each unit or template the last one.
    ///
    /// Example: muster rollouts
    Rollouts(update::Rollouts),
    /// Pause, resume or abort an update that is under way.
    ///
    /// Example: muster rollout abort someapp@
    #[command(subcommand)]
    Rollout(update::Direct),
    /// Print a unit's file as the cluster has it.
    ///
    /// Example: muster cat someapp@1
    Cat(units::Cat),
    /// Show why a unit is where it is, or why no machine can run it.
    ///
    /// Example: muster why someapp@1
    Why(why::Why),
    /// Show what happened in the cluster in the last day, and why.
    ///
    /// Example: muster events --watch --unit someapp@1
    Events(why::Events),
    /// Keep new units off a machine; what runs there stays.
    ///
    /// Example: muster cordon m2 --reason 'new disk'
    Cordon(maintenance::Cordon),
    /// Let a machine take units again.
    ///
    /// Example: muster uncordon m2
    Uncordon(maintenance::Open),
    /// Move units off a machine and keep new ones off it, and wait until it is empty.
    ///
    /// Units that follow each other move together. Global units stay. What no other machine can run stays, and is
    /// explained; the exit code is 3 then. The machine stays drained until `muster undrain`.
    ///
    /// Example: muster drain m2 --reason 'kernel update'
    Drain(maintenance::Drain),
    /// Let a machine that was drained take units again. Nothing moves back by itself.
    ///
    /// Example: muster undrain m2
    Undrain(maintenance::Open),
    /// Even out how many units machines have: prints a plan of moves, asks, and makes them.
    ///
    /// Example: muster rebalance --plan
    Rebalance(maintenance::Rebalance),
    /// Show what systemd says about units, wherever they run.
    ///
    /// Example: muster status someapp@1
    Status(run::Status),
    /// Show a unit's journal, wherever it runs.
    ///
    /// Example: muster journal --lines 20 --follow someapp@1
    Journal(run::Journal),
    /// Run a program inside a unit, wherever it runs.
    ///
    /// In a container's unit the program is the container's. With --net it is the machine's own program in the
    /// unit's network, for images that hold nothing but their app.
    ///
    /// Example: muster exec --net someapp@3 curl -s http://10.1.5.2:3000/
    Exec(run::Exec),
    /// Run a command, or a shell, on a machine itself: named, or the one that a unit is on.
    ///
    /// It goes over the API, not over SSH: no keys are needed, and whoever may use the API may do this, as root.
    ///
    /// Example: muster ssh someapp@1 docker ps
    Ssh(ssh::Ssh),
    /// Pass standard input and output on to a unix socket: the far end of --tunnel.
    ///
    /// Example: ssh m1 muster fd-forward /run/muster/muster.sock
    FdForward(tunnel::FdForward),
    /// Fleet's verification of signed units, which it had given up itself.
    ///
    /// Example: muster verify someapp@1
    #[command(hide = true)]
    Verify {
        /// Units.
        units: Vec<String>,
    },
    /// Print the version.
    ///
    /// Example: muster version
    Version,
    /// Read and write keys of the hub, in etcdctl's v2 spelling.
    ///
    /// Example: muster kv set --ttl 60 /services/someapp/upstream/someapp@1 10.1.5.2:3000
    Kv(kv::Kv),
    /// Make files of templates, services and keys, check them, and tell whoever reads them; resource files are confd's.
    ///
    /// Example: muster render --once --dry-run
    Render(render::Render),
    /// List services with their instances: where each is, how it is and why; or take one out of service.
    ///
    /// Example: muster services someapp
    Services(services::Services),
    /// List where requests for services may go just now.
    ///
    /// Example: muster endpoints someapp
    Endpoints(services::Endpoints),
    /// Show what this machine's gateway serves.
    ///
    /// Example: muster route ls
    #[command(subcommand)]
    Route(route::Route),
    /// Show, check and set up the cluster network.
    ///
    /// Example: muster net status
    Net(net::Net),
    /// Run the daemon of this machine.
    ///
    /// Example: muster agent --config /etc/muster/muster.toml
    Agent(ConfigFile),
    /// Stop the units with OnPartition=stop when this machine's lease is over. The daemon runs it; you need not.
    ///
    /// Example: systemctl status muster-fence
    #[command(hide = true)]
    Fence,
    /// Take a registered unit out of service before it stops. systemd runs it; you need not.
    ///
    /// Example: muster drain-unit someapp@1.service
    #[command(hide = true)]
    DrainUnit {
        /// The unit.
        unit: UnitName,
    },
    /// Make or remove the address of a unit with Address=own. systemd runs it; you need not.
    ///
    /// Example: systemctl status muster-address@web@1.service.service
    #[command(hide = true)]
    UnitAddress {
        /// Whether the unit is about to start, or has stopped.
        which: Address,
        /// The unit.
        unit: UnitName,
    },
    /// Serve, back up, check and move the hub: an etcd v3 server.
    ///
    /// Example: muster hub snapshot save /var/backups/hub.db
    Hub(hub::Hub),
    /// Show the configuration and where each value comes from.
    ///
    /// Example: MUSTER_HUB_LISTEN=0.0.0.0:2379 muster config
    Config(ConfigFile),
    /// Print a script with which a shell completes the command line.
    ///
    /// Example: muster completion bash >/usr/share/bash-completion/completions/muster
    Completion(manual::Completion),
    /// Write the manual pages, one for each verb.
    ///
    /// Example: muster man /usr/local/share/man/man1
    Man(manual::Man),
    /// Machines on this one box, to try things: real systemd, Docker and network.
    ///
    /// Example: muster lab up 4
    Lab(lab::LabArgs),
}

/// What becomes of a unit's own address.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Address {
    Up,
    Down,
}

#[derive(Args)]
struct ConfigFile {
    /// The configuration file; without this, /etc/muster/muster.toml if it exists.
    #[arg(long, env = "MUSTER_CONFIG")]
    config: Option<PathBuf>,
}

/// Reads the command line and carries it out.
pub fn run() -> Result<ExitCode> {
    let matches = Cli::command().get_matches();
    if let Some(why) = useless_endpoint(&matches) {
        Cli::command().error(ErrorKind::ArgumentConflict, why).exit();
    }
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let endpoint = match &cli.tunnel {
        None => cli.endpoint,
        Some(host) => tunnel::Tunnel {
            host: host.clone(),
            username: cli.ssh_username,
            timeout: cli.ssh_timeout,
            known_hosts: cli.known_hosts_file,
            strict: cli.strict_host_key_checking,
            program: "muster",
        }
        .to(&cli.endpoint)?,
    };
    let client = api::Client::new(endpoint);
    match cli.command {
        Command::Agent(file) => {
            log();
            daemon()?.block_on(Box::pin(agent::run(|| Ok(load(&file)?.config))))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Fence => {
            log();
            crate::fence::run()?;
            Ok(ExitCode::SUCCESS)
        }
        Command::DrainUnit { unit } => {
            // systemd names the main process as long as there is one; a unit that has ended finishes no request.
            let pid = std::env::var("MAINPID").ok().filter(|pid| !pid.is_empty());
            let alive = pid.is_some_and(|pid| std::path::Path::new("/proc").join(pid).exists());
            agent::registrar::ask(&unit, alive)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::UnitAddress { which: Address::Up, unit } => {
            client_runtime()?.block_on(agent::addresses::up(&unit))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::UnitAddress { which: Address::Down, unit } => {
            agent::addresses::down(&unit)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Hub(hub) if hub.serves() => {
            log();
            daemon()?.block_on(hub.run())
        }
        Command::Render(verb) => {
            if verb.follows() {
                log();
            }
            client_runtime()?.block_on(Box::pin(verb.run()))
        }
        Command::Hub(hub) => client_runtime()?.block_on(Box::pin(hub.run())),
        Command::Config(file) => show_config(&load(&file)?),
        Command::Lab(args) => lab::run(args),
        Command::Route(verb) => verb.run(),
        Command::FdForward(verb) => verb.run(),
        Command::Verify { .. } => Ok(verify()),
        Command::Completion(verb) => verb.run(Cli::command()),
        Command::Man(verb) => verb.run(Cli::command()),
        Command::Version => {
            output::line(concat!("muster ", env!("CARGO_PKG_VERSION")))?;
            Ok(ExitCode::SUCCESS)
        }
        command => client_runtime()?.block_on(Box::pin(ask(&client, command))),
    }
}

/// Why `--endpoint` was not to be given, if it was: it names the API, and some verbs do not use it.
fn useless_endpoint(matches: &clap::ArgMatches) -> Option<String> {
    let (verb, inner) = matches.subcommand()?;
    if inner.value_source("endpoint") != Some(ValueSource::CommandLine) {
        return None;
    }
    let instead = match verb {
        "kv" | "hub" | "render" | "services" | "endpoints" => "it speaks to the hub, which --endpoints names",
        "route" => "it asks this machine's gateway, or the one that --admin names",
        "agent" => "it serves the API, and where is said by [api] in its configuration",
        "config" => "it reads a file and asks nobody",
        "lab" => "it works on this box; for one of its machines use `muster lab exec`",
        _ => return None,
    };
    Some(format!("--endpoint names the API of a daemon, which `muster {verb}` does not use: {instead}"))
}

async fn ask(client: &api::Client, command: Command) -> Result<ExitCode> {
    match command {
        Command::ListMachines(verb) => verb.run(client).await,
        Command::ListUnits(verb) => verb.run(client).await,
        Command::ListUnitFiles(verb) => verb.run(client).await,
        Command::Submit(verb) => verb.run(client).await,
        Command::Load(verb) => verb.run(client, wait::Verb::Load).await,
        Command::Start(verb) => verb.run(client, wait::Verb::Start).await,
        Command::Stop(verb) => verb.run(client, wait::Verb::Stop).await,
        Command::Restart(verb) => verb.run(client).await,
        Command::Wait(verb) => verb.run(client).await,
        Command::Unload(verb) => verb.run(client, wait::Verb::Unload).await,
        Command::Destroy(verb) => verb.run(client, wait::Verb::Destroy).await,
        Command::Update(verb) => verb.run(client).await,
        Command::Rollback(verb) => verb.run(client).await,
        Command::History(verb) => verb.run(client).await,
        Command::Rollouts(verb) => verb.run(client).await,
        Command::Rollout(verb) => verb.run(client).await,
        Command::Cat(verb) => verb.run(client).await,
        Command::Why(verb) => verb.run(client).await,
        Command::Events(verb) => verb.run(client).await,
        Command::Cordon(verb) => verb.run(client).await,
        Command::Uncordon(verb) | Command::Undrain(verb) => verb.run(client).await,
        Command::Drain(verb) => verb.run(client).await,
        Command::Rebalance(verb) => verb.run(client).await,
        Command::Status(verb) => verb.run(client).await,
        Command::Journal(verb) => verb.run(client).await,
        Command::Exec(verb) => verb.run(client).await,
        Command::Ssh(verb) => verb.run(client).await,
        Command::Kv(verb) => verb.run().await,
        Command::Services(verb) => verb.run().await,
        Command::Endpoints(verb) => verb.run().await,
        Command::Net(verb) => verb.run(client).await,
        Command::FdForward(_)
        | Command::Render(_)
        | Command::Route(_)
        | Command::Verify { .. }
        | Command::Version
        | Command::Completion(_)
        | Command::Man(_) => unreachable!("these ask nobody"),
        Command::DrainUnit { .. }
        | Command::UnitAddress { .. }
        | Command::Agent(_)
        | Command::Fence
        | Command::Hub(_)
        | Command::Config(_)
        | Command::Lab(_) => {
            unreachable!("these are no requests")
        }
    }
}

/// Called by the name `etcdctl`: that program's v2 commands, on the hub of this machine's configuration.
pub fn etcdctl() -> Result<ExitCode> {
    client_runtime()?.block_on(kv::etcdctl())
}

/// Called by the name `fleetctl`: that program's verbs, on Muster's API.
pub fn fleetctl() -> Result<ExitCode> {
    fleetctl::run()
}

/// What fleet 1.0 said to it.
fn verify() -> ExitCode {
    eprintln!("WARNING: The signed/verified units feature is DEPRECATED and cannot be used.");
    ExitCode::from(2)
}

fn client_runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")
}

/// Two workers: the daemon waits for sockets nearly all the time, and every worker costs memory.
fn daemon() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

/// To stderr, which is the journal under systemd: it adds the time itself.
fn log() {
    // boringtun calls it an error when a peer does not answer; `net` says what matters of that.
    let filter = tracing_subscriber::EnvFilter::try_from_env("MUSTER_LOG")
        .unwrap_or_else(|_| "info,boringtun=off".into());
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    if std::env::var_os("JOURNAL_STREAM").is_some() { builder.without_time().init() } else { builder.init() }
}

fn load(file: &ConfigFile) -> Result<config::Loaded> {
    config::load(file.config.as_deref(), |name| std::env::var(name).ok())
}

fn show_config(loaded: &config::Loaded) -> Result<ExitCode> {
    let rows = config::FIELDS.iter().map(|(field, default)| {
        let value = config::lookup(&loaded.table, &field.split('.').collect::<Vec<_>>());
        let from = match loaded.origins.get(*field) {
            None => "default".to_owned(),
            Some(config::Origin::File) => "file".to_owned(),
            Some(config::Origin::Environment(variable)) => variable.clone(),
        };
        vec![(*field).to_owned(), value.map_or_else(|| (*default).to_owned(), ToString::to_string), from]
    });
    output::table(Some(&["FIELD", "VALUE", "FROM"]), rows)?;
    Ok(ExitCode::SUCCESS)
}

/// Names as they were typed: braces expanded, directories dropped, `.service` added.
fn names(arguments: &[String]) -> Result<Vec<(String, UnitName)>> {
    let mut names = Vec::new();
    for argument in arguments {
        for typed in braces::expand(argument) {
            let name = UnitName::from_argument(&typed).with_context(|| format!("`{typed}`"))?;
            if !names.iter().any(|(_, known)| *known == name) {
                names.push((typed, name));
            }
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub_verbs(verb: &clap::Command) -> Vec<&clap::Command> {
        let of = ["hub", "snapshot", "alarm", "auth", "user", "role"];
        let verbs = verb.get_subcommands().filter(|_| of.contains(&verb.get_name()));
        verbs.flat_map(|verb| std::iter::once(verb).chain(hub_verbs(verb))).collect()
    }

    #[test]
    fn the_command_line_is_well_formed_and_every_verb_has_an_example() {
        super::kv::command().debug_assert();
        super::fleetctl::command().debug_assert();
        let command = super::Cli::command();
        command.clone().debug_assert();
        let verbs = command.get_subcommands().filter(|verb| verb.get_name() != "help");
        for verb in verbs.flat_map(|verb| std::iter::once(verb).chain(hub_verbs(verb))) {
            let help = verb.clone().render_long_help().to_string();
            assert!(help.contains("Example"), "`muster {} --help` has no example", verb.get_name());
        }
    }

    #[test]
    fn a_private_key_is_no_key_of_the_hub() {
        for words in ["kv get", "hub role revoke-permission app"] {
            let words = format!("muster {words} /x --endpoints https://a:1 --cert c --key k --user u:p");
            Cli::try_parse_from(words.split(' ')).map(drop).expect(&words);
        }
    }

    #[test]
    fn an_endpoint_without_effect_is_refused() {
        let why = |words: &str| {
            let matches = Cli::command().try_get_matches_from(words.split(' ')).expect(words);
            useless_endpoint(&matches)
        };
        let endpoint = "--endpoint http://10.0.0.1:49153";
        for words in ["kv ls", "agent", "config", "hub status", "hub user list", "lab status"] {
            assert_eq!(why(&format!("muster {words}")), None);
            let after = why(&format!("muster {words} {endpoint}")).expect(words);
            assert_eq!(why(&format!("muster {endpoint} {words}")), Some(after));
        }
        assert_eq!(why(&format!("muster list-units {endpoint}")), None);
    }
}
