//! The common name of a certificate.
//!
//! Only as much of DER (X.690) and X.509 (RFC 5280) as the way to the subject takes; rustls has checked the
//! certificate before. Invariant: bytes that are not a certificate have no name, and never cause a panic.

/// DER's tags on the way.
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_ID: u8 = 0x06;
/// The version, which an X.509 v1 certificate does not have.
const VERSION: u8 = 0xa0;

/// Strings that are UTF-8 or part of it: UTF8String, PrintableString, IA5String.
const TEXT: [u8; 3] = [0x0c, 0x13, 0x16];

/// id-at-commonName, 2.5.4.3.
const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];

/// The subject's common name; the last one if there are more, as in Go.
pub(crate) fn common_name(certificate: &[u8]) -> Option<String> {
    let mut outer = Der(Der(certificate).expect(SEQUENCE)?);
    let mut fields = Der(outer.expect(SEQUENCE)?);
    let (tag, _) = fields.next()?;
    if tag == VERSION {
        fields.next()?; // the serial number, else it was that
    }
    fields.next()?; // the algorithm
    fields.next()?; // the issuer
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
    fn damage_is_no_name() {
        let der = certificate(&[(DnType::CommonName, "ann")]);
        for cut in 0..der.len() {
            assert_eq!(common_name(&der[..cut]), None);
        }
        for place in 0..der.len() {
            let mut damaged = der.clone();
            damaged[place] ^= 0xff;
            common_name(&damaged); // whatever it says, it returns
        }
    }
}
