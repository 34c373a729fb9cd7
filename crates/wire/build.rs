//! Compiles the protos without protoc.

use std::path::{Path, PathBuf};

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    println!("cargo::rerun-if-changed={}", root.display());
    let on_admin_socket = ["keystead/admin/v1/admin.proto", "grpc/health/v1/health.proto"];
    let ours = protox::compile(["kms/v2/api.proto"].into_iter().chain(on_admin_socket), [&root])?;
    tonic_prost_build::configure()
        .build_transport(false)
        .generate_default_stubs(true)
        .codec_path("crate::codec::SmallMessages")
        .compile_fds(ours)?;
    // What reflection tells: no comments and places in files, which would only make the program larger.
    let mut told = protox::compile(on_admin_socket, [&root])?;
    for file in &mut told.file {
        file.source_code_info = None;
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    std::fs::write(out.join("admin_socket.bin"), told.encode_to_vec())?;
    if std::env::var_os("CARGO_FEATURE_ETCD").is_some() {
        let etcd = protox::compile(["etcd/kv.proto"], [&root])?;
        tonic_prost_build::configure().build_transport(false).generate_default_stubs(true).compile_fds(etcd)?;
    }
    Ok(())
}
