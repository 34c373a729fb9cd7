# shellcheck shell=bash
# shellcheck source-path=SCRIPTDIR
# Makes Python virtual environments with pinned packages. Sourced; needs packages.sh beside it.

# venv DIR REQUIREMENTS: a virtual environment in DIR with exactly what REQUIREMENTS pins by hash.
# Returns at once when it is there already. Two that do this at once wait for each other.
venv() {
    local dir=$1 requirements=$2 python key fd status=0
    python=$(_python_with_venv) || return 1
    key=$("$python" --version)$'\n'$(sha256sum <"$requirements")
    mkdir -p -- "$(dirname -- "$dir")" || return 1
    exec {fd}>"$dir.lock" || return 1
    flock "$fd" || return 1
    if [[ ! -f $dir/complete || $(<"$dir/complete") != "$key" ]] || ! "$dir/bin/python" -c '' 2>/dev/null; then
        printf 'Making the Python environment %s\n' "$dir" >&2
        rm -rf -- "$dir"
        # The last line is written only when all before it succeeded.
        "$python" -m venv "$dir" >&2 \
            && "$dir/bin/python" -m pip install --quiet --no-input --disable-pip-version-check \
                --only-binary :all: --require-hashes --requirement "$requirements" >&2 \
            && printf '%s\n' "$key" >"$dir/complete" || status=1
    fi
    exec {fd}>&-
    return "$status"
}

# Prints a Python 3 that can make virtual environments: the system's, else another one on PATH (a
# pyenv, say); installs Debian's python3-venv when there is none.
_python_with_venv() {
    local attempt candidate
    for attempt in first after-install; do
        if [[ $attempt == after-install ]]; then
            need_packages python3 python3-venv || return 1
        fi
        for candidate in /usr/bin/python3 "$(command -v python3)"; do
            # Debian ships venv without ensurepip unless python3-venv is installed.
            if [[ -x $candidate ]] && "$candidate" -c 'import ensurepip, venv, sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
                printf '%s\n' "$candidate"
                return 0
            fi
        done
    done
    printf 'No Python 3.10 or newer that can make virtual environments was found.\n' >&2
    return 1
}
