#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# fathomd with the real engine and the model of this repository: the engine is killed while it
# reads and while it draws, and everything comes out as if it had not been.
# shellcheck disable=SC1091,SC2154,SC2034
. "${srcdir:-.}/tests/e2e/daemon.subr"
engine=$top_builddir/engine/fathom-engine
if [ ! -x "$engine" ]; then
    echo "1..0 # SKIP no fathom-engine"
    exit 0
fi
awk '{ print } NR == 40 { print "\nThe access code for North Gate is 9054.\n" }' \
    "$srcdir/docs/PROTOCOL.md" | head -c 6000 >"$dir/text"

conversation() {
    talk <<END
session.new name=a
append name=a document=@$dir/text
append name=a messages=[{"role":"user","content":"What%20is%20the%20access%20code%20for%20North%20Gate?"}]
sample name=a temperature=0 quiet=1 parse=1 seed=1
fork name=a to=b at=turn-1
sample name=b n=60 temperature=0.8 seed=7 ignore_eos=1 repetition=1.1 quiet=1
score name=a text=The%20end%20of%20it.
transcript name=b what=tokens
END
}
plain() { sed 's/ queue_us=.*//; s/ replay=.*//'; }

start --engine "$engine" --threads 1
wanted=$(conversation | plain)
has "$wanted" 'reason=eos .*9054' "it answers from the document"
has "$wanted" 'n=60 reason=limit' "and goes on"
stop

# Delays from the start of the conversation: while it reads, and while it draws.
for delay in 0.1 0.4 0.8 1.4 2; do
    start --engine "$engine" --threads 1
    (
        sleep $delay
        kill -KILL "$(engine_pid)"
    ) &
    killer=$!
    is "$(conversation | plain)" "$wanted" "killed after $delay s: the same in every token"
    wait $killer
    stop
done
start --engine "$engine" --threads 1
(
    sleep 0.3
    kill -KILL "$(engine_pid)"
    sleep 3.5
    kill -KILL "$(engine_pid)"
) &
killer=$!
is "$(conversation | plain)" "$wanted" "killed twice: the same in every token"
wait $killer
[ "$(grep -c 'engine-ended.*signal 9' "$dir/log")" -ge 1 ]
ok "and it was killed"
stop

# As a newcomer starts it, without --engine.
rm -f "$dir/log"
"$top_builddir/daemon/fathomd" --model "$srcdir/models/fathom-mini" --state "$dir/state" --socket "$sock" \
    2>"$dir/log" &
daemon=$!
await "listening on"
has "$(sed -n 's/.*engine-started pid=[0-9]* program=//p' "$dir/log")" '/engine/fathom-engine$' \
    "where it was built, fathomd takes the engine that was built with it"
stop
mkdir -p "$dir/else/where" && cp "$top_builddir/daemon/fathomd" "$dir/else/where/"
has "$("$dir/else/where/fathomd" --dump-config)" '^engine = .*libexec/fathom-engine$' "elsewhere, the installed one"
plan
