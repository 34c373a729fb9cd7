//! What to do next about errors of the rooms below, for commands that do their work themselves. The matches name every
//! variant, so that a new one needs its word here.

use std::error::Error;

use super::exit::{Exit, Failure};
use crate::custody::contract::CustodyError;
use crate::process::start::StartError;
use crate::service::epoch::LoadError;
use crate::service::init::InitError;
use crate::service::recover::RecoverError;
use crate::service::rotation::RotationError;
use crate::store::StoreError;

const UPSTREAM: &str = "`keystead upstream check` says what stands between here and the cloud key";

/// An error that says what to do next.
pub trait Remedy: Error + Sized {
    fn next(&self) -> &'static str;

    fn failure(&self) -> Failure {
        Failure::from_error(Exit::Failed, self).next(self.next())
    }
}

impl Remedy for CustodyError {
    fn next(&self) -> &'static str {
        match self {
            Self::Gone => "run it again; if the module crashes each time, try the vendor's own tools on the token",
            Self::TimedOut => "run it again, with a longer custody.timeout if the device is slow",
            Self::Busy => "run it again",
            Self::ModuleUnusable { .. } => "set custody.module to the vendor's module, then `keystead config check`",
            Self::TokenMissing { .. } => {
                "plug it in, or set custody.token_label to one that `keystead token list` shows"
            }
            Self::TpmUnreachable { .. } => {
                "mend that, then `keystead tpm info`; docs/custody-tpm.md lists what is usual"
            }
            Self::BootNotApproved { .. } => {
                "`keystead tpm preview` says what changed; approve it off the box (docs/custody-tpm.md)"
            }
            Self::AuthRejected { .. } => "put the auth file back that the TPM was provisioned with, then run it again",
            Self::TokenAmbiguous { .. } => "`keystead token list` shows the serial numbers",
            Self::PinRejected { .. } => "write the right PIN to the PIN's source, then run it again",
            Self::PinLocked { .. } => "have the security officer unlock it, then run it again",
            Self::PinFinalTry { .. } => "log in once by the vendor's tools with the right PIN, then run it again",
            Self::PinUnreadable { .. } => "mend that; `keystead config check` looks at the PIN file without reading it",
            Self::Unsupported { .. } => "set custody.mechanism to auto, or see hsm-configs/ for what each token can do",
            Self::CmkMissing { .. } | Self::EpochMissing { .. } | Self::TokenReinitialized { .. } => {
                "put the token's newest backup on it; without one, see docs/runbooks/recovery.md"
            }
            Self::TokenReplaced { .. } | Self::TokenOlder { .. } => "put the right token back, then run it again",
            Self::WrapRejected => "see docs/runbooks/recovery.md for what else opens the key",
            Self::Device { .. } => "try the vendor's own tools on the device, then run it again",
        }
    }
}

impl Remedy for StoreError {
    fn next(&self) -> &'static str {
        match self {
            Self::InUse(_) => "a daemon that runs has it: `keystead status`; stop it first if this must be done",
            Self::Io { .. } => "set store.path to a folder that this user may write to, then `keystead config check`",
            Self::Conflict { .. } => "run it again",
            Self::Record(_) => "put an unchanged copy back; without one, see docs/runbooks/recovery.md",
        }
    }
}

impl Remedy for LoadError {
    fn next(&self) -> &'static str {
        match self {
            Self::NotInitialized => "`keystead init`",
            Self::ForeignNode { .. } => "set `node` to what it was; on another machine, `keystead recover`",
            Self::ForeignKeyring { .. } => "set `keyring` to what it was, or give this one a store.path of its own",
            Self::NoEpochSecret { .. } => {
                "put the right token back, then run it again; a TPM without its NV indices: `keystead recover`"
            }
            Self::RolledBack { .. } => {
                "put the newest record back; without one, `keystead store restore --accept-rollback`"
            }
            Self::TokenOlderThanStore { .. } => "put the newest token or its newest backup there, then run it again",
            Self::NotAuthentic => "put an unchanged copy back; without one, see docs/runbooks/recovery.md",
            Self::NoRandomness => "run it again when the system has started up",
            Self::Upstream(_) => UPSTREAM,
            Self::Store(error) => error.next(),
            Self::Record(_) => "put an unchanged copy back; without one, see docs/runbooks/recovery.md",
            Self::Custody(error) => error.next(),
        }
    }
}

impl Remedy for RotationError {
    fn next(&self) -> &'static str {
        match self {
            Self::Refused(_) => "`keystead doctor` says what stands in the way",
            Self::Roots(_) => "`keystead roots list` shows the roots",
            Self::NotRewritten(_) => "`keystead etcd scan`, once every Secret is rewritten",
            Self::Transition(_) => "`keystead key list` shows the states of the generations",
            Self::Upstream(_) => UPSTREAM,
            Self::NotProven(_) => "`keystead doctor` looks at custody; then run it again",
            Self::Storage(error) => error.next(),
            Self::NoRandomness => "run it again when the system has started up",
        }
    }
}

impl Remedy for InitError {
    fn next(&self) -> &'static str {
        match self {
            Self::AlreadyInitialized(_) => "`keystead serve`; in scripts, `keystead init --if-needed`",
            Self::OtherRecovery(_) => "`keystead roots list` shows the one it has",
            Self::LostStore => "look for the store first: `keystead recover`, docs/runbooks/recovery.md",
            Self::Store(error) => error.next(),
            Self::Custody(error) => error.next(),
            Self::Generation(error) => error.next(),
            Self::Load(error) => error.next(),
        }
    }
}

impl Remedy for RecoverError {
    fn next(&self) -> &'static str {
        match self {
            Self::StoreIsThere => "`keystead doctor --only store` looks at it",
            Self::Upstream(_) => UPSTREAM,
            Self::NothingOpened => "try another root: --private, or the token of that time; docs/runbooks/recovery.md",
            Self::Custody(error) => error.next(),
            Self::Store(error) => error.next(),
            Self::Generation(error) => error.next(),
            Self::Load(error) => error.next(),
        }
    }
}

/// The custodian's process could not be started, or went wrong outside its protocol.
impl Remedy for StartError {
    fn next(&self) -> &'static str {
        match self {
            Self::Users(_) => "run it as root, or see [process] in docs/configuration.md",
            Self::Store(error) => error.next(),
            _ => "`keystead config check` looks at the module and its environment",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_carries_the_innermost_cause_and_its_remedy() {
        let error =
            InitError::Load(LoadError::Custody(CustodyError::TokenMissing { wanted: "with the label x".into() }));
        let failure = error.failure();
        assert_eq!(failure.exit, Exit::Failed);
        assert!(failure.message.contains("label x"), "{failure:?}");
        assert!(failure.next.unwrap().contains("token list"));
    }
}
