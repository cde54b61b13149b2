#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# fathomd's life: settings, sockets, what systemd hears, reload, stop, logs that cannot be
# written. Two daemons never share a socket or a state directory.
# shellcheck disable=SC1091,SC2154,SC2034
. "${srcdir:-.}/tests/e2e/daemon.subr"
fathomd=$top_builddir/daemon/fathomd
model=$srcdir/models/fathom-mini

# --- settings
cat >"$dir/good.conf" <<END
# a comment
[daemon]
model = $model
log-level = debug
[limits]
max-document = 1M
END
cat >"$dir/bad.conf" <<END
[limits]

max-documents = 1M
END
got=$($fathomd --config "$dir/good.conf" --dump-config --max-sessions 7)
has "$got" '^max-document = 1048576' "a value from the file"
has "$got" '^max-sessions = 7' "a value from the command line"
has "$got" '(command line' "with where it comes from"
printf '%s\n' "$got" >"$dir/again.conf"
is "$($fathomd --config "$dir/again.conf" --dump-config | grep -v '^;')" \
    "$(printf '%s\n' "$got" | grep -v '^;')" "what is dumped can be read again"
got=$($fathomd --config "$dir/bad.conf" -t 2>&1)
is $? 64 "an unknown setting is an error"
has "$got" "bad.conf:3: unknown setting 'max-documents'; did you mean 'max-document'" \
    "that names the line and what was meant"
got=$($fathomd --max-sesions 3 2>&1)
has "$got" "unknown option '--max-sesions'; did you mean '--max-sessions'" "on the command line too"
got=$($fathomd 2>&1)
is $? 78 "no model: exit 78"
has "$got" "give --model DIR" "and what to do"
got=$($fathomd --model /nonexistent --state "$dir/state" --socket "$sock" 2>&1)
is $? 78 "a model that is not there: exit 78"
has "$got" "/nonexistent" "and which"

mkdir "$dir/other"
cp "$model/config.json" "$dir/other/"
sed 's/end▁of▁sentence/the▁end/g' "$model/tokenizer.json" >"$dir/other/tokenizer.json"
got=$($fathomd --model "$dir/other" --state "$dir/state" --socket "$sock" 2>&1)
is $? 78 "a tokenizer of another model: exit 78"
has "$got" "token 1 is not .*it is of another model" "and by what that is seen"
sed 's/"vocab_size": *[0-9]*/"vocab_size": 8000/' "$model/config.json" >"$dir/other/config.json"
cp "$model/tokenizer.json" "$dir/other/"
got=$($fathomd --model "$dir/other" --state "$dir/state" --socket "$sock" 2>&1)
is $? 78 "more tokens than the model has: exit 78"
has "$got" "8192 ids, config.json 8000" "and how many"

# --- sockets and locks
start
launch_second=$("$fathomd" --model "$model" --state "$dir/state2" --socket "$sock" 2>&1)
has "$launch_second" "another fathomd listens on" "a second one on the same socket is refused"
launch_second=$("$fathomd" --model "$model" --state "$dir/state" --socket "$dir/sock2" 2>&1)
has "$launch_second" "another fathomd has .*state" "and one with the same state directory"
is "$(stat -c %a "$sock")" 660 "the socket's mode is socket-mode"
stop -KILL
[ -S "$sock" ]
ok "kill -9 leaves the socket's file"
patient
until ! pgrep -f "$dir/sta[t]e" >/dev/null || tired; do :; done
pgrep -f "$dir/sta[t]e" >/dev/null
is $? 1 "but not the engine"
start
has "$(echo status | talk)" "state=serving" "which the next one takes over"
stop
[ ! -e "$sock" ]
ok "and removes at its end"

if command -v systemd-socket-activate >/dev/null; then
    rm -f "$dir/log"
    systemd-socket-activate -l "$dir/act" --fdname=api "$fathomd" \
        --engine "$top_builddir/tests/fake_engine" --model "$model" --state "$dir/state" \
        --socket "$dir/unused" 2>"$dir/log" &
    daemon=$!
    patient
    until [ -S "$dir/act" ] || tired; do :; done
    got=$(echo 'session.new name=a' | timeout 300 "$top_builddir/tests/talk" "$dir/act")
    has "$got" 'ok name=a' "socket activation: the first client is served"
    [ ! -e "$dir/unused" ]
    ok "and --socket is not made"
    stop
    [ -S "$dir/act" ]
    ok "the passed socket's file stays"
else
    skip "socket activation" "no systemd-socket-activate"
fi

