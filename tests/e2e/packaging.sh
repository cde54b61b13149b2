#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The unit that is installed: how exposed systemd finds it, and that it lets the engine see a GPU.
: "${top_builddir:=.}"
unit=$top_builddir/packaging/fathomd.service
dir=$(mktemp -d) || exit 99
trap 'rm -rf "$dir"' EXIT

echo "1..4"
ok() { # NUMBER NAME: of the command before
    if [ $? -eq 0 ]; then echo "ok $1 - $2"; else echo "not ok $1 - $2"; fi
}
exposed() { systemd-analyze security --offline=true --threshold=15 "$1" >"$dir/out" 2>&1; }

grep -q '^DeviceAllow=char-nvidia\* rw$' "$unit" && grep -q '^DevicePolicy=closed$' "$unit" &&
    ! grep -q '^PrivateDevices=yes' "$unit"
ok 1 "GPUs, and no other devices"
grep -q "^ExecStart=/.*/fathomd --config /.*/fathomd.conf --state %S/fathom$" "$unit" &&
    grep -q '^StateDirectory=fathom$' "$unit" && ! grep -q '@[a-z]*@' "$unit"
ok 2 "paths are filled in; the state is where systemd lets it be written"
if systemd-analyze security --help 2>/dev/null | grep -q -e --threshold; then
    exposed "$unit"
    ok 3 "exposure of 1.5 at most"
    mkdir "$dir/bare"
    grep -v -e '^Protect' -e '^SystemCall' "$unit" >"$dir/bare/fathomd.service"
    ! exposed "$dir/bare/fathomd.service"
    ok 4 "which a unit without protection has not"
else
    echo "ok 3 - exposure # SKIP no systemd-analyze with --threshold"
    echo "ok 4 - control # SKIP no systemd-analyze with --threshold"
fi
