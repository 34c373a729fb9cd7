//! A site with a key, and an etcd that holds objects under it, as a cluster's does.

use std::path::{Path, PathBuf};

use keystead_wire::kms::v2::EncryptResponse;
use serde_json::Value;

use crate::daemon::{Finished, Site, decrypt, encrypt};
use crate::etcd::Etcd;

/// A site with a recovery key, two generations and a cluster's etcd that holds objects under both.
pub struct Cluster {
    pub site: Site,
    pub etcd: Etcd,
    /// Plaintext and what Encrypt made of it, oldest first.
    pub secrets: Vec<(Vec<u8>, EncryptResponse)>,
}

pub fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

pub fn keygen(site: &Site, name: &str) -> (String, String) {
    let (private, public) =
        (text(&site.path().join(format!("{name}.pem"))), text(&site.path().join(format!("{name}.pub"))));
    site.keystead(["recovery", "keygen", "--out", &private, "--public-out", &public]).expect_success();
    (private, public)
}

impl Cluster {
    /// Two objects share a seed under generation 1, two have their own under generation 2, one of generation 1 is deleted.
    pub async fn new() -> Self {
        Self::on(Etcd::start()).await
    }

    pub async fn on(etcd: Etcd) -> Self {
        let site = Site::bare("");
        let (_, public) = keygen(&site, "recovery");
        site.keystead(["init", "--recovery", &public]).expect_success();
        let daemon = site.serve().await;
        let mut kms = daemon.kms().await;
        let mut secrets = Vec::new();
        let first = encrypt(&mut kms, &[1; 32]).await;
        for name in ["a", "b", "gone"] {
            etcd.put_secret(name, "edge", &first);
        }
        etcd.put_others();
        etcd.delete("gone");
        secrets.push((vec![1; 32], first));
        site.rotate().expect_success();
        for (seed, name) in [(2, "c"), (3, "d")] {
            let encrypted = encrypt(&mut kms, &[seed; 32]).await;
            etcd.put_secret(name, "edge", &encrypted);
            secrets.push((vec![seed; 32], encrypted));
        }
        // A client that stays would be waited for.
        drop(kms);
        assert!(daemon.stop().success());
        Self { site, etcd, secrets }
    }

    pub fn snapshot(&self) -> PathBuf {
        self.etcd.snapshot(&self.site.path().join("snapshot.db"))
    }

    pub fn private(&self) -> String {
        text(&self.site.path().join("recovery.pem"))
    }

    /// Every Secret opens through the daemon of `site`.
    pub async fn opens_at(&self, site: &Site) {
        let daemon = site.serve().await;
        let mut kms = daemon.kms().await;
        for (plaintext, encrypted) in &self.secrets {
            assert_eq!(&decrypt(&mut kms, encrypted).await.unwrap(), plaintext);
        }
        // It encrypts under a key ID of its own, and can rotate.
        let fresh = encrypt(&mut kms, b"fresh").await;
        assert!(self.secrets.iter().all(|(_, old)| old.key_id != fresh.key_id));
        site.rotate().expect_success();
        assert_eq!(decrypt(&mut kms, &fresh).await.unwrap(), b"fresh");
        drop(kms);
        assert!(daemon.stop().success());
        // And starts again: the record is authentic under its new epoch.
        assert!(site.serve().await.stop().success());
    }
}

pub fn recover(site: &Site, arguments: &[&str]) -> std::process::Output {
    let mut command = site.command(["recover", "--output", "json"]);
    command.args(arguments).output().unwrap()
}

#[track_caller]
pub fn shown(output: &std::process::Output, code: i32) -> Value {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{error}{}", String::from_utf8_lossy(&output.stdout));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no report: {error}"))
}

/// The objects that a generation opens of those there are, as the report has it.
pub fn opens(report: &Value, index: usize) -> (u64, u64) {
    let each = &report["recovered"][index];
    (each["objects_opened"].as_u64().unwrap(), each["objects"].as_u64().unwrap())
}
