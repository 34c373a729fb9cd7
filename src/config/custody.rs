//! `[custody]`: the token or the TPM, how it is unlocked, and how patient the daemon is with it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;

use super::builder::Builder;
use super::error::ConfigError;
use super::raw::{self, Kind};
use super::settings::StoreSettings;
use super::site::Site;
use crate::custody::settings::{BootPolicy, CustodySettings, MechanismChoice, PinSource, TokenSelector, TpmSettings};

impl Builder<'_> {
    pub(super) fn custody(
        &self,
        raw: raw::Custody,
        store: &StoreSettings,
        separate: bool,
    ) -> Result<CustodySettings, ConfigError> {
        let kind = raw.kind.unwrap_or(Kind::Pkcs11);
        self.refuse_keys_of_the_other_kind(kind, &raw)?;
        let (tpm, defaults) = match kind {
            Kind::Pkcs11 => (None, PKCS11_DEFAULTS),
            Kind::Tpm => (Some(self.tpm(&raw)?), TPM_DEFAULTS),
        };
        let mut environment = self.environment(raw.environment)?;
        if tpm.is_some() {
            // Errors come back as codes; the TSS would besides print lines of its own into the daemon's log.
            environment.entry("TSS2_LOG".into()).or_insert_with(|| "all+NONE".into());
        }
        Ok(CustodySettings {
            module: match raw.module {
                Some(module) => self.path("custody.module", Some(module), "")?,
                None => softhsm_module(self.site),
            },
            token: self.token(raw.token_label, raw.token_serial)?,
            pin: match &tpm {
                Some(tpm) => tpm.auth.clone(),
                None => self.pin(raw.pin_file, raw.pin_credential)?,
            },
            mechanism: raw.mechanism.map_or(MechanismChoice::Auto, MechanismChoice::from),
            sessions: self.count("custody.sessions", raw.sessions, defaults.sessions, 1..=64)?,
            queue: self.count("custody.queue", raw.queue, 64, 1..=65_536)?,
            timeout: self.duration(
                "custody.timeout",
                raw.timeout.map(|spanned| (spanned.span(), spanned.into_inner().0)),
                defaults.timeout,
                Duration::from_millis(100)..=Duration::from_secs(300),
            )?,
            environment,
            latch_folder: match raw.state_path {
                Some(path) => self.path("custody.state_path", Some(path), "")?,
                None if separate => beside(&store.path),
                // The one folder that is ours to write to on every site.
                None => store.path.clone(),
            },
            tpm,
        })
    }

    pub(super) fn grace(&self, raw: &raw::Custody) -> Result<Option<Duration>, ConfigError> {
        let Some(grace) = &raw.grace else { return Ok(None) };
        let bounds = Duration::from_secs(1)..=Duration::from_secs(366 * 24 * 3600);
        self.duration("custody.grace", Some((grace.span(), grace.get_ref().0)), Duration::ZERO, bounds).map(Some)
    }

    pub(super) fn probe_interval(&self, raw: &raw::Custody) -> Result<Duration, ConfigError> {
        let value = raw.probe_interval.as_ref().map(|interval| (interval.span(), interval.get_ref().0));
        let bounds = Duration::from_secs(1)..=Duration::from_secs(3600);
        self.duration("custody.probe_interval", value, Duration::from_secs(30), bounds)
    }

    /// A key that does nothing would be believed to do something.
    fn refuse_keys_of_the_other_kind(&self, kind: Kind, raw: &raw::Custody) -> Result<(), ConfigError> {
        fn span<T>(key: &Option<Spanned<T>>) -> Option<std::ops::Range<usize>> {
            key.as_ref().map(Spanned::span)
        }
        let (other, keys) = match kind {
            Kind::Pkcs11 => (
                "tpm",
                vec![
                    ("custody.tcti", span(&raw.tcti)),
                    ("custody.auth_file", span(&raw.auth_file)),
                    ("custody.auth_credential", span(&raw.auth_credential)),
                    ("custody.pcrs", span(&raw.pcrs)),
                    ("custody.boot_signer", span(&raw.boot_signer)),
                    ("custody.boot_series", span(&raw.boot_series)),
                    ("custody.approvals", span(&raw.approvals)),
                ],
            ),
            Kind::Tpm => (
                "pkcs11",
                vec![
                    ("custody.module", span(&raw.module)),
                    ("custody.token_label", span(&raw.token_label)),
                    ("custody.token_serial", span(&raw.token_serial)),
                    ("custody.pin_file", span(&raw.pin_file)),
                    ("custody.pin_credential", span(&raw.pin_credential)),
                ],
            ),
        };
        for (key, span) in keys {
            if let Some(span) = span {
                let problem = format_args!("is a key of kind = \"{other}\"");
                return Err(self.place.fault(span, key, problem, Some("take it out, or set custody.kind")));
            }
        }
        Ok(())
    }

    fn tpm(&self, raw: &raw::Custody) -> Result<TpmSettings, ConfigError> {
        let tcti = match raw.tcti.clone() {
            None => "device:/dev/tpmrm0".to_owned(),
            Some(tcti) => {
                let span = tcti.span();
                let text = self.short("custody.tcti", tcti, 256)?;
                if !["device:", "swtpm:", "mssim:", "tabrmd:"].iter().any(|kind| text.starts_with(kind)) {
                    let help = "as \"device:/dev/tpmrm0\" or \"swtpm:host=127.0.0.1,port=2321\"";
                    return Err(self.place.fault(span, "custody.tcti", "names no TPM", Some(help)));
                }
                text
            }
        };
        let keys = ["custody.auth_file", "custody.auth_credential"];
        let (file, credential) = (raw.auth_file.clone(), raw.auth_credential.clone());
        let auth = self.secret_source(file, credential, keys, "/etc/keystead/tpm-auth")?;
        let approvals = self.path("custody.approvals", raw.approvals.clone(), "/etc/keystead/approvals")?;
        Ok(TpmSettings { tcti, auth, approvals, boot: self.boot(raw)? })
    }

    fn boot(&self, raw: &raw::Custody) -> Result<Option<BootPolicy>, ConfigError> {
        let Some(pcrs) = &raw.pcrs else {
            let lone = [
                ("custody.boot_signer", raw.boot_signer.as_ref().map(Spanned::span)),
                ("custody.boot_series", raw.boot_series.as_ref().map(Spanned::span)),
            ];
            return match lone.into_iter().find_map(|(key, span)| Some((key, span?))) {
                None => Ok(None),
                Some((key, span)) => {
                    Err(self.place.fault(span, key, "does nothing without pcrs", Some("set custody.pcrs, too")))
                }
            };
        };
        let list = pcrs.get_ref().strip_prefix("sha256:").unwrap_or_default();
        let numbers: Vec<u8> = list.split(',').map_while(|number| number.parse().ok()).collect();
        let sound = numbers.is_sorted_by(|a, b| a < b) && numbers.iter().all(|&number| number < 24);
        if numbers.is_empty() || !sound || numbers.len() != list.split(',').count() {
            let help = "ascending numbers up to 23, as \"sha256:0,2,4,7\"";
            return Err(self.place.fault(pcrs.span(), "custody.pcrs", "is no list of PCRs", Some(help)));
        }
        let Some(signer) = raw.boot_signer.clone() else {
            let help = "name the public key that approves boots: without one, no update could ever be approved";
            return Err(self.place.fault(pcrs.span(), "custody.pcrs", "needs boot_signer, too", Some(help)));
        };
        let series = self.count("custody.boot_series", raw.boot_series.clone(), 1, 1..=1_000_000_000)?;
        let signer = self.path("custody.boot_signer", Some(signer), "")?;
        Ok(Some(BootPolicy { pcrs: numbers, signer, series: series as u64 }))
    }

    fn token(
        &self,
        label: Option<Spanned<String>>,
        serial: Option<Spanned<String>>,
    ) -> Result<TokenSelector, ConfigError> {
        match (label, serial) {
            (Some(_), Some(serial)) => Err(self.place.fault(
                serial.span(),
                "custody.token_serial",
                "names the token a second time",
                Some("set either token_label or token_serial"),
            )),
            // CK_TOKEN_INFO has 32 bytes for the label and 16 for the serial number, blank-padded.
            (Some(label), None) => self.short("custody.token_label", label, 32).map(TokenSelector::Label),
            (None, Some(serial)) => self.short("custody.token_serial", serial, 16).map(TokenSelector::Serial),
            (None, None) => Ok(TokenSelector::Label("keystead".into())),
        }
    }

    fn pin(
        &self,
        file: Option<Spanned<PathBuf>>,
        credential: Option<Spanned<String>>,
    ) -> Result<PinSource, ConfigError> {
        self.secret_source(file, credential, ["custody.pin_file", "custody.pin_credential"], "/etc/keystead/pin")
    }

    /// A file or a systemd credential, by one of two keys.
    fn secret_source(
        &self,
        file: Option<Spanned<PathBuf>>,
        credential: Option<Spanned<String>>,
        [file_key, credential_key]: [&str; 2],
        default: &str,
    ) -> Result<PinSource, ConfigError> {
        match (file, credential) {
            (Some(_), Some(credential)) => {
                let name = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
                let help = format!("set either {} or {}", name(file_key), name(credential_key));
                let problem = "names the source a second time";
                Err(self.place.fault(credential.span(), credential_key, problem, Some(&help)))
            }
            (None, Some(credential)) => {
                let span = credential.span();
                let name = self.short(credential_key, credential, 255)?;
                if name.contains('/') || name == "." || name == ".." {
                    let problem = format_args!("{name:?} is not the name of a credential");
                    return Err(self.place.fault(span, credential_key, problem, Some("a name has no `/`")));
                }
                Ok(PinSource::Credential(name))
            }
            (file, None) => self.path(file_key, file, default).map(PinSource::File),
        }
    }

    fn environment(
        &self,
        raw: Option<Spanned<BTreeMap<String, String>>>,
    ) -> Result<BTreeMap<String, String>, ConfigError> {
        let Some(raw) = raw else { return Ok(BTreeMap::new()) };
        let span = raw.span();
        let environment = raw.into_inner();
        for (name, value) in &environment {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                let problem = format_args!("{name:?} cannot be an environment variable");
                return Err(self.place.fault(span, "custody.environment", problem, None));
            }
        }
        Ok(environment)
    }
}