# --- what systemd hears
timeout 1800 "$top_builddir/tests/hear" "$dir/notify" >"$dir/heard" &
hear=$!
helpers=$hear
patient
until [ -S "$dir/notify" ] || tired; do :; done
export NOTIFY_SOCKET="$dir/notify" WATCHDOG_USEC=300000
FAKE_ENGINE=load=1s start
unset WATCHDOG_USEC
patient
until grep -q READY=1 "$dir/heard" || tired; do :; done
kill -HUP "$daemon"
await reloaded
has "$(echo status | talk)" "state=serving" "it serves after a reload"
beats() { grep -c WATCHDOG=1 "$dir/heard"; }
before=$(sed '/^READY=1/q' "$dir/heard" | grep -c WATCHDOG=1)
patient
until [ "$(beats)" -ge $((before + 2)) ] || tired; do :; done
stop
unset NOTIFY_SOCKET
patient
until grep -q STOPPING=1 "$dir/heard" || tired; do :; done
kill $hear
wait $hear 2>/dev/null
helpers=
heard=$(tr '\n' ' ' <"$dir/heard")
has "$heard" 'STATUS=loading fathom-mini: [0-9]*%.*EXTEND_TIMEOUT_USEC=30000000.*READY=1' \
    "loading: STATUS, a longer timeout, then READY"
has "$heard" 'READY=1.*RELOADING=1 MONOTONIC_USEC=[0-9]* .*READY=1.*STOPPING=1' \
    "RELOADING and READY for SIGHUP, STOPPING at the end"
is "$(grep -c STOPPING=1 "$dir/heard")" 1 "once"
[ "$before" -ge 2 ] && [ "$(beats)" -ge $((before + 2)) ]
ok "WATCHDOG at half its time, also while loading"
has "$heard" 'STATUS=serving fathom-mini on toy' "STATUS says what it serves"

# --- SIGHUP
cp "$dir/good.conf" "$dir/live.conf"
launch --config "$dir/live.conf" --log-level info
await "listening on"
sed -i 's/max-document = 1M/max-document = 2K/; s|^model = .*|model = /elsewhere|' "$dir/live.conf"
kill -HUP "$daemon"
await reloaded
head -c 5000 /dev/zero | tr '\0' a >"$dir/5k"
got=$(talk <<END
session.new name=a
append name=a document=@$dir/5k
END
)
has "$got" 'error quota .*at%20most%202048' "SIGHUP takes a new limit"
echo 'max-document = nonsense' >>"$dir/live.conf"
kill -HUP "$daemon"
await reload-refused
has "$(echo status | talk)" "state=serving" "a file with a mistake changes nothing"
stop

# --- SIGTERM while it draws
FAKE_ENGINE=slow=20ms start
: >"$dir/stream"
timeout 300 "$top_builddir/tests/talk" "$sock" >"$dir/stream" <<END &
session.new name=a
append name=a text=hello
sample name=a n=5000 temperature=0 ignore_eos=1
END
client=$!
patient
until [ "$(grep -ac ^item "$dir/stream")" -ge 5 ] || tired; do :; done
stop
wait $client
is "$status" 0 "SIGTERM while it draws: exit 0"
last=$(grep -a ^item "$dir/stream" | tail -1 | sed 's/.*pos=\([0-9]*\).*/\1/')
has "$(grep -a ^error "$dir/stream")" "error unavailable .*stopping pos=$((last + 1))" \
    "the stream ends with the position that it reached"
[ "${last:-5000}" -lt 4900 ]
ok "without waiting for the answer's end"

# --- a disk that is full, and one that cannot be written
if [ -w /dev/full ]; then
    "$fathomd" --engine "$top_builddir/tests/fake_engine" --model "$model" \
        --state "$dir/full" --socket "$sock" --log-level debug 2>/dev/full &
    daemon=$!
    eventually status state=serving
    got=$(printf 'session.new name=a\nappend name=a text=hello\nsample name=a n=3 quiet=1\n' | talk)
    has "$got" 'ok pos=.* n=3 ' "a log on a full disk: it serves all the same"
    stop
    is "$status" 0 "and ends well"
else
    skip "a log on a full disk" "no /dev/full"
fi
got=$("$fathomd" --model "$model" --state /proc/nowhere --socket "$sock" 2>&1)
is $? 73 "a state directory that cannot be made: exit 73"
has "$got" "setting state" "and the setting's name"

# --- prompts are nobody else's business
start --log-level debug
talk >/dev/null <<END
session.new name=a
append name=a text=this%20is%20a%20secret%20word%20xyzzy
append name=a messages=[{"role":"user","content":"xyzzy"}]
append name=a messages=[{"role":"xyzzy"}]
sample name=a n=3 stop=xyzzy
END
stop
grep -q xyzzy "$dir/log"
is $? 1 "no log line holds text of a prompt, at any level"
plan
