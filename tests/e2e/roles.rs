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
    for command in
        [&["key", "rotate", "--yes"][..], &["roots", "remove", "upstream", "--yes"], &["custodian", "restart"]]
    {
        let output = site.command([]).args(command).output().unwrap();
        assert_eq!(output.status.code(), Some(4), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("[roles]"), "{output:?}");
    }
    let refused = site.keystead(["audit", "query", "--outcome", "refused", "--output", "json"]).expect_success();
    assert!(
        refused.contains("\"rotate\"")
            && refused.contains("\"change-roots\"")
            && refused.contains("\"restart-custodian\""),
        "{refused}"
    );
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

/// As `sudo keystead …` does it: the kernel keeps whose session it is.
#[tokio::test]
async fn whose_session_it_is_stands_in_the_trail_whoever_he_became() {
    const LOGGED_IN: &str = r#"echo 4242 >/proc/self/loginuid || exit 99; exec "$@""#;
    let site = Site::initialized("");
    let roles = format!("[roles]\nviewer = {{ uids = [{0}] }}\nauditor = {{ uids = [{0}] }}", own_uid());
    with_roles(&site, &roles);
    let daemon = site.serve().await;
    let rotate = |shell: &[&str]| {
        let command = site.command(["key", "rotate", "--yes"]);
        let mut logged_in = std::process::Command::new(shell.first().copied().unwrap_or("env"));
        logged_in.args(shell.iter().skip(1)).arg(command.get_program()).args(command.get_args());
        logged_in.env("KEYSTEAD_CONFIG", site.config()).output().unwrap()
    };
    let refused = |uid: &str| {
        let shown = site.keystead(["audit", "query", "--outcome", "refused", "--uid", uid, "--output", "json"]);
        serde_json::from_str::<Vec<serde_json::Value>>(&shown.expect_success()).unwrap()
    };
    if fs::read_to_string("/proc/self/loginuid").is_ok_and(|uid| uid == u32::MAX.to_string()) {
        assert_eq!(rotate(&[]).status.code(), Some(4));
        let lines = refused(&own_uid().to_string());
        assert!(lines.len() == 1 && lines[0]["who"].get("login_uid").is_none(), "{lines:?}");
    }
    let output = rotate(&["sh", "-c", LOGGED_IN, "sh"]);
    if output.status.code() == Some(99) {
        println!("a login uid cannot be set here: that one is recorded is tested as root only");
        return;
    }
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    let lines = refused("4242");
    assert!(
        lines.len() == 1 && lines[0]["who"]["uid"] == own_uid() && lines[0]["who"]["login_uid"] == 4242,
        "{lines:?}"
    );
    assert!(daemon.log().contains("\"login_uid\":4242"), "{}", daemon.log());
    assert!(daemon.stop().success());
}

/// The first of them stands in the trail by itself, the others in one line.
#[tokio::test]
async fn a_loop_of_refused_calls_is_two_lines_in_the_trail_and_in_the_log() {
    let site = Site::initialized("");
    with_roles(&site, &format!("[roles]\nviewer = {{ uids = [{0}] }}\nauditor = {{ uids = [{0}] }}", own_uid()));
    let daemon = site.serve().await;
    let mut admin = daemon.admin().await;
    for _ in 0..500 {
        assert_eq!(admin.rotate(RotateRequest::default()).await.unwrap_err().code(), tonic::Code::PermissionDenied);
    }
    let refused = || {
        let shown = site.keystead(["audit", "query", "--outcome", "refused", "--output", "json"]).expect_success();
        serde_json::from_str::<Vec<serde_json::Value>>(&shown).unwrap()
    };
    let lines = refused();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!(
        (&lines[0]["details"]["repeated"], &lines[1]["details"]["repeated"]),
        (&serde_json::Value::Null, &499.into())
    );
    assert!(lines.iter().all(|line| line["action"] == "rotate" && line["who"]["uid"] == own_uid()), "{lines:?}");
    assert_eq!(daemon.log().matches("\"refused\"").count(), 2, "{}", daemon.log());
    // Also what nobody has asked for when the daemon ends.
    assert!(admin.rotate(RotateRequest::default()).await.is_err());
    drop(admin);
    assert!(daemon.stop().success());
    let daemon = site.serve().await;
    let lines = refused();
    assert!(lines.len() == 3 && lines[2]["details"]["repeated"] == 1, "{lines:?}");
    site.keystead(["audit", "verify"]).expect_success();
    assert!(daemon.stop().success());
}

/// What is recorded last is waited for on a disk that takes three seconds for it.
#[tokio::test]
async fn refusals_that_are_told_at_the_end_are_told_on_a_slow_disk_too() {
    let site = Site::initialized("[kms]\ndrain_timeout = \"0s\"");
    with_roles(&site, &format!("[roles]\nviewer = {{ uids = [{0}] }}\nauditor = {{ uids = [{0}] }}", own_uid()));
    let mut daemon = site.spawn(&[("FAILPOINTS", &format!("{}=sleep(3000)", keystead::failpoint::AUDIT))]);
    daemon.until_serving().await;
    let mut admin = daemon.admin().await;
    for _ in 0..3 {
        assert!(admin.rotate(RotateRequest::default()).await.is_err());
    }
    drop(admin);
    assert!(daemon.stop().success());
    let trail = fs::read_to_string(site.path().join("store/audit/audit.log"));
    assert!(trail.unwrap().contains("\"repeated\":2"));
}
