#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What is installed for systemd: units, users, directories, the catalogue of log events. Each tool
# that judges them is asked where it is there, and shown something that it must refuse.
: "${srcdir:=.}" "${top_builddir:=.}"
made=$top_builddir/packaging
given=$srcdir/packaging
unit=$made/fathomd.service
dir=$(mktemp -d) || exit 99
trap 'rm -rf "$dir"' EXIT
n=0
ok() { # NAME: of the command before
    rc=$?
    n=$((n + 1))
    if [ $rc -eq 0 ]; then echo "ok $n - $1"; else echo "not ok $n - $1"; fi
    [ $rc -eq 0 ] || [ ! -s "$dir/out" ] || sed 's/^/# /' "$dir/out"
    : >"$dir/out"
}
skip() { # NAME REASON
    n=$((n + 1))
    echo "ok $n - $1 # SKIP $2"
}
have() { command -v "$1" >/dev/null; }

# --- the system's unit
grep -q '^DeviceAllow=char-nvidia\* rw$' "$unit" && grep -q '^DevicePolicy=closed$' "$unit" &&
    ! grep -q '^PrivateDevices=yes' "$unit"
ok "GPUs, and no other devices"
grep -q "^ExecStart=/.*/fathomd --config /.*/fathomd.conf --state %S/fathom$" "$unit" &&
    grep -q '^StateDirectory=fathom$' "$unit" && ! grep -q '@[a-z]*@' "$unit" "$made/user/fathomd.service"
ok "paths are filled in; the state is where systemd lets it be written"
! grep -q '^PrivateUsers=yes' "$unit" "$made/user/fathomd.service"
ok "users of clients are not hidden"
exposed() { systemd-analyze security --offline=true --threshold=15 "$1" >"$dir/out" 2>&1; }
if systemd-analyze security --help 2>/dev/null | grep -q -e --threshold; then
    exposed "$unit"
    ok "exposure of 1.5 at most"
    mkdir "$dir/bare"
    grep -v -e '^Protect' -e '^SystemCall' "$unit" >"$dir/bare/fathomd.service"
    ! exposed "$dir/bare/fathomd.service"
    ok "which a unit without protection has not"
else
    skip "exposure" "no systemd-analyze with --threshold"
    skip "control" "no systemd-analyze with --threshold"
fi

# systemd gives more time to stop than the daemon gives itself.
stop=$(sed -n 's/^OPTION(stop_timeout,.*"\([0-9]*\)s", 1, .*/\1/p' "$srcdir/daemon/options.def")
for u in "$unit" "$made/user/fathomd.service"; do
    limit=$(sed -n 's/^TimeoutStopSec=//p' "$u")
    [ -n "$stop" ] && [ "$limit" -ge $((stop + 10)) ] && [ "$limit" -le $((stop + 30)) ]
    ok "TimeoutStopSec of ${u#"$made/"} is a little more than stop-timeout"
done

