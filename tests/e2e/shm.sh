#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Shared memory: statistics pages, rings, documents; and clients that mean harm (tests/hostile.c).
# shellcheck disable=SC1091,SC2154,SC2034,SC2119
. "${srcdir:-.}/tests/e2e/daemon.subr"
export FATHOM_SOCKET="$sock"
fathom() { timeout 300 "$top_builddir/client/fathom" "$@"; }

start --transfer-timeout 1s
fathom new -q large
seq 1 16500 | fathom append -q large
for name in victim mine; do
    fathom new -q $name && printf 'Once upon a time' | fathom append -q $name
done
timeout 300 "$top_builddir/tests/hostile" "$sock" 1 >"$dir/tap"
rc=$?
cat "$dir/tap"
n=$(grep -c '^\(not \)\{0,1\}ok ' "$dir/tap")
is "$rc" 0 "the hostile client came to its end"
kill -0 "$daemon"
ok "and the daemon lives"

# The rows that a sample is drawn from, as the command writes them: the same as those of `logits`
# at each place, byte for byte.
fathom new -q rows && printf 'Once upon a time' | fathom append -q rows
fathom fork -q rows twin
fathom sample rows -n 6 --temp 0 --ignore-eos --logits "$dir/rows" >"$dir/text" 2>"$dir/err"
is $? 0 "sample --logits"
for i in 1 2 3 4 5 6; do
    fathom logits twin && fathom sample twin -n 1 --temp 0 --ignore-eos >/dev/null
done >"$dir/one-by-one"
[ -s "$dir/rows" ] && cmp "$dir/rows" "$dir/one-by-one"
ok "are what logits says at each place"
fathom sample rows -n 6 --temp 0 --logits "$dir/none/rows" >"$dir/text" 2>"$dir/err"
is $? 73 "a file that cannot be made: 73"
fathom sample rows -n 2000 --logits "$dir/rows" >"$dir/text" 2>"$dir/err"
is $? 75 "more rows than a ring may hold: 75"
has "$(cat "$dir/err")" "max-ring" "and the setting is named"

# The engine goes in the middle of it: the rows come all the same.
stop
FAKE_ENGINE="crash@20,once:$dir/once" start
fathom new -q c && printf 'Once upon a time' | fathom append -q c
fathom fork -q c d
fathom sample c -n 40 --temp 0 --ignore-eos --logits "$dir/rows.c" >"$dir/c"
[ -e "$dir/once" ]
ok "the engine crashed"
fathom sample d -n 40 --temp 0 --ignore-eos --logits "$dir/rows.d" >"$dir/d"
cmp "$dir/c" "$dir/d" && cmp "$dir/rows.c" "$dir/rows.d" && [ "$(wc -c <"$dir/rows.c")" -eq $((40 * 8192 * 4)) ]
ok "and every row is there, the same as without"
stop
plan
