//! The whole key switched off and on by an admin, on the running daemon.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use keystead::failpoint;
use keystead_wire::admin::v1::{DisableRequest, EnableRequest};
use keystead_wire::kms::v2::{EncryptRequest, EncryptResponse, StatusRequest};
use rustix::process::Signal;
use tonic::Code;

use crate::daemon::{Daemon, Finished, Kms, Site, decrypt, encrypt, until_gone};
use crate::roles::{own_uid, with_roles};

fn disable(site: &Site) -> std::process::Output {
    site.keystead(["key", "disable", "--yes", "--reason", "lost laptop, INC-7"])
}

fn enable(site: &Site) -> std::process::Output {
    site.keystead(["key", "enable", "--yes"])
}

/// All three calls refuse, and say why.
async fn refuses(kms: &mut Kms, sealed: &EncryptResponse) {
    let status = kms.status(StatusRequest {}).await.unwrap_err();
    let encrypted = kms.encrypt(EncryptRequest { plaintext: b"x".to_vec(), uid: "u".into() }).await.unwrap_err();
    let decrypted = decrypt(kms, sealed).await.unwrap_err();
    for refusal in [status, encrypted, decrypted] {
        assert_eq!(refusal.code(), Code::FailedPrecondition, "{refusal}");
        assert!(refusal.message().contains("disabled by") && refusal.message().contains("key enable"), "{refusal}");
    }
}

async fn until_disabled(daemon: &Daemon) {
    daemon.until("disabled", |status| status.availability == "disabled" && !status.active_key_id.is_empty()).await;
}

