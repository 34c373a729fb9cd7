//! When a certificate ends: the one field of X.509 that rustls checks but does not tell.
//!
//! Walks DER down to `tbsCertificate.validity.notAfter` (RFC 5280 §4.1) and looks at nothing else. Not a verifier.

use std::time::SystemTime;

use super::dates;

const SEQUENCE: u8 = 0x30;
const EXPLICIT_VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// `None` for what is no certificate. An end beyond the year 9999 cannot occur in one.
pub fn not_after(certificate: &[u8]) -> Option<SystemTime> {
    let (_, certificate, _) = element(certificate, Some(SEQUENCE))?;
    let (_, mut fields, _) = element(certificate, Some(SEQUENCE))?;
    if fields.first() == Some(&EXPLICIT_VERSION) {
        (_, _, fields) = element(fields, None)?;
    }
    // Serial number, signature algorithm, issuer.
    for _ in 0..3 {
        (_, _, fields) = element(fields, None)?;
    }
    let (_, validity, _) = element(fields, Some(SEQUENCE))?;
    let (_, _, after_not_before) = element(validity, None)?;
    let (tag, text, _) = element(after_not_before, None)?;
    match tag {
        UTC_TIME => dates::parse_x509(text, false),
        GENERALIZED_TIME => dates::parse_x509(text, true),
        _ => None,
    }
}

/// The first element's tag and content, and what follows it. Definite lengths of up to four bytes; one-byte tags.
fn element(bytes: &[u8], expected: Option<u8>) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (len, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().fold(0, |len, &byte| len << 8 | usize::from(byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(len)?;
    expected.is_none_or(|expected| expected == tag).then_some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    /// A certificate's first fields, as DER; the rest of a real one follows them.
    fn certificate(not_after_tag: u8, not_after: &[u8]) -> Vec<u8> {
        fn wrap(tag: u8, content: &[u8]) -> Vec<u8> {
            [&[tag, 0x82, (content.len() >> 8) as u8, content.len() as u8], content].concat()
        }
        let validity = [wrap(UTC_TIME, b"250101000000Z"), wrap(not_after_tag, not_after)].concat();
        let fields = [
            wrap(EXPLICIT_VERSION, &[2, 1, 2]),
            wrap(2, &[7; 20]),
            wrap(SEQUENCE, &[6, 1, 42]),
            wrap(SEQUENCE, &[0; 200]),
            wrap(SEQUENCE, &validity),
            wrap(SEQUENCE, &[0; 100]),
        ]
        .concat();
        wrap(SEQUENCE, &[wrap(SEQUENCE, &fields), wrap(3, &[0; 65])].concat())
    }

    #[test]
    fn end_is_read_in_both_spellings() {
        let expected = SystemTime::UNIX_EPOCH + Duration::from_secs(1_763_816_645);
        assert_eq!(not_after(&certificate(UTC_TIME, b"251122130405Z")), Some(expected));
        assert_eq!(not_after(&certificate(GENERALIZED_TIME, b"20251122130405Z")), Some(expected));
        assert_eq!(not_after(&certificate(2, b"251122130405Z")), None);
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = not_after(&bytes);
        }

        #[test]
        fn cut_or_changed_certificate_never_panics(cut in 0_usize..600, at in 0_usize..600, byte: u8) {
            let mut der = certificate(UTC_TIME, b"251122130405Z");
            let index = at % der.len();
            der[index] = byte;
            der.truncate(cut);
            let _ = not_after(&der);
        }
    }
}
