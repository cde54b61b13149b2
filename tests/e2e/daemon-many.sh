#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What 10,000 parked sessions cost: fathomd is ready within 2 s, in less than 64 MiB, and lists them
# in less than 100 ms. Times are the processor's (/proc/PID/stat), for a test may run on a machine
# that is busy with others: a wall clock would measure those. What processor time does not show is
# waiting for the disk, so reads are counted too: of the index only, not one a session.
# tools/bench-sessions.sh has the wall clock's figures. The control: a fathomd that wastes a little
# time and memory a session (fathomd_heavy) is found out in each.
# shellcheck disable=SC1091,SC2154,SC2034
. "${srcdir:-.}/tests/e2e/daemon.subr"
keep=1
many=10000
ticks=$(getconf CLK_TCK)

# ms that a process and the children that it has waited for have had a processor
spent() { sed 's/.*) //' "/proc/$1/stat" | awk -v hz="$ticks" '{ print int(($12 + $13 + $14 + $15) * 1000 / hz) }'; }
below() { # GOT BOUND NAME
    [ "$1" -lt "$2" ]
    ok "$3: $1 of $2"
}
begin() { # until READY
    launch && await "ready listening" || exit 99
    ready=$(spent "$daemon")
    reads=$(awk '/^syscr/ { print $2 }' "/proc/$daemon/io")
}
# All of them ten times, as one is too short to be measured: ms each, the client's share included.
list() {
    was=$(($(spent "$daemon") + $(spent $$)))
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        "$top_builddir/client/fathom" --socket "$sock" ls >"$dir/ls" || return
    done
    each=$((($(spent "$daemon") + $(spent $$) - was) / 10))
}
peak() { awk '/^VmHWM/ { print $2 }' "/proc/$daemon/status"; }

"$top_builddir/tests/fill" "$dir/state" $many
ok "$many sessions are made"
begin
has "$(cat "$dir/log")" "store-open sessions=$many tokens=$((16 * many))" "and all are there after a start"
below "$ready" 2000 "ms of processor time until READY"
below "$reads" $((many / 5)) "reads until READY"
list
is "$(grep -c '^s[0-9]* ' "$dir/ls")" $many "fathom ls shows each"
below "$each" 100 "ms of processor time for fathom ls"
below "$(peak)" 65536 "KiB of memory at most"
has "$(echo 'transcript name=s004711 what=tokens' | talk)" "tokens=$((4711 + 1))," "one of them can be used"
stop
is "$status" 0 "it ends well"

fathomd=$top_builddir/tests/fathomd_heavy
begin
[ "$ready" -ge 2000 ]
ok "a fathomd that takes 0.3 ms a session is found out: $ready ms"
list
[ "$each" -ge 100 ]
ok "one that takes 20 us a line is found out: $each ms"
[ "$(peak)" -ge 65536 ]
ok "one that holds 8 KiB a session is found out: $(peak) KiB"
stop
fathomd=
rm "$dir"/state/index.db*
begin
[ "$reads" -ge $many ]
ok "and one that has to read each ledger: $reads reads"
plan
