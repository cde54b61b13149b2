#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What the tiers cost and what they withstand: true sizes of rows, many short turns, more sessions
# than places, an arena that is too small, disks that hang, fail and are full, forks and
# rollbacks. On the fake engine.
# shellcheck disable=SC1091,SC2154,SC2034,SC2012,SC2016
. "${srcdir:-.}/tests/e2e/daemon-kv.subr"

# numbers FROM COUNT: token ids, not all alike
numbers() { seq "$1" $(($1 + $2 - 1)) | awk '{ printf "%s%d", (NR > 1 ? "," : ""), 100 + ($1 * 7) % 7919 }'; }
bytes() { files "$1" | xargs -r stat -c %s | awk '{ s += $1 } END { print s + 0 }'; }
wait_for() { # COMMAND...
    patient
    until "$@" || tired; do :; done
    "$@"
}

# --- what a token costs, at the sizes of DeepSeek-V4-Flash ---------------------------------
# A page of 128 tokens has 449,824 bytes of packed rows (docs/KVFORMAT.md).
mkdir "$dir/flash"
cp "$srcdir/tests/data/flash/config.json" "$srcdir/models/fathom-mini/tokenizer.json" "$dir/flash/"
kvstart --model "$dir/flash" --host-memory 512M --save-after 50ms
echo 'session.new name=f' | talk >/dev/null
for at in 0 5000 9200; do # appends of 5,000, 4,200 and 8,192 tokens
    case $at in 0) add=5000 ;; 5000) add=4200 ;; *) add=8192 ;; esac
    was=$(files kvt | wc -l)
    echo "append name=f tokens=$(numbers $at $add)" | talk >/dev/null
    saved_to f $((at + add))
done
pages=$(((9200 + 8192) / 128))
row=$(bytes kvc)
[ $((row * 100)) -le $((pages * 449824 * 110)) ] && [ "$row" -ge $((pages * 449824)) ]
ok "rows were written once: $row bytes for $pages pages, $((row * 1000 / (pages * 449824))) per mille of their packed size"
is "$(files kvc | wc -l)" 7 "in as few files as the appends let them be"
f_wanted=$(echo 'sample name=f n=20 temperature=1 seed=4 quiet=1' | talk | plain)
echo 'rollback name=f pos=17392' | talk >/dev/null
stop -KILL
kvstart --model "$dir/flash" --host-memory 512M
is "$(echo 'sample name=f n=20 temperature=1 seed=4 quiet=1' | talk | plain)" "$f_wanted" \
    "killed and back: the same answer"
is "$(restored f)" "17392 0" "with nothing computed again"
stop

# --- many short turns ------------------------------------------------------------------------
fresh
kvstart --save-after 0s
echo 'session.new name=m' | talk >/dev/null
seen=0
for i in $(seq 1 33); do
    echo "append name=m tokens=$(numbers $((i * 128)) 128)" | talk >/dev/null
    wait_for eval '[ "$(newest_state | sed "s|.*/0*||; s|-.*||")" = '$((i * 128))' ]'
    c=$(files kvc | wc -l)
    [ "$c" -gt "$seen" ] && seen=$c
done
[ "$seen" -gt 20 ]
ok "each of many short appends is saved at once: $seen chunks"
wait_for eval '[ "$(files kvc | wc -l)" = 2 ]'
ok "and they are one when 4,096 tokens are complete"
is "$(files kvt | wc -l)" 1 "a state that is not the end of a turn goes when there is a newer one"
for i in $(seq 1 11); do
    talk >/dev/null <<END
append name=m messages=[{"role":"user","content":"$i"}]
sample name=m n=4 temperature=0 quiet=1 seed=1
END
done
echo 'checkpoint name=m label=named' | talk >/dev/null
stop
is "$(files kvt | wc -l)" 8 "of the ends of turns the last eight are kept"
kvstart --save-after 0s
echo "append name=m tokens=$(numbers 1 200)" | talk >/dev/null
for i in $(seq 1 9); do
    talk >/dev/null <<END
append name=m messages=[{"role":"user","content":"$i"}]
sample name=m n=4 temperature=0 quiet=1 seed=1
END
done
stop
is "$(files kvt | wc -l)" 9 "and that of a checkpoint with a name, however old it is"
m_len=$(sed -n 's/.*tokens=\([0-9]*\).*/\1/p' "$dir/log" | tail -1)

