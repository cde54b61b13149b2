#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Operations that wait for each other on one session, and results that outlive what they tell
# of: each transcript is what the same operations give one after the other, with time between.
# shellcheck disable=SC1091,SC2154,SC2034
. "${srcdir:-.}/tests/e2e/daemon.subr"

tokens=$(seq -s, 10 400)
other=$(seq -s, 900 930)
field() { LC_ALL=C sed -n "s/.* $1=\([^ ]*\).*/\1/p"; }
transcript() { echo "transcript name=$1 what=tokens" | talk | field tokens; }

# All lines of stdin are sent at once; the answers are in $dir/all.
rush() {
    cat >"$dir/rush"
    (
        echo "burst $(wc -l <"$dir/rush")"
        cat "$dir/rush"
    ) | talk >"$dir/all"
}

begin() { # NAME
    talk >/dev/null <<END
session.new name=$1
append name=$1 tokens=$tokens
checkpoint name=$1 label=x
append name=$1 tokens=$other
END
}

start
begin calm
echo "sample name=calm n=8 temperature=0" | talk >/dev/null
wanted=$(transcript calm)
begin calm-back
printf '%s\n' "rollback name=calm-back to=x" "sample name=calm-back n=8 temperature=0" |
    talk >/dev/null
wanted_back=$(transcript calm-back)
[ -n "$wanted" ] && [ -n "$wanted_back" ] && [ "$wanted" != "$wanted_back" ]
ok "what undisturbed sessions say"
stop

FAKE_ENGINE=slow=60ms start
for name in scored twice back both; do begin $name; done
rush <<END
score name=scored tokens=$(seq -s, 500 900)
sample name=scored n=8 temperature=0
END
is "$(transcript scored)" "$wanted" "a sample behind a score draws the same tokens"

rush <<END
sample name=twice n=8 temperature=0
score name=twice tokens=5,6,7
score name=twice tokens=5,6,7
END
is "$(transcript twice)" "$wanted" "scores behind a sample leave it as it is"
is "$(grep -ac '^ok n=3' "$dir/all")" 2 "and both have their result"
is "$(grep -a '^ok n=3' "$dir/all" | sort -u | wc -l)" 1 "the same one"

# While another one streams, the engine takes packets only between its steps.
begin busy
begin double
echo "sample name=busy n=60 temperature=0" | talk >/dev/null &
busy=$!
eventually "stat name=busy" 'state=sampling'
talk >"$dir/all" <<END
score name=double tokens=5,6,7
score name=double tokens=5,6,7
sample name=double n=8 temperature=0
END
wait $busy
is "$(transcript double)" "$wanted" "two scores in a row while another session streams"
! grep -q engine-ended "$dir/log"
ok "and the engine had nothing to complain of"

rush <<END
score name=back tokens=$(seq -s, 500 900)
rollback name=back to=x
sample name=back n=8 temperature=0
END
is "$(transcript back)" "$wanted_back" "a rollback queued behind a score, then a sample"

rush <<END
sample name=both n=100 temperature=1 seed=3
rollback name=both to=x
sample name=both n=8 temperature=0
score name=both tokens=1,2,3
END
is "$(transcript both)" "$wanted_back" "a rollback queued behind a sample"
stop
is "$status" 0 "and the daemon is well"

# No room for all tokens of an append: what fits is kept, and a sample goes on behind that.
FAKE_ENGINE=slow=30ms start --max-tokens-per-user 700 --feed-tokens 64
begin full
rush <<END
append name=full tokens=$(seq -s, 1000 1600)
sample name=full n=4 temperature=0
END
grep -aq 'error quota' "$dir/all"
ok "an append past the quota is told so"
wanted=$(transcript full)
kept=$(echo "$wanted" | tr ',' '\n' | wc -l)
[ "$kept" -ge 426 ] && [ "$kept" -le 700 ]
ok "its session has at most the quota's tokens"
talk >/dev/null <<END
delete name=full
session.new name=again
append name=again tokens=$(echo "$wanted" | cut -d, -f "1-$((kept - 4))")
sample name=again n=4 temperature=0
END
is "$(transcript again)" "$wanted" "and the sample behind it draws what belongs there"
stop
is "$status" 0 "and the daemon is well"

start
begin calm
[ "$(echo "sample name=calm n=8 temperature=0" | talk | tail -1 | field pos)" = 430 ]
ok "(a sample ends at 430)"
begin a
talk >"$dir/all" <<END
append name=a tokens=7,8,9 op_id=0123456789abcdef
rollback name=a to=x
append name=a tokens=7,8,9 op_id=0123456789abcdef
sample name=a n=5 temperature=0 op_id=fedcba9876543210
rollback name=a to=x
append name=a tokens=$(seq -s, 1 50)
sample name=a n=5 temperature=0 op_id=fedcba9876543210
stat name=a
END
is "$(grep -c 'error conflict .*rolled%20back%20since' "$dir/all")" 2 \
    "an op_id whose work was rolled back is not done again, nor told as if it were there"
