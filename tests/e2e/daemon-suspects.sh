#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Whose fault is it? A request that brings the engine down is found among others that run beside
# it, and they lose nothing; an engine that lies, or falls silent, is noticed.
# shellcheck disable=SC1091,SC2154
. "${srcdir:-.}/tests/e2e/daemon.subr"

field() { LC_ALL=C sed -n "s/.* $1=\([^ ]*\).*/\1/p"; }
transcript() { echo "transcript name=$1 what=tokens" | talk | field tokens; }

for lie in lie-vocab lie-seqs lie-step; do
    FAKE_ENGINE=$lie launch --restart-limit 1
    wait "$daemon"
    is $? 1 "$lie: an engine whose first packet cannot be is not used"
    daemon=
    grep -q 'engine-ended.*the engine lies' "$dir/log"
    ok "and the log says why"
done

# Three sessions draw, one reads, and one reads what no engine survives, in the middle of much.
innocent() {
    jobs=
    for name in a b c; do
        printf '%s\n' "session.new name=$name" "append name=$name tokens=$(seq -s, 1 50)" \
            "sample name=$name n=60 temperature=1 seed=7 ignore_eos=1 quiet=1" |
            talk >/dev/null &
        jobs="$jobs $!"
    done
    printf '%s\n' "session.new name=d" "append name=d tokens=$(seq -s, 1 3000)" \
        "sample name=d n=9 temperature=0 ignore_eos=1 quiet=1" | talk >/dev/null &
    jobs="$jobs $!"
}
all() { for name in a b c d; do transcript $name; done; }

start
innocent
for job in $jobs; do wait "$job"; done
wanted=$(all)
stop

poison=8100
for before in 5 700 1900; do
    FAKE_ENGINE=poison=$poison,slow=10ms start --feed-tokens 400
    innocent
    printf '%s\n' "session.new name=poison" \
        "append name=poison tokens=$(seq -s, 1 $before),$poison,$(seq -s, 1 300)" \
        "stat name=poison" | talk >"$dir/poison"
    for job in $jobs; do wait "$job"; done
    is "$(all)" "$wanted" "poison behind $before tokens: the others draw what they would have"
    grep -q '^error damaged' "$dir/poison" && grep -q 'state=broken' "$dir/poison"
    ok "its session is found"
    is "$(grep -c session-broken "$dir/log")" 1 "and no other"
    is "$(grep -c engine-ended "$dir/log")" 2 "with two faults"
    got=$(printf '%s\n' "rollback name=poison pos=0" "append name=poison tokens=1,2,3" \
        "sample name=poison n=2 temperature=0 quiet=1" | talk | tail -1)
    has "$got" '^ok pos=5' "rolled back, it works again"
    stop
done

# Two of them, side by side.
FAKE_ENGINE=poison=$poison,slow=10ms start
innocent
for name in p q; do
    printf '%s\n' "session.new name=$name" \
        "append name=$name tokens=$(seq -s, 1 900),$poison" | talk >"$dir/$name" &
    jobs="$jobs $!"
done
for job in $jobs; do wait "$job"; done
is "$(all)" "$wanted" "two poisons: the others draw what they would have"
is "$(cat "$dir/p" "$dir/q" | grep -c '^error damaged')" 2 "both are found"
is "$(grep -c session-broken "$dir/log")" 2 "and no other"
stop

# Steps go on, the beat goes on, and nothing arrives.
FAKE_ENGINE=slow=10ms,silent@30,once:$dir/once start --step-timeout 2s
innocent
for job in $jobs; do wait "$job"; done
is "$(all)" "$wanted" "a silent engine is replaced"
grep -q 'engine-ended.*packets' "$dir/log"
ok "for what it had sent and did not come"
stop
rm -f "$dir/once"

# A kill from outside is nobody's fault, however often.
FAKE_ENGINE=slow=10ms start --restart-limit 1000 --restart-window 100ms
innocent
for _ in 1 2 3 4 5 6; do
    pid=$(engine_pid)
    kill -KILL "$pid"
    patient
    until [ "$(engine_pid)" != "$pid" ] || tired; do :; done
    sleep 0.05
done
for job in $jobs; do wait "$job"; done
if grep -q '^oom_kill ' /proc/vmstat 2>/dev/null; then
    is "$(all)" "$wanted" "killed six times in a row, hardly started: the same tokens"
    ! grep -q session-broken "$dir/log"
    ok "and it is held against none"
else
    skip "and it is held against none" "the system does not count its own kills"
fi
stop

# More jobs than the link has room for, and their sessions deleted in the middle.
crowd() { # NUMBER METHOD-AND-KEYS
    sessions=$(seq -f "$1-%g" 1 60)
    echo "burst 60"
    for name in $sessions; do echo "$2 name=$name $3"; done
}
fill() {
    jobs=
    for i in 1 2 3 4 5; do
        (
            crowd $i session.new
            crowd $i append "tokens=$(seq -s, 1 30)"
            crowd $i append "tokens=$(seq -s, 1 400)"
            crowd $i delete
        ) | talk >"$dir/fill.$i" &
        jobs="$jobs $!"
    done
    for job in $jobs; do wait "$job"; done
}
start --max-sequences 400 --max-sessions-per-user 400 --max-requests-per-user 400 \
    --feed-tokens 20
fill
fill
is "$(cat "$dir"/fill.* | grep -c '^ok')" 1200 "300 sessions at once, and all of them deleted"
(
    for i in 1 2 3 4 5; do
        crowd $i session.new
        crowd $i append "tokens=$(seq -s, 1 400)"
    done
) | talk | grep -c '^ok' >"$dir/n"
(
    sleep 0.3
    for i in 1 2 3 4 5; do crowd $i delete; done
) | talk | grep -c '^ok' >"$dir/m" &
for i in 1 2 3 4 5; do crowd $i append "tokens=$(seq -s, 1 900)"; done | talk >/dev/null
wait $!
is "$(cat "$dir/n" "$dir/m" | tr '\n' ' ')" "600 300 " "deleted while they are fed"
fill
is "$(cat "$dir"/fill.* | grep -c '^ok')" 1200 "no place in the engine was lost"
! grep -q engine-ended "$dir/log"
ok "and the engine had nothing to complain of"
stop
is "$status" 0 "the daemon is well"
plan
