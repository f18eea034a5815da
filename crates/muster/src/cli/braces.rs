//! Brace expansion as bash does it: `{1..4}`, `{01..10}`, `{a,b}`, several in one word, one in another.
//!
//! The shell usually does this; `sh` does not, and in a unit file there is no shell. What is no expansion stays as
//! it is.

/// More words than this from one argument are a slip of the finger.
const MAX: usize = 10_000;

/// The words that `word` stands for; at least one.
pub fn expand(word: &str) -> Vec<String> {
    let Some((start, end, inner)) = first_group(word) else { return vec![word.to_owned()] };
    let (before, after) = (&word[..start], &word[end + 1..]);
    let tails = expand(after);
    let mut words = Vec::new();
    for middle in inner.iter().flat_map(|part| expand(part)) {
        for tail in &tails {
            if words.len() < MAX {
                words.push(format!("{before}{middle}{tail}"));
            }
        }
    }
    words
}

/// The first group that is one, with its alternatives.
fn first_group(word: &str) -> Option<(usize, usize, Vec<String>)> {
    word.match_indices('{').find_map(|(start, _)| {
        let end = closing(word, start)?;
        Some((start, end, alternatives(&word[start + 1..end])?))
    })
}

fn closing(word: &str, start: usize) -> Option<usize> {
    let mut depth = 0_usize;
    for (place, c) in word[start..].char_indices() {
        match c {
            '{' => depth += 1,
            '}' => {
                depth -= 1;
                if depth == 0 {
                    return Some(start + place);
                }
            }
            _ => {}
        }
    }
    None
}

fn alternatives(inner: &str) -> Option<Vec<String>> {
    let mut parts = vec![String::new()];
    let mut depth = 0_usize;
    for c in inner.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        parts.last_mut()?.push(c);
    }
    if parts.len() > 1 { Some(parts) } else { range(inner) }
}

fn range(inner: &str) -> Option<Vec<String>> {
    let (from, to) = inner.split_once("..")?;
    let (first, last): (i64, i64) = (from.parse().ok()?, to.parse().ok()?);
    let padded =
        |text: &str| text.trim_start_matches('-').len() > 1 && text.trim_start_matches('-').starts_with('0');
    let width = if padded(from) || padded(to) { from.len().max(to.len()) } else { 0 };
    let count = usize::try_from(first.abs_diff(last)).ok()?.saturating_add(1).min(MAX);
    let step = if first <= last { 1 } else { -1 };
    let number = |n| first + step * i64::try_from(n).unwrap_or(i64::MAX);
    Some((0..count).map(|n| format!("{:0width$}", number(n))).collect())
}

#[cfg(test)]
mod tests {
    use super::expand;

    #[test]
    fn it_expands_as_bash_does() {
        for (word, expected) in [
            ("web@{1..3}", "web@1 web@2 web@3"),
            ("web@{3..1}.service", "web@3.service web@2.service web@1.service"),
            ("w{08..10}", "w08 w09 w10"),
            ("{a,b}@{1..2}", "a@1 a@2 b@1 b@2"),
            ("x{a,{1..2}}", "xa x1 x2"),
            ("plain", "plain"),
            ("{}", "{}"),
            ("{one}", "{one}"),
            ("{1..", "{1.."),
            ("}{", "}{"),
            ("{{1..2}", "{1 {2"),
        ] {
            assert_eq!(expand(word).join(" "), expected, "{word}");
        }
        assert_eq!(expand("x{1..99999999}").len(), 10_000);
    }
}
