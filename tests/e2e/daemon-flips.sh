#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# One bit turned over, in a byte of each class of each file of a session, and the daemon started on
# it: every answer is the one of the undamaged session, or a refusal that says why; none is another.
# The fake engine's answers depend on every byte of its caches, as the control shows.
# shellcheck disable=SC1091,SC2154,SC2034,SC2119
[ -n "${TMPDIR-}" ] || [ ! -w /dev/shm ] || export TMPDIR=/dev/shm # hundreds of sessions; no disk is needed
. "${srcdir:-.}/tests/e2e/daemon.subr"
python=${PYTHON3:-python3}
if ! "$python" -c 'import sqlite3' 2>/dev/null; then
    echo "1..0 # SKIP no Python 3 with sqlite3"
    exit 0
fi
keep=1
: "${FLIPS:=340}"
export FATHOM_SOCKET="$sock"
fathom() { timeout 300 "$top_builddir/client/fathom" "$@"; }
flips() { "$python" "$srcdir/tests/flips.py" "$dir/state" "$@"; }
make_g() {
    talk <<END
session.new name=g
append name=g tokens=$(seq -s, 100 4300)
append name=g messages=[{"role":"user","content":"$(seq -s%20 1 700)"}]
sample name=g n=9 temperature=0 quiet=1 ignore_eos=1
END
    fathom park -q g
}
# What each session draws. They are copies, with files of the same ids, which a daemon reads once while
# it has them in memory: so they leave it again.
draw() {
    sed 's/.*/sample name=& n=8 temperature=0.9 seed=5 quiet=1 ignore_eos=1\npark name=& to=disk/' | talk |
        sed -n 's/ queue_us=.*//; /^item/d; p' | paste -d' ' - - | sed 's/ \(ok\|error\) .*tier=.*//; s/ error .*/&/'
}
tokens() { sed -n 's/.* tokens=\([0-9,]*\).*/\1/p'; }
names() { seq -f 'f%03g' 0 $((FLIPS - 1)); }

# Control: the engine gives out one wrong byte, which is sealed as if it were right.
FAKE_ENGINE=kv-spoil@1 start
make_g >/dev/null
spoilt=$(echo g | draw | tokens)
stop
rm -rf "$dir/state"

start
make_g >/dev/null
fathom export -q g >"$dir/g.tar"
wanted=$(echo g | draw | tokens)
[ -n "$wanted" ] && [ "$spoilt" != "$wanted" ]
ok "control: one wrong byte in the caches is another answer"
for name in $(names); do fathom import -q "$name" <"$dir/g.tar" || echo "# import"; done
stop
cp -a "$dir/state" "$dir/copies"
flips >"$dir/plan" 2>"$dir/places"
is "$(wc -l <"$dir/plan")" "$FLIPS" "$FLIPS flips"
[ "$(sed -n 's/^# //p' "$dir/places")" -le "$FLIPS" ]
ok "in all $(cut -d' ' -f2 "$dir/plan" | sort -u | wc -l) classes of bytes of chunks, states and ledgers"

start
names | draw >"$dir/answers"
paste -d' ' "$dir/plan" "$dir/answers" | awk -v wanted="$wanted" '
    / ok / { if (index($0, " tokens=" wanted)) same++; else { wrong++; print "# wrong: " $0 } next }
    / error damaged .*=/ { refused++; next }
    { other++; print "# neither: " $0 }
    END { printf "%d %d %d %d\n", same, refused, wrong, other }' >"$dir/verdict"
grep '^#' "$dir/verdict" | cut -c1-300
read -r same refused wrong other <<END
$(tail -1 "$dir/verdict")
END
is "$wrong $other" "0 0" "no answer is wrong: $same are the undamaged session's, $refused refused as damaged"
noticed=$(grep -c 'cache-not-restored session=f' "$dir/log")
[ "$noticed" -ge $((same * 8 / 10)) ] && [ "$refused" -gt 50 ]
ok "$noticed damaged caches were noticed and computed again"
# One that nobody read, since a copy was in memory still, is none: then fewer bytes were read than ever.
all=$(sed -n 's/.*cache-restored session=f.* read=\([0-9]*\) .*/\1/p' "$dir/log" | sort -n | tail -1)
unnoticed=$(cut -d' ' -f1,2 "$dir/plan" | grep 'kv[ct]\.' | while read -r name class; do
    grep -q "cache-not-restored session=$name " "$dir/log" && continue
    read=$(sed -n "s/.*cache-restored session=$name .* read=\([0-9]*\) .*/\1/p" "$dir/log" | head -1)
    [ "${read:-$all}" -lt "${all:-0}" ] || echo "$class"
done)
is "$unnoticed" "" "every one in a chunk or a state"
stop

