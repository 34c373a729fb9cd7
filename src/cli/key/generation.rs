//! One generation as programs read it: the same fields wherever a command shows one.

use base64ct::{Base64, Encoding};
use keystead_wire::admin::v1::Generation;
use serde_json::{Value, json};

use crate::cli::time;

pub fn json(generation: &Generation) -> Value {
    json!({
        "number": generation.number,
        "key_id": generation.key_id,
        "state": generation.state,
        "created": time::rfc3339(generation.created),
        "activated": time::rfc3339(generation.activated),
        "loaded": generation.loaded,
        "encrypts": generation.encrypts,
        "decrypts": generation.decrypts,
        "roots": generation.roots.iter().map(|root| json!({
            "kind": root.kind, "id": root.id, "construction": root.construction,
        })).collect::<Vec<_>>(),
        // Everything that recovery needs of this generation; `keystead recovery drill` reads it.
        "annotation": Base64::encode_string(&generation.annotation),
    })
}