# --- more sessions than places ----------------------------------------------------------------
crowd() { # SETTINGS...: nine sessions in turn, twice; prints their answers
    fresh
    kvstart "$@"
    for i in 1 2 3 4 5 6 7 8 9; do
        talk <<END
session.new name=s$i
append name=s$i tokens=$(numbers $((i * 1000)) 1500)
sample name=s$i n=12 temperature=1 seed=$i quiet=1
END
    done
    crowd_before=$(computed)
    for i in 1 2 3 4 5 6 7 8 9; do
        echo "sample name=s$i n=12 temperature=1 seed=$((i + 50)) quiet=1" | talk
    done
}
crowd >"$dir/out"
wanted=$(plain <"$dir/out")
crowd --max-sequences 3 --snapshots 0 >"$dir/out"
is "$(plain <"$dir/out")" "$wanted" "nine sessions in three places: the same answers"
[ "$(grep -c cache-restored "$dir/log")" -ge 6 ]
ok "they left and came back: $(grep -c cache-restored "$dir/log") times"
again=$(($(computed) - crowd_before))
[ $again -lt 400 ]
ok "and $again of 13,500 tokens were computed again"
crowd --kv-memory 4M --snapshots 0 >"$dir/out"
is "$(plain <"$dir/out")" "$wanted" "nine sessions in caches for a few: the same answers"
[ "$(grep -c cache-restored "$dir/log")" -ge 3 ]
ok "they left and came back: $(grep -c cache-restored "$dir/log") times"
again=$(($(computed) - crowd_before))
[ $again -lt 1000 ]
ok "and $again of 13,500 tokens were computed again"
crowd --max-sequences 3 --snapshots 0 --host-memory 2M >"$dir/out"
is "$(plain <"$dir/out")" "$wanted" "without host memory: the same answers"
grep -q caches-not-kept "$dir/log" && [ $(($(computed) - crowd_before)) -gt 10000 ]
ok "from tokens, as the control shows"
stop

# --- memory smaller than one session -------------------------------------------------------------
fresh
kvstart --host-memory 4M --save-after 50ms
talk >/dev/null <<END
session.new name=l
append name=l tokens=$(numbers 1 40000)
END
saved_to l 40000
ok "a session of $(bytes kvc) bytes is saved through 4 MiB of host memory"
l_wanted=$(echo 'sample name=l n=20 temperature=1 seed=4 quiet=1' | talk | plain)
echo 'rollback name=l pos=40000' | talk >/dev/null
stop -KILL
kvstart --host-memory 4M
is "$(echo 'sample name=l n=20 temperature=1 seed=4 quiet=1' | talk | plain)" "$l_wanted" \
    "and comes back through it"
is "$(restored l)" "40000 0" "with nothing computed again"
files kvt | grep -q 0032768
ok "a state at 32,768 tokens was kept on the way"

