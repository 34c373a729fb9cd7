//! `keystead kms decrypt`.

use std::path::{Path, PathBuf};

use base64ct::{Base64, Encoding};
use clap::Args;
use keystead_wire::kms::v2::DecryptRequest;
use zeroize::Zeroizing;

use super::document::Document;
use super::{Service, files, request_uid};
use crate::cli::connection::runtime;
use crate::cli::exit::Failure;
use crate::cli::report::{Format, Report};

#[derive(Debug, Args)]
pub struct Arguments {
    /// JSON document of `encrypt` [default: stdin]
    #[arg(long = "in", value_name = "FILE")]
    input: Option<PathBuf>,
    /// Where the plaintext goes [default: stdout]
    #[arg(long = "out", value_name = "FILE")]
    out: Option<PathBuf>,
}

pub fn run(arguments: &Arguments, socket: &Path, format: Format) -> Result<Report, Failure> {
    let document = Document::parse(&files::read(arguments.input.as_deref())?)?;
    let plaintext = runtime()?.block_on(async { decrypt(Service::open(socket).await?, &document).await })?;
    match format {
        // As it is, with no newline added: it may be binary.
        Format::Text => files::write(arguments.out.as_deref(), &plaintext)?,
        Format::Json => {
            let encoded = Zeroizing::new(Base64::encode_string(&plaintext));
            // Base64 has nothing that JSON would escape.
            let json = Zeroizing::new(format!("{{\"plaintext\":\"{}\"}}\n", encoded.as_str()));
            files::write(arguments.out.as_deref(), json.as_bytes())?;
        }
    }
    Ok(Report::silent())
}

pub async fn decrypt(mut service: Service, document: &Document) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let request = DecryptRequest {
        ciphertext: document.ciphertext.0.clone(),
        uid: request_uid()?,
        key_id: document.key_id.clone(),
        annotations: document.annotations(),
    };
    let answer = service.connection.answer(service.kms.decrypt(request)).await?;
    Ok(Zeroizing::new(answer.plaintext))
}
