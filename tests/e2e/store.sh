#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Sessions taken away and brought back, and looked over: fathom export, import, verify.
# shellcheck disable=SC1091,SC2154,SC2034,SC2119
. "${srcdir:-.}/tests/e2e/daemon.subr"
export FATHOM_SOCKET="$sock"
bin=$top_builddir/client/fathom
fathom() { timeout 300 "$bin" "$@"; }
run() { # ...: $out, $err and $rc of fathom
    fathom "$@" >"$dir/out" 2>"$dir/err" </dev/null
    rc=$?
    out=$(cat "$dir/out")
    err=$(cat "$dir/err")
}
key() { sed "s/.*\"$1\":\"\{0,1\}\([0-9a-z.]*\).*/\1/"; } # of a line of JSON
pos() { fathom show "$1" --json | key pos; }

start --metrics-socket "$dir/metrics.sock"
keep=1 # the state, from here on
seq 1 1500 >"$dir/numbers"
echo 'and so on' >"$dir/text"
fathom new -q a
seq 1 500 | fathom append -q a
printf '[{"role":"user","content":"and then?"}]' | fathom append -q a --messages
fathom sample -q a -n 20 --temp 0 --ignore-eos >/dev/null
fathom checkpoint -q a here

# The figures for Prometheus, from the socket beside the other one.
run metrics
is "$rc" 0 "metrics"
has "$out" '^# TYPE fathom_[a-z_]* gauge$' "in Prometheus' text format"
is "$(fathom metrics "$dir/metrics.sock" | grep -c '^# HELP')" "$(echo "$out" | grep -c '^# HELP')" "metrics SOCKET"
run metrics "$sock"
[ "$rc" -ne 0 ] && [ -z "$out" ]
ok "another socket than that says no metrics"
run metrics --json
is "$rc" 64 "metrics --json: there is top --json for that"

# Out of the engine and back.
fathom append -q a <"$dir/numbers"
pos=$(pos a)
run park a
is "$rc:$out" "0:" "park"
has "$err" "^a is parked, .* of caches in files; 0 tokens to be computed again\$" "says where it is"
has "$(fathom ls)" "^a .* idle *disk " "ls: on the disk"
has "$(fathom show a)" "^caches *on the disk" "show too"
run unpark a --json
is "$(echo "$out" | key tier):$(echo "$out" | key replay)" "engine:0" "unpark: nothing is computed again"
has "$(fathom ls)" "^a .* idle *engine " "ls: in the engine"
run park a --to memory --json
is "$(echo "$out" | key tier)" memory "park --to memory"
has "$(fathom show a --json)" '"tier":"memory","memory_bytes":[1-9]' "show: in memory"
fathom fork -q a twin
is "$(fathom sample a -n 12 --temp 0 --ignore-eos)" "$(fathom sample twin -n 12 --temp 0 --ignore-eos)" "it goes on as its copy does"
fathom rollback -q a --pos "$pos"
run park nobody
is "$rc" 66 "park of what is not there: 66"
run park a --to heaven
is "$rc" 64 "park to nowhere: 64"
has "$err" "neither memory nor disk" "and where it can go"
fathom new -q empty && run park empty --json
is "$rc:$(echo "$out" | key tier)" "0:tokens" "an empty session has nothing to be parked"
run unpark empty
is "$rc" 0 "nor to come back"
fathom rm -q empty twin
fathom park -q a
fathom show a --json >"$dir/json"
[ $(($(key written_rows <"$dir/json") * 100)) -le $(($(key written_tokens <"$dir/json") * 110 * $(sed 's/.*"bytes_per_token":\([0-9]*\).*/\1/' "$dir/json"))) ] &&
    [ "$(key written_tokens <"$dir/json")" -gt 4096 ]
ok "not more than 1.1 times the rows' own bytes were written for each token"
has "$(fathom show a)" "^written *[0-9]* bytes a token, and .* of states" "as show says"
fathom checkpoint -q a kept && fathom park -q a
has "$(fathom show a)" "^checkpoint *kept *at .*, on the disk\$" "a checkpoint whose state is on the disk"
fathom checkpoint -q a end && fathom append -q a <"$dir/text" && fathom rollback a --to end 2>"$dir/err"
has "$(cat "$dir/err")" "dropped, .*0.* to be computed again" "rollback says what comes back and what is computed"

