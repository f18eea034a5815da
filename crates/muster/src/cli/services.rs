//! Services, their instances and endpoints, as the hub has them; and an operator's word on an instance.
//!
//! Reads and writes the hub itself, like `muster kv`. Invariant: an instance that is out of service is listed with the
//! reason, and a value that nobody can read is listed too.

use super::{
    access::AccessArgs,
    output::{self, Format},
};
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use model::{Health, InstanceState, ServiceName, keys};
use muster_core::router::{Catalog, Conflict, InstanceView};
use registry::{Store, Write};
use serde_json::{Value, json};
use std::process::ExitCode;

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Services {
    #[command(flatten)]
    access: AccessArgs,
    #[command(flatten)]
    list: Listing,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Args)]
struct Listing {
    /// Only this service.
    service: Option<ServiceName>,
    /// How it is written.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
    /// Without the heading.
    #[arg(long)]
    no_legend: bool,
}

#[derive(Subcommand)]
enum Verb {
    /// Take an instance out of service, until `undrain`: routers send nothing new there, and finish what is under way.
    ///
    /// Example: muster services drain someapp/someapp@1
    Drain {
        /// SERVICE/INSTANCE.
        instance: String,
    },
    /// Put an instance into service again.
    ///
    /// Example: muster services undrain someapp/someapp@1
    Undrain {
        /// SERVICE/INSTANCE.
        instance: String,
    },
}

#[derive(Args)]
pub struct Endpoints {
    #[command(flatten)]
    access: AccessArgs,
    #[command(flatten)]
    list: Listing,
}

impl Listing {
    fn heading<'a>(&self, words: &'a [&'a str]) -> Option<&'a [&'a str]> {
        (!self.no_legend).then_some(words)
    }
}

async fn catalog(store: &Store) -> Result<Catalog> {
    let listing = store.list(keys::SERVICES).await.context("cannot list the services")?;
    Ok(Catalog::from_listing(listing.items.iter().map(|kv| (kv.key.as_str(), &*kv.value))))
}

fn chosen<'a>(
    catalog: &'a Catalog,
    list: &'a Listing,
) -> Result<impl Iterator<Item = (&'a ServiceName, &'a String, &'a InstanceView)>> {
    if let Some(service) = &list.service
        && !catalog.services.contains_key(service)
    {
        bail!("there is no service {service}: `muster services` lists those there are");
    }
    let wanted = |name: &&ServiceName| list.service.as_ref().is_none_or(|service| service == *name);
    let services = catalog.services.iter().filter(move |(name, _)| wanted(name));
    Ok(services
        .flat_map(|(name, view)| view.instances.iter().map(move |(instance, view)| (name, instance, view))))
}

/// In a word; one that somebody else registered passes as long as it is there.
fn health(view: &InstanceView) -> &'static str {
    match view.meta.as_ref().map(|meta| meta.health) {
        Some(Health::Starting) => "starting",
        Some(Health::Critical) => "critical",
        Some(Health::Warning) => "warning",
        Some(Health::Passing) => "passing",
        None if view.endpoint.is_some() => "registered",
        None => "gone",
    }
}

fn address(view: &InstanceView) -> String {
    let known = view.endpoint.map(|endpoint| endpoint.to_string());
    known.or_else(|| view.meta.as_ref().map(|meta| meta.addr.clone())).unwrap_or_else(|| "-".to_owned())
}

impl Services {
    pub async fn run(self) -> Result<ExitCode> {
        let store = Store::connect(self.access.access()?).await?;
        match &self.verb {
            None => self.list(&catalog(&store).await?),
            Some(Verb::Drain { instance }) => drain(&store, instance).await,
            Some(Verb::Undrain { instance }) => undrain(&store, instance).await,
        }
    }