/// What differs between the kinds of custody.
struct CustodyDefaults {
    sessions: usize,
    timeout: Duration,
}

const PKCS11_DEFAULTS: CustodyDefaults = CustodyDefaults { sessions: 2, timeout: Duration::from_secs(5) };
/// A TPM does one thing at a time, and discrete chips take up to a second for each.
const TPM_DEFAULTS: CustodyDefaults = CustodyDefaults { sessions: 1, timeout: Duration::from_secs(15) };

/// `/var/lib/keystead` → `/var/lib/keystead-custodian`
fn beside(store: &Path) -> PathBuf {
    let mut name = store.as_os_str().to_owned();
    name.push("-custodian");
    PathBuf::from(name)
}

/// The first of the places that distributions install SoftHSM's module to; the first of all when it is not installed, so
/// that the error names a path.
fn softhsm_module(site: &Site) -> PathBuf {
    let multiarch = match std::env::consts::ARCH {
        "arm" => "arm-linux-gnueabihf".to_owned(),
        arch => format!("{arch}-linux-gnu"),
    };
    let places = [
        "/usr/lib/softhsm/libsofthsm2.so".to_owned(),
        format!("/usr/lib/{multiarch}/softhsm/libsofthsm2.so"),
        "/usr/lib64/pkcs11/libsofthsm2.so".to_owned(),
        "/usr/lib/pkcs11/libsofthsm2.so".to_owned(),
        "/usr/lib64/softhsm/libsofthsm2.so".to_owned(),
        "/usr/local/lib/softhsm/libsofthsm2.so".to_owned(),
    ];
    let found = places.iter().find(|place| site.exists(place)).unwrap_or(&places[0]);
    PathBuf::from(found)
}
