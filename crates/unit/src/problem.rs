//! A problem in a unit file: where it is, what it is, and what to do about it.
//!
//! Responsible for the shape in which people see it, an excerpt with carets underneath. Not responsible for
//! the file's name, which only the caller knows.
//! Invariant: `line` and `column` lie inside the text that was given, the place behind a line's last
//! character included, and `width` is at least 1.

use serde::Serialize;

/// The longest excerpt, in characters: one terminal line with room for the gutter and a short remedy.
const EXCERPT: usize = 100;
/// How much of a long line is shown in front of the problem, in characters.
const LEAD: usize = 40;

/// Something in a unit file that is refused or warned of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{line}:{column}: {message} ({remedy})")]
pub struct Problem {
    /// The line, counted from 1.
    pub line: u32,
    /// The first character of the place, counted from 1. Behind the last one where something is missing.
    pub column: u32,
    /// How many characters the place takes; at least 1.
    pub width: u32,
    /// What is wrong: a lower-case fragment.
    pub message: String,
    /// What to do about it: a short fragment.
    pub remedy: String,
    /// The line itself, without its line break.
    pub excerpt: String,
}

/// Where something stands. Counted as in [`Problem`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) line: u32,
    pub(crate) column: u32,
    pub(crate) width: u32,
}

impl Place {
    /// The start of the text: for what is missing altogether.
    pub(crate) const START: Self = Self { line: 1, column: 1, width: 1 };
}

impl Problem {
    pub(crate) fn new(
        text: &str,
        place: Place,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let excerpt = text.lines().nth(place.line.saturating_sub(1) as usize).unwrap_or("").to_owned();
        Self {
            line: place.line,
            column: place.column,
            width: place.width.max(1),
            message: message.into(),
            remedy: remedy.into(),
            excerpt,
        }
    }

    /// The problem as people read it: the place, the message, the line, and carets under the place with the
    /// remedy beside them. Ends without a line break. Long lines are cut to a window around the place, tabs
    /// become one blank so that the carets stand right, and control characters become `\u{fffd}` so that a
    /// broken file cannot steer the terminal.
    ///
    /// ```
    /// let name = "web@1.service".parse().expect("a unit name");
    /// let text = "[Service]\nExecStart=/bin/web\n[X-Fleet]\nConflicts=web@.service\n";
    /// let problem = unit::check(&name, text).expect_err("a template runs nowhere");
    /// assert_eq!(
    ///     problem.render("web@.service"),
    ///     "web@.service:4:11: `Conflicts` needs a unit name
    ///   4 | Conflicts=web@.service
    ///     |           ^^^^^^^^^^^^ no instance after `@`; write `web@*.service` for all of them"
    /// );
    /// ```
    pub fn render(&self, file_name: &str) -> String {
        let Self { line, column, message, remedy, .. } = self;
        let before = column.saturating_sub(1) as usize;
        let length = self.excerpt.chars().count();
        let skip = if length > EXCERPT { before.saturating_sub(LEAD) } else { 0 };
        let shown: String = self.excerpt.chars().skip(skip).take(EXCERPT).map(printable).collect();
        let (head, tail) = (if skip > 0 { "…" } else { "" }, if length > skip + EXCERPT { "…" } else { "" });
        let shown = format!("{head}{shown}{tail}");
        let indent = " ".repeat(before - skip + head.chars().count());
        let room = (EXCERPT + 1).saturating_sub(before - skip);
        let carets = "^".repeat((self.width as usize).min(room).max(1));
        let number = format!("{line:>3}");
        let gutter = " ".repeat(number.len());
        let shown = format!("{number} | {shown}");
        let shown = shown.trim_end();
        format!("{file_name}:{line}:{column}: {message}\n{shown}\n{gutter} | {indent}{carets} {remedy}")
    }
}

fn printable(c: char) -> char {
    match c {
        '\t' => ' ',
        c if c.is_control() => '\u{fffd}',
        c => c,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_looks_as_the_house_style_wants_it() {
        let text = "\n\n\n\n\n\nConflicts=web@\n";
        let place = Place { line: 7, column: 11, width: 4 };
        let problem = Problem::new(text, place, "`Conflicts` needs a unit name", "no instance after `@`");
        assert_eq!(
            problem.render("web@.service"),
            "web@.service:7:11: `Conflicts` needs a unit name\n  7 | Conflicts=web@\n    |           ^^^^ no instance after `@`"
        );
        assert_eq!(problem.to_string(), "7:11: `Conflicts` needs a unit name (no instance after `@`)");
    }

    #[test]
    fn tabs_and_control_characters_do_not_shift_the_carets() {
        let place = Place { line: 1, column: 3, width: 1 };
        let problem = Problem::new("\ta\u{7}b", place, "m", "r");
        assert_eq!(problem.render("f"), "f:1:3: m\n  1 |  a\u{fffd}b\n    |   ^ r");
    }

    #[test]
    fn a_long_line_is_cut_around_the_place() {
        let text = format!("{}X{}", "a".repeat(5000), "b".repeat(5000));
        let place = Place { line: 1, column: 5001, width: 5001 };
        let rendered = Problem::new(&text, place, "m", "r").render("f");
        let lines: Vec<_> = rendered.lines().collect();
        assert!(lines.iter().all(|line| line.chars().count() < 120), "{rendered}");
        let caret = lines[2].chars().position(|c| c == '^').expect("a caret");
        assert_eq!(lines[1].chars().nth(caret), Some('X'));
    }
}
