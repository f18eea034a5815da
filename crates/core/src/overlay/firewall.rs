//! The rules around the cluster network: containers keep their own address inside it, are masqueraded towards
//! the rest of the world, and cannot be reached from there.
//!
//! Not here: running `nft` and `iptables`. Invariant: everything lives in a table and in chains of our own; other
//! rules are never changed, only two jumps are added. What the outside may not do is decided by `drop` in
//! nftables, because a drop in any chain is final, whereas an accept is only that chain's opinion: hence the second
//! set of rules, for hosts whose FORWARD policy is DROP (Docker sets it when it turned forwarding on itself).

use super::{Desired, Family, Tunnel, Via};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use model::{
    NetworkConfig, Subnet, SubnetKey,
    network::{Backend, Subnet6},
};
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// What the rules of one machine depend on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Firewall {
    /// Which of the machine's networks this is about, for the names of its sets; empty for the one that has no name.
    pub name: String,
    /// All of the cluster network.
    pub network: Ipv4Net,
    /// This machine's share.
    pub subnet: Subnet,
    /// Our devices that bring packets of other machines' containers.
    pub devices: Vec<String>,
    /// The bridges that containers are on: `docker0`.
    pub bridges: Vec<String>,
    /// The UDP port of VXLAN, which has no authentication of its own.
    pub vxlan_port: Option<u16>,
    /// What tells this network's VXLAN from others' on the same port.
    pub vni: u32,
    /// Whether packets of some machines' containers come as they are, over the underlay.
    pub direct: bool,
    /// The only machines whose packets are taken.
    pub peers: BTreeSet<Ipv4Addr>,
    /// The interface that carries the machine's own address.
    pub underlay: String,
    /// The same over IPv6.
    pub v6: Option<Firewall6>,
    /// The machine's other networks, whose rules stand in the same table. They have no others themselves.
    pub others: Vec<Firewall>,
}

/// The IPv6 side of a machine's rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Firewall6 {
    /// All of the cluster network.
    pub network: Ipv6Net,
    /// This machine's share.
    pub subnet: Subnet6,
    /// The only machines whose packets are taken.
    pub peers: BTreeSet<Ipv6Addr>,
}

/// Rules for the `iptables` programs, as data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IptablesRules {
    /// Input of `iptables-restore --noflush`: fills our own chains, and nothing else.
    pub chains: String,
    /// The jumps into them. Each is added once, see [`Jump::addition`].
    pub jumps: [Jump; 2],
}

/// A jump from somebody else's chain of the table `filter` into ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Jump {
    /// The chain that is not ours.
    pub from: &'static str,
    /// Our chain.
    pub to: &'static str,
    /// Whether `from` is there on every host. Docker's chain is not.
    pub always_there: bool,
}

impl Firewall {
    /// The rules around `desired`, one datapath for each family, for a machine whose containers are on `bridges`.
    pub fn new(config: &NetworkConfig, key: SubnetKey, desired: &[Desired], bridges: &[String]) -> Self {
        let peers = || desired.iter().flat_map(|desired| desired.peers.values());
        let v4 = |address| if let IpAddr::V4(address) = address { Some(address) } else { None };
        let v6 = |address| if let IpAddr::V6(address) = address { Some(address) } else { None };
        let mut devices: Vec<String> =
            desired.iter().filter_map(|desired| desired.device().map(str::to_owned)).collect();
        devices.dedup();
        let vxlan = desired.iter().find_map(|desired| match &desired.tunnel {
            Some(Tunnel::Vxlan(device)) => Some((device.port, device.vni)),
            _ => None,
        });
        Self {
            name: String::new(),
            others: Vec::new(),
            network: config.network,
            subnet: key.v4,
            devices,
            bridges: bridges.to_vec(),
            vxlan_port: vxlan.map(|(port, _)| port),
            vni: vxlan.map(|(_, vni)| vni).unwrap_or_default(),
            direct: matches!(config.backend, Backend::HostGw) || peers().any(|peer| peer.via == Via::Direct),
            peers: peers().filter_map(|peer| v4(peer.public_ip)).collect(),
            underlay: desired.first().map(|desired| desired.underlay.clone()).unwrap_or_default(),
            v6: config.v6.as_ref().zip(key.v6).map(|(v6_config, subnet)| Firewall6 {
                network: v6_config.network,
                subnet,
                peers: peers().filter_map(|peer| v6(peer.public_ip)).collect(),
            }),
        }
    }

