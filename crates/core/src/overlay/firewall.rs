//! The rules around the cluster network: containers keep their own address inside it, are masqueraded towards
//! the rest of the world, and cannot be reached from there.
//!
//! Not here: running `nft` and `iptables`. Invariant: everything lives in a table and in chains of our own; other
//! rules are never changed, only two jumps are added. What the outside may not do is decided by `drop` in
//! nftables, because a drop in any chain is final, whereas an accept is only that chain's opinion: hence the second
//! set of rules, for hosts whose FORWARD policy is DROP (Docker sets it when it turned forwarding on itself).

use super::Desired;
use ipnet::Ipv4Net;
use model::{NetworkConfig, Subnet};
use serde::Serialize;
use std::{collections::BTreeSet, net::Ipv4Addr};

/// What the rules of one machine depend on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Firewall {
    /// All of the cluster network.
    pub network: Ipv4Net,
    /// This machine's share.
    pub subnet: Subnet,
    /// The VXLAN device.
    pub device: String,
    /// The bridge that containers are on: `docker0`.
    pub bridge: String,
    /// The UDP port of VXLAN.
    pub vxlan_port: u16,
    /// The only machines whose VXLAN packets are taken.
    pub peers: BTreeSet<Ipv4Addr>,
    /// The interface that carries the machine's own address.
    pub underlay: String,
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
    /// The rules around `desired`, for a machine whose containers are on `bridge`.
    pub fn new(config: &NetworkConfig, subnet: Subnet, desired: &Desired, bridge: &str) -> Self {
        Self {
            network: config.network,
            subnet,
            device: desired.device.name.clone(),
            bridge: bridge.to_owned(),
            vxlan_port: desired.device.port,
            peers: desired.peers.values().map(|peer| peer.public_ip).collect(),
            underlay: desired.device.underlay.clone(),
        }
    }

    /// Input of `nft -f -`: puts our table in place of the one that may be there, in one transaction.
    ///
    /// A port that the operator publishes (`docker run -p`) stays reachable: such a connection carries the mark
    /// of destination NAT, which nobody outside can forge.
    pub fn nft_script(&self) -> String {
        let Self { network, subnet, device, bridge, vxlan_port, underlay, .. } = self;
        let peers = self.peers_elements();
        format!(
            r#"add table inet muster
delete table inet muster
table inet muster {{
	set peers {{
		type ipv4_addr
{peers}	}}

	# Nobody outside speaks for the cluster network, and nobody inside it for the rest of the world.
	chain prerouting {{
		type filter hook prerouting priority raw; policy accept;
		iifname "{underlay}" ip saddr {network} counter drop
		iifname "{underlay}" ip daddr {network} counter drop
		iifname "{device}" ip saddr != {network} counter drop
	}}

	# VXLAN has no authentication: only packets of machines that hold a lease are unpacked.
	chain input {{
		type filter hook input priority filter - 10; policy accept;
		udp dport {vxlan_port} ip saddr != @peers counter drop
	}}

	chain forward {{
		type filter hook forward priority filter - 10; policy accept;
		ip daddr {network} ct state established,related accept
		ip daddr {network} ct status dnat accept
		ip daddr {network} iifname != {{ "{device}", "{bridge}", "lo" }} counter drop
	}}

	# As flannel: no masquerading inside the cluster network.
	chain postrouting {{
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr {subnet} ip daddr {network} return
		ip saddr {network} ip daddr {subnet} return
		ip saddr != {network} ip daddr {subnet} return
		ip saddr {network} ip daddr != 224.0.0.0/4 masquerade fully-random
		ip saddr != {network} ip daddr {network} masquerade fully-random
	}}

	# Nor if somebody else would, as Docker does unless told otherwise: a source translated to itself is settled.
	chain keep_source {{
		type nat hook postrouting priority srcnat - 1; policy accept;
		oifname "{device}" ip saddr {subnet} ip daddr {network} snat ip to ip saddr
	}}
}}
"#
        )
    }

    fn peers_elements(&self) -> String {
        if self.peers.is_empty() {
            return String::new();
        }
        let peers: Vec<String> = self.peers.iter().map(Ipv4Addr::to_string).collect();
        format!("\t\telements = {{ {} }}\n", peers.join(", "))
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
        let Self { network, device, bridge, .. } = self;
        let chains = format!(
            "*filter
:MUSTER-OVERLAY - [0:0]
:MUSTER-FORWARD - [0:0]
-A MUSTER-OVERLAY -s {network} -d {network} -i {device} -o {bridge} -j ACCEPT
-A MUSTER-OVERLAY -s {network} -d {network} -i {bridge} -o {device} -j ACCEPT
-A MUSTER-FORWARD -j MUSTER-OVERLAY
-A MUSTER-FORWARD -s {network} -i {bridge} ! -o {bridge} -j ACCEPT
-A MUSTER-FORWARD -d {network} -o {bridge} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
"
        );
        let jumps = [
            Jump { from: "DOCKER-USER", to: "MUSTER-OVERLAY", always_there: false },
            Jump { from: "FORWARD", to: "MUSTER-FORWARD", always_there: true },
        ];
        IptablesRules { chains, jumps }
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
            network: "10.1.0.0/16".parse().expect("a network"),
            subnet: Subnet::from_key("10.1.5.0-24").expect("a key"),
            device: "flannel.1".to_owned(),
            bridge: "docker0".to_owned(),
            vxlan_port: 8472,
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
    fn without_peers_nobodys_packets_are_unpacked() {
        let script = firewall(&[]).nft_script();
        assert!(script.contains("set peers {\n\t\ttype ipv4_addr\n\t}\n"), "{script}");
        assert!(script.contains("ip saddr != @peers counter drop"), "{script}");
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
