//! What can happen to a site while its cloud is away, with the state that it leads to.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use keystead_wire::admin::v1::GetStatusResponse;
use tonic::Code;

use super::rig::CloudSite;
use crate::clients::kms_code;
use crate::daemon::{Daemon, Finished, decrypt, encrypt, until_gone};
use crate::memory::wait_until;
use crate::token::Make;

/// One line of the matrix: what happened to the site, and what became of it.
fn told(fault: &str, outcome: &str) {
    println!("{fault:<44} {outcome}");
}

fn left(status: &GetStatusResponse) -> u64 {
    status.upstream.as_ref().map_or(0, |upstream| upstream.lease_remaining_seconds)
}

fn degraded(status: &GetStatusResponse) -> bool {
    status.availability == "degraded" && status.upstream.as_ref().is_some_and(|upstream| !upstream.up)
}

/// Serving once, then cut off and stopped; and what it encrypted.
async fn cut_off(extra: &str) -> (CloudSite, keystead_wire::kms::v2::EncryptResponse) {
    let site = CloudSite::initialized(extra);
    let daemon = site.serve().await;
    let sealed = encrypt(&mut daemon.kms().await, b"seed").await;
    site.cloud.fault("refuse");
    assert!(daemon.stop().success());
    (site, sealed)
}

/// No second try within a start: those take most of its time while nobody answers.
const BRISK: &str = "connect_timeout = \"100ms\"\ntimeout = \"100ms\"";

/// Half of them in good order, half as by a power cut.
#[tokio::test]
async fn fifty_restarts_offline_serve_and_cost_only_the_time_that_passed() {
    let (site, sealed) = cut_off("").await;
    site.configure(BRISK);
    let started = std::time::Instant::now();
    for restart in 0..50 {
        let mut daemon = site.site.spawn(&[]);
        daemon.until_serving().await;
        assert_eq!(decrypt(&mut daemon.kms().await, &sealed).await.unwrap(), b"seed");
        if restart % 2 == 0 {
            assert!(daemon.stop().success());
        } else {
            daemon.kill();
        }
    }
    let mut daemon = site.site.spawn(&[]);
    daemon.until_serving().await;
    let spent = 72 * 3600 - left(&daemon.status().await);
    let passed = started.elapsed().as_secs();
    assert!(spent <= passed + 15, "{spent} s of the lease for {passed} s");
    told("50 restarts offline, half of them killed", &format!("degraded, serves; {spent} s of lease for {passed} s"));
}

/// Runs in namespaces of its own, where the boot has another ID, or the store's disk is small.
fn story(site: &CloudSite, script: &str) {
    // This machine may have been up for longer than the lease of a test.
    let up = rustix::time::clock_gettime(rustix::time::ClockId::Boottime).tv_sec;
    let output = Command::new("unshare")
        .args(["-Urm", "--time", &format!("--boottime=-{}", up.saturating_sub(30))])
        .args(["bash", "-c", &format!("{PROLOGUE}{script}echo done\n")])
        .env("SITE", site.site.path())
        .env("UP", up.to_string())
        .env("KEYSTEAD", env!("CARGO_BIN_EXE_keystead"))
        .env("KEYSTEAD_CONFIG", site.site.config())
        .env("CONTROL", site.cloud.control())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.ends_with("done\n"), "{said}{}", String::from_utf8_lossy(&output.stderr));
    print!("{}", said.trim_end_matches("done\n"));
    output.expect_success();
}

const PROLOGUE: &str = r#"
set -eu
daemon=
trap '[ -z "$daemon" ] || kill $daemon 2>/dev/null || true' EXIT
order() {
    exec 3<>"/dev/tcp/${CONTROL%:*}/${CONTROL#*:}"
    printf 'POST /control HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s' "${#1}" "$1" >&3
    grep -q '"ok": true' <&3 || { echo "the rig refuses $1"; exit 1; }
    exec 3<&-
}
act() { order "{\"action\": \"$1\"}"; }
fault() { order "{\"action\": \"fault\", \"fault\": \"$1\"}"; }
field() { "$KEYSTEAD" status --output json 2>/dev/null | sed -n "s/^ *\"$1\": \"\{0,1\}\([^\",]*\)\"\{0,1\},*\$/\1/p" | head -n 1; }
until_is() { for _ in $(seq 600); do [ "$(field availability)" = "$1" ] && return 0; sleep 0.05; done; echo "never $1:"; "$KEYSTEAD" status || true; tail -n 20 "$SITE/log"; return 1; }
serve() { "$KEYSTEAD" serve 2>>"$SITE/log" & daemon=$!; until_is "$1"; }
stop() { kill $daemon; wait $daemon; daemon=; }
opens() { [ "$("$KEYSTEAD" kms decrypt <"$SITE/sealed" 2>/dev/null)" = seed ]; }
refuses() { for each in status; do ! "$KEYSTEAD" kms $each >/dev/null 2>&1 || return 1; done; ! opens; }
boot() { printf '%s\n' "$1" >"$SITE/boot_id"; mount --bind "$SITE/boot_id" /proc/sys/kernel/random/boot_id; }
"#;

