# shellcheck shell=bash
# Initialises PKCS#11 tokens for quickstart and the test rigs. Sourced.
#
# PINs are random, live in files that only their owner can read, and reach softhsm2-util through its
# own prompts: its --pin option would show them to every user of the machine in the process list.

# random_pin FILE: puts a random PIN of 32 hex digits into FILE (mode 0600), unless FILE has one.
random_pin() {
    local file=$1 pin
    [[ -s $file ]] && return 0
    pin=$(od --address-radix=n --format=x1 --read-bytes=16 /dev/urandom | tr -d ' \n')
    [[ ${#pin} -eq 32 ]] || return 1
    (umask 077 && printf '%s' "$pin" >"$file.new") && mv -- "$file.new" "$file"
}

# token_exists MODULE LABEL: whether MODULE shows an initialised token of that label, with a user PIN.
token_exists() {
    local module=$1 label=$2
    # The label is padded with blanks to 32 bytes; fields of one token come in a fixed order.
    LC_ALL=C softhsm2-util --module "$module" --show-slots 2>/dev/null | awk -v label="$label" '
        /^ *User PIN init\.:/ { ready = ($NF == "yes") }
        /^ *Label:/ {
            sub(/^ *Label: */, ""); sub(/ *$/, "")
            if (ready && $0 == label) found = 1
        }
        END { exit !found }'
}

# init_token MODULE LABEL SO_PIN_FILE PIN_FILE: initialises the first blank token of MODULE and sets
# its user PIN. The module finds its own configuration through its environment variable.
init_token() {
    local module=$1 label=$2 so_pin_file=$3 pin_file=$4
    local so_pin pin
    so_pin=$(<"$so_pin_file")
    pin=$(<"$pin_file")

    # softhsm2-util asks on a terminal only, so it gets one from script(1), which every Debian has.
    local util output='' chunk reader writer pid answers refused='' status=0
    util=$(printf 'softhsm2-util --module %q --init-token --free --label %q' "$module" "$label")
    answers=("$so_pin" "$so_pin" "$pin" "$pin")
    coproc TOKEN_UTIL { SHELL=/bin/bash LC_ALL=C exec timeout --foreground 90 script --quiet --return --command "$util" /dev/null 2>&1; }
    pid=$TOKEN_UTIL_PID reader=${TOKEN_UTIL[0]} writer=${TOKEN_UTIL[1]}
    # Each answer follows its own prompt, so that the terminal never echoes one.
    while IFS= read -r -d ':' -t 60 -u "$reader" chunk; do
        output+="$chunk:"
        [[ $chunk == *"Please "*"enter "*" PIN" ]] || continue
        if [[ ${#answers[@]} -eq 0 ]]; then
            # Asked once more than it should: a PIN was refused. It would ask for ever.
            refused=yes
            kill "$pid"
            break
        fi
        printf '%s\n' "${answers[0]}" >&"$writer"
        answers=("${answers[@]:1}")
    done
    output+=$chunk
    wait "$pid" || status=$?
    if [[ $status -ne 0 || -n $refused ]]; then
        printf 'Could not initialise a token with %s:\n%s\n' "$module" "${output//$'\r'/}" >&2
        return 1
    fi
}
