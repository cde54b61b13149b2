#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Puts bugs into the CUDA kernels, one at a time, and wants tests/simt/ops_test to find each: every
# barrier of the operations that it tests is left out, and some bounds are off by one. A barrier
# that is not missed must be in the list below, with the reason. Run by `make simt-bugs`.
set -eu
: "${srcdir:=.}" "${top_builddir:=.}" "${SIMT_CXX:?}" "${LINK:?}" "${OBJECTS:?}" "${LIBS:?}"
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
'

build() { # FILE: the test with what is in $work/gpu/cuda/FILE
    object=gpu/cuda/${1%.cu}.simt.o
    others=$(echo "$OBJECTS" | tr ' ' '\n' | grep -vx "$object")
    # shellcheck disable=SC2086 # flags and lists of files
    $SIMT_CXX -O1 -c -o "$work/altered.o" -x c++ "$work/gpu/cuda/$1" &&
        $LINK -o "$work/test" "$work/altered.o" $others $LIBS
}

# The orders under which the test fails.
failing() {
    for order in forward reverse 12345; do
        SIMT_ORDER=$order timeout 120 "$work/test" >"$work/log" 2>&1 || printf ' %s' "$order"
    done
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

bug() { # FILE SED-SCRIPT WHAT
    mkdir -p "$work/gpu/cuda"
    sed "$2" "$here/gpu/cuda/$1" >"$work/gpu/cuda/$1"
    if cmp -s "$work/gpu/cuda/$1" "$here/gpu/cuda/$1"; then
        echo "bug not planted: $3"
        bad=1
        return
    fi
    build "$1"
    report "$1: $3" "$(failing)" ""
}

barriers() { # FILE: without each of its barriers
    lines=$(grep -nE '^ *__sync(threads|warp)\(\)' "$here/gpu/cuda/$1" | cut -d: -f1)
    n=0
    for line in $lines; do
        n=$((n + 1))
        mkdir -p "$work/gpu/cuda"
        sed "${line}s/__sync[a-z]*()/(void)0/" "$here/gpu/cuda/$1" >"$work/gpu/cuda/$1"
        build "$1"
        report "$1: barrier $n (line $line) left out" "$(failing)" \
            "$(printf '%s' "$spared" | sed -n "s/^$1 $n //p")"
    done
}

# As it is, it passes.
mkdir -p "$work/gpu/cuda"
cp "$here/gpu/cuda/quant.cu" "$work/gpu/cuda/"
build quant.cu
if [ -n "$(failing)" ]; then
    echo "the test fails without a bug:"
    tail "$work/log"
    exit 1
fi

for file in ${FILES:-attention.cu index.cu mhc.cu moe.cu quant.cu}; do
    barriers "$file"
done
[ -z "${FILES:-}" ] || exit $bad

bug quant.cu 's/i = i0 + lane; i < i1;/i = i0 + lane; i <= i1;/' "one element of the next group"
bug quant.cu 's/if (row >= a.rows)/if (row > a.rows)/' "a row behind the last"
bug norm.cu 's/a.w\[i + k\] \* (v/a.w[i] * (v/' "one weight for eight elements"
bug moe.cu 's/a.slot\[row_start(r, a.k) + i\]/a.slot[row_start(r, a.k)]/' "one expert's row for all"
bug attention.cu 's/a.n_keys - 1)\]/a.n_keys - 2)]/' "the value of the key before the last, twice"
bug index.cu 's/t >= KEYS ||/t >= KEYS - 1 ||/' "a key that no thread has"
echo "$found found"
exit $bad