#[tokio::test]
async fn reboot_offline_serves_costs_the_floor_and_ends_a_lease_that_is_too_short() {
    let (site, _) = cut_off("lease = \"40m\"").await;
    site.cloud.act("clear");
    story(
        &site,
        r#"
serve online
printf seed | "$KEYSTEAD" kms encrypt --output json >"$SITE/sealed"
fault refuse
until_is degraded
stop
boot 11111111-1111-4111-8111-111111111111
serve degraded
opens
[ "$(field lease_remaining_seconds)" -le 1500 ]
stop
# A restart within the boot costs nothing more.
serve degraded
[ "$(field lease_remaining_seconds)" -gt 1200 ]
stop
umount /proc/sys/kernel/random/boot_id
boot 22222222-2222-4222-8222-222222222222
serve degraded
opens
[ "$(field lease_remaining_seconds)" -le 600 ]
stop
umount /proc/sys/kernel/random/boot_id
boot 33333333-3333-4333-8333-333333333333
serve expired
refuses
stop
serve expired
act clear
until_is online
opens
stop
"#,
    );
    told("reboot offline", "degraded, serves; 15 min of lease each, expired when that is more than is left");
}

/// Killed before it has read anything, while it asks, when it serves. On Kryoptic: SoftHSM
/// writes its token anew at every login, in place, and one that is killed meanwhile leaves none behind.
#[test]
fn crash_loop_within_a_boot_pays_the_floor_once_and_writes_nothing_of_its_own() {
    let site = CloudSite::initialized_on(Make::Kryoptic);
    story(
        &site,
        r#"
serve online
printf seed | "$KEYSTEAD" kms encrypt --output json >"$SITE/sealed"
fault refuse
until_is degraded
stop
sed -i 's/^connect_timeout = .*/connect_timeout = "100ms"/; s/^timeout = .*/timeout = "100ms"/' "$KEYSTEAD_CONFIG"
boot 11111111-1111-4111-8111-111111111111
serve degraded
before=$(field lease_remaining_seconds) revision=$(field store_revision)
[ "$before" -le $((259200 - 900)) ] && [ "$before" -gt $((259200 - 1000)) ] || { echo "$before left after a boot"; exit 1; }
stop
SECONDS=0 earlier=$(grep -c '"lease read"' "$SITE/log")
for crash in $(seq 300); do
    if [ $((crash % 15)) = 0 ]; then
        serve degraded
        { kill -KILL $daemon; wait $daemon || true; } 2>/dev/null
        daemon=
    else
        { timeout --signal=KILL "0.0$((crash % 6 + 1))" "$KEYSTEAD" serve 2>>"$SITE/log" || true; } 2>/dev/null
    fi
done
read=$(($(grep -c '"lease read"' "$SITE/log") - earlier))
[ "$read" -ge 20 ] || { echo "the lease was read $read times only"; exit 1; }
passed=$SECONDS
serve degraded
opens
left=$(field lease_remaining_seconds) written=$(($(field store_revision) - revision))
[ "$left" -le "$before" ] && [ "$left" -ge $((before - passed - 15)) ] || { echo "$left of $before left after $passed s"; exit 1; }
[ "$written" -le 2 ] || { echo "$written stores"; exit 1; }
stop
echo "300 crashes in $passed s, lease read $read times: $((before - left)) s of lease, $written stores"
"#,
    );
}

