#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The fathom command as a shell sees it: what goes to stdout and what to stderr, exit statuses,
# signals, pipes. Against fathomd on the fake engine, so what it draws is a hash.
# shellcheck disable=SC1091,SC2154,SC2034,SC2119
. "${srcdir:-.}/tests/e2e/daemon.subr"
export FATHOM_SOCKET="$sock"
unset XDG_RUNTIME_DIR
bin=$top_builddir/client/fathom
fathom() { timeout 300 "$bin" "$@"; }
run() { # ...: $out, $err and $rc of fathom
    fathom "$@" >"$dir/out" 2>"$dir/err" </dev/null
    rc=$?
    out=$(cat "$dir/out")
    err=$(cat "$dir/err")
}

# Without a daemon.
for args in "" "frob" "ls --nope" "append" "sample" "sample x --temp hot" "sample x --bias 3" \
    "sample x -n" "sample x --temp 101" "sample x --presence 3" "fork a b --at c --pos 3" "rollback a" "chmod 8 a" "new a b" "ls --wait soon"; do
    # shellcheck disable=SC2086
    run $args
    [ $rc -eq 64 ] && [ -z "$out" ] && [ -n "$err" ]
    ok "usage: fathom $args"
done
run ls
is "$rc" 69 "no daemon: 69"
has "$err" "is fathomd running" "and says so"
run --help
has "$out" "append .*NAME" "--help goes to stdout"
run sample --help
has "$out" "--temp T" "sample --help has the sampling options"
run --version
has "$out" "^fathom [0-9]" "--version"
( sleep 1; exec "$top_builddir/daemon/fathomd" --engine "$top_builddir/tests/fake_engine" \
    --model "$srcdir/models/fathom-mini" --state "$dir/state" --socket "$sock" 2>"$dir/log" ) &
daemon=$!
run status --wait 120s
[ $rc -eq 0 ] || [ $rc -eq 69 ] # it may still be loading
ok "--wait waits for the socket"
await "listening on" # the daemon is up
patient
until fathom status -q >/dev/null || tired; do :; done
run status
is "$rc" 0 "status: 0 when it serves"

has "$(fathom status)" "^model .*fathom-mini, .*context 65,536" "status: the model and its context"

# Life of a session.
run new a
is "$rc:$out" "0:" "new says nothing on stdout"
run new a
is "$rc" 65 "new twice: 65"
run new a --if-absent -q
is "$rc:$err" "0:" "new --if-absent -q is silent"
run new ../x
is "$rc" 65 "a bad name: 65"
run show nobody
is "$rc:$out" "66:" "no such session: 66"
printf 'It was a dark night.\n' >"$dir/text"
run append a "$dir/text"
[ $rc -eq 0 ] && [ -z "$out" ]
ok "append from a file"
has "$err" "appended [0-9]* tokens in [0-9.]* s ([0-9,]* tokens/s); a is at position" "and says what changed"
printf 'caf\303\251 \377\376\n\000end' >"$dir/bytes"
fathom append -q a <"$dir/bytes"
fathom append -q a - <"$dir/text"
{ cat "$dir/text" "$dir/bytes" "$dir/text"; } >"$dir/wanted"
fathom log a | tail -c "$(wc -c <"$dir/wanted")" | cmp - "$dir/wanted"
ok "log gives back every byte, UTF-8 or not"
pos=$(fathom show a --json | sed 's/.*"pos":\([0-9]*\).*/\1/')
is "$(fathom log a --tokens | wc -l)" "$pos" "log --tokens: one line a token"
run append a --if-pos 3 "$dir/text"
is "$rc" 75 "append at the wrong position: 75"
has "$err" "position $pos" "and says the right one"

# 16 then 32 are 48, and they are in the session.
run fork a b
run fork a c
fathom sample b -n 16 --temp 0 >"$dir/one"
fathom sample b -n 32 --temp 0 >>"$dir/one"
fathom sample c -n 48 --temp 0 >"$dir/two" 2>"$dir/err"
cmp "$dir/one" "$dir/two" && [ -s "$dir/two" ] && [ ! -s "$dir/err" ]
ok "16 tokens, then 32, are 48; nothing else is said"
fathom log c --tokens --from "$pos" >"$dir/ids"
is "$(wc -l <"$dir/ids")" 48 "what was drawn is part of the session"
is "$(fathom sample a -n 5 --temp 0 --json | sed -n 's/.*"id":\([0-9]*\),.*/\1/p')" "$(head -5 "$dir/ids")" \
    "sample --json has the same ids"
