//! Credentials that the platform keeps: a token file named by its variables, exchanged for a session of a role.

use std::fs;

use super::rig::{CloudSite, Vendor};
use crate::daemon::{Finished, decrypt, encrypt};

/// The variables as a cluster sets them for a service account, and the rig's name of the token's file.
fn platform(site: &CloudSite) -> (Vec<(&'static str, String)>, String) {
    let fact = |path: &str| site.cloud.fact(path).to_owned();
    match site.cloud.vendor {
        Vendor::Aws => {
            let token = fact("/credentials/web_identity");
            (vec![("AWS_ROLE_ARN", fact("/role")), ("AWS_WEB_IDENTITY_TOKEN_FILE", token.clone())], token)
        }
        _ => {
            let token = fact("/credentials/oidc-token");
            let variables = vec![
                ("ALIBABA_CLOUD_ROLE_ARN", fact("/role_arn")),
                ("ALIBABA_CLOUD_OIDC_PROVIDER_ARN", fact("/oidc_provider_arn")),
                ("ALIBABA_CLOUD_OIDC_TOKEN_FILE", token.clone()),
            ];
            (variables, token)
        }
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
        let (variables, token) = platform(&site);
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

        // The session is given up, and the token is another one, put in its place as kubelet does it.
        let right = fs::read(&token).unwrap();
        let replace = |with: &[u8]| {
            fs::write(format!("{token}.new"), with).unwrap();
            fs::rename(format!("{token}.new"), &token).unwrap();
        };
        replace(b"eyJ0eXAiOiJKV1QifQ.e30.c3RyYW5nZXI");
        site.cloud.act("expire-tokens");
        let fault = |status: &keystead_wire::admin::v1::GetStatusResponse| {
            status.upstream.as_ref().is_some_and(|upstream| upstream.fault_class == "credential-fault")
        };
        daemon.until("refused", |status| status.availability == "degraded" && fault(status)).await;
        assert_eq!(decrypt(&mut daemon.kms().await, &sealed).await.unwrap(), b"seed");
        replace(&right);
        daemon.until("online again", |status| status.availability == "online").await;
        println!("{:<8} token file of the platform: exchanged, read again", vendor.name());
        assert!(daemon.stop().success());
    }
}
