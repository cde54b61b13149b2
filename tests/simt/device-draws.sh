#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# On a device that is emulated, a sample's tokens are drawn there; where a list of the best is wanted
# too, by the host: the same tokens, and the same log-probabilities.
# shellcheck disable=SC1091,SC2119,SC2154
. "${srcdir:-.}/tests/e2e/daemon.subr"
engine=$top_builddir/tests/simt/engine
if [ ! -x "$engine" ]; then
    echo "1..0 # SKIP no CUDA toolkit, or not x86-64"
    exit 0
fi
conversation() { # NAME SEED MORE: token ids and log-probabilities
    talk <<END | sed -n 's/.* id=\([0-9]*\).* logprob=\([^ ]*\).*/\1 \2/p'
session.new name=$1
append name=$1 text=The%20code%20is
sample name=$1 n=6 temperature=1.2 top_p=0.95 min_p=0.01 seed=$2 ignore_eos=1 logprobs=1 $3
END
}

start --engine "$engine" --backend cuda --step-timeout 10min --load-timeout 10min
device=$(conversation a 5)
is "$(echo "$device" | wc -l)" 6 "six tokens"
is "$(conversation b 5 top_logprobs=2)" "$device" "drawn by the host: the same"
[ "$(conversation c 6)" != "$device" ]
ok "another seed: others"
stop
plan
