#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# fathomd under a service manager: sockets and kept descriptors by name, a restart that finds them
# again, and journald's records. tests/hear.c is the manager.
# shellcheck disable=SC1091,SC2154,SC2034
. "${srcdir:-.}/tests/e2e/daemon.subr"
fathomd=$top_builddir/daemon/fathomd

manage() { # [SETTING ...]: $daemon is the manager
    rm -f "$dir/log" "$dir/notify" "$dir/api" "$dir/metrics"
    : >"$dir/heard"
    "$top_builddir/tests/hear" "$dir/notify" "$fathomd" --engine "$top_builddir/tests/fake_engine" \
        --model "$srcdir/models/fathom-mini" --state "$dir/state" --socket "$dir/unused" \
        "$@" >"$dir/heard" 2>"$dir/log" &
    daemon=$!
}
heard() { # PATTERN [TIMES]: until the manager has heard it
    patient
    until [ "$(grep -c -e "$1" "$dir/heard")" -ge "${2:-1}" ] || tired; do :; done
}
status_of() { echo status | timeout 300 "$top_builddir/tests/talk" "$1" | tail -n +2; }

# --- by name
export HEAR_LISTEN="metrics=$dir/metrics api=$dir/api" HEAR_STORE="junk"
manage --metrics-socket "$dir/unused2"
heard '^READY=1'
has "$(status_of "$dir/api")" state=serving "clients come in by the socket named api"
if command -v curl >/dev/null; then
    has "$(curl -s --unix-socket "$dir/metrics" http://localhost/metrics)" '^fathom_engine_up 1' \
        "metrics by the one named metrics"
else
    skip "metrics by the one named metrics" "no curl"
fi
[ ! -e "$dir/unused" ] && [ ! -e "$dir/unused2" ]
ok "none is made at the settings' paths"
has "$(cat "$dir/heard")" '^forgot junk ' "what nobody knows is taken out of the store"
has "$(cat "$dir/log")" 'listen-fd-ignored fdname=junk' "and told"

# --- killed: the next one gets what was kept, and no junk
child=$(pgrep -P "$daemon" -x fathomd)
kill -KILL "$child"
heard '^READY=1' 2
has "$(status_of "$dir/api")" state=serving "after a crash the next one serves on the same socket"
is "$(grep -c '^passed junk' "$dir/heard")" 1 "junk was passed once only"

# The arena: what is kept is what the first one made, and what the second one uses and keeps again.
arenas=$(sed -n 's/^\(kept\|passed\) arena \([0-9]*\)$/\1 \2/p' "$dir/heard" | tr '\n' ' ')
first=$(echo "$arenas" | cut -d' ' -f2)
is "$arenas" "kept $first passed $first kept $first " "the arena's memory outlives a crash"
child=$(pgrep -P "$daemon" -x fathomd)
grep -q " $first .*memfd:fathom-arena" "/proc/$child/maps"
ok "and is mapped by the next one"
stop
is "$status" 0 "it stops when it is told to"
has "$(tr '\n' ' ' <"$dir/heard")" 'STOPPING=1.*EXTEND_TIMEOUT_USEC=30000000 .*ended 0' \
    "and asks for time to do so"
[ -S "$dir/api" ] && [ -S "$dir/metrics" ]
ok "sockets that were passed stay"

HEAR_LISTEN="metrics=$dir/metrics" HEAR_STORE='' manage
wait "$daemon"
is $? 78 "no socket for clients among those passed: exit 78"
daemon=
has "$(cat "$dir/log")" 'no listening Unix stream socket for clients' "and why"
unset HEAR_LISTEN HEAR_STORE

# --- an engine that cannot start: what there is to read stays readable, and systemd is told so
rm -rf "$dir/state"
start
printf 'session.new name=a\nappend name=a text=hello\n' | talk >/dev/null
stop
FAKE_ENGINE=exit@start manage --restart-limit 0
heard '^READY=1'
has "$(cat "$dir/heard")" '^STATUS=FAILED' "READY without an engine, as there are transcripts"
has "$(echo 'transcript name=a what=tokens' | timeout 300 "$top_builddir/tests/talk" "$dir/unused")" '^ok ' \
    "which can be read"
stop
rm -rf "$dir/state"
FAKE_ENGINE=exit@start manage --restart-limit 0
wait "$daemon"
is $? 1 "with nothing to read it gives up"
daemon=
! grep -q '^READY=1' "$dir/heard"
ok "and was never ready"

# --- a disk that hangs: the loop turns, the store's threads do not, and systemd shall know
cat >"$dir/hang" <<'END'
truncate -s 64M "$dir/image" && mkfs.ext4 -q "$dir/image" && mkdir "$dir/disk" &&
    mount -o loop "$dir/image" "$dir/disk" || exit 77
