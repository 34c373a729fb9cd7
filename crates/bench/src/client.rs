//! One HTTP/2 connection over a unix socket, as kube-apiserver holds it, and the generated clients on it.
//!
//! It drives hyper directly rather than tonic's `Channel`: the channel's buffer and reconnect layers cost the generator
//! more CPU per request than the protocol does, and here generator and server share the machine's cores.

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use keystead_wire::admin::v1::admin_client::AdminClient;
use keystead_wire::kms::v2::key_management_service_client::KeyManagementServiceClient;
use tokio::net::UnixStream;
use tonic::body::Body;

use crate::failure::{Failure, FailureExt};

pub type KmsClient = KeyManagementServiceClient<Connection>;

const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// A connection that any number of requests share; it lives as long as its last clone.
#[derive(Clone)]
pub struct Connection(http2::SendRequest<Body>);

impl Connection {
    /// # Errors
    /// When nobody listens on `socket`, or the peer does not speak HTTP/2 within ten seconds.
    pub async fn open(socket: &Path) -> Result<Self, Failure> {
        let stream = UnixStream::connect(socket).await.doing(|| format!("connect to {}", socket.display()))?;
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (sender, connection) = tokio::time::timeout(CONNECT_LIMIT, handshake)
            .await
            .map_err(|_| Failure::too_long("the HTTP/2 handshake", CONNECT_LIMIT))?
            .map_err(|source| Failure::transport("HTTP/2 handshake", source))?;
        // How a connection ends shows in its requests.
        tokio::spawn(async move { drop(connection.await) });
        Ok(Self(sender))
    }

    /// The KMS v2 client. `:authority` is what kube-apiserver sends since 1.32.
    pub fn kms(&self) -> KmsClient {
        KeyManagementServiceClient::with_origin(self.clone(), Uri::from_static("http://localhost"))
    }

    pub fn admin(&self) -> AdminClient<Self> {
        AdminClient::with_origin(self.clone(), Uri::from_static("http://localhost"))
    }
}

impl tower::Service<Request<Body>> for Connection {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}
