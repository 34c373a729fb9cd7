//! Bodies of the type `application/x-www-form-urlencoded`, which token services want.

use zeroize::Zeroizing;

pub const CONTENT_TYPE: &str = "application/x-www-form-urlencoded";

/// `name=value&…`, values percent-encoded. The names are the service's own and need no encoding.
pub fn body(fields: &[(&str, &str)]) -> Zeroizing<Vec<u8>> {
    // Three bytes for one at most, so that a secret is never moved by growth.
    let room = fields.iter().map(|(name, value)| name.len() + 3 * value.len() + 2).sum();
    let mut body = Zeroizing::new(Vec::with_capacity(room));
    for (index, (name, value)) in fields.iter().enumerate() {
        if index > 0 {
            body.push(b'&');
        }
        body.extend_from_slice(name.as_bytes());
        body.push(b'=');
        value.bytes().for_each(|byte| push_encoded(&mut body, byte));
    }
    body
}

fn push_encoded(body: &mut Vec<u8>, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
        body.push(byte);
    } else {
        body.extend_from_slice(&[b'%', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_but_unreserved_characters_is_encoded() {
        let body = body(&[("grant_type", "urn:ibm:params"), ("apikey", "a-b_c.~/+ é&=")]);
        assert_eq!(
            std::str::from_utf8(&body).unwrap(),
            "grant_type=urn%3Aibm%3Aparams&apikey=a-b_c.~%2F%2B%20%C3%A9%26%3D"
        );
    }
}
