//! SkyDNS's schema: a name's labels in reverse order as a path, and what it stands for as JSON.

use crate::router::Catalog;
use std::collections::BTreeMap;

/// Everything that is written: the names below `svc.cluster.local`.
pub const SKYDNS: &str = "/skydns/local/cluster/svc/";
/// How long resolvers keep an answer, in seconds: about as long as a machine's lease.
const TTL: u32 = 5;

/// All keys with their values.
pub fn skydns(catalog: &Catalog) -> BTreeMap<String, String> {
    let mut keys = BTreeMap::new();
    for (service, endpoints) in catalog.routable() {
        for (instance, endpoint) in endpoints {
            let (host, port) = (endpoint.0.ip(), endpoint.0.port());
            let value = format!(r#"{{"host":"{host}","port":{port},"ttl":{TTL}}}"#);
            keys.insert(format!("{SKYDNS}{service}/{instance}"), value);
        }
    }
    keys
}