has "$(tail -1 "$dir/all")" ' pos=441 ' "and nothing was added"

# A reader that takes all at once of what is there already.
talk >"$dir/all" <<END
sample name=a n=9000 temperature=0 ignore_eos=1 credit=100000 op_id=aaaaaaaaaaaaaaaa quiet=1
sample name=a n=9000 temperature=0 ignore_eos=1 credit=100000 op_id=aaaaaaaaaaaaaaaa
END
is "$(grep -ac '^item' "$dir/all")" 9000 "a long repeated stream comes to its end"
has "$(tail -1 "$dir/all")" 'repeated=1' "which says that it was repeated"
is "$(tail -1 "$dir/all" | field seed)" "$(head -1 "$dir/all" | field seed)" \
    "with the seed of the first time"

# Checkpoints of a fork, more than came with it.
got=$( (
    for i in 1 2 3 4 5; do echo "checkpoint name=a label=c$i"; done
    echo "fork name=a to=b"
    for i in 1 2 3 4 5 6 7 8 9; do echo "checkpoint name=b label=d$i"; done
    echo "stat name=b"
) | talk | tail -1)
has "$got" 'name=c5;.*name=d9;' "a fork has its own checkpoints behind those it came with"

# Paused for its reader, who leaves: what was detached goes on.
echo 'quit-after 2
sample name=b n=40 temperature=0 ignore_eos=1 detach=1 on_stall=pause credit=2' | talk >/dev/null
was=$(echo "$got" | field pos)
eventually "stat name=b" "state=idle"
is "$(echo "$got" | field pos)" $((was + 40)) "a detached sample goes on when its slow reader has left"

# Text is charged until it has been worked on, also when nobody waits for it any more.
stop
start --max-queued-input-per-user 1M
yes word | head -c 250000 >"$dir/words"
(
    echo "burst 20"
    for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        echo "tokenize text=@$dir/words"
    done
    echo "tokenize text=one%20more"
) | talk | cut -c 1-40 >"$dir/all"
grep -aq '^error quota' "$dir/all" && grep -aq '^ok' "$dir/all"
ok "texts to tokenize count against the quota of their user"
has "$(tail -1 "$dir/all")" '^ok' "and no longer than they take"

# Paused for its reader, a session gives its place in the engine to others, and when the reader
# leaves it is over with what it had. The engine may draw a few more before it hears of a pause,
# never as many as were asked for: that would take it 20 seconds.
stop
FAKE_ENGINE=slow=5ms start --max-sequences 1
begin one
begin two
"$top_builddir/tests/talk" "$sock" >"$dir/paused" 2>&1 <<END &
credit 0
sample name=one n=4000 temperature=0 ignore_eos=1 on_stall=pause credit=2
END
paused=$!
helpers=$paused
patient
until [ "$(grep -ac '^item' "$dir/paused")" -eq 2 ] || tired; do :; done
has "$(echo "sample name=two n=3 temperature=0 quiet=1" | talk)" '^ok pos=425' \
    "a reader that is slow keeps no place in the engine"
eventually "stat name=one" 'state=queued'
was=$(echo "$got" | field pos)
[ "${was:-0}" -ge 424 ] && [ "$was" -lt 4422 ]
ok "it waits, with what it had drawn when it was paused"
{ kill "$paused" && wait "$paused"; } 2>/dev/null
helpers=
eventually "stat name=one" 'state=idle'
is "$(echo "$got" | field pos)" "$was" "and draws no more when its reader leaves"
echo "sample name=one n=2 temperature=0 ignore_eos=1" | talk >/dev/null
is "$(echo "stat name=one" | talk | field pos)" $((was + 2)) "the session goes on from there"

# Rewound further than the caches remember: the result says what has to be computed again.
begin far
got=$(talk <<END
rollback name=far pos=300
rollback name=far pos=299
sample name=far n=3 temperature=0
rollback name=far pos=301
END
)
has "$(echo "$got" | sed -n 1p)" ' replay=300' "a far rollback: all is replayed"
has "$(echo "$got" | tail -1)" ' replay=0' "a near one: nothing is"
stop
is "$status" 0 "and the daemon is well"

FAKE_ENGINE=slow=1s start
begin slow
echo "rollback name=slow pos=380" | talk >/dev/null
echo "sample name=slow n=1 temperature=0" | talk >/dev/null &
patient
until got=$(echo "stat name=slow" | talk) && [ "$got" != "${got#*state=replaying}" ] ||
    [ "$got" != "${got#* pos=381 }" ] || tired; do :; done
has "$got" 'state=replaying' \
    "a session whose rows are computed again says that it is replaying"
wait $!
stop
plan