# Out.
fathom export a >"$dir/a.tar" 2>"$dir/err"
is $? 0 "export"
has "$(cat "$dir/err")" "^exported a: .* tokens, .* KiB, xxh128 [0-9a-f]\{32\}\$" "says what it wrote"
if command -v xxh128sum >/dev/null 2>&1; then
    has "$(cat "$dir/err")" "$(xxh128sum <"$dir/a.tar" | cut -d' ' -f1)" "the digest is xxh128sum's"
else
    skip "the digest is xxh128sum's" "no xxh128sum here"
fi
fathom export -q a 2>"$dir/err" | cmp - "$dir/a.tar" && [ ! -s "$dir/err" ]
ok "again: the same bytes; -q says nothing"
is "$(tar tf "$dir/a.tar" | head -2 | tr '\n' ' ')" "manifest.json tokens.u32 " "a tar, with a manifest in front"
[ "$(tar tf "$dir/a.tar" | grep -c '^[ck]/')" -gt 1 ]
ok "and the caches"
fathom export -q a --tokens-only | tar tf - | grep -q '^tokens.u32$'
ok "export --tokens-only"
run export nobody
is "$rc:$out" "66:" "export of what is not there: 66, and nothing on stdout"
run export a --json
is "$rc" 64 "export --json: stdout is the archive"
fathom export a >/dev/full 2>/dev/null
is $? 74 "a full disk: 74"
fathom export -q a | head -c 100 >/dev/null
ok "a reader that leaves"

# In.
run import </dev/null
is "$rc" 74 "import of nothing: 74"
fathom import b <"$dir/a.tar" 2>"$dir/err"
is $? 0 "import"
has "$(cat "$dir/err")" "^b has .* tokens" "says what came of it"
fathom log a >"$dir/log.a" && fathom log b | cmp - "$dir/log.a"
ok "the transcript is the same"
is "$(fathom show b --json | key checkpoints)" "$(fathom show a --json | key checkpoints)" "and the checkpoints"
has "$(fathom show b)" "checkpoint *here " "one of them"
is "$(fathom sample a -n 12 --temp 0 --ignore-eos)" "$(fathom sample b -n 12 --temp 0 --ignore-eos)" "it goes on the same"
fathom import --json <"$dir/a.tar" >"$dir/out"
is "$(key name <"$dir/out")" "a.2" "under its own name, with a number if that is taken"
fathom import b <"$dir/a.tar" 2>"$dir/err"
is $? 65 "a name that is taken, asked for: 65"
has "$(cat "$dir/err")" "there is a session 'b' already" "and says so"
fathom import ../x <"$dir/a.tar" 2>/dev/null
is $? 65 "a bad name: 65"
for n_bytes in 10 600 3000; do
    head -c $n_bytes "$dir/a.tar" | fathom import c >/dev/null 2>"$dir/err"
    is $? 74 "cut off after $n_bytes bytes: 74"
done
has "$(cat "$dir/err")" "tokens.u32" "and says where"
"${PYTHON3:-python3}" -c 'import sys
b = bytearray(open(sys.argv[1], "rb").read())
b[b.index(b"tokens.u32") + 800] ^= 1
open(sys.argv[2], "wb").write(b)' "$dir/a.tar" "$dir/bad.tar"
fathom import c <"$dir/bad.tar" 2>"$dir/err"
is $? 74 "one bit of a token: 74"
has "$(cat "$dir/err")" "tokens.u32: its hash is not the manifest" "and says which member"
yes 'no tar at all' | head -c 300000 | fathom import c 2>/dev/null
is $? 74 "no tar: 74"
is "$(fathom ls --names | tr '\n' ' ')" "a a.2 b " "none of these left anything behind"

[ "$(fathom import --json same <"$dir/a.tar" | key files)" -gt 0 ]
ok "the same model's come along"
run unpark same --json
[ "$(echo "$out" | key replay)" -le 1 ]
ok "and need not be computed again"
fathom rm -q same

