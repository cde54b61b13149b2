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
# PARTS (default: all of "ops model eval bench profile serve sanitize") says what runs. Logs go to DIR, and a
# table comes last. Status 1 if anything failed.
set -u

top=$(cd "$(dirname "$0")/.." && pwd)
programs="tests/kernels/cuda_linear_test tests/kernels/cuda_ops_test tests/kernels/cuda_model_test tests/kernels/cuda_sample_test
tools/benchmarks/bench-cuda tools/benchmarks/bench-serve tools/fathom-eval daemon/fathomd
engine/fathom-engine"

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
    # The kernels are in each program again: one dictionary for all.
    tar -C "$dir" -cf - gpu | xz --lzma2=preset=4,dict=128MiB >"$file" || exit 1
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
ops=$(find_program cuda_ops_test) sample=$(find_program cuda_sample_test) linear=$(find_program cuda_linear_test)
model=$(find_program cuda_model_test)
eval=$(find_program fathom-eval) bench=$(find_program bench-cuda)
srcdir=$top CMOCKA_MESSAGE_OUTPUT=STDOUT
GOLDEN_DIR=${GOLDEN_DIR-$top/../shared/golden}
export srcdir CMOCKA_MESSAGE_OUTPUT GOLDEN_DIR
tiny=$top/tests/golden/flash-tiny mini=$top/models/fathom-mini flash=$top/tests/data/flash
parts=" ${PARTS-ops model eval bench profile serve sanitize} "
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

# Whether cuda is as near to the CPU as the CPU's kernels for other processors are: the gap between
# a row's best two tokens moves with rounding, as far as between two of the CPU's tables. Where it is
# wider than it ever moved there, the best token must be the same; and its moves must not be larger
# than the CPU's own (median, 99 of 100), by the factors of tests/kernels/acceptance.c.
compare='
import array, sys
vocab, rows = int(sys.argv[2]), {}
for b in ("cpu", "other", "cuda"):
    rows[b] = array.array("f")
    with open(sys.argv[1] + "/" + b + ".logits", "rb") as f:
        rows[b].frombytes(f.read())
n = len(rows["cpu"]) // vocab
gap, moved, best = [], {"other": [], "cuda": []}, {"other": [], "cuda": []}
for r in range(n):
    x = rows["cpu"][r * vocab:(r + 1) * vocab]
    first = x.index(max(x))
    top = x[first]
    x[first] = float("-inf")
    second = x.index(max(x))
    gap.append(top - x[second])
    for b in moved:
        y = rows[b][r * vocab:(r + 1) * vocab]
        moved[b].append(abs(y[first] - y[second] - gap[r]))
        best[b].append(y.index(max(y)) == first)
noise = max(moved["other"])
wide = [r for r in range(n) if gap[r] > noise]
bad = sum(not best["cuda"][r] for r in wide)
for b in moved:
    moved[b].sort()
    print(f"{b}: the best token of {sum(best[b])} of {n} rows; gaps moved by "
          f"{moved[b][n // 2]:.3f} (median), {moved[b][n * 99 // 100]:.3f} (99 of 100), "
          f"{moved[b][-1]:.3f} (most)")
print(f"gap above {noise:.3f}: {len(wide)} rows, {bad} with another best token")
part = [moved["cuda"][k] / moved["other"][k] for k in (n // 2, n * 99 // 100)]
print(f"moves as a part of the CPU: {part[0]:.2f}, {part[1]:.2f}")
sys.exit(n == 0 or not wide or bad > 0 or not part[0] <= 1.15 or not part[1] <= 1.3)
'

# Perplexity of all texts: lines "backend nll tokens". Accepted is a part in a thousand, or what the
# CPU's tables differ by.
perplexity='
import math, sys
sums = {}
for line in open(sys.argv[1]):
    b, nll, n = line.split()
    at = sums.setdefault(b, [0.0, 0])
    at[0] += float(nll) * int(n)
    at[1] += int(n)
p = {b: math.exp(s / n) for b, (s, n) in sums.items()}
off = {b: p[b] / p["cpu"] - 1 for b in p}
for b in p:
    print(f"{b}: perplexity {p[b]:.4f} of {sums[b][1]} tokens, {100 * off[b]:+.3f} %")
sys.exit(not abs(off["cuda"]) <= max(1e-3, abs(off["other"])))
'

# What ncu tells of each launch, added up by kernel; the read rate of the log of bench, if there is one.
kernels='
import csv, re, sys
rate = 4.65e12
try:
    rate = float(re.search(r"reading only\s+([0-9]+) GB/s", open(sys.argv[2]).read())[1]) * 1e9
except (OSError, TypeError):
    pass
at = {}
for row in csv.DictReader(l for l in open(sys.argv[1]) if l[0] == "\"") :
    v = at.setdefault(row["ID"], {"name": row["Kernel Name"]})
    v[row["Metric Name"]] = float(row["Metric Value"].replace(",", ""))
sums = {}
for v in at.values():
    name = re.sub(r"\(.*|^void |\(anonymous namespace\)::|\(int\)", "", v["name"].replace("(int)", ""))
    s = sums.setdefault(name, [0, 0.0, 0.0])
    s[0] += 1
    s[1] += v["gpu__time_duration.sum"] * 1e-9
    s[2] += v["dram__bytes_read.sum"]
total = sum(s[1] for s in sums.values())
print(f"{len(at)} launches, {total * 1e6:.0f} us")
for name, (n, t, b) in sorted(sums.items(), key=lambda i: -i[1][1]):
    print(f"{name:44.44} {n:4} {t * 1e6 / n:9.2f} us each {100 * t / total:5.1f} % of all "
          f"{b / n * 1e-6:9.2f} MB {100 * b / t / rate:5.1f} % of the read rate")
sys.exit(not at)
'

# cpu is the best table that the machine has, other another one.
options_of() {
    case $1 in
    other) echo --backend cpu --isa avx2 ;;
    *) echo --backend "$1" ;;
    esac
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader |
    tee "$out/machine"
case $parts in *" ops "*)
    part ops 150 "$ops"
    part linear 150 "$linear"
    part sample 150 "$sample"
    grep -hE '^#|ERROR|FAILED|Failure|error' "$out/ops.log" "$out/linear.log" "$out/sample.log"
    ;;
