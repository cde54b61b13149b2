#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Everything that needs a GPU, in one go: tests of the CUDA kernels and backend, the sanitizers,
# perplexity against the CPU backend, times. docs/GPU.md says how to run it anywhere.
#
#   tools/gpu-run.sh [-o DIR] [BUILD]         run; BUILD: a build folder, or one unpacked from
#                                             --pack. Without it: configure and make in /tmp.
#   tools/gpu-run.sh --pack FILE BUILD        programs of BUILD and the libraries that they want,
#                                             for a machine with a driver and nothing else
#
# PARTS (default: all of "ops model eval bench sanitize") says what runs. Logs go to DIR, and a
# table comes last. Status 1 if anything failed.
set -u

top=$(cd "$(dirname "$0")/.." && pwd)
programs="tests/kernels/cuda_linear_test tests/kernels/cuda_ops_test tests/kernels/cuda_model_test
tools/benchmarks/bench-cuda tools/fathom-eval"

pack() {
    file=$1 build=$2 dir=$(mktemp -d) || exit 1
    mkdir "$dir/gpu" "$dir/gpu/lib"
    for p in $programs; do
        strip -o "$dir/gpu/${p##*/}" "$build/$p" || exit 1
        # The C library and the loader must be those of the machine that runs this.
        ldd "$build/$p" | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' |
            grep -v '/lib\(c\|m\|dl\|rt\|pthread\)\.so' >>"$dir/libs"
    done
    sort -u "$dir/libs" | while read -r lib; do
        cp -L "$lib" "$dir/gpu/lib/" || exit 1
    done
    tar -C "$dir" -cJf "$file" gpu || exit 1
    rm -r "$dir"
    ls -l "$file"
}

case ${1-} in
--pack)
    [ $# -eq 3 ] || { sed -n '6,9p' "$0" >&2; exit 64; }
    pack "$2" "$3"
    exit
    ;;
-o)
    out=$2
    shift 2
    ;;
-*)
    sed -n '6,9p' "$0" >&2
    exit 64
    ;;
esac
out=${out-$(mktemp -d)}
mkdir -p "$out"

if [ $# -eq 0 ]; then
    build=$(mktemp -d) || exit 1
    { [ -x "$top/configure" ] || (cd "$top" && autoreconf -fi); } >"$out/build.log" 2>&1
    # shellcheck disable=SC2086 # programs is a list
    (cd "$build" && "$top/configure" --with-cuda=yes && make -j"$(nproc)" $programs) \
        >>"$out/build.log" 2>&1 || { tail -20 "$out/build.log"; exit 1; }
else
    build=$1
fi
if [ -d "$build/lib" ] && [ ! -e "$build/config.status" ]; then
    LD_LIBRARY_PATH=$build/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    export LD_LIBRARY_PATH
fi
find_program() {
    for p in $programs; do
        [ "${p##*/}" = "$1" ] || continue
        if [ -x "$build/$p" ]; then echo "$build/$p"; else echo "$build/$1"; fi
    done
}
ops=$(find_program cuda_ops_test) linear=$(find_program cuda_linear_test)
model=$(find_program cuda_model_test)
eval=$(find_program fathom-eval) bench=$(find_program bench-cuda)
srcdir=$top CMOCKA_MESSAGE_OUTPUT=STDOUT
GOLDEN_DIR=${GOLDEN_DIR-$top/../shared/golden}
export srcdir CMOCKA_MESSAGE_OUTPUT GOLDEN_DIR
tiny=$top/tests/golden/flash-tiny mini=$top/models/fathom-mini
parts=" ${PARTS-ops model eval bench sanitize} "
failed=0
table=$out/table
: >"$table"

# part NAME SECONDS COMMAND...: its log, and a line of the table.
part() {
    name=$1 limit=$2
    shift 2
    echo "== $name"
    from=$(date +%s)
    timeout "$limit" "$@" >"$out/$name.log" 2>&1
    status=$?
    result=ok
    [ $status -eq 0 ] || { result="FAILED ($status)"; failed=1; }
    printf '%-22s %-14s %4d s\n' "$name" "$result" $(($(date +%s) - from)) >>"$table"
    return $status
}

# How often both backends' logits name the same token as best, or one nearly as good.
compare='
import array, sys
rows = {}
for b in ("cpu", "cuda"):
    rows[b] = array.array("f")
    with open(sys.argv[1] + "/" + b + ".logits", "rb") as f:
        rows[b].frombytes(f.read())
vocab, same, near = int(sys.argv[2]), 0, 0
n = len(rows["cpu"]) // vocab
for r in range(n):
    x, y = (rows[b][r * vocab:(r + 1) * vocab] for b in ("cpu", "cuda"))
    other = x[y.index(max(y))]
    same += other == max(x)
    near += other < max(x) and max(x) - other < 0.5
print(f"best token the same in {same} of {n} rows; in {near} more within 0.5 of the best")
sys.exit(same + near < 0.998 * n)
'

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader |
    tee "$out/machine"
case $parts in *" ops "*)
    part ops 150 "$ops"
    part linear 150 "$linear"
    grep -hE '^#|ERROR|FAILED|Failure|error' "$out/ops.log" "$out/linear.log"
    ;;
esac
case $parts in *" model "*)
    part model 240 "$model"
    grep -E '^#|ERROR|FAILED|Failure|error|PASSED|SKIPPED' "$out/model.log"
    ;;
esac
case $parts in *" eval "*)
    for text in LICENSE docs/PROTOCOL.md; do
        for b in cpu cuda; do
            part "eval-$b-${text##*/}" 90 "$eval" --model "$mini" --text "$top/$text" \
                --backend "$b" --last 2900 --logits "$out/$b.logits"
            cat "$out/eval-$b-${text##*/}.log"
        done
        part "compare-${text##*/}" 60 python3 -c "$compare" "$out" 8192
        cat "$out/compare-${text##*/}.log"
    done
    rm -f "$out"/*.logits
    ;;
esac
case $parts in *" bench "*)
    part bench 150 "$bench" "$mini"
    cat "$out/bench.log"
    ;;
esac
case $parts in *" sanitize "*)
    # In chunks and one at a time, past the first entry of every compressor, with the draft block.
    python3 -c 'import array, sys
array.array("I", [i * 7919 % 512 for i in range(140)]).tofile(open(sys.argv[1], "wb"))' \
        "$out/tokens"
    for tool in memcheck initcheck synccheck racecheck; do
        part "$tool" 420 compute-sanitizer --tool $tool --error-exitcode 9 "$eval" \
            --model "$tiny" --tokens "$out/tokens" --backend cuda --chunk 70 --split 136 \
            --last 20 --mtp "$out/mtp" --logits "$out/logits"
        grep -E 'SUMMARY|=========' "$out/$tool.log" | tail -12
    done
    for program in "$ops" "$linear"; do
        name=memcheck-${program##*/}
        part "$name" 200 compute-sanitizer --tool memcheck --error-exitcode 9 "$program"
        grep -E 'ERROR SUMMARY|=========|FAILED' "$out/$name.log" | tail -12
    done
    rm -f "$out/mtp" "$out/logits"
    ;;
esac
echo "== all"
cat "$table"
exit $failed
