//! Patterns in unit names: Go's `path.Match`, which fleet used for `Conflicts=` and `Replaces=`.
//!
//! Responsible for reading a pattern and matching a name against it. Not responsible for what the match
//! means, nor for splitting lists of patterns.
//! Invariant: a `Glob` is a pattern that Go would accept; matching cannot fail and takes time proportional to
//! the product of the two lengths at worst.

use std::{fmt, str::FromStr};

/// A pattern over whole names, as Go's `path.Match` reads it:
///
/// * `*` any run of characters but `/`, the empty one included
/// * `?` one character but `/`
/// * `[abc]`, `[a-z]`, `[^a-z]` one character of, or not of, the set
/// * `\c` the character `c` itself
///
/// There is no `**`, no `{a,b}` and no `[!a]`.
#[derive(Clone, PartialEq, Eq)]
pub struct Glob {
    pattern: String,
    tokens: Vec<Token>,
}

/// Why a text is no pattern. Go says `syntax error in pattern` to all of these.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GlobError {
    /// The empty string, which would match nothing.
    #[error("pattern is empty")]
    Empty,
    /// A `[` without its `]`.
    #[error("`[` is never closed by `]`")]
    Unclosed,
    /// `[]` or `[^]`.
    #[error("`[` needs at least one character before its `]`")]
    EmptySet,
    /// `[-a]` or `[a-]`.
    #[error("`-` in `[…]` needs a character on both sides, or a `\\` in front")]
    Range,
    /// A `\` at the very end.
    #[error("`\\` at the end escapes nothing")]
    Escape,
}

#[derive(Clone, PartialEq, Eq)]
enum Token {
    One(char),
    Any,
    Run,
    Set { negated: bool, ranges: Vec<(char, char)> },
}

impl Glob {
    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.pattern
    }

    /// True when the whole of `name` fits the pattern.
    pub fn matches(&self, name: &str) -> bool {
        let name: Vec<char> = name.chars().collect();
        let (mut token, mut at) = (0, 0);
        // Where to go on when what follows the last `*` does not fit: behind it, one character further.
        let mut retry: Option<(usize, usize)> = None;
        loop {
            match (self.tokens.get(token), name.get(at)) {
                (None, None) => return true,
                (Some(Token::Run), _) => {
                    token += 1;
                    retry = Some((token, at));
                    continue;
                }
                (Some(one), Some(c)) if one.fits(*c) => {
                    token += 1;
                    at += 1;
                    continue;
                }
                _ => {}
            }
            match retry {
                Some((after, from)) if name.get(from).is_some_and(|c| *c != '/') => {
                    (token, at) = (after, from + 1);
                    retry = Some((after, from + 1));
                }
                _ => return false,
            }
        }
    }

    /// What every name that fits begins with: the characters in front of the first wildcard.
    pub fn prefix(&self) -> String {
        let one = |token: &Token| match token {
            Token::One(c) => Some(*c),
            _ => None,
        };
        self.tokens.iter().map_while(one).collect()
    }

    /// The one name that fits, or `None` when the pattern has a wildcard.
    pub fn literal(&self) -> Option<String> {
        self.tokens
            .iter()
            .map(|token| match token {
                Token::One(c) => Some(*c),
                _ => None,
            })
            .collect()
    }
}

impl Token {
    fn fits(&self, c: char) -> bool {
        match self {
            Self::One(own) => *own == c,
            Self::Any => c != '/',
            Self::Run => false,
            Self::Set { negated, ranges } => {
                ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != *negated
            }
        }
    }
}

impl FromStr for Glob {
    type Err = GlobError;
    fn from_str(pattern: &str) -> Result<Self, Self::Err> {
        if pattern.is_empty() {
            return Err(GlobError::Empty);
        }
        let mut tokens = Vec::new();
        let mut rest = pattern.chars().peekable();
        while let Some(c) = rest.next() {
            tokens.push(match c {
                '*' => Token::Run,
                '?' => Token::Any,
                '[' => set(&mut rest)?,
                '\\' => Token::One(rest.next().ok_or(GlobError::Escape)?),
                c => Token::One(c),
            });
        }
        tokens.dedup_by(|a, b| *a == Token::Run && *b == Token::Run);
        Ok(Self { pattern: pattern.to_owned(), tokens })
    }
}

