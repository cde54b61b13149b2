#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Puts bugs into the CUDA kernels, one at a time, and wants the tests of tests/simt to find each: every
# barrier of the operations that they test is left out, and some bounds are off by one. A barrier
# that is not missed must be in the list below, with the reason. Run by `make simt-bugs`.
#
# FILES: only these of gpu/cuda.
set -eu
: "${srcdir:=.}" "${top_builddir:=.}" "${SIMT_CXX:?}" "${LINK:?}" "${OBJECTS:?}" "${LIBS:?}"
: "${ops_test:?}" "${linear_test:?}" "${sample_test:?}" # objects of each
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
here=$(cd "$srcdir" && pwd)
cd "$top_builddir"
bad=0
found=0

# Not missed: FILE WHICH REASON
spared='
mhc.cu 7 a lane takes back what it wrote itself
moe.cu 1 the match above it waits for all lanes, here
sample.cu 2 between any two calls there is a barrier besides
sample.cu 7 what is read in front of it is written behind the next one
sample.cu 10 what is read in front of it is written behind the next one
sample.cu 16 blocks end one after another here, and the last one has added all at the next barrier
'

# What includes a header, or the file itself.
users() { # FILE
    case $1 in
        *.cuh) grep -l "gpu/cuda/$1" gpu/cuda/*.simt.d | sed 's|.*/||; s|\.simt\.d$|.cu|' ;;
        *) echo "$1" ;;
    esac
}

build() { # FILE TEST: the test with what is in $work/gpu/cuda/FILE
    others=" $OBJECTS $(eval "echo \"\$$2\"") "
    altered=
    for f in $(users "$1"); do
        from=$work/gpu/cuda/$f
        [ -f "$from" ] || from=$here/gpu/cuda/$f
        # shellcheck disable=SC2086 # flags and lists of files
        $SIMT_CXX -iquote "$work" -O1 -c -o "$work/$f.o" -x c++ "$from" || return
        others=$(echo "$others" | sed "s| gpu/cuda/${f%.cu}\.simt\.o | |")
        altered="$altered $work/$f.o"
    done
    # shellcheck disable=SC2086 # as above
    $LINK -o "$work/test" $altered $others $LIBS
}

# The first of these orders under which the test fails.
failing() {
    for order in forward reverse 12345; do
        SIMT_ORDER=$order timeout 120 "$work/test" >"$work/log" 2>&1 || {
            printf ' %s' "$order"
            break
        }
    done
}

# Whether the file is to be looked at; nothing else is altered.
wanted() { # FILE
    case " ${FILES:-$1} " in *" $1 "*) ;; *) return 1 ;; esac
    rm -rf "$work/gpu"
    mkdir -p "$work/gpu/cuda"
}

report() { # WHAT ORDERS REASON
    if [ -n "$2" ]; then
        echo "found: $1:$2"
        found=$((found + 1))
    elif [ -n "$3" ]; then
        echo "not missed: $1: $3"
    else
        echo "NOT FOUND: $1"
        bad=1
    fi
}

bug() { # FILE SED-SCRIPT WHAT [TEST]
    wanted "$1" || return 0
    sed "$2" "$here/gpu/cuda/$1" >"$work/gpu/cuda/$1"
    if cmp -s "$work/gpu/cuda/$1" "$here/gpu/cuda/$1"; then
        echo "bug not planted: $3"
        bad=1
        return
    fi
    build "$1" "${4:-ops_test}"
    report "$1: $3" "$(failing)" ""
}

barriers() { # FILE [TEST]: without each of its barriers
    wanted "$1" || return 0
    lines=$(grep -nE '^ *__sync(threads|warp)\(\)' "$here/gpu/cuda/$1" | cut -d: -f1)
    n=0
    for line in $lines; do
        n=$((n + 1))
        sed "${line}s/__sync[a-z]*()/(void)0/" "$here/gpu/cuda/$1" >"$work/gpu/cuda/$1"
        build "$1" "${2:-ops_test}"
        report "$1: barrier $n (line $line) left out" "$(failing)" \
            "$(printf '%s' "$spared" | sed -n "s/^$1 $n //p")"
    done
}

# As they are, they pass.
for test in ops_test linear_test sample_test; do
    [ -z "${FILES:-}" ] || break
    mkdir -p "$work/gpu/cuda"
    cp "$here/gpu/cuda/quant.cu" "$work/gpu/cuda/"
    build quant.cu $test
    if [ -n "$(failing)" ]; then
        echo "$test fails without a bug:"
        tail "$work/log"
        exit 1
    fi
done

for file in attention.cu index.cu mhc.cu moe.cu quant.cu gate.cuh streams.cu streams_in.cu; do
    barriers "$file"
done
barriers experts_row.cu linear_test
barriers packed_many.cuh linear_test
barriers sample.cu sample_test

bug quant.cu 's/i = i0 + lane; i < i1;/i = i0 + lane; i <= i1;/' "one element of the next group"
bug quant.cu 's/if (row >= a.rows)/if (row > a.rows)/' "a row behind the last"
bug norm.cu 's/a.w\[i + k\] \* (v/a.w[i] * (v/' "one weight for eight elements"
bug moe.cu 's/a.slot\[row_start(r, a.k) + i\]/a.slot[row_start(r, a.k)]/' "one expert's row for all"
bug attention.cu 's/a.n_keys - 1)\]/a.n_keys - 2)]/' "the value of the key before the last, twice"
bug index.cu 's/t >= KEYS ||/t >= KEYS - 1 ||/' "a key that no thread has"
bug streams.cu 's/sum += i < a.k ? bf16_to_f32/sum += i < a.k - 1 ? bf16_to_f32/' "an expert less put back"
bug streams_in.cu 's/mixed_eight<HC>(w\[EARLY ? k : 0\]/mixed_eight<HC>(w[0]/' "the first columns for all"
bug experts_row.cu 's/c.id\[i\] < x;/c.id[i] <= x;/' "places of an expert behind its own" linear_test
bug experts_row.cu 's/split, t + half \* PACK_M, 0)/split, t, 0)/' "sums of one matrix for both" linear_test
bug experts_row.cu 's/x <= a.n_experts; x +=/x < a.n_experts; x +=/' "no end of the last expert's places" linear_test
bug packed_many.cuh 's/(staged + half \* STAGE +$/(staged +/' "rows over those of the run before" linear_test
bug packed_many.cuh 's/p.add_part(r.part == 0)/p.add_part(r.part <= 1)/' "a part of the inputs less" linear_test
bug sample.cu 's/g.worth <= before + worth_of/g.worth < before + worth_of/' "a goal at the end of its bin" sample_test
bug sample.cu 's/m\[j\].key >= mine.key/m[j].key > mine.key/' "a candidate that does not count itself" sample_test
bug sample.cu 's/(uint16_t)n.n;/(uint16_t)from;/' "a bin's end where it begins" sample_test
echo "$found found"
exit $bad
