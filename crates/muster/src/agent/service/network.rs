//! The cluster network of this machine, and the daemon's metrics.

use super::Hub;
use api::{
    ApiError,
    network::{Findings, Network, NetworkStatus, UnitAddress},
};

impl Network for Hub {
    fn network(&self) -> Result<NetworkStatus, ApiError> {
        let (view, others) = self.networks.split_first().ok_or_else(off)?;
        let others = others.iter().map(super::super::overlay::View::status).collect();
        let addresses = super::super::addresses::all();
        let units = addresses.into_iter().map(|(unit, address)| UnitAddress { unit, address }).collect();
        Ok(NetworkStatus { units, others, ..view.status() })
    }

    async fn examine(&self) -> Result<Findings, ApiError> {
        let (first, others) = self.networks.split_first().ok_or_else(off)?;
        let mut findings = first.examine().await;
        for view in others {
            findings.peers.extend(view.examine().await.peers);
        }
        Ok(findings)
    }

    fn metrics(&self) -> String {
        self.metrics.render()
    }
}

fn off() -> ApiError {
    ApiError::not_found(
        "this machine is not on the cluster network: its configuration says [overlay] enabled = false",
    )
}
