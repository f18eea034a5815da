//! Values of `[X-Fleet]`: cut into words, and their specifiers expanded.
//!
//! Responsible for fleet's multi-values (`"a" "b"`) and its four specifiers. Not responsible for what a word
//! means. systemd's own quoting and specifiers are systemd's business.
//! Invariant: a word's `part` is a range of the value that it was cut from.

use model::UnitName;
use std::ops::Range;

/// The instance that a template is checked with. Long, so that it hardly meets a real one by chance.
const STAND_IN: &str = "instance-of-template";

/// A piece of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Word {
    pub(crate) text: String,
    pub(crate) part: Range<usize>,
}

/// Quotes that do not add up.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadQuotes {
    pub(crate) part: Range<usize>,
    pub(crate) message: &'static str,
    pub(crate) remedy: &'static str,
}

/// Cuts a value as fleet did: one that begins and ends with `"` is a list of words, in quotes or bare, with
/// blanks between them; any other is one word, blanks and all.
pub(crate) fn words(value: &str) -> Result<Vec<Word>, BadQuotes> {
    let quote = value.find('"');
    let listed = value.len() > 1 && value.starts_with('"') && value.ends_with('"');
    match quote {
        None => return Ok(vec![Word { text: value.to_owned(), part: 0..value.len() }]),
        Some(at) if !listed => {
            return Err(BadQuotes {
                part: at..at + 1,
                message: "quotes around a part of the value",
                remedy: "put each word in double quotes, or none",
            });
        }
        Some(_) => {}
    }
    let mut words = Vec::new();
    let mut at = 0;
    while let Some(skip) = value[at..].find(|c| !blank(c)) {
        at += skip;
        let rest = &value[at..];
        let (start, length, next) = match rest.strip_prefix('"') {
            Some(inner) => {
                let Some(length) = inner.find('"') else {
                    return Err(BadQuotes {
                        part: at..at + 1,
                        message: "`\"` is never closed",
                        remedy: "write another `\"` behind the word",
                    });
                };
                (at + 1, length, at + length + 2)
            }
            None => {
                let length = rest.find(|c| blank(c) || c == '"').unwrap_or(rest.len());
                (at, length, at + length)
            }
        };
        if let Some(c) = value[next..].chars().next().filter(|c| !blank(*c)) {
            return Err(BadQuotes {
                part: next..next + c.len_utf8(),
                message: "no blank between two words",
                remedy: "put a blank between the words",
            });
        }
        words.push(Word { text: value[start..start + length].to_owned(), part: start..start + length });
        at = next;
    }
    Ok(words)
}

/// Cuts a word at blanks, as fleet did with `Conflicts`.
pub(crate) fn spaced(word: &Word) -> Vec<Word> {
    let mut words = Vec::new();
    let mut at = 0;
    for piece in word.text.split(blank) {
        if !piece.is_empty() {
            let start = word.part.start + at;
            words.push(Word { text: piece.to_owned(), part: start..start + piece.len() });
        }
        at += piece.len() + 1;
    }
    if words.is_empty() { vec![word.clone()] } else { words }
}

fn blank(c: char) -> bool {
    c == ' ' || c == '\t'
}

/// What `%n`, `%N`, `%p` and `%i` stand for in one unit.
#[derive(Debug)]
pub(crate) struct Specifiers {
    /// In this order, which was fleet's.
    expansions: [(&'static str, String); 4],
    template: bool,
}

impl Specifiers {
    pub(crate) fn of(name: &UnitName) -> Self {
        let (stem, kind, prefix) = (name.stem(), name.kind(), name.prefix());
        let template = name.is_template();
        let stand_in = if template { STAND_IN } else { "" };
        Self {
            expansions: [
                ("%n", format!("{stem}{stand_in}.{kind}")),
                ("%N", format!("{stem}{stand_in}")),
                ("%p", prefix.to_owned()),
                ("%i", if template { STAND_IN } else { name.instance().unwrap_or("") }.to_owned()),
            ],
            template,
        }
    }

    /// Plain replacement, as fleet did it: there is no `%%`.
    pub(crate) fn expand(&self, text: &str) -> String {
        let mut expanded = text.to_owned();
        for (specifier, expansion) in &self.expansions {
            if expanded.contains(specifier) {
                expanded = expanded.replace(specifier, expansion);
            }
        }
        expanded
    }

    /// The unit's own name, a template's with the stand-in.
    pub(crate) fn full(&self) -> &str {
        &self.expansions[0].1
    }

    /// True when `text` would read otherwise in another instance of the template that is checked.
    pub(crate) fn open(&self, text: &str) -> bool {
        self.template && ["%n", "%N", "%i"].iter().any(|specifier| text.contains(specifier))
    }

    /// True when `text` holds a `%i` that stands for nothing.
    pub(crate) fn no_instance(&self, text: &str) -> bool {
        text.contains("%i") && self.expansions[3].1.is_empty()
    }
}

/// The first specifier of systemd's that fleet did not know, and where it stands: `%H`, `%%`.
pub(crate) fn unknown_specifier(text: &str) -> Option<(usize, &str)> {
    let mut from = 0;
    while let Some(found) = text[from..].find('%') {
        let at = from + found;
        let next = text[at + 1..].chars().next();
        match next {
            Some('n' | 'N' | 'p' | 'i') => from = at + 2,
            Some(c) if c.is_ascii_alphabetic() || c == '%' => return Some((at, &text[at..at + 2])),
            _ => from = at + 1,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cut(value: &str) -> Vec<String> {
        words(value).expect(value).into_iter().map(|word| word.text).collect()
    }

    #[test]
    fn values_are_cut_as_fleet_did() {
        assert_eq!(cut("a b"), ["a b"]);
        assert_eq!(cut("\"a\""), ["a"]);
        assert_eq!(cut("\"a b\" \"c\""), ["a b", "c"]);
        assert_eq!(cut("\"a\"  b\t\"c\""), ["a", "b", "c"]);
        assert_eq!(cut("\"\""), [""]);
        assert_eq!(cut(""), [""]);
        for bad in ["\"", "\"a", "a\"", "\"a\" b", "\"a\"\"b\"", "\"a\"b \"c\"", "\"a\" \"b\" \""] {
            assert!(words(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn blanks_cut_further() {
        let word = Word { text: "a  bc".to_owned(), part: 1..6 };
        let expected =
            [Word { text: "a".to_owned(), part: 1..2 }, Word { text: "bc".to_owned(), part: 4..6 }];
        assert_eq!(spaced(&word), expected);
    }

    #[test]
    fn specifiers_stand_for_parts_of_the_name() {
        let all = "%n %N %p %i %H";
        for (name, expected) in [
            ("web@1.service", "web@1.service web@1 web 1 %H"),
            ("web.service", "web.service web web  %H"),
            (
                "web@.service",
                "web@instance-of-template.service web@instance-of-template web instance-of-template %H",
            ),
        ] {
            assert_eq!(Specifiers::of(&name.parse().expect("valid")).expand(all), expected);
        }
        assert_eq!(unknown_specifier(all), Some((12, "%H")));
        assert_eq!(unknown_specifier("100% %i%"), None);
    }

    proptest! {
        #[test]
        fn words_are_parts_of_the_value(value in "[a\" é\t]{0,12}") {
            if let Ok(words) = words(&value) {
                for word in words.iter().flat_map(spaced) {
                    prop_assert_eq!(&value[word.part.clone()], &word.text);
                }
            }
        }

        #[test]
        fn any_text_can_be_searched_for_specifiers(text in "[%niHé]{0,8}") {
            let _ = unknown_specifier(&text);
        }
    }
}
