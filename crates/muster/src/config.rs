//! `/etc/muster/muster.toml`: one struct a section, every field with a default, unknown fields refused.
//!
//! Where a value comes from: a variable `MUSTER_<SECTION>_<FIELD>` (e.g. `MUSTER_HUB_LISTEN`) beats the file,
//! the file beats the default. `muster config` shows the result and which one won.

/// The cluster networks.
pub(crate) mod overlay;

pub use overlay::OverlaySection;

use crate::agent::files::Kept;
use access::{Access, Login, Password};
use anyhow::{Context, Result, bail, ensure};
use dns::DnsConfig;
use gateway::GatewayConfig;
use nginx::NginxConfig;
use render::Resource;
use serde::{Deserialize, Deserializer};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

/// Where the configuration is, unless `--config` or `MUSTER_CONFIG` says otherwise.
pub const PATH: &str = "/etc/muster/muster.toml";
/// The API's socket for local root.
pub const SOCKET: &str = "/run/muster/muster.sock";
/// What outlives a reboot.
pub const STATE_DIR: &str = "/var/lib/muster";
/// What a reboot clears.
pub const RUN_DIR: &str = "/run/muster";

/// All of the configuration.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Config {
    /// This machine.
    pub machine: MachineSection,
    /// The hub: where it is, or that it is here.
    pub hub: HubSection,
    /// The API.
    pub api: ApiSection,
    /// The engine, which decides where units run.
    pub engine: EngineSection,
    /// The agent, which runs this machine's share.
    pub agent: AgentSection,
    /// The cluster network.
    pub overlay: OverlaySection,
    /// The registrar, which tells the hub of this machine's registered units.
    pub registrar: RegistrarSection,
    /// Outputs for registered services.
    pub router: RouterSection,
}

/// `[machine]`
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct MachineSection {
    /// Its name; the host name by default.
    pub name: Option<String>,
    /// Its address on the machines' network; by default that of the interface with the default route.
    pub address: Option<Ipv4Addr>,
    /// `key = "value"` pairs that `MachineMetadata=` selects by.
    pub metadata: BTreeMap<String, String>,
}

/// `[hub]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct HubSection {
    /// Where the hub is: the URL of another machine's embedded hub, or those of an etcd v3 cluster. When none is
    /// given, this machine embeds the hub.
    pub endpoints: Vec<String>,
    /// Where the embedded hub listens. Loopback unless you open it.
    pub listen: SocketAddr,
    /// Where the embedded hub keeps its data.
    pub data_dir: PathBuf,
    /// How many bytes keys, values and their history may take in the embedded hub, all of them in memory.
    pub quota_backend_bytes: u64,
    /// This machine's certificate, in PEM: what it shows to a hub that asks, and what the embedded hub shows. With it
    /// the embedded hub speaks TLS and nothing else.
    pub cert_file: Option<PathBuf>,
    /// The certificate's private key, in PEM.
    pub key_file: Option<PathBuf>,
    /// The authorities by whose word a hub's certificate is believed, in PEM; by default the system's.
    pub ca_file: Option<PathBuf>,
    /// The authorities of clients' certificates, in PEM. With it the embedded hub turns away whoever has no
    /// certificate of theirs.
    pub client_ca_file: Option<PathBuf>,
    /// As which user this machine speaks to a hub that has users.
    pub user: Option<String>,
    /// Where the user's password is: the file's first line.
    pub password_file: Option<PathBuf>,
    /// How long a login to the embedded hub stays valid that nobody uses.
    #[serde(deserialize_with = "duration")]
    pub auth_token_ttl: Duration,
}

impl Default for HubSection {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 2379),
            data_dir: Path::new(STATE_DIR).join("hub"),
            quota_backend_bytes: hub::Limits::default().quota,
            cert_file: None,
            key_file: None,
            ca_file: None,
            client_ca_file: None,
            user: None,
            password_file: None,
            auth_token_ttl: hub::AuthConfig::default().token_ttl,
        }
    }
}

impl HubSection {
    /// Whether this machine embeds the hub.
    pub fn embedded(&self) -> bool {
        self.endpoints.is_empty()
    }

    /// This machine's certificate and its key.
    pub fn identity(&self) -> Option<(PathBuf, PathBuf)> {
        self.cert_file.clone().zip(self.key_file.clone())
    }

    /// TLS of the embedded hub.
    pub fn tls(&self) -> Option<hub::TlsConfig> {
        let (cert, key) = self.identity()?;
        Some(hub::TlsConfig { cert, key, client_ca: self.client_ca_file.clone() })
    }

