//! Patterns of `Conflicts=` and `Replaces=`, each once, with the units that match it, the units that declare it, and
//! how many of both each machine has.
//!
//! Not here: what a match means. Invariant: after every change of a unit's rules or place the counts are those that
//! a full count would give, so that a check costs the number of patterns and not that of units.

use super::state::{M, U};
use std::collections::{BTreeMap, BTreeSet};
use unit::Glob;

/// A pattern's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct P(u32);

/// What declares a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    Conflicts,
    Replaces,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Counts {
    /// Units here whose names fit.
    pub(super) members: u32,
    /// Units here that declare it in `Conflicts=`.
    pub(super) conflicts: u32,
    /// Units here that declare it in `Replaces=`.
    pub(super) replaces: u32,
}

#[derive(Debug, Clone)]
pub(super) struct Pattern {
    glob: Glob,
    pub(super) members: BTreeSet<U>,
    pub(super) conflicts: BTreeSet<U>,
    pub(super) replaces: BTreeSet<U>,
    pub(super) hosts: BTreeMap<M, Counts>,
}

impl Pattern {
    pub(super) fn on(&self, m: M) -> Option<&Counts> {
        self.hosts.get(&m)
    }

    fn count(&mut self, m: M, add: bool, which: fn(&mut Counts) -> &mut u32) {
        let counts = self.hosts.entry(m).or_default();
        let number = which(counts);
        *number = if add { *number + 1 } else { number.saturating_sub(1) };
        if counts.members + counts.conflicts + counts.replaces == 0 {
            self.hosts.remove(&m);
        }
    }

    pub(super) fn count_member(&mut self, m: M, add: bool) {
        self.count(m, add, |counts| &mut counts.members);
    }

    pub(super) fn count_declarer(&mut self, m: M, how: Use, add: bool) {
        match how {
            Use::Conflicts => self.count(m, add, |counts| &mut counts.conflicts),
            Use::Replaces => self.count(m, add, |counts| &mut counts.replaces),
        }
    }
}

#[derive(Debug, Clone, Default)]
pub(super) struct Patterns {
    slots: Vec<Option<Pattern>>,
    free: Vec<P>,
    by_text: BTreeMap<String, P>,
    /// By what names must begin with: its length, then itself.
    by_prefix: BTreeMap<usize, BTreeMap<String, Vec<P>>>,
}

impl Patterns {
    pub(super) fn get(&self, p: P) -> &Pattern {
        self.slots[p.0 as usize].as_ref().expect("patterns live as long as a unit declares them")
    }

    pub(super) fn get_mut(&mut self, p: P) -> &mut Pattern {
        self.slots[p.0 as usize].as_mut().expect("patterns live as long as a unit declares them")
    }

    /// The pattern's number, and whether it is new: then its members are to be found.
    pub(super) fn intern(&mut self, glob: &Glob) -> (P, bool) {
        if let Some(known) = self.by_text.get(glob.as_str()) {
            return (*known, false);
        }
        let p = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            P(u32::try_from(self.slots.len() - 1).expect("fewer patterns than units"))
        });
        self.slots[p.0 as usize] = Some(Pattern {
            glob: glob.clone(),
            members: BTreeSet::new(),
            conflicts: BTreeSet::new(),
            replaces: BTreeSet::new(),
            hosts: BTreeMap::new(),
        });
        self.by_text.insert(glob.as_str().to_owned(), p);
        let prefix = glob.prefix();
        self.by_prefix.entry(prefix.len()).or_default().entry(prefix).or_default().push(p);
        (p, true)
    }

    /// Forgets a pattern that nobody declares any longer; gives its members, which must forget it too.
    pub(super) fn drop_unused(&mut self, p: P) -> BTreeSet<U> {
        let pattern = self.get(p);
        if !pattern.conflicts.is_empty() || !pattern.replaces.is_empty() {
            return BTreeSet::new();
        }
        let pattern = self.slots[p.0 as usize].take().expect("just seen");
        self.free.push(p);
        self.by_text.remove(pattern.glob.as_str());
        let prefix = pattern.glob.prefix();
        if let Some(same_length) = self.by_prefix.get_mut(&prefix.len()) {
            if let Some(list) = same_length.get_mut(&prefix) {
                list.retain(|other| *other != p);
                if list.is_empty() {
                    same_length.remove(&prefix);
                }
            }
            if same_length.is_empty() {
                self.by_prefix.remove(&prefix.len());
            }
        }
        pattern.members
    }

    /// All patterns that `name` fits, in order.
    pub(super) fn matching(&self, name: &str) -> Vec<P> {
        let mut found = Vec::new();
        for (length, same_length) in &self.by_prefix {
            let Some(list) = name.get(..*length).and_then(|prefix| same_length.get(prefix)) else { continue };
            found.extend(list.iter().filter(|p| self.get(**p).glob.matches(name)));
        }
        found.sort_unstable();
        found
    }

    pub(super) fn glob(&self, p: P) -> &Glob {
        &self.get(p).glob
    }
}
