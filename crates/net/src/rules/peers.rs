//! Peers that came and went, in the sets of our nftables table: one transaction over netlink, and no program.
//!
//! Not here: the rest of the rules. Invariant: packets of a peer that stays are never refused meanwhile.

use super::nfnetlink::{Asker, DELETE_SET_ELEMENTS, INET, NEW_SET_ELEMENTS, attribute, nested, string};
use super::watch::ANSWER_TIMEOUT;
use crate::NetError;
use muster_core::overlay::Firewall;
use std::{collections::BTreeSet, io};

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
    let keys = |firewall: &Firewall| -> BTreeSet<Vec<u8>> {
        firewall.peers.iter().map(|peer| peer.octets().to_vec()).collect()
    };
    difference("peers", &keys(from), &keys(to), &mut changes);
    let keys = |firewall: &Firewall| -> BTreeSet<Vec<u8>> {
        let peers = firewall.v6.iter().flat_map(|v6| &v6.peers);
        peers.map(|peer| peer.octets().to_vec()).collect()
    };
    difference("peers6", &keys(from), &keys(to), &mut changes);
    if changes.is_empty() {
        return Ok(());
    }
    let commit = async { Asker::new()?.commit(INET, &changes).await };
    let timeout = || NetError::Timeout { from: "nftables".to_owned(), seconds: ANSWER_TIMEOUT.as_secs() };
    let outcome: io::Result<()> =
        tokio::time::timeout(ANSWER_TIMEOUT, commit).await.map_err(|_| timeout())?;
    outcome.map_err(|source| NetError::Refused { action: "change the peers in nftables".to_owned(), source })
}

fn difference(
    set: &str,
    from: &BTreeSet<Vec<u8>>,
    to: &BTreeSet<Vec<u8>>,
    changes: &mut Vec<(u16, Vec<u8>)>,
) {
    let (new, gone): (Vec<_>, Vec<_>) = (to.difference(from).collect(), from.difference(to).collect());
    for (kind, keys) in [(NEW_SET_ELEMENTS, new), (DELETE_SET_ELEMENTS, gone)] {
        changes.extend(keys.chunks(IN_A_MESSAGE).map(|keys| (kind, elements(set, keys))));
    }
}

fn elements(set: &str, keys: &[&Vec<u8>]) -> Vec<u8> {
    let element = |key: &&Vec<u8>| nested(ELEMENT, &nested(KEY, &attribute(VALUE, key)));
    let list: Vec<u8> = keys.iter().flat_map(element).collect();
    [string(TABLE, "muster"), string(SET, set), nested(ELEMENTS, &list)].concat()
}
