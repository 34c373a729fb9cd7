//! What a check has found: what it is, why it matters, what to do about it.

use super::super::exit::Exit;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Nothing to mend; worth knowing. Also what could not be checked.
    Info,
    /// Works today; a fault, a restart or somebody else's mistake away from not working.
    Warning,
    /// Does not serve, will not serve after the next restart, or lets others at the key.
    Critical,
}

impl Severity {
    pub const ALL: [Self; 4] = [Self::Ok, Self::Info, Self::Warning, Self::Critical];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }

    pub fn exit(self) -> Exit {
        match self {
            Self::Ok | Self::Info => Exit::Done,
            Self::Warning => Exit::Warnings,
            Self::Critical => Exit::Critical,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// `group.thing`, for programs; never changes its meaning.
    pub id: &'static str,
    pub severity: Severity,
    /// False: this could not be looked at, and `next` says who can.
    pub checked: bool,
    pub what: String,
    /// Empty where all is well.
    pub why: &'static str,
    /// Empty where there is nothing to do.
    pub next: String,
}

impl Finding {
    pub fn ok(id: &'static str, what: impl Into<String>) -> Self {
        Self { id, severity: Severity::Ok, checked: true, what: what.into(), why: "", next: String::new() }
    }

    pub fn info(id: &'static str, what: impl Into<String>, why: &'static str, next: impl Into<String>) -> Self {
        Self { severity: Severity::Info, why, next: next.into(), ..Self::ok(id, what) }
    }

    pub fn warning(id: &'static str, what: impl Into<String>, why: &'static str, next: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::info(id, what, why, next) }
    }

    pub fn critical(id: &'static str, what: impl Into<String>, why: &'static str, next: impl Into<String>) -> Self {
        Self { severity: Severity::Critical, ..Self::info(id, what, why, next) }
    }

    /// Not looked at; `next` says what it takes.
    pub fn unchecked(id: &'static str, what: impl Into<String>, next: impl Into<String>) -> Self {
        Self { severity: Severity::Info, checked: false, next: next.into(), ..Self::ok(id, what) }
    }
}

/// The worst of all; `Ok` of none.
pub fn worst(findings: &[Finding]) -> Severity {
    findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Ok)
}
