//! A TPM behind the resource manager tpm2-abrmd, which tidies up after each of its clients.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::process::Signal;

use crate::daemon::{Finished, Site, decrypt, encrypt};
use crate::load::Load;
use crate::tpm::TpmSite;

/// A resource manager with a bus of its own; ended when dropped.
struct Tabrmd {
    folder: PathBuf,
    tcti: String,
    /// What its clients need in their environment.
    environment: Vec<(String, String)>,
}

impl Tabrmd {
    fn start(folder: &Path, tcti: &str) -> Self {
        let mut this = Self { folder: folder.to_owned(), tcti: tcti.to_owned(), environment: Vec::new() };
        let output = this.script(&["start"], &[tcti]);
        assert!(output.status.success(), "no resource manager: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let pair = |line: &str| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        this.environment = text.lines().filter_map(pair).collect();
        this
    }

    /// Its bus stays: what a client has of that cannot be made anew in the same process.
    fn pause(&self) {
        assert!(self.script(&["pause"], &[]).status.success());
    }

    fn start_again(&self) {
        assert!(self.script(&["start"], &[&self.tcti]).status.success());
    }

    fn script(&self, before: &[&str], after: &[&str]) -> Output {
        Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/rigs/tabrmd"))
            .args(before)
            .arg(&self.folder)
            .args(after)
            .output()
            .expect("scripts/rigs/tabrmd runs")
    }

    /// Has a site reach its TPM through this.
    fn configure(&self, site: &Site) {
        let environment: Vec<String> =
            self.environment.iter().map(|(name, value)| format!("{name} = \"{value}\"")).collect();
        let custody = format!(
            "[custody]\nkind = \"tpm\"\ntcti = \"tabrmd:bus_type=session\"\nauth_file = \"tpm-auth\"\nprobe_interval = \
             \"1s\"\nenvironment = {{ {} }}\n",
            environment.join(", ")
        );
        site.configure(&custody, "");
    }
}

impl Drop for Tabrmd {
    fn drop(&mut self) {
        let _ = self.script(&["stop"], &[]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tpm_behind_a_resource_manager_is_served_from_and_recovered_in_place() {
    let tpm = TpmSite::bare();
    let site = &tpm.site;
    let tabrmd = Tabrmd::start(&site.path().join("tabrmd"), &tpm.chip.tcti);
    tabrmd.configure(site);
    site.keystead(["init", "--no-recovery"]).expect_success();
    let daemon = site.serve().await;
    let mut kms = daemon.kms().await;
    let first = encrypt(&mut kms, b"first").await;
    site.rotate().expect_success();
    assert_eq!(decrypt(&mut kms, &first).await.unwrap(), b"first");
    let state = |status: &keystead_wire::admin::v1::GetStatusResponse| status.custody.clone().unwrap_or_default().state;
    // More killed custodians than the chip has room for what they leave.
    for restarts in 1..=4 {
        daemon.kill_role("custodian", Signal::KILL);
        let back = |status: &keystead_wire::admin::v1::GetStatusResponse| {
            let custody = status.custody.clone().unwrap_or_default();
            custody.state == "ready" && custody.restarts >= restarts
        };
        daemon.until("a new custodian", back).await;
    }
    let load = Load::start(&kms);
    let custodian = daemon.role("custodian");
    tabrmd.pause();
    let status = daemon.until("unreachable", |status| state(status) == "tpm-unreachable").await;
    let detail = status.custody.unwrap_or_default().detail;
    assert!(detail.contains("there is no connection to it") && detail.contains("start tpm2-abrmd"), "{detail}");
    tabrmd.start_again();
    daemon.until("back", |status| status.availability == "online" && state(status) == "ready").await;
    assert_eq!(daemon.role("custodian"), custodian, "it was to be recovered in place");
    site.rotate().expect_success();
    assert!(load.stop().await > 0);
    drop(kms);
    assert!(daemon.stop().success());
    assert_eq!(decrypt(&mut site.serve().await.kms().await, &first).await.unwrap(), b"first");
}
