#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Sessions outlive the daemon: after a clean end all that was acknowledged is there, word for word.
# What kill -9 under load leaves: daemon-crash.sh.
# shellcheck disable=SC1091,SC2154,SC2034
. "${srcdir:-.}/tests/e2e/daemon.subr"
keep=1

# --- a clean end
start
told=$(talk <<END
session.new name=a mode=416
append name=a text=hello%20world op_id=0123456789abcdef
sample name=a n=9 temperature=0.8 seed=5 quiet=1 op_id=fedcba9876543210
checkpoint name=a label=here
append name=a messages=[{"role":"user","content":"one"}]
sample name=a n=20 temperature=0 quiet=1
append name=a messages=[{"role":"user","content":"two"}]
fork name=a to=b at=here
session.new name=empty
session.new name=old
rename name=old to=new
session.new name=dead
delete name=dead
chmod name=b mode=384
append name=b tokens=5,6,7
checkpoint name=b label=there
append name=b tokens=8 op_id=0000000000000001
rollback name=b to=there
END
)
what() {
    # Not what is in memory or on which tier: that may change at any time.
    talk <<END | sed 's/ used_ms=[0-9]*//; s/ bytes=.*points=/ points=/; s/\(turns=[0-9]*\) .*/\1/; s/;durable=1//g
        s/;used_ms=[0-9]*;bytes=[0-9]*//g; s/;disk_bytes=[^}]*//g; s/state=[a-z]*/state=/g'
list
stat name=a
transcript name=a what=tokens
stat name=b
transcript name=b what=tokens
stat name=empty
END
}
before=$(what)
stop
is "$status" 0 "a clean end"
start
is "$(what)" "$before" "after it all is there: names, modes, checkpoints, turns, tokens"
has "$before" 'name=a .*points={name=here;pos=.*{name=turn-1;pos=.*chat=user turns=1' "as it was made"
again=$(talk <<END
append name=a text=hello%20world op_id=0123456789abcdef
sample name=a n=9 temperature=0.8 seed=5 quiet=1 op_id=fedcba9876543210
append name=b tokens=8 op_id=0000000000000001
stat name=a
END
)
has "$again" "^$(printf '%s\n' "$told" | sed -n 's/^\(ok pos=[0-9]* appended=[0-9]*\)$/\1/p' | head -1) repeated=1" \
    "an op_id of before: the first one's result"
is "$(printf '%s\n' "$again" | sed -n 's/.* tokens=\([0-9,]*\) .*/\1/p')" \
    "$(printf '%s\n' "$told" | sed -n 's/.* n=9 .* tokens=\([0-9,]*\) .*/\1/p')" \
    "a sample's, the same tokens"
has "$again" 'error conflict .*rolled%20back' "and one that was rolled back is still known for that"
is "$(printf '%s\n' "$again" | sed -n 's/^ok name=a .* pos=\([0-9]*\) .*/\1/p')" \
    "$(printf '%s\n' "$before" | sed -n 's/^ok name=a .* pos=\([0-9]*\) .*/\1/p')" "nothing was done twice"
stop
rm "$dir"/state/index.db*
start
is "$(what)" "$before" "without its index, too"

# It goes on as if it had never ended.
wanted=$(printf 'fork name=a to=c\nsample name=c n=30 temperature=0.7 seed=9 quiet=1\n' | talk | sed -n 's/.* tokens=\([0-9,]*\) .*/\1/p')
stop -KILL
start
is "$(printf 'sample name=a n=30 temperature=0.7 seed=9 quiet=1\n' | talk | sed -n 's/.* tokens=\([0-9,]*\) .*/\1/p')" \
    "$wanted" "what it draws is what it would have drawn"
stop

# --- tokens of another model
FAKE_ENGINE=other-model start
got=$(talk <<END
append name=a tokens=1
sample name=a n=1
append name=empty tokens=1
fork name=a to=same
rollback name=a pos=0
append name=a tokens=1
delete name=same
END
)
is "$(printf '%s\n' "$got" | grep -c 'error model-mismatch .*of%20model%20fafa.*this%20is%20model%20fbfa')" 2 \
    "work on tokens of another model is refused, naming both"
is "$(printf '%s\n' "$got" | grep -c '^ok pos=1 appended=1')" 2 "unless there are none"
stop
start
has "$(echo 'append name=a tokens=2' | talk)" 'error model-mismatch' "also the other way round"
stop
plan
