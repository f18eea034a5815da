//! systemd's escaping of unit names in object paths: every byte that is no letter or digit, and a leading
//! digit, becomes `_xx`.

use model::UnitName;
use std::fmt::Write;

/// Below which units are objects.
pub(crate) const NAMESPACE: &str = "/org/freedesktop/systemd1/unit";

/// The object path of a unit.
pub(crate) fn of(unit: &UnitName) -> String {
    let mut path = format!("{NAMESPACE}/");
    for (place, byte) in unit.as_str().bytes().enumerate() {
        let plain = byte.is_ascii_alphabetic() || (byte.is_ascii_digit() && place > 0);
        if plain {
            path.push(char::from(byte));
        } else {
            write!(path, "_{byte:02x}").expect("writing to a String cannot fail");
        }
    }
    path
}

/// The unit of an object path.
pub(crate) fn unit(path: &str) -> Option<UnitName> {
    let escaped = path.strip_prefix(NAMESPACE)?.strip_prefix('/')?;
    let mut name = Vec::with_capacity(escaped.len());
    let mut bytes = escaped.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'_' {
            let hex = [bytes.next()?, bytes.next()?];
            name.push(u8::from_str_radix(std::str::from_utf8(&hex).ok()?, 16).ok()?);
        } else {
            name.push(byte);
        }
    }
    String::from_utf8(name).ok()?.parse().ok()
}

/// The number at the end of a job's object path; 0, which no job has, if there is none.
pub(crate) fn job(path: &str) -> u32 {
    path.rsplit('/').next().and_then(|number| number.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_the_way_to_a_path_and_back() {
        for name in ["web@1.service", "1a-b_c:d.timer", "some\\x2dapp@a@b.service"] {
            let name: UnitName = name.parse().expect("valid");
            assert_eq!(unit(&of(&name)), Some(name));
        }
        let name: UnitName = "web@1.service".parse().expect("valid");
        assert_eq!(of(&name), "/org/freedesktop/systemd1/unit/web_401_2eservice");
        assert_eq!(unit("/org/freedesktop/systemd1/job/7"), None);
    }
}
