//! Registered services for other programs.

use super::{Hub, unavailable};
use api::{
    ApiError,
    discovery::{Discovery, Target},
};
use model::keys;
use muster_core::router::{Catalog, project};

impl Discovery for Hub {
    async fn targets(&self) -> Result<Vec<Target>, ApiError> {
        let listing = self.store.list(keys::SERVICES).await.map_err(unavailable)?;
        let catalog = Catalog::from_listing(listing.items.iter().map(|kv| (kv.key.as_str(), &*kv.value)));
        let target = |target: project::Target| Target {
            targets: target.targets,
            labels: target.labels.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        };
        Ok(project::prometheus(&catalog).into_iter().map(target).collect())
    }
}
