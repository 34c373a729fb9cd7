# shellcheck shell=bash
# The cloud profile of scripts/quickstart: a stub of Alibaba Cloud KMS beside the daemon, scripts that act on it, and the
# story of an outage and a revocation. Sourced by it; uses its variables and functions.

# Starts the stub, if it does not run. It ends when rig/running is removed: the key is in its memory, nowhere else.
start_cloud() {
    mkdir -p -- "$RIG"
    RIG_PYTHON=$("$ROOT/scripts/rigs/cloud" alibaba python)
    # However it was left: a daemon that is cut off or revoked could not be tried.
    if [[ -e $RIG/running ]] && "$RIG/cloud-up" 2>/dev/null && "$RIG/key-enable"; then
        say 'The stub of the cloud runs already.'
        write_rig_scripts
        # One that was revoked hears of it with its next renewal, and shows no key before.
        ! running_pid >/dev/null || wait_for 30 answers || true
        return
    fi
    [[ ! -f $STATE/store/keyring.store ]] \
        || fail "the stub of the cloud was ended, and with it the key of $STATE: take another folder, or remove this one"
    rm -f -- "$RIG/cloud/rig.json"
    : >"$RIG/running"
    # Its own session, and none of our files. It ends with its standard input.
    # shellcheck disable=SC2016 # expanded by the shell that it starts
    setsid bash -c 'while [[ -e $1/running ]]; do sleep 1; done | "$2" alibaba --state "$1/cloud"' \
        rig "$RIG" "$ROOT/scripts/rigs/cloud" </dev/null >"$RIG/log" 2>&1 9>&- &
    wait_for 60 test -s "$RIG/cloud/rig.json" || {
        cat -- "$RIG/log" >&2
        fail 'the stub of the cloud does not start'
    }
    write_rig_scripts
    say "A stub of Alibaba Cloud KMS serves at $(rig_fact endpoints kms)."
}

# rig_fact NAME…: what the stub said of itself, by the names on the way there.
rig_fact() {
    "$RIG_PYTHON" -c 'import json, sys
fact = json.load(open(sys.argv[1]))
for name in sys.argv[2:]:
    fact = fact[name]
print(fact)' "$RIG/cloud/rig.json" "$@"
}

cloud_config() {
    cat <<CONF

[upstream]
# The stub of the cloud. hsm-configs/cloud-alibaba.toml is one for the real one.
kind = "alibaba"
key = "$(rig_fact keys main)"
region = "$(rig_fact region)"
endpoint = "$(rig_fact endpoints kms)"
token_endpoint = "$(rig_fact endpoints sts)"
ca_file = "$(rig_fact ca_file)"
credentials_file = "$(rig_fact credentials main)"
# Quick, to be watched. In life: "10m", "15s", "3s", "10s".
renew_every = "5s"
probe_interval = "5s"
connect_timeout = "1s"
timeout = "2s"
lease = "72h"
daily_call_budget = 100000
CONF
}

write_rig_scripts() {
    local control
    control=$(rig_fact control)
    control=${control#http://}
    rig_script order <<'SCRIPT'
# order JSON: has the stub of the cloud do something (tests/rigs/README.md).
exec 3<>"/dev/tcp/${CONTROL%:*}/${CONTROL#*:}"
printf 'POST /control HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s' "${#1}" "$1" >&3
answer=$(tr -d '\r' <&3)
[[ $answer == *'"ok": true'* ]] || { printf '%s\n' "${answer##*$'\n'}" >&2; exit 1; }
SCRIPT
    rig_script cloud-down <<'SCRIPT'
# cloud-down [FAULT]: cuts the cloud off: black-hole, or another fault of tests/rigs/README.md.
exec "$RIG/order" "{\"action\": \"fault\", \"fault\": \"${1:-black-hole}\"}"
SCRIPT
    rig_script cloud-up <<'SCRIPT'
# cloud-up: the cloud is there again.
exec "$RIG/order" '{"action": "clear"}'
SCRIPT
    rig_script key-disable <<'SCRIPT'
# key-disable: as in the cloud's console.
exec "$RIG/order" '{"action": "disable-key"}'
SCRIPT
    rig_script key-enable <<'SCRIPT'
# key-enable: as in the cloud's console.
exec "$RIG/order" '{"action": "enable-key"}'
SCRIPT
    rig_script restart <<'SCRIPT'
# restart: stops the daemon and starts it again; the cloud stays as it is.
exec "$ROOT/scripts/quickstart" restart
SCRIPT
    rig_script cloud-end <<'SCRIPT'
# cloud-end: ends the stub of the cloud. Its key is gone then, and with it this daemon's.
rm -f -- "$RIG/running"
SCRIPT
}

# rig_script NAME: standard input as an executable file in rig/.
rig_script() {
    {
        printf '#!/usr/bin/env bash\nset -euo pipefail\n'
        printf 'ROOT=%q RIG=%q CONTROL=%q\n' "$ROOT" "$RIG" "$control"
        printf 'export KEYSTEAD_STATE=%q KEYSTEAD_BIN=%q\n' "$STATE" "$BIN"
        cat
    } >"$RIG/$1.new"
    chmod 0755 "$RIG/$1.new"
    mv -- "$RIG/$1.new" "$RIG/$1"
}

is() {
    [[ $(availability) == "$1" ]]
}

refuses() {
    ! answers
}

opens() {
    [[ $("$BIN" kms decrypt <"$RIG/sealed" 2>/dev/null) == "$SEED" ]]
}

# What happened, and how long it took since the last `since`.
told() {
    local took=$((${EPOCHREALTIME/./} - SINCE))
    printf '  %-64s %3d.%d s\n' "$1" $((took / 1000000)) $((took / 100000 % 10))
}

since() {
    SINCE=${EPOCHREALTIME/./}
}

expect() {
    wait_for 30 "$@" || fail "that did not happen: $*. \`keystead status\` says what is; the log is $STATE/keystead.log"
}

# An outage and a revocation, each step with the time it took.
story() {
    step 'An outage, and a revocation'
    SEED=$(od --address-radix=n --format=x1 --read-bytes=16 /dev/urandom | tr -d ' \n')
    "$RIG/cloud-up" && "$RIG/key-enable"
    expect is online
    printf '%s' "$SEED" | "$BIN" kms encrypt --output json >"$RIG/sealed"
    say 'The key is in the cloud; what it encrypts is opened here.'

    since
    "$RIG/cloud-down"
    say 'The cloud is cut off (black hole).'
    expect is degraded
    told 'noticed; the lease runs'
    expect opens
    round_trip

    since
    restart_daemon
    told 'restarted without the cloud, by the offline copy'
    is degraded || fail "the daemon is $(availability) after a restart without the cloud"
    opens || fail 'what was encrypted before the restart does not open'
    round_trip

    since
    "$RIG/cloud-up"
    say 'The cloud is back.'
    expect is online
    told 'online again'

    since
    "$RIG/key-disable"
    say 'The key is disabled in the cloud.'
    expect refuses
    told 'refused: Status, Encrypt and Decrypt fail, keys are wiped'
    ! opens || fail 'a disabled key still opens'
    is revoked || fail "the daemon is $(availability)"

    since
    "$RIG/key-enable"
    say 'The key is enabled again.'
    expect is online
    expect opens
    told 'service is back'
    cat <<TEXT

Try it yourself: \`keystead status --output text\` beside
  $RIG/cloud-down [black-hole|refuse|http-503|captive-tls|…]   $RIG/cloud-up
  $RIG/key-disable   $RIG/key-enable   $RIG/restart
TEXT
}