# Limits: of what is left to the user, and each is named.
stop
start --max-tokens-per-user 3500 --max-sessions-per-user 3
fathom import d <"$dir/a.tar" 2>"$dir/err"
is $? 75 "too many sessions: 75"
has "$(cat "$dir/err")" "max-sessions" "and the setting is named"
fathom rm -q a.2
fathom import d <"$dir/a.tar" 2>"$dir/err"
is $? 75 "too many tokens: 75"
has "$(cat "$dir/err")" "tokens, [0-9]* are left" "and how many are left"
stop
start
fathom rollback -q b --to here
fathom rollback -q a --to here
fathom log a >"$dir/log.here"
fathom log b | cmp - "$dir/log.here" && [ -s "$dir/log.here" ]
ok "what was imported is there after a restart"

# Looked over.
run verify a
is "$rc" 0 "verify: 0 when all is good"
has "$out" "^tokens  [0-9,]*\$" "says what there is"
has "$err" "^a is good\$" "and that it is good"
run verify nobody
is "$rc" 66 "verify of what is not there: 66"
fathom sample a -n 2000 --ignore-eos >/dev/null 2>&1 &
helpers=$!
run verify a
is "$rc" 0 "while it is being written to, too"
wait $helpers
helpers=
: >"$dir/text"
got=$(printf '%s\n' "export name=a to=@$dir/text" "import from=@$dir/a.tar" "export name=nobody to=@$dir/text" | talk)
is "$(echo "$got" | grep -c '^error invalid-argument .*socket%20pair%20is')" 2 "a file is no socket"
is "$(echo "$got" | cut -d' ' -f1,2 | tr '\n' ' ')" "error invalid-argument error invalid-argument error not-found " \
    "and a descriptor for nobody is put away"

# Of another model: the tokens are taken in, its caches are not, and that is said.
stop
FAKE_ENGINE=model=11 start
fathom import other --json <"$dir/a.tar" >"$dir/out" 2>"$dir/err"
is "$?:$(key files <"$dir/out")" "0:0" "another model's session"
[ "$(key left_out <"$dir/out")" -gt 0 ]
ok "its caches are left out"
fathom log other | cmp - "$dir/log.a"
ok "and its tokens are here"
has "$(fathom ls)" "^other .* tokens " "to be computed again"
fathom sample -q other -n 3 --ignore-eos >/dev/null
ok "by this model"
has "$(fathom sample a -n 3 2>&1)" "tokens are of model" "a session that was here before stays its own model's"
fathom rm -q other

# Damage on the disk: said by verify, not served.
stop
start
fathom park -q b && fathom sample b -n 8 --temp 0 --ignore-eos >"$dir/good" && fathom rollback -q b --to here
run verify b --json
is "$rc:$(echo "$out" | key wrong)" "0:0" "before: all good"
[ "$(echo "$out" | key files)" -gt 0 ]
ok "and there are caches"
stop
for file in "$dir"/state/sessions/*/*/c/*.kvc; do
    "${PYTHON3:-python3}" -c 'import sys
b = bytearray(open(sys.argv[1], "rb").read())
b[len(b) // 2] ^= 4
open(sys.argv[1], "wb").write(b)' "$file"
done
start
run verify b
is "$rc" 74 "one bit of a cache: verify says 74"
has "$out" "^wrong   c/[0-9a-f-]*.kvc" "and which file"
has "$err" "^b is damaged" "and that it is damaged"
fathom sample b -n 8 --temp 0 --ignore-eos 2>/dev/null | cmp - "$dir/good"
ok "it is not used: what is drawn is the same"
stop
db=$(grep -l 'and then' "$dir"/state/sessions/*/*/session.db 2>/dev/null | head -1)
[ -n "$db" ] || db=$(find "$dir/state/sessions" -name session.db -size +3k | head -1)
"${PYTHON3:-python3}" -c 'import sys
b = bytearray(open(sys.argv[1], "rb").read())
for i in range(4096, len(b), 512): b[i] ^= 0x55
open(sys.argv[1], "wb").write(b)' "$db"
start
names=$(fathom ls --names)
bad=0
for name in $names; do
    run verify "$name"
    [ "$rc" -ne 74 ] || ! printf '%s' "$out" | grep -q 'ledger cannot' || bad=$((bad + 1)) what=$out
done
[ "$bad" -ge 1 ] && has "$what" "^tokens  the ledger cannot be read" "a damaged ledger: verify says so"
has "$what" "^wrong   " "and what is wrong"
stop
plan
