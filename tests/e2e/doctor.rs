//! `keystead doctor` beside a real daemon whose surroundings are broken one by one: exactly that is found, and it ends with
//! the code of its severity.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use crate::daemon::{Finished, Site};

/// Ids and severities of all that is not ok, sorted.
type Found = Vec<(String, String)>;

/// The groups whose findings do not depend on the machine that the tests run on.
const OURS: [&str; 8] = ["daemon", "sockets", "files", "custody", "store", "key", "audit", "protection"];
/// Of every site here: SoftHSM, made without a recovery key.
const ALWAYS: [(&str, &str); 2] = [("custody.software-token", "warning"), ("store.one-root", "warning")];

fn command(site: &Site, groups: &[&str]) -> Command {
    let mut command = site.command(["doctor", "--output", "json"]);
    for group in groups {
        command.args(["--only", group]);
    }
    command
}

#[track_caller]
fn parse(output: Output) -> (i32, Found) {
    let code = output.status.code().expect("an exit code");
    let error = String::from_utf8_lossy(&output.stderr);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{code}: {error}"));
    let text = |finding: &serde_json::Value, key: &str| finding[key].as_str().unwrap().to_owned();
    let mut found: Found = Vec::new();
    for finding in json["findings"].as_array().unwrap() {
        let (id, severity) = (text(finding, "id"), text(finding, "severity"));
        // Whether the program was replaced only root may see.
        let is_about_root = id == "daemon.version" && finding["checked"] == false;
        if severity != "ok" && !is_about_root {
            assert!(finding["next"].is_string(), "nothing to do about {finding}");
            found.push((id, severity));
        }
    }
    found.sort();
    (code, found)
}

#[track_caller]
fn doctor(site: &Site, groups: &[&str]) -> (i32, Found) {
    parse(command(site, groups).output().expect("keystead runs"))
}

fn owned(found: &[(&str, &str)]) -> Found {
    let mut found: Found = found.iter().map(|(id, severity)| ((*id).into(), (*severity).into())).collect();
    found.sort();
    found
}