    /// Whether nothing but peers differs, of any network: then no rule has to change, only the sets that they are in.
    pub fn same_but_for_peers(&self, other: &Self) -> bool {
        self.without_peers() == other.without_peers()
    }

    fn without_peers(&self) -> Self {
        Self {
            peers: BTreeSet::new(),
            v6: self.v6.clone().map(|v6| Firewall6 { peers: BTreeSet::new(), ..v6 }),
            others: self.others.iter().map(Self::without_peers).collect(),
            ..self.clone()
        }
    }

    /// Input of `nft -f -`: puts our table in place of the one that may be there, in one transaction.
    ///
    /// A port that the operator publishes (`docker run -p`) stays reachable: such a connection carries the mark
    /// of destination NAT, which nobody outside can forge.
    pub fn nft_script(&self) -> String {
        let all = |rules: fn(&Self, &Side) -> String| {
            let one =
                |network: &Self| network.sides().iter().map(|side| rules(network, side)).collect::<String>();
            self.networks().map(one).collect::<String>()
        };
        let (sets, prerouting, input) = (all(Self::set), all(Self::prerouting), all(Self::input));
        let (forward, postrouting, keep) =
            (all(Self::forward), all(Self::postrouting), all(Self::keep_source));
        format!(
            r#"add table inet muster
delete table inet muster
table inet muster {{
{sets}
	# Nobody outside speaks for the cluster network, and nobody inside it for the rest of the world.
	chain prerouting {{
		type filter hook prerouting priority raw; policy accept;
{prerouting}	}}

	# VXLAN has no authentication: only packets of machines that hold a lease are unpacked.
	chain input {{
		type filter hook input priority filter - 10; policy accept;
{input}	}}

	chain forward {{
		type filter hook forward priority filter - 10; policy accept;
{forward}	}}

	# As flannel: no masquerading inside the cluster network.
	chain postrouting {{
		type nat hook postrouting priority srcnat; policy accept;
		meta mark & 0x4000 == 0x4000 return
{postrouting}	}}

	# Nor if somebody else would, as Docker does unless told otherwise: a source translated to itself is settled.
	chain keep_source {{
		type nat hook postrouting priority srcnat - 1; policy accept;
{keep}	}}
}}
"#
        )
    }

    fn networks(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(&self.others)
    }

    /// The names of the sets of machines whose packets are taken.
    pub fn sets(&self) -> Vec<String> {
        self.peers_by_set().into_keys().collect()
    }

    /// The machines whose packets are taken, by the names of the sets that they are in: of each network one for each
    /// family.
    pub fn peers_by_set(&self) -> BTreeMap<String, BTreeSet<IpAddr>> {
        let of = |network: &Self| {
            let sides = network.sides().into_iter();
            sides.map(|side| (network.set_name(&side), side.peers)).collect::<Vec<_>>()
        };
        self.networks().flat_map(of).collect()
    }

    fn set_name(&self, side: &Side) -> String {
        let name = side.pick("peers", "peers6");
        if self.name.is_empty() { name.to_owned() } else { format!("{name}_{}", self.name) }
    }

    fn sides(&self) -> Vec<Side> {
        let mut sides = vec![Side {
            family: Family::V4,
            network: self.network.into(),
            subnet: self.subnet.net().into(),
            peers: self.peers.iter().copied().map(IpAddr::from).collect(),
        }];
        sides.extend(self.v6.as_ref().map(|v6| Side {
            family: Family::V6,
            network: v6.network.into(),
            subnet: v6.subnet.net().into(),
            peers: v6.peers.iter().copied().map(IpAddr::from).collect(),
        }));
        sides
    }

