//! `muster net`: the cluster network's configuration, its state on a machine, and what is wrong between machines.
//!
//! `config` speaks to the hub, the rest to the API of one machine. Invariant: a configuration is checked before anything
//! is written, and written byte for byte as it was given, so that flanneld reads what its operator wrote.

use super::{
    access::AccessArgs,
    output::{self, Format},
};
use anyhow::{Context, Result, bail};
use api::{
    Client,
    network::{NetworkPeer, NetworkStatus},
    types::Machine,
};
use clap::{Args, Subcommand};
use model::{NetworkConfig, keys::NetworkKeys};
use registry::{Guard, Store, Write};
use std::{io::Read, path::PathBuf, process::ExitCode};

/// Something is not as it should be, and was told.
const UNWELL: u8 = 3;

#[derive(Args)]
pub struct Net {
    #[command(subcommand)]
    command: NetCommand,
}

#[derive(Subcommand)]
enum NetCommand {
    /// Show the network's configuration, or check and set it.
    ///
    /// Example: muster net config
    Config(Box<Config>),
    /// Show how the cluster network of a machine is, and its peers.
    ///
    /// Example: muster net status
    Status {
        /// How to print it.
        #[arg(long, short, value_enum, default_value_t = Format::Table)]
        output: Format,
    },
    /// Probe every peer through the network, and name who is to blame for what does not come back.
    ///
    /// The exit code is 3 when something is wrong.
    ///
    /// Example: muster net doctor
    Doctor {
        /// How to print it.
        #[arg(long, short, value_enum, default_value_t = Format::Table)]
        output: Format,
    },
}

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
struct Config {
    #[command(flatten)]
    access: AccessArgs,
    /// Where the network's keys are; a further network's are elsewhere.
    #[arg(long, default_value = "/coreos.com/network", global = true)]
    prefix: String,
    #[command(subcommand)]
    command: Option<ConfigCommand>,
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Check a configuration and set it. Machines follow at once; a subnet that still fits is kept.
    ///
    /// Example: echo '{"Network":"10.1.0.0/16","Backend":{"Type":"host-gw"}}' | muster net config set -
    Set {
        /// A file with flannel's JSON; - is standard input.
        file: PathBuf,
        /// Check it, say what it comes to, and set nothing.
        #[arg(long)]
        check: bool,
    },
}

impl Net {
    pub async fn run(self, client: &Client) -> Result<ExitCode> {
        match self.command {
            NetCommand::Config(config) => {
                let Config { access, prefix, command } = *config;
                let key = NetworkKeys::new(&prefix).config();
                match command {
                    None => show(&access, &key).await,
                    Some(ConfigCommand::Set { file, check }) => set(&access, &key, &file, check).await,
                }
            }
            NetCommand::Status { output } => status(client, output).await,
            NetCommand::Doctor { output } => doctor(client, output).await,
        }
    }
}

async fn show(access: &AccessArgs, key: &str) -> Result<ExitCode> {
    let store = Store::connect(access.access()?).await?;
    let Some(kv) = store.get(key).await? else {
        bail!(
            "there is no {key} yet: the first machine with an overlay writes it, or `muster net config set`"
        );
    };
    let text = String::from_utf8_lossy(&kv.value).into_owned();
    output::line(text.trim_end())?;
    explain(&text).with_context(|| format!("in {key}"))?;
    Ok(ExitCode::SUCCESS)
}

async fn set(access: &AccessArgs, key: &str, file: &std::path::Path, check: bool) -> Result<ExitCode> {
    let text = if file.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
        text
    } else {
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?
    };
    explain(&text).with_context(|| format!("nothing was changed: in {}", file.display()))?;
    if check {
        return Ok(ExitCode::SUCCESS);
    }
    let store = Store::connect(access.access()?).await?;
    let guard = match store.get(key).await? {
        Some(kv) => Guard::Unchanged(key.to_owned(), kv.mod_revision),
        None => Guard::Absent(key.to_owned()),
    };
    let outcome = store.commit(&[guard], &[Write::put(key, text.trim_end().to_owned())]).await?;
    if !outcome.committed {
        bail!("somebody else changed {key} at the same moment; look at it and try again");
    }
    eprintln!("set; `muster net status` shows whether a machine takes it");
    Ok(ExitCode::SUCCESS)
}

