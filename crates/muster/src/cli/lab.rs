//! `muster lab`: a fleet of machines on this box, for demonstrations and for trying things out.
//!
//! Only translates: each subcommand is one or two calls of the `lab` crate, and its text. Data goes to standard output,
//! the rest to standard error. `exec` and `outside` end with the exit code of the inner command.

use std::io::Write as _;
use std::os::unix::process::ExitStatusExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use comfy_table::{ContentArrangement, Table, presets};
use lab::{Lab, LabConfig, LabStatus, Machine};

/// Machines on this box, each with its own systemd, Docker and network. Needs root.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  muster lab up 3\n  muster lab exec m1 systemctl status\n  muster lab down"
)]
pub struct LabArgs {
    /// Name of the lab: 1 to 8 letters
    #[arg(long, global = true, env = "MUSTER_LAB", default_value = "muster", value_name = "NAME")]
    name: String,
    #[command(subcommand)]
    command: LabCommand,
}

/// What to do with the lab.
#[derive(Debug, Subcommand)]
pub enum LabCommand {
    /// Bring up machines m1 to mN; on a lab that is up, add what is missing and boot what is off
    #[command(after_help = "Example:\n  muster lab up 3 --bin target/release --image web.tar")]
    Up {
        /// How many machines
        #[arg(value_name = "N")]
        machines: usize,
        /// Do not start Docker inside
        #[arg(long)]
        no_docker: bool,
        /// A directory shown as /usr/local/bin inside, read-only
        #[arg(long, value_name = "DIR")]
        bin: Option<PathBuf>,
        /// A directory shown as /mnt/share inside, read-write
        #[arg(long, value_name = "DIR")]
        share: Option<PathBuf>,
        /// An image for every new machine's Docker, as `load` takes it; may be given several times
        #[arg(long = "image", value_name = "FILE.tar", conflicts_with = "no_docker")]
        images: Vec<PathBuf>,
        /// The first three bytes of the machines' /24
        #[arg(long, value_name = "A.B.C", default_value = "10.99.0", value_parser = parse_network)]
        network: [u8; 3],
        /// Seconds that a machine may take to boot
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        boot_timeout: u64,
    },
    /// Run a command inside a machine, as root
    #[command(after_help = "Example:\n  muster lab exec m1 docker ps\n  muster lab exec m2 sh < script.sh")]
    Exec {
        /// The machine
        machine: String,
        /// The command and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
        command: Vec<String>,
    },
    /// Run a command of this box as a client outside the fleet
    #[command(after_help = "Example:\n  muster lab outside curl http://10.99.0.1/")]
    Outside {
        /// The command and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
        command: Vec<String>,
    },
    /// Power cut: every process and the network gone at once, the disk kept
    #[command(after_help = "Example:\n  muster lab kill m2")]
    Kill(Machines),
    /// Shut down orderly
    #[command(after_help = "Example:\n  muster lab stop m1 m2")]
    Stop(Machines),
    /// Boot again, with the same disk
    #[command(after_help = "Example:\n  muster lab start m2")]
    Start(Machines),
    /// Freeze processes and network: a stalled virtual machine
    #[command(after_help = "Example:\n  muster lab pause m3; sleep 10; muster lab resume m3")]
    Pause(Machines),
    /// Freeze processes only: the machine's kernel still answers
    #[command(after_help = "Example:\n  muster lab freeze m3")]
    Freeze(Machines),
    /// Undo pause or freeze
    #[command(after_help = "Example:\n  muster lab resume m3")]
    Resume(Machines),
    /// Give machines that are off an empty disk
    #[command(after_help = "Example:\n  muster lab stop m2 && muster lab wipe m2 && muster lab start m2")]
    Wipe(Machines),
    /// Drop every frame between two machines, or between one and everybody
    #[command(after_help = "Example:\n  muster lab partition m1 m2\n  muster lab partition m3 all")]
    Partition {
        /// A machine
        a: String,
        /// Another one, or `all`
        #[arg(value_name = "B|all")]
        b: String,
    },
    /// Undo one partition, or all of them
    #[command(after_help = "Example:\n  muster lab heal m1 m2\n  muster lab heal")]
    Heal {
        /// A machine; without it, everything is healed
        #[arg(requires = "b")]
        a: Option<String>,
        /// The other one, or `all`
        #[arg(value_name = "B|all")]
        b: Option<String>,
    },
    /// Give machines a Docker image: of `docker save`, or a root file system (imported under the file's name)
    #[command(after_help = "Example:\n  muster lab load web.tar\n  muster lab load web.tar m1 m2")]
    Load {
        /// The archive
        #[arg(value_name = "FILE.tar")]
        file: PathBuf,
        /// To which machines; all that run, if none is named
        machines: Vec<String>,
    },
    /// Show machines and cuts
    #[command(after_help = "Example:\n  muster lab status -o json")]
    Status {
        /// How to print it
        #[arg(short, long, value_enum, default_value_t = Format::Table)]
        output: Format,
    },
    /// Print a machine's address
    #[command(after_help = "Example:\n  ping $(muster lab addr m1)")]
    Addr {
        /// The machine
        machine: String,
    },
    /// Print a machine's console and journal, also of one that is off
    #[command(after_help = "Example:\n  muster lab log m2 | tail")]
    Log {
        /// The machine
        machine: String,
    },
    /// Remove everything
    #[command(after_help = "Example:\n  muster lab down")]
    Down,
}

