//! A unit file: its options in order, its canonical form, and the hash of that.
//!
//! Responsible for looking options up as systemd would, and for fleet's serialisation. Not responsible for
//! reading text (the parser does) nor for judging options (`check` does).
//! Invariant: `render` depends on sections, names and values only, and parses to the same ones.

use crate::{
    Problem,
    parse::{self, Parsed},
    problem::Place,
};
use sha1::{Digest, Sha1};
use std::{fmt::Write, ops::Range};

/// Settings of `[Unit]` that an empty value does not reset: systemd.unit(5), "dependencies … cannot be reset
/// to an empty list".
const DEPENDENCIES: [&str; 20] = [
    "Requires",
    "Requisite",
    "Wants",
    "BindsTo",
    "BindTo",
    "PartOf",
    "Upholds",
    "Conflicts",
    "Before",
    "After",
    "OnFailure",
    "OnSuccess",
    "PropagatesReloadTo",
    "ReloadPropagatedFrom",
    "PropagatesStopTo",
    "StopPropagatedFrom",
    "JoinsNamespaceOf",
    "RequiresMountsFor",
    "WantsMountsFor",
    "RequiresOverridable",
];

/// A unit file that is well formed. What its options mean is [`crate::check()`]'s business.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitFile {
    text: String,
    options: Vec<UnitOption>,
    headers: Vec<Header>,
}

/// One assignment. The same name may come several times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitOption {
    /// The section's name, without brackets.
    pub section: String,
    /// What stands before the `=`.
    pub name: String,
    /// What stands behind it, as systemd understands it: trimmed, each `\` at a line's end a blank, comments
    /// between continued lines gone. Quotes, escapes and specifiers are as they were.
    pub value: String,
    /// The value as fleet kept it and its API shows it: continued lines stay lines, each but the last ending
    /// in `\`. Ends in a line break when nothing follows the last `\`.
    pub raw: String,
    /// The line of the name, counted from 1.
    pub line: u32,
    /// The column of the name, counted in characters from 1.
    pub column: u32,
    /// The line where the value begins, which is a later one when the first line is but `\`.
    pub value_line: u32,
    /// The column where the value begins; one behind the line's end when there is no value.
    pub value_column: u32,
    pub(crate) segments: Vec<Segment>,
}

/// The part of a value that comes from one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Byte offset in the value.
    pub(crate) start: usize,
    pub(crate) line: u32,
    pub(crate) column: u32,
}

/// A section header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) name: String,
    pub(crate) place: Place,
}