    fn set(&self, side: &Side) -> String {
        let (name, kind) = (self.set_name(side), side.pick("ipv4_addr", "ipv6_addr"));
        let peers: Vec<String> = side.peers.iter().map(ToString::to_string).collect();
        let elements = match peers.is_empty() {
            true => String::new(),
            false => format!("\t\telements = {{ {} }}\n", peers.join(", ")),
        };
        format!("\tset {name} {{\n\t\ttype {kind}\n{elements}\t}}\n")
    }

    fn prerouting(&self, side: &Side) -> String {
        let (ip, network, underlay) = (side.pick("ip", "ip6"), side.network, &self.underlay);
        let mut rules = match self.direct {
            false => format!(
                "\t\tiifname \"{underlay}\" {ip} saddr {network} counter drop\n\
                 \t\tiifname \"{underlay}\" {ip} daddr {network} counter drop\n"
            ),
            // Containers of peers come as they are. A stranger who forges their address gets no answer.
            true => format!(
                "\t\tiifname \"{underlay}\" {ip} daddr {network} {ip} saddr != {network} {ip} saddr != @{} counter drop\n",
                self.set_name(side)
            ),
        };
        for device in &self.devices {
            rules.push_str(&format!("\t\tiifname \"{device}\" {ip} saddr != {network} counter drop\n"));
        }
        rules
    }

    fn input(&self, side: &Side) -> String {
        // The VNI is the fifth to seventh byte behind UDP's eight (RFC 7348).
        let (ip, set, vni) = (side.pick("ip", "ip6"), self.set_name(side), format!("@th,96,24 {}", self.vni));
        match self.vxlan_port {
            Some(port) => {
                let other = if self.v6.is_some() {
                    String::new()
                } else {
                    format!("\t\tmeta nfproto ipv6 udp dport {port} {vni} counter drop\n")
                };
                format!("\t\tudp dport {port} {vni} {ip} saddr != @{set} counter drop\n{other}")
            }
            None => String::new(),
        }
    }

    fn forward(&self, side: &Side) -> String {
        let (ip, network) = (side.pick("ip", "ip6"), side.network);
        let underlay = Some(&self.underlay).filter(|_| self.direct);
        let lo = "lo".to_owned();
        let inside: Vec<String> = self
            .devices
            .iter()
            .chain(&self.bridges)
            .chain(underlay)
            .chain([&lo])
            .map(|name| format!("\"{name}\""))
            .collect();
        format!(
            "\t\t{ip} daddr {network} ct state established,related accept\n\
             \t\t{ip} daddr {network} ct status dnat accept\n\
             \t\t{ip} daddr {network} iifname != {{ {} }} counter drop\n",
            inside.join(", ")
        )
    }

    fn postrouting(&self, side: &Side) -> String {
        let (ip, network, subnet) = (side.pick("ip", "ip6"), side.network, side.subnet);
        let multicast = side.pick("224.0.0.0/4", "ff00::/8");
        format!(
            "\t\t{ip} saddr {subnet} {ip} daddr {network} return\n\
             \t\t{ip} saddr {network} {ip} daddr {subnet} return\n\
             \t\t{ip} saddr != {network} {ip} daddr {subnet} return\n\
             \t\t{ip} saddr {network} {ip} daddr != {multicast} masquerade fully-random\n\
             \t\t{ip} saddr != {network} {ip} daddr {network} masquerade fully-random\n"
        )
    }

    fn keep_source(&self, side: &Side) -> String {
        let (ip, network, subnet) = (side.pick("ip", "ip6"), side.network, side.subnet);
        let underlay = Some(&self.underlay).filter(|_| self.direct);
        let out = self.devices.iter().chain(underlay);
        let rule = |device: &String| {
            format!(
                "\t\toifname \"{device}\" {ip} saddr {subnet} {ip} daddr {network} snat {ip} to {ip} saddr\n"
            )
        };
        out.map(rule).collect()
    }

