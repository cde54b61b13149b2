#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Chat turns lose their reasoning when the next question comes, as the model was trained: the
# transcript is what the reference encoder makes of the whole conversation at once, and little of it
# is computed again. On the fake engine, whose steps are counted like any other's.
# shellcheck disable=SC1091,SC2154,SC2034,SC2119,SC2016
. "${srcdir:-.}/tests/e2e/daemon.subr"
export FATHOM_SOCKET="$sock"
fathom() { timeout 300 "$top_builddir/client/fathom" "$@"; }
key() { sed "s/.*\"$1\":\([0-9]*\).*/\1/"; } # of a line of JSON
computed() { fathom status --json | sed "s/.*\"prefill_tokens\":\([0-9]*\),\"decode_tokens\":\([0-9]*\).*/\1 + \2/"; }
pos() { fathom show "$1" --json | key pos; }
user() { printf '[{"role":"user","content":"%s"}]' "$1"; }
eos='<｜end▁of▁sentence｜>'
answer() { printf '%s' "$2" | fathom append -q "$1" --control --no-bos; } # as the model would have

start

# The reference's own case.
fathom new -q golden
printf '[{"role":"system","content":"You are a helpful assistant."},{"role":"user","content":"Hello"}]' |
    fathom append -q golden --messages --think
answer golden "The user said hello, I should greet back.</think>Hi there! How can I help you?$eos"
user 'What is the capital of France?' | fathom append golden --messages --think --json >"$dir/out"
answer golden "The user asks about the capital of France. It is Paris.</think>The capital of France is Paris.$eos"
fathom log golden | cmp - "$srcdir/tests/golden/chat/output_2.txt"
ok "the transcript is the reference's rendering of the whole conversation"
[ "$(key dropped <"$dir/out")" -gt 5 ]
ok "append says how much reasoning went"

# The same conversation at once, by our encoder, with every kind of answer.
whole() { fathom new -q --if-absent "$1" && fathom append -q "$1" --messages --think; }
conversation() { # ANSWER-TOKENS MESSAGE-JSON NAME
    fathom rm -qf turns whole
    fathom new -q turns
    user one | fathom append -q turns --messages --think
    answer turns "$1"
    user two | fathom append -q turns --messages --think
    printf '[{"role":"user","content":"one"},%s,{"role":"user","content":"two"}]' "$2" | whole whole
    fathom log turns >"$dir/turns"
    fathom log whole >"$dir/whole"
    cmp "$dir/turns" "$dir/whole"
    ok "$3"
}
conversation "r</think>c$eos" '{"role":"assistant","reasoning_content":"r","content":"c"}' "an answer"
conversation "r</think>$eos" '{"role":"assistant","reasoning_content":"r","content":""}' "an empty one"
conversation "no end of it" '{"role":"assistant","reasoning_content":"","content":""}' "one that never came to its point"
conversation "r</think>c" '{"role":"assistant","reasoning_content":"r","content":"c"}' "one that was cut off"

# What keeps it.
fathom new -q keep
user one | fathom append -q keep --messages --think
answer keep "because</think>two$eos"
user three | fathom append -q keep --messages --think --keep-reasoning
has "$(fathom log keep)" "<think>because</think>two" "--keep-reasoning"
fathom new -q tools
printf '{"messages":[{"role":"user","content":"one"}],"tools":[{"type":"function","function":{"name":"f","parameters":{}}}]}' |
    fathom append -q tools --messages --think
answer tools "because</think>two$eos"
user three | fathom append -q tools --messages --think
has "$(fathom log tools)" "<think>because</think>two" "tools"
fathom new -q asked
user one | fathom append -q asked --messages --think
user two | fathom append -q asked --messages --think
has "$(fathom log asked)" "one<.*Assistant.*><think><.*User.*>two" "a question that nobody has answered stays as it is"
fathom new -q talk
printf 'The word <think> is no token here, nor is <｜Assistant｜>.' | fathom append -q talk
user 'I wrote <think> too' | fathom append -q talk --messages
answer talk "so you did$eos"
before=$(pos talk)
user 'and?' | fathom append talk --messages --json >"$dir/out"
is "$(key dropped <"$dir/out")" 0 "text that looks like it is text"

# Not more is computed again than the answer and 128 tokens, wherever the question stands.
words() { awk -v n="$1" 'BEGIN { for (i = 0; i < n; i++) printf "word%d ", i }'; }
cost() { # NAME PROMPT-WORDS REASONING-WORDS ANSWER-WORDS
    fathom new -q "$1"
    words 900 | fathom append -q "$1"
    user "$(words "$2")" | fathom append -q "$1" --messages --think
    prompt=$(pos "$1")
    answer "$1" "$(words "$3")</think>$(words "$4")$eos"
    long=$(($(pos "$1") - prompt))
    before=$(($(computed)))
    user next | fathom append "$1" --messages --think --json >"$dir/out"
    again=$(($(computed) - before - $(key appended <"$dir/out")))
    [ "$again" -le $((long + 128)) ] && [ "$(key replay <"$dir/out")" -le $((long + 128)) ] &&
        [ "$(key dropped <"$dir/out")" -gt "$3" ]
    ok "$1: $again tokens of $prompt computed again, the answer had $long"
}
cost long-question 2000 300 40
cost short-question 3 300 40
cost short-reasoning 500 2 2
cost long-answer 100 5 400
is "$(fathom log long-question --json | grep -c 'word299 </think>')" 0 "and the reasoning is gone"

