//! What each type of unit needs to be one that systemd starts.
//!
//! Responsible for what systemd refuses to load for want of a setting. Not responsible for whether settings
//! are well formed: systemd says so on the machine.
//! Invariant: what is refused here systemd 252 refuses too (`systemd-analyze verify` was asked).

use crate::{Problem, UnitFile, nearest::nearest, problem::Place};
use model::UnitName;

/// The section that a type needs, and settings of which it needs one. systemd.timer(5), systemd.socket(5),
/// systemd.path(5), systemd.mount(5), systemd.automount(5).
const NEEDS: [(&str, &str, &[&str]); 5] = [
    (
        "timer",
        "Timer",
        &[
            "OnCalendar",
            "OnActiveSec",
            "OnBootSec",
            "OnStartupSec",
            "OnUnitActiveSec",
            "OnUnitInactiveSec",
            "OnClockChange",
            "OnTimezoneChange",
        ],
    ),
    (
        "socket",
        "Socket",
        &[
            "ListenStream",
            "ListenDatagram",
            "ListenSequentialPacket",
            "ListenFIFO",
            "ListenSpecial",
            "ListenNetlink",
            "ListenMessageQueue",
            "ListenUSBFunction",
        ],
    ),
    ("path", "Path", &["PathExists", "PathExistsGlob", "PathChanged", "PathModified", "DirectoryNotEmpty"]),
    ("mount", "Mount", &["What"]),
    ("automount", "Automount", &["Where"]),
];

/// Sections that a unit of this type may have, `X-…` aside.
pub(crate) fn sections(name: &UnitName) -> Vec<&'static str> {
    let own = match name.kind() {
        "automount" => "Automount",
        "mount" => "Mount",
        "path" => "Path",
        "scope" => "Scope",
        "service" => "Service",
        "slice" => "Slice",
        "socket" => "Socket",
        "swap" => "Swap",
        "timer" => "Timer",
        _ => return vec!["Unit", "Install"],
    };
    vec![own, "Unit", "Install"]
}

/// Refuses a unit that systemd would refuse to load.
pub(crate) fn check(name: &UnitName, file: &UnitFile) -> Result<(), Problem> {
    if name.kind() == "service" {
        return service(name, file);
    }
    let Some((_, section, settings)) = NEEDS.iter().find(|(kind, ..)| *kind == name.kind()) else {
        return Ok(());
    };
    let place = has_section(name, file, section)?;
    if settings.iter().any(|setting| file.last(section, setting).is_some()) {
        return Ok(());
    }
    let (kind, example) = (name.kind(), settings[0]);
    let (such, others) = match settings.len() {
        1 => ("", String::new()),
        _ => ("a setting such as ", format!("; systemd.{kind}(5) lists the others")),
    };
    let message = format!("a {kind} unit needs {such}`{example}=`");
    let remedy = format!("write `{example}=…` below{others}");
    Err(file.problem(place, message, remedy))
}

/// systemd.service(5): `ExecStart=`, unless a oneshot service has something else to do.
fn service(name: &UnitName, file: &UnitFile) -> Result<(), Problem> {
    let on_success = file.last("Unit", "SuccessAction").is_some_and(|action| action != "none");
    let starts: Vec<_> = file.values("Service", "ExecStart").collect();
    if starts.is_empty() && on_success && file.header("Service").is_none() {
        return Ok(());
    }
    let place = has_section(name, file, "Service")?;
    let kind = file.last("Service", "Type");
    // Without `Type=` a service that starts nothing is a oneshot.
    let oneshot = kind.map_or(starts.is_empty(), |kind| kind == "oneshot");
    if starts.len() > 1 && !oneshot {
        let second = file.named("Service", "ExecStart").filter(|option| !option.value.is_empty()).last();
        let place = second.map_or(place, |option| option.name_place());
        let message = "more than one `ExecStart=`";
        return Err(file.problem(place, message, "keep one, or write `Type=oneshot`"));
    }
    if !starts.is_empty() {
        return Ok(());
    }
    let stops = file.values("Service", "ExecStop").next().is_some();
    let remains = file.last("Service", "RemainAfterExit").is_some_and(truthy);
    let (message, remedy) = match (stops, remains) {
        _ if on_success && oneshot => return Ok(()),
        (true, true) if oneshot => return Ok(()),
        (true, _) if !oneshot => {
            ("the service has no `ExecStart=`", "write `ExecStart=…`, or `Type=oneshot`")
        }
        (true, _) => (
            "the service has `ExecStop=` but no `ExecStart=`",
            "write `ExecStart=…`, or `RemainAfterExit=yes`",
        ),
        (false, _) => ("the service has no `ExecStart=`", "write `ExecStart=` with the command to run"),
    };
    Err(file.problem(place, message, remedy))
}