#[tokio::test]
async fn a_disabled_key_refuses_over_restarts_until_it_is_enabled_and_then_serves_within_a_second() {
    let site = Site::initialized("");
    let daemon = site.serve().await;
    let mut kms = daemon.kms().await;
    let sealed = encrypt(&mut kms, b"seed").await;
    let before = fs::read(site.store_file()).unwrap();
    let epoch = daemon.status().await.epoch;

    let said = disable(&site).expect_success();
    assert!(
        said.contains("Disabled.") && said.contains("lost laptop, INC-7") && said.contains("until it restarts"),
        "{said}"
    );
    refuses(&mut kms, &sealed).await;
    let status = daemon.status().await;
    assert_eq!((status.availability.as_str(), status.generations_loaded, status.epoch), ("disabled", 0, epoch + 1));
    let disabled = status.disabled.clone().unwrap();
    assert_eq!(
        (disabled.uid, disabled.reason.as_str(), disabled.recorded),
        (Some(own_uid()), "lost laptop, INC-7", true)
    );
    assert!(disabled.since > 1_700_000_000 && disabled.consequence.contains("until it restarts"), "{disabled:?}");
    assert!(!status.apiserver_restart.unwrap().survives && !status.reboot.unwrap().survives);
    assert!(status.actions[0].contains("keystead key enable"), "{:?}", status.actions);
    let metrics = crate::clients::metrics(&daemon).await;
    assert!(metrics.contains("keystead_disabled 1\n"), "{metrics}");
    assert_eq!(crate::clients::sample(&metrics, "keystead_availability", "state=\"disabled\""), 1.0, "{metrics}");
    assert!(crate::clients::get(&daemon, "/readyz").await.0.contains("503"));
    for command in [&["status"][..], &["key", "list"], &["key", "describe"]] {
        let output = site.command([]).args(command).output().unwrap();
        let shown = String::from_utf8_lossy(&output.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(shown.contains(&format!("by user {}: lost laptop", own_uid())), "{command:?}: {shown}");
    }
    let found = site.keystead(["doctor", "--only", "daemon"]);
    assert_eq!(found.status.code(), Some(7));
    assert!(String::from_utf8_lossy(&found.stdout).contains("it is disabled and serves nothing"), "{found:?}");

    // Restarted in good order, and as by a power cut.
    drop(kms);
    assert!(daemon.stop().success());
    let daemon = site.spawn(&[]);
    until_disabled(&daemon).await;
    refuses(&mut daemon.kms().await, &sealed).await;
    daemon.kill();
    // Nor does the record from before bring it back.
    let newest = fs::read(site.store_file()).unwrap();
    fs::write(site.store_file(), &before).unwrap();
    let daemon = site.spawn(&[]);
    daemon.until("stale", |status| status.reason.contains("stale")).await;
    assert!(daemon.stop().success());
    fs::write(site.store_file(), &newest).unwrap();
    let daemon = site.spawn(&[]);
    until_disabled(&daemon).await;
    let mut kms = daemon.kms().await;
    refuses(&mut kms, &sealed).await;
    assert_eq!(daemon.status().await.disabled.unwrap().reason, "lost laptop, INC-7");

    let mut admin = daemon.admin().await;
    let asked = Instant::now();
    let enabled = admin.enable(EnableRequest {}).await.unwrap().into_inner();
    // In the answer already; on a busy machine the call itself may take its time.
    assert_eq!((enabled.changed, enabled.availability.as_str()), (true, "online"));
    println!("enabled and serving after {:?}", asked.elapsed());
    assert_eq!(decrypt(&mut kms, &sealed).await.unwrap(), b"seed");
    assert_eq!(encrypt(&mut kms, b"x").await.key_id, sealed.key_id);
    let status = daemon.status().await;
    assert_eq!((status.disabled, status.epoch), (None, epoch + 2));
    // The disabled record is as worthless now as the one before it.
    drop((kms, admin));
    assert!(daemon.stop().success());
    fs::write(site.store_file(), &newest).unwrap();
    let daemon = site.spawn(&[]);
    daemon.until("stale", |status| status.reason.contains("stale")).await;
}

/// Every request that begins after the answer is refused; none fails for another reason than the one that holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn running_requests_meet_the_refusal_at_one_instant() {
    let site = Site::initialized("");
    let mut daemon = site.serve().await;
    let sealed = encrypt(&mut daemon.kms().await, b"seed").await;
    let (off, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let clients: Vec<_> = (0..8)
        .map(|client| {
            let (off, stop, socket, sealed) = (off.clone(), stop.clone(), site.kms_socket(), sealed.clone());
            tokio::spawn(async move {
                let mut kms = Kms::new(crate::clients::channel(socket).await);
                let (mut served, mut refused) = (0, 0);
                while !stop.load(Ordering::SeqCst) {
                    let was_off = off.load(Ordering::SeqCst);
                    let outcome = match client % 3 {
                        0 => decrypt(&mut kms, &sealed).await.map(drop),
                        1 => kms.status(StatusRequest {}).await.map(drop),
                        _ => {
                            let request = EncryptRequest { plaintext: b"x".to_vec(), uid: "u".into() };
                            kms.encrypt(request).await.map(drop)
                        }
                    };
                    match outcome {
                        Ok(()) => {
                            assert!(!was_off, "served after it was disabled");
                            served += 1;
                        }
                        Err(status) => {
                            // Until it has started again, the client is told to come back.
                            let starting = status.message().ends_with("starting") && !was_off;
                            assert!(status.code() == Code::FailedPrecondition || starting, "{status}");
                            refused += 1;
                        }
                    }
                }
                (served, refused)
            })
        })
        .collect();
    for _ in 0..5 {
        off.store(false, Ordering::SeqCst);
        daemon.until_serving().await;
        disable(&site).expect_success();
        off.store(true, Ordering::SeqCst);
        assert_eq!(daemon.status().await.generations_loaded, 0);
        // Enabling takes the word back before it does anything.
        off.store(false, Ordering::SeqCst);
        enable(&site).expect_success();
    }
    stop.store(true, Ordering::SeqCst);
    for client in clients {
        let (served, refused) = client.await.unwrap();
        assert!(served > 0 && refused > 0, "{served} served, {refused} refused");
    }
}

#[tokio::test]
async fn disabling_killed_at_every_failpoint_is_done_or_was_never_said() {
    let site = Site::initialized("");
    let of_it = ["disable.refused", "disable.marked", "disable.stored"].into_iter();
    let epoch = ["epoch.created", "epoch.record-written", "epoch.old-destroyed"];
    let store = failpoint::NAMES.iter().copied().filter(|name| name.starts_with("store."));
    let mut sealed: Option<EncryptResponse> = None;
    for name in of_it.chain(epoch).chain(store) {
        let mut daemon = site.spawn(&[("KEYSTEAD_KILL_AT", name)]);
        daemon.until_serving().await;
        let mut kms = daemon.kms().await;
        let before = match sealed.take() {
            Some(before) => before,
            None => encrypt(&mut kms, b"seed").await,
        };
        let server = daemon.role("server").expect("a server runs");
        assert!(!disable(&site).status.success(), "{name} was never reached");
        until_gone(server);
        drop(kms);
        daemon.kill();

        // Whoever asked was told that it failed. It is found disabled if anything of it was durable, and serves if not.
        let mut daemon = site.spawn(&[]);
        if name == "disable.refused" {
            daemon.until_serving().await;
        } else {
            until_disabled(&daemon).await;
            refuses(&mut daemon.kms().await, &before).await;
            daemon.until("recorded", |status| status.disabled.as_ref().is_some_and(|disabled| disabled.recorded)).await;
            assert!(!site.path().join("store/disabled").exists(), "{name}: the marker is not needed any more");
            enable(&site).expect_success();
        }
        assert_eq!(decrypt(&mut daemon.kms().await, &before).await.unwrap(), b"seed", "{name}");
        sealed = Some(before);
        assert!(daemon.stop().success(), "{name}");
    }
    let _daemon = site.serve().await;
    disable(&site).expect_success();
    enable(&site).expect_success();
}

#[tokio::test]
async fn enabling_killed_at_every_failpoint_leaves_the_key_disabled_or_enabled_and_never_both() {
    let site = Site::initialized("");
    let daemon = site.serve().await;
    let sealed = encrypt(&mut daemon.kms().await, b"seed").await;
    assert!(daemon.stop().success());
    let of_it = ["enable.stored", "enable.before-publish"].into_iter();
    let epoch = ["epoch.created", "epoch.record-written", "epoch.old-destroyed"];
    let store = failpoint::NAMES.iter().copied().filter(|name| name.starts_with("store."));
    for name in of_it.chain(epoch).chain(store) {
        let daemon = site.serve().await;
        disable(&site).expect_success();
        assert!(daemon.stop().success());
        let daemon = site.spawn(&[("KEYSTEAD_KILL_AT", name)]);
        until_disabled(&daemon).await;
        let server = daemon.role("server").expect("a server runs");
        assert!(!enable(&site).status.success(), "{name} was never reached");
        until_gone(server);
        daemon.kill();

        let written = !(name.starts_with("store.") && name != "store.before-folder-sync" || name == "epoch.created");
        let mut daemon = site.spawn(&[]);
        if !written {
            until_disabled(&daemon).await;
            refuses(&mut daemon.kms().await, &sealed).await;
            assert_eq!(daemon.status().await.disabled.unwrap().reason, "lost laptop, INC-7", "{name}");
            enable(&site).expect_success();
        }
        daemon.until_serving().await;
        assert_eq!(decrypt(&mut daemon.kms().await, &sealed).await.unwrap(), b"seed", "{name}");
        assert!(daemon.stop().success(), "{name}");
    }
}

#[tokio::test]
async fn a_key_disabled_while_the_token_is_away_stays_so_and_the_record_follows() {
    let site = Site::initialized("");
    let daemon = site.serve().await;
    let sealed = encrypt(&mut daemon.kms().await, b"seed").await;
    let (tokens, away) = (site.token.folder.join("tokens"), site.token.folder.join("away"));
    fs::rename(&tokens, &away).unwrap();
    fs::create_dir(&tokens).unwrap();
    daemon.kill_role("custodian", Signal::KILL);
    daemon.until("away", |status| status.availability == "degraded").await;

    let said = disable(&site).expect_success();
    assert!(said.contains("the record does not say so yet"), "{said}");
    refuses(&mut daemon.kms().await, &sealed).await;
    let status = daemon.status().await;
    assert!(!status.disabled.unwrap().recorded);
    assert!(status.warnings.iter().any(|warning| warning.contains("`disabled`")), "{:?}", status.warnings);
    // Enabling needs the token: what makes the record from before worthless is in it.
    let error = enable(&site).expect_failure(4);
    assert!(error.contains("stays disabled"), "{error}");
    daemon.kill();

    let daemon = site.spawn(&[]);
    daemon.until("disabled by its marker", |status| status.availability == "disabled").await;
    refuses(&mut daemon.kms().await, &sealed).await;
    fs::remove_dir_all(&tokens).unwrap();
    fs::rename(&away, &tokens).unwrap();
    daemon.until("recorded", |status| status.disabled.as_ref().is_some_and(|disabled| disabled.recorded)).await;
    assert!(!site.path().join("store/disabled").exists());
    enable(&site).expect_success();
    assert_eq!(decrypt(&mut daemon.kms().await, &sealed).await.unwrap(), b"seed");
}

#[tokio::test]
async fn disabling_during_a_rotation_refuses_at_once_and_the_rotation_ends_unseen() {
    let site = Site::initialized("");
    let (mut daemon, rotating) = site.spawn_held_at("rotation.intent-written");
    daemon.until_serving().await;
    let mut kms = daemon.kms().await;
    let sealed = encrypt(&mut kms, b"seed").await;
    let mut rotation = site.command(["key", "rotate", "--yes"]).stdout(std::process::Stdio::null()).spawn().unwrap();
    let file = site.store_file();
    crate::memory::wait_until("the intent is written", || {
        fs::read_to_string(&file).is_ok_and(|text| !text.contains("\"rotation\": null"))
    });
    let mut disabling = site.command(["key", "disable", "--yes"]).stdout(std::process::Stdio::null()).spawn().unwrap();
    daemon.until("refused", |status| status.availability == "disabled").await;
    refuses(&mut kms, &sealed).await;
    assert!(rotation.try_wait().unwrap().is_none(), "the rotation did not wait");
    rotating.let_go();
    assert!(rotation.wait().unwrap().success() && disabling.wait().unwrap().success());
    refuses(&mut kms, &sealed).await;
    let status = daemon.status().await;
    assert_eq!((status.active_generation, status.generations_loaded), (2, 0));
    enable(&site).expect_success();
    assert_ne!(kms.status(StatusRequest {}).await.unwrap().into_inner().key_id, sealed.key_id);
    assert_eq!(decrypt(&mut kms, &sealed).await.unwrap(), b"seed");
}

#[tokio::test]
async fn rotation_cut_off_before_the_key_was_disabled_waits_until_it_is_enabled() {
    let site = Site::initialized("");
    let mut daemon = site.spawn(&[("KEYSTEAD_KILL_AT", "rotation.verified")]);
    daemon.until_serving().await;
    let server = daemon.role("server").expect("a server runs");
    site.keystead(["key", "rotate", "--yes"]);
    until_gone(server);
    daemon.kill();
    fs::write(site.path().join("store/disabled"), "").unwrap();
    let daemon = site.spawn(&[]);
    daemon.until("recorded", |status| status.disabled.as_ref().is_some_and(|disabled| disabled.recorded)).await;
    assert_eq!(daemon.status().await.active_generation, 1);
    let error = site.rotate().expect_failure(4);
    assert!(error.contains("key enable"), "{error}");
    enable(&site).expect_success();
    assert_eq!(daemon.status().await.active_generation, 2, "finished at the start that enabling leads to");
}

#[tokio::test]
async fn what_opens_keys_is_refused_while_disabled_and_what_only_looks_is_not() {
    let site = Site::initialized("");
    let pem = site.path().join("public.pem");
    fs::write(&pem, crate::recovery::new_public_key()).unwrap();
    let daemon = site.serve().await;
    let sealed = encrypt(&mut daemon.kms().await, b"seed").await;
    disable(&site).expect_success();
    let out = site.path().join("rescue.txt");
    for refused in [
        &["key", "rotate", "--yes", "--force", "for a test"][..],
        &["roots", "rescue", "--to", pem.to_str().unwrap(), "--out", out.to_str().unwrap()],
    ] {
        let output = site.command([]).args(refused).output().unwrap();
        let error = output.expect_failure(4);
        for allowed in ["disabled by", "`keystead key enable`", "`etcd scan`", "`lease extend`"] {
            assert!(error.contains(allowed), "{refused:?}: {error}");
        }
    }
    assert!(!out.exists());
    for allowed in [&["key", "list"][..], &["roots", "list"], &["audit", "verify"], &["custodian", "restart"]] {
        site.command([]).args(allowed).output().unwrap().expect_success();
    }
    // A scan is kept, and the word on the key with it.
    let etcd = crate::etcd::Etcd::start();
    etcd.put_secret("a", "edge", &sealed);
    assert_eq!(crate::scan::scan(&site, &etcd.arguments())["recorded"], true);
    let status = daemon.status().await;
    assert_eq!((status.availability.as_str(), status.generations_loaded), ("disabled", 0));
    assert!(status.disabled.is_some_and(|disabled| disabled.recorded) && status.scan.is_some());
    assert!(fs::read_to_string(site.store_file()).unwrap().contains("\"disabled\""));
}

#[tokio::test]
async fn commands_that_contradict_each_other_have_one_outcome_each() {
    let site = Site::initialized("");
    let (mut daemon, disabling) = site.spawn_held_at("disable.stored");
    daemon.until_serving().await;
    let sealed = encrypt(&mut daemon.kms().await, b"seed").await;
    // Two disable, and one enables while they are at it.
    let (mut first, mut second, mut third) = (daemon.admin().await, daemon.admin().await, daemon.admin().await);
    let first = tokio::spawn(async move { first.disable(DisableRequest { reason: "first".into() }).await });
    daemon.until("refused", |status| status.availability == "disabled").await;
    let second = tokio::spawn(async move { second.disable(DisableRequest { reason: "second".into() }).await });
    disabling.let_go();
    let first = first.await.unwrap().unwrap().into_inner();
    let second = second.await.unwrap().unwrap().into_inner();
    assert!(first.changed && !second.changed);
    // The first word on it stands.
    assert_eq!(second.disabled.unwrap().reason, "first");
    let enabled = third.enable(EnableRequest {}).await.unwrap().into_inner();
    assert!(enabled.changed);
    assert!(!third.enable(EnableRequest {}).await.unwrap().into_inner().changed);

    // Enabling that comes while the key is being disabled waits, and then enables.
    let (mut off, mut on) = (daemon.admin().await, daemon.admin().await);
    let off = tokio::spawn(async move { off.disable(DisableRequest::default()).await });
    daemon.until("refused", |status| status.availability == "disabled").await;
    let on = on.enable(EnableRequest {}).await;
    let off = off.await.unwrap();
    // Whichever came first to the record: what each was told is how it is.
    let status = daemon.status().await;
    match (&off, &on) {
        (_, Ok(_)) => assert_eq!(status.availability, "online", "{off:?} {on:?}"),
        (Ok(_), Err(_)) => assert_eq!(status.availability, "disabled", "{off:?} {on:?}"),
        (Err(_), Err(_)) => panic!("{off:?} {on:?}"),
    }
    enable(&site).expect_success();
    assert_eq!(decrypt(&mut daemon.kms().await, &sealed).await.unwrap(), b"seed");
}

/// A key that is disabled anew while it is being enabled stays disabled, and whoever enables is told so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn enabling_that_is_overtaken_undoes_nothing() {
    let site = Site::initialized("");
    let (mut daemon, enabling) = site.spawn_held_at("enable.before-publish");
    daemon.until_serving().await;
    let mut kms = daemon.kms().await;
    let sealed = encrypt(&mut kms, b"seed").await;
    disable(&site).expect_success();
    let (mut on, mut off) = (daemon.admin().await, daemon.admin().await);
    let file = site.store_file();
    let on = tokio::spawn(async move { on.enable(EnableRequest {}).await });
    crate::memory::wait_until("the record is written", || {
        fs::read_to_string(&file).is_ok_and(|text| !text.contains("\"disabled\""))
    });
    let off = tokio::spawn(async move { off.disable(DisableRequest { reason: "again".into() }).await });
    crate::memory::wait_until("it is told to", || daemon.log().contains("is so already"));
    enabling.let_go();
    let on = on.await.unwrap().unwrap_err();
    assert_eq!(on.code(), Code::Aborted);
    assert!(on.message().contains("stays disabled"), "{on}");
    off.await.unwrap().unwrap();
    refuses(&mut kms, &sealed).await;
    assert!(fs::read_to_string(&file).unwrap().contains("\"disabled\""), "and the record says so");
}

