//! ACS3-HMAC-SHA256, the vendor's signature V3: which bytes are signed, and how. Pure.
//!
//! Source: the vendor's "V3 request body & signature mechanism", whose published example is a test here. The rig recomputes
//! every signature with the vendor's own Python library.

use std::fmt::Write;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

const ALGORITHM: &str = "ACS3-HMAC-SHA256";

/// What is signed: a POST or GET on `/`. Header names are lower-case and sorted.
pub struct Signable<'a> {
    pub method: &'a str,
    /// Sorted and percent-encoded; empty as a rule, since parameters go into the body.
    pub query: &'a str,
    pub headers: &'a [(&'a str, &'a str)],
    /// [`sha256_hex`] of the body, also sent as `x-acs-content-sha256`.
    pub payload_hash: &'a str,
}

/// The `Authorization` header. It holds the key's ID and a signature, not the secret.
pub fn authorization(signable: &Signable<'_>, access_key_id: &str, secret: &[u8]) -> String {
    debug_assert!(signable.headers.is_sorted_by_key(|(name, _)| *name));
    let names: Vec<&str> = signable.headers.iter().map(|(name, _)| *name).collect();
    let names = names.join(";");
    let to_sign = format!("{ALGORITHM}\n{}", sha256_hex(canonical(signable, &names).as_bytes()));
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
    mac.update(to_sign.as_bytes());
    let signature = hex(&mac.finalize().into_bytes());
    format!("{ALGORITHM} Credential={access_key_id},SignedHeaders={names},Signature={signature}")
}

fn canonical(signable: &Signable<'_>, names: &str) -> String {
    let mut text = format!("{}\n/\n{}\n", signable.method, signable.query);
    for (name, value) in signable.headers {
        text.extend([name, ":", value.trim(), "\n"]);
    }
    text.extend(["\n", names, "\n", signable.payload_hash]);
    text
}

pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example that the vendor publishes, with its signature.
    #[test]
    fn vendors_own_example_gives_the_vendors_signature() {
        let payload_hash = sha256_hex(b"");
        let headers = [
            ("host", "ecs.cn-shanghai.aliyuncs.com"),
            ("x-acs-action", "RunInstances"),
            ("x-acs-content-sha256", payload_hash.as_str()),
            ("x-acs-date", "2023-10-26T10:22:32Z"),
            ("x-acs-signature-nonce", "3156853299f313e23d1673dc12e1703d"),
            ("x-acs-version", "2014-05-26"),
        ];
        let query = "ImageId=win2019_1809_x64_dtc_zh-cn_40G_alibase_20230811.vhd&RegionId=cn-shanghai";
        let signable = Signable { method: "POST", query, headers: &headers, payload_hash: &payload_hash };
        assert_eq!(
            authorization(&signable, "YourAccessKeyId", b"YourAccessKeySecret"),
            "ACS3-HMAC-SHA256 Credential=YourAccessKeyId,\
             SignedHeaders=host;x-acs-action;x-acs-content-sha256;x-acs-date;x-acs-signature-nonce;x-acs-version,\
             Signature=06563a9e1b43f5dfe96b81484da74bceab24a1d853912eee15083a6f0f3283c0"
        );
    }
}
