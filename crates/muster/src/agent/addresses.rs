//! Units with `Address=own`: each has a network namespace with an address of this machine's subnet.
//!
//! systemd itself asks for it, by a service beside the unit that runs `muster unit-address`: so it is there before the
//! unit starts, whoever starts it, and gone after the unit has stopped, whether the daemon runs or not. The task here
//! only mends: it follows the subnet, and collects what a killed helper left behind. Invariants: everything is done
//! under one lock; an address is noted before it is used and until it is not used any more.

/// What systemd is told of such a unit.
mod beside;
/// Who has which address, and what the machine has to give.
mod files;

pub(super) use beside::{install, remove};
pub(super) use files::{Ground, RESOLV_CONF, failure, held, tell};

use anyhow::{Context, Result, bail};
use containers::{Engine, EngineError, Network};
use ipnet::Ipv4Net;
use model::{Subnet, UnitName};
use muster_core::overlay::{choose_address, port_name, unit_range};
use net::namespace::{self, Leg};
use std::{collections::BTreeMap, net::Ipv4Addr, path::PathBuf, time::Duration};
use systemd::Systemd;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Between looks whether everything is as it should be.
const LOOK: Duration = Duration::from_secs(30);
/// At boot a unit may come before its machine's container engine answers, which takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between questions to one that does not answer yet.
const PAUSE: Duration = Duration::from_millis(500);
/// Where `ip netns` keeps namespaces, so that it shows ours too.
const NAMESPACES: &str = "/run/netns";

/// `muster unit-address up`: the unit is about to start.
pub(crate) async fn up(unit: &UnitName) -> Result<()> {
    let outcome = async {
        let _lock = files::lock()?;
        let ground = files::ground()?;
        engines_agree(&ground, PATIENCE).await?;
        settle(unit, &ground)
    };
    let outcome = outcome.await.map(drop);
    files::note_failure(unit, outcome.as_ref().err());
    outcome
}

/// `muster unit-address down`: the unit has stopped.
pub(crate) fn down(unit: &UnitName) -> Result<()> {
    let _lock = files::lock()?;
    release(unit)
}

/// The addresses that units of this machine have.
pub(super) fn all() -> BTreeMap<UnitName, Ipv4Addr> {
    files::units().into_iter().filter_map(|unit| Some((unit.clone(), held(&unit)?))).collect()
}

/// Keeps addresses in step with the machine's subnet, and collects those that nobody uses, until `stop`.
pub(super) async fn keep(
    systemd: Systemd,
    mut subnet: watch::Receiver<Option<Subnet>>,
    stop: CancellationToken,
) -> Result<()> {
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut complained = String::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = tick.tick() => {}
            Ok(()) = subnet.changed() => {}
        }
        let problem = look(&systemd).await.err().map(|error| format!("{error:#}")).unwrap_or_default();
        if !problem.is_empty() && problem != complained {
            warn!(error = problem, "units' own addresses are not as they should be");
        }
        complained = problem;
    }
}

async fn look(systemd: &Systemd) -> Result<()> {
    if files::units().is_empty() {
        return Ok(());
    }
    // While it is held no helper begins or ends, so that what systemd says of them stays true.
    let _lock = tokio::task::spawn_blocking(files::lock).await??;
    let units = files::units();
    let helpers: BTreeMap<UnitName, UnitName> =
        units.iter().filter_map(|unit| Some((beside::helper(unit)?, unit.clone()))).collect();
    let states = systemd.states(&helpers.keys().collect::<Vec<_>>()).await?;
    let (mut outcome, mut alive) = (Ok(()), Vec::new());
    for (helper, unit) in helpers {
        match states.get(&helper).map(|state| state.active.as_str()) {
            Some("inactive" | "failed") => {
                info!(%unit, "its own address is not used any more: collected");
                let released = release(&unit);
                outcome = outcome.and(released);
            }
            Some("active") => alive.push(unit),
            _ => {}
        }
    }
    if alive.is_empty() {
        return outcome;
    }
    let ground = files::ground()?;
    outcome = outcome.and(engines_agree(&ground, Duration::ZERO).await);
    for unit in alive {
        let before = held(&unit);
        match settle(&unit, &ground) {
            Ok(address) if Some(address) != before => info!(%unit, %address, "the unit has another address"),
            Ok(_) => {}
            Err(error) => outcome = outcome.and(Err(error).with_context(|| unit.to_string())),
        }
    }
    outcome
}

/// Gives `unit` an address if it has none that fits, and makes everything that belongs to it.
fn settle(unit: &UnitName, ground: &Ground) -> Result<Ipv4Addr> {
    let subnet = ground.subnet;
    let Some(range) = unit_range(subnet) else {
        bail!(
            "this machine's subnet {subnet} is too small to be shared with units: a `SubnetLen` of 29 would do"
        );
    };
    let before = held(unit);
    let taken = all().into_iter().filter(|(other, _)| other != unit).map(|(_, address)| address).collect();
    let address = match before.filter(|address| range.contains(address)) {
        Some(address) => address,
        None => choose_address(subnet, unit, &taken)
            .with_context(|| format!("every address of {range} is taken by another unit"))?,
    };
    let leg = Leg {
        path: path(unit),
        port: port_name(unit),
        bridge: ground.bridge.clone(),
        gateway: subnet.bridge(),
        address: Ipv4Net::new(address, subnet.net().prefix_len()).context("no such prefix length")?,
        mtu: ground.mtu,
    };
    files::hold(unit, address)?;
    if let Err(error) = namespace::attach(&leg) {
        if before.is_none() {
            let _ = release(unit);
        }
        return Err(error.into());
    }
    Ok(address)
}

fn release(unit: &UnitName) -> Result<()> {
    namespace::detach(&path(unit), &port_name(unit))?;
    files::let_go(unit)
}

/// By its whole name in systemd, too, see `beside`.
fn path(unit: &UnitName) -> PathBuf {
    PathBuf::from(NAMESPACES).join(format!("muster-{unit}"))
}

/// A container engine that gives away what is for units would sooner or later give an address away twice. One that listens
/// and does not answer is waited for as long as `patience`.
async fn engines_agree(ground: &Ground, patience: Duration) -> Result<()> {
    let Some(range) = unit_range(ground.subnet) else { return Ok(()) };
    let (engine, begun) = (Engine::new(&ground.container_socket), Instant::now());
    let networks = loop {
        match engine.networks().await {
            Ok(networks) => break networks,
            // When it comes it reads our files first.
            Err(EngineError::Socket { .. }) => return Ok(()),
            Err(_) if begun.elapsed() < patience => tokio::time::sleep(PAUSE).await,
            Err(error) => return Err(error).context("it is not known which addresses containers get"),
        }
    };
    let overlap = |one: Ipv4Net, other: Ipv4Net| one.contains(&other) || other.contains(&one);
    let takes = |network: &&Network| network.pools.iter().any(|pool| overlap(pool.range, range));
    let Some(network) = networks.iter().find(takes) else { return Ok(()) };
    let remedy = match network.name.as_str() {
        "bridge" => {
            "`systemctl restart docker` has it take --fixed-cidr from /run/muster/docker.env".to_owned()
        }
        name => format!(
            "remove it (`docker network rm {name}`); Muster makes its own anew, for others there is --ip-range"
        ),
    };
    bail!("Docker's network `{}` gives away addresses of {range}, which is for units: {remedy}", network.name)
}
