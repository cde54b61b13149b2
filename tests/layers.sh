#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Who may include whom: a folder's sources include only from the folders on its line.
: "${srcdir:=.}"
cd "$srcdir" || exit 99

allowed='
base:    base
proto:   base proto
lib:     base proto lib
client:  base lib client
kvstore: base kvstore
model:   base model
gpu:     base model gpu
engine:  base proto model gpu engine
daemon:  base proto model kvstore daemon
'
# Headers of a library stay in the one room that wraps it.
wrapped='
z3.h         verify
event2/      daemon
msgpack.h    proto
systemd/     daemon
pcre2.h      model
cuda         gpu/cuda
sqlite3.h    kvstore
liburing.h   kvstore
archive      kvstore
'
n=0
result() {
    n=$((n + 1))
    if [ -z "$2" ]; then
        echo "ok $n - $1"
    else
        echo "not ok $n - $1"
        echo "$2" | sed 's/^/# /'
    fi
}

while IFS=: read -r folder may; do
    [ -n "$folder" ] || continue
    result "$folder includes only from:$may" "$(
        grep -rHn '^ *# *include "[a-z]*/' "$folder" --include='*.[ch]' --include='*.cu' --include='*.cuh' |
            awk -v may="$may" '
                BEGIN { k = split(may, a, " "); for (i = 1; i <= k; i++) ok[a[i]] = 1 }
                { split($0, q, "\""); split(q[2], d, "/"); if (!(d[1] in ok)) print }')"
done <<EOF
$allowed
EOF

while read -r header folder; do
    [ -n "$header" ] || continue
    result "<$header...> only in $folder" "$(
        grep -rHn "^ *# *include <$header" base proto lib client model gpu engine kvstore daemon \
            --include='*.[ch]' --include='*.cu' --include='*.cuh' | grep -v "^$folder/")"
done <<EOF
$wrapped
EOF
echo "1..$n"
