//! A client that is not tonic: gRPC's own C core, as PyPI ships it.

use std::process::Command;

use crate::daemon::Site;

#[tokio::test]
async fn grpcio_client_does_status_encrypt_and_decrypt() {
    round_trip(&[]).await;
}

/// Channels that nobody told `grpc.default_authority`.
#[tokio::test]
async fn grpcio_client_that_derives_its_authority_from_the_path_is_served() {
    round_trip(&["--derive-authority"]).await;
}

#[tokio::test]
async fn grpcio_client_may_send_a_path_or_nothing_as_its_authority() {
    for authority in ["/run/keystead/kms.sock", "%2Frun%2Fkeystead%2Fkms.sock", ""] {
        round_trip(&["--authority", authority]).await;
    }
}

async fn round_trip(arguments: &[&str]) {
    let python = std::env::var("KEYSTEAD_TEST_PYTHON").expect(
        "KEYSTEAD_TEST_PYTHON names a Python with grpcio: run scripts/test, or scripts/rigs/python for its path",
    );
    let site = Site::initialized("");
    let _daemon = site.serve().await;
    let output = Command::new(python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/rigs/kms_client.py"))
        .arg(site.kms_socket())
        .args(arguments)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("\"ok\": true"),
        "{arguments:?}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
