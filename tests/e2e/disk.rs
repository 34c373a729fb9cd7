//! The store's disk full, and read-only: a small file system of the test's own, in a mount namespace of its own.

use std::process::Command;

use crate::daemon::{Finished, Site};

/// What both stories begin with.
const WORDS: &str = r#"
set -eu
store=$SITE/store
mkdir -p "$store"
mount -t tmpfs -o "size=$SIZE,mode=0700" tmpfs "$store"
expect() {
    local wanted=$1 code=0
    shift
    "$@" >"$SITE/out" 2>&1 || code=$?
    [ "$code" = "$wanted" ] || { echo "$* ended with $code, not $wanted:"; cat "$SITE/out" "$SITE/log"; exit 1; }
}
says() { grep -q "$1" "$SITE/out" || { echo "no '$1' in:"; cat "$SITE/out"; exit 1; }; }
until_true() { for _ in $(seq 600); do if "$@" >/dev/null 2>&1; then return 0; fi; sleep 0.05; done; echo "never: $*"; cat "$SITE/log"; return 1; }
serve() { $KEYSTEAD serve 2>>"$SITE/log" & daemon=$!; until_true $KEYSTEAD kms status; }
opens() { [ "$($KEYSTEAD kms decrypt <"$SITE/sealed")" = seed ]; }
full() { dd if=/dev/zero of="$store/filler" bs=1k 2>/dev/null || true; dd if=/dev/zero of="$store/filler-2" bs=1 2>/dev/null || true; }
expect 0 $KEYSTEAD init --no-recovery
serve
trap 'kill $daemon 2>/dev/null || true' EXIT
printf seed | $KEYSTEAD kms encrypt --output json >"$SITE/sealed"
opens
"#;

/// What an operator would see, step by step. `expect CODE COMMAND…` wants that exit code.
const STORY: &str = r#"
echo "full"
full
expect 4 $KEYSTEAD key rotate --yes --force "for a test"
says "No space left"
opens
rm "$store"/filler*
expect 0 $KEYSTEAD key rotate --yes --force "for a test"
opens

echo "read-only"
mount -o remount,bind,ro "$store"
expect 4 $KEYSTEAD key rotate --yes --force "for a test"
says "Read-only"
opens
kill $daemon
wait $daemon
# Now with a trail, which cannot be written either.
sed -i 's/level = "off"/level = "admin"/' "$KEYSTEAD_CONFIG"
serve
opens
expect 0 $KEYSTEAD status --output json
says "audit trail could not be opened"
mount -o remount,bind,rw "$store"
expect 0 $KEYSTEAD key rotate --yes --force "for a test"
opens
kill $daemon
wait $daemon
echo "done"
"#;

#[test]
fn a_full_or_read_only_disk_refuses_changes_and_never_stops_serving() {
    // A disk cannot turn read-only while a file on it is open for writing, as the trail's is.
    run("level = \"off\"", "64k", STORY, &[]);
}

/// With a trail, which is on the same disk.
const TRAIL_STORY: &str = r#"
warns() { $KEYSTEAD status | grep -q "audit trail cannot be written"; }
echo "full"
full
# A page of the trail's file may have room for some lines more.
fails() { opens || true; $KEYSTEAD audit verify || true; $KEYSTEAD custodian restart || true; warns; }
until_true fails
case $LEVEL-$FAILURE in
    requests-stop)
        # By the site's choice what cannot be recorded is refused: nothing but that.
        expect 5 $KEYSTEAD kms decrypt --in "$SITE/sealed"
        says "audit trail"
        expect 0 $KEYSTEAD kms status
        ;;
    *-stop)
        expect 5 $KEYSTEAD key rotate --yes --force "for a test"
        says "audit trail"
        opens
        ;;
    *)
        expect 4 $KEYSTEAD key rotate --yes --force "for a test"
        says "No space left"
        expect 0 $KEYSTEAD custodian restart
        opens
        ;;
esac

echo "full, and started anew"
kill $daemon
wait $daemon
serve
[ $LEVEL-$FAILURE = requests-stop ] || opens

