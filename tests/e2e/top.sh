#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What one looks at: fathom top, the list of the last used, transcripts of any position, checkpoints that
# come and go, what a session costs.
# shellcheck disable=SC1091,SC2154,SC2034,SC2119
. "${srcdir:-.}/tests/e2e/daemon.subr"
export FATHOM_SOCKET="$sock"
bin=$top_builddir/client/fathom
fathom() { timeout 300 "$bin" "$@"; }
key() { sed "s/.*\"$1\":\([0-9.]*\).*/\1/"; } # of a line of JSON
python=${PYTHON3:-python3}

FAKE_ENGINE=slow=5ms start
for name in a b c busy; do
    fathom new -q $name && printf 'Once upon a time' | fathom append -q $name
done
printf ' there was' | fathom append -q b

# top
"$bin" sample busy -n 20000 --ignore-eos >/dev/null 2>&1 &
pid=$!
helpers=$pid
eventually 'stat name=busy' 'state=sampling'
fathom top --once --delay 1s >"$dir/out" 2>"$dir/err"
is $? 0 "top --once"
has "$(cat "$dir/out")" '^fathomd serving, up 0:00:' "says how the daemon is"
has "$(cat "$dir/out")" '^tokens/s .* [1-9][0-9.]* drawn' "and how fast it draws"
is "$(sed -n '/^SESSION/{n;p;}' "$dir/out" | cut -d' ' -f1)" busy "who works comes first"
is "$(sed -n '/^SESSION/{n;n;p;}' "$dir/out" | cut -d' ' -f1)" b "then who was used last"
is "$(cat "$dir/err")" "" "and nothing on stderr"
fathom top --once --json --delay 1s >"$dir/json"
[ "$(key drawn <"$dir/json")" -gt 0 ] && "$python" -c 'import json, sys
d = json.load(open(sys.argv[1]))
assert d["drawn_per_s"] > 10 and d["by_session"][0]["name"] == "busy", d
assert abs(d["by_session"][0]["tokens_per_s"] - d["drawn_per_s"]) < d["drawn_per_s"] / 2, d' "$dir/json"
ok "top --json: one line, with the session's own rate"
timeout -s INT 3 "$bin" top --delay 300ms >"$dir/out"
[ "$(grep -c '^fathomd serving' "$dir/out")" -gt 2 ] && ! grep -q "$(printf '\033')" "$dir/out"
ok "into a file it goes on, without a terminal's codes"
fathom top --once >/dev/full 2>/dev/null
is $? 74 "a full disk: 74"
fathom top --delay never 2>/dev/null
is $? 64 "a delay that is none: 64"
kill $pid
wait $pid 2>/dev/null
helpers=
eventually 'stat name=busy' 'state=idle'

# The list of the last used.
got=$(printf '%s\n' 'list recent=1 limit=2' 'list recent=1 after=a' | talk)
has "$got" '^ok sessions={name=busy;.*name=b;.*more=1' "list recent"
has "$got" '^error invalid-argument' "which has no pages"

# Any position.
pos=$(fathom show a --json | key pos)
fathom checkpoint -q a here
printf ' and on' | fathom append -q a
is "$(fathom log a --at here)" "$(fathom log a -n "$pos")" "log --at a checkpoint"
is "$(fathom log a --at "$pos" --tokens | wc -l)" "$pos" "log --at a position"
is "$(fathom log a --at here --from "$pos")" "" "log --at, from there on: nothing"
fathom log a --at nowhere >/dev/null 2>"$dir/err"
is $? 66 "log --at what is not there: 66"
has "$(cat "$dir/err")" "no checkpoint 'nowhere'; .fathom show a. lists them" "and says where to look"
fathom log a --at 9999 >/dev/null 2>&1
is $? 65 "log --at behind the end: 65"
fathom rollback a --to here 2>"$dir/err"
has "$(cat "$dir/err")" "dropped, 0 tokens to be computed again" "rollback says what is computed again"
fathom fork a f 2>"$dir/err"
has "$(cat "$dir/err")" "at position $pos; 0 tokens to be computed again" "fork too"
fathom checkpoint a here --remove 2>"$dir/err"
has "$(cat "$dir/err")" "here is no checkpoint of a any more" "checkpoint --remove"
fathom checkpoint -q a here --remove 2>/dev/null
is $? 66 "twice: 66"
is "$(fathom show a --json | grep -c here)" 0 "it is gone"

# What it costs.
fathom show a --json >"$dir/json"
is "$(key durable_pos <"$dir/json")" "$pos" "what was acknowledged is on the disk"
[ "$(key disk_bytes <"$dir/json")" -ge $((4 * pos)) ]
ok "and takes room there"
has "$(fathom show a)" "^disk .*tokens up to $pos\$" "as show says"
has "$(fathom ls)" "^a .* KiB .* KiB " "and ls"
stop
fathom top --once >/dev/null 2>&1
is $? 69 "no daemon: 69"
fathom metrics >/dev/null 2>"$dir/err"
is $? 69 "no socket of metrics: 69"
has "$(cat "$dir/err")" "metrics.sock: .*metrics-socket" "and what to do"
plan
