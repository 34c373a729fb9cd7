//! A client that is not tonic: gRPC's own C core, as PyPI ships it.

use std::process::Command;

use crate::daemon::Site;

#[tokio::test]
async fn grpcio_client_does_status_encrypt_and_decrypt() {
    let python = std::env::var("KEYSTEAD_TEST_PYTHON").expect(
        "KEYSTEAD_TEST_PYTHON names a Python with grpcio: run scripts/test, or scripts/rigs/python for its path",
    );
    let site = Site::initialized("");
    let _daemon = site.serve().await;
    let output = Command::new(python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/rigs/kms_client.py"))
        .arg(site.kms_socket())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("\"ok\": true"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