# What is held back in case a stop string comes is not lost if none does.
fathom fork -q a stop1 && fathom fork -q a stop2
all=$(fathom sample stop1 -n 6 --temp 0 --ignore-eos)
is "$(fathom sample stop2 -n 6 --temp 0 --ignore-eos --stop "$(printf '%s' "$all" | tail -c 9)zzz")" "$all" \
    "a stop string that begins at the end of it all"
fathom rm -q stop1 stop2
one=$(fathom fork a d -q && fathom sample d -n 20 --seed 5)
two=$(fathom fork a e -q && fathom sample e -n 20 --seed 5)
is "$one" "$two" "same seed, same text"

# Back and forth.
fathom checkpoint -q a here
run rollback a --pos "$pos"
has "$err" "back at position $pos; 5 dropped" "rollback to a position"
run rollback a --to here
is "$rc" 66 "a checkpoint behind the end is gone"
run mv a z
run show a
is "$rc" 66 "mv: the old name is gone"
run chmod 640 z --json
is "$out" '{"name":"z","mode":416}' "chmod"
is "$(fathom ls --names | tr '\n' ' ')" "b c d e z " "ls --names, sorted"
run rm b c nobody
is "$rc" 66 "rm of what is not there: 66"
run rm -f d nobody
is "$rc" 0 "rm -f"

# Bulk.
awk 'BEGIN { for (i = 0; i < 9000; i++)
    print "----------------------------------------------------------------------------------------" }' >"$dir/big"
run new big
fathom append -q big <"$dir/big" && fathom log big | tail -c "$(wc -c <"$dir/big")" | cmp - "$dir/big"
ok "800 kB through a pipe, as a document, and back in pages"
is "$(fathom logits z | wc -c)" 32768 "logits: 8192 float32"
fathom log big --tokens -n 5000 | tail -n 4000 >"$dir/some"
"${PYTHON3:-python3}" -c 'import struct, sys
sys.stdout.buffer.write(b"".join(struct.pack("<I", int(line)) for line in sys.stdin))' <"$dir/some" >"$dir/u32" &&
    fathom new -q copy && fathom append -q copy --tokens --no-bos "$dir/u32" &&
    fathom log copy --tokens | cmp - "$dir/some"
ok "append --tokens"
is "$(printf 'hello world' | fathom tokens | wc -l)" "$(printf 'hello world' | fathom tokens --json |
    sed 's/.*"n":\([0-9]*\).*/\1/')" "tokens, and tokens --json"
has "$(printf 'hello world' | fathom score)" "^perplexity [0-9]" "score"

# A chat: the session keeps it.
fathom new -q chat
fathom ask chat "Who is there?" --system "You are brief." -n 8 --ignore-eos >"$dir/out" 2>"$dir/err"
is $? 0 "ask"
[ "$(wc -c <"$dir/out")" -gt 1 ] && [ "$(tail -c 1 "$dir/out" | od -An -c | tr -d ' ')" = '\n' ]
ok "ask ends its answer with a newline"
has "$(cat "$dir/err")" "cut off after 8 tokens" "and says that it was cut off"
has "$(fathom log chat)" "You are brief.<.*>Who is there?<" "the messages are in the session"
echo "And now?" | fathom ask chat --system "Be long." -n 4 --json --ignore-eos >"$dir/out" 2>"$dir/err"
has "$(cat "$dir/out")" '^{.*"role": *"assistant".*"content":.*}$' "ask --json: the message"
[ "$(fathom log chat | grep -c 'Be long')" -eq 0 ]
ok "a second system message does not count"
has "$(fathom show chat)" "chat .*assistant, 2 turns" "two turns"
has "$(fathom show chat)" "checkpoint *turn-1" "and a checkpoint behind each"