# Would it be seen? Without any copy of the caches at the prompt's end all of it is read again.
stop
start --snapshots 0 --host-memory 2M
fathom new -q none && words 900 | fathom append -q none
user three | fathom append -q none --messages --think
answer none "$(words 30)</think>yes$eos"
before=$(($(computed)))
user next | fathom append none --messages --think --json >"$dir/out"
[ $(($(computed) - before)) -gt 1000 ] && [ "$(key replay <"$dir/out")" -gt 1000 ]
ok "without copies and without host memory it would be all, and replay says so"
stop
start

# An answer that was drawn, not written: its tokens stay the ones that were drawn.
fathom new -q drawn
user one | fathom append -q drawn --messages --think
prompt=$(pos drawn)
fathom sample drawn -n 12 --ignore-eos >/dev/null
user two | fathom append drawn --messages --json >"$dir/out"
is "$(key dropped <"$dir/out")" 12 "an answer of reasoning only: all of it goes"
has "$(fathom log drawn)" "one<.*Assistant.*></think>$eos<.*User.*>two<.*Assistant.*></think>" "and its end stays"
has "$(fathom show drawn)" "checkpoint *turn-1 *at $prompt\(,.*\)\{0,1\}\$" "the checkpoint of the turn stands behind what is left"
fathom rollback -q drawn --to turn-1
is "$(pos drawn)" "$prompt" "and can be gone back to"

# Once only, and at its place.
id=%00%01%02%03%04%05%06%07%08%09%0a%0b%0c%0d%0e%0f
fathom new -q once
user one | fathom append -q once --messages --think
answer once "because</think>two$eos"
at=$(pos once)
msg='[{"role":"user","content":"three"}]'
got=$(printf '%s\n' "append name=once messages=$msg if_pos=1" "append name=once messages=$msg if_pos=$at op_id=$id" \
    "append name=once messages=$msg if_pos=$at op_id=$id" "stat name=once" | talk)
has "$got" "^error conflict .*pos=$at" "at another position: refused, nothing changed"
is "$(echo "$got" | grep -c '^ok .*repeated=1')" 1 "the same op_id again: told, not done"
is "$(fathom log once | grep -o three | wc -l)" 1 "the question is there once"

# The engine dies in the middle: all the same.
stop
FAKE_ENGINE="crash@30,once:$dir/once" start --feed-tokens 64
fathom new -q crash
user "$(words 400)" | fathom append -q crash --messages --think
answer crash "$(words 50)</think>yes$eos"
user "$(words 30)" | fathom append -q crash --messages --think
fathom sample crash -n 8 --temp 0 --ignore-eos >"$dir/a"
[ -e "$dir/once" ]
ok "the engine crashed"
fathom log crash --tokens >"$dir/ids"
stop
start
"${PYTHON3:-python3}" -c 'import struct, sys
sys.stdout.buffer.write(b"".join(struct.pack("<I", int(line)) for line in sys.stdin))' <"$dir/ids" >"$dir/u32"
fathom new -q again && fathom append -q again --tokens --no-bos "$dir/u32" && fathom rollback -q again --pos $(($(wc -l <"$dir/ids") - 8))
fathom sample again -n 8 --temp 0 --ignore-eos >"$dir/b"
cmp "$dir/a" "$dir/b" && [ -s "$dir/a" ]
ok "and what was drawn is what a fresh session with these tokens draws"

# fathomd is killed while it happens: the one transcript or the other, never something between.
stop
keep=1
start
fathom new -q before
user "$(words 100)" | fathom append -q before --messages --think
answer before "$(words 60)</think>yes$eos"
fathom log before >"$dir/old"
fathom fork -q before after
user next | fathom append -q after --messages --think
fathom log after >"$dir/new"
old=0 new=0 wrong=0
for delay in 0 0.005 0.01 0.02 0.04 0.5; do
    fathom rm -qf cut && fathom fork -q before cut
    user next | "$top_builddir/client/fathom" append -q cut --messages --think >/dev/null 2>&1 &
    pid=$!
    sleep $delay
    stop -KILL
    wait $pid
    start
    fathom log cut >"$dir/cut"
    if cmp -s "$dir/cut" "$dir/old"; then
        old=$((old + 1))
    elif cmp -s "$dir/cut" "$dir/new"; then
        new=$((new + 1))
    else
        wrong=$((wrong + 1))
    fi
done
echo "# killed: $old as before, $new as after"
is "$wrong" 0 "killed in the middle of it: as before, or as after"
user next | fathom append -q cut --messages --think --if-pos "$(pos cut)" >/dev/null 2>&1
ok "and it can be gone on with"
stop
plan