esac
case $parts in *" model "*)
    part model 240 "$model"
    grep -E '^#|ERROR|FAILED|Failure|error|PASSED|SKIPPED' "$out/model.log"
    ;;
esac
case $parts in *" eval "*)
    for text in LICENSE docs/PROTOCOL.md; do
        for by in cpu other cuda; do
            # shellcheck disable=SC2046 # options are words
            part "eval-$by-${text##*/}" 90 "$eval" --model "$mini" $(options_of $by) \
                --text "$top/$text" --last 2900 --logits "$out/$by.logits"
            cat "$out/eval-$by-${text##*/}.log"
        done
        part "compare-${text##*/}" 90 python3 -c "$compare" "$out" 8192
        cat "$out/compare-${text##*/}.log"
    done
    : >"$out/nll"
    for text in "$top/LICENSE" "$top"/docs/*.md; do
        for by in cpu other cuda; do
            # shellcheck disable=SC2046
            timeout 90 "$eval" --model "$mini" $(options_of $by) --text "$text" |
                awk -v by=$by '$1 == "nll" { x = $2 } $1 == "scored_tokens" { n = $2 }
                    END { print by, x, n }' >>"$out/nll"
        done
    done
    part perplexity 20 python3 -c "$perplexity" "$out/nll"
    cat "$out/perplexity.log"
    rm -f "$out"/*.logits
    ;;
esac
case $parts in *" bench "*)
    part bench 150 "$bench" "$mini"
    part bench-half 200 "$bench" --synthetic "$flash" --half
    part bench-whole 200 "$bench" --synthetic "$flash" --experts 200
    cat "$out/bench.log" "$out/bench-half.log" "$out/bench-whole.log"
    ;;
esac
case $parts in *" profile "*)
    # Two layers without compression, two of each kind with: a token at 1k and at 1M, 64, 128, 512.
    for p in 1024:1 1047552:1 8192:64 131072:128 8192:512; do
        part "profile-$p" 120 ncu --profile-from-start off --clock-control none --csv \
            --metrics gpu__time_duration.sum,dram__bytes_read.sum \
            "$bench" --synthetic "$flash" --half --layers 6 --profile "${p%:*}" --rows "${p#*:}"
        echo "== kernels of a step of ${p#*:} behind ${p%:*}, six layers"
        python3 -c "$kernels" "$out/profile-$p.log" "$out/bench.log"
    done
    ;;
esac
case $parts in *" serve "*)
    DAEMON_OPTIONS="--backend cuda" part serve 200 "$top/tools/bench-serve.sh" --half \
        "$flash/config.json" "$build" --contexts 1024,32768 --batches 4,16
    cat "$out/serve.log"
    ;;
esac
case $parts in *" sanitize "*)
    # In chunks and one at a time, past the first entry of every compressor, with the draft block.
    python3 -c 'import array, sys
array.array("I", [i * 7919 % 512 for i in range(140)]).tofile(open(sys.argv[1], "wb"))' \
        "$out/tokens"
    for tool in memcheck initcheck synccheck; do
        part "$tool" 300 compute-sanitizer --tool $tool --error-exitcode 9 "$eval" \
            --model "$tiny" --tokens "$out/tokens" --backend cuda --chunk 70 --split 136 \
            --last 20 --mtp "$out/mtp" --logits "$out/logits"
        grep -E 'SUMMARY|=========' "$out/$tool.log" | tail -12
    done
    # It is slower by far: past the first entries of the compressors with a short ratio.
    head -c 144 "$out/tokens" >"$out/few"
    part racecheck 300 compute-sanitizer --tool racecheck --error-exitcode 9 "$eval" \
        --model "$tiny" --tokens "$out/few" --backend cuda --chunk 24 --split 33 --last 4 \
        --mtp "$out/mtp" --logits "$out/logits"
    grep -E 'SUMMARY|=========' "$out/racecheck.log" | tail -12
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
