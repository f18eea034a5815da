//! The common name of a certificate, and the time in which it is valid.
//!
//! Only as much of DER (X.690) and X.509 (RFC 5280) as the way to the subject takes; rustls has checked the
//! certificate before. Invariant: bytes that are not a certificate have no name, and never cause a panic.

use std::fmt;
use std::time::{Duration, SystemTime};

/// DER's tags on the way.
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_ID: u8 = 0x06;
/// The version, which an X.509 v1 certificate does not have.
const VERSION: u8 = 0xa0;

/// Strings that are UTF-8 or part of it: UTF8String, PrintableString, IA5String.
const TEXT: [u8; 3] = [0x0c, 0x13, 0x16];

/// The two spellings of a time: two digits of the year, or four.
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// id-at-commonName, 2.5.4.3.
const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];

/// When a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// From when on.
    pub begin: Time,
    /// Until when.
    pub end: Time,
}

/// A point in time, as certificates have it: seconds since 1970, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(i64);

impl Time {
    pub(crate) fn is_before(self, now: SystemTime) -> bool {
        match u64::try_from(self.0) {
            Ok(seconds) => SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) < now,
            Err(_) => true,
        }
    }

    /// Of RFC 5280's two forms, `YYMMDDHHMMSSZ` and `YYYYMMDDHHMMSSZ`.
    fn parse(tag: u8, text: &[u8]) -> Option<Self> {
        let text = str::from_utf8(text).ok()?.strip_suffix('Z')?;
        let digits = if tag == UTC_TIME { 2 } else { 4 };
        let (year, rest) = text.split_at_checked(digits)?;
        let year: i64 = year.parse().ok()?;
        // Two digits are of the years 1950 to 2049.
        let year = if tag == UTC_TIME { year + if year < 50 { 2000 } else { 1900 } } else { year };
        let part = |place: usize| rest.get(2 * place..2 * place + 2)?.parse::<i64>().ok();
        let (month, day) = (part(0)?, part(1)?);
        if rest.len() != 10 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
            return None;
        }
        Some(Self(days(year, month, day) * 86400 + part(2)? * 3600 + part(3)? * 60 + part(4)?))
    }
}

/// Days from 1970-01-01 to a day of the Gregorian calendar. Years are counted from March, so that the leap day is the
/// last of them.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let from_march = (month + 9) % 12;
    let before_year = 365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    before_year + (153 * from_march + 2) / 5 + day - 1 - 719_468
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (day, second) = (self.0.div_euclid(86400), self.0.rem_euclid(86400));
        // The estimate is one year too late at most.
        let mut year = 1970 + day.div_euclid(365);
        while days(year, 1, 1) > day {
            year -= 1;
        }
        let month = (1..=12).rev().find(|month| days(year, *month, 1) <= day).unwrap_or(1);
        let of_month = day - days(year, month, 1) + 1;
        write!(f, "{year:04}-{month:02}-{of_month:02} {:02}:{:02} UTC", second / 3600, second / 60 % 60)
    }
}

/// What stands in a certificate behind its issuer.
fn behind_issuer(certificate: &[u8]) -> Option<Der<'_>> {
    let mut outer = Der(Der(certificate).expect(SEQUENCE)?);
    let mut fields = Der(outer.expect(SEQUENCE)?);
    let (tag, _) = fields.next()?;
    if tag == VERSION {
        fields.next()?; // the serial number, else it was that
    }
    fields.next()?; // the algorithm
    fields.next()?; // the issuer
    Some(fields)
}

/// When it is valid.
pub fn validity(certificate: &[u8]) -> Option<Validity> {
    let mut times = Der(behind_issuer(certificate)?.expect(SEQUENCE)?);
    let mut time = || {
        let (tag, text) = times.next()?;
        if [UTC_TIME, GENERALIZED_TIME].contains(&tag) { Time::parse(tag, text) } else { None }
    };
    Some(Validity { begin: time()?, end: time()? })
}

/// The subject's common name; the last one if there are more, as in Go.
pub fn common_name(certificate: &[u8]) -> Option<String> {
    let mut fields = behind_issuer(certificate)?;
    fields.next()?; // from when to when
    let mut names = Der(fields.expect(SEQUENCE)?);
    let mut found = None;
    while let Some((SET, name)) = names.next() {
        let mut attributes = Der(name);
        while let Some((SEQUENCE, attribute)) = attributes.next() {
            let mut attribute = Der(attribute);
            if attribute.expect(OBJECT_ID)? != COMMON_NAME {
                continue;
            }
            let (tag, text) = attribute.next()?;
            if TEXT.contains(&tag) {
                found = Some(String::from_utf8(text.to_vec()).ok()?);
            }
        }
    }
    found
}

/// What is left of a DER encoding.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next element: its tag and its content.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (tag, rest) = self.0.split_first()?;
        let (first, rest) = rest.split_first()?;
        let (length, rest) = match *first {
            short @ 0..0x80 => (usize::from(short), rest),
            long => {
                // At most four bytes: no certificate is longer.
                let bytes = usize::from(long & 0x7f);
                let (length, rest) = rest.split_at_checked(bytes).filter(|_| (1..=4).contains(&bytes))?;
                (length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
            }
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((*tag, content))
    }

    fn expect(&mut self, expected: u8) -> Option<&'a [u8]> {
        self.next().filter(|(tag, _)| *tag == expected).map(|(_, content)| content)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair};

    fn certificate(names: &[(DnType, &str)]) -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, name) in names {
            params.distinguished_name.push(kind.clone(), *name);
        }
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn the_subject_has_a_name() {
        let der = certificate(&[(DnType::OrganizationName, "org"), (DnType::CommonName, "änn")]);
        assert_eq!(common_name(&der).as_deref(), Some("änn"));
        let long = "x".repeat(300);
        assert_eq!(common_name(&certificate(&[(DnType::CommonName, &long)])), Some(long));
        assert_eq!(common_name(&certificate(&[(DnType::OrganizationName, "org")])), None);
    }

    #[test]
    fn the_time_is_read() {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.not_before = rcgen::date_time_ymd(1975, 2, 28);
        params.not_after = rcgen::date_time_ymd(2052, 2, 29);
        let der = params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec();
        let Validity { begin, end } = validity(&der).unwrap();
        assert_eq!(
            (begin.to_string(), end.to_string()),
            ("1975-02-28 00:00 UTC".to_owned(), "2052-02-29 00:00 UTC".to_owned())
        );
        assert_eq!((begin.0, end.0), (162_777_600, 2_592_777_600)); // as `date --utc +%s` has it
        assert!(begin.is_before(SystemTime::now()) && !end.is_before(SystemTime::UNIX_EPOCH));
        for end in ["000101000000Z", "991231235959Z"] {
            let time = Time::parse(UTC_TIME, end.as_bytes()).unwrap().to_string();
            assert!(["2000-01-01 00:00 UTC", "1999-12-31 23:59 UTC"].contains(&time.as_str()), "{time}");
        }
        assert_eq!(Time::parse(UTC_TIME, b"001301000000Z"), None);
    }

    #[test]
    fn damage_is_no_name() {
        let der = certificate(&[(DnType::CommonName, "ann")]);
        for cut in 0..der.len() {
            assert_eq!(common_name(&der[..cut]), None);
        }
        for place in 0..der.len() {
            let mut damaged = der.clone();
            damaged[place] ^= 0xff;
            let _ = (common_name(&damaged), validity(&damaged)); // whatever they say, they return
        }
    }
}
