//! Throughput, latency and processor time of each backend: with the datapath and the rules that our own code makes, and
//! beside it the same datapath made by hand with ip(8) and bridge(8), as flannel does it, with flannel's rules.
//!
//! Invariant: all paths are there from the start, and take turns.

use crate::{
    by_hand,
    lab::{Cluster, Machine, Namespace},
    median,
    pump::{Turn, turn},
};
use anyhow::{Context, Result};
use model::NetworkConfig;
use muster_core::overlay::{Desired, Firewall, Lease, own_lease};
use net::wireguard::{Prefer, WgPeer, Wireguard, WireguardConfig, key::PrivateKey};
use std::{
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};
use tokio::runtime::Runtime;

/// Rounds; each path has a turn in each.
const ROUNDS: usize = 7;
/// How long the stream of a turn is.
const TURN: Duration = Duration::from_millis(600);

/// Two machines with a datapath.
struct Rig {
    name: &'static str,
    cluster: Cluster,
    /// What has to stay alive.
    keeps: Vec<Keep>,
}

impl Rig {
    /// Processes that carry its packets.
    fn carriers(&self) -> Vec<u32> {
        let carrier = |keep: &Keep| match keep {
            Keep::Theirs(carrier) => Some(carrier.pid()),
            Keep::Ours(..) => None,
        };
        self.keeps.iter().filter_map(carrier).collect()
    }
}

/// Something that a datapath lives in.
enum Keep {
    Ours(#[expect(dead_code, reason = "held, not read")] Box<(Wireguard, Runtime)>),
    Theirs(by_hand::WireguardGo),
}

/// A path, and how it did in each turn.
struct Path<'a> {
    name: String,
    from: &'a Namespace,
    to: &'a Namespace,
    address: Ipv4Addr,
    carriers: Vec<u32>,
    turns: Vec<Turn>,
}

