//! Requests and admin actions on their way into the audit trail.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Map, Value, json};
use tonic::{Code, Request, Status};

use super::metrics::Method;
use super::peer::Caller;
use super::refusals::{FIRST_WINDOW, Refusals, Repeats};
use crate::audit::{AdminRecord, AuditError, AuditedPeer, Phase, RequestRecord, Trail, Who};

/// What takes service away waits no longer for the trail.
const RECORDING_PATIENCE: Duration = Duration::from_secs(2);

/// The audit trail as the KMS service uses it; without one, or where requests are not recorded, all of it costs a branch.
pub struct RequestAudit(Option<Trail>);

impl RequestAudit {
    pub fn new(trail: Option<Trail>) -> Self {
        Self(trail)
    }

    /// Nothing is opened or closed that must be recorded and cannot be.
    pub fn admit(&self) -> Result<(), Status> {
        self.0.as_ref().map_or(Ok(()), |trail| trail.admits_requests().map_err(unrecorded))
    }

    /// Records a finished request, by its code.
    ///
    /// # Errors
    /// It must be recorded and cannot be: the answer is not given.
    pub fn record(
        &self,
        method: Method,
        caller: Option<Caller>,
        uid: &str,
        key_id: &str,
        latency: Duration,
        outcome: Code,
    ) -> Result<(), Status> {
        // A reload may have changed it since it was admitted.
        let Some(trail) = self.0.as_ref().filter(|trail| trail.wants_requests()) else { return Ok(()) };
        let recorded = trail.record_request(RequestRecord {
            at: SystemTime::now(),
            action: match method {
                Method::Status => "status",
                Method::Encrypt => "encrypt",
                Method::Decrypt => "decrypt",
            },
            uid,
            peer_uid: caller.map(|caller| caller.uid),
            peer_pid: caller.and_then(|caller| caller.pid),
            key_id,
            outcome: code_name(outcome),
            latency,
        });
        recorded.map_err(unrecorded)
    }
}

/// The audit trail as the admin service uses it.
#[derive(Clone)]
pub struct AdminAudit {
    trail: Option<Trail>,
    refusals: Arc<Refusals>,
}

/// An action whose intent is recorded. One that is dropped without an outcome was broken off, and is recorded as that.
pub struct Audited {
    trail: Option<Trail>,
    action: &'static str,
    who: Option<Who>,
}

impl AdminAudit {
    pub fn new(trail: Option<Trail>) -> Self {
        Self { trail, refusals: Arc::default() }
    }

    pub fn trail(&self) -> Option<&Trail> {
        self.trail.as_ref()
    }

    /// Records who is about to do what, durably, before it is done.
    ///
    /// # Errors
    /// It cannot be recorded, and the site wants nothing done that is not.
    pub async fn intent<T>(
        &self,
        action: &'static str,
        request: &Request<T>,
        details: Value,
    ) -> Result<Audited, Status> {
        self.intent_of(action, request.extensions().get().copied().map(peer).map(Who::Peer), details).await
    }

    /// [`Self::intent`], where nobody came through the socket.
    ///
    /// # Errors
    /// As there.
    pub async fn intent_of(&self, action: &'static str, who: Option<Who>, details: Value) -> Result<Audited, Status> {
        let audited = Audited { trail: self.trail.clone(), action, who };
        if let Some(trail) = &self.trail
            && let Err(error) = trail.record(audited.line(Phase::Intent, details)).await
            && trail.stops()
        {
            return Err(unrecorded(error));
        }
        Ok(audited)
    }

    /// [`Self::intent`] of an action that only takes service away: what cannot be recorded in time is done all the same. A
    /// trail that stops for want of space must not keep a key in service.
    pub async fn intent_to_refuse<T>(&self, action: &'static str, request: &Request<T>, details: Value) -> Audited {
        let audited = Audited {
            trail: self.trail.clone(),
            action,
            who: request.extensions().get().copied().map(peer).map(Who::Peer),
        };
        if let Some(trail) = &self.trail {
            let recorded = trail.record(audited.line(Phase::Intent, details));
            if !matches!(tokio::time::timeout(RECORDING_PATIENCE, recorded).await, Ok(Ok(_))) {
                tracing::error!(action, "done without a record of the intent: the audit trail cannot be written now");
            }
        }
        audited
    }

    /// Records that somebody may not do what he asked for: at once, or with the repeats of the same.
    pub(super) async fn refused(&self, action: &'static str, caller: Option<Caller>) {
        let who = caller.map(peer);
        let Some(first) = self.refusals.count(action, who, Instant::now()) else {
            return tracing::debug!(action, uid = who.map(|who| who.uid), pid = who.and_then(|who| who.pid), "refused");
        };
        self.write_refusal(action, who, json!({})).await;
        let audit = self.clone();
        tokio::spawn(async move {
            let mut window = FIRST_WINDOW;
            loop {
                tokio::time::sleep(window).await;
                let Some((repeats, next)) = audit.refusals.close(first, Instant::now()) else { return };
                audit.write_repeats(repeats).await;
                window = next;
            }
        });
    }

