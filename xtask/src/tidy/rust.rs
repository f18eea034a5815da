//! Tells Rust code from what only looks like it.
//!
//! Not a parser: it knows strings, characters and comments, which is what a search for words must tell apart.
//! Invariant: what it returns has the lines of the text it was given.

/// What a stretch of text is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Code,
    Comment,
    /// Characters too.
    Quoted,
}

/// Two views of a Rust file.
pub(crate) struct Masked {
    /// Comments and the insides of strings are dots.
    pub(crate) code: String,
    /// Only the insides of strings are dots.
    pub(crate) written: String,
}

impl Masked {
    pub(crate) fn of(text: &str) -> Self {
        let parts = parts(text);
        let mask = |hidden: &[Part]| -> String {
            let letter = |(letter, part)| match letter {
                '\n' => '\n',
                _ if hidden.contains(part) => '.',
                other => other,
            };
            text.chars().zip(&parts).map(letter).collect()
        };
        Self { code: mask(&[Part::Comment, Part::Quoted]), written: mask(&[Part::Quoted]) }
    }
}

/// One of each character.
fn parts(text: &str) -> Vec<Part> {
    let text: Vec<char> = text.chars().collect();
    let mut parts = Vec::with_capacity(text.len());
    while parts.len() < text.len() {
        let at = parts.len();
        let rest = &text[at..];
        let (part, length) = match rest {
            ['/', '/', ..] => (Part::Comment, until(rest, '\n')),
            ['/', '*', ..] => (Part::Comment, block_comment(rest)),
            ['"', ..] => (Part::Quoted, quoted(rest, '"')),
            ['r', ..] if !in_word(&text, at) && raw(rest).is_some() => (Part::Quoted, raw(rest).unwrap_or(1)),
            // The `b` or `c` of `br"…"` is a word of its own.
            ['b' | 'c', 'r', ..] if !in_word(&text, at) && raw(&rest[1..]).is_some() => {
                (Part::Quoted, 1 + raw(&rest[1..]).unwrap_or(1))
            }
            ['\'', '\\', ..] => (Part::Quoted, quoted(rest, '\'')),
            // Anything else with an apostrophe is a lifetime.
            ['\'', _, '\'', ..] => (Part::Quoted, 3),
            _ => (Part::Code, 1),
        };
        parts.extend(std::iter::repeat_n(part, length.min(rest.len())));
    }
    parts
}

fn in_word(text: &[char], at: usize) -> bool {
    at.checked_sub(1).is_some_and(|before| text[before].is_alphanumeric() || text[before] == '_')
}

fn until(text: &[char], end: char) -> usize {
    text.iter().position(|letter| *letter == end).unwrap_or(text.len())
}

/// The length of what is between two quotes, with them.
fn quoted(text: &[char], quote: char) -> usize {
    let mut at = 1;
    while at < text.len() {
        match text[at] {
            '\\' => at += 2,
            letter if letter == quote => return at + 1,
            _ => at += 1,
        }
    }
    text.len()
}

/// The length of `r#"…"#`, if it is one.
fn raw(text: &[char]) -> Option<usize> {
    let hashes = text[1..].iter().take_while(|letter| **letter == '#').count();
    let inside = 2 + hashes;
    if text.get(inside - 1) != Some(&'"') {
        return None;
    }
    let mut end = vec!['"'];
    end.resize(1 + hashes, '#');
    let length = text[inside..].windows(end.len()).position(|window| window == end);
    Some(length.map_or(text.len(), |length| inside + length + end.len()))
}

/// Block comments nest.
fn block_comment(text: &[char]) -> usize {
    let (mut at, mut depth) = (0, 0);
    while at < text.len() {
        match text[at..] {
            ['/', '*', ..] => (at, depth) = (at + 2, depth + 1),
            ['*', '/', ..] => (at, depth) = (at + 2, depth - 1),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> String {
        Masked::of(text).code
    }

    #[test]
    fn code_stays() {
        let text = "fn a<'a>(x: &'a str) -> char { r#type(x) }\nlet bar = br;\n";
        assert_eq!(code(text), text);
    }

    #[test]
    fn strings_are_hidden() {
        assert_eq!(code(r#"f("a\"b", b"c", 'd', '\'', "e")"#), "f(......, b..., ..., ...., ...)");
        assert_eq!(code("f(r\"a\\\", br#\"b\"c\"#, r##\"d\"#e\"##)"), "f(....., ........., ...........)");
        assert_eq!(code("\"two\nlines\" x"), "....\n...... x");
        assert_eq!(code("\"open"), ".....");
    }

    #[test]
    fn comments_are_hidden_from_code_only() {
        let text = "a // b \"c\n/* d /* e */\n f */ g // ü";
        assert_eq!(code(text), "a .......\n............\n..... g ....");
        assert_eq!(Masked::of(text).written, text);
    }
}