/// The place of a section's header, or a refusal that there is none.
fn has_section(name: &UnitName, file: &UnitFile, section: &str) -> Result<Place, Problem> {
    if let Some(header) = file.header(section) {
        return Ok(header.place);
    }
    let slip = file.headers().iter().find(|header| {
        !sections(name).contains(&header.name.as_str()) && nearest(&header.name, &[section]).is_some()
    });
    let place = slip.map_or(Place::START, |header| header.place);
    let remedy = match slip {
        Some(_) => format!("did you mean `[{section}]`?"),
        None => format!("add a line `[{section}]` and its settings"),
    };
    Err(file.problem(place, format!("unit `{name}` has no [{section}] section"), remedy))
}

/// systemd's booleans: systemd.syntax(7).
pub(crate) fn truthy(value: &str) -> bool {
    ["1", "yes", "y", "true", "t", "on"].iter().any(|yes| value.eq_ignore_ascii_case(yes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(name: &str, text: &str) -> Result<(), String> {
        let file = UnitFile::parse(text).expect("parses");
        check(&name.parse().expect("a unit name"), &file).map_err(|problem| problem.to_string())
    }

    #[test]
    fn services_that_systemd_loads() {
        for text in [
            "[Service]\nExecStart=/bin/true",
            "[Service]\nType=oneshot\nExecStart=/bin/true\nExecStart=/bin/false",
            "[Service]\nExecStart=/bin/true\nExecStart=\nExecStart=/bin/false",
            "[Service]\nRemainAfterExit=yes\nExecStop=/bin/true",
            "[Unit]\nSuccessAction=poweroff\n[Service]\n",
            "[Unit]\nSuccessAction=poweroff\n[Service]\nType=oneshot\n",
            "[Unit]\nSuccessAction=poweroff\n",
        ] {
            assert_eq!(judged("a.service", text), Ok(()), "{text}");
        }
    }

    #[test]
    fn services_that_systemd_refuses() {
        for (text, expected) in [
            ("[Unit]\nDescription=a", "1:1: unit `a.service` has no [Service] section (add"),
            (
                "[Unit]\nA=b\n[service]\nExecStart=/a",
                "3:1: unit `a.service` has no [Service] section (did you mean",
            ),
            ("[Service]\nType=simple", "1:1: the service has no `ExecStart=` (write `ExecStart=` with"),
            ("[Service]\nExecStart=/bin/true\nExecStart=", "1:1: the service has no `ExecStart=`"),
            ("[Service]\nExecStart=/a\nExecStart=/b", "3:1: more than one `ExecStart=`"),
            (
                "[Service]\nExecStop=/a",
                "1:1: the service has `ExecStop=` but no `ExecStart=` (write `ExecStart=…`, or `RemainAfterExit",
            ),
            (
                "[Service]\nType=simple\nRemainAfterExit=yes\nExecStop=/a",
                "1:1: the service has no `ExecStart=` (write `ExecStart=…`, or `Type",
            ),
            ("[Unit]\nSuccessAction=none\n[Service]\nType=oneshot", "3:1: the service has no `ExecStart=`"),
        ] {
            let told = judged("a.service", text).expect_err(text);
            assert!(told.starts_with(expected), "{text}: {told}");
        }
    }

    #[test]
    fn other_types() {
        assert_eq!(judged("a.timer", "[Timer]\nOnCalendar=daily"), Ok(()));
        assert_eq!(judged("a.target", "[Unit]\nDescription=a"), Ok(()));
        let told = judged("a.timer", "[Timer]\nUnit=b.service").expect_err("no time");
        assert!(told.starts_with("1:1: a timer unit needs a setting such as `OnCalendar=` ("), "{told}");
        let told = judged("a.mount", "[Mount]\nWhere=/a").expect_err("no device");
        assert!(told.starts_with("1:1: a mount unit needs `What=` ("), "{told}");
        assert!(
            judged("a.socket", "[Unit]\nDescription=a")
                .expect_err("no section")
                .contains("no [Socket] section")
        );
    }
}