    /// Input of `nft -f -`: removes our table, whether it is there or not.
    pub fn nft_removal() -> &'static str {
        "add table inet muster\ndelete table inet muster\n"
    }

    /// What must be accepted where the policy of FORWARD is DROP: traffic between the bridge and the VXLAN device,
    /// and what containers send to the world with the replies to it. None of it lets the outside in.
    ///
    /// Docker's chain for other people's rules only gets the first of the two, because it is asked before Docker
    /// keeps its own networks apart.
    pub fn iptables_rules(&self) -> IptablesRules {
        let (mut overlay, mut forward) = (String::new(), String::new());
        self.networks().for_each(|network| network.accepted(&mut overlay, &mut forward));
        let chains = format!(
            "*filter\n:MUSTER-OVERLAY - [0:0]\n:MUSTER-FORWARD - [0:0]\n{overlay}-A MUSTER-FORWARD -j MUSTER-OVERLAY\n{forward}COMMIT\n"
        );
        let jumps = [
            Jump { from: "DOCKER-USER", to: "MUSTER-OVERLAY", always_there: false },
            Jump { from: "FORWARD", to: "MUSTER-FORWARD", always_there: true },
        ];
        IptablesRules { chains, jumps }
    }

    fn accepted(&self, overlay: &mut String, forward: &mut String) {
        let network = &self.network;
        let underlay = Some(&self.underlay).filter(|_| self.direct);
        let mut devices: Vec<&String> = self.devices.iter().chain(underlay).collect();
        devices.retain(|device| !device.starts_with("flannel-v6"));
        for bridge in &self.bridges {
            for device in &devices {
                overlay.push_str(&format!(
                    "-A MUSTER-OVERLAY -s {network} -d {network} -i {device} -o {bridge} -j ACCEPT\n\
                     -A MUSTER-OVERLAY -s {network} -d {network} -i {bridge} -o {device} -j ACCEPT\n"
                ));
            }
            forward.push_str(&format!(
                "-A MUSTER-FORWARD -s {network} -i {bridge} ! -o {bridge} -j ACCEPT\n\
                 -A MUSTER-FORWARD -d {network} -o {bridge} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n"
            ));
        }
    }
}

/// One family's part of the rules.
struct Side {
    family: Family,
    network: IpNet,
    subnet: IpNet,
    peers: BTreeSet<IpAddr>,
}

impl Side {
    fn pick(&self, v4: &'static str, v6: &'static str) -> &'static str {
        if self.family == Family::V4 { v4 } else { v6 }
    }
}

impl Jump {
    /// The arguments for `iptables` that add the jump to the chain that `iptables -S` lists as `listing`; none
    /// when it is there. It belongs behind the operator's own rules, but before a last one that ends the chain for
    /// every packet: Docker's `-j RETURN`, a distribution's `-j REJECT`.
    pub fn addition(&self, listing: &str) -> Option<Vec<String>> {
        let Self { from, to, .. } = *self;
        let prefix = format!("-A {from} ");
        let rules: Vec<&str> =
            listing.lines().filter_map(|line| line.strip_prefix(prefix.as_str())).collect();
        if rules.contains(&format!("-j {to}").as_str()) {
            return None;
        }
        let ends_all =
            |rule: &&str| ["-j RETURN", "-j DROP", "-j REJECT"].iter().any(|target| rule.starts_with(target));
        let position = rules.last().filter(|rule| ends_all(rule)).map(|_| rules.len().to_string());
        let mut place = vec![if position.is_some() { "-I" } else { "-A" }.to_owned(), from.to_owned()];
        place.extend(position);
        Some([place, vec!["-j".to_owned(), to.to_owned()]].concat())
    }

