#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A session outlives a kill of everything, with the real engine and the model of this repository: what
# it draws next, and the 64 rows of logits that this is drawn from, are byte for byte those of a
# session that was never interrupted; and what the engine computed after the restart shows that it was
# restored, not read again. Also after a park, in a fork, after a rollback, and as a tar in a new
# place; only where no caches came along everything is computed again.
# shellcheck disable=SC1091,SC2154,SC2034,SC2119
. "${srcdir:-.}/tests/e2e/daemon.subr"
engine=$top_builddir/engine/fathom-engine
if [ ! -x "$engine" ]; then
    echo "1..0 # SKIP no fathom-engine"
    exit 0
fi
keep=1
export FATHOM_SOCKET="$sock"
fathom() { timeout 300 "$top_builddir/client/fathom" "$@"; }
boot() { start --engine "$engine" --save-after 0s; }
computed() { echo status | talk | sed -n 's/.*prefill_tokens=\([0-9]*\).*/\1/p'; } # since the engine's start
restored() { sed -n 's/.*cache-restored session='"$1"' .*tokens=\([0-9]*\) .*/\1/p' "$dir/log" | tail -1; }
# The answer, more behind it, and the rows of logits that all this was drawn from.
next() {
    fathom sample -q "$1" -n 64 --temp 0 --ignore-eos --logits "$dir/rows"
    sha256sum <"$dir/rows"
    fathom sample -q "$1" -n 32 --temp 0.8 --seed 7 --ignore-eos --logits "$dir/rows"
    sha256sum <"$dir/rows"
    [ "$(wc -c <"$dir/rows")" -ge $((32 * 8192 * 4)) ] || echo "no rows"
}
saved() { # NAME: until all that it has is in files that its ledger names
    patient
    until [ "$(echo "verify name=$1" | talk | sed -n 's/.* best=\([0-9]*\) .*/\1/p')" = "$len" ] || tired; do :; done
}
# Everything dies at once; the engine first, so that it cannot say goodbye.
reboot() {
    kill -KILL "$(engine_pid)"
    stop -KILL 2>/dev/null
    boot
}
same() { # NAME WHAT: goes on as the control did, from what was saved
    before=$(computed)
    got=$(next "$1")
    now=$(($(computed) - before))
    is "$got" "$wanted" "$2: the same rows of logits, byte for byte, and the same tokens"
    [ "$(restored "$1")" -ge $((len - 1)) ] && [ $now -lt 128 ]
    ok "$2: $(restored "$1") of $len tokens restored, $now computed"
}

awk '{ print } NR == 40 { print "\nThe access code for North Gate is 9054.\n" }' \
    "$srcdir/docs/PROTOCOL.md" | head -c 22000 >"$dir/text"
head -c 8000 "$dir/text" >"$dir/more"
boot
fathom new -q a
fathom append -q a "$dir/text"
echo '[{"role":"user","content":"What is the access code for North Gate?"}]' | fathom append -q a --messages
len=$(fathom show a --json | sed 's/.*"pos":\([0-9]*\).*/\1/')
[ "$len" -gt 5000 ]
ok "a document and a question, $len tokens"
fathom checkpoint -q a end
wanted=$(next a)
has "$wanted" 9054 "without a break it is answered from the document"
fathom rollback -q a --to end
saved a

reboot
same a "everything killed"

fathom rollback -q a --to end
fathom park -q a
reboot
same a "parked, everything killed"

fathom rollback -q a --to end
fathom fork -q a b
saved b
fathom append -q a --no-bos "$dir/more"
fathom rm -q a
reboot
same b "a fork, its origin deleted, everything killed"

fathom rollback -q b --to end
fathom append -q b --no-bos "$dir/more"
saved_len=$len len=$(fathom show b --json | sed 's/.*"pos":\([0-9]*\).*/\1/')
saved b
len=$saved_len
fathom rollback -q b --to end
reboot
same b "gone on, rolled back, everything killed"

fathom rollback -q b --to end
saved b
fathom export -q b >"$dir/all.tar"
fathom export -q b --tokens-only >"$dir/tokens.tar"
stop -KILL 2>/dev/null
rm -rf "$dir/state"
boot
fathom import c <"$dir/all.tar" 2>"$dir/err"
has "$(cat "$dir/err")" "^c has" "a tar, imported where nothing is"
reboot
same c "imported, everything killed"
stop -KILL 2>/dev/null
rm -rf "$dir/state"
boot
fathom import d <"$dir/tokens.tar" 2>/dev/null
before=$(computed)
is "$(next d)" "$wanted" "imported as tokens only: the same too"
now=$(($(computed) - before))
[ $now -ge "$((len - 1))" ] && [ -z "$(restored d)" ]
ok "where $now tokens are computed, as the control of the counters shows"
stop
is "$status" 0 "it ends well"
plan
