//! What is wrong between this machine and a peer, from what its probes came to.
//!
//! Not here: sending anything.

use serde::{Deserialize, Serialize};

/// What the probes of one peer came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probes {
    /// The peer's machine answers on the machines' own network.
    pub underlay: bool,
    /// A small packet through the overlay is answered.
    pub small: bool,
    /// One as large as the overlay's MTU is.
    pub full: bool,
    /// A TCP connection through the overlay is answered, were it by a refusal.
    pub tcp: bool,
}

/// Who is to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Culprit {
    /// Nobody: all is well.
    Nobody,
    /// The machine, or the network between the machines.
    Underlay,
    /// Something that drops the overlay's own packets.
    Firewall,
    /// Something between that carries less than the interface says.
    Mtu,
    /// Wrong checksums of the outer packets, as some network cards and kernels make them.
    Checksum,
}

/// Who is to blame for what the probes came to, and what to do about it. `transport` is what carries packets between
/// machines, e.g. `8472/udp`; `device` is ours.
pub fn diagnose(probes: Probes, transport: &str, device: &str, mtu: u32) -> (Culprit, String) {
    match probes {
        Probes { small: true, full: true, tcp: true, .. } => (Culprit::Nobody, String::new()),
        Probes { small: true, full: false, .. } => (
            Culprit::Mtu,
            format!(
                "packets of {mtu} bytes do not arrive, small ones do: something between the machines carries less; set \
                 a smaller \"MTU\" in the backend's configuration (`muster net config`)"
            ),
        ),
        Probes { small: true, full: true, tcp: false, .. } => (
            Culprit::Checksum,
            format!(
                "ping is answered and TCP is not: either the peer's firewall drops it, or outer checksums are wrong; for \
                 the second try `ethtool -K {device} tx-checksum-ip-generic off` on both machines"
            ),
        ),
        Probes { small: false, tcp: true, .. } => {
            (Culprit::Nobody, "the peer answers TCP but no ping: its firewall drops ICMP".to_owned())
        }
        Probes { underlay: false, .. } => (
            Culprit::Underlay,
            "the machine does not answer on the machines' own network either: is it up, and is its address right?"
                .to_owned(),
        ),
        Probes { small: false, underlay: true, .. } => (
            Culprit::Firewall,
            format!(
                "the machine answers, but not through the overlay: let {transport} pass between the machines, and look at \
                 `muster net status` there"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn point_14_the_culprit_is_named_with_a_remedy() {
        let told = |underlay, small, full, tcp| {
            diagnose(Probes { underlay, small, full, tcp }, "8472/udp", "flannel.1", 1450)
        };
        assert_eq!(told(true, true, true, true), (Culprit::Nobody, String::new()));
        for (probes, culprit, remedy) in [
            ((false, false, false, false), Culprit::Underlay, "is it up"),
            ((true, false, false, false), Culprit::Firewall, "let 8472/udp pass"),
            ((true, true, false, true), Culprit::Mtu, "1450 bytes"),
            ((true, true, true, false), Culprit::Checksum, "ethtool -K flannel.1"),
            ((true, false, false, true), Culprit::Nobody, "drops ICMP"),
        ] {
            let (who, what) = told(probes.0, probes.1, probes.2, probes.3);
            assert_eq!(who, culprit);
            assert!(what.contains(remedy), "{what}");
        }
    }
}
