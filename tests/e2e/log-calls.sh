#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What goes into the log, by its source: no prompt, no token, and every event has its MESSAGE_ID.
: "${srcdir:=.}"
python=${PYTHON3:-python3}
"$python" -c '' 2>/dev/null || {
    echo "1..0 # SKIP no python3"
    exit 0
}
dir=$(mktemp -d) || exit 99
trap 'rm -rf "$dir"' EXIT
mkdir "$dir/daemon"
n=0
ok() { # NAME: of the command before
    rc=$?
    n=$((n + 1))
    if [ $rc -eq 0 ]; then echo "ok $n - $1"; else echo "not ok $n - $1"; fi
}
"$python" "$srcdir/tests/log_calls.py" "$srcdir" >"$dir/out"
ok "each log_line() says what it may"
sed 's/^/# /' "$dir/out"

refused() { # NAME CALL
    echo "$2" >"$dir/daemon/x.c"
    ! "$python" "$srcdir/tests/log_calls.py" "$srcdir" "$dir/daemon/x.c" >"$dir/out" && grep -q "x.c:1:" "$dir/out"
    ok "$1 is refused"
}
echo 'log_line(LOG_INFO, "ready pid=%d why=\"%s\"", (int)g->pid, e.text);' >"$dir/daemon/x.c"
"$python" "$srcdir/tests/log_calls.py" "$srcdir" "$dir/daemon/x.c" >"$dir/out"
ok "a good call is taken"
refused "a prompt" 'log_line(LOG_DEBUG, "append text=\"%s\"", op->text);'
refused "a part of one" 'log_line(LOG_DEBUG, "append text=\"%.*s\"", (int)q->text.len, q->text.p);'
refused "a token" 'log_line(LOG_DEBUG, "drawn id=%" PRIu32, ids[0]);'
refused "an event without an id" 'log_line(LOG_NOTICE, "no-such-event n=%d", 1);'
refused "a format from elsewhere" 'log_line(LOG_NOTICE, fmt, 1);'
echo "1..$n"
