//! `keystead kms encrypt`.

use std::path::{Path, PathBuf};

use clap::Args;
use keystead_wire::kms::v2::EncryptRequest;

use super::document::Document;
use super::{Service, files, request_uid};
use crate::cli::connection::runtime;
use crate::cli::exit::{Exit, Failure};
use crate::cli::report::Report;

#[derive(Debug, Args)]
pub struct Arguments {
    /// Plaintext [default: stdin]
    #[arg(long = "in", value_name = "FILE")]
    input: Option<PathBuf>,
    /// Where the JSON document goes [default: stdout]
    #[arg(long = "out", value_name = "FILE")]
    out: Option<PathBuf>,
}

pub fn run(arguments: &Arguments, socket: &Path) -> Result<Report, Failure> {
    let plaintext = files::read(arguments.input.as_deref())?;
    let document = runtime()?.block_on(async { encrypt(Service::open(socket).await?, &plaintext).await })?;
    let mut json = serde_json::to_vec_pretty(&document)
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot write the document: {error}")))?;
    json.push(b'\n');
    // JSON in either format: it is what `decrypt` takes.
    files::write(arguments.out.as_deref(), &json)?;
    Ok(Report::silent())
}

pub async fn encrypt(mut service: Service, plaintext: &[u8]) -> Result<Document, Failure> {
    let request = EncryptRequest { plaintext: plaintext.to_vec(), uid: request_uid()? };
    service.connection.answer(service.kms.encrypt(request)).await.map(Document::from)
}