    /// What goes together and what does not.
    fn check(&self) -> Result<()> {
        ensure!(
            self.cert_file.is_some() == self.key_file.is_some(),
            "hub.cert-file and hub.key-file go together: set both or neither"
        );
        ensure!(
            self.user.is_some() == self.password_file.is_some(),
            "hub.user and hub.password-file go together: set both or neither (a user whose name is in the certificate \
             needs neither)"
        );
        ensure!(!self.auth_token_ttl.is_zero(), "hub.auth-token-ttl is zero: nobody could log in");
        if self.embedded() {
            ensure!(
                self.client_ca_file.is_none() || self.cert_file.is_some(),
                "hub.client-ca-file needs hub.cert-file and hub.key-file: without them the hub does not speak TLS"
            );
            return Ok(());
        }
        ensure!(
            self.client_ca_file.is_none(),
            "hub.client-ca-file is of the machine that embeds the hub, and hub.endpoints says that another does: remove one"
        );
        let plain = self.endpoints.iter().find(|endpoint| endpoint.starts_with("http://"));
        if let Some(plain) = plain {
            let secure = self.endpoints.iter().any(|endpoint| endpoint.starts_with("https://"));
            ensure!(
                !secure && self.cert_file.is_none() && self.ca_file.is_none(),
                "hub.endpoints has {plain}, which no certificate protects: say https:// there, or remove hub.ca-file, \
                 hub.cert-file and hub.key-file"
            );
        }
        Ok(())
    }
}

/// An address as a URL.
pub fn with_scheme(endpoint: &str, secure: bool) -> String {
    match (endpoint.contains("://"), secure) {
        (true, _) => endpoint.to_owned(),
        (false, true) => format!("https://{endpoint}"),
        (false, false) => format!("http://{endpoint}"),
    }
}

impl Config {
    /// Where programs on this machine find the hub, and as whom they speak to it.
    pub fn access(&self) -> Access {
        let hub = &self.hub;
        let endpoints = if hub.embedded() {
            let ip = match (hub.listen.ip(), self.machine.address) {
                (ip, _) if !ip.is_unspecified() => ip,
                // The certificate names the address by which others reach it.
                (_, Some(address)) if hub.cert_file.is_some() => address.into(),
                _ => Ipv4Addr::LOCALHOST.into(),
            };
            let own = SocketAddr::new(ip, hub.listen.port()).to_string();
            vec![with_scheme(&own, hub.cert_file.is_some())]
        } else {
            let secure = hub.ca_file.is_some() || hub.cert_file.is_some();
            hub.endpoints.iter().map(|endpoint| with_scheme(endpoint, secure)).collect()
        };
        let login = hub.user.clone().zip(hub.password_file.clone());
        Access {
            endpoints,
            ca: hub.ca_file.clone(),
            identity: hub.identity(),
            login: login.map(|(user, file)| Login { user, password: Password::File(file) }),
        }
    }
}

/// `[api]`
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct ApiSection {
    /// Where the API listens besides its unix socket, e.g. `0.0.0.0:49153`. Nowhere by default. Other machines
    /// need it for `status`, `journal` and `exec` of units here.
    pub listen: Option<SocketAddr>,
    /// A second unix socket for the API, where fleet's clients look for fleet's: `/run/fleet.sock`. None by default.
    pub fleet_socket: Option<PathBuf>,
}

/// `[engine]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct EngineSection {
    /// Whether this machine stands for election as leader.
    pub enabled: bool,
}

/// `[agent]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct AgentSection {
    /// Whether this machine runs units.
    pub enabled: bool,
    /// How long after its last sign of life the machine counts as dead, and its units run elsewhere.
    #[serde(deserialize_with = "duration")]
    pub lease_ttl: Duration,
}

/// `[registrar]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct RegistrarSection {
    /// Whether `[X-Service]` and `Register=` of units are carried out on this machine.
    pub enabled: bool,
    /// The container engine's socket: Docker's, or Podman's.
    pub container_socket: PathBuf,
}

/// `[router]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct RouterSection {
    /// How long instances are served on when most of a service vanishes at once; `0s` for not at all.
    #[serde(deserialize_with = "duration")]
    pub panic_hold: Duration,
    /// `[router.nginx]`: look after this machine's nginx.
    pub nginx: NginxConfig,
    /// `[router.gateway]`: balance traffic without nginx, and without reloads.
    pub gateway: GatewayConfig,
    /// `[router.dns]`: names for the registered services.
    pub dns: DnsConfig,
    /// `[[router.files]]`: files that are made of templates, with the fields of a resource file of `muster render`.
    pub files: Vec<Resource>,
    /// `[router.skydns]`: services as SkyDNS's keys, for a CoreDNS.
    pub skydns: SkydnsSection,
    /// `[router.traefik]`: services in Traefik's KV schema.
    pub traefik: TraefikSection,
}

