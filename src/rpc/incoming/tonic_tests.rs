//! The connections under a real tonic server, with real clients.

use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use keystead_wire::kms::v2::key_management_service_client::KeyManagementServiceClient;
use keystead_wire::kms::v2::key_management_service_server::{KeyManagementService, KeyManagementServiceServer};
use keystead_wire::kms::v2::{
    DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse,
};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Request, Response, Status};

use super::*;
use crate::rpc::peer::{Caller, PeerPolicy};
use crate::rpc::roles::RolePolicy;

/// Answers Status with who asks.
struct WhoAmI;

#[tonic::async_trait]
impl KeyManagementService for WhoAmI {
    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let caller = request.extensions().get::<Caller>().ok_or_else(|| Status::internal("no caller"))?;
        if !caller.admitted {
            return Err(Status::permission_denied("not listed"));
        }
        Ok(Response::new(StatusResponse { healthz: format!("{:?}", caller.pid), ..Default::default() }))
    }

    async fn encrypt(&self, _: Request<EncryptRequest>) -> Result<Response<EncryptResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn decrypt(&self, _: Request<DecryptRequest>) -> Result<Response<DecryptResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

struct TestServer {
    _folder: tempfile::TempDir,
    path: PathBuf,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<Result<(), tonic::transport::Error>>,
}

fn serve(policy: PeerPolicy) -> TestServer {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kms.sock");
    let settings = IncomingSettings {
        handshake_deadline: Duration::from_secs(10),
        admission: Admission { max_connections: 1, policy, roles: RolePolicy::default() },
    };
    let incoming = Incoming::new(UnixListener::bind(&path).unwrap(), settings);
    let (stop, stopped) = oneshot::channel();
    let serving = tokio::spawn(
        Server::builder()
            .add_service(KeyManagementServiceServer::new(WhoAmI))
            .serve_with_incoming_shutdown(incoming, async { drop(stopped.await) }),
    );
    TestServer { _folder: folder, path, stop, serving }
}

async fn client(path: &Path) -> Result<KeyManagementServiceClient<Channel>, tonic::transport::Error> {
    let path = path.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await?;
    Ok(KeyManagementServiceClient::new(channel))
}

fn us() -> PeerPolicy {
    PeerPolicy { uids: vec![rustix::process::geteuid().as_raw()], gids: vec![] }
}

#[tokio::test]
async fn requests_carry_their_caller_and_idle_clients_do_not_hold_up_the_end() {
    let server = serve(us());
    let mut client = client(&server.path).await.unwrap();
    let answer = client.status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(answer.healthz, format!("Some({})", std::process::id()));
    server.stop.send(()).unwrap();
    server.serving.await.unwrap().unwrap();
}

#[tokio::test]
async fn client_that_is_not_listed_gets_an_answer_that_says_so() {
    let server = serve(PeerPolicy::default());
    let mut client = client(&server.path).await.unwrap();
    assert_eq!(client.status(StatusRequest {}).await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn client_beyond_the_limit_fails_at_once_and_gets_in_when_a_slot_is_free() {
    let server = serve(us());
    let mut first = client(&server.path).await.unwrap();
    first.status(StatusRequest {}).await.unwrap();
    // Either the connection or the first call on it fails, by who is faster.
    if let Ok(mut second) = client(&server.path).await {
        second.status(StatusRequest {}).await.unwrap_err();
    }
    first.status(StatusRequest {}).await.unwrap();
    drop(first);
    loop {
        if let Ok(mut third) = client(&server.path).await
            && third.status(StatusRequest {}).await.is_ok()
        {
            break;
        }
    }
}
