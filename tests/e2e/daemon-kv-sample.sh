#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A long sample is saved while it goes on: whoever is killed in the middle of it, no more than one
# stretch between two states is computed again, and the answer is the same. On the fake engine.
# shellcheck disable=SC1091,SC2154,SC2034,SC2016
. "${srcdir:-.}/tests/e2e/daemon-kv.subr"
every=32768 # tokens between two states (KV_STATE_EVERY)
all=42000
greedy="temperature=0 seed=1 ban=1 quiet=1" # token 1 would end it

begin() {
    fresh
    kvstart
    printf 'session.new name=l\nappend name=l text=go\n' | talk >/dev/null
}
sample() { echo "sample name=l n=$1 $greedy" | talk >"$dir/answer"; }
transcript() { printf 'transcript name=l what=tokens\ntranscript name=l what=tokens from=32768\n' | talk | sed 's/.* tokens=//'; }
stat() { echo 'stat name=l' | talk | field "$1"; }
state_positions() { files kvt | sed 's|.*/0*\([0-9]*\)-.*|\1|' | sort -n | tr '\n' ' '; }
# The sample is so far, and goes no further; the state behind it and its row are on the disk.
get_to() {
    patient
    until [ "$(stat pos)" -ge "$1" ] || tired; do :; done
    kill -STOP "$(engine_pid)"
    patient
    until [ "$(stat written_states)" -gt 0 ] || tired; do :; done
    at=$(stat pos)
    patient
    until [ "$(stat durable_pos)" -ge "$at" ] || tired; do :; done
}

# --- undisturbed -----------------------------------------------------------------------------
begin
sample $all
is "$(field reason <"$dir/answer")" limit "a sample of $all tokens"
wanted=$(transcript)
patient
until [ "$(state_positions)" = "$every $((all + 1)) " ] || tired; do :; done
is "$(state_positions)" "$every $((all + 1)) " "leaves a state in its middle, and one at its end"
is "$(files kvc | wc -l)" $((all / 4096 + 1)) "and a file for each 4,096 tokens, none of them twice"

# --- the engine dies in the middle -----------------------------------------------------------
begin
sample $all &
sampling=$!
get_to 34000
kill -KILL "$(engine_pid)"
wait $sampling
is "$(field reason <"$dir/answer")" limit "the engine is killed: the sample goes on"
is "$(transcript)" "$wanted" "with the same tokens"
back=$(restored l)
is "${back% *}" $every "from the last state in front of that"
[ "${back#* }" -lt $((all - every)) ] && [ "$(computed)" -le $((${back#* } + 1)) ]
ok "with ${back#* } tokens computed again"

# --- all of it dies --------------------------------------------------------------------------
begin
sample $all &
sampling=$!
get_to 34000
is "$(state_positions)" "$every " "a state is on the disk while the sample goes on"
stop -KILL
wait $sampling
kvstart
is "$(stat pos)" "$at" "daemon and engine are killed: what was committed is there"
has "$(echo 'verify name=l' | talk)" 'wrong=0 ' "and no file is ahead of them"
sample $((all + 2 - at))
is "$(transcript)" "$wanted" "what is drawn behind them is what would have been drawn"
is "$(restored l)" "$every $((at - every))" "from the last state, with $((at - every)) tokens computed again"
[ "$(computed)" -le $((at - every + 1)) ]
ok "and not one more"

# --- a disk that hangs, and memory that is full: the sample does not wait for them -----------------
fresh
echo hang-write >"$dir/disk"
kvstart --host-memory 4M
printf 'session.new name=l\nappend name=l text=go\n' | talk >/dev/null
sample 20000
is "$(field reason <"$dir/answer") $(files kvc | wc -l)" "limit 0" "a disk that hangs: a sample of 20000 tokens goes on to its end"
: >"$dir/disk"
patient
until [ "$(state_positions)" = "20001 " ] && [ "$(files kvc | wc -l)" -ge 5 ] || tired; do :; done
is "$(state_positions)" "20001 " "when it answers again all is saved"
echo 'park name=l to=disk' | talk >/dev/null
sample 100
is "$(restored l)" "20001 1" "and comes back from there"

# --- the pieces show nowhere -----------------------------------------------------------------
# Tokens 4096 and 4097 are drawn in two pieces; a stop string lies across them.
begin
echo "append name=l tokens=$(seq 2 4089 | tr '\n' ',' | sed 's/,$//')" | talk >/dev/null
echo "sample name=l n=20 temperature=1 seed=5 quiet=1" | talk >/dev/null
a=$(echo 'transcript name=l from=4096 n=1' | talk | field text)
b=$(echo 'transcript name=l from=4097 n=1' | talk | field text)
echo 'rollback name=l pos=4090' | talk >/dev/null
echo "# stop string $a$b"
has "$(echo "sample name=l n=20 temperature=1 seed=5 stop=$a$b quiet=1" | talk)" \
    'pos=4098 n=8 reason=stop' "a stop string is found across two pieces of a sample"
plan
