//! `muster render`: files made of templates and the hub's keys, with confd's resource files, as a command of its own.
//!
//! Invariant: with `--dry-run` nothing is written and nobody is told.

use super::access::AccessArgs;
use super::output::{self, Format};
use crate::agent::{
    Signals,
    files::{self, Kept},
    steady::Follower,
};
use anyhow::{Context, Result, bail};
use clap::Args;
use muster_core::router::{Catalog, Pace};
use registry::Store;
use render::{Applied, Data, Resource};
use serde::Serialize;
use similar::TextDiff;
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};
use tokio::task::JoinSet;
use tracing::error;

#[derive(Args)]
pub struct Render {
    #[command(flatten)]
    access: AccessArgs,
    /// Resource files; by default all of the directory.
    resources: Vec<PathBuf>,
    /// Where resource files are (*.toml, and conf.d/*.toml), and templates in the directory `templates` there or beside.
    #[arg(long, env = "MUSTER_RENDER_DIR", default_value = "/etc/muster/render.d")]
    config_dir: PathBuf,
    /// Once, and not for ever; the exit code is 1 if a file could not be brought up to date.
    #[arg(long, alias = "onetime")]
    once: bool,
    /// For ever, at every change; what is done without --once.
    #[arg(long, conflicts_with = "once")]
    watch: bool,
    /// Look at every file again after this time as well, whatever the hub says.
    #[arg(long, value_parser = humantime::parse_duration)]
    interval: Option<Duration>,
    /// Show what would change, write nothing and run nothing.
    #[arg(long, alias = "noop")]
    dry_run: bool,
    /// How long nothing must change before files are written.
    #[arg(long, value_parser = humantime::parse_duration)]
    wait_min: Option<Duration>,
    /// The longest that this is waited for.
    #[arg(long, value_parser = humantime::parse_duration, default_value = "1s")]
    wait_max: Duration,
    /// The least time between two reloads of one file's reader; a quarter of it when an endpoint goes away.
    #[arg(long, value_parser = humantime::parse_duration, default_value = "2s")]
    min_interval: Duration,
    /// How long instances are served on when most of a service vanishes at once.
    #[arg(long, value_parser = humantime::parse_duration, default_value = "30s")]
    panic_hold: Duration,
    /// With --once or --dry-run: how the summary is written.
    #[arg(long, short, default_value = "table")]
    output: Format,
}

/// What became of a file.
#[derive(Debug, Serialize)]
struct Summary {
    resource: String,
    file: PathBuf,
    /// `unchanged`, `changed`, `would-change` or `failed`.
    result: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    diff: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    quarantined: Vec<String>,
}

impl Render {
    pub async fn run(self) -> Result<ExitCode> {
        let (kept, broken) = self.resources()?;
        let store = Store::connect(self.access.access()?).await?;
        if !self.follows() {
            return self.one_time(kept, broken, &store).await;
        }
        for summary in &broken {
            error!(
                resource = summary.resource,
                error = summary.error,
                "its file stays as it is, the others go on"
            );
        }
        if kept.is_empty() {
            bail!("no resource can be rendered");
        }
        self.follow(kept, store).await
    }

    /// The resources, and those with which something is wrong.
    fn resources(&self) -> Result<(Vec<Kept>, Vec<Summary>)> {
        let directory = &self.config_dir;
        let found = if self.resources.is_empty() {
            Resource::read_all(directory)?
        } else {
            self.resources.iter().map(|path| (path.clone(), Resource::read(path))).collect()
        };
        if found.is_empty() {
            bail!(
                "{} has no resource files: put one there, e.g. nginx.toml with\n[template]\nsrc = \"builtin:nginx\"\ndest = \
                 \"/etc/nginx/conf.d/muster.conf\"\nreload_cmd = \"systemctl reload nginx\"",
                directory.display()
            );
        }
        let (mut kept, mut broken): (Vec<Kept>, Vec<Summary>) = (Vec::new(), Vec::new());
        for (path, resource) in found {
            let name = path.display().to_string();
            let read = resource.and_then(|resource| {
                let engine = resource.engine(&name, &templates(directory, &path))?;
                Ok((resource, engine))
            });
            let (resource, engine) = match read {
                Ok(read) => read,
                Err(error) => {
                    let error = format!("{:#}", anyhow::Error::new(error));
                    broken
                        .push(Summary { error: Some(error), ..Summary::new(name, PathBuf::new(), "failed") });
                    continue;
                }
            };
            if let Some(other) = kept.iter().find(|other| other.resource.dest == resource.dest) {
                bail!("{name} and {} both write {}", other.name, resource.dest.display());
            }
            kept.push(Kept { name, resource, engine });
        }
        Ok((kept, broken))
    }

