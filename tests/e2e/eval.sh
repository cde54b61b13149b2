#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# fathom-eval as other programs call it: the logits file, splits and chunks, and bad input.
# shellcheck disable=SC2154
eval=$top_builddir/tools/fathom-eval
model=$srcdir/tests/golden/flash-tiny
dir=$(mktemp -d) || exit 99
trap 'rm -rf "$dir"' EXIT
n=0
ok() { # status name
    n=$((n + 1))
    if [ "$1" -eq 0 ]; then echo "ok $n - $2"; else echo "not ok $n - $2"; fi
}
run() { timeout 600 "$eval" --model "$model" "$@" >"$dir/out" 2>"$dir/err"; }
fails() { # wanted status, words on stderr, name, arguments
    want=$1 words=$2 name=$3
    shift 3
    run "$@"
    rc=$?
    [ "$rc" -eq "$want" ] && [ ! -s "$dir/out" ] && grep -q -e "$words" "$dir/err"
    ok $? "$name ($rc)"
}

# 40 tokens of the 512, little-endian.
i=0
while [ $i -lt 40 ]; do
    t=$((i * 37 % 512))
    # shellcheck disable=SC2059
    printf "$(printf '\\%03o\\%03o\\000\\000' $((t % 256)) $((t / 256)))"
    i=$((i + 1))
done >"$dir/t.u32"

run --tokens "$dir/t.u32" --logits "$dir/a" --mtp "$dir/am"
ok $? "whole prefill"
[ "$(wc -c <"$dir/a")" -eq $((40 * 512 * 4)) ] && [ "$(wc -c <"$dir/am")" -eq $((40 * 512 * 4)) ]
ok $? "a row for each position, logits and draft"
grep -q '^perplexity [0-9]*\.[0-9]*$' "$dir/out" && grep -q '^scored_tokens 39$' "$dir/out" &&
    grep -q '^prefill_tokens_per_second ' "$dir/out"
ok $? "perplexity and speed"
run --tokens "$dir/t.u32" --split 20 --chunk 7 --threads 1 --logits "$dir/b" --mtp "$dir/bm"
ok $? "prefill of 20 in chunks, then one at a time"
cmp -s "$dir/a" "$dir/b" && cmp -s "$dir/am" "$dir/bm"
ok $? "the same bits"
grep -q '^decode_tokens 20$' "$dir/out"
ok $? "20 tokens decoded"
run --tokens "$dir/t.u32" --last 3 --logits "$dir/c"
tail -c $((3 * 512 * 4)) "$dir/a" | cmp -s - "$dir/c"
ok $? "--last 3: the last rows"
run --tokens "$dir/t.u32" --isa reference --logits "$dir/d"
[ "$(wc -c <"$dir/d")" -eq $((40 * 512 * 4)) ] && grep -q '^backend cpu: plain C' "$dir/out"
ok $? "reference operations by name"

fails 64 usage "no tokens"
fails 64 usage "tokens and text" --tokens x --text y
fails 64 'split' "a split that is no number" --tokens "$dir/t.u32" --split some
fails 64 'chunk\|between\|number' "a chunk of nothing" --tokens "$dir/t.u32" --chunk 0
fails 65 'split 41' "a split behind the end" --tokens "$dir/t.u32" --split 41
fails 65 'last 99' "more rows than tokens" --tokens "$dir/t.u32" --last 99
fails 66 'none' "no such tokens" --tokens "$dir/none"
fails 66 'sse9' "no such operations" --tokens "$dir/t.u32" --isa sse9
fails 66 'tpu' "no such backend" --tokens "$dir/t.u32" --backend tpu
fails 66 'none' "an output that cannot be made" --tokens "$dir/t.u32" --logits "$dir/none/x"
printf 'abc' >"$dir/odd"
fails 65 'bytes' "half a token" --tokens "$dir/odd"
: >"$dir/empty"
fails 65 'bytes' "no token at all" --tokens "$dir/empty"
printf '\377\377\0\0' >"$dir/big"
fails 65 '65535' "a token that the model does not have" --tokens "$dir/big"
model=$dir
fails 66 'config.json' "no model" --tokens "$dir/t.u32"
echo "1..$n"