# --- systemd reads them without a word, and so do its friends
if have systemd-analyze; then
    for kind in system user; do
        mkdir "$dir/$kind"
        if [ $kind = system ]; then
            cp "$unit" "$given/fathomd.socket" "$given/fathomd-metrics.socket" "$dir/$kind"
        else
            cp "$made/user/fathomd.service" "$given/user/fathomd.socket" "$dir/$kind"
        fi
        # nothing is installed: the program is the one that was built
        sed -i "s|^ExecStart=[^ ]*|ExecStart=$(realpath "$top_builddir/daemon/fathomd")|" "$dir/$kind"/*.service
        verify() { (cd "$dir/$kind" && HOME=$dir XDG_RUNTIME_DIR=$dir systemd-analyze verify --$kind --man=no ./*.service ./*.socket >"$dir/out" 2>&1) && [ ! -s "$dir/out" ]; }
        verify
        ok "systemd-analyze verify: the $kind units"
        sed -i 's/^KillMode=mixed/KillMod=mixed/' "$dir/$kind"/*.service
        ! verify
        ok "which does see a wrong word"
    done
else
    skip "systemd-analyze verify" "no systemd-analyze"
fi

root=$dir/root
mkdir -p "$root/etc" "$root/usr/lib/sysusers.d" "$root/usr/lib/tmpfiles.d" "$root/usr/lib/systemd/catalog"
cp "$made/sysusers.d/fathom.conf" "$root/usr/lib/sysusers.d/"
cp "$made/tmpfiles.d/fathom.conf" "$root/usr/lib/tmpfiles.d/"
cp "$given/fathom.catalog" "$root/usr/lib/systemd/catalog/"
if have systemd-sysusers && [ "$(id -u)" -eq 0 ]; then
    systemd-sysusers --root="$root" >"$dir/out" 2>&1 &&
        grep -q '^fathom:.*:/var/lib/fathom:' "$root/etc/passwd" && grep -q '^fathom:' "$root/etc/group"
    ok "systemd-sysusers makes the user and the group"
    if have systemd-tmpfiles; then
        systemd-tmpfiles --root="$root" --create >"$dir/out" 2>&1
        # shellcheck disable=SC2012 # names are ours
        [ "$(stat -c %a "$root/var/lib/fathom")" = 700 ] && [ "$(stat -c %a "$root/run/fathom")" = 755 ] &&
            [ "$(stat -c %u "$root/var/lib/fathom")" = "$(awk -F: '$1 == "fathom" { print $3 }' "$root/etc/passwd")" ]
        ok "systemd-tmpfiles makes the directories"
    else
        skip "systemd-tmpfiles" "no systemd-tmpfiles"
    fi
else
    skip "systemd-sysusers" "no systemd-sysusers, or not root"
    skip "systemd-tmpfiles" "not root"
fi

# --- the catalogue: made from the table, an entry for each id and no other, and journald reads it
doc=$top_builddir/tools/ops-doc
"$doc" catalog | diff "$given/fathom.catalog" - >"$dir/out"
ok "the catalogue is up to date (make update-docs)"
"$doc" update "$srcdir/docs/OPERATIONS.md" | diff "$srcdir/docs/OPERATIONS.md" - >"$dir/out"
ok "and so are the tables of docs/OPERATIONS.md"
sed -n 's/^EVENT("[^"]*", "\([0-9a-f]*\)".*/\1/p' "$srcdir/daemon/journal.def" | sort >"$dir/ids"
sed -n 's/^-- \([0-9a-f]*\)$/\1/p' "$given/fathom.catalog" | sort >"$dir/entries"
[ "$(wc -l <"$dir/ids")" -gt 20 ] && cmp -s "$dir/ids" "$dir/entries"
ok "each id has an entry, each entry an id"
sed 1d "$dir/entries" | cmp -s - "$dir/ids" && [ -s "$dir/ids" ]
[ $? -eq 1 ]
ok "a missing one would be seen"
# fields that a text names are fields that its event has
"$doc" catalog | grep -o '@[A-Z_]*@' | sort -u | tr -d @ >"$dir/fields"
while read -r f; do
    key=$(echo "${f#FATHOM_}" | tr 'A-Z_' 'a-z-')
    grep -q "\"$f\"" "$srcdir/daemon/journal.c" || grep -rqE "[ \"]$key=" "$srcdir"/daemon/*.c || echo "$f"
done <"$dir/fields" >"$dir/out"
[ ! -s "$dir/out" ]
ok "fields in the catalogue's texts exist"
if have journalctl; then
    journalctl --root="$root" --update-catalog >"$dir/out" 2>&1
    journalctl --root="$root" --list-catalog 2>/dev/null | awk '{ print $1 }' | sort | cmp -s - "$dir/ids" && [ -s "$dir/ids" ]
    ok "journalctl takes them all"
else
    skip "journalctl takes them all" "no journalctl"
fi
echo "1..$n"
