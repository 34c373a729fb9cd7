//! The gRPC health service and reflection on the admin socket.

use std::collections::BTreeSet;
use std::fs;

use keystead_wire::health::v1::health_check_response::ServingStatus;
use keystead_wire::health::v1::health_client::HealthClient;
use keystead_wire::health::v1::{HealthCheckRequest, HealthCheckResponse};
use rustix::process::Signal;
use tonic::transport::Channel;
use tonic::{Code, Streaming};
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::clients::channel;
use crate::daemon::{DEADLINE, Finished, Site};

const KMS: &str = "v2.KeyManagementService";
const ADMIN: &str = "keystead.admin.v1.Admin";

fn asked(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.into() }
}

async fn health(site: &Site) -> HealthClient<Channel> {
    HealthClient::new(channel(site.path().join("run/admin.sock")).await)
}

async fn next(watched: &mut Streaming<HealthCheckResponse>) -> Option<ServingStatus> {
    let answer = tokio::time::timeout(DEADLINE, watched.message()).await.expect("an answer in time").ok()??;
    Some(answer.status())
}

#[tokio::test]
async fn health_follows_what_encrypt_would_answer_and_watchers_hear_of_it() {
    let site = Site::initialized("");
    let token = site.path().join("token");
    let away = site.path().join("token.away");
    fs::rename(&token, &away).unwrap();
    let mut daemon = site.spawn(&[]);
    daemon.until("sealed for good", |status| !status.reason.is_empty() && status.availability == "sealed").await;
    let mut health = health(&site).await;
    for (service, expected) in
        [("", ServingStatus::NotServing), (KMS, ServingStatus::NotServing), (ADMIN, ServingStatus::Serving)]
    {
        assert_eq!(health.check(asked(service)).await.unwrap().into_inner().status(), expected, "{service:?}");
    }
    assert_eq!(health.check(asked("v2.Nothing")).await.unwrap_err().code(), Code::NotFound);
    let mut watched = health.watch(asked(KMS)).await.unwrap().into_inner();
    let mut unknown = health.watch(asked("v2.Nothing")).await.unwrap().into_inner();
    assert_eq!(next(&mut watched).await, Some(ServingStatus::NotServing));
    assert_eq!(next(&mut unknown).await, Some(ServingStatus::ServiceUnknown));

    fs::rename(&away, &token).unwrap();
    assert_eq!(next(&mut watched).await, Some(ServingStatus::Serving));
    assert_eq!(health.check(asked("")).await.unwrap().into_inner().status(), ServingStatus::Serving);
    daemon
        .kms()
        .await
        .encrypt(keystead_wire::kms::v2::EncryptRequest { plaintext: vec![1; 32], uid: "u".into() })
        .await
        .unwrap();

    // The end is told, and neither stream holds it up.
    daemon.signal(Signal::TERM);
    assert_eq!(next(&mut watched).await, Some(ServingStatus::NotServing));
    assert_eq!((next(&mut watched).await, next(&mut unknown).await), (None, None));
    drop((health, watched, unknown));
    assert!(daemon.wait().success());
}

/// Encrypt is refused there, too, while what it does cannot be recorded.
#[tokio::test]
async fn health_says_not_serving_while_the_trail_stops_the_service() {
    let site = Site::initialized("[audit]\nlevel = \"requests\"\nfailure = \"stop\"\nmax_file = \"64KiB\"\n");
    let daemon = site.serve().await;
    let mut health = health(&site).await;
    let mut watched = health.watch(asked("")).await.unwrap().into_inner();
    assert_eq!(next(&mut watched).await, Some(ServingStatus::Serving));
    // The next file cannot be begun: its name is taken by a folder.
    let folder = site.path().join("store/audit");
    let mut kms = daemon.kms().await;
    let blocked = folder.join("audit.log");
    fs::rename(&blocked, folder.join("moved")).unwrap();
    fs::create_dir(&blocked).unwrap();
    let request = || keystead_wire::kms::v2::EncryptRequest { plaintext: vec![1; 32], uid: "u".repeat(200) };
    let started = std::time::Instant::now();
    while kms.encrypt(request()).await.is_ok() {
        assert!(started.elapsed() < DEADLINE, "the trail goes on: {}", daemon.log());
    }
    assert_eq!(next(&mut watched).await, Some(ServingStatus::NotServing));
    drop((kms, health, watched));
    drop(daemon);
}

async fn services(site: &Site) -> Result<BTreeSet<String>, tonic::Status> {
    let mut client = ServerReflectionClient::new(channel(site.path().join("run/admin.sock")).await);
    let request = |message| ServerReflectionRequest { host: String::new(), message_request: Some(message) };
    let requests = [MessageRequest::ListServices(String::new()), MessageRequest::FileContainingSymbol(ADMIN.into())];
    let mut answers = client.server_reflection_info(tokio_stream::iter(requests.map(request))).await?.into_inner();
    let first = answers.message().await?.unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = first else { panic!("another answer: {first:?}") };
    let second = answers.message().await?.unwrap().message_response;
    let Some(MessageResponse::FileDescriptorResponse(file)) = second else { panic!("another answer: {second:?}") };
    let file = String::from_utf8_lossy(&file.file_descriptor_proto[0]).into_owned();
    assert!(file.contains("ExtendLeaseRequest"), "{file}");
    Ok(list.service.into_iter().map(|service| service.name).collect())
}

#[tokio::test]
async fn reflection_names_the_services_of_the_socket_only_where_the_site_wants_it() {
    let site = Site::initialized("");
    let daemon = site.serve().await;
    assert_eq!(services(&site).await.unwrap_err().code(), Code::Unimplemented);
    assert!(daemon.stop().success());
    let config = fs::read_to_string(site.config()).unwrap();
    fs::write(site.config(), config.replace("\n[admin]\n", "\n[admin]\nreflection = true\n")).unwrap();
    let daemon = site.serve().await;
    let expected = [ADMIN, "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"];
    assert_eq!(services(&site).await.unwrap(), expected.map(String::from).into());
    assert!(daemon.stop().success());
}

async fn refused(site: &Site) -> (Code, Code) {
    let checked = health(site).await.check(asked("")).await.map(drop).unwrap_err().code();
    (checked, services(site).await.unwrap_err().code())
}

#[tokio::test]
async fn whoever_may_not_see_the_status_sees_neither_health_nor_reflection() {
    let site = Site::initialized("");
    let own = rustix::process::geteuid().as_raw();
    let config = fs::read_to_string(site.config()).unwrap().replace("\n[admin]\n", "\n[admin]\nreflection = true\n");
    let before = config.split("\n[roles]").next().unwrap();
    let roles =
        format!("[roles]\nauditor = {{ uids = [{own}] }}\n[[roles.deny]]\nactions = [\"status\"]\nuids = [{own}]\n");
    fs::write(site.config(), format!("{before}\n{roles}")).unwrap();
    let daemon = site.serve().await;
    assert_eq!(refused(&site).await, (Code::PermissionDenied, Code::PermissionDenied));
    let trail = site.keystead(["audit", "query", "--outcome", "refused", "--output", "json"]).expect_success();
    assert!(trail.contains("\"status\""), "{trail}");
    assert!(daemon.stop().success());
}

/// kube-apiserver asks there for nothing but the KMS service.
#[tokio::test]
async fn the_kms_socket_serves_neither() {
    let site = Site::initialized("");
    let daemon = site.serve().await;
    let mut health = HealthClient::new(channel(site.kms_socket()).await);
    assert_eq!(health.check(asked("")).await.unwrap_err().code(), Code::Unimplemented);
    drop(health);
    assert!(daemon.stop().success());
}