# --- killed in the middle of a long append --------------------------------------------------------
fresh
FAKE_ENGINE=slow=60ms kvstart
echo "session.new name=l
append name=l tokens=$(numbers 1 50000)" | talk >/dev/null 2>&1 &
talker=$!
wait_for eval '[ -n "$(files kvt | grep 0032768)" ] && [ "$(files kvc | wc -l)" -ge 10 ]'
ok "a long append leaves chunks and a state on its way" # those of before are named by now
stop -KILL
wait $talker 2>/dev/null
kvstart
was=$(echo 'stat name=l' | talk | field pos)
got=$(echo "append name=l tokens=$(numbers $((was + 1)) $((50000 - was)))
sample name=l n=20 temperature=1 seed=4 quiet=1" | talk | plain)
[ "$(restored l | cut -d' ' -f1)" = 32768 ]
ok "daemon and engine are killed at $was tokens: it goes on from 32,768"
echo 'session.new name=whole
append name=whole tokens='"$(numbers 1 50000)"'
sample name=whole n=20 temperature=1 seed=4 quiet=1' | talk | plain | tail -1 >"$dir/out"
is "$(echo "$got" | tail -1)" "$(cat "$dir/out")" "to the same end"

# --- forks and rollbacks ----------------------------------------------------------------------------
fresh
kvstart
talk >/dev/null <<END
session.new name=a
append name=a tokens=$(numbers 1 6000)
checkpoint name=a label=six
append name=a tokens=$(numbers 6001 3000)
park name=a to=disk
END
stop
kvstart
got=$(talk <<END
fork name=a to=b at=six
fork name=a to=c pos=5000
END
)
has "$got" 'name=b pos=6000 replay=0' "a fork at a checkpoint needs nothing computed"
has "$got" 'name=c pos=5000 replay=5000' "one in front of all states needs all"
inodes=$(files kvc | xargs stat -c %i | sort | uniq -d | wc -l)
[ "$inodes" -ge 1 ]
ok "they share files: $inodes"
draw() { echo "sample name=$1 n=16 temperature=1 seed=9 quiet=1" | talk | plain; }
b=$(draw b)
before=$(computed)
c=$(draw c)
[ $(($(computed) - before)) -ge 5000 ]
ok "what was said of the replay is true"
talk >/dev/null <<END
delete name=b
rollback name=a to=six
END
is "$(draw a | sed 's/name=[^ ]*//')" "$b" "after a rollback to that checkpoint it is the same as the fork was"
got=$(echo 'rollback name=a pos=5000' | talk)
has "$got" 'replay=5000' "rolled back in front of all states"
is "$(draw a)" "$c" "it is the same as that fork"
echo 'park name=a to=disk' | talk >/dev/null
kill -KILL "$(engine_pid)"
echo 'rollback name=a pos=5000' | talk >/dev/null
stop -KILL
kvstart
is "$(draw a)" "$c" "and so it is after the next start"
stop

# --- disks -------------------------------------------------------------------------------------------
fresh
kvstart --store-timeout 300ms --stop-timeout 3s
talk >/dev/null <<END
session.new name=a
append name=a tokens=$(numbers 1 6000)
fork name=a to=same
park name=same to=disk
END
same=$(draw same)
echo 'rollback name=same pos=6000' | talk >/dev/null
echo full-write >"$dir/disk"
echo 'checkpoint name=a label=six' | talk >/dev/null # so that its state is kept
got=$(echo 'park name=a to=disk' | talk)
has "$got" 'error quota .*as%20was%20asked' "a full disk: a park to it is refused"
has "$(echo 'park name=a to=memory' | talk)" 'tier=memory' "but memory has room"
is "$(draw a)" "$same" "and nothing is lost"
echo 'rollback name=a pos=6000' | talk >/dev/null
echo fail-write >"$dir/disk"
has "$(echo 'park name=a to=disk' | talk)" 'error read-only .*stays' "a disk that fails: likewise"
: >"$dir/disk"
has "$(echo 'park name=a to=disk' | talk)" 'tier=disk' "and when it works again it is tried again"
echo fail-read >"$dir/disk"
is "$(draw a)" "$same" "a disk that cannot be read: the same answer, from tokens"
: >"$dir/disk"
# What could not be read may have lost its state, if the one behind the draw came before the rollback.
whole() { printf '%s\n' 'rollback name=a pos=6000' 'unpark name=a' 'park name=a to=disk' | talk; }
has "$(whole)" 'tier=disk' "it is saved anew"
echo hang-read >"$dir/disk"
is "$(draw a)" "$same" "a disk that hangs: the same answer, from tokens"
grep -q 'store-stalled' "$dir/log"
ok "and the log says why"
is "$(draw same)" "$same" "others go on meanwhile"
: >"$dir/disk"
await store-answers
ok "when it comes back, the log says so"
has "$(whole)" 'tier=disk' "and caches are saved again"
is "$(draw a)" "$same" "and read again"
has "$(restored a)" '^6000 ' "from the disk"
echo "append name=a tokens=$(numbers 1 5000)" | talk >/dev/null
echo hang-write >"$dir/disk"
stop
[ "$status" != none ]
ok "a disk that hangs at the end: fathomd ends all the same"
: >"$dir/disk"
kvstart
has "$(echo 'stat name=a' | talk)" "pos=$((6016 + 5000)) " "and no token is lost"

# --- idle ---------------------------------------------------------------------------------------------
fresh
kvstart --idle-to-memory 200ms --idle-to-disk 600ms
talk >/dev/null <<END
session.new name=a
append name=a tokens=$(numbers 1 6000)
END
eventually 'stat name=a' 'kv_pos=0'
has "$got" 'kv_pos=0' "a session that nobody uses leaves the engine"
[ -n "$(files kvt)" ]
ok "and is saved"
stop
plan
