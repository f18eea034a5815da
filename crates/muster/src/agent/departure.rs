//! The machine's orderly way out of the cluster: when it shuts down, its units shall run elsewhere now, and not when
//! its lease has ended.
//!
//! First the states say all that there is to say, then the record says that the machine leaves, and the engine places
//! its units elsewhere; then the session ends. Invariant: good-bye is said when systemd has begun to shut the machine down, never because the daemon ends; and a
//! unit with `OnPartition=stop` has stopped here before, or as long after as the fence takes.

use anyhow::anyhow;
use registry::Session;
use std::time::Duration;
use systemd::Systemd;
use tokio::sync::watch;
use tracing::{info, warn};

/// A departure never takes longer: systemd would kill the daemon after 90 s.
pub(super) const LONGEST: Duration = Duration::from_secs(80);
/// What telling the hub may take before good-bye is said without it: the engine then takes the machine for lost.
const TELLING: Duration = Duration::from_secs(1);
/// What registered units may take to drain, altogether.
const DRAINING: Duration = Duration::from_secs(15);
/// For units that are stopped last: until the engine has read of it and placed them.
const NOTICE: Duration = Duration::from_secs(1);
/// Between looks whether the shutdown was called off.
const LOOK: Duration = Duration::from_secs(5);

/// Waits for the machine's shutdown, says good-bye, and tells `left`. Then the daemon has nothing to do but to wait for its own
/// end; if the shutdown is called off it must begin anew, which the error says.
pub(super) async fn wait(
    systemd: Option<Systemd>,
    fenced: Option<watch::Receiver<bool>>,
    leaving: &watch::Sender<bool>,
    mut announced: watch::Receiver<bool>,
    mut unregistered: watch::Receiver<bool>,
    left: &watch::Sender<bool>,
    session: &Session,
) -> anyhow::Error {
    let (Some(systemd), Some(mut fenced)) = (systemd, fenced) else { return std::future::pending().await };
    if let Err(error) = systemd.shutdown().await {
        warn!(%error, "systemd does not tell of a shutdown: the lease will end by itself");
        return std::future::pending().await;
    }
    info!("the machine shuts down: leaving the cluster");
    leaving.send_replace(true);
    let told = tokio::time::timeout(TELLING, announced.wait_for(|told| *told)).await;
    info!(told = told.is_ok_and(|told| told.is_ok()), "the cluster knows that this machine leaves");
    if *fenced.borrow_and_update() {
        // Told by its record that it leaves; these units' states are awaited before they may run elsewhere.
        let stopped = tokio::time::timeout(LONGEST / 2, fenced.wait_for(|alive| !alive)).await;
        info!(stopped = stopped.is_ok(), "units with OnPartition=stop awaited");
        tokio::time::sleep(NOTICE).await;
    }
    if !*unregistered.borrow_and_update() {
        // systemd stops them now, and each stop begins with a drain.
        let drained = tokio::time::timeout(DRAINING, unregistered.wait_for(|empty| *empty)).await;
        info!(drained = drained.is_ok(), "registered units awaited");
    }
    match session.end().await {
        Ok(()) => info!("left the cluster"),
        Err(error) => warn!(%error, "could not say good-bye; the lease will end by itself"),
    }
    left.send_replace(true);
    while systemd.is_stopping().await {
        tokio::time::sleep(LOOK).await;
    }
    anyhow!("the shutdown was called off: starting again")
}
