#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The metrics socket: what it says can be read by a strict reader, is true, holds nothing of a
# client's choosing; and no client of it holds the daemon up.
# shellcheck disable=SC1091,SC2154,SC2034
. "${srcdir:-.}/tests/e2e/daemon.subr"
python=${PYTHON3:-python3}
"$python" -c '' 2>/dev/null || {
    echo "1..0 # SKIP no python3"
    exit 0
}
prom() { "$python" "$srcdir/tests/e2e/prom.py" "$@"; }

# scrape [WHAT]: sends WHAT (none: closes its side at once) and prints what comes.
cat >"$dir/scrape.py" <<'END'
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.settimeout(60)
s.connect(sys.argv[1])
if len(sys.argv) > 2:
    s.sendall(sys.argv[2].encode().decode("unicode_escape").encode("latin-1"))
else:
    s.shutdown(socket.SHUT_WR)
while True:
    try:
        got = s.recv(65536)
    except ConnectionResetError:  # it did not read all of what was sent
        break
    if not got:
        break
    sys.stdout.buffer.write(got)
END
scrape() { "$python" "$dir/scrape.py" "$dir/m" "$@"; }
value() { sed -n "s/^$1 //p" "$2"; }

start --metrics-socket "$dir/m"
scrape >"$dir/page0"
prom "$dir/page0" >"$dir/values0"
ok "a page that the reader takes"
is "$(grep -c '^# TYPE' "$dir/page0")" "$(grep -c '^\(METRIC\|FAMILY\|HISTOGRAM\)(' "$srcdir/daemon/metrics.def")" \
    "each metric of metrics.def is in it, once"
is "$(stat -c %a "$dir/m")" 660 "the socket has socket-mode"
is "$(value 'fathom_engine_up' "$dir/values0")" 1.0 "the engine is up"

talk >/dev/null <<'END'
session.new name=secret-name-xyzzy
append name=secret-name-xyzzy text=a%20word%20or%20two
sample name=secret-name-xyzzy n=5 quiet=1
stat name=nobody
END
scrape >"$dir/page1"
prom "$dir/page1" "$dir/page0" >"$dir/values1"
ok "no counter goes back"
is "$(value 'fathom_tokens_drawn_total' "$dir/values1")" 5.0 "five tokens were drawn"
is "$(value 'fathom_requests_total{method="append"}' "$dir/values1")" 1.0 "one append"
is "$(value 'fathom_request_errors_total{error="not-found"}' "$dir/values1")" 1.0 "one error"
is "$(value 'fathom_first_token_seconds_count' "$dir/values1")" 1.0 "one first token"
is "$(value 'fathom_wait_seconds_count' "$dir/values1")" 2.0 "two turns"
is "$(sed -n 's/^fathom_sessions{.*} //p' "$dir/values1" | grep -cv '^0.0')" 1 "one session, in one state"
[ "$(value 'fathom_commit_seconds_count' "$dir/values1" | cut -d. -f1)" -ge 2 ]
ok "it is on the disk"
! grep -q 'xyzzy\|uid' "$dir/page1"
ok "no name and no uid"
engine=$(engine_pid)
kill -KILL "$engine"
patient
until [ "$(engine_pid)" != "$engine" ] && echo status | talk | grep -q state=serving || tired; do :; done
scrape >"$dir/page2"
prom "$dir/page2" >"$dir/values2"
is "$(value 'fathom_engine_restarts_total' "$dir/values2")" 1.0 "one restart"

# --- HTTP
crlf='\r\n'
get() { scrape "$1" >"$dir/http"; head -n 1 "$dir/http" | tr -d '\r'; }
is "$(get "GET /metrics HTTP/1.1${crlf}Host: x${crlf}User-Agent: y${crlf}${crlf}")" "HTTP/1.1 200 OK" "GET"
sed '1,/^\r$/d' "$dir/http" >"$dir/body"
prom "$dir/body" >/dev/null
ok "has the page"
is "$(sed -n 's/^Content-Length: //p' "$dir/http" | tr -d '\r')" "$(wc -c <"$dir/body")" "and its length"
grep -q '^Content-Type: text/plain; version=0.0.4; charset=utf-8' "$dir/http"
ok "and its type"
is "$(get "HEAD /metrics?x=y HTTP/1.0${crlf}${crlf}")" "HTTP/1.1 200 OK" "HEAD"
is "$(sed '1,/^\r$/d' "$dir/http" | wc -c)" 0 "has no body"
is "$(get "GET / HTTP/1.1${crlf}${crlf}")" "HTTP/1.1 404 Not Found" "another path"
is "$(get "POST /metrics HTTP/1.1${crlf}${crlf}")" "HTTP/1.1 405 Method Not Allowed" "another method"
is "$(get "hello${crlf}${crlf}")" "HTTP/1.1 400 Bad Request" "no HTTP"
is "$(get "$(printf '%9000s' x)")" "HTTP/1.1 400 Bad Request" "a head of more than 8 KiB"
scrape "" >"$dir/bare"
prom "$dir/bare" >/dev/null
ok "a client that says nothing is told after a second"

# --- nobody holds it up: more silent and half-said requests than there are places
cat >"$dir/crowd.py" <<'END'
import socket, sys, time
crowd = []
for i in range(24):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(60)
    s.connect(sys.argv[1])
    if i % 2:
        s.send(b"GET /met")
    crowd.append(s)
print("there", flush=True)
sys.stdin.read()
END
mkfifo "$dir/leave"
"$python" "$dir/crowd.py" "$dir/m" <"$dir/leave" >"$dir/crowd" &
helpers=$!
exec 9>"$dir/leave"
patient
until grep -q there "$dir/crowd" || tired; do :; done
has "$(echo status | talk)" state=serving "clients are served while a crowd says nothing"
scrape "GET /metrics HTTP/1.1${crlf}${crlf}" >"$dir/late"
has "$(head -n 1 "$dir/late")" "200 OK" "and so is a scrape, once their time is over"
exec 9>&-
wait $helpers
helpers=
stop
is "$status" 0 "it stops"
[ ! -e "$dir/m" ]
ok "and removes the socket"

# --- would a wrong page be seen?
wrong() { # NAME SED
    sed "$2" "$dir/page1" >"$dir/wrong"
    ! cmp -s "$dir/page1" "$dir/wrong" && ! prom "$dir/wrong" >/dev/null 2>&1
    ok "the reader refuses $1"
}
wrong "a missing TYPE" '/^# TYPE fathom_tokens gauge/d'
wrong "a sample twice" 's/^fathom_tokens [0-9]*$/&\n&/'
wrong "a value with a comma" 's/^\(fathom_tokens\) .*/\1 1,5/'
wrong "buckets that fall" 's/\(fathom_wait_seconds_bucket{le="60"}\) .*/\1 0/'
wrong "a count that is none" 's/\(fathom_wait_seconds_count\) .*/\1 77/'
wrong "a quote in a label" 's/state="warm"/state="wa"rm"/'
sed 's/^\(fathom_tokens_drawn_total\) .*/\1 4/' "$dir/page1" >"$dir/wrong"
prom "$dir/wrong" "$dir/page0" >/dev/null && ! prom "$dir/wrong" "$dir/page1" >/dev/null 2>&1
ok "and a counter that goes back"

if command -v promtool >/dev/null; then
    promtool check metrics <"$dir/page1" >"$dir/promtool" 2>&1
    ok "promtool, too, takes the page"
else
    skip "promtool, too, takes the page" "no promtool"
fi
plan
