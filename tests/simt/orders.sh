#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The operations once more, with threads in other orders and streams that run at once: what is right
# in one order only lacks a barrier.
: "${srcdir:=.}" "${top_builddir:=.}"
test=$top_builddir/tests/simt/ops_test
if [ ! -x "$test" ]; then
    echo "1..0 # SKIP no CUDA toolkit, or not x86-64"
    exit 0
fi
n=0
for order in reverse 1 20261122; do
    n=$((n + 1))
    if log=$(SIMT_ORDER=$order SIMT_STREAMS=now "$test" 2>&1); then
        echo "ok $n - order $order"
    else
        echo "not ok $n - order $order"
        printf '%s\n' "$log" | sed 's/^/# /'
    fi
done
echo "1..$n"
