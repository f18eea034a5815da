//! What the cluster's own names mean: from services and a question to records.
//!
//! ```text
//! someapp.svc.cluster.internal              A, SRV, TXT   every instance that takes traffic
//! _someapp._tcp.svc.cluster.internal        SRV           the same (RFC 2782)
//! nearest.someapp.svc.…                     A, SRV, TXT   the same, those of the asking machine first
//! node1.m.someapp.svc.…                     A, SRV, TXT   those on the machine `node1`
//! 1.someapp.svc.…  someapp-1.someapp.svc.…  A, SRV, TXT   the instance `someapp@1`
//! 2.5.1.10.in-addr.arpa                     PTR           the instance with the address 10.1.5.2
//! ```
//!
//! Not here: messages, sockets, other people's names. Invariant: an instance that fails its check or drains is in no
//! answer to A, SRV or TXT.

use ipnet::Ipv4Net;
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
};

/// How long an answer may be kept, in seconds: a client that looks it up for each connection asks every 5 s, and a
/// client that keeps it is wrong for no longer.
pub const TTL: u32 = 5;
/// While an instance of the service drains: others are about to take its place.
pub const TTL_DRAINING: u32 = 2;
/// While nobody knows whether this is still so, because the hub is away.
pub const TTL_STALE: u32 = 1;
/// How long "there is none" may be kept.
pub const TTL_NEGATIVE: u32 = 2;
/// What changes hardly ever: the zone's own records.
const TTL_ZONE: u32 = 60;

/// Everything that questions are answered from. Replaced as a whole when something changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The zone as it is configured: `cluster.internal`.
    pub zone: String,
    /// The addresses of all containers, whose reverse names are ours.
    pub network: Option<Ipv4Net>,
    /// The machine that answers.
    pub machine: String,
    /// Where it answers, as the zone's name server.
    pub servers: Vec<Ipv4Addr>,
    /// Counts up with each change: the hub's revision, whose low 32 bits are enough.
    pub serial: u32,
    /// Whether the hub is there to say what changes.
    pub current: bool,
    /// Services by name, those without instances too.
    pub services: BTreeMap<String, Vec<Instance>>,
}

impl Default for Snapshot {
    /// A zone that knows of no service: `cluster.internal`.
    fn default() -> Self {
        Self {
            zone: "cluster.internal".to_owned(),
            network: None,
            machine: String::new(),
            servers: Vec::new(),
            serial: 0,
            current: true,
            services: BTreeMap::new(),
        }
    }
}

/// One running copy of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// As it is registered: `someapp@1`.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddrV4,
    /// Its share of the traffic, relative to the others'.
    pub weight: u16,
    /// The machine it is on, if that is known.
    pub machine: Option<String>,
    /// Whether its check passes.
    pub healthy: bool,
    /// Whether it is about to leave.
    pub draining: bool,
}

/// The types of records that we know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// An IPv4 address.
    A,
    /// Addresses, ports and weights (RFC 2782).
    Srv,
    /// The name of an address.
    Ptr,
    /// Text.
    Txt,
    /// The zone itself.
    Soa,
    /// The zone's name server.
    Ns,
    /// Whatever there is; we answer with addresses (RFC 8482 lets us choose).
    Any,
    /// Something that no name of ours has: AAAA, MX …
    Other,
}

/// A record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Whose it is, without the dot at the end.
    pub name: String,
    /// How long it may be kept, in seconds.
    pub ttl: u32,
    /// What it says.
    pub data: Data,
}

/// What a record says. Names are without the dot at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// An address.
    A(Ipv4Addr),
    /// Where a service listens.
    Srv {
        /// Lower ones first.
        priority: u16,
        /// The share among those of one priority.
        weight: u16,
        /// The TCP port.
        port: u16,
        /// The name that has the address.
        target: String,
    },
    /// A name.
    Ptr(String),
    /// Texts of at most 255 bytes.
    Txt(Vec<String>),
    /// A zone.
    Soa {
        /// The name server.
        server: String,
        /// Counts up.
        serial: u32,
        /// How long "there is none" may be kept, in seconds.
        minimum: u32,
    },
    /// A name server.
    Ns(String),
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The name is somebody else's: ask there.
    NotOurs,
    /// There are records.
    Records {
        /// What was asked for.
        answers: Vec<Record>,
        /// What will be asked for next.
        additionals: Vec<Record>,
        /// Whether there are more than `most`.
        cut: bool,
    },
    /// The name is there, and has no such record now. With the zone's SOA.
    Empty(Record),
    /// There is no such name. With the zone's SOA.
    NoSuchName(Record),
}

