#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What many parked sessions cost: start to READY, memory, `fathom ls`; and what an answer waits for
# the disk. On the fake engine, so that all of it is fathomd's own. Run it where make was run, after
# `make check TESTS=` has built the tests' programs:
#
#   tools/bench-sessions.sh [SESSIONS]     (10000)
# shellcheck disable=SC1091,SC2034,SC2154
set -u
many=${1:-10000}
srcdir=$(cd "$(dirname "$0")/.." && pwd)
top_builddir=.
. "$srcdir/tests/e2e/daemon.subr"
keep=1
now() { date +%s%N; }
ms() { echo $((($(now) - begin) / 1000000)); }
rss() { awk '/^VmRSS/ { print $2 }' "/proc/$daemon/status"; }
begin_daemon() {
    begin=$(now)
    launch --park-after 1h
    until grep -q 'ready listening' "$dir/log" 2>/dev/null; do sleep 0.002; done
    took=$(ms)
}

begin_daemon
echo "start with none: $took ms, $(rss) KiB"
begin=$(now)
awk -v n="$many" 'BEGIN { for (i = 0; i < n; i += 50) { print "burst 50"; for (k = i; k < i + 50; k++) printf "session.new name=s%06d\n", k } }' |
    talk | grep -c '^ok name' | sed 's/$/ sessions made in/' | tr '\n' ' '
echo "$(ms) ms"
printf 'session.new name=turns\n' | talk >/dev/null
begin=$(now)
awk 'BEGIN { for (i = 0; i < 1000; i++) print "append name=turns tokens=1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16" }' | talk >/dev/null
echo "append of 16 tokens, with the engine's part: $(($(ms))) us each, of 1000"
stop
begin_daemon
echo "start with $many: $took ms, $(rss) KiB"
for _ in 1 2 3; do
    begin=$(now)
    "$top_builddir/client/fathom" --socket "$sock" ls | wc -l | tr '\n' ' '
    echo "lines of fathom ls: $(ms) ms"
done
stop -KILL 2>/dev/null
begin_daemon
echo "start after kill -9: $took ms"
stop
rm "$dir"/state/index.db*
begin_daemon
echo "start without the index: $took ms"
stop
