//! nginx as an output of the router: a file is checked by nginx itself together with the rest of its configuration, nginx
//! is told to reload, and asked which file it works by.
//!
//! Not here: templates and putting files in place (the crate `render`), and when to do so (`core::router::Batch`).
//! Invariant: the file in place was accepted by `nginx -t`; one that nginx did not take over is taken back.

/// Checking a file together with the configuration it will be part of.
mod check;
/// Whether nginx works by the file.
mod verify;

use render::{Data, Engine, Error, Failure, File, Output, Owner, Rendered, Report, Template};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
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

/// This machine's nginx.
pub struct Nginx {
    ports: BTreeMap<model::ServiceName, u16>,
    engine: Engine<Reader>,
}

impl Nginx {
    /// Reads the template.
    pub fn new(config: NginxConfig) -> Result<Self, Error> {
        let template = match &config.template {
            Some(path) => Template::load(path)?,
            None => Template::builtin("nginx").expect("nginx's template is built in")?,
        };
        let values = BTreeMap::from([("listen".to_owned(), config.listen.into())]);
        let ports = config.ports.clone();
        let file = File::new(config.destination.clone(), Owner::default(), Reader { config });
        Ok(Self { ports, engine: Engine::new(template, file, values) })
    }

    /// Brings nginx in step with the services.
    pub async fn apply(&mut self, data: &Data) -> Result<Report, Error> {
        let mut data = data.clone();
        for service in &mut data.services {
            service.port = self.ports.get(&service.name).copied();
        }
        self.engine.apply(&data).await
    }

    /// The text for the services.
    pub fn render(&self, data: &Data) -> Result<String, Error> {
        self.engine.render(data)
    }
}

/// nginx, as the reader of its file.
struct Reader {
    config: NginxConfig,
}

impl Output for Reader {
    async fn check(&self, _: &Path, text: &str) -> Result<(), Error> {
        check::check(&self.config, text).await
    }

    async fn activate(&self, rendered: &Rendered) -> Result<(), Failure> {
        let log = verify::Log::here(&self.config);
        let master = self.reload()?;
        verify::verify(&self.config, rendered, master, log).await
    }
}

impl Reader {
    /// The signal that `nginx -s reload` sends, without starting an nginx to send it.
    fn reload(&self) -> Result<rustix::process::Pid, Failure> {
        let pid_file = &self.config.pid_file;
        let remedy = format!(
            "nginx does not run (no process in {}): start it with `systemctl enable --now nginx`",
            pid_file.display()
        );
        let pid = std::fs::read_to_string(pid_file).ok().and_then(|text| text.trim().parse().ok());
        let master = pid
            .and_then(rustix::process::Pid::from_raw)
            .ok_or_else(|| Failure::NotRunning(remedy.clone()))?;
        rustix::process::kill_process(master, rustix::process::Signal::HUP)
            .map_err(|_| Failure::NotRunning(remedy))?;
        Ok(master)
    }
}
