//! From a request's host and path to its service.
//!
//! Invariant: the most specific host that has a fitting path decides, and in it the longest path.

use crate::table::{HostPattern, Table};
use std::collections::HashMap;

/// Services by prefix, the longest first.
type ByPrefix<S> = Vec<(Box<str>, S)>;

/// The routes of a table, in the order in which they are tried. `S` is what a service is for the caller.
#[derive(Debug)]
pub(crate) struct Routes<S> {
    exact: HashMap<Box<str>, ByPrefix<S>>,
    /// Longest first; each with its leading dot.
    suffixes: Vec<(Box<str>, ByPrefix<S>)>,
    any: ByPrefix<S>,
}

impl<S: Clone> Routes<S> {
    /// Compiles a table; `service` finds a service by its name. Routes to what is no service are left out.
    pub(crate) fn new(table: &Table, zone: &str, service: impl Fn(&model::ServiceName) -> Option<S>) -> Self {
        let mut routes = Self { exact: HashMap::new(), suffixes: Vec::new(), any: Vec::new() };
        for route in &table.routes {
            let Some(service) = service(&route.service) else { continue };
            routes.list(&route.host).push((prefix(&route.prefix), service));
        }
        // Own names come last, so that a route for the same host and path goes before them.
        for name in table.services.keys() {
            let Some(service) = service(name) else { continue };
            for host in [name.to_string(), format!("{name}.{zone}")] {
                let list = routes.list(&HostPattern::Exact(host));
                if list.iter().all(|(prefix, _)| !prefix.is_empty()) {
                    list.push(("".into(), service.clone()));
                }
            }
        }
        let lists = routes.exact.values_mut().chain(routes.suffixes.iter_mut().map(|(_, list)| list));
        for list in lists.chain([&mut routes.any]) {
            list.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        }
        routes.suffixes.sort_by_key(|(suffix, _)| std::cmp::Reverse(suffix.len()));
        routes
    }

    fn list(&mut self, host: &HostPattern) -> &mut ByPrefix<S> {
        match host {
            HostPattern::Any => &mut self.any,
            HostPattern::Exact(name) => self.exact.entry(name.to_ascii_lowercase().into()).or_default(),
            HostPattern::Suffix(name) => {
                let dotted = format!(".{}", name.to_ascii_lowercase());
                let at = match self.suffixes.iter().position(|(known, _)| **known == *dotted) {
                    Some(at) => at,
                    None => {
                        self.suffixes.push((dotted.into(), Vec::new()));
                        self.suffixes.len() - 1
                    }
                };
                &mut self.suffixes[at].1
            }
        }
    }

    /// The service for a host (without port) and a path.
    pub(crate) fn find(&self, host: &str, path: &str) -> Option<&S> {
        let lowered;
        let host = host.strip_suffix('.').unwrap_or(host);
        let host = if host.bytes().any(|b| b.is_ascii_uppercase()) {
            lowered = host.to_ascii_lowercase();
            &lowered
        } else {
            host
        };
        let fitting = |list: &ByPrefix<S>| list.iter().position(|(prefix, _)| covers(prefix, path));
        if let Some(list) = self.exact.get(host)
            && let Some(at) = fitting(list)
        {
            return Some(&list[at].1);
        }
        for (suffix, list) in &self.suffixes {
            if host.ends_with(&**suffix)
                && let Some(at) = fitting(list)
            {
                return Some(&list[at].1);
            }
        }
        fitting(&self.any).map(|at| &self.any[at].1)
    }
}

/// A prefix as it is compared: without a slash at its end.
fn prefix(text: &str) -> Box<str> {
    let text = text.trim_end_matches('/');
    if text.is_empty() || text.starts_with('/') { text.into() } else { format!("/{text}").into() }
}

fn covers(prefix: &str, path: &str) -> bool {
    path.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || prefix.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Route, Service};

    #[test]
    fn the_most_specific_host_and_the_longest_path_decide() {
        let mut table = Table::default();
        for name in ["web", "api", "wild", "rest"] {
            table.services.insert(name.parse().expect("a name"), Service::default());
        }
        let routes = [
            ("app.example.com", "/", "web"),
            ("app.example.com", "/api", "api"),
            ("*.example.com", "/", "wild"),
            ("*.deep.example.com", "/only", "api"),
            ("*", "/rest/", "rest"),
        ];
        table.routes = routes
            .map(|(host, prefix, service)| Route {
                host: host.parse().expect("a host"),
                prefix: prefix.to_owned(),
                service: service.parse().expect("a name"),
            })
            .into();
        let routes = Routes::new(&table, "svc.cluster.internal", |name| Some(name.to_string()));
        for (host, path, service) in [
            ("app.example.com", "/", Some("web")),
            ("APP.example.com.", "/apix", Some("web")),
            ("app.example.com", "/api", Some("api")),
            ("app.example.com", "/api/1", Some("api")),
            ("other.example.com", "/api", Some("wild")),
            ("a.deep.example.com", "/only", Some("api")),
            ("a.deep.example.com", "/", Some("wild")),
            ("example.com", "/", None),
            ("example.com", "/rest", Some("rest")),
            ("web", "/x", Some("web")),
            ("web.svc.cluster.internal", "/x", Some("web")),
            ("web.elsewhere", "/x", None),
            ("web", "*", Some("web")),
        ] {
            assert_eq!(routes.find(host, path).map(String::as_str), service, "{host} {path}");
        }
    }
}
