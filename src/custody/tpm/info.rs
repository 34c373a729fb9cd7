//! What `keystead tpm info` finds out: without the auth file, with keys made for the trial and nothing else.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use tss_esapi::Context;
use tss_esapi::constants::CapabilityType;
use tss_esapi::structures::CapabilityData;

use super::auth::AuthFile;
use super::cmk::{self, Cmk, Mechanism};
use super::connection::{self, Connection};
use super::device::canary_context;
use super::failure::Failure;
use super::identity::Identity;
use super::random;
use super::srk::{self, PERSISTENT};
use super::tcti::Tcti;
use crate::custody::contract::CustodyError;
use keystead_core::Kek;

/// A median of an odd number.
const ROUNDS: usize = 5;

/// A TPM as it is now.
#[derive(Debug, Clone)]
pub struct TpmInfo {
    pub tcti: String,
    /// Nobody cleans up after a killed process.
    pub raw: bool,
    pub manufacturer: String,
    pub model: String,
    pub firmware: String,
    pub algorithms: Vec<String>,
    /// Of the key at the usual place, if there is one.
    pub srk_name: Option<String>,
    pub owner_auth_set: bool,
    pub lockout: Lockout,
    pub ecdh: Trial,
    pub rsa: Trial,
}

/// How near the TPM is to refusing everybody whose failed tries count. Keystead's own never do.
#[derive(Debug, Clone, Copy)]
pub struct Lockout {
    pub locked: bool,
    pub failed: u32,
    pub allowed: u32,
    pub forgotten_after: Duration,
}

/// Whether a KEK can be wrapped and opened so, and how long opening takes with the key loaded.
#[derive(Debug, Clone)]
pub enum Trial {
    Works { unwrap: Duration },
    Fails { why: String },
}

/// Blocks for some dozen commands; making an RSA key can take a chip many seconds.
///
/// # Errors
/// Only when the TPM cannot be reached at all.
pub fn info(tcti: &str) -> Result<TpmInfo, CustodyError> {
    let tcti = Tcti::parse(tcti)?;
    let mut context = connection::connect(&tcti)?;
    let identity = Identity::read(&mut context).map_err(Failure::into_error)?;
    let algorithms = algorithms(&mut context).map_err(Failure::into_error)?;
    let srk_name = match srk::find(&mut context).map_err(Failure::into_error)? {
        Some(srk) => Some(srk::name(&mut context, srk).map_err(Failure::into_error)?.to_string()),
        None => None,
    };
    drop(context);
    let (failed, allowed, seconds) = identity.lockout();
    Ok(TpmInfo {
        raw: tcti.is_raw(),
        manufacturer: identity.manufacturer(),
        model: identity.model(),
        firmware: identity.firmware(),
        algorithms,
        owner_auth_set: identity.owner_auth_set(),
        lockout: Lockout {
            locked: identity.in_lockout(),
            failed,
            allowed,
            forgotten_after: Duration::from_secs(seconds.into()),
        },
        ecdh: trial(&tcti, Mechanism::EcdhP256),
        rsa: trial(&tcti, Mechanism::RsaOaep),
        srk_name,
        tcti: tcti.as_str().to_owned(),
    })
}

fn algorithms(context: &mut Context) -> Result<Vec<String>, Failure> {
    let (data, _) =
        context.execute_without_session(|context| context.get_capability(CapabilityType::Algorithms, 0, 128))?;
    let CapabilityData::Algorithms(list) = data else { return Ok(Vec::new()) };
    Ok(list.iter().map(|each| format!("{:?}", each.algorithm_identifier()).to_lowercase()).collect())
}

fn trial(tcti: &Tcti, mechanism: Mechanism) -> Trial {
    match measure(tcti, mechanism) {
        Ok(unwrap) => Trial::Works { unwrap },
        Err(failure) => Trial::Fails { why: failure.into_error().to_string() },
    }
}

fn measure(tcti: &Tcti, mechanism: Mechanism) -> Result<Duration, Failure> {
    let value = random::kernel()?;
    let auth = AuthFile::for_trial(&value);
    let mut connection = Connection::open(tcti, auth, Arc::new(AtomicU64::new(0)))?;
    let cmk = Cmk::generate(&mut connection, mechanism, None)?;
    let kek = Kek::take(&mut *random::kernel()?);
    let context = canary_context();
    let wrap = cmk.seal(&mut connection, &context, &kek)?.to_bytes();
    let mut times = Vec::new();
    // The first one loads the key.
    for _ in 0..=ROUNDS {
        let started = Instant::now();
        let (opened, _) = cmk::open(&mut connection, Path::new(""), &context, &wrap)?;
        times.push(started.elapsed());
        if opened.commitment() != kek.commitment() {
            return Err(Failure::device("it opened a wrap to another key than was sealed"));
        }
    }
    times.remove(0);
    times.sort_unstable();
    Ok(times[ROUNDS / 2])
}

impl TpmInfo {
    /// What an operator should know although everything works.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let Lockout { locked, failed, allowed, forgotten_after } = self.lockout;
        if locked {
            warnings.push(format!(
                "the TPM is in lockout: whatever counts failed tries is refused for up to {} s. Keystead's keys do not, \
                 and open; `tpm2_dictionarylockout --clear-lockout` ends it",
                forgotten_after.as_secs()
            ));
        } else if failed > 0 {
            warnings.push(format!("{failed} failed tries of {allowed} until lockout: somebody guesses at this TPM"));
        }
        if self.srk_name.is_none() {
            warnings.push(format!("there is no storage root key at 0x{PERSISTENT:x}: run `keystead tpm provision`"));
        }
        if self.raw {
            warnings.push(
                "no resource manager is in between: what a killed process leaves in the TPM stays there. Use \
                 device:/dev/tpmrm0"
                    .into(),
            );
        }
        warnings
    }
}