impl UnitFile {
    /// Reads a unit file: syntax only, systemd.syntax(7). A byte order mark and CR LF are tolerated. Refused:
    /// lines without `=`, options outside any section, malformed headers, control characters, blanks behind
    /// a continuing `\`, files without any option (systemd takes those for "masked"), and more than
    /// [`crate::MAX_TEXT`] bytes.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        let Parsed { options, headers } = parse::parse(text)?;
        Ok(Self { text: text.to_owned(), options, headers })
    }

    /// The file that fleet's API spells as a list of (section, name, value), in which a continued value holds
    /// its line breaks. Refused, besides what [`Self::parse`] refuses: a line break that would smuggle in
    /// another line. The problem's place is in the rendered text.
    pub fn from_options<'a>(
        options: impl IntoIterator<Item = (&'a str, &'a str, &'a str)>,
    ) -> Result<Self, Problem> {
        let smuggled = |line: &str| {
            let message = "option would change the meaning of other lines";
            Problem::new(
                line,
                Place::START,
                message,
                "send each option as one section, one name and one value",
            )
        };
        let (mut grouped, mut count) = (Sections::default(), 0);
        for (section, name, value) in options {
            let wild = |text: &str| text.contains(['\n', '\r']);
            let broken = value.split_inclusive('\n').any(|line| {
                line.strip_suffix('\n')
                    .is_some_and(|line| parse::continued(line.trim_end_matches('\r')).is_none())
            });
            let comment = name.trim_start().starts_with(['#', ';', '[']);
            if wild(section) || section.contains(']') || wild(name) || name.contains('=') || comment || broken
            {
                return Err(smuggled(&format!("{section:?} {name:?} {value:?}")));
            }
            grouped.push(section, name, value);
            count += 1;
            // A `\` at the end must not swallow the next option.
            if parse::continued(value.trim_end_matches([' ', '\t'])).is_some() {
                grouped.push_line_break(section);
            }
        }
        let file = Self::parse(&grouped.render())?;
        // A comment as the last line of a continued value makes the next option a part of it.
        if file.options.len() == count { Ok(file) } else { Err(smuggled(&file.text)) }
    }

    /// The text as it was given.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The canonical form, byte for byte fleet's: sections in the order in which they first come, their
    /// options in order, `[Section]\nName=Value\n`, a blank line between sections; comments, blank lines and
    /// sections without options dropped; a continued value keeps its lines.
    pub fn render(&self) -> String {
        let mut sections = Sections::default();
        for option in &self.options {
            sections.push(&option.section, &option.name, &option.raw);
        }
        sections.render()
    }

    /// The identity of the file's meaning: SHA-1 of [`Self::render`], 40 hexadecimal digits, as fleet's.
    pub fn hash(&self) -> String {
        Sha1::digest(self.render().as_bytes()).iter().fold(String::with_capacity(40), |mut hex, byte| {
            // Writing to a string cannot fail.
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    }

    /// All options, in the order of the file.
    pub fn options(&self) -> &[UnitOption] {
        &self.options
    }

    /// All values of a setting that count, in order.
    ///
    /// As in systemd an empty value forgets those before it, so that `ExecStart=` starts a list anew and
    /// `Type=` brings the default back. Two exceptions: dependencies in `[Unit]` (`After=`, `Wants=` …)
    /// cannot be reset, there an empty value means nothing; and in sections that begin with `X-`, which are
    /// not systemd's, empty values are values. What systemd resets under another name is not modelled: an
    /// empty `ConditionPathExists=` forgets conditions of all kinds there, and here only its own.
    pub fn values<'a>(&'a self, section: &str, name: &str) -> impl Iterator<Item = &'a str> + use<'a> {
        let plain = section.starts_with("X-");
        let additive = section == "Unit" && DEPENDENCIES.contains(&name);
        let mut values = Vec::new();
        for option in self.named(section, name) {
            match (option.value.is_empty(), plain, additive) {
                (true, false, false) => values.clear(),
                (true, false, true) => {}
                _ => values.push(option.value.as_str()),
            }
        }
        values.into_iter()
    }

    /// The value that wins where a setting takes one: the last of [`Self::values`].
    pub fn last(&self, section: &str, name: &str) -> Option<&str> {
        self.values(section, name).last()
    }

    /// The first `Description=` of `[Unit]`: the one that fleet showed.
    pub fn description(&self) -> Option<&str> {
        self.named("Unit", "Description").next().map(|option| option.value.as_str())
    }

    /// True when the unit wants to be enabled: it has an `[Install]` section with something in it.
    pub fn install_wanted(&self) -> bool {
        self.options.iter().any(|option| option.section == "Install")
    }

    pub(crate) fn named(&self, section: &str, name: &str) -> impl Iterator<Item = &UnitOption> {
        self.options.iter().filter(move |option| option.section == section && option.name == name)
    }

    pub(crate) fn headers(&self) -> &[Header] {
        &self.headers
    }

    pub(crate) fn header(&self, section: &str) -> Option<&Header> {
        self.headers.iter().find(|header| header.name == section)
    }

    pub(crate) fn problem(
        &self,
        place: Place,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Problem {
        Problem::new(&self.text, place, message, remedy)
    }
}

impl UnitOption {
    /// Where the name stands.
    pub(crate) fn name_place(&self) -> Place {
        Place { line: self.line, column: self.column, width: chars(&self.name).max(1) }
    }

    /// Where a part of the value stands, given in bytes of it; what goes over a line's end is cut there.
    pub(crate) fn place(&self, part: Range<usize>) -> Place {
        if self.value.is_empty() {
            return Place { line: self.value_line, column: self.value_column, width: 1 };
        }
        let index = self.segments.iter().rposition(|segment| segment.start <= part.start).unwrap_or(0);
        let Some(segment) = self.segments.get(index) else { return self.name_place() };
        let end = self.segments.get(index + 1).map_or(part.end, |next| part.end.min(next.start));
        let before = self.value.get(segment.start..part.start).unwrap_or("");
        let within = self.value.get(part.start..end).unwrap_or("");
        Place { line: segment.line, column: segment.column + chars(before), width: chars(within).max(1) }
    }
}

/// Options grouped by section, for rendering.
#[derive(Default)]
struct Sections {
    /// Name and body, in the order of first mention. Files have a handful: a search beats a map.
    bodies: Vec<(String, String)>,
}

impl Sections {
    fn body(&mut self, section: &str) -> &mut String {
        let index = self.bodies.iter().position(|(name, _)| name == section).unwrap_or(self.bodies.len());
        if index == self.bodies.len() {
            self.bodies.push((section.to_owned(), String::new()));
        }
        &mut self.bodies[index].1
    }

    fn push(&mut self, section: &str, name: &str, value: &str) {
        let body = self.body(section);
        body.push_str(name);
        body.push('=');
        body.push_str(value);
        body.push('\n');
    }

    fn push_line_break(&mut self, section: &str) {
        self.body(section).push('\n');
    }

    fn render(self) -> String {
        let sections: Vec<_> = self.bodies.iter().map(|(name, body)| format!("[{name}]\n{body}")).collect();
        sections.join("\n")
    }
}

fn chars(text: &str) -> u32 {
    u32::try_from(text.chars().count()).unwrap_or(u32::MAX - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> UnitFile {
        UnitFile::parse(text).expect("parses")
    }

    /// Measured on fleet v1.0.0 with its functional fixture `hello@.service`.
    #[test]
    fn the_hash_is_fleets() {
        let text =
            "[Service]\nExecStart=/bin/bash -c \"while true; do echo Hello, World %i!; sleep 1; done\"\n";
        let expected = "79699e32624ad46c366ef37de89006ae9da617cd";
        assert_eq!(file(text).hash(), expected);
        assert_eq!(file(&format!("# hello\n\n {}\n\n", text.trim())).hash(), expected);
    }

    #[test]
    fn the_canonical_form_groups_sections_and_drops_comments() {
        let text = "# x\n[Unit]\nDescription = a\n[Service]\nExecStart=/bin/a \\\n# y\n   -b\n\n[Unit]\nAfter=\n[Install]\n";
        let canonical = "[Unit]\nDescription=a\nAfter=\n\n[Service]\nExecStart=/bin/a \\\n   -b\n";
        assert_eq!(file(text).render(), canonical);
        assert_eq!(file(canonical).render(), canonical);
        assert_eq!(file(text).text(), text);
    }

    #[test]
    fn a_trailing_backslash_swallows_nothing_when_rendered() {
        for text in [
            "[A]\nx=1\n[B]\ny=1\n[A]\nz=1 \\",
            "[A]\nz=1\\\n\n[B]\ny=1",
            "[A]\nz=\\\n\\\n# c",
            "[A]\nz=\\ \\",
        ] {
            let once = file(text);
            let twice = file(&once.render());
            assert_eq!(once.render(), twice.render(), "{text}");
            assert_eq!(once.last("A", "z"), twice.last("A", "z"), "{text}");
        }
    }

    #[test]
    fn an_empty_value_resets_where_systemd_says_so() {
        let text = "[Unit]\nAfter=a\nAfter=\nAfter=b\nConditionHost=a\nConditionHost=\n\
            [Service]\nExecStart=1\nExecStart=\nExecStart=2\nExecStart=3\nType=\n[X-Fleet]\nA=1\nA=\n";
        let file = file(text);
        let values = |section, name| file.values(section, name).collect::<Vec<_>>();
        assert_eq!(values("Service", "ExecStart"), ["2", "3"]);
        assert_eq!(values("Unit", "After"), ["a", "b"]);
        assert_eq!(values("Unit", "ConditionHost"), [""; 0]);
        assert_eq!(values("X-Fleet", "A"), ["1", ""]);
        assert_eq!(file.last("Service", "ExecStart"), Some("3"));
        assert_eq!(file.last("Service", "Type"), None);
    }

    #[test]
    fn description_and_install() {
        let plain = file("[Unit]\nDescription=first\nDescription=second\n[Install]\n");
        assert_eq!(plain.description(), Some("first"));
        assert!(!plain.install_wanted());
        assert!(file("[Install]\nWantedBy=a.target\n").install_wanted());
    }

    #[test]
    fn options_make_a_file_and_cannot_smuggle_lines_in() {
        let given =
            [("Unit", "A", "b"), ("Service", "X", "1 \\\n  2"), ("Unit", "C", "d\\"), ("Unit", "E", "")];
        let made = UnitFile::from_options(given).expect("well formed");
        let options: Vec<_> =
            made.options().iter().map(|o| (o.section.as_str(), o.name.as_str(), o.value.as_str())).collect();
        assert_eq!(
            options,
            [("Unit", "A", "b"), ("Unit", "C", "d"), ("Unit", "E", ""), ("Service", "X", "1  2")]
        );
        assert_eq!(made.options()[3].raw, "1 \\\n  2");
        for bad in
            [("Unit", "A", "b\nC=d"), ("Unit", "A\nB", "c"), ("Unit]\n[X", "A", "b"), ("Unit", "#A", "b")]
        {
            assert!(UnitFile::from_options([bad]).is_err(), "{bad:?}");
        }
        let comment = [("Unit", "A", "b \\\n# c"), ("Unit", "D", "e")];
        assert!(UnitFile::from_options(comment).is_err());
        assert!(UnitFile::from_options([]).is_err());
    }
}
