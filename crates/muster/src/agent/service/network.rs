//! The cluster network of this machine, and the daemon's metrics.

use super::Hub;
use api::{
    ApiError,
    network::{Findings, Network, NetworkStatus, UnitAddress},
};

impl Network for Hub {
    fn network(&self) -> Result<NetworkStatus, ApiError> {
        let view = self.network.as_ref().ok_or_else(off)?;
        let addresses = super::super::addresses::all();
        let units = addresses.into_iter().map(|(unit, address)| UnitAddress { unit, address }).collect();
        Ok(NetworkStatus { units, ..view.status() })
    }

    async fn examine(&self) -> Result<Findings, ApiError> {
        match &self.network {
            Some(view) => Ok(view.examine().await),
            None => Err(off()),
        }
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