/// What is always found, and `more`.
#[track_caller]
fn expect(site: &Site, code: i32, more: &[(&str, &str)]) {
    let expected = owned(&[&ALWAYS, more].concat());
    assert_eq!(doctor(site, &OURS), (code, expected));
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn sound_daemon_has_the_warnings_of_its_choices_and_nothing_else() {
    let site = Site::initialized("");
    let _daemon = site.serve().await;
    expect(&site, 6, &[]);

    let text = site.keystead(["doctor"]);
    let text = String::from_utf8(text.stdout).unwrap();
    for heading in [
        "Daemon",
        "Sockets",
        "Files",
        "Custody",
        "Store and roots",
        "Key",
        "Roles",
        "Audit trail",
        "Protection",
        "Clock",
        "Boot",
        "kube-apiserver",
    ] {
        assert!(text.lines().any(|line| line == heading), "no {heading} in {text}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    assert!(text.contains("why: ") && text.contains("do:  "), "{text}");
}

#[tokio::test]
async fn key_with_a_recovery_root_does_not_hang_on_one() {
    let site = Site::bare("");
    let keys = [site.path().join("private.pem"), site.path().join("public.pem")];
    let [private, public] = keys.each_ref().map(|path| path.to_str().unwrap());
    site.keystead(["recovery", "keygen", "--out", private, "--public-out", public]).expect_success();
    site.keystead(["init", "--recovery", public]).expect_success();
    let _daemon = site.serve().await;
    assert_eq!(doctor(&site, &["store"]), (0, Vec::new()));
}

#[tokio::test]
async fn nothing_is_written_and_nothing_asked_of_the_token() {
    let site = Site::initialized("");
    // No probe of the daemon's own in between.
    let custody = format!("{}probe_interval = \"1h\"\n", site.token.custody("keystead"));
    site.configure(&custody, "");
    let daemon = site.serve().await;
    let calls = async || daemon.status().await.custody.unwrap_or_default().device_operations;
    // The daemon itself looks at the token once more after its start; if this program did, it would each time.
    crate::memory::wait_until_async("a run without a call to the token", async || {
        let before = calls().await;
        expect(&site, 6, &[]);
        calls().await == before
    })
    .await;
    let files = tree(site.path());
    expect(&site, 6, &[]);
    assert_eq!(tree(site.path()), files);
}

/// Every file with what would tell of a change. The log is the daemon's to write.
fn tree(folder: &Path) -> BTreeMap<std::path::PathBuf, (u32, i64, i64, u64)> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let metadata = fs::symlink_metadata(&path).unwrap();
        if metadata.is_dir() {
            files.extend(tree(&path));
        }
        if !path.ends_with("log") {
            files.insert(path, (metadata.mode(), metadata.mtime(), metadata.mtime_nsec(), metadata.size()));
        }
    }
    files
}

#[tokio::test]
async fn daemon_that_is_down_is_critical_and_the_rest_still_checked() {
    let site = Site::initialized("");
    let daemon = site.serve().await;
    assert!(daemon.stop().success());
    let unchecked =
        [("custody.state", "info"), ("protection.daemon", "info"), ("store.roots", "info"), ("store.record", "info")];
    let down = [&unchecked[..], &[("daemon.down", "critical")]].concat();
    assert_eq!(doctor(&site, &OURS), (7, owned(&down)));
    assert_eq!(doctor(&site, &["files"]), (0, Vec::new()));

    fs::remove_file(site.token.pin_file()).unwrap();
    let more = [&down[..], &[("files.pin", "critical")]].concat();
    assert_eq!(doctor(&site, &OURS), (7, owned(&more)));
}

#[tokio::test]
async fn sockets_left_behind_are_told_from_missing_ones() {
    let site = Site::initialized("");
    site.serve().await.kill();
    assert!(site.kms_socket().exists());
    let stale = [("daemon.down", "critical"), ("sockets.stale", "info"), ("sockets.stale", "info")];
    assert_eq!(doctor(&site, &["daemon", "sockets"]), (7, owned(&stale)));

    let _daemon = site.serve().await;
    fs::remove_file(site.kms_socket()).unwrap();
    expect(&site, 7, &[("sockets.missing", "critical")]);
    drop(UnixListener::bind(site.kms_socket()).unwrap());
    expect(&site, 7, &[("sockets.stale", "critical")]);
    fs::remove_file(site.kms_socket()).unwrap();
    fs::write(site.kms_socket(), "").unwrap();
    expect(&site, 7, &[("sockets.occupied", "critical")]);
}

#[tokio::test]
async fn stranger_on_the_admin_socket_is_no_daemon() {
    let site = Site::initialized("");
    let listener = UnixListener::bind(site.path().join("run/admin.sock")).unwrap();
    // As a daemon that bound it itself would leave; otherwise it would count as systemd's and not be connected to.
    fs::write(site.path().join("run/admin.sock.lock"), "").unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let _ = std::io::Write::write_all(&mut stream, b"SSH-2.0-other\r\n");
        }
    });
    assert_eq!(doctor(&site, &["daemon"]), (7, owned(&[("daemon.silent", "critical")])));
}