#[tokio::test]
async fn a_client_that_hangs_up_leaves_nothing_half_done() {
    let site = Site::initialized("");
    let (mut daemon, disabling) = site.spawn_held_at("disable.marked");
    daemon.until_serving().await;
    let sealed = encrypt(&mut daemon.kms().await, b"seed").await;
    let mut client = site.command(["key", "disable", "--yes"]).spawn().unwrap();
    daemon.until("refused", |status| status.availability == "disabled").await;
    client.kill().unwrap();
    client.wait().unwrap();
    disabling.let_go();
    daemon.until("recorded", |status| status.disabled.as_ref().is_some_and(|disabled| disabled.recorded)).await;
    assert!(daemon.stop().success());

    let (mut daemon, enabling) = site.spawn_held_at("enable.stored");
    daemon.until("disabled still", |status| status.availability == "disabled").await;
    let mut client = site.command(["key", "enable", "--yes"]).spawn().unwrap();
    let file = site.store_file();
    crate::memory::wait_until("the record is written", || {
        fs::read_to_string(&file).is_ok_and(|text| !text.contains("\"disabled\""))
    });
    client.kill().unwrap();
    client.wait().unwrap();
    enabling.let_go();
    daemon.until_serving().await;
    assert_eq!(decrypt(&mut daemon.kms().await, &sealed).await.unwrap(), b"seed");
    let outcomes = site.keystead(["audit", "query", "--outcome", "done", "--output", "json"]).expect_success();
    assert!(outcomes.contains("\"disable\"") && outcomes.contains("\"enable\""), "{outcomes}");
}

