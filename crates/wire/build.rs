//! Compiles the protos without protoc.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    let files = ["kms/v2/api.proto", "keystead/admin/v1/admin.proto"];
    println!("cargo::rerun-if-changed={}", root.display());
    let descriptors = protox::compile(files, [&root])?;
    tonic_prost_build::configure().build_transport(false).generate_default_stubs(true).compile_fds(descriptors)?;
    Ok(())
}
