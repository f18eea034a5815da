//! Everything that `submit` must refuse, and what it should warn of.
//!
//! Responsible for putting the parts together: syntax, what the unit's type needs, `[X-Fleet]`, and slips
//! that systemd would pass over with a line in some machine's journal. Not responsible for what the cluster
//! knows: names that exist, machines that fit.
//! Invariant: a file that comes through parses, and renders to one that comes through as well.

use crate::{
    Problem, Requirements, UnitFile, UnitOption, kind,
    nearest::nearest,
    requirements::{self, SECTION},
    service::{self, Registration},
};
use model::UnitName;

/// A unit file that may be submitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// The file.
    pub file: UnitFile,
    /// What `[X-Fleet]` demands; see [`Requirements`] for templates.
    pub requirements: Requirements,
    /// What it wants registered; a template's is only good for checking.
    pub registrations: Vec<Registration>,
    /// What is odd but no reason to refuse it, in the order of the file.
    pub warnings: Vec<Problem>,
}

/// Reads a unit file and judges it as the unit `name`, which may be a template.
///
/// Refused are, besides what [`UnitFile::parse`] refuses: a unit that lacks what its type needs
/// (systemd.service(5) and its kin), values in `[X-Fleet]` that fleet silently ignored, and combinations that
/// fleet refused, with its texts as [`Problem::message`]. Unknown keys of `[X-Fleet]` and unknown sections are
/// warned of; sections that begin with `X-` are somebody else's and passed over.
pub fn check(name: &UnitName, text: &str) -> Result<Checked, Problem> {
    let file = UnitFile::parse(text)?;
    kind::check(name, &file)?;
    let (requirements, mut warnings) = requirements::read(name, &file)?;
    let (registrations, odd) = service::read(name, &file)?;
    warnings.extend(odd);
    warn_of_sections(name, &file, &mut warnings);
    let known = kind::sections(name);
    for option in file.options() {
        if known.contains(&option.section.as_str()) {
            warn_of_name(&file, option, &mut warnings);
        }
        warn_of_swallowed_header(&file, option, &mut warnings);
    }
    warnings.sort_by_key(|warning| (warning.line, warning.column));
    Ok(Checked { file, requirements, registrations, warnings })
}

/// Sections that nobody will read.
fn warn_of_sections(name: &UnitName, file: &UnitFile, warnings: &mut Vec<Problem>) {
    let mut known = kind::sections(name);
    known.extend([SECTION, service::SECTION]);
    let unknown = |name: &str| !known.contains(&name) && !service::is_section(name);
    for header in file.headers().iter().filter(|header| unknown(&header.name)) {
        let slip = nearest(&header.name, &known);
        let ours = [Some(SECTION), Some(service::SECTION)].contains(&slip);
        let foreign = header.name.starts_with("X-") && !ours;
        if foreign {
            continue;
        }
        let message = format!("a {} unit has no section [{}]", name.kind(), header.name);
        let remedy = match slip {
            Some(known) => format!("did you mean `[{known}]`?"),
            None => "it is passed over; a section of your own begins with `X-`".to_owned(),
        };
        warnings.push(file.problem(header.place, message, remedy));
    }
}

/// Names that systemd cannot know.
fn warn_of_name(file: &UnitFile, option: &UnitOption, warnings: &mut Vec<Problem>) {
    let UnitOption { section, name, .. } = option;
    let (message, remedy) = if name.contains([' ', '\t']) {
        let message = format!("systemd knows no option `{name}`");
        (message, "if this continues the line above, end that with `\\`".to_owned())
    } else if requirements::belongs_here(name) {
        (format!("`{name}` means nothing in [{section}]"), format!("move it to [{SECTION}]"))
    } else {
        return;
    };
    warnings.push(file.problem(option.name_place(), message, remedy));
}

/// A `\` too many, so that a section header became a part of the value above it.
fn warn_of_swallowed_header(file: &UnitFile, option: &UnitOption, warnings: &mut Vec<Problem>) {
    for (index, segment) in option.segments.iter().enumerate().skip(1) {
        let end = option.segments.get(index + 1).map_or(option.value.len(), |next| next.start);
        let piece = option.value.get(segment.start..end).unwrap_or("").trim_end();
        let name = piece.strip_prefix('[').and_then(|piece| piece.strip_suffix(']'));
        let header =
            |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        if name.is_some_and(header) {
            let place = option.place(segment.start..segment.start + piece.len());
            let message = format!("this section header is a part of `{}`", option.name);
            warnings.push(file.problem(place, message, "remove the `\\` at the end of the line above"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warnings(text: &str) -> Vec<String> {
        let name = "a.service".parse().expect("a unit name");
        let checked = check(&name, &format!("[Service]\nExecStart=/a\n{text}")).expect(text);
        checked.warnings.iter().map(Problem::to_string).collect()
    }

    #[test]
    fn slips_are_warned_of() {
        for (text, expected) in [
            (
                "[Instal]\nWantedBy=a.target",
                "3:1: a service unit has no section [Instal] (did you mean `[Install]`?)",
            ),
            (
                "[X-fleet]\nGlobal=true",
                "3:1: a service unit has no section [X-fleet] (did you mean `[X-Fleet]`?)",
            ),
            (
                "[X-Flet]\nGlobal=true",
                "3:1: a service unit has no section [X-Flet] (did you mean `[X-Fleet]`?)",
            ),
            ("[Timer]\nOnCalendar=daily", "3:1: a service unit has no section [Timer] (it is passed over"),
            ("MachineOf=b.service", "3:1: `MachineOf` means nothing in [Service] (move it to [X-Fleet])"),
            ("  --name A=b", "3:3: systemd knows no option `--name A` (if this"),
            ("ExecStop=/b \\\n[X-Fleet]\nA=b", "4:1: this section header is a part of `ExecStop`"),
        ] {
            let told = warnings(text);
            assert!(told.len() == 1 && told[0].starts_with(expected), "{text}: {told:?}");
        }
    }

    #[test]
    fn what_is_somebody_elses_is_passed_over() {
        assert_eq!(warnings("[X-Vendor]\nMachineOf=1\n[Unit]\nConflicts=b.service"), [""; 0]);
        assert_eq!(warnings("ExecStop=/b \\\n  [x]y \\\n  z"), [""; 0]);
    }
}
