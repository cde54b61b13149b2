#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A kernel that traps, on a device that is emulated: the engine ends as one that has lost its device,
# and a client's answer goes on in the next engine as if nothing had been.
# shellcheck disable=SC1091,SC2119,SC2154
. "${srcdir:-.}/tests/e2e/daemon.subr"
engine=$top_builddir/tests/simt/engine
if [ ! -x "$engine" ]; then
    echo "1..0 # SKIP no CUDA toolkit, or not x86-64"
    exit 0
fi
plain() { sed 's/ queue_us=.*//'; }
conversation() {
    talk <<END | plain
session.new name=a
append name=a text=The%20code%20is
sample name=a n=4 temperature=0 seed=1 ignore_eos=1 quiet=1
transcript name=a what=tokens
END
}
# The emulation takes what it takes.
slowly() { start --engine "$engine" --backend cuda --step-timeout 10min --load-timeout 10min; }

slowly
wanted=$(conversation)
has "$wanted" 'n=4 reason=limit' "an undisturbed conversation"
stop
# In the session's first step, and in one that draws a token: attention runs once a layer, and the
# engine has tried one token before.
layers=$(sed -n 's/.*"num_hidden_layers": *\([0-9]*\).*/\1/p' "$srcdir/models/fathom-mini/config.json")
for at in $((layers + 2)) $((layers * 4)); do
    rm -f "$dir/once"
    export SIMT_TRAP="$at" SIMT_TRAP_IN=attend.cu SIMT_TRAP_ONCE="$dir/once"
    slowly
    is "$(conversation)" "$wanted" "a kernel traps, $at: the same answer"
    [ -e "$dir/once" ]
    ok "and it did trap"
    has "$(grep 'engine: error: fatal' "$dir/log")" 'cudaErrorIllegalAddress.* exit=70$' \
        "the engine ended as one that lost its device"
    has "$(grep engine-ended "$dir/log")" 'cudaErrorIllegalAddress' "and fathomd knows why"
    stop
done
plan
