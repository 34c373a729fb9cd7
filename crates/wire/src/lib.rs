//! The gRPC messages and services, generated from `proto/`, and the codec they go through. Nothing else lives here.
#![forbid(unsafe_code)]

pub mod codec;

/// Kubernetes KMS v2.
pub mod kms {
    pub mod v2 {
        tonic::include_proto!("v2");
    }
}

/// Keystead's admin service.
pub mod admin {
    pub mod v1 {
        tonic::include_proto!("keystead.admin.v1");
    }
}

/// The part of etcd's API that reads keys.
#[cfg(feature = "etcd")]
pub mod etcd {
    tonic::include_proto!("etcdserverpb");
}
