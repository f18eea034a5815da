//! Peers that came and went, in the sets of our nftables table: one transaction over netlink, and no program.
//!
//! Not here: the rest of the rules. Invariant: packets of a peer that stays are never refused meanwhile.

use super::nfnetlink::{Asker, DELETE_SET_ELEMENTS, INET, NEW_SET_ELEMENTS, attribute, nested, string};
use super::watch::ANSWER_TIMEOUT;
use crate::NetError;
use muster_core::overlay::Firewall;
use std::{collections::BTreeSet, io, net::IpAddr};

/// So that a list fits an attribute, whose length has 16 bits: an IPv6 element takes 28 bytes.
const IN_A_MESSAGE: usize = 1000;

// From linux/netfilter/nf_tables.h: attributes of a list of elements, of an element, of a value.
const TABLE: u16 = 1;
const SET: u16 = 2;
const ELEMENTS: u16 = 3;
const ELEMENT: u16 = 1;
const KEY: u16 = 1;
const VALUE: u16 = 1;

/// Makes the sets of peers, which are as `from` has them, as `to` has them. Fails without effect where the table is
/// not there or its sets are others: then [`apply_firewall`](super::apply_firewall) is needed.
pub async fn change_peers(from: &Firewall, to: &Firewall) -> Result<(), NetError> {
    let mut changes = Vec::new();
    let (mut from, to) = (from.peers_by_set(), to.peers_by_set());
    for (set, peers) in &to {
        difference(set, &from.remove(set).unwrap_or_default(), peers, &mut changes);
    }
    if changes.is_empty() {
        return Ok(());
    }
    let commit = async { Asker::new()?.commit(INET, &changes).await };
    let timeout = || NetError::Timeout { from: "nftables".to_owned(), seconds: ANSWER_TIMEOUT.as_secs() };
    let outcome: io::Result<()> =
        tokio::time::timeout(ANSWER_TIMEOUT, commit).await.map_err(|_| timeout())?;
    outcome.map_err(|source| NetError::Refused { action: "change the peers in nftables".to_owned(), source })
}

fn difference(set: &str, from: &BTreeSet<IpAddr>, to: &BTreeSet<IpAddr>, changes: &mut Vec<(u16, Vec<u8>)>) {
    let (new, gone): (Vec<_>, Vec<_>) = (to.difference(from).collect(), from.difference(to).collect());
    for (kind, peers) in [(NEW_SET_ELEMENTS, new), (DELETE_SET_ELEMENTS, gone)] {
        changes.extend(peers.chunks(IN_A_MESSAGE).map(|peers| (kind, elements(set, peers))));
    }
}

fn elements(set: &str, peers: &[&IpAddr]) -> Vec<u8> {
    let element = |peer: &&IpAddr| {
        let key = match peer {
            IpAddr::V4(peer) => attribute(VALUE, &peer.octets()),
            IpAddr::V6(peer) => attribute(VALUE, &peer.octets()),
        };
        nested(ELEMENT, &nested(KEY, &key))
    };
    let list: Vec<u8> = peers.iter().flat_map(element).collect();
    [string(TABLE, "muster"), string(SET, set), nested(ELEMENTS, &list)].concat()
}
