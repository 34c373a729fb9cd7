//! Rotation on the running daemon.

use keystead_wire::admin::v1::{ListGenerationsRequest, RotateRequest};
use keystead_wire::kms::v2::StatusRequest;

use crate::daemon::{Finished, Site, decrypt, encrypt};

#[tokio::test]
async fn rotation_changes_the_key_id_and_old_ciphertexts_still_open() {
    let site = Site::initialized("");
    let daemon = site.serve().await;
    let mut kms = daemon.kms().await;
    let mut sealed = vec![encrypt(&mut kms, b"generation 1").await];
    for number in 2..=5 {
        let json =
            site.keystead(["key", "rotate", "--yes", "--force", "for a test", "--output", "json"]).expect_success();
        let status = kms.status(StatusRequest {}).await.unwrap().into_inner();
        assert!(json.contains(&status.key_id), "{json}");
        sealed.push(encrypt(&mut kms, format!("generation {number}").as_bytes()).await);
        assert_eq!(sealed.last().unwrap().key_id, status.key_id);
    }
    let distinct: std::collections::HashSet<_> = sealed.iter().map(|encrypted| &encrypted.key_id).collect();
    assert_eq!(distinct.len(), sealed.len());
    drop(kms);
    assert!(daemon.stop().success());

    let daemon = site.serve().await;
    let mut kms = daemon.kms().await;
    for (index, encrypted) in sealed.iter().enumerate() {
        assert_eq!(decrypt(&mut kms, encrypted).await.unwrap(), format!("generation {}", index + 1).as_bytes());
    }
    // A ciphertext under another generation's key ID is refused.
    let mut mixed = sealed[0].clone();
    mixed.key_id.clone_from(&sealed[1].key_id);
    assert_eq!(decrypt(&mut kms, &mixed).await.unwrap_err().code(), tonic::Code::InvalidArgument);
}

#[tokio::test]
async fn status_and_encrypt_never_disagree_beyond_one_switch_under_load() {
    let site = Site::initialized("");
    let daemon = site.serve().await;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let watchers: Vec<_> = (0..4)
        .map(|_| {
            let (stop, daemon_kms) = (stop.clone(), site.kms_socket());
            tokio::spawn(async move {
                let mut kms = crate::daemon::Kms::new(crate::clients::channel(daemon_kms).await);
                let mut seen: Vec<String> = Vec::new();
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let before = kms.status(StatusRequest {}).await.unwrap().into_inner().key_id;
                    let used = encrypt(&mut kms, b"seed").await.key_id;
                    let after = kms.status(StatusRequest {}).await.unwrap().into_inner().key_id;
                    // Encrypt may be on the new key only if Status, asked later, is too: no way back.
                    assert!(used == before || used == after, "{before} {used} {after}");
                    for id in [before, used, after] {
                        if seen.last() != Some(&id) {
                            assert!(!seen.contains(&id), "the key ID went back to {id}");
                            seen.push(id);
                        }
                    }
                }
                seen.len()
            })
        })
        .collect();
    let mut admin = daemon.admin().await;
    for _ in 0..3 {
        let mut progress = admin.rotate(RotateRequest { force: "for a test".into() }).await.unwrap().into_inner();
        let mut steps = Vec::new();
        while let Some(step) = progress.message().await.unwrap() {
            steps.push(step.step);
        }
        assert_eq!(steps, ["prepared", "verified", "activated"]);
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for watcher in watchers {
        assert!(watcher.await.unwrap() >= 2, "no watcher saw a rotation");
    }
    let generations = admin.list_generations(ListGenerationsRequest {}).await.unwrap().into_inner().generations;
    let states: Vec<_> = generations.iter().map(|generation| generation.state.as_str()).collect();
    assert_eq!(states, ["retired", "retired", "retired", "active"]);
}

#[tokio::test]
async fn ten_thousand_decrypts_after_a_restart_unwrap_each_generation_once() {
    let site = Site::initialized("");
    let daemon = site.serve().await;
    let mut kms = daemon.kms().await;
    let mut sealed = vec![encrypt(&mut kms, b"1").await];
    for _ in 0..3 {
        site.rotate().expect_success();
        sealed.push(encrypt(&mut kms, b"n").await);
    }
    drop(kms);
    assert!(daemon.stop().success());
    let daemon = site.serve().await;
    let kms = daemon.kms().await;
    let tasks: Vec<_> = (0..100)
        .map(|task| {
            let (mut kms, sealed) = (kms.clone(), sealed.clone());
            tokio::spawn(async move {
                for request in 0..100 {
                    decrypt(&mut kms, &sealed[(task + request) % sealed.len()]).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let metrics = crate::clients::metrics(&daemon).await;
    // And one more of the active generation, behind the start: it puts custody's canary on the newest CMK.
    assert_eq!(crate::clients::sample(&metrics, "keystead_custody_operations_total", "unwrap"), 5.0, "{metrics}");
}
