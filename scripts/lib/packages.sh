# shellcheck shell=bash
# Makes sure that Debian packages are installed. Sourced by the other scripts; sets no options and
# prints to stderr only.
#
#   need_packages softhsm2 opensc …
#
# Looks with dpkg-query (no rights needed) and returns at once when nothing is missing. Otherwise it
# installs with apt-get: directly as root, through sudo as an ordinary user. Two checkouts that do
# this at the same time wait for each other, at most ten minutes.

need_packages() {
    if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
        printf 'This system has no apt. Make sure that it has the equivalents of these Debian packages: %s\n' "$*" >&2
        return 0
    fi

    local missing
    missing=$(_packages_missing "$@")
    [[ -n $missing ]] || return 0

    local as_root=()
    if [[ $(id -u) -ne 0 ]]; then
        if ! command -v sudo >/dev/null; then
            printf 'These packages are missing: %s\n' "${missing//$'\n'/ }" >&2
            printf 'This user is not root and there is no sudo. As root, run:\n  apt-get update && apt-get install -y --no-install-recommends %s\n' \
                "${missing//$'\n'/ }" >&2
            return 1
        fi
        as_root=(sudo)
    fi

    # One of our own at a time: apt's option below waits for dpkg's lock, not for the one that
    # `apt-get update` takes. The lock is on a folder that every Debian has, so it leaves no file
    # behind. apt itself must not inherit it, or a service that a package starts would keep it.
    local lock=/var/lib/apt/lists fd
    exec {fd}<"$lock" || return 1
    if ! flock --wait 600 "$fd"; then
        printf 'Another installation has been running for ten minutes; giving up. Look with: ps -C apt-get\n' >&2
        exec {fd}<&-
        return 1
    fi
    local status=0
    # The one we waited for may have installed the same packages.
    missing=$(_packages_missing "$@")
    if [[ -n $missing ]]; then
        _packages_install "$missing" "$fd" || status=$?
    fi
    exec {fd}<&-
    return "$status"
}

# Prints those of the arguments that are not fully installed, one a line.
_packages_missing() {
    local package
    for package in "$@"; do
        dpkg-query --show --showformat='${db:Status-Status}\n' "$package" 2>/dev/null \
            | grep --quiet --line-regexp installed || printf '%s\n' "$package"
    done
}

# Installs the packages named in $1, one a line; $2 is the lock that apt must not inherit. Uses the
# caller's as_root.
_packages_install() {
    local lock=$2 packages status=0
    mapfile -t packages <<<"$1"
    printf 'Installing: %s\n' "${packages[*]}" >&2

    if [[ -z ${_packages_updated:-} ]]; then
        _packages_update "$lock" || printf 'apt-get update failed; trying with the package lists that are here.\n' >&2
        _packages_updated=1
    fi
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 --quiet=2 --yes --no-install-recommends install "${packages[@]}" \
        {lock}>&- >&2 || status=$?
    if [[ $status -ne 0 ]]; then
        printf 'apt-get could not install: %s\n' "${packages[*]}" >&2
    fi
    return "$status"
}

# Refreshes the package lists, waiting up to five minutes for a foreign apt to finish.
_packages_update() {
    local lock=$1 tries=60 output
    while ! output=$("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive LC_ALL=C apt-get --quiet=2 update {lock}>&- 2>&1); do
        if [[ $output != *"Could not get lock"* ]] || ((--tries == 0)); then
            printf '%s\n' "$output" >&2
            return 1
        fi
        sleep 5
    done
}
