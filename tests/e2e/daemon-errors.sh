#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What an administrator can get wrong: each refusal names the thing and what to do about it, and
# nothing is lost by it.
# shellcheck disable=SC1091,SC2154,SC2034
. "${srcdir:-.}/tests/e2e/daemon.subr"
export FATHOM_SOCKET="$sock"
fathom() { timeout 300 "$top_builddir/client/fathom" "$@"; }
refuses() { # STATUS PATTERN NAME [SETTING ...]: fathomd does not start
    want=$1 pattern=$2 name=$3
    shift 3
    launch "$@"
    wait "$daemon"
    is $? "$want" "$name: $want"
    daemon=
    has "$(cat "$dir/log")" "$pattern" "and why, and what to do"
}

# --- the state directory -------------------------------------------------------------------
keep=1
: >"$dir/file"
refuses 73 "setting state: $dir/file: Not a directory" "a file as the state directory" --state "$dir/file"
mkdir "$dir/open" && chmod 777 "$dir/open"
refuses 77 "$dir/open has mode 0777, .*chmod go-w" "one that all may write" --state "$dir/open"
[ ! -e "$dir/open/lock" ]
ok "and nothing was put there"
if [ "$(id -u)" -eq 0 ]; then
    mkdir -m 700 "$dir/theirs" && chown 65534 "$dir/theirs"
    refuses 77 "belongs to user 65534, and this is user 0: run fathomd as its owner" \
        "another user's" --state "$dir/theirs"
else
    mkdir -m 500 "$dir/theirs"
    refuses 73 "setting state: $dir/theirs: .*Permission denied" "one without write access" --state "$dir/theirs"
fi
refuses 64 "command line: max-disk: 'lots' is not a number" "a setting without sense" --max-disk lots

# --- limits --------------------------------------------------------------------------------
start
fathom new -q doc && seq 1 3000 | fathom append -q doc
fathom export -q doc >"$dir/doc.tar"
head -c 800000 "$dir/doc.tar" | fathom import >"$dir/out" 2>"$dir/err"
is $? 74 "half of a session is not imported: 74"
patient
until [ -z "$(ls "$dir/state/tmp")" ] || tired; do :; done
is "$(ls "$dir/state/tmp")" "" "and what had been written of it goes at once"
fathom sample doc -n 0 >"$dir/out" 2>"$dir/err"
is $? 64 "to draw nothing is no request: 64"
has "$(cat "$dir/err")" "max-tokens 0" "and says why"
stop
keep=
start --max-tokens-per-user 1000
fathom import <"$dir/doc.tar" >"$dir/out" 2>"$dir/err"
is $? 75 "an import of more tokens than are left: 75"
has "$(cat "$dir/err")" "1000 are left of max-tokens-per-user" "and names the limit"
stop
start --max-disk-per-user 1M
fathom import <"$dir/doc.tar" >"$dir/out" 2>"$dir/err"
is $? 75 "and of more bytes: 75"
has "$(cat "$dir/err")" "are left of max-disk-per-user" "which is named, too"
# 10,655 tokens of 210 bytes.
fathom new -q doc
seq 1 3000 | fathom append doc >"$dir/out" 2>"$dir/err"
is $? 75 "an append whose rows have no room: 75"
has "$(cat "$dir/err")" "bytes on the disk of 1048576 .*setting max-disk-per-user" "which says so"
is "$(fathom log doc | wc -c)" 0 "and nothing of it is there"
seq 1 1000 | fathom append -q doc
ok "what has room goes in"
stop

# --- files of a newer fathomd --------------------------------------------------------------
version() { "$top_builddir/tests/poke" "$2" 63 "$1"; } # the last byte of SQLite's user_version
start
fathom new -q new && seq 1 300 | fathom append -q new
fathom log new >"$dir/text"
stop
keep=1
ledger=$(find "$dir/state/sessions" -name session.db)
version 99 "$ledger"
start
for i in 1 2 3 4; do
    fathom log new >"$dir/out" 2>"$dir/err"
    rc=$?
done
is "$rc" 78 "a session of a newer fathomd cannot be read: 78"
has "$(cat "$dir/err")" "format 99, this fathomd knows 1 to 1: it needs a newer one" "and says so"
fathom verify new >"$dir/out" 2>&1
is $? 74 "verify finds that, too: 74"
has "$(cat "$dir/out")" "^wrong *session.db: format 99" "and names the file as it is in its folder"
printf 'x' | fathom append new >"$dir/out" 2>&1
is $? 78 "an append to it is refused: 78"
[ -e "$ledger" ] && [ -z "$(ls "$dir/state/quarantine")" ]
ok "however often it is tried it is not taken for damaged"
has "$(fathom ls)" "^new" "it is still listed"
stop
version 1 "$ledger"
version 99 "$dir/state/index.db"
start
fathom log new | cmp - "$dir/text"
ok "the newer one would find all of it; a newer index is made again from the folders"
stop
plan