#[tokio::test]
async fn daemon_that_does_not_admit_the_caller_is_not_called_down() {
    let site = Site::initialized("");
    let config = fs::read_to_string(site.config()).unwrap();
    let config = config.replace("[admin]\n", "[admin]\nallow_uids = [54321]\n");
    // Who holds a role is admitted, too; `init` gave them all to this user.
    let own = format!("uids = [{}]", rustix::process::geteuid().as_raw());
    fs::write(site.config(), config.replace(&own, "uids = [54321]")).unwrap();
    let daemon = site.serve().await;
    assert_eq!(doctor(&site, &["daemon"]), (0, owned(&[("daemon.forbidden", "info")])));
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn wrong_modes_are_named_one_by_one() {
    let site = Site::initialized("");
    let _daemon = site.serve().await;
    let at = |name: &str| site.path().join(name);
    let cases = [
        (site.kms_socket(), 0o600, 0o666, 6, ("sockets.mode", "warning")),
        (at("run"), 0o755, 0o777, 7, ("sockets.folder", "critical")),
        (at("store"), 0o700, 0o755, 6, ("store.folder", "info")),
        (at("store"), 0o700, 0o777, 7, ("store.folder", "critical")),
        (site.token.pin_file(), 0o600, 0o644, 7, ("files.pin", "critical")),
        (site.config(), 0o644, 0o666, 7, ("files.configuration", "critical")),
    ];
    for (path, right, wrong, code, finding) in cases {
        set_mode(&path, wrong);
        expect(&site, code, &[finding]);
        set_mode(&path, right);
    }
    expect(&site, 6, &[]);
}

#[tokio::test]
async fn record_that_is_not_the_daemon_s_is_found_before_a_restart() {
    let site = Site::initialized("");
    let _daemon = site.serve().await;
    let old = fs::read(site.store_file()).unwrap();
    site.keystead(["key", "rotate", "--yes"]).expect_success();
    expect(&site, 6, &[]);
    let new = fs::read(site.store_file()).unwrap();
    for (record, id) in
        [(&old[..], "store.replaced"), (&new[..new.len() / 2], "store.damaged"), (b"x", "store.damaged")]
    {
        fs::write(site.store_file(), record).unwrap();
        expect(&site, 7, &[(id, "critical")]);
    }
    fs::remove_file(site.store_file()).unwrap();
    expect(&site, 7, &[("store.removed", "critical")]);
    fs::write(site.store_file(), new).unwrap();
    expect(&site, 6, &[]);
}

/// The daemon keeps the file that it writes open: what lies in its place it does not see before its next start.
#[tokio::test]
async fn a_trail_that_was_touched_is_found_beside_the_running_daemon_and_without_it() {
    let site = Site::initialized("");
    let daemon = site.serve().await;
    site.keystead(["key", "rotate", "--yes"]).expect_success();
    expect(&site, 6, &[]);
    let path = site.path().join("store/audit/audit.log");
    let good = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = good.lines().collect();
    let edited = good.replacen("\"rotate\"", "\"rot4te\"", 1);
    let short: String = lines[..lines.len() - 2].iter().map(|line| format!("{line}\n")).collect();
    let changes = [(Some(edited), "audit.broken"), (Some(short), "audit.short"), (None, "audit.missing")];
    let found = |id| owned(&[(id, "critical")]);
    for (change, id) in &changes {
        match change {
            Some(text) => fs::write(&path, text).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        assert_eq!(doctor(&site, &["audit"]), (7, found(id)));
    }
    fs::write(&path, &good).unwrap();
    assert_eq!(doctor(&site, &["audit"]), (0, Vec::new()));
    assert!(daemon.stop().success());
    assert_eq!(doctor(&site, &["audit"]), (0, Vec::new()));
    // Everything up to the record's own line, which then is another one: nothing but the record tells.
    let whole = fs::read_to_string(&path).unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(doctor(&site, &["audit"]), (7, found("audit.missing")));
    fs::write(&path, whole.lines().take(1).map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    assert_eq!(doctor(&site, &["audit"]), (7, found("audit.short")));
    fs::write(&path, whole).unwrap();
    assert_eq!(doctor(&site, &["audit"]), (0, Vec::new()));
}

#[tokio::test]
async fn a_receiver_that_is_away_and_a_trail_that_is_off_are_told() {
    if !Path::new("/dev/log").exists() {
        let site = Site::initialized("[audit]\nforward = \"syslog\"\n");
        assert_eq!(doctor(&site, &["audit"]), (6, owned(&[("audit.forward", "warning"), ("audit.trail", "info")])));
    }
    let site = Site::initialized("[audit]\nlevel = \"off\"\n");
    assert_eq!(doctor(&site, &["audit"]), (0, owned(&[("audit.off", "info")])));
}

#[tokio::test]
async fn roles_that_leave_nobody_to_change_the_key_are_a_warning() {
    let site = Site::initialized("");
    let config = fs::read_to_string(site.config()).unwrap();
    let before = config.split("\n[roles]").next().unwrap().to_owned();
    let judged = |table: &str| {
        fs::write(site.config(), format!("{before}\n{table}")).unwrap();
        doctor(&site, &["roles"])
    };
    let all = |uid| {
        format!(
            "[roles]\nviewer = {{ uids = [{uid}] }}\noperator = {{ uids = [{uid}] }}\ncrypto-admin = {{ uids = [{uid}] }}\nauditor = {{ uids = [{uid}] }}\n"
        )
    };
    assert_eq!(judged(&all("65534")), (0, Vec::new()));
    assert_eq!(judged(&all("0")), (0, owned(&[("roles.root", "info")])));
    assert_eq!(judged(&all("54321")), (0, owned(&[("roles.unknown", "info")])));
    assert_eq!(judged(""), (0, owned(&[("roles.open", "info")])));
    let nobody = judged("[roles]\nviewer = { uids = [65534] }\n");
    assert_eq!(nobody, (6, owned(&[("roles.nobody", "warning"), ("roles.vacant", "info")])));
    let denied = judged(&format!("{}[[roles.deny]]\nactions = [\"rescue\"]\nuids = [65534]\n", all("65534")));
    assert_eq!(denied, (6, owned(&[("roles.denied", "warning")])));
    // A name that no account has is no configuration: neither the daemon nor any command reads it.
    fs::write(site.config(), format!("{before}\n{}", all("\"nobody-of-that-name\""))).unwrap();
    let error = site.keystead(["doctor"]).expect_failure(2);
    assert!(error.contains("nobody-of-that-name") && error.contains("roles.viewer"), "{error}");
}

#[tokio::test]
async fn sandbox_switched_off_is_a_warning_for_each_part() {
    let site = Site::initialized("[sandbox]\nlandlock = false\nseccomp = false\n");
    let _daemon = site.serve().await;
    let off =
        [("protection.landlock", "warning"), ("protection.pin", "warning"), ("protection.system-calls", "warning")];
    assert_eq!(doctor(&site, &["protection"]), (6, owned(&off)));
}

#[tokio::test]
async fn rejected_pin_is_found_with_the_daemon_up_and_down_and_costs_no_try() {
    let site = Site::initialized("");
    fs::write(site.token.pin_file(), "00000000").unwrap();
    let daemon = site.spawn(&[]);
    daemon.until("pin rejected", |status| status.custody.clone().unwrap_or_default().state == "pin-rejected").await;
    let rejected = [("custody.pin-rejected", "critical"), ("daemon.sealed", "critical")];
    assert_eq!(doctor(&site, &["daemon", "custody"]), (7, owned(&rejected)));
    assert!(daemon.stop().success());

    let noted = [("custody.pin-rejected", "warning"), ("custody.state", "info")];
    assert_eq!(doctor(&site, &["custody"]), (6, owned(&noted)));
    let tries = fs::read_to_string(site.path().join("log")).unwrap().matches("login was rejected").count();
    assert_eq!(tries, 1, "the PIN was tried {tries} times");
    // It does not read the PIN, so whether this one is another it cannot know: the note stands until one is taken.
    fs::write(site.token.pin_file(), "another").unwrap();
    assert_eq!(doctor(&site, &["custody"]), (6, owned(&noted)));
}

#[tokio::test]
async fn token_that_is_away_is_critical_while_the_keys_are_served() {
    let site = Site::initialized("");
    let _daemon = site.serve().await;
    fs::rename(site.token.folder.join("tokens"), site.token.folder.join("aside")).unwrap();
    fs::create_dir(site.token.folder.join("tokens")).unwrap();
    site.keystead(["custodian", "restart"]).expect_failure(5);
    let away = [("custody.token", "critical"), ("daemon.degraded", "critical")];
    assert_eq!(doctor(&site, &["daemon", "custody"]), (7, owned(&away)));
}

#[tokio::test]
async fn daemon_of_another_keyring_is_not_taken_for_ours() {
    let site = Site::initialized("");
    let _daemon = site.serve().await;
    let config = fs::read_to_string(site.config()).unwrap();
    fs::write(site.config(), config.replace("node = \"node-1\"", "node = \"node-2\"")).unwrap();
    let other = [("daemon.other", "critical"), ("store.one-root", "warning"), ("store.foreign", "critical")];
    assert_eq!(doctor(&site, &["daemon", "store"]), (7, owned(&other)));
}

#[tokio::test]
async fn program_replaced_under_the_daemon_is_a_warning() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let site = Site::initialized("");
    let program = site.copy_of_the_program();
    let mut daemon = site.spawn_program(&program);
    daemon.until_serving().await;
    expect(&site, 6, &[]);
    fs::remove_file(&program).unwrap();
    expect(&site, 6, &[("daemon.version", "warning")]);
    assert!(daemon.stop().success());
}

#[tokio::test]
async fn encryption_configuration_is_judged_against_the_socket() {
    let site = Site::initialized("");
    let _daemon = site.serve().await;
    let file = site.path().join("encryption.yaml");
    let good = include_str!("../../packaging/static-pod/encryption-config.yaml")
        .replace("/run/keystead/kms.sock", site.kms_socket().to_str().unwrap());
    let judged = |text: &str| {
        fs::write(&file, text).unwrap();
        let mut command = command(&site, &["apiserver"]);
        let (code, found) = parse(command.arg("--encryption-config").arg(&file).output().unwrap());
        // What is on the machine itself is not this test's.
        let ids = found
            .into_iter()
            .filter(|(id, _)| !["apiserver.flag", "apiserver.mount", "apiserver.pod"].contains(&id.as_str()));
        (code, ids.collect::<Found>())
    };
    assert_eq!(judged(&good), (0, Vec::new()));
    let cases = [
        (good.replace("apiVersion: v2\n", "apiVersion: v1\n"), 7, "apiserver.version", "critical"),
        (good.replace("kms.sock", "other.sock"), 7, "apiserver.endpoint", "critical"),
        (good.replace("name: keystead", "name: 'a:b'"), 7, "apiserver.name", "critical"),
        (good.replace("timeout: 3s", "timeout: 5m"), 6, "apiserver.timeout", "warning"),
        (good.replace("providers:\n", "providers:\n      - identity: {}\n"), 7, "apiserver.identity", "critical"),
        (good.replace("kms:", "kms: ["), 7, "apiserver.malformed", "critical"),
    ];
    for (text, code, id, severity) in cases {
        assert_eq!(judged(&text), (code, owned(&[(id, severity)])), "{text}");
    }
    fs::remove_file(&file).unwrap();
    let mut command = command(&site, &["apiserver"]);
    let (code, found) = parse(command.arg("--encryption-config").arg(&file).output().unwrap());
    assert_eq!(code, 7);
    assert!(found.contains(&("apiserver.missing".into(), "critical".into())), "{found:?}");
}

#[tokio::test]
async fn ordinary_user_is_told_what_needs_root() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let site = Site::initialized("");
    let _daemon = site.serve().await;
    for (name, mode) in [("", 0o755), ("run", 0o755), ("store", 0o700), ("token", 0o700)] {
        set_mode(&site.path().join(name), mode);
    }
    // A copy, for the one of the build may lie where only its owner gets at it.
    let mut command = site.command_of(&site.copy_of_the_program(), ["doctor", "--output", "json"]);
    command.uid(65534).gid(65534);
    for group in OURS {
        command.args(["--only", group]);
    }
    let output = command.output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let unchecked = json["findings"].as_array().unwrap().iter().filter(|finding| finding["checked"] == false);
    let mut ids: Vec<&str> = unchecked
        .map(|finding| {
            assert!(finding["next"].as_str().unwrap().contains("root"), "{finding}");
            finding["id"].as_str().unwrap()
        })
        .collect();
    ids.sort_unstable();
    let expected = [
        "audit.forbidden",
        "custody.pin-note",
        "custody.state",
        "daemon.forbidden",
        "files.pin",
        "protection.daemon",
        "store.forbidden",
        "store.roots",
    ];
    assert_eq!(ids, expected, "{json:#}");
    assert_eq!(output.status.code(), Some(0), "{json:#}");
}

/// In a process namespace of its own, where no server of another test is seen.
#[test]
fn socket_that_systemd_holds_is_not_woken() {
    let site = Site::initialized("");
    let admin = UnixListener::bind(site.path().join("run/admin.sock")).unwrap();
    let kms = UnixListener::bind(site.kms_socket()).unwrap();
    let output = Command::new("unshare")
        .args(["-Urmpf", "--mount-proc", env!("CARGO_BIN_EXE_keystead"), "doctor", "--output", "json"])
        .args(["--only", "daemon", "--only", "sockets"])
        .env("KEYSTEAD_CONFIG", site.config())
        .output()
        .unwrap();
    assert_eq!(parse(output), (7, owned(&[("daemon.down", "critical")])));
    for listener in [admin, kms] {
        listener.set_nonblocking(true).unwrap();
        let error = listener.accept().expect_err("somebody connected");
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    }
}

/// A node's /etc, in a mount namespace of its own: units and pods come one by one.
const BOOT: &str = r#"
set -eu
etc=$SITE/etc
mkdir -p "$etc/systemd/system" "$etc/kubernetes/manifests" "$etc/kubernetes/enc"
cp /etc/passwd /etc/group /etc/ld.so.cache "$etc/"
mount --bind "$etc" /etc
expect() {
    local wanted=$1 ids=$2 code=0
    $KEYSTEAD doctor --output json --only boot --only apiserver >"$SITE/out" || code=$?
    [ "$code" = "$wanted" ] || { echo "ended with $code, not $wanted:"; cat "$SITE/out"; exit 1; }
    for id in $ids; do grep -q "\"id\": \"$id\"" "$SITE/out" || { echo "no $id in:"; cat "$SITE/out"; exit 1; }; done
    [ "$(grep -c '"id":' "$SITE/out")" = "$(echo $ids | wc -w)" ] || { echo "not $ids alone:"; cat "$SITE/out"; exit 1; }
}
expect 0 "boot.unit apiserver.none"
echo '[Unit]' >"$etc/systemd/system/kubelet.service"
expect 7 "boot.unit apiserver.none"
cp "$PACKAGING"/systemd/keystead.service "$PACKAGING"/systemd/keystead-kms.socket "$etc/systemd/system/"
expect 7 "boot.disabled apiserver.none"
mkdir "$etc/systemd/system/multi-user.target.wants"
ln -s ../keystead.service "$etc/systemd/system/multi-user.target.wants/keystead.service"
expect 0 "boot.order apiserver.none"
echo '[Unit]' >"$etc/systemd/system/k0scontroller.service"
expect 6 "boot.order apiserver.none"
rm "$etc/systemd/system/k0scontroller.service"
sed "s|/run/keystead/kms.sock|$SITE/run/kms.sock|" "$PACKAGING/static-pod/encryption-config.yaml" >"$etc/kubernetes/enc/encryption-config.yaml"
expect 0 "boot.order apiserver.configuration"
sed "s|/run/keystead|$SITE/run|" "$PACKAGING/static-pod/kube-apiserver-patch.yaml" >"$etc/kubernetes/manifests/kube-apiserver.yaml"
expect 0 "boot.order apiserver.mount apiserver.configuration"
sed -i "s|endpoint: .*|endpoint: unix:///elsewhere.sock|" "$etc/kubernetes/enc/encryption-config.yaml"
expect 7 "boot.order apiserver.mount apiserver.endpoint"
rm "$etc/kubernetes/enc/encryption-config.yaml"
expect 7 "boot.order apiserver.mount apiserver.missing"
echo "done"
"#;

#[test]
fn units_and_apiserver_of_the_node_are_found_and_judged() {
    let site = Site::bare("");
    // Its own /etc comes as folders that only this namespace sees.
    let output = Command::new("unshare")
        .args(["-Urm", "bash", "-c", BOOT])
        .env("SITE", site.path())
        .env("PACKAGING", concat!(env!("CARGO_MANIFEST_DIR"), "/packaging"))
        .env("KEYSTEAD", env!("CARGO_BIN_EXE_keystead"))
        .env("KEYSTEAD_CONFIG", site.config())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.ends_with("done\n"), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn configuration_that_cannot_be_is_an_error_before_any_check() {
    let site = Site::bare("");
    let config = fs::read_to_string(site.config()).unwrap();
    let long = format!("/{}/kms.sock", "x".repeat(120));
    fs::write(site.config(), config.replace(site.kms_socket().to_str().unwrap(), &long)).unwrap();
    let error = site.keystead(["doctor"]).expect_failure(2);
    assert!(error.contains("107") && error.contains("next:"), "{error}");
    site.keystead(["doctor", "--only", "nonsense"]).expect_failure(2);
}
