//! Reading the text of a unit file: systemd.syntax(7).
//!
//! Responsible for lines, sections, comments, continuations, and for where each of them stands. Not
//! responsible for what an option means.
//! Where systemd skips a broken line with a warning in the journal, this refuses it.
//! Invariant: what is accepted renders to a text that is accepted with the same meaning.

use crate::{
    MAX_TEXT, Problem, UnitOption,
    file::{Header, Segment},
    problem::Place,
};

/// What systemd takes for blanks inside a line.
const BLANKS: [char; 2] = [' ', '\t'];

/// The lines of a file, read.
pub(crate) struct Parsed {
    pub(crate) options: Vec<UnitOption>,
    pub(crate) headers: Vec<Header>,
}

pub(crate) fn parse(text: &str) -> Result<Parsed, Problem> {
    if text.len() > MAX_TEXT {
        let message = format!("the file has {} bytes, more than {MAX_TEXT}", text.len());
        return Err(Problem::new(text, Place::START, message, "a unit file holds at most 1 MiB"));
    }
    let body = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader =
        Reader { text, lines: body.lines().collect(), next: 0, options: vec![], headers: vec![] };
    reader.refuse_control_characters()?;
    while reader.next < reader.lines.len() {
        reader.line()?;
    }
    if reader.options.is_empty() {
        let remedy = "write at least one section with one option; to remove a unit, destroy it";
        return Err(Problem::new(text, Place::START, "the file has no option", remedy));
    }
    Ok(Parsed { options: reader.options, headers: reader.headers })
}

struct Reader<'a> {
    text: &'a str,
    lines: Vec<&'a str>,
    /// The next line, counted from 0.
    next: usize,
    options: Vec<UnitOption>,
    headers: Vec<Header>,
}

/// A value that may go over several lines, as it is put together.
struct Value {
    /// As fleet kept it.
    raw: String,
    /// As systemd understands it.
    meaning: String,
    segments: Vec<Segment>,
}

impl<'a> Reader<'a> {
    fn problem(&self, place: Place, message: impl Into<String>, remedy: impl Into<String>) -> Problem {
        Problem::new(self.text, place, message, remedy)
    }

    fn refuse_control_characters(&self) -> Result<(), Problem> {
        for (index, line) in self.lines.iter().enumerate() {
            if let Some((before, c)) = line.chars().enumerate().find(|(_, c)| c.is_control() && *c != '\t') {
                let place = Place { line: number(index), column: count(before) + 1, width: 1 };
                let message = format!("control character U+{:04X}", u32::from(c));
                let remedy = match c {
                    '\0' => "remove it; a unit file is plain text",
                    '\r' => "end lines with LF or CR LF",
                    _ => "remove it, or write its escape, as `\\x1b`",
                };
                return Err(self.problem(place, message, remedy));
            }
        }
        Ok(())
    }

    /// Reads one line, and the lines that continue it.
    fn line(&mut self) -> Result<(), Problem> {
        let index = self.next;
        let line = self.lines[index];
        self.next += 1;
        let content = line.trim_matches(BLANKS);
        if content.is_empty() || is_comment(content) {
            return Ok(());
        }
        let start = Place { line: number(index), column: column(line, content), width: width(content) };
        if content.starts_with('[') {
            return self.header(content, start);
        }
        let Some((name, _)) = content.split_once('=') else {
            return Err(self.no_equals(index, content, start));
        };
        let name = name.trim_end_matches(BLANKS);
        if name.is_empty() {
            return Err(self.problem(start, "no option name before `=`", "write `Name=value`"));
        }
        let Some(section) = self.headers.last().map(|header| header.name.clone()) else {
            let place = Place { width: width(name), ..start };
            let message = format!("`{name}` stands outside any section");
            return Err(self.problem(place, message, "put a line such as `[Unit]` or `[Service]` above it"));
        };
        let name = name.to_owned();
        let value = self.value(index)?;
        let first = value.segments.iter().rfind(|segment| segment.start == 0);
        let (value_line, value_column) =
            first.map_or((start.line, start.column), |segment| (segment.line, segment.column));
        self.options.push(UnitOption {
            section,
            name,
            value: value.meaning,
            raw: value.raw,
            line: start.line,
            column: start.column,
            value_line,
            value_column,
            segments: value.segments,
        });
        Ok(())
    }

    fn header(&mut self, content: &str, place: Place) -> Result<(), Problem> {
        let Some((name, behind)) = content[1..].split_once(']') else {
            return Err(self.problem(place, "section header without `]`", "write `[Section]`"));
        };
        if !behind.is_empty() {
            let place = Place { column: place.column + width(name) + 2, width: width(behind), ..place };
            let remedy = if is_comment(behind.trim_start_matches(BLANKS)) {
                "a comment needs a line of its own"
            } else {
                "move it to the next line"
            };
            return Err(self.problem(place, "text behind a section header", remedy));
        }
        if name.trim_matches(BLANKS).is_empty() {
            return Err(self.problem(place, "section header without a name", "write `[Section]`"));
        }
        if name.trim_matches(BLANKS) != name {
            let remedy = format!("write `[{}]`", name.trim_matches(BLANKS));
            return Err(self.problem(place, "blanks around a section's name", remedy));
        }
        if name.contains('[') {
            return Err(self.problem(place, "`[` in a section's name", "write `[Section]`"));
        }
        self.headers.push(Header { name: name.to_owned(), place });
        Ok(())
    }

