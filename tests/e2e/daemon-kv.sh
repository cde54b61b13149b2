#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Caches outlive engine and daemon: parked, killed, damaged, evicted, a session goes on as if it
# had never left, and what was computed is not computed again. On the fake engine, whose answers
# depend on every byte of its caches.
# shellcheck disable=SC1091,SC2154,SC2034,SC2012,SC2016
. "${srcdir:-.}/tests/e2e/daemon-kv.subr"
seq 1 3000 | tr '\n' ' ' >"$dir/text"

make_a() {
    talk <<END
session.new name=a
append name=a text=@$dir/text
sample name=a n=40 temperature=0 quiet=1 seed=1
checkpoint name=a label=here
END
}
go_on() {
    talk <<END | plain
sample name=a n=40 temperature=1.5 seed=7 repetition=1.2 quiet=1
append name=a text=and%20then
sample name=a n=20 temperature=0 quiet=1 seed=1
END
}

# --- undisturbed ---------------------------------------------------------------------------
kvstart
make_a >"$dir/made"
wanted=$(go_on)
has "$wanted" 'ok pos=[0-9]* n=40 reason=limit' "an undisturbed conversation"
len=$(field pos <"$dir/made" | tail -1)

# --- parked, and back ------------------------------------------------------------------------
for how in memory disk; do
    fresh
    kvstart
    make_a >/dev/null
    got=$(echo "park name=a to=$how" | talk)
    has "$got" "pos=$len tier=$how .*replay=[01]\$" "park: it is in the $how tier"
    before=$(computed)
    has "$(echo 'unpark name=a' | talk)" "pos=$len tier=engine .*replay=[01]\$" "unpark: it is back"
    now=$(($(computed) - before))
    [ $now -le 1 ]
    ok "with $now of $len tokens computed again"
    is "$(go_on)" "$wanted" "and goes on as if it had not been away"
    [ "$(restored a | cut -d' ' -f1)" -ge $((len - 1)) ]
    ok "from what was saved"