/// One machine or more.
#[derive(Debug, Args)]
pub struct Machines {
    /// Which machines
    #[arg(required = true, value_name = "MACHINE")]
    machines: Vec<String>,
}

/// How `status` is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// For programs
    Json,
}

/// Does it. The exit code is 0, or the inner command's for `exec` and `outside`.
///
/// # Errors
/// What the lab says; several machines' errors together.
pub fn run(args: LabArgs) -> Result<ExitCode> {
    let attach = || Lab::attach(&args.name);
    match args.command {
        LabCommand::Up { machines, no_docker, bin, share, images, network, boot_timeout } => {
            let config = LabConfig {
                name: args.name,
                network,
                bin,
                share,
                docker: !no_docker,
                boot_timeout: Duration::from_secs(boot_timeout),
                ..LabConfig::default()
            };
            up(machines, config, &images)?;
        }
        LabCommand::Exec { machine, command } => {
            return forward(attach()?.machine(&machine)?.command(&command)?);
        }
        LabCommand::Outside { command } => return forward(attach()?.outside().command(&command)),
        LabCommand::Kill(which) => each(&attach()?, &which.machines, Machine::kill)?,
        LabCommand::Stop(which) => each(&attach()?, &which.machines, Machine::stop)?,
        LabCommand::Start(which) => each(&attach()?, &which.machines, start)?,
        LabCommand::Pause(which) => each(&attach()?, &which.machines, Machine::pause)?,
        LabCommand::Freeze(which) => each(&attach()?, &which.machines, Machine::freeze)?,
        LabCommand::Resume(which) => each(&attach()?, &which.machines, Machine::resume)?,
        LabCommand::Wipe(which) => each(&attach()?, &which.machines, Machine::wipe)?,
        LabCommand::Partition { a, b } if b == "all" => attach()?.cut(&a)?,
        LabCommand::Partition { a, b } => attach()?.partition(&a, &b)?,
        LabCommand::Heal { a: Some(a), b: Some(b) } if b == "all" => attach()?.join(&a)?,
        LabCommand::Heal { a: Some(a), b: Some(b) } => attach()?.heal(&a, &b)?,
        LabCommand::Heal { .. } => attach()?.heal_all()?,
        LabCommand::Load { file, machines } => {
            let lab = attach()?;
            let all = || lab.machines().into_iter().filter(Machine::is_running).collect::<Vec<_>>();
            let to = if machines.is_empty() { all() } else { named(&lab, &machines)? };
            load(&file, &to)?;
        }
        LabCommand::Status { output } => print_status(&attach()?.status()?, output)?,
        LabCommand::Addr { machine } => print(&format!("{}\n", attach()?.machine(&machine)?.address()))?,
        LabCommand::Log { machine } => print(&attach()?.machine(&machine)?.log()?)?,
        LabCommand::Down => lab::down(&args.name)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn up(n: usize, config: LabConfig, images: &[PathBuf]) -> Result<()> {
    for image in images {
        // Before machines are made: a typing error should not cost a boot.
        std::fs::metadata(image).with_context(|| format!("could not read image {}", image.display()))?;
    }
    let lab = Lab::up(n, config)?;
    for image in images {
        load(image, &lab.created())?;
    }
    let machines = lab.machines();
    for machine in machines.iter().filter(|machine| machine.is_running()) {
        warn_of_failed_units(machine);
    }
    let first = machines.first().map(Machine::name).unwrap_or_default();
    eprintln!(
        "lab `{}` is up: {} machines on {}; try `muster lab exec {first} systemctl`",
        lab.name(),
        machines.len(),
        lab.subnet()
    );
    Ok(())
}

fn start(machine: &Machine) -> Result<(), lab::Error> {
    machine.start()?;
    warn_of_failed_units(machine);
    Ok(())
}

/// A machine with a failed unit has booted; that it is not whole is for a person to judge.
fn warn_of_failed_units(machine: &Machine) {
    match machine.failed_units() {
        Ok(units) if units.is_empty() => {}
        Ok(units) => eprintln!("warning: {} is degraded, failed: {}", machine.name(), units.join(" ")),
        Err(error) => eprintln!("warning: {}: its units are not known: {error}", machine.name()),
    }
}

fn load(file: &Path, machines: &[Machine]) -> Result<()> {
    let stem = file.file_stem().and_then(|stem| stem.to_str());
    let name = stem.with_context(|| format!("{} has no name to give an image; rename it", file.display()))?;
    side_by_side(machines, |machine| machine.load_image(file, name))
        .with_context(|| format!("could not load {}", file.display()))
}

fn named(lab: &Lab, names: &[String]) -> Result<Vec<Machine>> {
    // All names are known before anything is done to the first.
    names.iter().map(|name| Ok(lab.machine(name)?)).collect()
}

fn each(lab: &Lab, names: &[String], act: fn(&Machine) -> Result<(), lab::Error>) -> Result<()> {
    side_by_side(&named(lab, names)?, act)
}

/// The same to several machines at once; the others go on when one fails.
fn side_by_side(machines: &[Machine], act: impl Fn(&Machine) -> Result<(), lab::Error> + Sync) -> Result<()> {
    let act = &act;
    let failures: Vec<String> = thread::scope(|scope| {
        let threads: Vec<_> = machines.iter().map(|machine| scope.spawn(move || act(machine))).collect();
        let ended =
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        ended.filter_map(|done| done.err().map(|error| format!("{:#}", anyhow::Error::from(error)))).collect()
    });
    if !failures.is_empty() {
        bail!("{}", failures.join("\n"));
    }
    Ok(())
}

/// Runs with our standard streams, and ends as it ends; 128 + the signal for one that a signal ended, as a shell does.
fn forward(mut command: Command) -> Result<ExitCode> {
    let status = command.status().with_context(|| format!("could not run {:?}", command.get_program()))?;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

fn print_status(status: &LabStatus, output: Format) -> Result<()> {
    let text = match output {
        Format::Json => format!("{}\n", serde_json::to_string_pretty(status)?),
        Format::Table => table(status),
    };
    print(&text)
}

fn table(status: &LabStatus) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["NAME", "ADDRESS", "STATE", "PID1", "PROCS", "MEMORY", "DISK"]);
    for machine in &status.machines {
        table.add_row([
            machine.name.clone(),
            machine.address.to_string(),
            machine.power.as_str().to_owned(),
            machine.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            machine.processes.to_string(),
            mebibytes(machine.memory),
            mebibytes(machine.disk),
        ]);
    }
    let mut text: String = table.lines().map(|line| format!("{}\n", line.trim())).collect();
    for cut in &status.cuts {
        text.push_str(&format!("cut: {cut}\n"));
    }
    text
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes / (1024 * 1024))
}