/// How many endpoints an answer has at most, and by which chance they are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// At most so many.
    pub most: usize,
    /// A random number.
    pub seed: u64,
}

impl Snapshot {
    /// Answers the question for `kind` of `name`. Upper and lower case are the same; a dot at the end may be there or not.
    pub fn answer(&self, name: &str, kind: Kind, choice: Choice) -> Reply {
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        if let Some(reply) = self.reverse(&name, kind) {
            return reply;
        }
        let zone = self.zone.to_ascii_lowercase();
        let Some(below) = name.strip_suffix(&zone) else { return Reply::NotOurs };
        let labels: Vec<_> = match below.strip_suffix('.') {
            Some(labels) => labels.split('.').collect(),
            None if below.is_empty() => return self.apex(kind),
            // `mycluster.internal` is not below `cluster.internal`.
            None => return Reply::NotOurs,
        };
        match labels.as_slice() {
            ["ns"] => self.server(kind),
            ["svc"] | ["_tcp", "svc"] => self.empty(),
            [service, "svc"] => self.service(&name, service, kind, choice, |_| Some(0)),
            [service, "_tcp", "svc"] => match service.strip_prefix('_').filter(|name| self.has(name)) {
                Some(service) if matches!(kind, Kind::Srv | Kind::Any) => {
                    self.service(&name, service, Kind::Srv, choice, |_| Some(0))
                }
                Some(_) => self.empty(),
                None => self.no_such_name(),
            },
            ["m", service, "svc"] if self.has(service) => self.empty(),
            ["nearest", service, "svc"] => self.service(&name, service, kind, choice, |instance| {
                let is_here = instance.machine.as_ref().is_some_and(|machine| *machine == self.machine);
                Some(u16::from(!is_here))
            }),
            [machine, "m", service, "svc"] => self.some(&name, service, kind, choice, |_, instance| {
                instance.machine.as_ref().is_some_and(|held| label(held) == **machine)
            }),
            [wanted, service, "svc"] => {
                self.some(&name, service, kind, choice, |all, instance| is_called(all, instance, wanted))
            }
            _ => self.no_such_name(),
        }
    }

    fn has(&self, service: &str) -> bool {
        self.services.contains_key(service)
    }

    /// Some instances of a service; without any, there is no such name.
    fn some(
        &self,
        name: &str,
        service: &str,
        kind: Kind,
        choice: Choice,
        is_meant: impl Fn(&[Instance], &Instance) -> bool,
    ) -> Reply {
        match self.services.get(service) {
            Some(all) if all.iter().any(|instance| is_meant(all, instance)) => {
                let rank = |instance: &Instance| is_meant(all, instance).then_some(0);
                self.service(name, service, kind, choice, rank)
            }
            _ => self.no_such_name(),
        }
    }