/// The on-site form of a cloud policy that denies "enable or disable" to a user, whatever else he was granted.
#[tokio::test]
async fn a_policy_that_denies_enable_and_disable_wins_over_every_role() {
    let site = Site::initialized("");
    let everything = "[roles]\nviewer = { uids = [UID] }\noperator = { uids = [UID] }\ncrypto-admin = { uids = [UID] }\n\
                      auditor = { uids = [UID] }\n";
    let denied = "[[roles.deny]]\nactions = [\"disable\", \"enable\"]\nuids = [UID]\n";
    with_roles(&site, &format!("{everything}{denied}").replace("UID", &own_uid().to_string()));
    let daemon = site.serve().await;
    for refused in [disable(&site), enable(&site)] {
        let error = refused.expect_failure(4);
        assert!(error.contains("a rule denies it") && error.contains("[roles]"), "{error}");
    }
    assert_eq!(daemon.status().await.availability, "online");
    let refused = site.keystead(["audit", "query", "--outcome", "refused", "--output", "json"]).expect_success();
    assert!(refused.contains("\"disable\"") && refused.contains("\"enable\""), "{refused}");
    // What was not denied is allowed as before.
    site.keystead(["key", "rotate", "--yes"]).expect_success();
    assert!(daemon.stop().success());

    // A crypto-admin may; a viewer and an operator may not.
    with_roles(&site, &"[roles]\ncrypto-admin = { uids = [UID] }".replace("UID", &own_uid().to_string()));
    let daemon = site.serve().await;
    disable(&site).expect_success();
    assert!(daemon.stop().success());
    let lookers = "[roles]\nviewer = { uids = [UID] }\noperator = { uids = [UID] }\nauditor = { uids = [UID] }";
    with_roles(&site, &lookers.replace("UID", &own_uid().to_string()));
    let daemon = site.spawn(&[]);
    until_disabled(&daemon).await;
    enable(&site).expect_failure(4);
    let trail = site.keystead(["audit", "query", "--action", "disable", "--output", "json"]).expect_success();
    let intent = trail.find("\"intent\"").expect("an intent");
    let done = trail[intent..].find("\"done\"");
    assert!(done.is_some() && trail.contains("lost laptop, INC-7"), "{trail}");
    assert_eq!(daemon.status().await.availability, "disabled");
}

/// Nobody there to ask is a mistake of the caller; a reason that is none is one as well.
#[tokio::test]
async fn without_a_terminal_yes_must_be_said() {
    let site = Site::initialized("");
    let daemon = site.serve().await;
    for command in ["disable", "enable"] {
        let error = site.keystead(["key", command]).expect_failure(2);
        assert!(error.contains("--yes"), "{error}");
    }
    site.keystead(["key", "disable", "--yes", "--reason", ""]).expect_failure(2);
    let error = daemon.admin().await.disable(DisableRequest { reason: "a\nb".into() }).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert_eq!(daemon.status().await.availability, "online");
}