echo "room again"
rm "$store"/filler*
until_true opens
recovered() { ! warns; }
until_true recovered
expect 0 $KEYSTEAD key rotate --yes --force "for a test"
opens
expect 0 $KEYSTEAD audit verify
says "intact"
expect 0 $KEYSTEAD audit query --action trail-resumed
says "lost="
kill $daemon
wait $daemon
echo "done"
"#;

#[test]
fn a_full_disk_with_an_audit_trail_stops_nothing_but_what_the_site_wants_recorded() {
    for level in ["admin", "requests"] {
        for failure in ["stop", "continue-with-alarm"] {
            let audit = format!("level = \"{level}\"\nfailure = \"{failure}\"");
            run(&audit, "256k", TRAIL_STORY, &[("LEVEL", level), ("FAILURE", failure)]);
        }
    }
}

/// Switched off where nothing more can be written, by a marker that was made before; and where not even that is possible.
const DISABLING_STORY: &str = r#"
refuses() { ! $KEYSTEAD kms status >"$SITE/out" 2>&1 && grep -q "disabled by" "$SITE/out" && ! opens 2>/dev/null; }
is() { [ "$($KEYSTEAD status --output json | sed -n 's/^  "availability": "\(.*\)",$/\1/p')" = "$1" ]; }
recorded() { $KEYSTEAD status --output json | grep -q '"recorded": true'; }
echo "full"
full
expect 0 $KEYSTEAD key disable --yes --reason "disk is full"
says "the record does not say so yet"
refuses
expect 4 $KEYSTEAD key enable --yes
says "stays disabled"
kill -9 $daemon
wait $daemon || true
$KEYSTEAD serve 2>>"$SITE/log" & daemon=$!
until_true is disabled
refuses
rm "$store"/filler*
until_true recorded
[ ! -e "$store/disabled" ]
expect 0 $KEYSTEAD key enable --yes
opens

echo "read-only"
mount -o remount,bind,ro "$store"
expect 4 $KEYSTEAD key disable --yes
says "a restart would bring it back"
refuses
mount -o remount,bind,rw "$store"
until_true recorded
kill -9 $daemon
wait $daemon || true
$KEYSTEAD serve 2>>"$SITE/log" & daemon=$!
until_true is disabled
expect 0 $KEYSTEAD key enable --yes
opens
kill $daemon
wait $daemon
echo "done"
"#;

#[test]
fn a_key_is_disabled_on_a_full_disk_for_good_and_on_a_read_only_one_at_once() {
    run("level = \"off\"", "64k", DISABLING_STORY, &[]);
}

/// The site wants nothing done that is not recorded, and nothing can be: service is taken away all the same.
const UNRECORDED_STORY: &str = r#"
echo "full"
full
fails() { opens || true; $KEYSTEAD custodian restart || true; $KEYSTEAD status | grep -q "audit trail cannot be written"; }
until_true fails
expect 0 $KEYSTEAD key disable --yes
expect 5 $KEYSTEAD key enable --yes
says "audit trail"
! $KEYSTEAD kms status
rm "$store"/filler*
enabled() { $KEYSTEAD key enable --yes; }
until_true enabled
opens
kill $daemon
wait $daemon
echo "done"
"#;

#[test]
fn a_trail_that_stops_for_want_of_space_keeps_no_key_in_service() {
    run("level = \"admin\"\nfailure = \"stop\"", "256k", UNRECORDED_STORY, &[]);
}

/// In namespaces of its own, on a disk of that size.
fn run(audit: &str, size: &str, story: &str, environment: &[(&str, &str)]) {
    let site = Site::bare(&format!("[audit]\n{audit}\n"));
    let output = Command::new("unshare")
        .args(["-Urm", "bash", "-c", &format!("{WORDS}{story}")])
        .env("SITE", site.path())
        .env("SIZE", size)
        .env("KEYSTEAD", env!("CARGO_BIN_EXE_keystead"))
        .env("KEYSTEAD_CONFIG", site.config())
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.ends_with("done\n"), "{audit}: {said}{}", String::from_utf8_lossy(&output.stderr));
    output.expect_success();
}