    /// The instances of a service to which `rank` gives a rank, lower ranks first, each rank in random order.
    fn service(
        &self,
        name: &str,
        service: &str,
        kind: Kind,
        choice: Choice,
        rank: impl Fn(&Instance) -> Option<u16>,
    ) -> Reply {
        let Some(all) = self.services.get(service) else { return self.no_such_name() };
        let ttl = match () {
            () if !self.current => TTL_STALE,
            () if all.iter().any(|instance| instance.draining) => TTL_DRAINING,
            () => TTL,
        };
        let ranked = all.iter().filter_map(|instance| rank(instance).map(|rank| (rank, instance)));
        let mut chosen: Vec<_> =
            ranked.filter(|(_, instance)| instance.healthy && !instance.draining).collect();
        shuffle(&mut chosen, choice.seed);
        chosen.sort_by_key(|(rank, _)| *rank);
        if matches!(kind, Kind::A | Kind::Any) {
            // Two ports of one container are one address.
            let mut seen = std::collections::BTreeSet::new();
            chosen.retain(|(_, instance)| seen.insert(*instance.address.ip()));
        }
        let cut = chosen.len() > choice.most;
        chosen.truncate(choice.most);
        let record = |name: &str, data| Record { name: name.to_owned(), ttl, data };
        let target = |instance: &Instance| {
            format!("{}.{service}.svc.{}", label_among(all, instance), self.zone.to_ascii_lowercase())
        };
        let (answers, additionals): (Vec<_>, Vec<_>) = match kind {
            Kind::A | Kind::Any => {
                let address =
                    |(_, instance): &(u16, &Instance)| record(name, Data::A(*instance.address.ip()));
                (chosen.iter().map(address).collect(), Vec::new())
            }
            Kind::Srv => {
                let srv = |(rank, instance): &(u16, &Instance)| {
                    let (weight, port) = (instance.weight, instance.address.port());
                    record(name, Data::Srv { priority: *rank, weight, port, target: target(instance) })
                };
                let address = |(_, instance): &(u16, &Instance)| {
                    record(&target(instance), Data::A(*instance.address.ip()))
                };
                (chosen.iter().map(srv).collect(), chosen.iter().map(address).collect())
            }
            Kind::Txt => {
                let text = |(_, instance): &(u16, &Instance)| record(name, Data::Txt(texts(instance)));
                (chosen.iter().map(text).collect(), Vec::new())
            }
            Kind::Ptr | Kind::Soa | Kind::Ns | Kind::Other => return self.empty(),
        };
        if answers.is_empty() { self.empty() } else { Reply::Records { answers, additionals, cut } }
    }

    fn apex(&self, kind: Kind) -> Reply {
        let zone = self.zone.to_ascii_lowercase();
        let server = format!("ns.{zone}");
        let record = |name: &str, data| Record { name: name.to_owned(), ttl: TTL_ZONE, data };
        let answers = match kind {
            Kind::Soa | Kind::Any => vec![Record { ttl: TTL_ZONE, ..self.soa(&zone) }],
            Kind::Ns => vec![record(&zone, Data::Ns(server.clone()))],
            _ => return self.empty(),
        };
        let address = |address: &Ipv4Addr| record(&server, Data::A(*address));
        let additionals = self.servers.iter().map(address).collect();
        Reply::Records { answers, additionals, cut: false }
    }

    /// The name server's own name.
    fn server(&self, kind: Kind) -> Reply {
        let name = format!("ns.{}", self.zone.to_ascii_lowercase());
        let record =
            |address: &Ipv4Addr| Record { name: name.clone(), ttl: TTL_ZONE, data: Data::A(*address) };
        let answers: Vec<_> = self.servers.iter().map(record).collect();
        match kind {
            Kind::A | Kind::Any if !answers.is_empty() => {
                Reply::Records { answers, additionals: Vec::new(), cut: false }
            }
            _ => self.empty(),
        }
    }

    /// Names below `in-addr.arpa`. `None`: it is no such name. The unused addresses of the range are ours too: nobody
    /// else shall be asked for them.
    fn reverse(&self, name: &str, kind: Kind) -> Option<Reply> {
        let octets = name.strip_suffix(".in-addr.arpa")?;
        let octets: Option<Vec<u8>> = octets.rsplit('.').map(octet).collect();
        let (Some(octets), Some(network)) = (octets, self.network) else { return Some(Reply::NotOurs) };
        if octets.len() > 4 {
            return Some(Reply::NotOurs);
        }
        let mut bytes = [0; 4];
        bytes[..octets.len()].copy_from_slice(&octets);
        let length = u8::try_from(octets.len() * 8).unwrap_or(32);
        let asked = Ipv4Net::new(bytes.into(), length).ok()?;
        if !network.contains(&asked) {
            return Some(Reply::NotOurs);
        }
        // The name of the smallest such zone that has all of the range's addresses with these first octets.
        let labels = usize::from(network.prefix_len().div_ceil(8));
        let first: Vec<_> = octets[..labels].iter().rev().map(u8::to_string).collect();
        let zone =
            if first.is_empty() { "in-addr.arpa".to_owned() } else { first.join(".") + ".in-addr.arpa" };
        let soa = self.soa(&zone);
        if octets.len() < 4 {
            let is_zone = name == zone && matches!(kind, Kind::Soa | Kind::Any);
            return Some(match is_zone {
                true => Reply::Records { answers: vec![soa], additionals: Vec::new(), cut: false },
                false => Reply::Empty(soa),
            });
        }
        let address = asked.addr();
        let ttl = if self.current { TTL } else { TTL_STALE };
        let holders = self.services.iter().flat_map(|(service, all)| {
            let holds = all.iter().filter(|instance| *instance.address.ip() == address);
            holds.map(move |instance| {
                format!("{}.{service}.svc.{}", label_among(all, instance), self.zone.to_ascii_lowercase())
            })
        });
        let answers: Vec<_> =
            holders.map(|target| Record { name: name.to_owned(), ttl, data: Data::Ptr(target) }).collect();
        Some(match kind {
            _ if answers.is_empty() => Reply::NoSuchName(soa),
            Kind::Ptr | Kind::Any => Reply::Records { answers, additionals: Vec::new(), cut: false },
            _ => Reply::Empty(soa),
        })
    }

