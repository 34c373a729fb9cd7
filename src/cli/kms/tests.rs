//! The KMS client against a service of the tests' own, on a real unix socket.

use std::time::Duration;

use keystead_wire::kms::v2::key_management_service_server::{KeyManagementService, KeyManagementServiceServer};
use keystead_wire::kms::v2::{
    DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse,
};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use super::*;

/// "Encrypts" by flipping every bit; says `healthz`, or that it is sealed if that is empty.
struct Fake {
    healthz: &'static str,
}

#[tonic::async_trait]
impl KeyManagementService for Fake {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        if self.healthz.is_empty() {
            return Err(Status::unavailable("sealed: starting"));
        }
        Ok(Response::new(StatusResponse { version: "v2".into(), healthz: self.healthz.into(), key_id: "k".into() }))
    }

    async fn encrypt(&self, request: Request<EncryptRequest>) -> Result<Response<EncryptResponse>, Status> {
        let request = request.into_inner();
        assert!(request.uid.starts_with("keystead-cli-"), "{}", request.uid);
        let ciphertext = request.plaintext.iter().map(|byte| !byte).collect();
        let annotations = [("a.test".to_owned(), vec![1])].into();
        Ok(Response::new(EncryptResponse { ciphertext, key_id: "k".into(), annotations }))
    }

    async fn decrypt(&self, request: Request<DecryptRequest>) -> Result<Response<DecryptResponse>, Status> {
        let request = request.into_inner();
        if request.key_id != "k" || request.annotations.get("a.test") != Some(&vec![1]) {
            return Err(Status::not_found("unknown key ID"));
        }
        Ok(Response::new(DecryptResponse { plaintext: request.ciphertext.iter().map(|byte| !byte).collect() }))
    }
}

/// The service on a thread of its own: the commands bring their own runtime.
fn daemon(healthz: &'static str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("kms.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        runtime().unwrap().block_on(async {
            let incoming = UnixListenerStream::new(UnixListener::from_std(listener).unwrap());
            let service = KeyManagementServiceServer::new(Fake { healthz });
            tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await
        })
    });
    (folder, socket)
}

#[derive(clap::Parser)]
struct Line {
    #[command(flatten)]
    arguments: Arguments,
}

fn run_line(socket: &Path, line: &str, format: Format) -> Result<Report, Failure> {
    let line = format!("kms --socket {} {line}", socket.display());
    run(&<Line as clap::Parser>::parse_from(line.split_whitespace()).arguments, None, format)
}

#[test]
fn what_encrypt_writes_decrypt_gives_back() {
    let (folder, socket) = daemon("ok");
    let at = |name: &str| folder.path().join(name).display().to_string();
    let plaintext: Vec<u8> = (0..=255).collect();
    std::fs::write(at("in"), &plaintext).unwrap();
    let encrypt = format!("encrypt --in {} --out {}", at("in"), at("document"));
    run_line(&socket, &encrypt, Format::Text).unwrap();
    let decrypt = format!("decrypt --in {} --out {}", at("document"), at("out"));
    run_line(&socket, &decrypt, Format::Text).unwrap();
    assert_eq!(std::fs::read(at("out")).unwrap(), plaintext);

    run_line(&socket, &decrypt, Format::Json).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(at("out")).unwrap()).unwrap();
    assert!(json["plaintext"].as_str().unwrap().starts_with("AAECAwQF"));
}

#[test]
fn document_of_another_key_is_refused_by_the_daemon() {
    let (folder, socket) = daemon("ok");
    let document = folder.path().join("document");
    std::fs::write(&document, r#"{"ciphertext":"AQID","key_id":"other"}"#).unwrap();
    let failure = run_line(&socket, &format!("decrypt --in {}", document.display()), Format::Text).unwrap_err();
    assert_eq!((failure.exit, failure.message.as_str()), (Exit::Refused, "unknown key ID"));
}

#[test]
fn status_tells_healthy_unhealthy_and_sealed_apart() {
    let (_folder, socket) = daemon("ok");
    let report = run_line(&socket, "status", Format::Text).unwrap();
    assert_eq!((report.exit, &report.json["version"]), (Exit::Done, &"v2".into()));
    let (_folder, socket) = daemon("token is gone");
    assert_eq!(run_line(&socket, "status", Format::Text).unwrap().exit, Exit::NotServing);
    let (_folder, socket) = daemon("");
    assert_eq!(run_line(&socket, "status", Format::Text).unwrap_err().exit, Exit::NotServing);
}

#[test]
fn bench_counts_answers_of_each_operation() {
    use bench::Operation;
    let (_folder, socket) = daemon("ok");
    for (operation, name) in
        [(Operation::Status, "status"), (Operation::Encrypt, "encrypt"), (Operation::Decrypt, "decrypt")]
    {
        let measured = runtime().unwrap().block_on(async {
            let service = Service::open(&socket).await?;
            bench::measure(operation, 2, Duration::from_millis(50), service).await
        });
        let json = measured.unwrap().json;
        assert_eq!(json["operation"], name);
        assert!(json["answers"].as_u64().unwrap() > 0, "{json}");
    }
}
