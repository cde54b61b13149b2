#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# fathomd with the real engine and the model of this repository: a session that is parked, or whose
# engine or daemon is killed, goes on word for word, and does not read its document again.
# shellcheck disable=SC1091,SC2154,SC2034
. "${srcdir:-.}/tests/e2e/daemon-kv.subr"
engine=$top_builddir/engine/fathom-engine
if [ ! -x "$engine" ]; then
    echo "1..0 # SKIP no fathom-engine"
    exit 0
fi
awk '{ print } NR == 40 { print "\nThe access code for North Gate is 9054.\n" }' \
    "$srcdir/docs/PROTOCOL.md" | head -c 6000 >"$dir/text"

first() {
    talk <<END | plain
session.new name=a
append name=a document=@$dir/text
append name=a messages=[{"role":"user","content":"What%20is%20the%20access%20code%20for%20North%20Gate?"}]
sample name=a temperature=0 quiet=1 parse=1 seed=1
END
}
then_on() {
    talk <<END | plain
sample name=a n=40 temperature=0.8 seed=7 ignore_eos=1 repetition=1.1 quiet=1
append name=a text=The%20end%20of%20it.
sample name=a n=20 temperature=0 seed=1 ignore_eos=1 quiet=1
END
}
real() { kvstart --engine "$engine" --threads 1 "$@"; }

real
wanted_first=$(first)
has "$wanted_first" 'reason=eos .*9054' "it answers from the document"
len=$(echo 'stat name=a' | talk | field pos)
wanted=$(then_on)
has "$wanted" 'n=40 reason=limit' "and goes on"

check() { # WHAT
    is "$(then_on)" "$wanted" "$1: the same answer"
    has "$(restored a)" "^$((len - 1)) \|^$len " "$1: from what was saved"
}
for how in memory disk; do
    fresh
    real
    is "$(first)" "$wanted_first" "again"
    echo "park name=a to=$how" | talk >/dev/null
    before=$(computed)
    check "parked in the $how tier"
    now=$(($(computed) - before))
    [ $now -lt 60 ]
    ok "it computed $now tokens, of $len"
done

fresh
real --save-after 0s
first >/dev/null
saved_to a $((len - 1))
kill -KILL "$(engine_pid)"
check "the engine was killed"
[ "$(computed)" -lt 60 ]
ok "the new engine computed $(computed) tokens, of $len"

fresh
real --save-after 0s
first >/dev/null
saved_to a $((len - 1))
stop -KILL
real
check "daemon and engine were killed"
[ "$(computed)" -lt 60 ]
ok "the new engine computed $(computed) tokens, of $len"

fresh
real --save-after 1h
first >/dev/null
stop
is "$status" 0 "SIGTERM"
real
check "fathomd was restarted"

# A damaged file, on the real thing, too.
fresh
real
first >/dev/null
stop
flip "$(newest_state)" 9000
real
is "$(then_on)" "$wanted" "a damaged state: the same answer"
grep -q cache-not-restored "$dir/log"
ok "from tokens"
plan
