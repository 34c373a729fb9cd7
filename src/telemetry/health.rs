//! Health for probes. Live: the event loop answers. Ready: the daemon serves keys, as its state says at that moment.
//!
//! A daemon that is sealed is alive: killing it would not help, and it may hold the last copy of a KEK.

/// Whether keys are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    /// Why not, safe to show to anybody on this machine.
    NotReady {
        reason: String,
    },
}

/// Answers a probe; called for each, so it must not block.
pub trait Health: Send + Sync + 'static {
    fn readiness(&self) -> Readiness;
}

impl<F: Fn() -> Readiness + Send + Sync + 'static> Health for F {
    fn readiness(&self) -> Readiness {
        self()
    }
}
