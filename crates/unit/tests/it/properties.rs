//! What holds for any text.

use proptest::prelude::*;
use unit::{Problem, UnitFile, check};

/// Lines as people write them, and as they should not.
fn line() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("[Unit]".to_owned()),
        Just("[Service]".to_owned()),
        Just("[X-Fleet]".to_owned()),
        Just("ExecStart=/bin/true".to_owned()),
        Just("# comment \\".to_owned()),
        Just(String::new()),
        "(MachineOf|MachineID|MachineMetadata|Conflicts|Replaces|Global|X-Conflicts)=[ab@.%iH=\"\\\\*\\[ é-]{0,12}",
        "[ \t]{0,2}[A-Za-z]{1,4}[ ]?=[ ]?[a-zé\"%;#\\[\\]=\\\\ \t]{0,10}[\\\\]{0,3}",
        "[ ]{0,2}[a-zé#;\\[\\]\\\\= ]{0,8}",
    ]
}

fn lines() -> impl Strategy<Value = String> {
    (any::<bool>(), prop_oneof![Just("\n"), Just("\r\n")], proptest::collection::vec(line(), 0..12))
        .prop_map(|(bom, end, lines)| format!("{}{}", if bom { "\u{feff}" } else { "" }, lines.join(end)))
}

/// Like [`lines`], and mostly well formed.
fn well_formed() -> impl Strategy<Value = String> {
    let option = "[A-Z][a-z]{0,3} ?= ?([a-zé\"%;#\\[\\]= ]{0,10}|[a-z]{1,3}\\\\\\\\|[a-z]{1,3} \\\\\n( ?[a-z=][a-z#=]{0,3})?)";
    let section = prop_oneof![Just("Unit"), Just("Service"), Just("X-Fleet"), Just("Unit")];
    let one = (section, proptest::collection::vec(option, 0..4))
        .prop_map(|(section, options)| format!("[{section}]\n{}\n", options.join("\n")));
    proptest::collection::vec(one, 1..5).prop_map(|sections| sections.concat())
}

type Meaning = Vec<(String, String, String)>;

/// Sections in the order of first mention, each with its options in order.
fn meaning(file: &UnitFile) -> Meaning {
    let mut order: Vec<&str> = Vec::new();
    for option in file.options() {
        if !order.contains(&option.section.as_str()) {
            order.push(&option.section);
        }
    }
    let of =
        |section: &str| file.options().iter().filter(|o| o.section == section).cloned().collect::<Vec<_>>();
    order.into_iter().flat_map(of).map(|o| (o.section, o.name, o.value)).collect()
}

fn inside(text: &str, line: u32, column: u32, width: u32) -> Result<(), TestCaseError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let length = text.lines().nth(line as usize - 1).map_or(0, |line| line.chars().count());
    prop_assert!(line == 1 || (line as usize) <= text.lines().count(), "line {} of {:?}", line, text);
    prop_assert!(column >= 1 && width >= 1);
    prop_assert!((column + width) as usize <= length + 2, "{}:{}+{} in {:?}", line, column, width, text);
    Ok(())
}

fn problem_inside(text: &str, problem: &Problem) -> Result<(), TestCaseError> {
    inside(text, problem.line, problem.column, problem.width)?;
    prop_assert!(!problem.message.is_empty() && !problem.remedy.is_empty());
    prop_assert_eq!(problem.render("f").lines().count(), 3);
    Ok(())
}

fn holds(text: &str) -> Result<(), TestCaseError> {
    for name in ["a.service", "a@.service", "a@b.service", "a.timer"] {
        match check(&name.parse().expect("a unit name"), text) {
            Err(problem) => problem_inside(text, &problem)?,
            Ok(checked) => {
                for warning in &checked.warnings {
                    problem_inside(text, warning)?;
                }
                let rendered = check(&name.parse().expect("a unit name"), &checked.file.render());
                prop_assert_eq!(rendered.map(|again| again.requirements), Ok(checked.requirements));
            }
        }
    }
    let Ok(file) = UnitFile::parse(text) else { return Ok(()) };
    for option in file.options() {
        inside(text, option.line, option.column, option.name.chars().count() as u32)?;
        inside(text, option.value_line, option.value_column, 1)?;
    }
    let rendered = file.render();
    let again = UnitFile::parse(&rendered);
    prop_assert!(again.is_ok(), "{:?} renders to {:?}", text, rendered);
    let again = again.expect("just checked");
    prop_assert_eq!(meaning(&again), meaning(&file));
    prop_assert_eq!(again.render(), rendered);
    prop_assert_eq!(again.hash(), file.hash());
    let spelled = file.options().iter().map(|o| (o.section.as_str(), o.name.as_str(), o.raw.as_str()));
    prop_assert_eq!(UnitFile::from_options(spelled).map(|made| made.hash()), Ok(file.hash()));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_parses_or_is_refused(text in any::<String>()) {
        holds(&text)?;
    }

    #[test]
    fn any_lines_parse_or_are_refused(text in lines()) {
        holds(&text)?;
    }

    #[test]
    fn what_parses_means_the_same_when_rendered(text in well_formed()) {
        prop_assert!(UnitFile::parse(&text).is_ok() || !text.contains('='), "{:?}", UnitFile::parse(&text));
        holds(&text)?;
    }

    /// As fleet's API sends them.
    #[test]
    fn any_options_are_a_file_of_just_these_or_refused(
        given in proptest::collection::vec(
            (
                prop_oneof![Just("Unit".to_owned()), Just("Service".to_owned()), any::<String>()],
                prop_oneof!["[A-Z][a-z]{0,3}", "[a-z#;=\\[ \n\\\\]{0,4}", any::<String>()],
                prop_oneof!["[a-z \\\\\n#;=\\[\\]]{0,8}", any::<String>()],
            ),
            0..6,
        ),
    ) {
        let triples = given.iter().map(|(section, name, value)| (section.as_str(), name.as_str(), value.as_str()));
        if let Ok(file) = UnitFile::from_options(triples) {
            let mut asked: Vec<_> = given.iter().map(|(section, name, _)| (section.trim(), name.trim())).collect();
            let mut made: Vec<_> =
                file.options().iter().map(|option| (option.section.trim(), option.name.trim())).collect();
            asked.sort_unstable();
            made.sort_unstable();
            prop_assert_eq!(asked, made, "{:?}", file.text());
            holds(file.text())?;
        }
    }

    #[test]
    fn the_hash_ignores_comments_and_blank_lines(text in well_formed(), noise in "(\n|  \n|# [a-z=\\\\]{0,5}\n|;\n){1,3}") {
        let Ok(plain) = UnitFile::parse(&text) else { return Ok(()) };
        // Noise in front of each line that does not continue another.
        let mut noisy = noise.clone();
        let mut continued = false;
        for line in text.lines() {
            noisy.push_str(line);
            noisy.push('\n');
            continued = line.bytes().rev().take_while(|b| *b == b'\\').count() % 2 == 1;
            if !continued {
                noisy.push_str(&noise);
            }
        }
        prop_assume!(!continued);
        prop_assert_eq!(UnitFile::parse(&noisy).map(|file| file.hash()), Ok(plain.hash()));
    }
}