    /// Records what was counted so far: for whoever reads the trail, and at the end.
    pub async fn tell_refusals(&self) {
        for repeats in self.refusals.untold(Instant::now()) {
            self.write_repeats(repeats).await;
        }
    }

    async fn write_repeats(&self, repeats: Repeats) {
        let details = json!({"repeated": repeats.repeated, "seconds": repeats.within.as_secs()});
        self.write_refusal(repeats.action, repeats.who, details).await;
    }

    async fn write_refusal(&self, action: &'static str, who: Option<AuditedPeer>, details: Value) {
        let (uid, login_uid) = (who.map(|who| who.uid), who.and_then(|who| who.login_uid));
        let (pid, repeated) = (who.and_then(|who| who.pid), details["repeated"].as_u64());
        tracing::warn!(action, uid, login_uid, pid, repeated, "refused");
        if let Some(trail) = &self.trail {
            let refused = Audited { trail: None, action, who: who.map(Who::Peer) };
            // Refused it is in any case; that it cannot be recorded is the trail's own alarm.
            let _ = trail.record(refused.line(Phase::Refused, details)).await;
        }
    }
}

impl Audited {
    pub async fn done(self, details: Value) {
        self.end(Phase::Done, details).await;
    }

    /// Records how it ended; the answer is passed on.
    pub async fn outcome<T>(self, outcome: Result<T, Status>, details: impl FnOnce(&T) -> Value) -> Result<T, Status> {
        match &outcome {
            Ok(answer) => self.end(Phase::Done, details(answer)).await,
            Err(status) => {
                self.end(Phase::Failed, json!({"code": code_name(status.code()), "reason": status.message()})).await;
            }
        }
        outcome
    }

    async fn end(mut self, phase: Phase, details: Value) {
        // What was done is done: that it cannot be recorded is the trail's own alarm.
        if let Some(trail) = self.trail.take() {
            let _ = trail.record(self.line(phase, details)).await;
        }
    }

    fn line(&self, phase: Phase, details: Value) -> AdminRecord {
        let details = match details {
            Value::Object(details) => details,
            _ => Map::new(),
        };
        AdminRecord { at: SystemTime::now(), action: self.action, phase, who: self.who, details }
    }
}

impl Drop for Audited {
    fn drop(&mut self) {
        if let Some(trail) = self.trail.take() {
            trail.note(self.line(Phase::Failed, json!({"reason": "broken off"})));
        }
    }
}

fn peer(caller: Caller) -> AuditedPeer {
    AuditedPeer { uid: caller.uid, login_uid: caller.login_uid, gid: caller.gid, pid: caller.pid }
}

/// UNAVAILABLE: kube-apiserver tries again, and the trail may be mended meanwhile.
fn unrecorded(error: AuditError) -> Status {
    Status::unavailable(error.to_string())
}

fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "cancelled",
        Code::Unknown => "unknown",
        Code::InvalidArgument => "invalid-argument",
        Code::DeadlineExceeded => "deadline-exceeded",
        Code::NotFound => "not-found",
        Code::AlreadyExists => "already-exists",
        Code::PermissionDenied => "permission-denied",
        Code::ResourceExhausted => "resource-exhausted",
        Code::FailedPrecondition => "failed-precondition",
        Code::Aborted => "aborted",
        Code::OutOfRange => "out-of-range",
        Code::Unimplemented => "unimplemented",
        Code::Internal => "internal",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data-loss",
        Code::Unauthenticated => "unauthenticated",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::query::{Filter, query};
    use crate::audit::settings::{AuditSettings, FailurePolicy, Level};

    /// `details.repeated` of each refusal in the trail; 0 for one that tells of itself alone.
    fn told(trail: &Trail) -> Vec<u64> {
        let mut told = Vec::new();
        let refused = Filter { outcome: Some("refused".into()), ..Filter::default() };
        query(trail.folder(), &refused, |line| {
            let line: Value = serde_json::from_str(&line).unwrap();
            told.push(line["details"]["repeated"].as_u64().unwrap_or(0));
            true
        })
        .unwrap();
        told
    }

    #[tokio::test(start_paused = true)]
    async fn repeats_are_told_when_their_window_has_passed_and_after_a_rest_the_next_one_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let settings = AuditSettings {
            folder: folder.path().join("audit"),
            level: Level::Admin,
            failure: FailurePolicy::Stop,
            max_bytes: 1 << 20,
            max_age: Duration::from_secs(3600),
            keep: 1,
            forward: None,
        };
        let trail = Trail::open(&settings, &"edge-7".parse().unwrap(), None).unwrap();
        let audit = AdminAudit::new(Some(trail.clone()));
        audit.refused("rotate", None).await;
        assert_eq!(told(&trail), [0]);
        for _ in 0..5 {
            audit.refused("rotate", None).await;
        }
        assert_eq!(told(&trail), [0], "within the window nothing is written");
        tokio::time::sleep(FIRST_WINDOW + Duration::from_secs(1)).await;
        // Behind the line that the window's end has asked for.
        trail.checkpoint().await.unwrap();
        assert_eq!(told(&trail), [0, 5]);
        tokio::time::sleep(FIRST_WINDOW * 3).await;
        audit.refused("rotate", None).await;
        assert_eq!(told(&trail), [0, 5, 0]);
    }
}