/// `[router.skydns]`: the machine that leads writes, so this belongs into every machine's configuration.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct SkydnsSection {
    /// Whether the keys are written.
    pub enabled: bool,
}

/// `[router.traefik]`: the machine that leads writes, so this belongs into every machine's configuration.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct TraefikSection {
    /// Whether the keys are written.
    pub enabled: bool,
    /// Traefik's `rootKey`.
    pub root_key: String,
}

impl Default for TraefikSection {
    fn default() -> Self {
        Self { enabled: false, root_key: "traefik".to_owned() }
    }
}

impl RouterSection {
    /// Whether anything here is told of services.
    pub fn has_outputs(&self) -> bool {
        self.nginx.enabled || self.gateway.enabled || self.dns.enabled || !self.files.is_empty()
    }

    /// The files with their templates, or what is wrong with them.
    pub fn kept(&self) -> Vec<Result<Kept>> {
        let kept = |(number, resource): (usize, &Resource)| {
            let name = format!("router.files {} ({})", number + 1, resource.dest.display());
            let templates = [PathBuf::from("/etc/muster/templates"), "/etc/muster".into()];
            let engine = resource.engine(&name, &templates)?;
            Ok(Kept { name, resource: resource.clone(), engine })
        };
        self.files.iter().enumerate().map(kept).collect()
    }
}

impl Default for RouterSection {
    fn default() -> Self {
        Self {
            panic_hold: muster_core::router::PANIC_HOLD,
            nginx: NginxConfig::default(),
            gateway: GatewayConfig::default(),
            dns: DnsConfig::default(),
            files: Vec::new(),
            skydns: SkydnsSection::default(),
            traefik: TraefikSection::default(),
        }
    }
}

impl Default for EngineSection {
    fn default() -> Self {
        Self { enabled: true }
    }
}

impl Default for AgentSection {
    fn default() -> Self {
        Self { enabled: true, lease_ttl: Duration::from_secs(5) }
    }
}

impl Default for RegistrarSection {
    fn default() -> Self {
        Self { enabled: true, container_socket: PathBuf::from("/var/run/docker.sock") }
    }
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text)
        .map_err(|error| serde::de::Error::custom(format!("`{text}` is no duration such as \"5s\": {error}")))
}

/// Who set a value that is not the default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The configuration file.
    File,
    /// An environment variable.
    Environment(String),
}

/// Every field that a variable can set, with its default as `muster config` shows it.
pub const FIELDS: [(&str, &str); 56] = [
    ("machine.name", "the host name"),
    ("machine.address", "that of the default route's interface"),
    ("machine.metadata", "{}"),
    ("hub.endpoints", "[] (this machine embeds the hub)"),
    ("hub.listen", "\"127.0.0.1:2379\""),
    ("hub.data-dir", "\"/var/lib/muster/hub\""),
    ("hub.quota-backend-bytes", "2147483648"),
    ("hub.cert-file", "none"),
    ("hub.key-file", "none"),
    ("hub.ca-file", "the system's authorities"),
    ("hub.client-ca-file", "none (clients need no certificate)"),
    ("hub.user", "none"),
    ("hub.password-file", "none"),
    ("hub.auth-token-ttl", "\"5m\""),
    ("api.listen", "none but the unix socket"),
    ("api.fleet-socket", "none"),
    ("engine.enabled", "true"),
    ("agent.enabled", "true"),
    ("agent.lease-ttl", "\"5s\""),
    ("overlay.enabled", "true"),
    ("overlay.network", "\"10.1.0.0/16\""),
    ("overlay.interface", "the default route's"),
    ("overlay.bridge", "\"docker0\""),
    ("router.panic-hold", "\"30s\""),
    ("registrar.enabled", "true"),
    ("registrar.container-socket", "\"/var/run/docker.sock\""),
    ("overlay.docker-network", "none"),
    ("overlay.cni-config", "none"),
    ("overlay.unit-addresses", "true"),
    ("overlay.networks", "{}"),
    ("router.nginx.enabled", "false"),
    ("router.nginx.listen", "80"),
    ("router.nginx.ports", "{}"),
    ("router.nginx.template", "built in"),
    ("router.nginx.destination", "\"/etc/nginx/conf.d/muster.conf\""),
    ("router.nginx.main", "\"/etc/nginx/nginx.conf\""),
    ("router.nginx.pid-file", "\"/run/nginx.pid\""),
    ("router.nginx.program", "\"/usr/sbin/nginx\""),
    ("router.gateway.enabled", "false"),
    ("router.gateway.http", "[\"0.0.0.0:80\"]"),
    ("router.gateway.https", "[\"0.0.0.0:443\"] (with certificates)"),
    ("router.gateway.tcp-address", "\"0.0.0.0\""),
    ("router.gateway.admin", "\"127.0.0.1:9153\""),
    ("router.gateway.certificates", "[]"),
    ("router.gateway.zone", "\"svc.cluster.internal\""),
    ("router.gateway.access-log", "none"),
    ("router.gateway.proxy-protocol", "false"),
    ("router.gateway.threads", "0 (one per processor)"),
    ("router.dns.enabled", "true"),
    ("router.dns.listen", "[\"127.0.0.54:53\"] and the containers' bridge"),
    ("router.dns.zone", "\"cluster.internal\""),
    ("router.dns.upstreams", "those of /etc/resolv.conf"),
    ("router.dns.allow", "[]"),
    ("router.skydns.enabled", "false"),
    ("router.traefik.enabled", "false"),
    ("router.traefik.root-key", "\"traefik\""),
];

