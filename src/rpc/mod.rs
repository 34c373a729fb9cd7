//! gRPC services on unix sockets: KMS v2 and admin.