type Chars<'a> = std::iter::Peekable<std::str::Chars<'a>>;

/// What follows a `[`, its `]` included.
fn set(rest: &mut Chars<'_>) -> Result<Token, GlobError> {
    let negated = rest.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    loop {
        if rest.next_if_eq(&']').is_some() {
            return if ranges.is_empty() {
                Err(GlobError::EmptySet)
            } else {
                Ok(Token::Set { negated, ranges })
            };
        }
        let low = bound(rest)?;
        let high = if rest.next_if_eq(&'-').is_some() { bound(rest)? } else { low };
        ranges.push((low, high));
    }
}

/// One end of a range.
fn bound(rest: &mut Chars<'_>) -> Result<char, GlobError> {
    match rest.next() {
        None => Err(GlobError::Unclosed),
        Some('-' | ']') => Err(GlobError::Range),
        Some('\\') => rest.next().ok_or(GlobError::Unclosed),
        Some(c) => Ok(c),
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.pattern)
    }
}

impl fmt::Debug for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.pattern)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn glob(pattern: &str) -> Glob {
        pattern.parse().expect(pattern)
    }

    #[test]
    fn it_matches_as_go_does() {
        for (pattern, name, expected) in [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*c", "abc", true),
            ("a*", "a", true),
            ("a*", "ab/c", false),
            ("a*/b", "abc/b", true),
            ("a*/b", "a/c/b", false),
            ("a*b*c*d*e*/f", "axbxcxdxe/f", true),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("a*b?c*x", "abxbbxdbxebxczzy", false),
            ("ab[c]", "abc", true),
            ("ab[b-d]", "abc", true),
            ("ab[e-g]", "abc", false),
            ("ab[^c]", "abc", false),
            ("ab[^e-g]", "abc", true),
            ("a\\*b", "a*b", true),
            ("a\\*b", "ab", false),
            ("a?b", "a☺b", true),
            ("a???b", "a☺b", false),
            ("[a-ζ]*", "α", true),
            ("*[a-ζ]", "A", false),
            ("a?b", "a/b", false),
            ("[\\]a]", "]", true),
            ("[x\\-]", "-", true),
            ("[!a]", "!", true),
            ("[z-a]", "m", false),
            ("*x", "xxx", true),
            ("web@*.service", "web@1.service", true),
            ("web@*.service", "web.service", false),
            ("web.?.service", "web.1.service", true),
        ] {
            assert_eq!(glob(pattern).matches(name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn bad_patterns_say_why() {
        for (pattern, expected) in [
            ("", GlobError::Empty),
            ("[", GlobError::Unclosed),
            ("[a", GlobError::Unclosed),
            ("[^bc", GlobError::Unclosed),
            ("[]a]", GlobError::EmptySet),
            ("[^]", GlobError::EmptySet),
            ("[-]", GlobError::Range),
            ("[x-]", GlobError::Range),
            ("[-x]", GlobError::Range),
            ("a\\", GlobError::Escape),
        ] {
            assert_eq!(pattern.parse::<Glob>(), Err(expected), "{pattern}");
        }
    }

    #[test]
    fn a_literal_has_no_wildcard() {
        assert_eq!(glob("a\\*b").literal().as_deref(), Some("a*b"));
        assert_eq!(glob("a*").literal(), None);
    }

    /// The definition, without the cleverness.
    fn slow(tokens: &[Token], name: &[char]) -> bool {
        match (tokens.first(), name.first()) {
            (None, None) => true,
            (Some(Token::Run), first) => {
                slow(&tokens[1..], name) || first.is_some_and(|c| *c != '/') && slow(tokens, &name[1..])
            }
            (Some(token), Some(c)) => token.fits(*c) && slow(&tokens[1..], &name[1..]),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn the_fast_way_agrees_with_the_definition(pattern in "[ab*?/]{1,8}|[a*\\[\\]^\\\\-]{1,8}", name in "[ab/]{0,8}") {
            if let Ok(glob) = pattern.parse::<Glob>() {
                let chars: Vec<char> = name.chars().collect();
                prop_assert_eq!(glob.matches(&name), slow(&glob.tokens, &chars));
            }
        }
    }
}
