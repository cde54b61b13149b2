#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Puts bugs back into the shipped formulas, one at a time, and wants the proofs to find each: those
# that state the obligation are compiled over the altered header. Part of `make verify`.
set -eu
: "${srcdir:=.}" "${top_builddir:=.}" "${CXX:=g++}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
here=$(cd "$srcdir" && pwd)
build=$(cd "$top_builddir" && pwd)
bad=0

bug() { # HEADER SED-SCRIPT OBLIGATION WHAT
    rm -rf "${work:?}/gpu" "$work/base" "$work/kvstore" "$work/proto"
    mkdir -p "$work/$(dirname "$1")"
    sed "$2" "$here/$1" >"$work/$1"
    if cmp -s "$work/$1" "$here/$1"; then
        echo "bug not planted: $4"
        bad=1
        return
    fi
    for f in "$here"/verify/*.cc; do
        object=$(basename "$f" .cc).o
        ln -sf "$build/verify/prove-$object" "$work/$object"
        case $1 in base/*) uses='include "base/fpbits.h"' ;; *) uses='include "verify/formulas.hh"' ;; esac
        if grep -q "$uses" "$f" && grep -q "\"$3\"" "$f"; then
            rm "$work/$object"
            # shellcheck disable=SC2086 # a compiler may be called by another program
            $CXX -std=c++17 -O0 -I"$work" -I"$here" -I"$build" -c -o "$work/$object" "$f"
        fi
    done
    # shellcheck disable=SC2046,SC2086 # paths of libraries; as above
    $CXX -o "$work/prove" "$work"/*.o "$build/gpu/libgpu.a" "$build/kvstore/libkvstore.a" "$build/model/libmodel.a" "$build/base/.libs/libbase.a" \
        $(pkg-config --libs jansson libpcre2-8 libxxhash) -lz3 -lm
    found=$("$work/prove" --only "$3" "$here/models/fathom-mini" "$here/tests/data/flash" | grep " FAILED " || true)
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
bug gpu/index/linear.h 's|(out + LINEAR_WARPS / split - 1) / (|out / (|' outputs-once \
    "a grid that leaves the last outputs of a matrix out"
bug gpu/index/linear.h 's|(INDEX_T)o \* (INDEX_T)in \* (INDEX_T)bits / 8 +|(INDEX_T)(o * in * bits / 8) +|' \
    loads-inside "bytes of a large matrix counted in 32 bits"
bug gpu/index/indexer.h 's|above + INDEX_IF(equal < rank, equal, rank)|above + equal|' chosen-ascend \
    "places that count all entries equal to the last one chosen"
bug gpu/index/indexer.h 's|p.q_scale + heads \* groups \* 4|p.q_scale + heads * groups|' plan-is-apart \
    "scales of queries that run into those of keys in shared memory"
bug gpu/index/attention.h 's|heads \* ((INDEX_T)max_keys + 1)|heads * (INDEX_T)max_keys|' cells-apart \
    "no room for the denominators behind the scores"
bug gpu/index/compress.h 's|i >= ratio|i > ratio|' inputs-are-spec \
    "an entry that takes its first token for one of the block before"
bug gpu/index/rows.h 's|p / stride \* 2 \* stride|p / stride * stride|' butterflies-once \
    "butterflies that meet"
bug gpu/index/rows.h 's|(p % pairs \* 2)|(p % pairs)|' pairs-once "rotated pairs that overlap"
bug gpu/index/packed.h 's|INDEX_SHARE(chunks \* part, split)|INDEX_SHARE(chunks, split) * part|' work-once \
    "parts of a product that leave its last inputs out"
bug gpu/index/packed.h 's|load \* 32 + w / 2 \* 4|load * 32 + w % 2 * 4|' words-are-weights \
    "packed weights that are there twice, and others not at all"
bug gpu/index/attend.h 's|n_keys + ATTEND_PARTS \* 16 - 1|n_keys|' parts-cover \
    "the last keys of a list in no part"
bug base/fpbits.h 's|u \| 0x8000|u|' bf16-order "numbers above zero sorted below those under it"
bug base/fpbits.h 's|u + 0x7fff + (u >> 16 \& 1)|u + 0x8000|' bf16-rounds "ties away from zero"
bug base/fpbits.h 's|(w << 2 \& 0x01c001c0)|(w << 3 \& 0x01c001c0)|' codes-widened \
    "codes of keys that take a bit of their neighbours"
bug gpu/index.h 's|return (a + b - 1) / b;|return a / b;|' grid-covers "grids that leave the last things out"
bug gpu/index.h 's|n < slots - slot, n, slots - slot|n < slots, n, slots|' pieces-cover \
    "states that run over the end of a ring"
bug gpu/index.h 's|return block \* threads + thread;|return block * (threads - 1) + thread;|' elements-once \
    "blocks of experts' rows that overlap"
bug gpu/index/choose.h 's|n + CHOOSE_UNIT - 1|n|' scores-cut-up "the last scores of a query in no unit"
bug gpu/index/choose.h 's|return pair \* 10 + four;|return pair * 7 + four;|' terms-apart \
    "terms over each other"
bug gpu/index/mma.h 's|return lane / rows \* 8;|return lane / rows * 4;|' fragments-inside \
    "fragments that ldmatrix cannot load"
bug gpu/index/moe.h 's|return first + before;|return first + before / 2 * 2;|' places-once \
    "two rows of an expert in one place"
bug gpu/index/rows.h 's|return i \* dim + c;|return i * (dim - 1) + c;|' streams-once \
    "streams that run into each other"
bug gpu/index/rows.h 's|lane % lanes) \* 4;|lane % lanes) * 3;|' columns-once \
    "columns of a stream that no lane has"
bug gpu/index/attention.h 's|return p.nope + 2 \* (c - p.nope);|return p.nope + c - p.nope;|' bytes-once \
    "bf16 of keys that overlap when rows are packed"
bug gpu/index/packed.h 's|return block \* half \* PACK_M + thread;|return block * PACK_M + thread;|' row-outputs \
    "outputs of one row's experts that are two blocks'"
bug gpu/index/sample.h 's|p.sum + SAMPLE_BINS \* 8|p.sum + SAMPLE_BINS * 4|' work-apart \
    "sums of bins that run into what is known of slices"
bug gpu/index/sample.h 's|thread \* SAMPLE_OWN + i|thread + i|' bins-once "bins of two threads"
bug proto/ring_index.h 's|data_bytes) < need|data_bytes) + 8 < need|' records-whole \
    "a record over the end of its ring"
exit $bad
