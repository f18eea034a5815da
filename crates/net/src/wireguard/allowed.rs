//! Which peer an address belongs to: the longest of the allowed prefixes that has it.
//!
//! Invariant: a prefix belongs to one peer, as the check of a set of peers sees to.

use ipnet::IpNet;
use std::{collections::HashMap, net::IpAddr};

/// Prefixes by length. A cluster's are nearly all of one length, so a look-up is about one look into a table.
#[derive(Debug, Default)]
pub(super) struct Allowed {
    v4: Vec<(u8, HashMap<u32, usize>)>,
    v6: Vec<(u8, HashMap<u128, usize>)>,
}

impl Allowed {
    /// From prefixes and the peers they belong to.
    pub(super) fn new(networks: impl IntoIterator<Item = (IpNet, usize)>) -> Self {
        let mut allowed = Self::default();
        for (network, peer) in networks {
            match network {
                IpNet::V4(network) => {
                    table(&mut allowed.v4, network.prefix_len()).insert(network.network().into(), peer)
                }
                IpNet::V6(network) => {
                    table(&mut allowed.v6, network.prefix_len()).insert(network.network().into(), peer)
                }
            };
        }
        allowed.v4.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
        allowed.v6.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
        allowed
    }

    /// Whose the address is.
    pub(super) fn peer(&self, address: IpAddr) -> Option<usize> {
        match address {
            IpAddr::V4(address) => {
                let bits = u32::from(address);
                let masked = |length: u8| bits & u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
                self.v4.iter().find_map(|(length, table)| table.get(&masked(*length)).copied())
            }
            IpAddr::V6(address) => {
                let bits = u128::from(address);
                let masked = |length: u8| bits & u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
                self.v6.iter().find_map(|(length, table)| table.get(&masked(*length)).copied())
            }
        }
    }
}

fn table<K>(tables: &mut Vec<(u8, HashMap<K, usize>)>, length: u8) -> &mut HashMap<K, usize> {
    let at = tables.iter().position(|(held, _)| *held == length).unwrap_or_else(|| {
        tables.push((length, HashMap::new()));
        tables.len() - 1
    });
    &mut tables[at].1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn networks() -> impl Strategy<Value = Vec<IpNet>> {
        // Few bits, so that prefixes contain each other and addresses hit them.
        let v4 = (0u32..16, 0u8..=32).prop_map(|(bits, length)| {
            ipnet::Ipv4Net::new((bits << 28 | bits).into(), length).expect("a length").trunc().into()
        });
        let v6 = (0u128..16, 0u8..=128).prop_map(|(bits, length)| {
            ipnet::Ipv6Net::new((bits << 124 | bits).into(), length).expect("a length").trunc().into()
        });
        proptest::collection::vec(prop_oneof![v4, v6], 0..12)
    }

    proptest! {
        #[test]
        fn the_longest_prefix_wins(networks in networks(), bits in 0u32..16, six: bool) {
            let allowed = Allowed::new(networks.iter().enumerate().map(|(peer, network)| (*network, peer)));
            let address = match six {
                false => IpAddr::from((bits << 28 | bits).to_be_bytes()),
                true => IpAddr::from((u128::from(bits) << 124 | u128::from(bits)).to_be_bytes()),
            };
            let holders = networks.iter().enumerate().filter(|(_, network)| network.contains(&address));
            // Of equal ones the last, as inserted.
            let expected = holders.max_by_key(|(at, network)| (network.prefix_len(), *at)).map(|(at, _)| at);
            prop_assert_eq!(allowed.peer(address), expected);
        }
    }
}
