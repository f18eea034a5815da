//! What nftables has of our rules, read over netlink and not by a program: cheap enough to look at every announcement.
//!
//! Not here: what the rules should be. Only whether they are still those that were there after we put them in place.
//! Rules of `iptables` are seen where it stores them in nftables, as it does by default since 2018.

use super::nfnetlink::{Asker, GET_CHAIN, GET_RULE, GET_SET_ELEMENTS, INET, IPV4, attributes, bytes, text};
use crate::NetError;
use std::{
    collections::{BTreeSet, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
    time::Duration,
};

/// The kernel answers at once, or it is busy with a large change of rules.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// What nftables has of our rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RulesMark {
    /// A number that stays the same as long as our rules and the peers in them do, and changes with any of them.
    pub own: u64,
    /// Whether Docker's chain for other people's rules is there: ours must be jumped to from it.
    pub docker: bool,
}

/// Looks at what is there of our rules, and at `sets`, the sets of peers that they speak of.
pub async fn rules_mark(sets: &[String]) -> Result<RulesMark, NetError> {
    let read = async {
        let mut asker = Asker::new()?;
        let mut hasher = DefaultHasher::new();
        for message in asker.dump(GET_RULE, INET, &[(1, "muster")]).await? {
            (text(&message, 2), bytes(&message, 3)).hash(&mut hasher);
        }
        for set in sets {
            // Sorted, because the kernel's own order changes when it makes a table larger.
            let mut elements = BTreeSet::new();
            for message in asker.dump(GET_SET_ELEMENTS, INET, &[(1, "muster"), (2, set.as_str())]).await? {
                elements
                    .extend(attributes(bytes(&message, 3)).map(|(_, element)| bytes(element, 1).to_vec()));
            }
            elements.hash(&mut hasher);
        }
        let mut docker = false;
        for message in asker.dump(GET_CHAIN, IPV4, &[]).await? {
            let (table, name) = (text(&message, 1), text(&message, 3));
            docker |= table == "filter" && name == "DOCKER-USER";
            if table == "filter" && name.starts_with("MUSTER-") {
                name.hash(&mut hasher);
            }
        }
        for message in asker.dump(GET_RULE, IPV4, &[(1, "filter")]).await? {
            let chain = text(&message, 2);
            let jumps = || message.windows(7).any(|window| window == b"MUSTER-");
            let jump = ["FORWARD", "DOCKER-USER"].contains(&chain.as_str()) && jumps();
            if jump || chain.starts_with("MUSTER-") {
                (chain, bytes(&message, 3)).hash(&mut hasher);
            }
        }
        Ok(RulesMark { own: hasher.finish(), docker })
    };
    let answered = tokio::time::timeout(ANSWER_TIMEOUT, read).await;
    let timeout = || NetError::Timeout { from: "nftables".to_owned(), seconds: ANSWER_TIMEOUT.as_secs() };
    answered
        .map_err(|_| timeout())?
        .map_err(|source| NetError::Refused { action: "read nftables' rules".to_owned(), source })
}
