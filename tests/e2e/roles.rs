//! Roles on the admin socket, as the kernel's word on the peer decides.

use std::fs;
use std::time::Instant;

use keystead_wire::admin::v1::{GetStatusRequest, RotateProgress, RotateRequest};

use crate::daemon::{DEADLINE, Finished, Site};

pub fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The configuration with another `[roles]` table, for the next start.
pub fn with_roles(site: &Site, table: &str) {
    let config = fs::read_to_string(site.config()).unwrap();
    let before = config.split("\n[roles]").next().unwrap();
    fs::write(site.config(), format!("{before}\n{table}\n")).unwrap();
}

#[tokio::test]
async fn init_grants_all_roles_to_whoever_runs_it_and_says_so() {
    let site = Site::bare("");
    let said = site.keystead(["init", "--no-recovery", "--output", "json"]).expect_success();
    assert!(said.contains(&format!("\"roles_granted_to\": {}", own_uid())), "{said}");
    let config = fs::read_to_string(site.config()).unwrap();
    for role in ["viewer", "operator", "crypto-admin", "auditor"] {
        assert!(config.contains(&format!("{role} = {{ uids = [{}] }}", own_uid())), "{config}");
    }
    site.keystead(["init", "--no-recovery", "--if-needed"]).expect_success();
    assert_eq!(fs::read_to_string(site.config()).unwrap(), config, "once");
    let daemon = site.serve().await;
    site.keystead(["key", "rotate", "--yes"]).expect_success();
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn a_viewer_looks_and_is_refused_the_rest_and_each_refusal_is_recorded() {
    let site = Site::initialized("");
    with_roles(&site, &format!("[roles]\nviewer = {{ uids = [{0}] }}\nauditor = {{ uids = [{0}] }}", own_uid()));
    let daemon = site.serve().await;
    site.keystead(["status"]).expect_success();
    site.keystead(["key", "list"]).expect_success();
    for command in [&["key", "rotate", "--yes"][..], &["custodian", "restart"]] {
        let output = site.command([]).args(command).output().unwrap();
        assert_eq!(output.status.code(), Some(4), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("[roles]"), "{output:?}");
    }
    let refused = site.keystead(["audit", "query", "--outcome", "refused", "--output", "json"]).expect_success();
    assert!(refused.contains("\"rotate\"") && refused.contains("\"restart-custodian\""), "{refused}");
    assert_eq!(daemon.status().await.generations, 1);
    assert!(daemon.stop().success());
}

/// The verdict goes by the same path that the service goes by, whatever it is made to look like.
#[tokio::test]
async fn no_spelling_of_a_method_gets_a_viewer_past_his_roles() {
    let site = Site::initialized("");
    with_roles(&site, &format!("[roles]\nviewer = {{ uids = [{}] }}", own_uid()));
    let daemon = site.serve().await;
    let channel = crate::clients::channel(site.path().join("run/admin.sock")).await;
    for path in [
        "/keystead.admin.v1.Admin/Rotate",
        "/keystead.admin.v1.Admin/Rotate?x=/keystead.admin.v1.Admin/GetStatus",
        "/keystead.admin.v1.Admin/Rotate/",
        "/keystead.admin.v1.Admin/rotate",
        "/keystead.admin.v1.admin/Rotate",
        "/keystead.admin.v1.Admin/%52otate",
        "/keystead.admin.v1.Admin/GetStatus/../Rotate",
        "//keystead.admin.v1.Admin/Rotate",
        "/keystead.admin.v1.Admin//Rotate",
        "/x/keystead.admin.v1.Admin/Rotate",
    ] {
        let mut client = tonic::client::Grpc::new(channel.clone());
        client.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<RotateRequest, RotateProgress>::default();
        let path: http::uri::PathAndQuery = path.parse().unwrap();
        let request = tonic::Request::new(RotateRequest { force: "for a test".into() });
        let status = client.server_streaming(request, path.clone(), codec).await.map(drop).unwrap_err();
        let refused = matches!(status.code(), tonic::Code::PermissionDenied | tonic::Code::Unimplemented);
        assert!(refused, "{path}: {status}");
    }
    // Nor does what the same connection may do.
    let mut admin = crate::daemon::Admin::new(channel);
    admin.get_status(GetStatusRequest {}).await.unwrap();
    assert_eq!(admin.rotate(RotateRequest::default()).await.unwrap_err().code(), tonic::Code::PermissionDenied);
    assert_eq!(daemon.status().await.generations, 1);
    drop(admin);
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn a_denial_wins_also_over_root_s_grants() {
    let site = Site::initialized("");
    let table = "[roles]\ncrypto-admin = { uids = [UID] }\n[[roles.deny]]\nactions = [\"rotate\"]\nuids = [UID]";
    with_roles(&site, &table.replace("UID", &own_uid().to_string()));
    let daemon = site.serve().await;
    site.keystead(["status"]).expect_success();
    assert_eq!(site.keystead(["key", "rotate", "--yes"]).status.code(), Some(4));
    assert_eq!(site.keystead(["audit", "query"]).status.code(), Some(4), "a crypto-admin is no auditor");
    assert!(daemon.stop().success());
}

/// Not even for user 0, if the tests run as that.
#[tokio::test]
async fn who_holds_no_role_may_not_even_look() {
    let site = Site::initialized("");
    with_roles(&site, "[roles]\nviewer = { uids = [54321] }");
    let daemon = site.spawn(&[]);
    let deadline = Instant::now() + DEADLINE;
    while !site.keystead(["kms", "status"]).status.success() {
        assert!(Instant::now() < deadline, "it does not serve: {}", daemon.log());
    }
    assert_eq!(site.keystead(["status"]).status.code(), Some(4));
    assert!(daemon.stop().success());
}