/// Refused for forty minutes of boot time, which only a time namespace can let pass: a process in each third of them. The
/// kernel's own clock has moved on for the next one, and the boot is the same.
#[tokio::test]
async fn permission_withdrawn_for_half_an_hour_is_a_revocation() {
    let site = CloudSite::initialized("");
    story(
        &site,
        r#"
until_says() { for _ in $(seq 600); do "$KEYSTEAD" status | grep -q "$1" && return 0; sleep 0.05; done; "$KEYSTEAD" status; return 1; }
serve_after() { unshare --time --boottime="$(($1 - UP + 30))" "$KEYSTEAD" serve 2>>"$SITE/log" & daemon=$!; }
serve online
printf seed | "$KEYSTEAD" kms encrypt --output json >"$SITE/sealed"
act deny
until_is degraded
# Refused often, and not for long.
until_says 'three refusals over half'
for _ in $(seq 20); do opens; sleep 0.1; done
[ "$(field availability)" = degraded ]
stop

serve_after 1200
until_is degraded
opens
stop

serve_after 2400
until_is revoked
refuses
fault refuse
stop
serve_after 2400
until_is revoked
refuses
act allow
act clear
until_is online
opens
stop
# Given back, and forgiven: it begins anew.
act deny
serve_after 2460
until_is degraded
opens
stop
"#,
    );
    told("permission withdrawn for 40 min", "degraded, serves; after half an hour revoked, also after a restart");
}

#[tokio::test]
async fn full_disk_neither_stops_the_service_nor_a_revocation() {
    let site = CloudSite::bare("");
    story(
        &site,
        r#"
store=$SITE/store
mkdir -p "$store"
mount -t tmpfs -o size=128k,mode=0700 tmpfs "$store"
"$KEYSTEAD" init --no-recovery >/dev/null
serve online
printf seed | "$KEYSTEAD" kms encrypt --output json >"$SITE/sealed"
opens
dd if=/dev/zero of="$store/filler" bs=1k 2>/dev/null || true

# Renewals go on, and so does an outage.
fault refuse
until_is degraded
opens
act clear
until_is online
opens

act disable-key
until_is revoked
refuses
fault refuse
stop
serve revoked
refuses
act clear
act enable-key
until_is online
opens
rm "$store/filler"
stop
"#,
    );
    told("disk full at renewal", "online, then degraded, serves");
    told("disk full at revocation", "revoked, also after a restart");
}

/// A card that does not answer a sync any more, for ever. Everything else goes on, and the server, whose keys may be the last
/// copy, is not taken for dead.
#[tokio::test]
async fn disk_that_hangs_keeps_nobody_from_serving_or_from_hearing_a_revocation() {
    let site = CloudSite::initialized("renew_every = \"1s\"\nprobe_interval = \"1s\"");
    let mut daemon = site.site.spawn(&[("FAILPOINTS", "store.before-sync=pause")]);
    daemon.until_serving().await;
    let server = daemon.role("server");
    // A return is stored at once.
    site.cloud.fault("refuse");
    daemon.until("down", degraded).await;
    site.cloud.act("clear");
    let unfinished = site.site.path().join("store/keyring.store.new");
    wait_until("the store hangs", || unfinished.exists());

    let sealed = encrypt(&mut daemon.kms().await, b"seed").await;
    let before = site.cloud.requests().len();
    // Longer than the supervisor's patience with a server that is stuck.
    let hung = std::time::Instant::now();
    while hung.elapsed() < Duration::from_secs(12) {
        assert_eq!(decrypt(&mut daemon.kms().await, &sealed).await.unwrap(), b"seed");
        daemon.until("told", |status| status.availability == "online").await;
    }
    assert!(site.cloud.requests().len() >= before + 6, "renewals stand still");
    assert_eq!(daemon.role("server"), server, "the server was taken for stuck:\n{}", daemon.log());
    assert!(unfinished.exists());

    site.cloud.act("disable-key");
    let asked = std::time::Instant::now();
    while kms_code(&site.site).await != Code::FailedPrecondition {
        assert!(asked.elapsed() < crate::daemon::DEADLINE, "never refused:\n{}", daemon.log());
    }
    assert!(decrypt(&mut daemon.kms().await, &sealed).await.is_err());
    daemon.until("revoked", |status| status.availability == "revoked").await;
    assert!(site.site.path().join("store/revoked").exists(), "the marker needs no record");
    assert_eq!(daemon.role("server"), server);
    daemon.kill();
    told("disk hangs for ever", "online; revoked once the cloud says so, also after a restart");
    site.cloud.fault("refuse");
    let daemon = site.site.spawn(&[]);
    daemon.until("revoked", |status| status.availability == "revoked").await;
}

