//! The catalog in the formats of other programs: Prometheus's targets here, SkyDNS's and Traefik's keys beside.
//!
//! Invariant: what a projection gives follows from its arguments alone, and nothing in it is longer or wilder than the
//! characters of host names, addresses and units allow.

/// The keys of SkyDNS, which CoreDNS's plugin `etcd` serves.
mod skydns;
/// The keys of Traefik's KV provider.
mod traefik;

pub use skydns::{SKYDNS, skydns};
pub use traefik::Traefik;

use super::Catalog;
use model::{Endpoint, ServiceMeta};
use serde::Serialize;
use std::collections::BTreeMap;

/// Where an instance's metrics are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Metrics {
    /// `<address>:<port>`.
    pub target: String,
    /// The path.
    pub path: String,
}

/// An entry of Prometheus's `http_sd` and `file_sd`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Target {
    /// `<address>:<port>`; one.
    pub targets: Vec<String>,
    /// Its labels.
    pub labels: BTreeMap<&'static str, String>,
}

impl Metrics {
    /// Of an instance at `endpoint`: its record may name a path (`/metrics`), and before it a port (`:9100/metrics`).
    pub fn of(endpoint: Endpoint, meta: Option<&ServiceMeta>) -> Self {
        let said = meta.and_then(|meta| meta.metrics.as_deref()).unwrap_or("");
        let (port, path) = match said.strip_prefix(':') {
            Some(rest) => {
                let (port, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
                (port.parse().unwrap_or_else(|_| endpoint.0.port()), path)
            }
            None => (endpoint.0.port(), said),
        };
        let path = if path.starts_with('/') { path } else { "/metrics" };
        Self { target: format!("{}:{port}", endpoint.0.ip()), path: path.to_owned() }
    }

    /// As Prometheus reads it.
    pub fn target(&self, service: &str, instance: &str, machine: &str, unit: &str) -> Target {
        let labels = [
            ("__meta_muster_service", service),
            ("instance", instance),
            ("machine", machine),
            ("unit", unit),
            ("__metrics_path__", &self.path),
        ];
        let labels = labels.into_iter().filter(|(_, value)| !value.is_empty());
        Target {
            targets: vec![self.target.clone()],
            labels: labels.map(|(name, value)| (name, value.to_owned())).collect(),
        }
    }
}

/// Every instance that is known, those that drain included: what goes wrong while it drains is to be seen as well.
pub fn prometheus(catalog: &Catalog) -> Vec<Target> {
    let mut targets = Vec::new();
    for (service, view) in &catalog.services {
        for (instance, view) in &view.instances {
            let Some(endpoint) = view.endpoint else { continue };
            let meta = view.meta.as_ref();
            let machine = meta.map_or("", |meta| &meta.machine_name);
            let unit = meta.map(|meta| meta.unit.to_string()).unwrap_or_default();
            targets.push(Metrics::of(endpoint, meta).target(service.as_str(), instance, machine, &unit));
        }
    }
    targets
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn catalog() -> Catalog {
        let machine = "0123456789abcdef0123456789abcdef";
        let meta = format!(
            r#"{{"v":1,"addr":"10.1.5.2:3000","machine":"{machine}","machine_name":"m2","unit":"someapp@1.service","started":0,"metrics":":9100/stats"}}"#
        );
        Catalog::from_listing([
            ("/services/someapp/upstream/someapp@1", &b"10.1.5.2:3000"[..]),
            ("/services/someapp/meta/someapp@1", meta.as_bytes()),
            ("/services/someapp/upstream/someapp@2", b"10.1.6.2:3000"),
            ("/services/someapp/config", br#"{"hosts":["app.example.com","evil`)"],"paths":["/api"]}"#),
            ("/services/web/upstream/web", b"10.1.7.2:80"),
        ])
    }

    #[test]
    fn prometheus_finds_every_instance() {
        let said = serde_json::to_value(prometheus(&catalog())).expect("renders");
        let expected = serde_json::json!([
            {"targets": ["10.1.5.2:9100"], "labels": {"__meta_muster_service": "someapp", "instance": "someapp@1",
             "machine": "m2", "unit": "someapp@1.service", "__metrics_path__": "/stats"}},
            {"targets": ["10.1.6.2:3000"], "labels": {"__meta_muster_service": "someapp", "instance": "someapp@2",
             "__metrics_path__": "/metrics"}},
            {"targets": ["10.1.7.2:80"], "labels": {"__meta_muster_service": "web", "instance": "web",
             "__metrics_path__": "/metrics"}},
        ]);
        assert_eq!(said, expected);
        assert_eq!(serde_json::to_string(&prometheus(&Catalog::default())).expect("renders"), "[]");
    }

    #[test]
    fn skydns_has_a_key_for_each_endpoint() {
        let keys = skydns(&catalog());
        let keys: Vec<String> = keys.iter().map(|(key, value)| format!("{key} {value}")).collect();
        assert_eq!(
            keys,
            [
                r#"/skydns/local/cluster/svc/someapp/someapp@1 {"host":"10.1.5.2","port":3000,"ttl":5}"#,
                r#"/skydns/local/cluster/svc/someapp/someapp@2 {"host":"10.1.6.2","port":3000,"ttl":5}"#,
                r#"/skydns/local/cluster/svc/web/web {"host":"10.1.7.2","port":80,"ttl":5}"#,
            ]
        );
    }

    #[test]
    fn traefik_has_a_router_and_servers_for_each_service() {
        let traefik = Traefik::new("traefik");
        let keys = traefik.keys(&catalog(), &BTreeMap::new());
        let keys: Vec<String> = keys.iter().map(|(key, value)| format!("{key} {value}")).collect();
        assert_eq!(
            keys,
            [
                "traefik/http/routers/muster-placeholder/rule Host(`placeholder.muster.invalid`)",
                "traefik/http/routers/muster-placeholder/service noop@internal",
                "traefik/http/routers/muster-someapp/rule (Host(`someapp`) || Host(`app.example.com`)) && (PathPrefix(`/api`))",
                "traefik/http/routers/muster-someapp/service muster-someapp",
                "traefik/http/routers/muster-web/rule (Host(`web`))",
                "traefik/http/routers/muster-web/service muster-web",
                "traefik/http/services/muster-someapp/loadbalancer/servers/0/url http://10.1.5.2:3000",
                "traefik/http/services/muster-someapp/loadbalancer/servers/1/url http://10.1.6.2:3000",
                "traefik/http/services/muster-web/loadbalancer/servers/0/url http://10.1.7.2:80",
            ]
        );
    }

    #[test]
    fn traefiks_servers_keep_their_slots() {
        let traefik = Traefik::new("traefik");
        let mut catalog = catalog();
        let before = traefik.keys(&catalog, &BTreeMap::new());
        catalog.delete("/services/someapp/upstream/someapp@1");
        catalog.delete("/services/someapp/meta/someapp@1");
        catalog.put("/services/someapp/upstream/someapp@0", b"10.1.9.2:3000");
        catalog.delete("/services/web/upstream/web");
        let after = traefik.keys(&catalog, &before);
        let server =
            |n: u32| &after[&format!("traefik/http/services/muster-someapp/loadbalancer/servers/{n}/url")];
        assert_eq!(
            (server(0).as_str(), server(1).as_str()),
            ("http://10.1.9.2:3000", "http://10.1.6.2:3000")
        );
        assert!(!after.keys().any(|key| key.contains("muster-web")), "{after:?}");
        assert!(traefik.is_ours("traefik/http/routers/muster-web/rule"));
        assert!(
            !traefik.is_ours("traefik/http/routers/mine/rule")
                && !traefik.is_ours("traefik/http/middlewares/muster-x/y")
        );
        // The last one moves into a gap.
        catalog.delete("/services/someapp/upstream/someapp@0");
        let last = traefik.keys(&catalog, &after);
        let servers: Vec<_> = last.iter().filter(|(key, _)| key.contains("/servers/")).collect();
        assert_eq!(servers.len(), 1);
        assert!(
            servers[0].0.ends_with("/servers/0/url") && servers[0].1 == "http://10.1.6.2:3000",
            "{servers:?}"
        );
        assert_eq!(Traefik::group("traefik/http/services/muster-a/loadbalancer/servers/0/url"), "muster-a");
    }
}