# Signals and pipes.
stop
FAKE_ENGINE=slow=20ms start --feed-tokens 64 # what is interrupted is far from its end
fathom new -q s && printf 'Once' | fathom append -q s
rm -f "$dir/out" # what it holds must be of this run
"$bin" sample s -n 3000 --ignore-eos >"$dir/out" 2>"$dir/err" &
pid=$!
patient
until [ -s "$dir/out" ] || tired; do :; done
kill -INT $pid
wait $pid
is $? 130 "SIGINT: 130"
pos=$(fathom show s --json | sed 's/.*"pos":\([0-9]*\).*/\1/')
has "$(cat "$dir/err")" "up to position $pos\$" "SIGINT: the position is told, and true"
fathom log s | tail -c "$(wc -c <"$dir/out")" | cmp - "$dir/out"
ok "SIGINT: what was printed is what is kept"
fathom new -q long
seq 1 8000 >"$dir/numbers"
"$bin" append long "$dir/numbers" --json >"$dir/out" 2>"$dir/err" &
pid=$!
patient
until ! fathom show long --json | grep -q '"pos":0,' || tired; do :; done
kill -INT $pid
wait $pid
is $? 130 "SIGINT in an append: 130"
pos=$(fathom show long --json | sed 's/.*"pos":\([0-9]*\).*/\1/')
[ "$pos" -gt 0 ] && has "$(cat "$dir/err")" "up to position $pos\$" "SIGINT in an append: the position is kept"
( trap - PIPE; "$bin" sample s -n 500 --ignore-eos 2>"$dir/err"; echo $? >"$dir/rc" ) | head -c 5 >/dev/null
is "$(cat "$dir/rc")" 141 "SIGPIPE: 141"
is "$(cat "$dir/err")" "" "SIGPIPE: not a word"
fathom sample s -n 3 --ignore-eos >/dev/full 2>"$dir/err"
is $? 74 "a full disk: 74"
fathom sample s -n 3 --ignore-eos >&- 2>"$dir/err"
is $? 74 "stdout closed: 74"
printf 'x' | fathom append s --json >"$dir/out" 2>"$dir/err"
is "$(cat "$dir/err")" "" "--json: nothing on stderr"

# What is in force is told, the daemon's defaults among it.
has "$(fathom sample s -n 3 --json --temp 0.5 --min-p 0.1 --presence -1 --ban 7 --seed 9 | tail -1)" \
    '"seed":9,"temperature":0.5,"top_k":0,"top_p":1,"min_p":0.1.*"presence":-1.*"penalty_window":256,"max_tokens":3,' \
    "sample --json: the parameters in force"

# Every line of --json is JSON.
if "${PYTHON3:-python3}" -c 1 2>/dev/null; then
    printf 'a\377b "q" \\ \001' | fathom append -q s
    { fathom ls --json; fathom show s --json; fathom status --json; fathom log s --json
      fathom log s --json --tokens; fathom sample s -n 3 --json --top-logprobs 2
      printf 'hi' | fathom score --json --each; fathom show nobody --json 2>/dev/null
      fathom logits s --json; fathom fork s t --json; fathom checkpoint t l --json
      fathom rm t --json; } >"$dir/json"
    "${PYTHON3:-python3}" -c 'import json, sys
for line in sys.stdin.buffer: assert isinstance(json.loads(line.decode("utf-8")), dict)' <"$dir/json"
    ok "--json: one object a line, $(wc -l <"$dir/json") lines"
    seq 1 4000 >"$dir/text.long"
    if "${PYTHON3:-python3}" -c 'import os; os.openpty()' 2>/dev/null; then
        # A terminal that is asked for input gets help.
        timeout 120 "${PYTHON3:-python3}" -c 'import os, pty, sys
status = pty.spawn([sys.argv[1], "append", "s"])
sys.exit(0 if os.WEXITSTATUS(status) == 64 else 1)' "$bin" </dev/null >"$dir/out" 2>&1
        ok "append from a terminal: usage, 64"
        has "$(cat "$dir/out")" "usage: fathom append" "and help"
        # Progress is for terminals only.
        timeout 300 "${PYTHON3:-python3}" -c 'import os, pty, sys
os.environ["TERM"] = "xterm"
sys.exit(os.WEXITSTATUS(pty.spawn([sys.argv[1], "append", "s", sys.argv[2]])))' "$bin" "$dir/text.long" \
            </dev/null >"$dir/out" 2>&1
        has "$(cat "$dir/out")" "of [0-9,]* tokens" "a progress line on a terminal"
        [ "$(tr '\r' '\n' <"$dir/out" | sed -n 's/.* tokens, \([0-9]*\)\/s.*/\1/p' | sort -n | head -1)" -gt 0 ]
        ok "that never says 0/s"
    else
        skip "help and progress on a terminal" "no pseudo-terminals here"
    fi
    fathom append s "$dir/text.long" 2>"$dir/err"
    is "$(grep -c 'of .* tokens,' "$dir/err")" 0 "and none in a file"
else
    skip "--json is JSON" "no python3"
fi
stop

# While it loads.
FAKE_ENGINE=load=5s launch
run status
i=0
while [ -z "$out" ] && [ $i -lt 100 ]; do i=$((i + 1)); sleep 0.05; run status; done
is "$rc" 69 "status while it loads: 69"
has "$out" "^loading fathom-mini" "and says so"
has "$out" "^model *fathom-mini\$" "and no size that is not known yet"
stop
plan
