#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# docs/examples/client.py is a working client: it has only python3-msgpack and PROTOCOL.md.
# shellcheck disable=SC1091,SC2154,SC2034,SC2119
. "${srcdir:-.}/tests/e2e/daemon.subr"
export FATHOM_SOCKET="$sock"
python=${PYTHON3:-/usr/bin/python3}
"$python" -c 'import msgpack' 2>/dev/null || {
    echo "1..0 # SKIP no python3-msgpack"
    exit 0
}
is "$(wc -l <"$srcdir/docs/examples/client.py")" 30 "30 lines"
start
out=$("$python" "$srcdir/docs/examples/client.py" Once upon a time 2>"$dir/err")
is $? 0 "it runs"
is "$(cat "$dir/err")" "" "without a complaint"
[ -n "$out" ]
ok "and prints something"
printf 'Once upon a time' | { "$top_builddir/client/fathom" new -q c && "$top_builddir/client/fathom" append -q c; }
is "$("$top_builddir/client/fathom" sample c -n 32 --temp 0)" "$out" "the same as fathom's"

# What a client of one's own does wrong is told by name.
sed -e 's/temperature=0/temprature=0/' "$srcdir/docs/examples/client.py" >"$dir/wrong.py"
err=$("$python" "$dir/wrong.py" Once 2>&1 >/dev/null)
is "$err" "invalid-argument: sample: unknown key 'temprature'" "a misspelt key"
sed -e 's/proto_min=1, proto_max=1/proto_min=7, proto_max=9/' "$srcdir/docs/examples/client.py" >"$dir/new.py"
err=$("$python" "$dir/new.py" Once 2>&1 >/dev/null)
has "$err" "^protocol: .*7.*9" "a version that is not spoken"
stop
plan