/// A configuration and where each of its values comes from.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// The merged table.
    pub table: toml::Table,
    /// By field; fields that are missing here have their defaults.
    pub origins: BTreeMap<String, Origin>,
}

/// Reads the file, if there is one, and the environment. A file that was asked for by name must exist.
pub fn load(path: Option<&Path>, environment: impl Fn(&str) -> Option<String>) -> Result<Loaded> {
    let file = path.unwrap_or_else(|| Path::new(PATH));
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && path.is_none() => String::new(),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
    };
    parse(&text, &file.display().to_string(), environment)
}

fn parse(text: &str, name: &str, environment: impl Fn(&str) -> Option<String>) -> Result<Loaded> {
    // Parsed into the struct alone first: errors then name line and column of the file.
    toml::from_str::<Config>(text).with_context(|| format!("in {name}"))?;
    let mut table: toml::Table = toml::from_str(text).with_context(|| format!("in {name}"))?;
    let mut origins = BTreeMap::new();
    for (field, _) in FIELDS {
        let parts: Vec<_> = field.split('.').collect();
        if lookup(&table, &parts).is_some() {
            origins.insert(field.to_owned(), Origin::File);
        }
        let variable = format!("MUSTER_{}", field.replace(['.', '-'], "_").to_uppercase());
        if let Some(value) = environment(&variable) {
            // A text that happens to look like TOML (a machine called 7) is still a text where one is wanted.
            set(&mut table, &parts, as_toml(&value));
            if let Err(error) = table.clone().try_into::<Config>() {
                set(&mut table, &parts, toml::Value::String(value.clone()));
                if table.clone().try_into::<Config>().is_err() {
                    bail!("the variable {variable}={value} does not fit: {}", error.message());
                }
            }
            origins.insert(field.to_owned(), Origin::Environment(variable));
        }
    }
    let config: Config = table.clone().try_into().with_context(|| format!("in {name}"))?;
    config.hub.check().with_context(|| format!("in {name}"))?;
    config.overlay.check().with_context(|| format!("in {name}"))?;
    Ok(Loaded { config, table, origins })
}

/// The value at a dotted path.
pub fn lookup<'a>(table: &'a toml::Table, parts: &[&str]) -> Option<&'a toml::Value> {
    let (last, sections) = parts.split_last()?;
    let section = sections.iter().try_fold(table, |table, part| table.get(*part)?.as_table())?;
    section.get(*last)
}

/// TOML where the text is TOML, the text itself where it is not.
fn as_toml(text: &str) -> toml::Value {
    toml::from_str::<toml::Table>(&format!("value = {text}"))
        .ok()
        .and_then(|mut parsed| parsed.remove("value"))
        .unwrap_or_else(|| toml::Value::String(text.to_owned()))
}

