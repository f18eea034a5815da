//! "Did you mean": the nearest of a few known words.
//!
//! Responsible for judging when two words are near enough that one is probably a slip for the other.
//! Not responsible for saying so.
//! Invariant: a word is never its own suggestion.

/// The known word that `word` is probably a slip for: it differs in case only, or by at most a third of its
/// letters and never more than three. The first of the nearest wins.
pub(crate) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let allowed = (word.chars().count() / 3).min(3);
    known
        .iter()
        .filter(|candidate| **candidate != word)
        .map(|candidate| (distance(word, candidate), *candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance, without regard to case.
fn distance(a: &str, b: &str) -> usize {
    let fold = |text: &str| text.chars().map(|c| c.to_ascii_lowercase()).collect::<Vec<_>>();
    let (a, b) = (fold(a), fold(b));
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_misses_are_found_and_strangers_are_not() {
        let known = ["MachineOf", "MachineID", "Conflicts", "Global"];
        assert_eq!(nearest("machineof", &known), Some("MachineOf"));
        assert_eq!(nearest("MachinesOf", &known), Some("MachineOf"));
        assert_eq!(nearest("Conflict", &known), Some("Conflicts"));
        assert_eq!(nearest("Globl", &known), Some("Global"));
        assert_eq!(nearest("Weight", &known), None);
        assert_eq!(nearest("Global", &["Global"]), None);
        assert_eq!(nearest("", &known), None);
    }
}
