//! In front of the admin service: a request goes through if the caller's rights cover it, and every refusal is recorded.

use std::convert::Infallible;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use tonic::Status;
use tonic::body::Body;
use tower::Service;

use super::audited::AdminAudit;
use super::peer::Caller;
use super::roles::Action;

#[derive(Clone)]
pub struct Authorized<S> {
    service: S,
    audit: AdminAudit,
}

impl<S> Authorized<S> {
    pub fn new(service: S, audit: AdminAudit) -> Self {
        Self { service, audit }
    }
}

impl<S, B> Service<Request<B>> for Authorized<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let Some(action) = Action::of_path(request.uri().path()) else {
            // Nothing of ours, or of a version to come: the service says that it does not know it.
            return self.service.call(request).boxed();
        };
        let caller = request.extensions().get::<Caller>().copied();
        if caller.is_some_and(|caller| caller.rights.allow(action)) {
            return self.service.call(request).boxed();
        }
        let audit = self.audit.clone();
        async move {
            audit.refused(action.name(), caller).await;
            Ok(refusal(action).into_http())
        }
        .boxed()
    }
}

fn refusal(action: Action) -> Status {
    Status::permission_denied(format!(
        "none of this user's roles allows {0:?}, or a rule denies it; [roles] in the configuration says who may",
        action.name()
    ))
}