    fn list(&self, catalog: &Catalog) -> Result<ExitCode> {
        let rows: Vec<_> = chosen(catalog, &self.list)?.collect();
        let quarantined = || {
            catalog.quarantined.iter().filter(|(key, _)| {
                let service = keys::service(key).map(|(service, _)| service);
                self.list.service.is_none() || self.list.service == service
            })
        };
        let contradictions = catalog.conflicts();
        let wanted = |conflict: &&Conflict| {
            self.list.service.as_ref().is_none_or(|service| service == conflict.service())
        };
        let conflicts = || contradictions.iter().filter(wanted);
        if self.list.output == Format::Json {
            let instances: Vec<Value> = rows
                .iter()
                .map(|(service, instance, view)| {
                    json!({
                        "service": service,
                        "instance": instance,
                        "address": view.endpoint.map(|endpoint| endpoint.to_string()),
                        "machine": view.meta.as_ref().map(|meta| &meta.machine),
                        "health": health(view),
                        "state": view.state,
                        "in_service": view.routable().is_some(),
                        "meta": view.meta,
                    })
                })
                .collect();
            let configs: serde_json::Map<String, Value> = catalog
                .services
                .iter()
                .filter(|(name, _)| self.list.service.as_ref().is_none_or(|service| service == *name))
                .map(|(name, view)| (name.to_string(), json!(view.config)))
                .collect();
            let conflicts: Vec<_> = conflicts()
                .map(|conflict| json!({ "service": conflict.service(), "conflict": conflict.to_string() }))
                .collect();
            let quarantined: Vec<_> =
                quarantined().map(|(key, reason)| json!({ "key": key, "reason": reason })).collect();
            output::json(
                &json!({ "instances": instances, "configs": configs, "conflicts": conflicts, "quarantined": quarantined }),
            )?;
            return Ok(ExitCode::SUCCESS);
        }
        let heading = ["SERVICE", "INSTANCE", "ADDRESS", "MACHINE", "HEALTH", "STATE", "REASON"];
        let row = |(service, instance, view): &(&ServiceName, &String, &InstanceView)| {
            let meta = view.meta.as_ref();
            let machine = meta.map(|meta| match meta.machine_name.as_str() {
                "" => meta.machine.short().to_owned(),
                name => name.to_owned(),
            });
            let dash = || "-".to_owned();
            vec![
                service.to_string(),
                (*instance).clone(),
                address(view),
                machine.unwrap_or_else(dash),
                health(view).to_owned(),
                view.state.map_or_else(dash, |state| state.as_str().to_owned()),
                meta.and_then(|meta| meta.reason.clone()).unwrap_or_else(dash),
            ]
        };
        output::table(self.list.heading(&heading), rows.iter().map(row))?;
        for conflict in conflicts() {
            eprintln!("conflict: {conflict}");
        }
        for (key, reason) in quarantined() {
            eprintln!("passed over: {key}: {reason}");
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Endpoints {
    pub async fn run(self) -> Result<ExitCode> {
        let store = Store::connect(self.access.access()?).await?;
        let catalog = catalog(&store).await?;
        let routable: Vec<_> = chosen(&catalog, &self.list)?
            .filter_map(|(service, instance, view)| Some((service, instance, view.routable()?)))
            .collect();
        if self.list.output == Format::Json {
            let endpoint = |(service, instance, endpoint): &(&ServiceName, &String, model::Endpoint)| json!({ "service": service, "instance": instance, "address": endpoint.to_string() });
            output::json(&routable.iter().map(endpoint).collect::<Vec<_>>())?;
            return Ok(ExitCode::SUCCESS);
        }
        let row = |(service, instance, endpoint): (&ServiceName, &String, model::Endpoint)| {
            vec![service.to_string(), instance.clone(), endpoint.to_string()]
        };
        let heading = ["SERVICE", "INSTANCE", "ADDRESS"];
        output::table(self.list.heading(&heading), routable.into_iter().map(row))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The instance, if it is known.
async fn known(store: &Store, named: &str) -> Result<(ServiceName, String, InstanceView)> {
    let (service, instance) = named
        .split_once('/')
        .with_context(|| format!("`{named}` is no SERVICE/INSTANCE, such as someapp/someapp@1"))?;
    let service: ServiceName = service.parse()?;
    let catalog = catalog(store).await?;
    let view = catalog.services.get(&service).and_then(|view| view.instances.get(instance));
    let view =
        view.with_context(|| format!("service {service} has no instance {instance}: see `muster services`"))?;
    Ok((service, instance.to_owned(), view.clone()))
}

async fn drain(store: &Store, named: &str) -> Result<ExitCode> {
    let (service, instance, view) = known(store, named).await?;
    match view.state {
        Some(InstanceState::Maintenance) => output::line(format!("{named} is out of service already"))?,
        Some(InstanceState::Drain) => bail!("{named} drains because its unit stops"),
        None => {
            store
                .put(&keys::instance_state(&service, &instance), InstanceState::Maintenance.as_str(), None)
                .await?;
            output::line(format!("{named} is out of service"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn undrain(store: &Store, named: &str) -> Result<ExitCode> {
    let (service, instance, view) = known(store, named).await?;
    match view.state {
        None => output::line(format!("{named} is in service already"))?,
        Some(InstanceState::Drain) => bail!("{named} drains because its unit stops"),
        Some(InstanceState::Maintenance) => {
            store.commit(&[], &[Write::Delete(keys::instance_state(&service, &instance))]).await?;
            output::line(format!("{named} is in service again"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
