//! What two services claim, and what two units say of one service.
//!
//! Not here: that whoever has it keeps it, which routers see to. Invariant: of those who claim the same the first by name
//! has it, everywhere and always, so that all routers agree without asking each other.

use super::{Catalog, ServiceView};
use model::{Instance, ServiceName, UnitName};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// A contradiction.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Conflict {
    /// A service claims what another one has.
    Claim {
        /// A host and path, or a TCP port.
        claim: String,
        /// Who has it.
        has: ServiceName,
        /// Who claims it besides, without effect.
        claims: ServiceName,
    },
    /// An instance's unit says something else of its service than was written before.
    Config {
        /// The service.
        service: ServiceName,
        /// The instance.
        instance: Instance,
        /// Its unit, if it is known.
        unit: Option<UnitName>,
        /// What is contradicted.
        what: String,
    },
}

impl Conflict {
    /// The service whose word has no effect.
    pub fn service(&self) -> &ServiceName {
        match self {
            Self::Claim { claims, .. } => claims,
            Self::Config { service, .. } => service,
        }
    }
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Claim { claim, has, claims } => {
                write!(f, "{claim} is that of service {has}, and service {claims} claims it, too")
            }
            Self::Config { service, instance, what, .. } => write!(f, "{service}/{instance}: {what}"),
        }
    }
}

impl Catalog {
    /// Everything that is claimed or said twice.
    pub fn conflicts(&self) -> BTreeSet<Conflict> {
        let mut conflicts = BTreeSet::new();
        let mut taken: BTreeMap<String, &ServiceName> = BTreeMap::new();
        for (name, view) in &self.services {
            for claim in claims(view) {
                match taken.get(&claim) {
                    Some(has) => {
                        let (has, claims) = ((*has).clone(), name.clone());
                        conflicts.insert(Conflict::Claim { claim, has, claims });
                    }
                    None => drop(taken.insert(claim, name)),
                }
            }
            for (instance, of) in &view.instances {
                let Some(meta) = &of.meta else { continue };
                if let Some(what) = &meta.conflict {
                    let (service, instance, what) = (name.clone(), instance.clone(), what.clone());
                    let unit = Some(meta.unit.clone());
                    conflicts.insert(Conflict::Config { service, instance, unit, what });
                }
            }
        }
        conflicts
    }
}

/// What a service's configuration claims for it alone.
fn claims(view: &ServiceView) -> BTreeSet<String> {
    let config = &view.config;
    let any = ["*".to_owned()];
    let hosts = if config.hosts.is_empty() && !config.paths.is_empty() { &any[..] } else { &config.hosts };
    let root = ["/".to_owned()];
    let paths = if config.paths.is_empty() { &root[..] } else { &config.paths };
    let pair = |host: &String, path: &String| format!("{}{path}", host.to_ascii_lowercase());
    let pairs = hosts.iter().flat_map(|host| paths.iter().map(move |path| pair(host, path)));
    pairs.chain(config.tcp_port.map(|port| format!("tcp port {port}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(keys: &[(&str, &str)]) -> Vec<String> {
        let catalog = Catalog::from_listing(keys.iter().map(|(key, value)| (*key, value.as_bytes())));
        catalog.conflicts().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_host_and_path_is_one_services() {
        let keys = [
            ("/services/a/config", r#"{"hosts":["app.example.com"],"paths":["/","/x"]}"#),
            ("/services/b/config", r#"{"hosts":["App.example.com","b.example.com"],"paths":["/x","/y"]}"#),
            ("/services/c/config", r#"{"hosts":["c.example.com"],"tcp-port":5000}"#),
            ("/services/d/config", r#"{"paths":["/x"],"tcp-port":5000}"#),
        ];
        assert_eq!(
            said(&keys),
            [
                "app.example.com/x is that of service a, and service b claims it, too",
                "tcp port 5000 is that of service c, and service d claims it, too",
            ]
        );
        assert!(said(&keys[2..3]).is_empty());
    }

    #[test]
    fn what_a_unit_says_without_effect_is_told() {
        let meta = r#"{"v":1,"addr":"10.1.5.2:80","machine":"0123456789abcdef0123456789abcdef","unit":"web@2.service",
                       "started":7,"health":"passing","conflict":"Host= differs"}"#;
        assert_eq!(said(&[("/services/web/meta/web@2", meta)]), ["web/web@2: Host= differs"]);
    }
}
