//! How to reach a TPM, as the TSS spells it, and whether something stands between us and the chip.

use std::fs::OpenOptions;
use std::str::FromStr;

use tss_esapi::TctiNameConf;

use super::failure::NO_LIBRARY;
use crate::custody::contract::CustodyError;

#[derive(Debug, Clone)]
pub(super) struct Tcti {
    text: String,
    conf: TctiNameConf,
}

impl Tcti {
    /// # Errors
    /// `TpmUnreachable` for a text that names no TCTI.
    pub(super) fn parse(text: &str) -> Result<Self, CustodyError> {
        match TctiNameConf::from_str(text) {
            Ok(conf) => Ok(Self { text: text.to_owned(), conf }),
            Err(_) => Err(CustodyError::TpmUnreachable {
                tcti: text.to_owned(),
                detail: "it is none of device:…, swtpm:…, mssim:…, tabrmd:…".into(),
            }),
        }
    }

    pub(super) fn conf(&self) -> TctiNameConf {
        self.conf.clone()
    }

    /// Without a resource manager, objects of a process that was killed stay in the chip, and nobody else clears them away.
    pub(super) fn is_raw(&self) -> bool {
        match self.text.split_once(':') {
            Some(("device", path)) => !path.contains("tpmrm"),
            _ => !self.text.starts_with("tabrmd"),
        }
    }

    /// Whether the TPM can be opened, and if not why: the TSS says the same of a missing device and a forbidden one.
    pub(super) fn unreachable(&self, otherwise: impl ToString) -> CustodyError {
        let mut detail = otherwise.to_string();
        if let Some(path) = self.text.strip_prefix("device:")
            && let Err(error) = OpenOptions::new().read(true).write(true).open(path)
        {
            detail = error.to_string();
            match error.kind() {
                std::io::ErrorKind::NotFound => detail.push_str("; enable the TPM in the firmware setup"),
                std::io::ErrorKind::PermissionDenied => {
                    detail.push_str("; put the daemon's user into the group that owns it (often `tss`)");
                }
                _ => {}
            }
        }
        match self.text.split_once(':') {
            Some((kind, _)) if detail.contains(NO_LIBRARY) => {
                detail.push_str(&format!("; install libtss2-tcti-{kind} (Debian: libtss2-tcti-{kind}0)"));
            }
            Some(("tabrmd", _)) => detail.push_str(
                "; start tpm2-abrmd, and name a session bus in custody.environment (DBUS_SESSION_BUS_ADDRESS)",
            ),
            Some(("swtpm" | "mssim", _)) => detail.push_str("; start the software TPM"),
            _ => {}
        }
        CustodyError::TpmUnreachable { tcti: self.text.clone(), detail }
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_resource_manager_is_not_raw() {
        for (text, raw) in [
            ("device:/dev/tpmrm0", false),
            ("device:/dev/tpm0", true),
            ("swtpm:host=127.0.0.1,port=2321", true),
            ("tabrmd:bus_type=session", false),
        ] {
            assert_eq!(Tcti::parse(text).unwrap().is_raw(), raw, "{text}");
        }
    }

    #[test]
    fn device_that_this_user_may_not_open_is_said_so() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let device = folder.path().join("tpmrm0");
        std::fs::write(&device, "").unwrap();
        std::fs::set_permissions(&device, std::fs::Permissions::from_mode(0o000)).unwrap();
        let tcti = Tcti::parse(&format!("device:{}", device.display())).unwrap();
        let error = std::thread::spawn(move || {
            if rustix::process::geteuid().is_root() {
                // This thread only: root may open everything.
                let nobody = rustix::process::Uid::from_raw(65_534);
                rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            }
            tcti.unreachable("?").to_string()
        });
        let error = error.join().unwrap();
        assert!(error.contains("Permission denied") && error.contains("group that owns it"), "{error}");
    }

    #[test]
    fn text_that_is_no_tcti_and_device_that_is_not_there_are_told_apart() {
        let error = Tcti::parse("/dev/tpmrm0").unwrap_err().to_string();
        assert!(error.contains("none of device:"), "{error}");
        for (tcti, word) in
            [("tabrmd:bus_type=session", "custody.environment"), ("swtpm:port=1", "start the software TPM")]
        {
            let error = Tcti::parse(tcti).unwrap().unreachable("?").to_string();
            assert!(error.contains(word), "{error}");
        }
        let error = Tcti::parse("device:/dev/null").unwrap().unreachable(NO_LIBRARY).to_string();
        assert!(error.contains("libtss2-tcti-device0"), "{error}");
        let error = Tcti::parse("device:/dev/no-such-tpm").unwrap().unreachable("?").to_string();
        assert!(error.contains("No such file") && error.contains("firmware setup"), "{error}");
    }
}
