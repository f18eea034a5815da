//! nginx as an output of the router: a template is rendered with the endpoints, checked by nginx itself
//! together with the rest of its configuration, put in place, and nginx is told to reload.
//!
//! Not here: when to do so (`core::router::Batch`). Invariant: the file in place was accepted by `nginx -t`; one
//! that was not never gets there, and nginx goes on with the last good one.

/// Checking a file together with the configuration it will be part of.
mod check;
/// Endpoints into text.
mod render;

pub use render::{Service, ServiceEndpoint};

use serde::Deserialize;
use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::{Path, PathBuf},
};

/// `[router.nginx]` in the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct NginxConfig {
    /// Whether this machine's nginx is looked after.
    pub enabled: bool,
    /// The TCP port on which services are reached by their name as virtual host.
    pub listen: u16,
    /// Services that are reached on a port of their own as well: `ports = { someapp = 8080 }`.
    pub ports: BTreeMap<model::ServiceName, u16>,
    /// A template of your own, in Jinja's language, instead of the built-in one.
    pub template: Option<PathBuf>,
    /// The file to write. Its directory must be included by `main`.
    pub destination: PathBuf,
    /// nginx's main configuration file.
    pub main: PathBuf,
    /// Where nginx notes the pid of its master process.
    pub pid_file: PathBuf,
    /// The nginx program.
    pub program: PathBuf,
}

impl Default for NginxConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            listen: 80,
            ports: BTreeMap::new(),
            template: None,
            destination: "/etc/nginx/conf.d/muster.conf".into(),
            main: "/etc/nginx/nginx.conf".into(),
            pid_file: "/run/nginx.pid".into(),
            program: "/usr/sbin/nginx".into(),
        }
    }
}

/// Why nginx does not show the newest endpoints. It goes on with the last good ones.
#[derive(Debug, thiserror::Error)]
pub enum NginxError {
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
    /// The destination is in a directory that nginx does not read.
    #[error(
        "{main} includes nothing from {directory}: add `include {directory}/*.conf;` to its http section"
    )]
    NotIncluded {
        /// nginx's main configuration file.
        main: PathBuf,
        /// The destination's directory.
        directory: PathBuf,
    },
    /// nginx refused the new file.
    #[error("nginx refused the new configuration and keeps the old one: {0}")]
    Refused(String),
    /// nginx cannot be told.
    #[error("nginx does not run (no process in {pid_file}): start it with `systemctl enable --now nginx`")]
    NotRunning {
        /// Where its pid was looked for.
        pid_file: PathBuf,
    },
}

/// What applying did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// nginx shows this already.
    Unchanged,
    /// nginx was told to reload.
    Reloaded,
}

/// This machine's nginx.
pub struct Nginx {
    config: NginxConfig,
    template: render::Template,
    /// What nginx was last told to load; what is on disk does not count, for a reload may have failed.
    applied: Option<String>,
}

impl Nginx {
    /// Reads the template.
    pub fn new(config: NginxConfig) -> Result<Self, NginxError> {
        let template = render::Template::load(config.template.as_deref())?;
        Ok(Self { config, template, applied: None })
    }

    /// The file for `services`.
    pub fn render(&self, services: &[Service]) -> Result<String, NginxError> {
        self.template.render(&self.config, services)
    }

    /// Checks `text`, puts it in place and reloads nginx, unless that was done before.
    pub async fn apply(&mut self, text: &str) -> Result<Applied, NginxError> {
        if self.applied.as_deref() == Some(text) {
            return Ok(Applied::Unchanged);
        }
        check::check(&self.config, text).await?;
        replace(&self.config.destination, text.as_bytes())?;
        self.reload()?;
        self.applied = Some(text.to_owned());
        Ok(Applied::Reloaded)
    }

    /// The signal that `nginx -s reload` sends, without starting an nginx to send it.
    fn reload(&self) -> Result<(), NginxError> {
        let not_running = || NginxError::NotRunning { pid_file: self.config.pid_file.clone() };
        let text = std::fs::read_to_string(&self.config.pid_file).map_err(|_| not_running())?;
        let pid =
            text.trim().parse().ok().and_then(rustix::process::Pid::from_raw).ok_or_else(not_running)?;
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).map_err(|_| not_running())
    }
}

/// Replaces a file as a whole: readers see the old or the new text, also after a power cut.
fn replace(path: &Path, contents: &[u8]) -> Result<(), NginxError> {
    let wrong = |source| NginxError::File { path: path.to_owned(), source };
    let staged = path.with_extension("new");
    let mut file = std::fs::File::create(&staged).map_err(wrong)?;
    file.write_all(contents).and_then(|()| file.sync_all()).map_err(wrong)?;
    std::fs::rename(&staged, path).map_err(wrong)
}
