#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Puts bugs back into the shipped formulas, one at a time, and wants the proofs to find each: the
# prover is compiled again over the altered header. Part of `make verify`.
set -eu
: "${srcdir:=.}" "${top_builddir:=.}" "${CXX:=g++}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
here=$(cd "$srcdir" && pwd)
build=$(cd "$top_builddir" && pwd)
bad=0

bug() { # HEADER SED-SCRIPT OBLIGATION WHAT
    rm -rf "${work:?}/gpu" "$work/base" "$work/kvstore"
    mkdir -p "$work/$(dirname "$1")"
    sed "$2" "$here/$1" >"$work/$1"
    if cmp -s "$work/$1" "$here/$1"; then
        echo "bug not planted: $4"
        bad=1
        return
    fi
    # shellcheck disable=SC2046 # paths of libraries
    "$CXX" -std=c++17 -O1 -I"$work" -I"$here" -I"$build" -o "$work/prove" "$here"/verify/*.cc \
        "$build/kvstore/libkvstore.a" "$build/model/libmodel.a" "$build/base/.libs/libbase.a" \
        $(pkg-config --libs jansson libpcre2-8 libxxhash) -lz3 -lm
    found=$("$work/prove" "$here/models/fathom-mini" "$here/tests/data/flash" | grep " FAILED " || true)
    if printf '%s\n' "$found" | grep -q " $3 "; then
        echo "found: $4: $(printf '%s\n' "$found" | sed -n "s/.* $3 .*FAILED *[0-9]* *[0-9]* *//p" | cut -c 1-70)"
    else
        echo "NOT FOUND: $4"
        bad=1
    fi
}

bug gpu/index.h 's|return (pos + 1) / ratio;|return pos / ratio;|' visible-is-spec \
    "the paper's range of visible entries, one too few at the end of a block"
bug gpu/index.h 's|pos + 1 > window, pos + 1 - window|pos > window, pos - window|' window-is-spec \
    "a window of one key too many"
bug gpu/index.h 's|return pos % slots;|return pos % (slots - 1);|' window-keeps \
    "a ring of one slot too few"
bug gpu/index.h 's|return j % per_page;|return j % (per_page - INDEX_IF(per_page > 1, 1, 0));|' \
    entry-is-alone "two entries on one row of a page"
bug kvstore/offsets.h 's|(n + OFFSETS_BLOCK - 1) / OFFSETS_BLOCK|n / OFFSETS_BLOCK|' sections-apart \
    "a section of a file that overlaps the next one"
bug base/fpbits.h 's|u + 0x7fff + (u >> 16 \& 1)|u + 0x8000|' bf16-rounds "ties away from zero"
exit $bad
