//! The way to the cloud as a site has it: a proxy, and CAs that change while the daemon runs.

use std::fs;

use keystead_wire::admin::v1::GetStatusResponse;

use super::rig::CloudSite;
use crate::daemon::{Daemon, decrypt, encrypt};

fn fault(status: &GetStatusResponse) -> &str {
    status.upstream.as_ref().map_or("", |upstream| upstream.fault_code.as_str())
}

/// Once more than by now.
async fn until_renewed(daemon: &Daemon) {
    let contact = |status: &GetStatusResponse| status.upstream.as_ref().map_or(0, |upstream| upstream.last_contact);
    let before = contact(&daemon.status().await);
    daemon
        .until("renewed", |status| {
            assert_eq!(status.availability, "online", "{status:?}");
            contact(status) > before + 1
        })
        .await;
}

#[tokio::test]
async fn daemon_goes_through_the_proxy_and_serves_on_when_that_refuses() {
    let site = CloudSite::bare("");
    site.configure(&format!("proxy = {:?}", site.cloud.fact("/proxy")));
    site.site.keystead(["init", "--no-recovery"]);
    let daemon = site.serve().await;
    let sealed = encrypt(&mut daemon.kms().await, b"seed").await;
    let before = site.cloud.tunnels();
    until_renewed(&daemon).await;
    assert!(site.cloud.tunnels() > before, "renewed past the proxy");
    site.cloud.act("proxy-refuses");
    daemon.until("refused by the proxy", |status| status.availability == "degraded" && fault(status) == "proxy").await;
    assert_eq!(decrypt(&mut daemon.kms().await, &sealed).await.unwrap(), b"seed");
}

/// As it is done in life: both are pinned, the service changes over, the old one is taken out.
#[tokio::test]
async fn pinned_ca_is_changed_while_the_daemon_runs() {
    let site = CloudSite::bare("");
    let pinned = site.site.path().join("pinned.pem");
    let [old, new] = ["/ca_file", "/next_ca_file"].map(|name| fs::read(site.cloud.fact(name)).unwrap());
    fs::write(&pinned, &old).unwrap();
    site.configure(&format!("ca_file = {pinned:?}"));
    site.site.keystead(["init", "--no-recovery"]);
    let daemon = site.serve().await;
    let sealed = encrypt(&mut daemon.kms().await, b"seed").await;
    fs::write(&pinned, [old.as_slice(), b"\n", &new].concat()).unwrap();
    until_renewed(&daemon).await;
    site.cloud.act("change-ca");
    until_renewed(&daemon).await;
    fs::write(&pinned, &new).unwrap();
    until_renewed(&daemon).await;
    // Forgotten in time: an outage, never a revocation.
    fs::write(&pinned, &old).unwrap();
    daemon.until("not trusted", |status| status.availability == "degraded" && fault(status) == "tls").await;
    assert_eq!(decrypt(&mut daemon.kms().await, &sealed).await.unwrap(), b"seed");
    fs::write(&pinned, &new).unwrap();
    daemon.until("online again", |status| status.availability == "online").await;
}
