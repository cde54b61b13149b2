#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A file system that is really full: a small ext4 on a loop device, or a tmpfs where there is none.
# (daemon-disk.sh has the same with calls that fail on purpose, wherever it runs.)
# shellcheck disable=SC1091,SC2154,SC2034,SC2119
. "${srcdir:-.}/tests/e2e/daemon.subr"
mnt=$dir/mnt
mkdir "$mnt"
if [ "$(id -u)" -ne 0 ]; then
    echo "1..0 # SKIP only root can mount"
    exit 0
fi
if truncate -s 48M "$dir/image" && mkfs.ext4 -q -F "$dir/image" 2>/dev/null && mount -o loop "$dir/image" "$mnt" 2>/dev/null; then
    what=ext4
elif mount -t tmpfs -o size=32M tmpfs "$mnt" 2>/dev/null; then
    what=tmpfs
else
    echo "1..0 # SKIP nothing can be mounted here"
    exit 0
fi
trap 'stop -KILL 2>/dev/null; umount "$mnt" 2>/dev/null || umount -l "$mnt"; rm -rf "$dir"' EXIT
keep=1
begin() { start --state "$mnt/state" --save-after 20ms; }
fill() { # all but about so many KiB
    free=$(df -k --output=avail "$mnt" | tail -1)
    dd if=/dev/zero of="$mnt/ballast" bs=1024 count=$((free - $1)) 2>/dev/null
    sync "$mnt"
}
tokens() { # of session a, all of them
    at=0
    while :; do
        page=$(echo "transcript name=a what=tokens from=$at" | talk | sed -n 's/.* tokens=//p')
        [ -n "$page" ] || break
        echo "$page" | tr ',' '\n'
        at=$((at + $(echo "$page" | tr ',' '\n' | wc -l)))
    done
}
echo "# on $what"
begin
echo 'session.new name=a' | talk >/dev/null
fill 1500
# Each append is told apart by its first token; until one is refused.
refused=
i=0
: >"$dir/acked"
while [ -z "$refused" ] && [ $i -lt 4000 ]; do
    awk -v i=$i 'BEGIN { for (k = 0; k < 40; k++) { printf "append name=a tokens=%d", 1000 + i + k
        for (n = 1; n < 600; n++) printf ",%d", 1 + (n * 7 + i + k) % 900; print "" } }' >"$dir/ask"
    talk <"$dir/ask" >"$dir/told"
    # What is refused stays in memory and may get to the disk later: so much for the order behind it.
    paste -d' ' "$dir/told" "$dir/ask" | sed -n '/^error/q; s/^ok .*append name=a tokens=//p' | tr ',' '\n' >>"$dir/acked"
    refused=$(grep '^error' "$dir/told" | head -1)
    i=$((i + 40))
done
acked=$(wc -l <"$dir/acked")
[ "$acked" -gt 600 ]
ok "$acked tokens were acknowledged before the disk was full"
has "$refused" '^error quota .*disk%20is%20full' "then the error says that the disk is full"
has "$refused" " pos=[0-9]*\$" "and the position"
grep -q 'cache-not-saved\|caches-not-saved' "$dir/log"
ok "caches gave way before"
count() { grep -c "$1" "$dir/log"; }
[ "$(count 'cache-not-saved session=a')" -le $(($(count 'cache-saved-again session=a') + 1)) ]
ok "which is said once until it is over ($(count cache-not-saved), $(count cache-saved-again) times over)"
# Files of caches that were given up have made room again, and what was refused may be in by now:
# so the last of the room goes, until it is refused for good.
patient
until dd if=/dev/zero of="$mnt/ballast-more" bs=4096 oflag=append conv=notrunc 2>/dev/null
    echo 'append name=a tokens=5' | talk | grep -q '^error quota' &&
        got=$(echo 'stat name=a' | talk) && printf '%s\n' "$got" | grep -q 'state=read-only' || tired; do :; done
kill -0 "$daemon" && has "$got" 'state=read-only.* why=the%20disk%20is%20full' "fathomd goes on and stat says why"
head -n "$acked" "$dir/acked" >"$dir/wanted"
tokens | head -n "$acked" | cmp - "$dir/wanted"
ok "all that was acknowledged can be read"
has "$(echo 'session.new name=b' | talk)" '^error quota' "nothing new can be made"
stop -KILL
begin
tokens | head -n "$acked" | cmp - "$dir/wanted"
ok "after kill -9 on the full disk it is all there"
rm "$mnt"/ballast*
eventually 'append name=a tokens=5' '^ok pos='
has "$got" '^ok pos=' "with room again work goes on"
has "$(echo 'park name=a to=disk' | talk)" 'tier=disk .*replay=[01]$' "and caches are saved"
is "$(count 'cache-not-saved session=a')" "$(count 'cache-saved-again session=a')" "which is said if it had been said that they were not"
pos=$(echo 'stat name=a' | talk | sed -n 's/.* pos=\([0-9]*\) .*/\1/p')
has "$(echo 'verify name=a' | talk)" 'good=1 wrong=0' "nothing was damaged"
# Full while nobody does anything but stop.
fill 100
stop
is "$status" 0 "a stop on a full disk is a clean end"
rm "$mnt"/ballast*
begin
has "$(echo 'stat name=a' | talk)" " pos=$pos " "and nothing is missing"
tokens | head -n "$acked" | cmp - "$dir/wanted"
ok "token by token"
stop
plan
