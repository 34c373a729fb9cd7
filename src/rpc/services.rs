//! The services of the admin socket, by the path of a request: the admin service, health, and reflection where the site wants it.

use std::convert::Infallible;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use http::{Request, Response};
use hyper::body::Incoming;
use keystead_wire::admin::v1::admin_server::AdminServer;
use keystead_wire::health::v1::health_server::HealthServer;
use tonic::body::Body;
use tonic_reflection::server::v1::{ServerReflection, ServerReflectionServer};
use tower::Service;

use super::admin::AdminService;
use super::health::HealthService;

pub struct Services<R> {
    pub admin: AdminServer<AdminService>,
    pub health: HealthServer<HealthService>,
    /// `None`: switched off, and then unknown like any other service that is not there.
    pub reflection: Option<ServerReflectionServer<R>>,
}

impl<R> Clone for Services<R> {
    fn clone(&self) -> Self {
        Self { admin: self.admin.clone(), health: self.health.clone(), reflection: self.reflection.clone() }
    }
}

/// Reflection over what [`Services`] has.
///
/// # Errors
/// The descriptors that were built in are damaged.
pub fn reflection() -> Result<ServerReflectionServer<impl ServerReflection>, tonic_reflection::server::Error> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(keystead_wire::ADMIN_SOCKET)
        .build_v1()
}

impl<R: ServerReflection> Service<Request<Incoming>> for Services<R> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        match (request.uri().path().split('/').nth(1), &mut self.reflection) {
            (Some("grpc.health.v1.Health"), _) => self.health.call(request),
            (Some("grpc.reflection.v1.ServerReflection"), Some(reflection)) => reflection.call(request),
            // It says of what it does not know that it does not know it.
            _ => self.admin.call(request),
        }
    }
}
