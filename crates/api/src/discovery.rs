//! Registered services for programs that discover targets over HTTP: Prometheus's `http_sd`.
//!
//! Invariant: a list that cannot be made is an error and never an empty list: Prometheus keeps its last one at an error.

use crate::types::ApiError;
use axum::{Json, Router, extract::State, routing::get};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, future::Future};

/// `GET /sd/prometheus`: an instance, as Prometheus's `http_sd` has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// `<address>:<port>`; one.
    pub targets: Vec<String>,
    /// Service, instance, machine, unit and the path of the metrics.
    pub labels: BTreeMap<String, String>,
}

/// What the server answers from.
pub trait Discovery: Clone + Send + Sync + 'static {
    /// Every registered instance.
    fn targets(&self) -> impl Future<Output = Result<Vec<Target>, ApiError>> + Send;
}

pub(crate) fn routes<S: Discovery>() -> Router<S> {
    Router::new().route("/sd/prometheus", get(targets::<S>))
}

async fn targets<S: Discovery>(State(service): State<S>) -> Result<Json<Vec<Target>>, ApiError> {
    Ok(Json(service.targets().await?))
}
