//! The yardstick: the cheapest tonic server that answers the KMS v2 calls with as many bytes as Keystead does.
//!
//! Same protocol, same tonic, same kind of runtime; no key, no check, no metric, the system's allocator. What Keystead
//! costs beyond this is its own.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use keystead_wire::kms::v2::key_management_service_server::{KeyManagementService, KeyManagementServiceServer};
use keystead_wire::kms::v2::{
    DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse,
};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use crate::failure::{Failure, FailureExt};
use crate::load::ECHO_BYTE;

#[derive(Debug, Args)]
pub struct EchoArgs {
    /// Socket to serve; must not exist
    #[arg(long)]
    pub socket: PathBuf,
    /// Worker threads of the runtime; as many as Keystead's server has
    #[arg(long, default_value_t = 2)]
    pub workers: usize,
    #[command(flatten)]
    pub lengths: Lengths,
    /// Stop when standard input ends, so that the server cannot outlive whoever started it
    #[arg(long)]
    pub until_eof: bool,
}

/// How long Keystead's answers are, in bytes. `run` measures them on the real daemon first.
#[derive(Debug, Clone, PartialEq, Eq, Args, serde::Serialize)]
pub struct Lengths {
    /// Encrypt's ciphertext
    #[arg(long, default_value_t = Self::default().ciphertext)]
    pub ciphertext: usize,
    /// Decrypt's plaintext
    #[arg(long, default_value_t = Self::default().plaintext)]
    pub plaintext: usize,
    /// Key ID, in Status and Encrypt
    #[arg(long, default_value_t = Self::default().key_id)]
    pub key_id: usize,
    /// Name of Encrypt's one annotation; empty for none
    #[arg(long, default_value_t = Self::default().annotation_key)]
    pub annotation_key: String,
    /// Value of that annotation
    #[arg(long, default_value_t = Self::default().annotation)]
    pub annotation: usize,
}

impl Default for Lengths {
    /// Of a keyring with a name of average length, and one wrap.
    fn default() -> Self {
        Self {
            ciphertext: 73,
            plaintext: 32,
            key_id: 46,
            annotation_key: "wraps.keystead.internal".to_owned(),
            annotation: 200,
        }
    }
}

impl Lengths {
    /// As command-line arguments of `keystead-bench echo`.
    pub fn to_args(&self) -> [String; 5] {
        [
            format!("--ciphertext={}", self.ciphertext),
            format!("--plaintext={}", self.plaintext),
            format!("--key-id={}", self.key_id),
            format!("--annotation-key={}", self.annotation_key),
            format!("--annotation={}", self.annotation),
        ]
    }
}

/// Serves until SIGTERM or SIGINT (the default action of both ends the process), or until standard input ends.
pub async fn serve(args: &EchoArgs) -> Result<(), Failure> {
    let listener = bind(&args.socket)?;
    let service = KeyManagementServiceServer::new(Echo::new(&args.lengths));
    let server =
        tonic::transport::Server::builder().add_service(service).serve_with_incoming(UnixListenerStream::new(listener));
    tokio::select! {
        ended = server => ended.map_err(|source| Failure::transport("echo server", source)),
        () = stdin_ended(), if args.until_eof => Ok(()),
    }
}

fn bind(path: &Path) -> Result<UnixListener, Failure> {
    let listener = UnixListener::bind(path).doing(|| format!("bind {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .doing(|| format!("set the mode of {}", path.display()))?;
    Ok(listener)
}

/// Waits on a thread of its own: standard input of an unknown kind cannot be polled.
async fn stdin_ended() {
    let (ended, wait) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        // An error ends it as the end of input does.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        let _ = ended.send(());
    });
    let _ = wait.await;
}

struct Echo {
    status: StatusResponse,
    encrypted: EncryptResponse,
    plaintext: Vec<u8>,
}

impl Echo {
    fn new(lengths: &Lengths) -> Self {
        let key_id = "k".repeat(lengths.key_id);
        let annotations = match lengths.annotation_key.as_str() {
            "" => HashMap::new(),
            name => HashMap::from([(name.to_owned(), vec![ECHO_BYTE; lengths.annotation])]),
        };
        Self {
            status: StatusResponse { version: "v2".into(), healthz: "ok".into(), key_id: key_id.clone() },
            encrypted: EncryptResponse { ciphertext: vec![ECHO_BYTE; lengths.ciphertext], key_id, annotations },
            plaintext: vec![ECHO_BYTE; lengths.plaintext],
        }
    }
}

#[tonic::async_trait]
impl KeyManagementService for Echo {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(self.status.clone()))
    }

    async fn decrypt(&self, _: Request<DecryptRequest>) -> Result<Response<DecryptResponse>, Status> {
        Ok(Response::new(DecryptResponse { plaintext: self.plaintext.clone() }))
    }

    async fn encrypt(&self, _: Request<EncryptRequest>) -> Result<Response<EncryptResponse>, Status> {
        Ok(Response::new(self.encrypted.clone()))
    }
}
