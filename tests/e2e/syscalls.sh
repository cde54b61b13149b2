#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The unit's SystemCallFilter lets fathomd and its engine do what they do: strace says what that
# is, systemd-analyze what is let through. Without this a new call of ours would fail on systems
# with the unit only.
# shellcheck disable=SC1091,SC2154,SC2034
. "${srcdir:-.}/tests/e2e/daemon.subr"
unit=$top_builddir/packaging/fathomd.service
if ! command -v strace >/dev/null || ! strace -o "$dir/true" true 2>/dev/null; then
    echo "1..0 # SKIP no strace, or it may not trace"
    exit 0
fi
systemd-analyze syscall-filter @system-service >"$dir/probe" 2>/dev/null || {
    echo "1..0 # SKIP no systemd-analyze syscall-filter"
    exit 0
}

expand() { # NAME ...: names of calls; sets are what systemd-analyze says
    for name in "$@"; do
        case $name in
        @*)
            # shellcheck disable=SC2046 # a list of words
            expand $(systemd-analyze syscall-filter "$name" 2>/dev/null | sed '1d; s/^ *//; /^#/d')
            ;;
        *) echo "$name" ;;
        esac
    done
}
# Lines of the unit in their order: the first says what all others start from.
: >"$dir/allowed"
sed -n 's/^SystemCallFilter=//p' "$unit" | while read -r line; do
    case $line in
    ~*)
        # shellcheck disable=SC2086
        expand ${line#\~} | sort -u >"$dir/these"
        sort -u "$dir/allowed" | comm -23 - "$dir/these" >"$dir/left"
        mv "$dir/left" "$dir/allowed"
        ;;
    *)
        # shellcheck disable=SC2086
        expand $line >>"$dir/allowed"
        ;;
    esac
done
sort -u "$dir/allowed" >"$dir/may"
[ "$(wc -l <"$dir/may")" -gt 200 ]
ok "the unit's filter is understood"

# What may fail: SystemCallErrorNumber makes these fail with EPERM, and the program goes on.
cat >"$dir/fails-well" <<'END'
prlimit64
setrlimit
sched_setscheduler
mbind
set_mempolicy
END

traced() { # [SETTING ...]: a short life with all that a session can have
    rm -f "$dir/log"
    strace -f -qq -o "$dir/calls" "$top_builddir/daemon/fathomd" --engine "$1" \
        --model "$srcdir/models/fathom-mini" --state "$dir/state" --socket "$sock" \
        --metrics-socket "$dir/metrics" 2>"$dir/log" &
    daemon=$!
    await "listening on"
    talk >/dev/null <<'END'
session.new name=a
append name=a text=a%20few%20words
sample name=a n=4 temperature=0 quiet=1
fork name=a to=b
checkpoint name=a label=here
rollback name=a pos=2
logits name=a
rename name=b to=c
delete name=c
status
END
    pid=$(pgrep -P "$daemon" -x fathomd || pgrep -P "$daemon")
    kill -HUP "$pid"
    await reloaded
    kill -TERM "$pid"
    wait "$daemon"
    status=$?
    daemon=
    sed -n 's/^[0-9]* *\([a-z_0-9]*\)(.*/\1/p; s/^[0-9]* *<... \([a-z_0-9]*\) resumed.*/\1/p' "$dir/calls" | sort -u
}
unset FAKE_ENGINE
for engine in "$top_builddir/tests/fake_engine" "$top_builddir/engine/fathom-engine"; do
    traced "$engine" >"$dir/did"
    is "$status" 0 "$(basename "$engine"): a life under strace"
    [ "$(wc -l <"$dir/did")" -gt 40 ]
    ok "which did something"
    comm -23 "$dir/did" "$dir/may" | grep -vxFf "$dir/fails-well" >"$dir/refused"
    is "$(tr '\n' ' ' <"$dir/refused")" "" "nothing that the unit refuses"
done
# A filter that is too narrow would be seen.
grep -vx 'fdatasync\|epoll_wait' "$dir/may" >"$dir/narrow"
[ "$(comm -23 "$dir/did" "$dir/narrow" | grep -cx 'fdatasync\|epoll_wait')" -gt 0 ]
ok "a call that is not let through is seen"
plan