fn set(table: &mut toml::Table, parts: &[&str], value: toml::Value) {
    let Some((last, sections)) = parts.split_last() else { return };
    let section = sections.iter().try_fold(table, |table, part| {
        table.entry(*part).or_insert_with(|| toml::Value::Table(toml::Table::new())).as_table_mut()
    });
    if let Some(section) = section {
        section.insert((*last).to_owned(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn with(text: &str, variables: &[(&str, &str)]) -> Result<Loaded> {
        let find =
            |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        parse(text, "muster.toml", find)
    }

    #[test]
    fn an_empty_file_is_a_closed_machine_of_its_own() {
        let config = with("", &[]).expect("valid").config;
        assert_eq!(config, Config::default());
        assert!(config.hub.embedded() && config.hub.listen.ip().is_loopback() && config.api.listen.is_none());
        assert_eq!(config.access(), Access::open(&["http://127.0.0.1:2379".to_owned()]));
    }

    #[test]
    fn the_environment_beats_the_file() {
        let text = "[hub]\nendpoints = [\"http://10.0.0.1:2379\"]\n[agent]\nlease-ttl = \"3s\"\n";
        let variables = [
            ("MUSTER_AGENT_LEASE_TTL", "9s"),
            ("MUSTER_ROUTER_NGINX_ENABLED", "true"),
            ("MUSTER_HUB_QUOTA_BACKEND_BYTES", "1048576"),
        ];
        let loaded = with(text, &variables).expect("valid");
        assert_eq!(loaded.config.hub.quota_backend_bytes, 1 << 20);
        assert_eq!(loaded.config.agent.lease_ttl, Duration::from_secs(9));
        assert!(loaded.config.router.nginx.enabled);
        assert_eq!(loaded.origins["hub.endpoints"], Origin::File);
        assert_eq!(
            loaded.origins["agent.lease-ttl"],
            Origin::Environment("MUSTER_AGENT_LEASE_TTL".to_owned())
        );
        assert!(!loaded.origins.contains_key("overlay.network"));
    }

    #[test]
    fn mistakes_are_shown_with_their_place() {
        let said = |text| format!("{:#}", with(text, &[]).expect_err(text));
        let error = said("[hub]\nendpoint = []\n");
        assert!(error.contains("line 2") && error.contains("unknown field `endpoint`"), "{error}");
        assert!(said("[agent]\nlease-ttl = 5\n").contains("line 2"));
        let named = with("", &[("MUSTER_MACHINE_NAME", "7")]).expect("a name");
        assert_eq!(named.config.machine.name.as_deref(), Some("7"));
        let error = with("", &[("MUSTER_HUB_LISTEN", "here")]).expect_err("no address").to_string();
        assert!(error.contains("MUSTER_HUB_LISTEN=here"), "{error}");
    }

    #[test]
    fn a_machine_knows_how_to_speak_to_its_hub() {
        fn access(text: &str) -> Access {
            with(text, &[]).expect(text).config.access()
        }
        let tls = "cert-file = \"m.crt\"\nkey-file = \"m.key\"\n";
        let own =
            access(&format!("[machine]\naddress = \"10.0.0.1\"\n[hub]\nlisten = \"0.0.0.0:2379\"\n{tls}"));
        assert_eq!(own.endpoints, ["https://10.0.0.1:2379"]);
        assert_eq!(own.identity, Some(("m.crt".into(), "m.key".into())));
        let other = access(
            "[hub]\nendpoints = [\"m1:2379\"]\nca-file = \"ca.crt\"\nuser = \"u\"\npassword-file = \"p\"\n",
        );
        assert_eq!(other.endpoints, ["https://m1:2379"]);
        assert_eq!(other.login, Some(Login { user: "u".to_owned(), password: Password::File("p".into()) }));
        assert_eq!(access("[hub]\nendpoints = [\"m1:2379\"]\n").endpoints, ["http://m1:2379"]);
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        for (text, field) in [
            ("cert-file = \"a\"", "hub.key-file"),
            ("user = \"a\"", "hub.password-file"),
            ("password-file = \"a\"", "hub.user"),
            ("client-ca-file = \"a\"", "hub.cert-file"),
            ("client-ca-file = \"a\"\nendpoints = [\"https://m1:2379\"]", "hub.endpoints"),
            ("ca-file = \"a\"\nendpoints = [\"http://m1:2379\"]", "say https://"),
            ("endpoints = [\"http://m1:2379\", \"https://m2:2379\"]", "say https://"),
            ("auth-token-ttl = \"0s\"", "hub.auth-token-ttl"),
        ] {
            let error = with(&format!("[hub]\n{text}\n"), &[]).expect_err(text);
            assert!(format!("{error:#}").contains(field), "{text}: {error:#}");
        }
    }
}