thaw() { fsfreeze -u "$dir/disk"; }
WATCHDOG_USEC=300000 "$top_builddir/tests/hear" "$dir/notify" "$top_builddir/daemon/fathomd" \
    --engine "$top_builddir/tests/fake_engine" --model "$srcdir/models/fathom-mini" \
    --state "$dir/disk/state" --socket "$dir/sock" >"$dir/heard" 2>"$dir/log" &
daemon=$!
beats() { grep -c WATCHDOG=1 "$dir/heard"; }
until grep -q '^READY=1' "$dir/heard"; do sleep 0.05; kill -0 $daemon; done
fsfreeze -f "$dir/disk"
trap thaw EXIT
echo 'session.new name=a' | "$top_builddir/tests/talk" "$dir/sock" >"$dir/talk" &
until grep -q watchdog-held "$dir/log"; do sleep 0.05; kill -0 $daemon; done
held=$(beats)
sleep 2
[ "$(beats)" -le $((held + 1)) ] # one may have been on its way; in 2 s there would be 13
echo status | "$top_builddir/tests/talk" "$dir/sock" | grep -q 'state=serving'
trap - EXIT
thaw
until [ "$(beats)" -gt "$held" ]; do sleep 0.05; kill -0 $daemon; done
until grep -q 'ok name=a' "$dir/talk"; do sleep 0.05; kill -0 $daemon; done
kill $daemon
wait $daemon
umount "$dir/disk"
END
if [ "$(id -u)" -eq 0 ] && command -v mkfs.ext4 >/dev/null && command -v fsfreeze >/dev/null; then
    export dir srcdir top_builddir
    rm -f "$dir/notify"
    timeout 600 unshare -m sh -e "$dir/hang" 2>"$dir/why"
    rc=$?
else
    rc=77
fi
if [ $rc -eq 77 ]; then
    skip "a disk that hangs" "no filesystem of one's own"
else
    is $rc 0 "WATCHDOG stops while a disk hangs, and comes again"
    [ $rc -eq 0 ] || sed 's/^/# /' "$dir/why" "$dir/log"
fi

# --- journald's place is taken in a namespace of our own
cat >"$dir/inside" <<'END'
mount -t tmpfs none /run && mkdir -p /run/systemd/journal || exit 77
"$top_builddir/tests/hear" /run/systemd/journal/socket >"$dir/records" &
hear=$!
until [ -S /run/systemd/journal/socket ]; do
    sleep 0.05
    kill -0 $hear || exit 1
done
: >"$dir/stream"
JOURNAL_STREAM=$(stat -c %d:%i "$dir/stream") "$top_builddir/daemon/fathomd" \
    --engine "$top_builddir/tests/fake_engine" --model "$srcdir/models/fathom-mini" \
    --state "$dir/state" --socket "$dir/sock" 2>>"$dir/stream" &
daemon=$!
until grep -q '^FATHOM_EVENT=ready' "$dir/records"; do
    sleep 0.05
    kill -0 $daemon || exit 1
done
printf 'session.new name=one\nhello\n' | "$top_builddir/tests/talk" "$dir/sock" >/dev/null
kill $daemon
wait $daemon
until grep -q '^FATHOM_EVENT=stopped' "$dir/records"; do sleep 0.05; done
kill $hear
END
if unshare -rm true 2>/dev/null || unshare -m true 2>/dev/null; then
    how=-rm
    [ "$(id -u)" -ne 0 ] || how=-m
    export dir srcdir top_builddir
    timeout 600 unshare $how sh -e "$dir/inside"
    rc=$?
else
    rc=77
fi
if [ $rc -eq 77 ]; then
    skip "journald" "no namespaces"
else
    id_of() { sed -n "s/^EVENT(\"$1\", \"\([0-9a-f]*\)\".*/\1/p" "$srcdir/daemon/journal.def"; }
    record() { # EVENT: its fields, in one line
        awk -v want="FATHOM_EVENT=$1" '/^MESSAGE=/ { if (hit) print all; all = ""; hit = 0 }
            { all = all " " $0 } $0 == want { hit = 1 } END { if (hit) print all }' "$dir/records"
    }
    is $rc 0 "fathomd talks to journald"
    has "$(record ready)" "MESSAGE=ready listening on .* PRIORITY=5 .*SYSLOG_IDENTIFIER=fathomd .*MESSAGE_ID=$(id_of ready)" \
        "an event: its line, its level, its id"
    has "$(record session-new)" "MESSAGE_ID=$(id_of session-new) SESSION=one UID=$(id -u)" "and its fields"
    has "$(record conn-bye)" "ERROR=.*ERROR_CODE=protocol\|ERROR_CODE=protocol.*ERROR=" "of an error too"
    ! grep -q 'session-new\|MESSAGE' "$dir/stream"
    ok "what journald has is not on stderr again"
fi
plan