done
got=$(echo 'park name=a to=memory
park name=a to=memory
unpark name=nobody' | talk)
has "$got" 'error not-found' "no session, no park"
is "$(echo "$got" | grep -c 'tier=memory')" 2 "to park what is parked is no error"

# --- killed -----------------------------------------------------------------------------------
fresh
kvstart --save-after 0s
make_a >/dev/null
patient
until [ -n "$(files kvt)" ] || tired; do :; done
kill -KILL "$(engine_pid)"
is "$(go_on)" "$wanted" "the engine is killed: the same answer"
[ -n "$(restored a)" ]
ok "from what was saved"
[ "$(computed)" -lt 200 ]
ok "the new engine has computed $(computed) tokens"

fresh
kvstart --save-after 0s
make_a >/dev/null
patient
until [ "$(files kvc | wc -l)" -ge 3 ] || tired; do :; done
saved_to a $((len - 41))
stop -KILL
kvstart
is "$(go_on)" "$wanted" "daemon and engine are killed: the same answer"
[ "$(restored a | cut -d' ' -f1)" -ge $((len - 41)) ]
ok "from what was saved"
[ "$(computed)" -lt 200 ]
ok "the new engine has computed $(computed) tokens"

fresh
kvstart --save-after 1h
make_a >/dev/null
stop
is "$status" 0 "SIGTERM before anything was saved"
[ -n "$(files kvt)" ]
ok "saves it"
kvstart
is "$(go_on)" "$wanted" "and the next daemon goes on"
[ "$(computed)" -lt 200 ]
ok "having computed $(computed) tokens"
stop
rm -rf "$dir/golden"
cp -a "$dir/state" "$dir/golden"

# --- a rotten cache ----------------------------------------------------------------------------
fresh
rm -f "$dir/once"
FAKE_ENGINE=kv-spoil@1,once:$dir/once kvstart
make_a >/dev/null
echo 'park name=a to=disk' | talk >/dev/null
[ -e "$dir/once" ] && [ "$(go_on)" != "$wanted" ]
ok "control: one wrong byte in the caches would be seen in the answer"

# --- an engine that fails at it -----------------------------------------------------------------
for fault in kv-crash@1 kv-crash@2 kv-crash@4 kv-crash@6 kv-fail@1 kv-fail@5 kv-fail@6 kv-lie@1 kv-lie@4; do
    fresh
    rm -f "$dir/once"
    FAKE_ENGINE=$fault,once:$dir/once kvstart
    make_a >/dev/null
    talk >/dev/null <<END
park name=a to=disk
unpark name=a
park name=a to=memory
END
    is "$(FAKE_ENGINE='' go_on)" "$wanted" "$fault: the same answer"
    [ -e "$dir/once" ]
    ok "$fault: and it did happen"
done

# --- damaged files ------------------------------------------------------------------------------
# As they are, with one state more: "here" is at the end of the first sample.
again() { fresh; cp -a "$dir/golden" "$dir/state"; }
again
kvstart
is "$(go_on >/dev/null; echo 'rollback name=a to=here' | talk | field pos)" "$len" "back to a named checkpoint"
is "$(go_on)" "$wanted" "and on from there as before"
stop

damage() { # WHAT COMMAND...: with the newest state, or a chunk, as $f
    again
    "$@"
    kvstart
    is "$(go_on_from_here)" "$wanted" "$what: the same answer"
    grep -q 'cache-not-restored' "$dir/log"
    ok "$what: it was noticed"
    stop
}
# The copy has gone on since `here`: everything starts with going back there.
go_on_from_here() { echo 'rollback name=a to=here' | talk >/dev/null; go_on; }
state_at_here() { files kvt | grep -e "$(printf %016d $((len - 1)))" -e "$(printf %016d "$len")" | head -1; }
first_chunk() { files kvc | head -1; }
what="a bit in the state" damage eval 'flip "$(state_at_here)" 9000'
what="a bit in the state's head" damage eval 'flip "$(state_at_here)" 20'
what="the state cut short" damage eval 'truncate -s 4096 "$(state_at_here)"'
what="no state" damage eval 'rm "$(state_at_here)"'
what="a bit in a chunk" damage eval 'flip "$(first_chunk)" 200000'
what="no chunk" damage eval 'rm "$(first_chunk)"'
what="a chunk of nothing" damage eval 'f=$(first_chunk); b=$(stat -c %s "$f"); : >"$f"; truncate -s "$b" "$f"'
what="another chunk in its place" damage eval 'cp "$(files kvc | tail -1)" "$(first_chunk)"'
what="a fifo in its place" damage eval 'f=$(first_chunk); rm "$f"; mkfifo "$f"'

again
flip "$(state_at_here)" 9000
kvstart
echo trust >"$dir/disk"
[ "$(go_on_from_here)" != "$wanted" ]
ok "control: a daemon that does not look at checksums would answer something else"

# The next best state: there is one at the end of each turn.
fresh
kvstart
for i in 1 2 3; do
    talk >/dev/null <<END
$([ $i = 1 ] && echo session.new name=t)
append name=t messages=[{"role":"user","content":"Question%20$i%20$(seq 1 300 | tr '\n' ' ' | sed 's/ /%20/g')"}]
sample name=t n=12 temperature=0 quiet=1 seed=1
END
done
tlen=$(echo 'stat name=t' | talk | field pos)
turned=$(echo 'sample name=t n=30 temperature=1 seed=5 quiet=1' | talk | plain)
echo "rollback name=t pos=$tlen" | talk >/dev/null
stop
is "$(files kvt | wc -l)" 3 "three turns, three states"
flip "$(newest_state)" 9000
kvstart
is "$(echo 'sample name=t n=30 temperature=1 seed=5 quiet=1' | talk | plain)" "$turned" \
    "the newest state is damaged: the same answer"
has "$(restored t)" '^[1-9][0-9]* [1-9][0-9][0-9]*$' "from the one before, and little was computed again"

# A file that fails twice is given up; a session that fails twice is not tried a third time.
again
for f in $(files kvt); do flip "$f" 9000; done
kvstart
is "$(go_on_from_here)" "$wanted" "all states are damaged: the same answer from tokens"
stop
is "$(grep -c 'caches-quarantined' "$dir/log")" "$([ "$(grep -c cache-not-restored "$dir/log")" -ge 2 ] && echo 1 || echo 0)" \
    "two failures, and the session's caches are not trusted any more"
plan
