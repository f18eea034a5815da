//! Names for the registered services: `core::dns` says what they mean, the `dns` crate answers.
//!
//! Invariant: while the hub is away, the last known set is answered.

use super::{
    Machine,
    steady::{Served, Services},
};
use anyhow::Result;
use dns::{Instance, Snapshot};
use model::{Health, Subnet};
use muster_core::router::InstanceView;
use std::{net::SocketAddr, sync::Arc};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::error;

/// DNS's port.
const PORT: u16 = 53;

/// Answers until `stop`: on the configured addresses, and on the containers' bridge as soon as the machine has a subnet.
pub(super) async fn run(
    machine: Machine,
    mut services: Services,
    mut subnet: watch::Receiver<Option<Subnet>>,
    stop: CancellationToken,
) -> Result<()> {
    let mut config = machine.config.router.dns.clone();
    // Docker hands out the bridge's address as the name server, so it is listened on from the start: the first container
    // may ask before anything is registered.
    let bridge = match machine.config.overlay.enabled {
        false => None,
        true => tokio::select! {
            known = subnet.wait_for(Option::is_some) => known.ok().and_then(|subnet| *subnet).map(|subnet| subnet.bridge()),
            () = stop.cancelled() => return Ok(()),
        },
    };
    config.listen.extend(bridge.map(|address| SocketAddr::from((address, PORT))));
    let network = machine.config.overlay.enabled.then_some(machine.config.overlay.network);
    let base = Snapshot {
        zone: config.zone.clone(),
        network,
        machine: machine.name.clone(),
        servers: bridge.into_iter().collect(),
        current: false,
        ..Snapshot::default()
    };
    let (sender, snapshots) = watch::channel(Arc::new(base.clone()));
    let server = dns::serve(&config, snapshots, stop.clone());
    tokio::pin!(server);
    loop {
        tokio::select! {
            ended = &mut server => {
                // All else on this machine is more important than names.
                if let Err(error) = ended {
                    error!(error = format!("{:#}", anyhow::Error::new(error)), "no names are answered here");
                }
                return Ok(());
            }
            changed = services.changed() => {
                if changed.is_err() {
                    std::future::pending::<()>().await;
                }
                let served = services.borrow_and_update().clone();
                sender.send_replace(Arc::new(snapshot(&base, &served)));
            }
        }
    }
}

/// What is answered from.
fn snapshot(base: &Snapshot, served: &Served) -> Snapshot {
    let services = served.catalog.services.iter().map(|(name, view)| {
        let instances = view.instances.iter().filter_map(|(name, view)| instance(name, view)).collect();
        (name.to_string(), instances)
    });
    Snapshot {
        serial: u32::try_from(served.revision.0 & i64::from(u32::MAX)).unwrap_or_default(),
        current: served.current,
        services: services.collect(),
        ..base.clone()
    }
}

fn instance(name: &str, view: &InstanceView) -> Option<Instance> {
    let meta = view.meta.as_ref();
    Some(Instance {
        name: name.to_owned(),
        address: view.endpoint?.0,
        weight: meta.map_or(100, |meta| u16::try_from(meta.weight).unwrap_or(u16::MAX)),
        machine: meta.map(|meta| meta.machine_name.clone()).filter(|machine| !machine.is_empty()),
        healthy: meta.is_none_or(|meta| matches!(meta.health, Health::Passing | Health::Warning)),
        draining: view.state.is_some(),
    })
}
