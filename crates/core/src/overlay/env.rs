//! The two files that tell Docker about the machine's subnet, byte for byte as flannel's tools write them.
//!
//! Not here: writing the files, restarting Docker. Invariant: the first usable address goes to the bridge, and
//! Docker never masquerades, because our own rules do.

use model::{NetworkConfig, Subnet};

/// flannel's `subnet.env`, which CNI plugins and `mk-docker-opts.sh` read too. `mtu` is the VXLAN device's, in
/// bytes.
pub fn subnet_env(config: &NetworkConfig, subnet: Subnet, mtu: u32) -> String {
    format!(
        "FLANNEL_NETWORK={}\nFLANNEL_SUBNET={}\nFLANNEL_MTU={mtu}\nFLANNEL_IPMASQ=true\n",
        config.network,
        bridge_address(subnet),
    )
}

/// What flannel's `mk-docker-opts.sh` makes of [`subnet_env`] by default: each of dockerd's options on its own,
/// and all of them in `DOCKER_OPTS`.
pub fn docker_env(subnet: Subnet, mtu: u32) -> String {
    let (bip, masquerade, mtu) =
        (format!("--bip={}", bridge_address(subnet)), "--ip-masq=false", format!("--mtu={mtu}"));
    format!(
        "DOCKER_OPT_BIP=\"{bip}\"\nDOCKER_OPT_IPMASQ=\"{masquerade}\"\nDOCKER_OPT_MTU=\"{mtu}\"\n\
         DOCKER_OPTS=\" {bip} {masquerade} {mtu}\"\n"
    )
}

fn bridge_address(subnet: Subnet) -> String {
    format!("{}/{}", subnet.bridge(), subnet.net().prefix_len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_files_are_flannels_byte_for_byte() {
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
            docker_env(subnet, 1350),
            "DOCKER_OPT_BIP=\"--bip=10.7.84.1/24\"\n\
             DOCKER_OPT_IPMASQ=\"--ip-masq=false\"\n\
             DOCKER_OPT_MTU=\"--mtu=1350\"\n\
             DOCKER_OPTS=\" --bip=10.7.84.1/24 --ip-masq=false --mtu=1350\"\n"
        );
    }
}
