//! Credentials that the platform keeps: a token file named by its variables, exchanged for a session of a role.

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::rig::{CloudSite, Vendor};
use crate::daemon::{Finished, decrypt, encrypt};

/// The variables as a cluster sets them for a service account.
fn variables(site: &CloudSite, token: &Path) -> Vec<(&'static str, String)> {
    let fact = |path: &str| site.cloud.fact(path).to_owned();
    let token = token.display().to_string();
    match site.cloud.vendor {
        Vendor::Aws => vec![("AWS_ROLE_ARN", fact("/role")), ("AWS_WEB_IDENTITY_TOKEN_FILE", token)],
        _ => vec![
            ("ALIBABA_CLOUD_ROLE_ARN", fact("/role_arn")),
            ("ALIBABA_CLOUD_OIDC_PROVIDER_ARN", fact("/oidc_provider_arn")),
            ("ALIBABA_CLOUD_OIDC_TOKEN_FILE", token),
        ],
    }
}

/// A projected volume as kubelet keeps it: each content in a folder of its own, `..data` the link to the newest.
struct Projected {
    folder: PathBuf,
    contents: Cell<u32>,
}

impl Projected {
    fn new(folder: PathBuf, content: &[u8]) -> Self {
        fs::create_dir(&folder).unwrap();
        let this = Self { folder, contents: Cell::new(0) };
        this.put(content);
        symlink("..data/token", this.token()).unwrap();
        this
    }

    fn token(&self) -> PathBuf {
        self.folder.join("token")
    }

    fn put(&self, content: &[u8]) {
        let number = self.contents.get();
        let name = |number: u32| format!("..2026_11_22_{number}");
        let (folder, link) = (self.folder.join(name(number)), self.folder.join("..data_tmp"));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("token"), content).unwrap();
        symlink(name(number), &link).unwrap();
        fs::rename(link, self.folder.join("..data")).unwrap();
        if let Some(before) = number.checked_sub(1) {
            fs::remove_dir_all(self.folder.join(name(before))).unwrap();
        }
        self.contents.set(number + 1);
    }
}

#[tokio::test]
async fn token_of_the_platform_is_exchanged_and_read_again_when_it_changes() {
    for vendor in [Vendor::Alibaba, Vendor::Aws] {
        let site = CloudSite::bare_at(vendor, "");
        let config = fs::read_to_string(site.site.config()).unwrap();
        let lines = config.lines().filter(|line| !line.starts_with("credentials_file"));
        let config = lines.collect::<Vec<_>>().join("\n").replace("[upstream]", "[upstream]\ncredentials = \"oidc\"");
        fs::write(site.site.config(), config).unwrap();
        let token = match vendor {
            Vendor::Aws => "/credentials/web_identity",
            _ => "/credentials/oidc-token",
        };
        let right = fs::read(site.cloud.fact(token)).unwrap();
        let volume = Projected::new(site.site.path().join("projected"), &right);
        let variables = variables(&site, &volume.token());
        let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let mut init = site.site.command(["init", "--no-recovery"]);
        init.envs(variables.iter().copied()).output().unwrap().expect_success();

        let mut daemon = site.site.spawn(&variables);
        daemon.until_serving().await;
        daemon.until("online", |status| status.availability == "online").await;
        let sealed = encrypt(&mut daemon.kms().await, b"seed").await;
        let ends = |status: &keystead_wire::admin::v1::GetStatusResponse| {
            let expiries = status.upstream.as_ref().map(|upstream| upstream.expiries.clone()).unwrap_or_default();
            expiries.into_iter().any(|expiry| expiry.what.contains("session"))
        };
        daemon.until("the session's end is told", ends).await;

        // The session is given up, and the token is another one.
        volume.put(b"eyJ0eXAiOiJKV1QifQ.e30.c3RyYW5nZXI");
        site.cloud.act("expire-tokens");
        let fault = |status: &keystead_wire::admin::v1::GetStatusResponse| {
            status.upstream.as_ref().is_some_and(|upstream| upstream.fault_class == "credential-fault")
        };
        daemon.until("refused", |status| status.availability == "degraded" && fault(status)).await;
        assert_eq!(decrypt(&mut daemon.kms().await, &sealed).await.unwrap(), b"seed");
        volume.put(&right);
        daemon.until("online again", |status| status.availability == "online").await;
        println!("{:<8} token file of the platform: exchanged, read again", vendor.name());
        assert!(daemon.stop().success());
    }
}
