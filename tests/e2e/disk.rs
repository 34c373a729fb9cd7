//! The store's disk full, and read-only: a small file system of the test's own, in a mount namespace of its own.

use std::process::Command;

use crate::daemon::{Finished, Site};

/// What an operator would see, step by step. `expect CODE COMMAND…` wants that exit code.
const STORY: &str = r#"
set -eu
store=$SITE/store
mkdir -p "$store"
mount -t tmpfs -o size=64k,mode=0700 tmpfs "$store"
expect() {
    local wanted=$1 code=0
    shift
    "$@" >"$SITE/out" 2>&1 || code=$?
    [ "$code" = "$wanted" ] || { echo "$* ended with $code, not $wanted:"; cat "$SITE/out" "$SITE/log"; exit 1; }
}
says() { grep -q "$1" "$SITE/out" || { echo "no '$1' in:"; cat "$SITE/out"; exit 1; }; }
serves() { for _ in $(seq 600); do if $KEYSTEAD kms status >/dev/null 2>&1; then return 0; fi; sleep 0.05; done; cat "$SITE/log"; return 1; }
expect 0 $KEYSTEAD init --no-recovery
$KEYSTEAD serve 2>"$SITE/log" &
daemon=$!
trap 'kill $daemon 2>/dev/null || true' EXIT
serves
printf seed | $KEYSTEAD kms encrypt --output json >"$SITE/sealed"
opens() { [ "$($KEYSTEAD kms decrypt <"$SITE/sealed")" = seed ]; }
opens

echo "full"
dd if=/dev/zero of="$store/filler" bs=1k 2>/dev/null || true
expect 4 $KEYSTEAD key rotate --yes --force "for a test"
says "No space left"
opens
rm "$store/filler"
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
$KEYSTEAD serve 2>"$SITE/log" &
daemon=$!
serves
opens
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
    let site = Site::bare("[audit]\nlevel = \"off\"\n");
    let output = Command::new("unshare")
        .args(["-Urm", "bash", "-c", STORY])
        .env("SITE", site.path())
        .env("KEYSTEAD", env!("CARGO_BIN_EXE_keystead"))
        .env("KEYSTEAD_CONFIG", site.config())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.ends_with("done\n"), "{said}{}", String::from_utf8_lossy(&output.stderr));
    output.expect_success();
}
