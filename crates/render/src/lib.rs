//! Files made of templates: rendered with the registered services and the hub's keys, checked before they are in place,
//! put there as a whole, and whoever reads them is told. nginx's file is one of them, `muster render` makes any.
//!
//! Not here: when to do so (`core::router::Batch`), and what is special about nginx (the crate `nginx`). Invariant: a
//! file in place has passed its check; one whose reader could not be brought to use it is taken back.

/// A template, its file, and what to do about a service that breaks it.
mod engine;
/// Putting a text in place.
mod file;
/// What templates may call, by confd's names.
mod functions;
/// Resource files, as confd has them.
mod resource;
/// Services as templates see them.
mod service;
/// Programs that check files and that are told about them.
mod shell;
/// Templates.
mod template;

pub use engine::{Engine, Report};
pub use file::{Applied, Failure, File, Owner};
pub use resource::{Resource, ResourceError};
pub use service::{Data, Service, ServiceEndpoint};
pub use shell::Commands;
pub use template::{BUILTIN, Rendered, Template};

use std::{collections::BTreeMap, future::Future, io, path::PathBuf, sync::Arc};

/// The hub's keys below a resource's prefix, without it.
pub type KeyTree = Arc<BTreeMap<String, String>>;

/// Whoever reads a file: how it is checked, and how its reader is brought to use it.
pub trait Output: Send + Sync {
    /// Says whether `text` would do, without anything being in place; `staged` is a file that has it.
    fn check(&self, staged: &std::path::Path, text: &str) -> impl Future<Output = Result<(), Error>> + Send;

    /// Brings the reader to use what is in place now, and makes sure that it does.
    fn activate(&self, rendered: &Rendered) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// Why a file does not show the newest state. It stays as it was.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The template cannot be rendered.
    #[error("template {name}{}: {reason}", line.map(|line| format!(":{line}")).unwrap_or_default())]
    Template {
        /// Which template.
        name: String,
        /// Where in it.
        line: Option<usize>,
        /// What is wrong.
        reason: String,
    },
    /// A file cannot be read or written.
    #[error("cannot use {path}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It cannot be checked where it is.
    #[error("{0}")]
    Misplaced(String),
    /// The check refused it.
    #[error("the new {path} was refused and the old one stays: {said}")]
    Refused {
        /// Which file.
        path: PathBuf,
        /// What the check said.
        said: String,
    },
    /// Whoever reads it does not run. The file is in place for when it does.
    #[error("{0}")]
    NotRunning(String),
    /// Whoever reads it could not be brought to use it.
    #[error("the new {path} was taken back: {said}{}", after.as_ref().map(|after| format!("; and then: {after}")).unwrap_or_default())]
    TakenBack {
        /// Which file.
        path: PathBuf,
        /// What went wrong.
        said: String,
        /// What went wrong when the former file was put back.
        after: Option<String>,
    },
}

impl Error {
    /// Whether other values might pass: what the template or the check says, and not the system.
    pub fn is_about_the_values(&self) -> bool {
        matches!(self, Self::Template { .. } | Self::Refused { .. })
    }
}