#[tokio::test]
async fn clock_that_is_wrong_by_a_year_or_in_1970_gains_and_loses_nothing() {
    let (site, sealed) = cut_off("").await;
    let preload = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"]
        .iter()
        .map(|folder| Path::new(folder).join("faketime/libfaketime.so.1"))
        .find(|library| library.exists())
        .expect("libfaketime is not installed (package faketime; scripts/test installs it)");
    let preload = preload.to_str().unwrap();
    let mut least = 72 * 3600;
    for clock in ["-365d", "+365d", "+0d", "-20000d"] {
        let daemon = site.site.spawn(&[("LD_PRELOAD", preload), ("FAKETIME", clock)]);
        let status = daemon.until("serving by the offline copy", degraded).await;
        assert!(left(&status) <= least, "{clock} gained {} s", left(&status) - least);
        least = left(&status);
        assert!(least > 72 * 3600 - 600, "{clock}: {least} s are left");
        assert_eq!(decrypt(&mut daemon.kms().await, &sealed).await.unwrap(), b"seed");
        assert!(daemon.stop().success());
    }
    site.cloud.act("clear");
    for clock in ["-20000d", "-365d"] {
        let daemon = site.site.spawn(&[("LD_PRELOAD", preload), ("FAKETIME", clock)]);
        daemon.until("online by the cloud's clock", |status| status.availability == "online").await;
        assert!(daemon.stop().success());
    }
    told("clock back a year, forward, back, to 1970", "degraded, serves; nothing gained, nothing lost");
    told("clock in 1970, cloud there", "online");
}