    fn empty(&self) -> Reply {
        Reply::Empty(self.soa(&self.zone.to_ascii_lowercase()))
    }

    fn no_such_name(&self) -> Reply {
        Reply::NoSuchName(self.soa(&self.zone.to_ascii_lowercase()))
    }

    /// With the time that a negative answer may be kept (RFC 2308: the record's and the `minimum` in it).
    fn soa(&self, zone: &str) -> Record {
        let server = format!("ns.{}", self.zone.to_ascii_lowercase());
        let minimum = if self.current { TTL_NEGATIVE } else { TTL_STALE };
        Record {
            name: zone.to_owned(),
            ttl: minimum,
            data: Data::Soa { server, serial: self.serial, minimum },
        }
    }
}

/// A decimal number as reverse names have it: `01` is not one.
fn octet(text: &str) -> Option<u8> {
    let octet: u8 = text.parse().ok()?;
    (octet.to_string() == text).then_some(octet)
}

/// What TXT says of an instance. Nothing that changes more often than the instance itself.
fn texts(instance: &Instance) -> Vec<String> {
    let machine = instance.machine.as_ref().map(|machine| format!("machine={machine}"));
    let texts = [
        Some(format!("instance={}", instance.name)),
        machine,
        Some(format!("port={}", instance.address.port())),
    ];
    let short = |text: String| text.chars().take(63).collect::<String>();
    texts.into_iter().flatten().map(short).collect()
}

/// A name as a label: what is no letter, digit or hyphen becomes a hyphen, `someapp@1` is `someapp-1`.
pub fn label(name: &str) -> String {
    let fits = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let label: String = name.chars().map(fits).take(63).collect();
    label.trim_matches('-').to_owned()
}

/// The label of an instance that no other instance of its service has: that of its name, else that of its endpoint.
fn label_among(all: &[Instance], instance: &Instance) -> String {
    let own = label(&instance.name);
    let is_shared = all.iter().any(|other| other.name != instance.name && label(&other.name) == own);
    let is_reserved = own.is_empty() || ["m", "nearest"].contains(&own.as_str());
    if is_shared || is_reserved { label(&instance.address.to_string()) } else { own }
}

/// Whether an instance has the label: that of its name, of what follows `@` in it, of its address, or the one that
/// tells it from the others.
fn is_called(all: &[Instance], instance: &Instance, wanted: &str) -> bool {
    let after = instance.name.split_once('@').map(|(_, number)| label(number));
    label(&instance.name) == wanted
        || after.is_some_and(|after| after == wanted)
        || label(&instance.address.ip().to_string()) == wanted
        || label_among(all, instance) == wanted
}

/// Fisher and Yates, by the numbers of SplitMix64.
fn shuffle<T>(items: &mut [T], mut seed: u64) {
    for last in (1..items.len()).rev() {
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = seed;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        // The remainder prefers no item noticeably: there are far fewer items than numbers.
        items.swap(last, (mixed % (last as u64 + 1)) as usize);
    }
}

#[cfg(test)]
mod tests;
