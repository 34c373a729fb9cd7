# shellcheck shell=bash
# Finds the Rust toolchain. Sourced; installs nothing, since Debian 12's own Rust is too old and a
# toolchain belongs to the user.

# need_rust CARGO_TOML: puts cargo on PATH, and checks that it is as new as that file's rust-version.
need_rust() {
    local manifest=$1 wanted found
    wanted=$(sed -n 's/^rust-version *= *"\([0-9.]*\)".*/\1/p' "$manifest" | head -n 1)
    if ! command -v cargo >/dev/null && [[ -x ${CARGO_HOME:-$HOME/.cargo}/bin/cargo ]]; then
        PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
    fi
    if ! command -v cargo >/dev/null; then
        printf 'There is no cargo here; Keystead needs Rust %s or newer.\n' "$wanted" >&2
        printf 'Install it with rustup, see https://rustup.rs, and run this again.\n' >&2
        return 1
    fi
    found=$(rustc --version | cut -d ' ' -f 2)
    if [[ $(printf '%s\n%s\n' "$wanted" "${found%%-*}" | sort --version-sort | head -n 1) != "$wanted" ]]; then
        printf 'Keystead needs Rust %s or newer; %s is %s. Run: rustup update stable\n' \
            "$wanted" "$(command -v rustc)" "$found" >&2
        return 1
    fi
}