    /// The value that begins behind the `=` of line `index`. The next line is the one behind it then.
    fn value(&mut self, index: usize) -> Result<Value, Problem> {
        let mut value = Value { raw: String::new(), meaning: String::new(), segments: vec![] };
        let line = self.lines[index];
        let mut piece = line.split_once('=').map_or("", |(_, piece)| piece).trim_start_matches(BLANKS);
        let mut index = index;
        loop {
            self.refuse_blanks_behind_backslash(index)?;
            let indented = piece;
            piece = piece.trim_start_matches(BLANKS);
            let line = self.lines[index];
            value.segments.push(Segment {
                start: value.meaning.len(),
                line: number(index),
                column: column(line, piece),
            });
            value.raw.push_str(indented);
            let Some(continued) = continued(piece) else {
                value.meaning.push_str(piece);
                return Ok(value.end(false));
            };
            value.meaning.push_str(continued);
            value.meaning.push(' ');
            // systemd passes over comments between continued lines; a blank line ends the value.
            while self.lines.get(self.next).is_some_and(|line| is_comment(line.trim_start_matches(BLANKS))) {
                self.next += 1;
            }
            let Some(next) = self.lines.get(self.next) else { return Ok(value.end(true)) };
            index = self.next;
            self.next += 1;
            if next.trim_matches(BLANKS).is_empty() {
                return Ok(value.end(true));
            }
            value.raw.push('\n');
            piece = next;
        }
    }

    /// `\` and a blank at the end of a line: systemd does not continue the line and fleet's rendering would.
    fn refuse_blanks_behind_backslash(&self, index: usize) -> Result<(), Problem> {
        let line = self.lines[index];
        let content = line.trim_end_matches(BLANKS);
        if content.len() == line.len() || continued(content).is_none() {
            return Ok(());
        }
        let blanks = &line[content.len()..];
        let place = Place { line: number(index), column: column(line, blanks), width: width(blanks) };
        Err(self.problem(
            place,
            "blanks behind the `\\` at the end of a line",
            "remove them, so that the next line continues this one",
        ))
    }

    fn no_equals(&self, index: usize, content: &str, place: Place) -> Problem {
        let above = index
            .checked_sub(1)
            .and_then(|above| self.lines.get(above))
            .map(|line| line.trim_matches(BLANKS));
        let indented = self.lines[index].starts_with(BLANKS);
        let remedy = match above {
            Some(above) if indented && !above.is_empty() && !is_comment(above) && !above.starts_with('[') => {
                "end the line above with `\\` to continue it"
            }
            _ if content.starts_with("//") => "a comment begins with `#` or `;`",
            _ => "write `Name=value`, or `#` in front of a comment",
        };
        self.problem(place, "line without `=`", remedy)
    }
}

impl Value {
    /// Trims. A value is `open` when its last line ends in `\` and nothing continues it; the line break that
    /// is kept then stands for a blank line, so that rendering puts nothing else there.
    fn end(mut self, open: bool) -> Self {
        let trimmed = self.meaning.trim_start_matches(BLANKS);
        let shift = self.meaning.len() - trimmed.len();
        self.meaning = trimmed.trim_end_matches(BLANKS).to_owned();
        for segment in &mut self.segments {
            segment.start = segment.start.saturating_sub(shift);
        }
        let raw = self.raw.trim_matches(|c| BLANKS.contains(&c) || c == '\n');
        self.raw = format!("{raw}{}", if open { "\n" } else { "" });
        self
    }
}

/// The line without its last `\` when that continues it: when the number of `\` at its end is odd.
pub(crate) fn continued(line: &str) -> Option<&str> {
    let backslashes = line.bytes().rev().take_while(|b| *b == b'\\').count();
    if backslashes % 2 == 1 { line.strip_suffix('\\') } else { None }
}

fn is_comment(content: &str) -> bool {
    content.starts_with(['#', ';'])
}

/// The column of `part`, which is a slice of `line`.
fn column(line: &str, part: &str) -> u32 {
    let offset = (part.as_ptr() as usize).saturating_sub(line.as_ptr() as usize);
    width(line.get(..offset).unwrap_or(line)) + 1
}

fn number(index: usize) -> u32 {
    count(index) + 1
}

fn width(text: &str) -> u32 {
    count(text.chars().count())
}

/// Saturating, although a text of at most [`MAX_TEXT`] bytes never gets there.
fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX - 1)
}

