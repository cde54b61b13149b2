#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Is what nvcc makes of gpu/cuda the same as at another commit? Machine code, constants and sizes of
# shared memory of each kernel are compared, byte by byte: where an expression only moved to
# gpu/index, nothing may differ. Needs nvcc and readelf, no GPU.
#
#   tools/same-code.sh REV [FILE.cu...]     (NVCC, CUDA_ARCH, NVCCFLAGS as for configure)
set -eu
cd "$(dirname "$0")/.."
: "${NVCC:=nvcc}" "${CUDA_ARCH:=arch=compute_90a,code=sm_90a}" "${NVCCFLAGS:=-O3}"
rev=${1:?a commit to compare with}
shift
[ $# -gt 0 ] || set -- gpu/cuda/*.cu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/old" "$work/new"
git archive "$rev" base gpu model | tar x -C "$work/old"
git ls-files base gpu model | tar c -T - | tar x -C "$work/new" # both from a folder of that depth
touch "$work/old/config.h" "$work/new/config.h"

# Sections of a kernel's own, with sums over their bytes.
code() { # SIDE FILE
    # shellcheck disable=SC2086 # flags, several
    (cd "$work/$1" && "$NVCC" -std=c++17 -gencode "$CUDA_ARCH" -I. -fmad=false $NVCCFLAGS -cubin -o out.cubin "$2")
    readelf -SW "$work/$1/out.cubin" 2>"$work/said" |
        sed -n 's/.* \(\.text\.[^ ]*\|\.nv\.constant[^ ]*\|\.nv\.shared\.[^ ]*\) *\([A-Z]*\) *[0-9a-f]* [0-9a-f]* \([0-9a-f]*\) .*/\1 \2 \3/p' |
        while read -r name type size; do
            sum=-
            [ "$type" = NOBITS ] || sum=$(readelf -W -x "$name" "$work/$1/out.cubin" 2>"$work/said" | cksum)
            echo "$name $size $sum"
        done
}

kernels=0 bad=0
for f in "$@"; do
    code old "$f" >"$work/was"
    code new "$f" >"$work/is"
    n=$(grep -c '^\.text' "$work/is" || true)
    if cmp -s "$work/was" "$work/is"; then
        kernels=$((kernels + n))
        echo "same: $f: $n kernels"
    else
        bad=1
        echo "DIFFERENT: $f"
        diff "$work/was" "$work/is" | grep '^[<>]' || true
    fi
done
echo "$kernels kernels are the same"
exit $bad