#[tokio::test]
async fn folder_restored_from_before_a_revocation_serves_nothing() {
    let site = CloudSite::initialized("");
    let daemon = site.serve().await;
    let yesterday = site.site.path().join("yesterday");
    let store = site.site.path().join("store");
    copy(&store, &yesterday);
    site.cloud.act("disable-key");
    daemon.until("revoked", |status| status.availability == "revoked").await;
    // Until the copies are shredded by a new epoch.
    let epoch = daemon.status().await.epoch;
    daemon.until("shredded", |status| status.epoch > epoch || status.epoch > 2).await;
    assert!(daemon.stop().success());
    site.cloud.fault("refuse");
    fs::remove_dir_all(&store).unwrap();
    copy(&yesterday, &store);
    let daemon = site.site.spawn(&[]);
    let status = daemon.until("refused as stale", |status| status.reason.contains("stale")).await;
    assert_eq!(status.availability, "sealed");
    assert_eq!(kms_code(&site.site).await, Code::Unavailable);
    told("state folder of yesterday, after a revocation", "sealed as stale");
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

#[tokio::test]
async fn server_killed_during_a_renewal_serves_on_offline() {
    for name in ["renewal.answered", "renewal.before-store", "renewal.stored"] {
        let site = CloudSite::initialized("");
        let daemon = site.site.spawn(&[("KEYSTEAD_KILL_AT", name)]);
        if name != "renewal.answered" {
            // The end of an outage is worth a write.
            daemon.until("online", |status| status.availability == "online").await;
            site.cloud.fault("refuse");
            daemon.until("cut off", degraded).await;
            site.cloud.act("clear");
        }
        killed(&daemon).await;
        site.cloud.fault("refuse");
        daemon.kill();
        let daemon = site.site.spawn(&[]);
        daemon.until(name, degraded).await;
        let sealed = encrypt(&mut daemon.kms().await, b"seed").await;
        assert_eq!(decrypt(&mut daemon.kms().await, &sealed).await.unwrap(), b"seed");
    }
    told("SIGKILL during a renewal, then offline", "degraded, serves");
}

/// Killed before the marker was raised nothing knows of the revocation but the cloud; from then on everything does.
#[tokio::test]
async fn server_killed_during_a_revocation_serves_nothing_afterwards() {
    for (name, known_here) in
        [("revocation.refused", false), ("revocation.marked", true), ("revocation.shredded", true)]
    {
        let site = CloudSite::initialized("");
        let mut daemon = site.site.spawn(&[("KEYSTEAD_KILL_AT", name)]);
        daemon.until_serving().await;
        let server = daemon.role("server").expect("a server runs");
        site.cloud.act("disable-key");
        until_gone(server);
        if known_here {
            site.cloud.fault("refuse");
        }
        daemon.kill();
        let daemon = site.site.spawn(&[]);
        daemon.until(name, |status| status.availability == "revoked").await;
        assert_eq!(kms_code(&site.site).await, Code::FailedPrecondition, "{name}");
        site.cloud.act("clear");
        site.cloud.act("enable-key");
        daemon.until("back", |status| status.availability == "online").await;
    }
    told("SIGKILL during a revocation", "revoked");
}

/// The marker stays up until everything else is on the disk again: so without the cloud it is revoked still.
#[tokio::test]
async fn server_killed_while_the_key_is_given_back_waits_for_the_cloud_again() {
    for name in ["return.before-store", "return.stored"] {
        let site = CloudSite::initialized("");
        let daemon = site.serve().await;
        let sealed = encrypt(&mut daemon.kms().await, b"seed").await;
        site.cloud.act("disable-key");
        daemon.until("shredded", |status| status.availability == "revoked" && status.epoch > 1).await;
        site.cloud.fault("refuse");
        assert!(daemon.stop().success());
        let daemon = site.site.spawn(&[("KEYSTEAD_KILL_AT", name)]);
        daemon.until("revoked", |status| status.availability == "revoked").await;
        site.cloud.act("enable-key");
        site.cloud.act("clear");
        killed(&daemon).await;
        site.cloud.fault("refuse");
        daemon.kill();
        let daemon = site.site.spawn(&[]);
        daemon.until(name, |status| status.availability == "revoked").await;
        assert_eq!(kms_code(&site.site).await, Code::FailedPrecondition, "{name}");
        site.cloud.act("clear");
        daemon.until("back", |status| status.availability == "online").await;
        assert_eq!(decrypt(&mut daemon.kms().await, &sealed).await.unwrap(), b"seed");
        // Once it is all done, also without the cloud.
        daemon.until("copies made anew", |status| status.upstream.as_ref().unwrap().copies_complete).await;
        assert!(daemon.stop().success());
    }
    told("SIGKILL while the key is given back", "revoked until the cloud opens it again");
}

/// Waits until its server was killed by a failpoint.
async fn killed(daemon: &Daemon) {
    let started = std::time::Instant::now();
    while !daemon.log().contains("ended unexpectedly") {
        assert!(started.elapsed() < crate::daemon::DEADLINE, "the point was never reached:\n{}", daemon.log());
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn hsm_that_goes_while_offline_is_served_through() {
    let site = CloudSite::initialized("");
    let daemon = site.serve().await;
    let sealed = encrypt(&mut daemon.kms().await, b"seed").await;
    site.cloud.fault("refuse");
    daemon.until("offline", degraded).await;
    let tokens = site.site.token.folder.join("tokens");
    fs::rename(&tokens, tokens.with_extension("away")).unwrap();
    daemon.kill_role("custodian", rustix::process::Signal::KILL);
    let custody = |status: &GetStatusResponse| status.custody.as_ref().unwrap().state.clone();
    let status = daemon
        .until("both away", |status| {
            degraded(status) && !matches!(custody(status).as_str(), "ready" | "starting" | "restarting")
        })
        .await;
    assert!(!status.reboot.as_ref().unwrap().survives, "{status:?}");
    assert!(status.apiserver_restart.as_ref().unwrap().survives, "{status:?}");
    assert_eq!(decrypt(&mut daemon.kms().await, &sealed).await.unwrap(), b"seed");
    // The cloud alone can still take the key away.
    site.cloud.act("clear");
    site.cloud.act("disable-key");
    daemon.until("revoked without custody", |status| status.availability == "revoked").await;
    assert_eq!(kms_code(&site.site).await, Code::FailedPrecondition);
    fs::rename(tokens.with_extension("away"), &tokens).unwrap();
    site.cloud.act("enable-key");
    daemon.until("back", |status| status.availability == "online").await;
    assert_eq!(decrypt(&mut daemon.kms().await, &sealed).await.unwrap(), b"seed");
    told("HSM away while offline", "degraded, serves; a reboot is not survived; revoked by the cloud all the same");
}

/// The store's card falls out: what is in memory is served, and revoked.
#[tokio::test]
async fn store_that_goes_while_offline_is_served_through() {
    let site = CloudSite::initialized("");
    let daemon = site.serve().await;
    let sealed = encrypt(&mut daemon.kms().await, b"seed").await;
    site.cloud.fault("refuse");
    daemon.until("offline", degraded).await;
    fs::remove_dir_all(site.site.path().join("store")).unwrap();
    assert_eq!(decrypt(&mut daemon.kms().await, &sealed).await.unwrap(), b"seed");
    site.cloud.act("clear");
    daemon.until("online", |status| status.availability == "online").await;
    assert_eq!(decrypt(&mut daemon.kms().await, &sealed).await.unwrap(), b"seed");
    site.cloud.act("disable-key");
    daemon.until("revoked without a disk", |status| status.availability == "revoked").await;
    assert_eq!(kms_code(&site.site).await, Code::FailedPrecondition);
    told("SD card lost while offline", "degraded, serves; revoked by the cloud all the same");
}