#[cfg(test)]
mod tests {
    use crate::UnitFile;

    fn options(text: &str) -> Vec<(String, String, String)> {
        let file = UnitFile::parse(text).expect("parses");
        file.options().iter().map(|o| (o.section.clone(), o.name.clone(), o.value.clone())).collect()
    }

    fn refused(text: &str) -> String {
        UnitFile::parse(text).expect_err(text).to_string()
    }

    fn option(section: &str, name: &str, value: &str) -> (String, String, String) {
        (section.to_owned(), name.to_owned(), value.to_owned())
    }

    #[test]
    fn the_manuals_example() {
        let text = "[Section A]\nKeyOne=value 1\nKeyTwo=value 2\n\n# a comment\n\n[Section B]\n\
            Setting=\"something\" \"some thing\" \"...\"\nKeyTwo=value 2 \\\n       value 2 continued\n\n\
            [Section C]\nKeyThree=value 3\\\n# this line is ignored\n; this line is ignored too\n       value 3 continued\n";
        assert_eq!(
            options(text),
            [
                option("Section A", "KeyOne", "value 1"),
                option("Section A", "KeyTwo", "value 2"),
                option("Section B", "Setting", "\"something\" \"some thing\" \"...\""),
                option("Section B", "KeyTwo", "value 2  value 2 continued"),
                option("Section C", "KeyThree", "value 3 value 3 continued"),
            ]
        );
    }

    #[test]
    fn bom_crlf_blanks_and_a_missing_line_break_are_tolerated() {
        let expected = [option("Unit", "A", "b c"), option("Unit", "B", "")];
        assert_eq!(options("\u{feff}[Unit]\r\n\r\n  A \t= b c\t\r\nB=\r\n"), expected);
        assert_eq!(options("  [Unit]\nA=b c\nB="), expected);
    }

    #[test]
    fn continuation_ends_at_a_blank_line_or_the_file() {
        assert_eq!(options("[U]\nA=b\\\n\nC=d"), [option("U", "A", "b"), option("U", "C", "d")]);
        assert_eq!(options("[U]\nA=b\\\n\\\n"), [option("U", "A", "b")]);
        assert_eq!(options("[U]\nA=\\\n b"), [option("U", "A", "b")]);
        // An even number of `\` continues nothing.
        assert_eq!(options("[U]\nA=b\\\\\nC=d"), [option("U", "A", "b\\\\"), option("U", "C", "d")]);
        // A comment's `\` continues nothing.
        assert_eq!(options("[U]\n# x\\\nC=d"), [option("U", "C", "d")]);
    }

    #[test]
    fn places_are_counted_in_characters() {
        let file = UnitFile::parse("\u{feff}[Ünit]\n Ä= \u{e9}\n B= \\\n# x\n\tc d").expect("parses");
        let places: Vec<_> =
            file.options().iter().map(|o| (o.line, o.column, o.value_line, o.value_column)).collect();
        assert_eq!(places, [(2, 2, 2, 5), (3, 2, 5, 2)]);
        let place = file.options()[1].place(2..3);
        assert_eq!((place.line, place.column, place.width), (5, 4, 1));
    }

    #[test]
    fn broken_lines_are_refused_where_they_are() {
        for (text, expected) in [
            ("", "1:1: the file has no option"),
            ("# only\n", "1:1: the file has no option"),
            ("[Unit]\n", "1:1: the file has no option"),
            ("A=b\n[Unit]\n", "1:1: `A` stands outside any section"),
            ("[Unit\nA=b", "1:1: section header without `]`"),
            ("[]\nA=b", "1:1: section header without a name"),
            ("[ Unit ]\nA=b", "1:1: blanks around a section's name (write `[Unit]`)"),
            ("[[Unit]\nA=b", "1:1: `[` in a section's name"),
            ("[Unit] # x\nA=b", "1:7: text behind a section header (a comment needs"),
            ("[Unit]]\nA=b", "1:7: text behind a section header (move it"),
            ("[Unit]\n rubbish", "2:2: line without `=` (write"),
            ("[Unit]\nA=b\n  c", "3:3: line without `=` (end the line above"),
            ("[Unit]\n// x", "2:1: line without `=` (a comment begins"),
            ("[Unit]\n = b", "2:2: no option name before `=`"),
            ("[Unit]\nA=b\\ \n c", "2:5: blanks behind the `\\`"),
            ("[Unit]\nA=b\0", "2:4: control character U+0000 (remove it; a"),
            ("[Unit]\n# \u{1b}", "2:3: control character U+001B (remove it, or"),
            ("[Unit]\rA=b", "1:7: control character U+000D (end lines"),
        ] {
            let told = refused(text);
            assert!(told.starts_with(expected), "{text:?}: {told}");
        }
        assert!(
            refused(&format!("[Unit]\nA={}", "b".repeat(1 << 20)))
                .starts_with("1:1: the file has 1048585 bytes")
        );
    }
}
