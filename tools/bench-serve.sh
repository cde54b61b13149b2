#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# End to end: a daemon with made-up weights of a published model's shapes, and a client that appends
# and samples through its socket (tools/benchmarks/serve.c).
#
#   tools/bench-serve.sh [--half] CONFIG.json BUILD [OPTION...]
#
# --half: one of two devices' part of the model, nothing exchanged. BUILD: a build folder, or one
# unpacked from tools/gpu-run.sh --pack. OPTIONs are those of bench-serve; DAEMON_OPTIONS those of fathomd.
set -eu

top=$(cd "$(dirname "$0")/.." && pwd)
half=0
[ "${1-}" != --half ] || { half=1 && shift; }
[ $# -ge 2 ] || { sed -n '6,9p' "$0" >&2; exit 64; }
config=$1 build=$(cd "$2" && pwd)
shift 2
of() { if [ -x "$build/$1" ]; then echo "$build/$1"; else echo "$build/${1##*/}"; fi; }
fathomd=$(of daemon/fathomd) engine=$(of engine/fathom-engine)
client=$(of tools/benchmarks/bench-serve)

dir=$(mktemp -d)
daemon=
trap '[ -z "$daemon" ] || { kill "$daemon"; wait "$daemon"; } || true; rm -rf "$dir"' EXIT
trap 'exit 1' HUP INT TERM

mkdir "$dir/model"
cp "$top"/models/fathom-mini/tokenizer*.json "$dir/model/"
awk -v half=$half '
half && /"(num_attention_heads|o_groups|moe_intermediate_size|vocab_size)":/ {
    n = $2 + 0
    sub(/[0-9]+/, n / 2, $2)
}
{ print }' "$config" >"$dir/model/config.json"
printf '#!/bin/sh\nexec "%s" --synthetic 1 "$@"\n' "$engine" >"$dir/engine"
chmod +x "$dir/engine"
# shellcheck disable=SC2086 # options are words
"$fathomd" --engine "$dir/engine" --model "$dir/model" --state "$dir/state" \
    --socket "$dir/sock" ${DAEMON_OPTIONS-} 2>"$dir/log" &
daemon=$!
until grep -q 'engine-ready\|listening on' "$dir/log" && [ -S "$dir/sock" ]; do
    kill -0 "$daemon" 2>/dev/null || { cat "$dir/log" >&2; daemon=; exit 1; }
    sleep 0.2
done
status=0
"$client" "$dir/sock" "$@" || status=$?
[ $status -eq 0 ] || tail -20 "$dir/log" >&2
exit $status
