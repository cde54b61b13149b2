#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The operations and the drawing of tokens once more, with threads in other orders and streams that
# run at once: what is right in one order only lacks a barrier.
: "${srcdir:=.}" "${top_builddir:=.}"
tests=$top_builddir/tests/simt
if [ ! -x "$tests/ops_test" ]; then
    echo "1..0 # SKIP no CUDA toolkit, or not x86-64"
    exit 0
fi
n=0
for order in reverse 1 20261122; do
    for test in ops_test sample_test; do
        n=$((n + 1))
        if log=$(SIMT_ORDER=$order SIMT_STREAMS=now "$tests/$test" 2>&1); then
            echo "ok $n - $test, order $order"
        else
            echo "not ok $n - $test, order $order"
            printf '%s\n' "$log" | sed 's/^/# /'
        fi
    done
done
echo "1..$n"