    async fn one_time(&self, kept: Vec<Kept>, broken: Vec<Summary>, store: &Store) -> Result<ExitCode> {
        let listing = store.list(model::keys::SERVICES).await.context("the hub's services cannot be read")?;
        let catalog = Catalog::from_listing(listing.items.iter().map(|kv| (kv.key.as_str(), &*kv.value)));
        for (key, reason) in &catalog.quarantined {
            eprintln!("{key} is passed over: {reason}");
        }
        let mut summaries = broken;
        for mut kept in kept {
            let keys =
                files::keys_now(store, &kept.resource).await.context("the hub's keys cannot be read")?;
            let summary = if self.dry_run {
                would(&mut kept, &Data::new(&catalog, keys))
            } else {
                applied(&mut kept, &Data::new(&catalog, keys)).await
            };
            summaries.push(summary);
        }
        let failed = summaries.iter().filter(|summary| summary.result == "failed").count();
        match self.output {
            Format::Json => output::line(serde_json::to_string_pretty(&summaries)?)?,
            Format::Table => {
                for summary in &summaries {
                    if let Some(diff) = &summary.diff {
                        output::print(diff)?;
                    }
                    let error = summary.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
                    let named = !summary.file.as_os_str().is_empty();
                    let what: &Path = if named { &summary.file } else { Path::new(&summary.resource) };
                    eprintln!("{} {}{error}", what.display(), summary.result);
                    for service in &summary.quarantined {
                        eprintln!("  {service}");
                    }
                }
            }
        }
        // Some of several is a part.
        Ok(match failed {
            0 => ExitCode::SUCCESS,
            some if some < summaries.len() => ExitCode::from(3),
            _ => ExitCode::FAILURE,
        })
    }

    async fn follow(&self, kept: Vec<Kept>, store: Store) -> Result<ExitCode> {
        let usual = Pace::default();
        let pace = Pace {
            settle: self.wait_min.unwrap_or(usual.settle),
            quiet: self.wait_min.unwrap_or(usual.quiet),
            longest: self.wait_max,
            interval: self.min_interval,
            removal_interval: self.min_interval / 4,
            ahead: self.min_interval * 3,
        };
        let (follower, services) = Follower::new(store.clone(), self.panic_hold);
        let mut tasks = JoinSet::new();
        tasks.spawn(follower.run());
        for kept in kept {
            tasks.spawn(files::keep(kept, store.clone(), services.clone(), pace, self.interval));
        }
        let mut signals = Signals::new()?;
        tokio::select! {
            () = signals.end() => Ok(ExitCode::SUCCESS),
            Some(ended) = tasks.join_next() => {
                ended.context("a part of it ended unexpectedly")??;
                bail!("a part of it ended unexpectedly")
            }
        }
    }

    /// Whether it runs on, and logs.
    pub fn follows(&self) -> bool {
        !self.once && !self.dry_run
    }
}

/// Where the templates of a resource file may be: as in confd's directory, beside it, or with it.
fn templates(directory: &Path, resource: &Path) -> Vec<PathBuf> {
    let own = resource.parent().unwrap_or(directory);
    let mut places = Vec::new();
    for place in [own, directory] {
        places.push(place.join("templates"));
        places.extend(place.parent().map(|parent| parent.join("templates")));
        places.push(place.to_owned());
    }
    places
}

impl Summary {
    fn new(resource: String, file: PathBuf, result: &'static str) -> Self {
        Self { resource, file, result, error: None, diff: None, quarantined: Vec::new() }
    }
}

fn summary(kept: &Kept, result: &'static str) -> Summary {
    Summary::new(kept.name.clone(), kept.resource.dest.clone(), result)
}

fn would(kept: &mut Kept, data: &Data) -> Summary {
    match kept.engine.render(data) {
        Err(error) => {
            Summary { error: Some(format!("{:#}", anyhow::Error::new(error))), ..summary(kept, "failed") }
        }
        Ok(text) => {
            let before = kept.engine.file().current().unwrap_or_default();
            if before == text {
                return summary(kept, "unchanged");
            }
            let name = kept.resource.dest.display().to_string();
            let diff = TextDiff::from_lines(&before, &text);
            let diff = diff.unified_diff().header(&name, &format!("{name} (new)")).to_string();
            Summary { diff: Some(diff), ..summary(kept, "would-change") }
        }
    }
}

async fn applied(kept: &mut Kept, data: &Data) -> Summary {
    match kept.engine.apply(data).await {
        Err(error) => {
            Summary { error: Some(format!("{:#}", anyhow::Error::new(error))), ..summary(kept, "failed") }
        }
        Ok(report) => {
            let result = if report.applied == Applied::Changed { "changed" } else { "unchanged" };
            let quarantined = report.quarantined.iter().map(|(name, why)| format!("{name}: {why}")).collect();
            Summary { quarantined, ..summary(kept, result) }
        }
    }
}
