//! The audit trail, verified and read for whoever may.

use std::time::{Duration, UNIX_EPOCH};

use keystead_wire::admin::v1::{AuditLine, QueryAuditRequest, VerifyAuditResponse};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::BoxStream;
use tonic::{Response, Status};

use super::audited::AdminAudit;
use crate::audit::Trail;
use crate::audit::query::{Filter, query_last};
use crate::audit::verify::{Verified, VerifyError};
use crate::service::explain::explain;

pub(super) async fn verify(audit: &AdminAudit) -> Result<Response<VerifyAuditResponse>, Status> {
    let trail = recorded(audit)?;
    audit.tell_refusals().await;
    // What was written since the last one is vouched for first; a line that was changed breaks the chain before it.
    let _ = trail.checkpoint().await;
    let read = trail.clone();
    let outcome = tokio::task::spawn_blocking(move || read.verify())
        .await
        .map_err(|_| Status::internal("the audit trail could not be read to its end"))?;
    Ok(Response::new(verified(outcome, &trail)))
}

pub(super) async fn query(
    audit: &AdminAudit,
    request: QueryAuditRequest,
) -> Result<Response<BoxStream<AuditLine>>, Status> {
    let trail = recorded(audit)?;
    let limit = usize::try_from(request.limit).unwrap_or(usize::MAX);
    let filter = filter(request);
    // What is counted, and what waits for the writer, is asked for, too.
    audit.tell_refusals().await;
    let _ = trail.checkpoint().await;
    let (sender, receiver) = mpsc::channel(64);
    tokio::task::spawn_blocking(move || {
        // A client that hangs up ends the reading.
        let send = |line: String| sender.blocking_send(Ok(AuditLine { json: line })).is_ok();
        if let Err(error) = query_last(trail.folder(), &filter, limit, send) {
            let _ = sender.blocking_send(Err(Status::unavailable(format!("the audit trail cannot be read: {error}"))));
        }
    });
    Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
}

/// The trail, or why there is none.
fn recorded(audit: &AdminAudit) -> Result<Trail, Status> {
    let off =
        || Status::failed_precondition("there is no audit trail: it is off (audit.level), or could not be opened");
    audit.trail().cloned().ok_or_else(off)
}

fn verified(outcome: Result<Verified, VerifyError>, trail: &Trail) -> VerifyAuditResponse {
    let answer = VerifyAuditResponse {
        lost: trail.counts().lost,
        folder: trail.folder().display().to_string(),
        ..VerifyAuditResponse::default()
    };
    match outcome {
        Err(error) => VerifyAuditResponse { problem: explain(&error), ..answer },
        Ok(verified) => VerifyAuditResponse {
            intact: true,
            files: verified.files as u64,
            lines: verified.lines,
            first: verified.first,
            last: verified.end.sequence,
            checkpoint: verified.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.seq),
            checkpoint_time: verified.checkpoint.map(|checkpoint| checkpoint.time).unwrap_or_default(),
            ..answer
        },
    }
}

fn filter(request: QueryAuditRequest) -> Filter {
    // What no clock can show is beyond every line.
    let last = Duration::from_secs(u32::MAX.into());
    let time = |seconds: u64| (seconds > 0).then(|| UNIX_EPOCH + Duration::from_secs(seconds).min(last));
    let text = |text: String| (!text.is_empty()).then_some(text);
    Filter {
        since: time(request.since),
        until: time(request.until),
        action: text(request.action),
        outcome: text(request.outcome),
        uid: request.uid,
        generation: request.generation,
    }
}
