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

/// The health service of gRPC.
pub mod health {
    pub mod v1 {
        tonic::include_proto!("grpc.health.v1");
    }
}

/// Descriptors of the services on the admin socket, for reflection.
pub const ADMIN_SOCKET: &[u8] = tonic::include_file_descriptor_set!("admin_socket");

/// The part of etcd's API that reads keys.
#[cfg(feature = "etcd")]
pub mod etcd {
    tonic::include_proto!("etcdserverpb");
}