    /// The arguments for `iptables` that remove the jump.
    pub fn removal(&self) -> [&'static str; 4] {
        ["-D", self.from, "-j", self.to]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn firewall(peers: &[[u8; 4]]) -> Firewall {
        Firewall {
            name: String::new(),
            vni: 1,
            others: Vec::new(),
            network: "10.1.0.0/16".parse().expect("a network"),
            subnet: Subnet::from_key("10.1.5.0-24").expect("a key"),
            devices: vec!["flannel.1".to_owned()],
            bridges: vec!["docker0".to_owned()],
            vxlan_port: Some(8472),
            direct: false,
            v6: None,
            peers: peers.iter().map(|peer| Ipv4Addr::from(*peer)).collect(),
            underlay: "eth0".to_owned(),
        }
    }

    #[test]
    fn nft_golden() {
        assert_eq!(
            firewall(&[[192, 168, 77, 3], [192, 168, 77, 2]]).nft_script(),
            include_str!("firewall/golden.nft")
        );
    }

    #[test]
    fn both_families_have_rules_of_their_own() {
        let v6 = Firewall6 {
            network: "fd00::/48".parse().expect("a network"),
            subnet: Subnet6::new("fd00:0:0:5::/64".parse().expect("a network")),
            peers: BTreeSet::from(["fd77::2".parse().expect("an address")]),
        };
        let devices = ["flannel.1", "flannel-v6.1"].map(str::to_owned).to_vec();
        let script = Firewall { v6: Some(v6), devices, ..firewall(&[]) }.nft_script();
        for rule in [
            "set peers6 {\n\t\ttype ipv6_addr\n\t\telements = { fd77::2 }",
            "udp dport 8472 @th,96,24 1 ip6 saddr != @peers6 counter drop",
            "ip6 saddr fd00::/48 ip6 daddr != ff00::/8 masquerade fully-random",
            "iifname \"flannel-v6.1\" ip6 saddr != fd00::/48 counter drop",
            "ip6 daddr fd00::/48 iifname != { \"flannel.1\", \"flannel-v6.1\", \"docker0\", \"lo\" } counter drop",
        ] {
            assert!(script.contains(rule), "{rule} is not in\n{script}");
        }
    }

    #[test]
    fn packets_that_come_as_they_are_come_from_inside_or_from_peers() {
        let script =
            Firewall { direct: true, devices: Vec::new(), vxlan_port: None, ..firewall(&[]) }.nft_script();
        assert!(script.contains("iifname \"eth0\" ip daddr 10.1.0.0/16 ip saddr != 10.1.0.0/16 ip saddr != @peers counter drop"), "{script}");
        assert!(
            !script.contains("udp dport") && script.contains("oifname \"eth0\" ip saddr 10.1.5.0/24"),
            "{script}"
        );
    }

    #[test]
    fn peers_alone_change_no_rule() {
        let one = firewall(&[[192, 168, 77, 2]]);
        assert!(one.same_but_for_peers(&firewall(&[[192, 168, 77, 3], [192, 168, 77, 4]])));
        assert!(!one.same_but_for_peers(&Firewall { direct: true, ..one.clone() }));
        let v6 = Firewall6 {
            network: "fd00::/48".parse().expect("a network"),
            subnet: Subnet6::new("fd00:0:0:5::/64".parse().expect("a network")),
            peers: BTreeSet::from(["fd77::2".parse().expect("an address")]),
        };
        let none = Firewall6 { peers: BTreeSet::new(), ..v6 };
        let (both, fewer) =
            (Firewall { v6: Some(v6), ..one.clone() }, Firewall { v6: Some(none), ..one.clone() });
        assert!(both.same_but_for_peers(&fewer) && !both.same_but_for_peers(&one));

        let blue = |peer| Firewall { name: "blue".to_owned(), ..firewall(&[[192, 168, 77, peer]]) };
        let with = |other: Firewall| Firewall { others: vec![other], ..one.clone() };
        let (two, three) = (with(blue(2)), with(blue(3)));
        assert!(two.same_but_for_peers(&three) && !two.same_but_for_peers(&one), "those of another network");
        assert!(!two.same_but_for_peers(&with(Firewall { vni: 9, ..blue(2) })));
        let addresses = |firewall: &Firewall| firewall.peers_by_set()["peers_blue"].clone();
        assert_eq!(addresses(&three), BTreeSet::from([IpAddr::from([192, 168, 77, 3])]));
        assert_eq!(three.peers_by_set()["peers"], two.peers_by_set()["peers"]);
    }

    #[test]
    fn without_peers_nobodys_packets_are_unpacked() {
        let script = firewall(&[]).nft_script();
        assert!(script.contains("set peers {\n\t\ttype ipv4_addr\n\t}\n"), "{script}");
        assert!(script.contains("ip saddr != @peers counter drop"), "{script}");
    }

    #[test]
    fn point_15_several_networks_share_a_table_and_each_speaks_for_itself() {
        let blue = Firewall {
            name: "blue".to_owned(),
            vni: 2,
            network: "10.2.0.0/16".parse().expect("a network"),
            subnet: Subnet::from_key("10.2.5.0-24").expect("a key"),
            devices: vec!["flannel.2".to_owned()],
            bridges: vec!["muster-blue".to_owned()],
            ..firewall(&[[192, 168, 77, 9]])
        };
        let both = Firewall { others: vec![blue], ..firewall(&[[192, 168, 77, 2]]) };
        assert_eq!(both.sets(), ["peers", "peers_blue"]);
        let script = both.nft_script();
        for rule in [
            "set peers_blue {\n\t\ttype ipv4_addr\n\t\telements = { 192.168.77.9 }",
            "udp dport 8472 @th,96,24 1 ip saddr != @peers counter drop",
            "udp dport 8472 @th,96,24 2 ip saddr != @peers_blue counter drop",
            "ip daddr 10.1.0.0/16 iifname != { \"flannel.1\", \"docker0\", \"lo\" } counter drop",
            "ip daddr 10.2.0.0/16 iifname != { \"flannel.2\", \"muster-blue\", \"lo\" } counter drop",
        ] {
            assert!(script.contains(rule), "{rule} is not in\n{script}");
        }
        let chains = both.iptables_rules().chains;
        assert!(chains.contains("-i flannel.2 -o muster-blue -j ACCEPT"), "{chains}");
        assert!(!chains.contains("-i flannel.2 -o docker0"), "{chains}");
    }

    #[test]
    fn iptables_golden() {
        assert_eq!(firewall(&[]).iptables_rules().chains, include_str!("firewall/golden.iptables"));
    }

    #[test]
    fn a_jump_goes_before_what_ends_the_chain_and_only_once() {
        let [docker, forward] = firewall(&[]).iptables_rules().jumps;
        let addition = |jump: Jump, listing: &str| jump.addition(listing).map(|args| args.join(" "));
        let listing = "-N DOCKER-USER\n-A DOCKER-USER -s 10.9.0.0/16 -j DROP\n-A DOCKER-USER -j RETURN\n";
        assert_eq!(addition(docker, listing).as_deref(), Some("-I DOCKER-USER 2 -j MUSTER-OVERLAY"));
        let listing = "-P FORWARD ACCEPT\n-A FORWARD -j REJECT --reject-with icmp-host-prohibited\n";
        assert_eq!(addition(forward, listing).as_deref(), Some("-I FORWARD 1 -j MUSTER-FORWARD"));
        let listing = "-P FORWARD DROP\n-A FORWARD -j DOCKER-USER\n-A FORWARD -s 10.9.0.0/16 -j DROP\n";
        assert_eq!(addition(forward, listing).as_deref(), Some("-A FORWARD -j MUSTER-FORWARD"));
        assert_eq!(addition(forward, "-P FORWARD DROP\n").as_deref(), Some("-A FORWARD -j MUSTER-FORWARD"));
        assert_eq!(addition(forward, "-A FORWARD -j MUSTER-FORWARD\n-A FORWARD -j DROP\n"), None);
    }
}
