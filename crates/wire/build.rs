//! Compiles the protos without protoc.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    println!("cargo::rerun-if-changed={}", root.display());
    let ours = protox::compile(["kms/v2/api.proto", "keystead/admin/v1/admin.proto"], [&root])?;
    tonic_prost_build::configure()
        .build_transport(false)
        .generate_default_stubs(true)
        .codec_path("crate::codec::SmallMessages")
        .compile_fds(ours)?;
    if std::env::var_os("CARGO_FEATURE_ETCD").is_some() {
        let etcd = protox::compile(["etcd/kv.proto"], [&root])?;
        tonic_prost_build::configure().build_transport(false).generate_default_stubs(true).compile_fds(etcd)?;
    }
    Ok(())
}