# --- the index: a cache of what the folders say
rm -rf "$dir/state"
cp -a "$dir/copies" "$dir/state"
list() { fathom ls --names | sort | sha256sum; }
start
before=$(list)
stop
wrong=
for i in 0 1 2 3 4 5 6 7 8 9; do
    flips index $i
    start
    [ "$(list)" = "$before" ] && [ "$(printf 'f001\nf300\n' | draw | tokens)" = "$wanted
$wanted" ] || wrong="$wrong $i"
    printf 'rollback name=f001 to=turn-1\nrollback name=f300 to=turn-1\n' | talk >/dev/null
    rm -rf "$dir/state.was"
    stop
    rm -rf "$dir/state"
    cp -a "$dir/copies" "$dir/state"
done
is "$wrong" "" "ten flips in the index: it is made anew from the folders"

# --- the write-ahead log that a killed daemon leaves: to SQLite alone a bit that turned over ends it
: "${LOGS:=90}"
start
for token in 7 8 9; do
    printf 'f300\n%s\n' "$(names | head -"$LOGS")" | sed "s/.*/append name=& tokens=$token/" | talk >/dev/null
done
after=$(echo f300 | draw | tokens)
stop -KILL
rm -rf "$dir/copies"
cp -a "$dir/state" "$dir/copies"
flips wal >"$dir/plan" 2>"$dir/fewer"
is "$(wc -l <"$dir/plan")" "$LOGS" "$LOGS flips in logs, in $(cut -d' ' -f2 "$dir/plan" | sort -u | wc -l) classes of bytes"
fewer=$(sed -n 's/^# //p' "$dir/fewer")
[ "$fewer" -ge $((LOGS / 2)) ]
ok "control: SQLite alone loses acknowledged tokens of $fewer of these sessions, in silence"
start
cut -d' ' -f1 "$dir/plan" | draw >"$dir/answers"
got=$(paste -d' ' "$dir/plan" "$dir/answers" | awk -v after="$after" '
    index($0, " tokens=" after) { whole++; next }
    / error damaged .*session.db-wal:%20damaged/ { refused++; next }
    { wrong++; print "# wrong: " $0 }
    END { printf "%d whole, %d refused, %d wrong\n", whole, refused, wrong }')
has "$got" ' 0 wrong$' "none loses a token in silence: $got"
case $got in [0-9]\ *) false ;; esac
ok "and most lose none"
is "$(grep -c 'ledger-mended session=f' "$dir/log")" "$(($(echo "$got" | sed -n 's/ whole.*//p') - $(grep -c ' wal.witness ' "$dir/plan")))" "each that was put right is said"
stop

# --- more than a bit of it: refused, until somebody gives up what is behind it
rm -rf "$dir/state"
mv "$dir/copies" "$dir/state"
flips wound f001
start
has "$(grep 'session-damaged .*session=f001' "$dir/log")" 'session.db-wal: damaged at [0-9]*, in front of work' "a log that lacks its middle: said when the daemon starts"
has "$(echo f001 | draw)" 'error damaged .*give' "refused, with what to do"
fathom verify f001 >"$dir/out"
is $? 74 "verify: 74"
has "$(cat "$dir/out")" '^wrong .*session.db-wal' "and why"
fathom verify --give-up f001 >"$dir/out"
is $? 0 "verify --give-up: good"
is "$(echo f001 | draw | tokens)" "$wanted" "it is what it was before the log"
grep -q 'session-gave-up session=f001' "$dir/log"
ok "which is in the log"
is "$(echo f002 | draw | tokens)" "$after" "the others are whole"
fathom verify --give-up f002 >/dev/null
is "$(echo f002 | draw | tokens)" "$(echo f300 | draw | tokens)" "to give up what is not damaged changes nothing"
stop
plan
