//! `keystead kms status`.

use keystead_wire::kms::v2::StatusRequest;
use serde_json::json;

use super::Service;
use crate::cli::exit::{Exit, Failure};
use crate::cli::report::Report;
use crate::cli::table;

pub async fn report(mut service: Service) -> Result<Report, Failure> {
    let status = service.connection.answer(service.kms.status(StatusRequest {})).await?;
    let text = table::fields(&[
        ("Version", status.version.clone()),
        ("Health", status.healthz.clone()),
        ("Key ID", status.key_id.clone()),
    ]);
    let json = json!({ "version": status.version, "healthz": status.healthz, "key_id": status.key_id });
    // The apiserver takes exactly this word for health.
    let exit = if status.healthz == "ok" { Exit::Done } else { Exit::NotServing };
    Ok(Report { text, json, exit })
}
