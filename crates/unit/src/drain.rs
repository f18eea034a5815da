//! The line that is put into a registered unit's file on its machine, so that every stop, whoever orders it, waits
//! until nobody sends it requests any more.
//!
//! systemd runs `ExecStop=` in order and sends SIGTERM only afterwards; a crash runs none (systemd.service(5)).
//! Invariant: our line comes before all of the unit's own, and what the user wrote stands as it was.

use crate::{UnitFile, service::time};
use std::time::Duration;

/// What a drain may take beyond its own limit: two writes to the hub.
const SLACK: Duration = Duration::from_secs(5);

/// Above our line, and above the limit.
const LINE: &str = "# Put here by Muster: whoever routes to this unit stops before it does.\n";
const LIMIT: &str = "[Service]\n# Put here by Muster: Drain= may take longer.\n";

/// The user's text again.
pub fn without_drain(text: &str) -> String {
    let text = text.find(LIMIT).map_or(text, |at| &text[..at]);
    let Some(at) = text.find(LINE) else { return text.to_owned() };
    let (before, after) = (&text[..at], &text[at + LINE.len()..]);
    let after = after.split_once('\n').map_or("", |(_, after)| after);
    let before = if before == "[Service]\n" { "" } else { before };
    format!("{before}{after}")
}

/// The text for systemd: `program` runs before the unit's own `ExecStop=` lines, and may take `drain`.
pub fn with_drain(file: &UnitFile, program: &str, drain: Duration) -> String {
    let line = format!("{LINE}ExecStop=-{program} drain-unit %n\n");
    let text = file.text();
    // `ExecStop=` with nothing behind it takes back what is above it.
    let resets = file.named("Service", "ExecStop").filter(|option| option.value.trim().is_empty());
    let mut changed = match resets.last() {
        None => format!("[Service]\n{line}{}", text.strip_prefix('\u{feff}').unwrap_or(text)),
        Some(reset) => {
            let mut changed = String::with_capacity(text.len() + line.len());
            for (number, old) in (1..).zip(text.split_inclusive('\n')) {
                changed.push_str(old);
                if number == reset.name_place().line {
                    if !old.ends_with('\n') {
                        changed.push('\n');
                    }
                    changed.push_str(&line);
                }
            }
            changed
        }
    };
    // It counts for each of the lines; one that takes longer is killed, and SIGTERM comes at once.
    let limit = ["TimeoutSec", "TimeoutStopSec"].iter().filter_map(|name| {
        let option = file.named("Service", name).last()?;
        Some((option.name_place().line, option.value.trim().to_owned()))
    });
    let needed = drain + SLACK;
    let short = match limit.max() {
        Some((_, value)) if value == "infinity" || value == "0" => false,
        Some((_, value)) => time(&value).is_some_and(|limit| limit < needed),
        // systemd's default.
        None => needed > Duration::from_secs(90),
    };
    if short {
        if !changed.ends_with('\n') {
            changed.push('\n');
        }
        changed.push_str(&format!("{LIMIT}TimeoutStopSec={}ms\n", needed.as_millis()));
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drained(text: &str, seconds: u64) -> UnitFile {
        let file = UnitFile::parse(text).expect("parses");
        let changed = with_drain(&file, "/usr/bin/muster", Duration::from_secs(seconds));
        let back = without_drain(&changed);
        assert_eq!(back.trim_end(), text.trim_start_matches('\u{feff}').trim_end(), "{changed}");
        let text = changed;
        UnitFile::parse(&text).expect("still parses")
    }

    fn stops(file: &UnitFile) -> Vec<String> {
        file.values("Service", "ExecStop").map(str::to_owned).collect()
    }

    const OURS: &str = "-/usr/bin/muster drain-unit %n";

    #[test]
    fn our_line_is_the_first() {
        let file =
            drained("# mine\n[Unit]\nDescription=a\n[Service]\nExecStart=/a\nExecStop=/b\nExecStop=/c", 10);
        assert_eq!(stops(&file), [OURS, "/b", "/c"]);
        assert_eq!(file.last("Service", "TimeoutStopSec"), None);
        assert_eq!(stops(&drained("\u{feff}[Service]\nExecStart=/a\n", 1)), [OURS]);
        assert_eq!(stops(&drained("[Service]\nExecStop=/a\nExecStop=\nExecStop=/b\n", 1)), [OURS, "/b"]);
        assert_eq!(stops(&drained("[Service]\nExecStop=/a\nExecStop=", 1)), [OURS]);
    }

    #[test]
    fn a_limit_that_is_too_short_is_raised() {
        let limit = |text: &str, seconds| {
            let file = drained(&format!("[Service]\nExecStart=/a\n{text}\n"), seconds);
            file.last("Service", "TimeoutStopSec").map(str::to_owned)
        };
        assert_eq!(limit("TimeoutStopSec=8", 10).as_deref(), Some("15000ms"));
        assert_eq!(limit("TimeoutSec=8", 10).as_deref(), Some("15000ms"));
        assert_eq!(limit("TimeoutStopSec=1min", 10).as_deref(), Some("1min"));
        assert_eq!(limit("TimeoutStopSec=infinity", 1000).as_deref(), Some("infinity"));
        assert_eq!(limit("", 100).as_deref(), Some("105000ms"));
    }
}
