#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Made-up weights through the whole of it, as the benchmark of a daemon does: what it prints is there,
# and a model whose vocabulary is smaller than the tokenizer's is refused.
# shellcheck disable=SC1091,SC2154
: "${srcdir:=.}" "${top_builddir:=.}"
. "$srcdir/tests/e2e/daemon.subr"

bench() { # CONFIG OPTION...
    DAEMON_OPTIONS="--backend cpu" timeout 300 "$srcdir/tools/bench-serve.sh" "$1" "$top_builddir" \
        --tokens 40 --contexts 60 --batches 2 2>&1
}
got=$(bench "$srcdir/models/fathom-mini/config.json")
is "$?" 0 "a daemon with made-up weights serves"
has "$got" '^context  *60: appended in [0-9.]* s, [1-9]' "it appends"
has "$got" 'temperature 0: first token after .* [1-9][0-9.]* tokens/s' "it takes the best tokens"
has "$got" 'temperature 1: first token after .* [1-9][0-9.]* tokens/s' "it draws tokens"
has "$got" '^batch 2: [1-9][0-9.]* tokens/s' "it draws for two at a time"
got=$(bench "$srcdir/tests/golden/flash-tiny/config.json")
has "$got" 'tokenizer.json has 8192 ids, config.json 512' "a vocabulary below the tokenizer's is refused"
plan
