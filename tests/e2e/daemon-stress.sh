#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Many operations drawn at random, on sessions side by side, with more sessions than places in
# the engine and an engine that is killed every few steps: every answer and every transcript is
# what an undisturbed daemon gives. STRESS_SEED and STRESS_OPS choose others.
# shellcheck disable=SC1091,SC2154
. "${srcdir:-.}/tests/e2e/daemon.subr"
seed=${STRESS_SEED:-1} ops=${STRESS_OPS:-30}

# The operations of one session; labels and positions are such that they exist.
script() { # NUMBER
    awk -v seed="$((seed * 100 + $1))" -v ops="$ops" -v me="s$1" '
    function r(n) { return int(rand() * n) }
    function tokens(n,   s, i) {
        s = 1 + r(8000)
        for (i = 1; i < n; i++) s = s "," 1 + r(8000)
        return s
    }
    BEGIN {
        srand(seed)
        print "session.new name=" me
        print "append name=" me " tokens=" tokens(40)
        print "checkpoint name=" me " label=c0"
        for (i = 1; i <= ops; i++) {
            k = r(13)
            if (k == 12) { # what is asked again is not done again
                line = (r(2) ? "append tokens=" tokens(1 + r(99)) : \
                    "sample temperature=1 seed=5 ignore_eos=1 quiet=1 n=" 1 + r(9)) \
                    " name=" me sprintf(" op_id=%05d.%010d", seed, i)
                print line
                print line
            } else if (k < 3) print "append name=" me " tokens=" tokens(1 + r(300))
            else if (k < 4) print "append name=" me " text=some%20words%20" r(1000)
            else if (k < 7) print "sample name=" me " n=" 1 + r(30) " seed=" r(1000) \
                " temperature=" (r(2) ? 0 : 1.3) " repetition=1.1 ignore_eos=1 quiet=1"
            else if (k < 8) print "sample name=" me " n=" 1 + r(20) \
                " seed=3 temperature=1 credit=100 ignore_eos=1"
            else if (k < 9) print "score name=" me " tokens=" tokens(1 + r(60))
            else if (k < 10) print "checkpoint name=" me " label=c" ++points
            else if (k < 11) { points = points > 0 ? r(points + 1) : 0
                print "rollback name=" me " to=c" points }
            else {
                print "fork name=" me " to=" me ".f" i " at=c" r(points + 1)
                print "sample name=" me ".f" i " n=" 1 + r(8) " temperature=0 seed=1 quiet=1"
                print "transcript name=" me ".f" i " what=tokens"
                print "delete name=" me ".f" i
            }
            if (r(6) == 0) print "logits name=" me
        }
        print "transcript name=" me " what=tokens"
    }'
}

run() { # FOLDER
    mkdir "$dir/$1"
    jobs=
    for i in 1 2 3 4 5 6; do
        talk <"$dir/script.$i" |
            LC_ALL=C sed 's/ queue_us=.*//; s/ replay=[0-9]*//; s/ restored=[0-9]*//' >"$dir/$1/$i" &
        jobs="$jobs $!"
    done
    for job in $jobs; do wait "$job"; done
}

for i in 1 2 3 4 5 6; do script $i >"$dir/script.$i"; done
start
run calm
stop
is "$status" 0 "undisturbed"
[ "$(cat "$dir"/calm/* | grep -ac '^ok')" -gt $((6 * ops)) ]
ok "all of it has answers"
! cat "$dir"/calm/* | grep -aq '^error\|^dead'
ok "and no errors"

FAKE_ENGINE=kill@60 start --max-sequences 4 --snapshots 1 --feed-tokens 100 \
    --restart-limit 1000 --restart-window 100ms
run wild
stop
is "$status" 0 "with an engine that dies again and again, and too few places"
[ "$(grep -c engine-ended "$dir/log")" -gt 5 ]
ok "it did die"
! grep -q session-broken "$dir/log"
ok "which was held against no session"
for i in 1 2 3 4 5 6; do
    cmp -s "$dir/calm/$i" "$dir/wild/$i"
    ok "session $i: the same answers"
    cmp -s "$dir/calm/$i" "$dir/wild/$i" || diff -a "$dir/calm/$i" "$dir/wild/$i" |
        head -4 | cut -c 1-300 | sed 's/^/# /'
done

# Clients that leave in the middle of whatever it is: nothing is left of them.
FAKE_ENGINE=kill@200,slow=2ms start --max-sequences 4 --feed-tokens 100 \
    --restart-limit 1000 --restart-window 100ms
for i in 1 2 3 4 5 6; do
    (
        for wait in 0.05 0.1 0.15 0.2 0.3; do
            sed "s/name=s$i/name=s$i-$wait/g; s/to=s$i/to=s$i-$wait/g" "$dir/script.$i" |
                awk -v n="$i" 'NR % 7 == n { print "quit-after " n; print; exit }
                    NR % 5 == 4 { print "cancel-after 2" } { print }' |
                timeout -s KILL "$wait" "$top_builddir/tests/talk" "$sock" >/dev/null 2>&1
            sed "s/name=s$i/name=s$i-$wait/g; 1d; 30q" "$dir/script.$i" |
                grep -v '^transcript\|^fork\|[.]f' | { echo "burst 25"; cat; } |
                timeout -s KILL "$wait" "$top_builddir/tests/talk" "$sock" >/dev/null 2>&1
            echo "delete name=s$i-$wait" | talk >/dev/null
        done
    ) 2>/dev/null &
    jobs="$jobs $!"
done
for job in $jobs; do wait "$job"; done
eventually status ' connections=1 .*queued=0 running=0'
has "$got" ' connections=1 .*queued=0 running=0' "clients leave in the middle: nothing runs on"
stop
is "$status" 0 "and the daemon is well"
plan
