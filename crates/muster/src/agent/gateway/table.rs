//! From the catalog to the gateway's table. Pure.

use gateway::{Balance, Endpoint, HostPattern, Policy, Route, Service, Table};
use model::{Health, ServiceConfig, ServiceName};
use muster_core::router::{Catalog, InstanceView, ServiceView};
use std::collections::BTreeMap;

/// What the gateway is to serve, with what of the services' configuration it cannot.
pub(super) fn table(catalog: &Catalog) -> Table {
    let mut table = Table::default();
    let mut problems = BTreeMap::<ServiceName, String>::new();
    for (name, view) in &catalog.services {
        let service = Service { endpoints: endpoints(view), policy: Policy::default() };
        let service = match policy(&view.config, view) {
            Ok(policy) => Service { policy, ..service },
            Err(problem) => {
                problems.insert(name.clone(), problem);
                service
            }
        };
        match routes(name, &view.config) {
            Ok(routes) => {
                for route in routes {
                    let same = |other: &&Route| other.host == route.host && other.prefix == route.prefix;
                    match table.routes.iter().find(same).map(|other| other.service.clone()) {
                        None => table.routes.push(route),
                        Some(other) if other == *name => {}
                        Some(other) => {
                            let host = view.config.hosts.join(", ");
                            let host = if host.is_empty() { "*".to_owned() } else { host };
                            let problem = format!(
                                "{host} {} is that of service {other} already: choose another host or path",
                                route.prefix
                            );
                            problems.insert(name.clone(), problem);
                        }
                    }
                }
            }
            Err(problem) => drop(problems.insert(name.clone(), problem)),
        }
        if let Some(port) = view.config.tcp_port {
            match table.tcp.get(&port) {
                None => drop(table.tcp.insert(port, name.clone())),
                Some(other) => {
                    let problem =
                        format!("tcp-port {port} is that of service {other} already: choose another");
                    problems.insert(name.clone(), problem);
                }
            }
        }
        table.services.insert(name.clone(), service);
    }
    table.problems = problems;
    table
}

fn endpoints(view: &ServiceView) -> Vec<Endpoint> {
    let endpoint = |(instance, view): (&String, &InstanceView)| {
        let address = view.endpoint?.0.into();
        let meta = view.meta.as_ref();
        if meta.is_some_and(|meta| meta.health == Health::Critical) {
            return None;
        }
        Some(Endpoint {
            instance: instance.clone(),
            address,
            weight: meta.map_or(100, |meta| meta.weight),
            generation: meta.map_or(0, |meta| meta.generation),
            draining: view.state.is_some(),
            protocol: meta.map_or_else(Default::default, |meta| meta.proto),
        })
    };
    view.instances.iter().filter_map(endpoint).collect()
}

fn policy(config: &ServiceConfig, view: &ServiceView) -> Result<Policy, String> {
    let defaults = Policy::default();
    let balance = match &config.balance {
        Some(text) => text.parse::<Balance>().map_err(|error| error.to_string())?,
        None => Balance::default(),
    };
    let sticky = match config.sticky.as_deref() {
        None => false,
        Some("cookie") => true,
        Some(other) => return Err(format!("sticky `{other}` is not known: `cookie` is")),
    };
    let slow_start = view.instances.values().filter_map(|instance| instance.meta.as_ref()?.slow_start).max();
    Ok(Policy {
        balance,
        sticky,
        timeout: config.timeout.unwrap_or(defaults.timeout),
        retries: config.retries.unwrap_or(defaults.retries),
        max_body: config.max_body,
        hold: config.hold.unwrap_or(defaults.hold),
        redirect: config.redirect,
        slow_start: slow_start.unwrap_or(defaults.slow_start),
        ..defaults
    })
}

fn routes(service: &ServiceName, config: &ServiceConfig) -> Result<Vec<Route>, String> {
    let hosts: Vec<HostPattern> = if config.hosts.is_empty() && !config.paths.is_empty() {
        vec![HostPattern::Any]
    } else {
        let hosts = config.hosts.iter().map(|host| host.parse().map_err(|error| format!("{error}")));
        hosts.collect::<Result<_, String>>()?
    };
    if let Some(bad) = config.paths.iter().find(|path| !path.starts_with('/')) {
        return Err(format!("path `{bad}` does not begin with `/`"));
    }
    let root = ["/".to_owned()];
    let paths = if config.paths.is_empty() { &root[..] } else { &config.paths[..] };
    let pairs = hosts.iter().flat_map(|host| paths.iter().map(move |path| (host, path)));
    let route = |(host, prefix): (&HostPattern, &String)| Route {
        host: host.clone(),
        prefix: prefix.clone(),
        service: service.clone(),
    };
    Ok(pairs.map(route).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalog(keys: &[(&str, &str)]) -> Catalog {
        Catalog::from_listing(keys.iter().map(|(key, value)| (*key, value.as_bytes())))
    }

    #[test]
    fn instances_and_their_service_become_a_row() {
        let catalog = catalog(&[
            ("/services/web/upstream/web@1", "10.1.5.2:3000"),
            ("/services/web/upstream/web@2", "10.1.6.2:3000"),
            ("/services/web/state/web@2", "drain"),
            ("/services/web/config", r#"{"hosts":["app.example.com"],"paths":["/a","/b"],"hold":"0s"}"#),
        ]);
        let table = table(&catalog);
        assert!(table.problems.is_empty());
        let web = &table.services[&"web".parse().expect("valid")];
        assert_eq!(web.endpoints.iter().map(|one| one.draining).collect::<Vec<_>>(), [false, true]);
        assert!(web.policy.hold.is_zero());
        assert_eq!(table.routes.len(), 2);
    }

    #[test]
    fn a_mistake_concerns_its_own_service_and_its_instances_are_served_all_the_same() {
        let catalog = catalog(&[
            ("/services/a/upstream/a", "10.1.5.2:3000"),
            ("/services/a/config", r#"{"balance":"magic","tcp-port":5000}"#),
            ("/services/b/upstream/b", "10.1.5.3:3000"),
            ("/services/b/config", r#"{"tcp-port":5000}"#),
        ]);
        let table = table(&catalog);
        let problems = &table.problems;
        assert_eq!(table.services.len(), 2);
        assert!(problems[&"a".parse().expect("valid")].contains("no way to balance"));
        assert!(problems[&"b".parse().expect("valid")].contains("that of service a"));
    }

    #[test]
    fn a_host_and_path_that_two_claim_is_the_firsts_and_the_other_is_told() {
        let catalog = catalog(&[
            ("/services/a/config", r#"{"hosts":["app.example.com"]}"#),
            ("/services/b/config", r#"{"hosts":["App.example.com"]}"#),
            ("/services/c/config", r#"{"hosts":["app.example.com"],"paths":["/c"]}"#),
        ]);
        let table = table(&catalog);
        let routes: Vec<_> =
            table.routes.iter().map(|route| (route.service.as_str(), route.prefix.as_str())).collect();
        assert_eq!(routes, [("a", "/"), ("c", "/c")]);
        assert_eq!(table.problems.len(), 1);
        assert!(table.problems[&"b".parse().expect("valid")].contains("that of service a already"));
    }
}
