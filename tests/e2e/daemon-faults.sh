#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The engine crashes, hangs and lies: a client's stream goes on with the tokens that it would
# have had, and the daemon gives up when it should and not before.
# shellcheck disable=SC1091,SC2154
. "${srcdir:-.}/tests/e2e/daemon.subr"

# A long append, a greedy and a seeded sample with penalties, stop strings that do not come.
seq 1 400 | tr '\n' ' ' >"$dir/text"
conversation() {
    talk <<END
session.new name=a
append name=a text=@$dir/text
sample name=a n=40 temperature=0 quiet=1 seed=1
sample name=a n=40 temperature=1.5 seed=7 repetition=1.2 stop=zzzzzz,qqqqq quiet=1
transcript name=a what=tokens
END
}
# Without what tells of times, and which process drew what.
plain() { sed 's/ queue_us=.*//'; }

start
wanted=$(conversation | plain)
has "$wanted" 'ok pos=[0-9]* n=40 reason=limit' "an undisturbed conversation"
stop
is "$status" 0 "SIGTERM ends the daemon with 0"

# Prefill is the first steps (feed-tokens=64 makes several), decode the later ones.
for fault in crash@1 crash@3 crash@20 crash@60 kill@2 kill@30 exit@25 fault@4 fault@33 hang@3 \
    hang@40 stuck@35 lie-pos@2 lie-pos@31 lie-token@26 lie-job@27 lie-seq@28 garbage@5 garbage@29 \
    short@32 twice@36 silent@34; do
    rm -f "$dir/once"
    # Those that stop are waited for; the others may take as long as the machine needs.
    case $fault in
    hang* | stuck* | silent*) patience=2s ;;
    *) patience=60s ;;
    esac
    FAKE_ENGINE=$fault,once:$dir/once start --feed-tokens 64 --step-timeout $patience \
        --step-timeout-per-token 0s
    is "$(FAKE_ENGINE='' conversation | plain)" "$wanted" "$fault: the same answer"
    grep -q engine-ended "$dir/log" && [ -e "$dir/once" ]
    ok "$fault: and the engine did go wrong"
    stop
done

# Killed from outside, again and again, while it draws slowly.
FAKE_ENGINE=slow=20ms start
( for i in 1 2 3 4; do
    patient
    until [ "$(grep -c engine-ready "$dir/log")" -ge "$i" ] || tired; do :; done
    sleep 0.3
    kill -KILL "$(engine_pid)"
done ) &
killer=$!
is "$(conversation | plain)" "$wanted" "kill -9 again and again: the same answer"
wait "$killer"
[ "$(grep -c 'engine-ended.*signal 9' "$dir/log")" -ge 2 ]
ok "and it was killed twice at least"
stop

# One that fails at its first step each time: the request that does it is found and refused.
FAKE_ENGINE=crash@1 start
got=$(talk <<END
session.new name=poison
append name=poison text=hello
append name=poison text=again
stat name=poison
session.new name=other
END
)
has "$got" 'error damaged .*pos=0' "a request that brings the engine down twice is refused"
has "$got" 'error damaged .*roll%20it%20back' "and so is the next one of that session"
has "$got" 'state=broken' "the session says that it is broken"
has "$got" 'ok name=other' "others go on"
is "$(grep -c engine-ended "$dir/log")" 2 "two faults were enough to find it"
got=$(talk <<END
rollback name=poison pos=0
stat name=poison
delete name=poison
END
)
has "$got" 'state=idle' "a rollback mends it"
stop

FAKE_ENGINE=exit@start launch --restart-limit 3 --restart-window 60s
wait "$daemon"
is $? 1 "an engine that never starts: exit 1, for systemd to decide"
daemon=
grep -q 'giving-up.*status 1' "$dir/log"
ok "and the log says why"
[ "$(grep -c engine-started "$dir/log")" -eq 4 ]
ok "after as many tries as restart-limit allows"

FAKE_ENGINE=refuse@start launch
wait "$daemon"
is $? 78 "a model that the engine refuses: exit 78, which systemd does not retry"
daemon=
grep -q 'this model is not for me' "$dir/log"
ok "with the engine's own reason"

FAKE_ENGINE=noready launch --load-timeout 300ms --restart-limit 1
wait "$daemon"
is $? 1 "loading that makes no progress is ended"
daemon=
grep -q 'load-timeout' "$dir/log"
ok "and the log names the setting"

launch --engine /nonexistent/engine
wait "$daemon"
is $? 78 "no engine: exit 78"
daemon=

# With tokens in memory it stays, says so, and tries again when the window is over.
start --restart-limit 1 --restart-window 6s
talk >/dev/null <<END
session.new name=a
append name=a text=hello
END
patient
until echo status | talk | grep -q 'state=failed' || tired; do
    kill -KILL "$(engine_pid)" 2>/dev/null
done
got=$(talk <<END
status
transcript name=a
append name=a text=more
END
)
has "$got" 'ok state=failed sentence=FAILED' "the budget is used up: status says failed"
has "$got" 'text=.*hello' "transcripts can still be read"
has "$got" 'error unavailable .*given%20up' "new work is refused with the reason"
eventually status 'state=serving'
has "$got" 'state=serving' "after the window it tries again"
has "$(echo 'append name=a text=more' | talk)" 'ok pos=' "and takes work"
stop
is "$status" 0 "and ends well"
plan
