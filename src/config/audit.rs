//! `[audit]`: where the trail lies, what is in it, and how long it is kept.

use std::path::Path;
use std::time::Duration;

use super::builder::{Builder, DAY};
use super::error::ConfigError;
use super::raw::{self, AuditFailure, AuditForward, AuditLevel};
use super::settings::{Settings, StoreSettings};
use crate::audit::settings::{self as audit, AuditSettings, FailurePolicy, Forward};
use crate::custody::settings::PinSource;

impl Builder<'_> {
    pub(super) fn audit(&self, raw: raw::Audit, store: &StoreSettings) -> Result<Option<AuditSettings>, ConfigError> {
        let folder = match raw.path {
            Some(given) => self.path("audit.path", Some(given), "")?,
            None => store.path.join("audit"),
        };
        let level = match raw.level.unwrap_or(AuditLevel::Admin) {
            AuditLevel::Off => None,
            AuditLevel::Admin => Some(audit::Level::Admin),
            AuditLevel::Requests => Some(audit::Level::Requests),
        };
        let max_file = self.size("audit.max_file", raw.max_file, 16 << 20, 64 << 10..=1 << 30)?;
        let max_age = self.duration(
            "audit.max_age",
            raw.max_age.map(|spanned| (spanned.span(), spanned.into_inner().0)),
            Duration::from_secs(30 * DAY),
            Duration::from_secs(60)..=Duration::from_secs(3660 * DAY),
        )?;
        let keep = self.count("audit.keep", raw.keep, 12, 1..=10_000)?;
        Ok(level.map(|level| AuditSettings {
            folder,
            level,
            failure: match raw.failure.unwrap_or(AuditFailure::ContinueWithAlarm) {
                AuditFailure::Stop => FailurePolicy::Stop,
                AuditFailure::ContinueWithAlarm => FailurePolicy::ContinueWithAlarm,
            },
            max_bytes: max_file as u64,
            max_age,
            keep,
            forward: match raw.forward.unwrap_or(AuditForward::Off) {
                AuditForward::Off => None,
                AuditForward::Journald => Some(Forward::Journald),
                AuditForward::Syslog => Some(Forward::Syslog),
            },
        }))
    }

    /// The server may write all of the trail's folder: what else is ours lies elsewhere.
    pub(super) fn apart(
        &self,
        trail: &Path,
        settings: &Settings,
        span: std::ops::Range<usize>,
    ) -> Result<(), ConfigError> {
        let secret = match &settings.custody.pin {
            PinSource::File(file) => Some(file.as_path()),
            PinSource::Credential(_) => None,
        };
        let others = [
            ("the store's folder", Some(settings.store.path.as_path())),
            ("the custodian's notes", settings.users.as_ref().map(|_| settings.custody.latch_folder.as_path())),
            ("the file with the PIN or auth value", secret),
        ];
        match others.iter().find(|(_, path)| path.is_some_and(|path| path.starts_with(trail))) {
            None => Ok(()),
            Some((what, _)) => {
                let problem = format_args!("holds {what}, too");
                let help = "give the trail a folder of its own, as \"/var/log/keystead\"";
                Err(self.place.fault(span, "audit.path", problem, Some(help)))
            }
        }
    }
}