/// What a configuration comes to, on stderr.
fn explain(text: &str) -> Result<()> {
    let config: NetworkConfig = text.parse()?;
    eprintln!(
        "{} subnets of /{} in {}, {} to {}, by {}",
        config.subnets().count(),
        config.subnet_len,
        config.network,
        config.subnet_min,
        config.subnet_max,
        config.backend.name()
    );
    if let Some(v6) = &config.v6 {
        eprintln!("and subnets of /{} in {}", v6.subnet_len, v6.network);
    }
    if !text.to_ascii_lowercase().contains("\"backend\"") {
        eprintln!(
            "no backend is named: Muster takes vxlan, flanneld's code takes udp; name one if machines run flanneld"
        );
    }
    Ok(())
}

async fn status(client: &Client, format: Format) -> Result<ExitCode> {
    let status = client.network().await?;
    let all = || std::iter::once(&status).chain(&status.others);
    let well = all().all(|network| network.ready && network.problem.is_none());
    let well = if well { ExitCode::SUCCESS } else { ExitCode::from(UNWELL) };
    if format == Format::Json {
        output::json(&status)?;
        return Ok(well);
    }
    let names = machines(client).await;
    for network in all() {
        one(network, &names)?;
    }
    Ok(well)
}

fn one(status: &NetworkStatus, names: &[Machine]) -> Result<()> {
    if !status.name.is_empty() {
        output::line(format!("\n{}", status.name))?;
    }
    let subnet = status.subnet.map(|key| key.to_string()).unwrap_or_default();
    let state = if status.ready { "converged" } else { "not converged" };
    output::line(format!("network  {} by {}, {state}", status.network, status.backend))?;
    output::line(format!("subnet   {subnet}, MTU {} on {}", status.mtu, status.device))?;
    output::line(format!(
        "repaired {} changes to the datapath, {} times the rules",
        status.repaired, status.rules_repaired
    ))?;
    if status.held > 0 {
        output::line(format!("held     {} peers that the hub has forgotten", status.held))?;
    }
    let rows = status.peers.iter().map(|peer| {
        let handshake =
            peer.last_handshake.map(|seconds| format!("{seconds} s ago")).unwrap_or_else(|| "-".to_owned());
        vec![name(names, peer), peer.subnet.clone(), peer.public_ip.to_string(), peer.via.clone(), handshake]
    });
    output::table(Some(&["PEER", "SUBNET", "ADDRESS", "VIA", "HANDSHAKE"]), rows)?;
    if !status.units.is_empty() {
        let rows = status.units.iter().map(|own| vec![own.unit.to_string(), own.address.to_string()]);
        output::table(Some(&["UNIT", "OWN ADDRESS"]), rows)?;
    }
    if let Some(problem) = &status.problem {
        let which = if status.name.is_empty() { String::new() } else { format!(" of {}", status.name) };
        eprintln!("problem{which}: {problem}");
    }
    Ok(())
}

async fn doctor(client: &Client, format: Format) -> Result<ExitCode> {
    let findings = client.examine().await?;
    let well = findings.peers.iter().all(|finding| finding.culprit == "nobody");
    let code = if well { ExitCode::SUCCESS } else { ExitCode::from(UNWELL) };
    if format == Format::Json {
        output::json(&findings)?;
        return Ok(code);
    }
    let names = machines(client).await;
    let yes = |well: bool| if well { "yes" } else { "NO" }.to_owned();
    let rows = findings.peers.iter().map(|finding| {
        let trip = finding.round_trip.map(|us| format!("{us} us")).unwrap_or_else(|| "NO".to_owned());
        vec![
            name(&names, &finding.peer),
            finding.peer.subnet.clone(),
            yes(finding.underlay),
            trip,
            yes(finding.full_size),
            yes(finding.tcp),
            finding.culprit.clone(),
        ]
    });
    output::table(Some(&["PEER", "SUBNET", "MACHINE", "PING", "FULL-SIZE", "TCP", "CULPRIT"]), rows)?;
    for finding in findings.peers.iter().filter(|finding| !finding.remedy.is_empty()) {
        eprintln!("{}: {}", name(&names, &finding.peer), finding.remedy);
    }
    Ok(code)
}

/// For names; without the hub there are none, and addresses have to do.
async fn machines(client: &Client) -> Vec<Machine> {
    client.machines().await.map(|list| list.machines).unwrap_or_default()
}

fn name(machines: &[Machine], peer: &NetworkPeer) -> String {
    let found = machines.iter().find(|machine| std::net::IpAddr::from(machine.address) == peer.public_ip);
    found.map_or_else(|| peer.public_ip.to_string(), |machine| machine.name.clone())
}
