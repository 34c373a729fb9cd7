//! The KMS service behind a bound on messages that may change: what is longer is refused before it is read.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use keystead_wire::kms::v2::key_management_service_server::KeyManagementServiceServer;
use tonic::body::Body;
use tower::Service;

use super::kms_v2::{KmsLimits, KmsV2};

/// tonic fixes the bound when its service is made: one is made for each request, of two pointers.
#[derive(Clone)]
pub struct LimitedKms {
    kms: Arc<KmsV2>,
    limits: Arc<KmsLimits>,
}

impl LimitedKms {
    pub fn new(kms: Arc<KmsV2>, limits: Arc<KmsLimits>) -> Self {
        Self { kms, limits }
    }
}

impl<B> Service<Request<B>> for LimitedKms
where
    KeyManagementServiceServer<KmsV2>: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = <KeyManagementServiceServer<KmsV2> as Service<Request<B>>>::Future;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let bound = self.limits.max_message();
        KeyManagementServiceServer::from_arc(self.kms.clone()).max_decoding_message_size(bound).call(request)
    }
}
