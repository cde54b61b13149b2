#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Many sessions at once: more than the engine has places for, in one batch, forked and rolled
# back, and through a fault. Each says what it would have said alone.
# shellcheck disable=SC1091,SC2154
. "${srcdir:-.}/tests/e2e/daemon.subr"
seq 1 150 | tr '\n' ' ' >"$dir/text"

one() { # NUMBER: a session of that name, and all that it draws
    talk <<END | sed 's/ queue_us=.*//; s/ replay=.*//'
session.new name=s$1
append name=s$1 text=@$dir/text
append name=s$1 text=this%20is%20number%20$1
sample name=s$1 n=25 temperature=0.9 seed=$1 quiet=1
checkpoint name=s$1 label=here
append name=s$1 messages=[{"role":"user","content":"$1"}]
sample name=s$1 n=10 temperature=0 seed=1 quiet=1
rollback name=s$1 to=here
sample name=s$1 n=10 temperature=0 seed=1 quiet=1
fork name=s$1 to=f$1 at=here
sample name=f$1 n=10 temperature=0 seed=1 quiet=1
logits name=f$1
transcript name=s$1 what=tokens
END
}
all() { # one client each, all at the same time
    clients=
    for i in 1 2 3 4 5 6 7 8; do
        one $i >"$dir/out.$i" &
        clients="$clients $!"
    done
    # shellcheck disable=SC2086
    wait $clients
    cat "$dir"/out.?
}

start
for i in 1 2 3 4 5 6 7 8; do one $i; done >"$dir/alone"
stop
wanted=$(cat "$dir/alone")
is "$(grep -ac '^ok .*n=[0-9]* reason=' "$dir/alone")" 32 "eight sessions, one after the other"
drawn=$(sed -n 's/^ok pos=[0-9]* n=10 .* tokens=\([0-9,]*\) .*/\1/p' "$dir/alone")
is "$(printf '%s\n' "$drawn" | awk 'NR % 3 == 2 { a = $0 } NR % 3 == 0 && a == $0' | wc -l)" 8 \
    "a fork draws what the session draws after the rollback"

start
is "$(all)" "$wanted" "all at once, in one batch"
stop
FAKE_ENGINE=slow=2ms start --max-sequences 3 --feed-tokens 64
is "$(all)" "$wanted" "with places for three in the engine"
has "$(echo status | talk)" 'state=serving .*engine_restarts=0 ' "without a fault"
stop
start --max-sequences 1 --snapshots 0
is "$(all)" "$wanted" "with a place for one"
stop
rm -f "$dir/once"
FAKE_ENGINE=slow=2ms,crash@60,once:$dir/once start --max-sequences 5 --feed-tokens 32
is "$(all)" "$wanted" "through a crash with all of them in the batch"
is "$(grep -c 'engine-ended.*signal 6' "$dir/log")" 1 "of which there was one"
stop
# The first client's sessions are idle when the second one is told that there is no room.
for step in 62 75 90; do
    rm -f "$dir/once"
    FAKE_ENGINE=quota@$step,once:$dir/once start --feed-tokens 64
    got=$(one 1; one 2)
    is "$got" "$(head -26 "$dir/alone")" "no room for caches at step $step: idle ones make room"
    [ -e "$dir/once" ]
    ok "and there was none"
    stop
done

# Snapshots: going back to a turn's end costs nothing while its copy is there.
start
got=$(talk <<END
session.new name=a
append name=a messages=[{"role":"user","content":"one"}]
sample name=a n=20 temperature=0 quiet=1
append name=a messages=[{"role":"user","content":"two"}]
sample name=a n=20 temperature=0 quiet=1
rollback name=a to=turn-1
fork name=a to=b at=turn-1
sample name=a n=1 quiet=1 temperature=0
stat name=a
session.new name=c
append name=c text=x
delete name=c
delete name=c
END
)
has "$got" 'name=b pos=[0-9]* replay=0' "a fork of a turn's end needs no replay"
has "$got" 'points={name=turn-1;pos=[0-9]*\(;durable=1\)\{0,1\}}' "checkpoints behind a rollback are gone"
has "$got" 'error not-found .*c' "a deleted session is gone"

# The queue of a session: in order, up to its limit, and a cancelled one leaves it.
stop
FAKE_ENGINE=slow=30ms start --max-jobs-per-session 3
{
    echo 'session.new name=q'
    echo 'append name=q text=hello'
    echo 'burst 4'
    echo 'sample name=q n=40 temperature=0 quiet=1'
    for i in 1 2 3; do echo "append name=q tokens=$i"; done
} | talk >"$dir/queued"
has "$(grep -a ' n=40 ' "$dir/queued")" 'reason=limit' "a long sample is not disturbed by what waits"
is "$(sed -n 's/^ok pos=\([0-9]*\) appended=1\( .*\)*$/\1/p' "$dir/queued" | tr '\n' ' ')" "43 44 " \
    "those in the queue come one after the other"
has "$(cat "$dir/queued")" 'error busy .*max-jobs-per-session' "and one too many is refused"
stop
plan
