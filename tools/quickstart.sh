#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# From a fresh clone to a model that answers from a document: installs what is missing, builds,
# starts a private fathomd with the small model of this repository, pipes a document in, asks.
# Then the daemon stays up until Ctrl-C; without a terminal it ends (--keep: stays anyway).
set -euo pipefail

cd "$(dirname "$0")/.."
keep=no
[ -t 0 ] && keep=yes
case ${1-} in
'') ;;
--keep) keep=yes ;;
*)
    echo "usage: tools/quickstart.sh [--keep]" >&2
    exit 64
    ;;
esac

say() { printf '%s\n' "$*" >&2; }

tools/deps.sh
say "building (the first time takes a minute or two) ..."
tools/build.sh build --disable-static

state=$(mktemp -d "${XDG_RUNTIME_DIR:-/tmp}/fathom.XXXXXX")
export FATHOM_SOCKET="$state/api.sock"
fathom=$PWD/build/client/fathom
daemon=
stop() {
    trap - EXIT INT TERM
    if [ -n "$daemon" ]; then
        kill "$daemon" 2>/dev/null || true
        wait "$daemon" 2>/dev/null || true
    fi
    rm -rf "$state"
}
trap stop EXIT
trap 'echo >&2; say "stopped"; exit 0' INT TERM

# In a session of its own, so that Ctrl-C reaches this script first and the daemon by name.
setsid build/daemon/fathomd --engine "$PWD/build/engine/fathom-engine" --model models/fathom-mini \
    --state "$state" --socket "$FATHOM_SOCKET" 2>"$state/log" &
daemon=$!

# This project's own protocol manual, with two facts written into it: the first far more than
# one window (128 tokens) of text before the end.
document() {
    awk '{ print } NR == 40 { print "\nThe access code for North Gate is 9054.\n" }
         NR == 120 { print "\nThe owner of Desmond'\''s boat is Edith.\n" }' docs/PROTOCOL.md
}

say
say "\$ fathom new manual; cat document | fathom append manual"
"$fathom" new --wait 60s manual || {
    cat "$state/log" >&2
    exit 1
}
document | "$fathom" append --wait 60s manual
for question in "What is the access code for North Gate?" "Who owns Desmond's boat?"; do
    say
    say "\$ fathom ask --temp 0 manual \"$question\""
    "$fathom" ask --temp 0 manual "$question"
done
say
say "\$ fathom show manual; fathom status"
"$fathom" show manual
"$fathom" status

# A copy draws 200 tokens, to see how fast that is; the session itself stays as it is.
"$fathom" fork -q manual speed
"$fathom" sample speed -n 200 --temp 0 --ignore-eos --json | tail -n 1 |
    sed -n 's/.*"n":\([0-9]*\).*"first_us":\([0-9]*\),"total_us":\([0-9]*\).*/\1 \2 \3/p' |
    awk '{ printf "drawing      %d tokens/s behind this document\n", ($1 - 1) / ($3 - $2) * 1e6 }'
"$fathom" rm -q speed

if [ $keep = yes ]; then
    say
    say "fathomd goes on listening; Ctrl-C stops it. In another terminal:"
    say "    export FATHOM_SOCKET=$FATHOM_SOCKET PATH=$PWD/build/client:\$PATH"
    say "    fathom ls; man -l man/fathom.1"
    wait "$daemon"
fi
