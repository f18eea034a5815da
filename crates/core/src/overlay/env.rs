//! The files that tell container runtimes about the machine's subnet, as flannel's tools write them.
//!
//! Not here: writing the files, restarting Docker. Invariant: the first usable address goes to the bridge, and
//! Docker never masquerades, because our own rules do.

use super::container_range;
use model::{NetworkConfig, Subnet, SubnetKey};

/// flannel's `subnet.env`, which CNI plugins and `mk-docker-opts.sh` read too. `mtu` is what containers may send at
/// once, in bytes.
pub fn subnet_env(config: &NetworkConfig, key: impl Into<SubnetKey>, mtu: u32) -> String {
    let key = key.into();
    let mut text = format!("FLANNEL_NETWORK={}\nFLANNEL_SUBNET={}\n", config.network, bridge_address(key.v4));
    if let (Some(v6), Some(subnet)) = (&config.v6, key.v6) {
        let len = subnet.net().prefix_len();
        text.push_str(&format!(
            "FLANNEL_IPV6_NETWORK={}\nFLANNEL_IPV6_SUBNET={}/{len}\n",
            v6.network,
            subnet.bridge()
        ));
    }
    text.push_str(&format!("FLANNEL_MTU={mtu}\nFLANNEL_IPMASQ=true\n"));
    text
}

/// What flannel's `mk-docker-opts.sh` makes of [`subnet_env`] by default: each of dockerd's options on its own,
/// and all of them in `DOCKER_OPTS`. Beyond flannel, with `dns` containers ask the machine itself for names, and with
/// `units` Docker leaves a part of the subnet to units that are no containers.
pub fn docker_env(key: impl Into<SubnetKey>, mtu: u32, dns: bool, units: bool) -> String {
    let subnet = key.into().v4;
    let (bip, masquerade, mtu) =
        (format!("--bip={}", bridge_address(subnet)), "--ip-masq=false", format!("--mtu={mtu}"));
    let dns = if dns { format!(" --dns={}", subnet.bridge()) } else { String::new() };
    let range = container_range(subnet).filter(|_| units);
    let range = range.map_or_else(String::new, |range| format!(" --fixed-cidr={range}"));
    format!(
        "DOCKER_OPT_BIP=\"{bip}\"\nDOCKER_OPT_IPMASQ=\"{masquerade}\"\nDOCKER_OPT_MTU=\"{mtu}\"\n\
         DOCKER_OPTS=\" {bip} {masquerade} {mtu}{dns}{range}\"\n"
    )
}

/// A network for runtimes that speak CNI (spec 0.4.0): the standard `bridge` plugin with addresses of this machine's
/// subnet from `host-local`. The bridge is one of its own, because two runtimes that hand out addresses of one range do
/// not know of each other: whoever uses this leaves Docker's bridge elsewhere. With `units` a part of the subnet is left to
/// units that are no containers.
pub fn cni_config(key: impl Into<SubnetKey>, mtu: u32, units: bool) -> String {
    let key = key.into();
    let end = container_range(key.v4).filter(|_| units);
    let end = end.map_or_else(String::new, |range| format!(",\"rangeEnd\":\"{}\"", range.broadcast()));
    let mut ranges = vec![format!("[{{\"subnet\":\"{}\"{end}}}]", key.v4)];
    let mut routes = vec![r#"{"dst":"0.0.0.0/0"}"#.to_owned()];
    if let Some(v6) = key.v6 {
        ranges.push(format!("[{{\"subnet\":\"{v6}\"}}]"));
        routes.push(r#"{"dst":"::/0"}"#.to_owned());
    }
    format!(
        r#"{{
  "cniVersion": "0.4.0",
  "name": "muster",
  "plugins": [
    {{
      "type": "bridge",
      "bridge": "cni0",
      "isGateway": true,
      "ipMasq": false,
      "hairpinMode": true,
      "mtu": {mtu},
      "ipam": {{"type": "host-local", "ranges": [{}], "routes": [{}]}}
    }},
    {{"type": "portmap", "capabilities": {{"portMappings": true}}}}
  ]
}}
"#,
        ranges.join(", "),
        routes.join(", "),
    )
}

fn bridge_address(subnet: Subnet) -> String {
    format!("{}/{}", subnet.bridge(), subnet.net().prefix_len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn point_11_both_files_are_flannels_byte_for_byte() {
        let config = NetworkConfig::vxlan("10.7.0.0/16".parse().expect("a network")).expect("valid");
        let subnet = Subnet::from_key("10.7.84.0-24").expect("a key");
        assert_eq!(
            subnet_env(&config, subnet, 1350),
            "FLANNEL_NETWORK=10.7.0.0/16\n\
             FLANNEL_SUBNET=10.7.84.1/24\n\
             FLANNEL_MTU=1350\n\
             FLANNEL_IPMASQ=true\n"
        );
        assert_eq!(
            docker_env(subnet, 1350, false, false),
            "DOCKER_OPT_BIP=\"--bip=10.7.84.1/24\"\n\
             DOCKER_OPT_IPMASQ=\"--ip-masq=false\"\n\
             DOCKER_OPT_MTU=\"--mtu=1350\"\n\
             DOCKER_OPTS=\" --bip=10.7.84.1/24 --ip-masq=false --mtu=1350\"\n"
        );
    }

    #[test]
    fn docker_leaves_units_their_part_of_the_subnet() {
        let subnet = Subnet::from_key("10.7.84.0-24").expect("a key");
        let text = docker_env(subnet, 1350, true, true);
        assert!(text.contains(" --mtu=1350 --dns=10.7.84.1 --fixed-cidr=10.7.84.0/25\"\n"), "{text}");
        let tiny = docker_env(Subnet::from_key("10.7.84.0-30").expect("a key"), 1350, true, true);
        assert!(!tiny.contains("fixed-cidr"), "{tiny}");
    }

    #[test]
    fn point_11_a_network_of_both_families_says_both() {
        let config: NetworkConfig =
            r#"{"Network":"10.7.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:7::/48"}"#.parse().expect("valid");
        let key: SubnetKey = "10.7.84.0-24&fd00:7:0:1c::-64".parse().expect("a key");
        assert_eq!(
            subnet_env(&config, key, 1350),
            "FLANNEL_NETWORK=10.7.0.0/16\n\
             FLANNEL_SUBNET=10.7.84.1/24\n\
             FLANNEL_IPV6_NETWORK=fd00:7::/48\n\
             FLANNEL_IPV6_SUBNET=fd00:7:0:1c::1/64\n\
             FLANNEL_MTU=1350\n\
             FLANNEL_IPMASQ=true\n"
        );
    }

    #[test]
    fn the_cni_configuration_is_json_with_our_subnet() {
        let key: SubnetKey = "10.7.84.0-24&fd00:7:0:1c::-64".parse().expect("a key");
        let parsed: serde_json::Value = serde_json::from_str(&cni_config(key, 1350, true)).expect("JSON");
        assert_eq!(parsed["plugins"][0]["ipam"]["ranges"][0][0]["subnet"], "10.7.84.0/24");
        assert_eq!(parsed["plugins"][0]["ipam"]["ranges"][0][0]["rangeEnd"], "10.7.84.127");
        assert_eq!(parsed["plugins"][0]["ipam"]["ranges"][1][0]["subnet"], "fd00:7:0:1c::/64");
        assert_eq!(parsed["plugins"][0]["mtu"], 1350);
    }
}