/// A reader that has seen enough (`| head`) is no failure.
fn print(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        done => done.context("could not write to standard output"),
    }
}

fn parse_network(text: &str) -> Result<[u8; 3], String> {
    let bytes: Result<Vec<u8>, _> = text.split('.').map(str::parse).collect();
    let bytes = bytes.ok().and_then(|bytes| <[u8; 3]>::try_from(bytes).ok());
    bytes.ok_or_else(|| "three bytes with points between them are wanted, as in 10.99.0".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_three_bytes() {
        assert_eq!(parse_network("10.98.0"), Ok([10, 98, 0]));
        for bad in ["", "10.98", "10.98.0.0", "10.98.256", "a.b.c"] {
            assert!(parse_network(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_status_is_a_table_and_its_cuts() {
        let machine = lab::MachineStatus {
            name: "m1".into(),
            address: [10, 99, 0, 1].into(),
            power: lab::Power::Off,
            pid: None,
            processes: 0,
            memory: 0,
            disk: 3 << 20,
        };
        let cuts = vec![lab::Cut::Cable("m1".into())];
        let text = table(&LabStatus {
            name: "x".into(),
            outside: [10, 99, 0, 254].into(),
            machines: vec![machine],
            cuts,
        });
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["m1", "10.99.0.1", "off", "-", "0", "0", "MiB", "3", "MiB"]);
        assert_eq!(lines[2], ["cut:", "m1", "from", "everybody"]);
    }
}