/// The section of the report.
pub fn report() -> Result<String> {
    let mut text = format!(
        "\n## Throughput and latency\n\nTwo machines of namespaces, joined by veth pairs and a bridge, MTU 1500; one TCP stream, and 64 bytes \
         to and fro. {ROUNDS} rounds in which\neach path has one turn of {} ms, medians. CPU is processors' time of both ends, the kernel's work for \
         them included. **ours** is what the\ncrate `net` makes, with all of its rules (nobody from outside gets in, checked for every packet); **by \
         hand** the same datapath made with\n`ip` and `bridge`, with flannel's own iptables rules, which let everybody in; **bare** the same without \
         any rule. *ratio* is the median over\nthe rounds of ours by the other.\n",
        TURN.as_millis()
    );
    let mut rigs = Vec::new();
    for (name, backend) in [("vxlan", r#"{"Type":"vxlan"}"#), ("host-gw", r#"{"Type":"host-gw"}"#)] {
        rigs.push(ours(name, backend)?);
        for (kind, rules) in [("by hand", true), ("bare", false)] {
            let rig = Rig { name: kind, cluster: Cluster::new(2), keeps: Vec::new() };
            for (one, other) in pairs(&rig.cluster) {
                by_hand::datapath(name, one, other);
                if rules {
                    by_hand::rules(one)?;
                }
            }
            rigs.push(rig);
        }
    }
    rigs.push(ours_encrypted()?);
    match theirs_encrypted() {
        Ok(rig) => rigs.push(rig),
        Err(error) => {
            eprintln!("wireguard-go: LEFT OUT: {error:#}");
            let _ = writeln!(text, "\n**wireguard-go could not be had here and was left out: {error:#}.**");
        }
    }
    for offload in [true, false] {
        let kinds = if offload { &rigs[..] } else { &rigs[..6] };
        if !offload {
            kinds.iter().try_for_each(|rig| without_offload(&rig.cluster))?;
        }
        let title = if offload { "As the kernel has it" } else { "TSO, GSO and GRO off" };
        text += &table(title, kinds)?;
    }
    Ok(text)
}

fn pairs(cluster: &Cluster) -> [(&Machine, &Machine); 2] {
    let [one, two] = cluster.machines.as_slice() else { unreachable!("two were asked for") };
    [(one, two), (two, one)]
}

fn table(title: &str, rigs: &[Rig]) -> Result<String> {
    let mut paths = Vec::new();
    let (one, two) = pairs(&rigs[0].cluster)[0];
    let path = |name: String, from, to, address, rig: &Rig| Path {
        name,
        from,
        to,
        address,
        carriers: rig.carriers(),
        turns: Vec::new(),
    };
    paths.push(path("underlay".to_owned(), &one.host, &two.host, two.ip, &rigs[0]));
    let backends = ["vxlan", "vxlan", "vxlan", "host-gw", "host-gw", "host-gw", "wireguard", "wireguard"];
    for (rig, backend) in rigs.iter().zip(backends) {
        let (one, two) = pairs(&rig.cluster)[0];
        let kind = rig.name;
        // The packets of host-gw's hosts are the underlay's.
        if backend != "host-gw" && kind != "bare" {
            paths.push(path(
                format!("{backend} host–host, {kind}"),
                &one.host,
                &two.host,
                two.subnet.bridge(),
                rig,
            ));
        }
        let name = format!("{backend} container–container, {kind}");
        paths.push(path(name, &one.container, &two.container, two.container_ip, rig));
    }
    for round in 0..ROUNDS {
        for path in &mut paths {
            let turn = turn(path.from, path.to, path.address, TURN, &path.carriers)
                .with_context(|| path.name.clone())?;
            eprintln!("{title}, round {round}, {}: {turn:?}", path.name);
            path.turns.push(turn);
        }
    }
    let mut text = format!(
        "\n### {title}\n\n| path | Gbit/s | of the underlay | ratio | CPU ns/byte | ratio | one way µs | ratio |\n\
         |---|---|---|---|---|---|---|---|\n"
    );
    let underlay = paths[0].turns.clone();
    for path in &paths {
        let ours = path.name.rsplit_once(", ").and_then(|(stem, kind)| {
            let name = format!("{stem}, ours");
            paths.iter().find(|other| kind != "ours" && other.name == name)
        });
        let ratio = |of: fn(&Turn) -> f64| {
            let Some(ours) = ours else { return "".to_owned() };
            let each = ours.turns.iter().zip(&path.turns).map(|(ours, theirs)| of(ours) / of(theirs));
            format!("{:.2}", median(each.collect()))
        };
        let middle = |of: fn(&Turn) -> f64| median(path.turns.iter().map(of).collect());
        let share = path.turns.iter().zip(&underlay).map(|(turn, under)| turn.gigabits / under.gigabits);
        let _ = writeln!(
            text,
            "| {} | {:.2} | {:.2} | {} | {:.3} | {} | {:.1} | {} |",
            path.name,
            middle(|turn| turn.gigabits),
            median(share.collect()),
            ratio(|turn| turn.gigabits),
            middle(|turn| turn.nanoseconds),
            ratio(|turn| turn.nanoseconds),
            middle(|turn| turn.one_way),
            ratio(|turn| turn.one_way)
        );
    }
    Ok(text)
}

fn without_offload(cluster: &Cluster) -> Result<()> {
    by_hand::need("ethtool", "ethtool")?;
    let off = |namespace: &Namespace, device: &str| {
        drop(namespace.run(&format!("ethtool -K {device} tso off gso off gro off")));
    };
    for machine in &cluster.machines {
        let links = machine.host.run("ip -o link");
        for device in ["eth0", "c0", "docker0", "flannel.1"] {
            if links.contains(&format!(": {device}:")) || links.contains(&format!(": {device}@")) {
                off(&machine.host, device);
            }
        }
        off(&machine.container, "eth0");
    }
    Ok(())
}

/// What the role does in a round, with the crates it does it with.
fn program(config: &NetworkConfig, machine: &Machine, leases: &[Lease]) -> Result<()> {
    let desired = Desired::new(&machine.id, config, machine.subnet, &machine.underlay(), leases);
    let bridges = ["docker0".to_owned()];
    let firewall = Firewall::new(config, machine.subnet.into(), std::slice::from_ref(&desired), &bridges);
    machine.host.block_on(async || net::apply_firewall(&firewall).await)?;
    machine.converge(&desired);
    let left = machine.plan(&desired);
    anyhow::ensure!(left.is_empty(), "the datapath did not come to rest: {left:?}");
    Ok(())
}

fn ours(name: &'static str, backend: &str) -> Result<Rig> {
    let mut cluster = Cluster::new(2);
    cluster.config = format!(r#"{{"Network":"10.1.0.0/16","Backend":{backend}}}"#).parse()?;
    let leases = cluster.leases();
    for machine in &cluster.machines {
        program(&cluster.config, machine, &leases).with_context(|| name)?;
    }
    Ok(Rig { name: "ours", cluster, keeps: Vec::new() })
}

fn ours_encrypted() -> Result<Rig> {
    let mut cluster = Cluster::new(2);
    cluster.config = r#"{"Network":"10.1.0.0/16","Backend":{"Type":"wireguard"}}"#.parse()?;
    let keys = [PrivateKey::random()?, PrivateKey::random()?];
    let mut keeps = Vec::new();
    for (at, machine) in cluster.machines.iter().enumerate() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let config = WireguardConfig {
            name: "flannel-wg".to_owned(),
            private_key: keys[at].clone(),
            listen_port: 51820,
            mtu: 1420,
            psk: None,
            prefer: Prefer::Userspace,
        };
        let other = &cluster.machines[1 - at];
        let peer = WgPeer {
            public_key: keys[1 - at].public(),
            endpoint: SocketAddr::from((other.ip, 51820)),
            allowed_ips: vec![other.subnet.net().into()],
            keepalive: None,
        };
        let device = machine.host.enter(|| {
            runtime.block_on(async {
                let mut device = Wireguard::open(config).await?;
                device.set_peers(&[peer]).await?;
                Ok::<_, net::NetError>(device)
            })
        })?;
        keeps.push(Keep::Ours(Box::new((device, runtime))));
    }
    let lease = |(at, machine): (usize, &Machine)| {
        let public = keys[at].public().to_string();
        let own = own_lease(&machine.id, &cluster.config, &machine.underlay(), Some(&public));
        (machine.subnet.into(), Some(own))
    };
    let leases: Vec<Lease> = cluster.machines.iter().enumerate().map(lease).collect();
    for machine in &cluster.machines {
        program(&cluster.config, machine, &leases).context("wireguard")?;
    }
    Ok(Rig { name: "ours", cluster, keeps })
}

fn theirs_encrypted() -> Result<Rig> {
    by_hand::need("wireguard-go", "wireguard-go")?;
    let cluster = Cluster::new(2);
    let secrets = [by_hand::secret()?, by_hand::secret()?];
    let mut keeps = Vec::new();
    for (at, (one, other)) in pairs(&cluster).into_iter().enumerate() {
        keeps.push(Keep::Theirs(by_hand::WireguardGo::start(one, &secrets[at], other, &secrets[1 - at])?));
        by_hand::rules(one)?;
    }
    Ok(Rig { name: "wireguard-go", cluster, keeps })
}
