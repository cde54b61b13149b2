#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Boots the Debian in a folder with systemd as PID 1, without a machine or a container manager:
# namespaces of its own and a cgroup. Runs a command in it, then kills everything in it at once, as
# if the power had gone; what it wrote stays in the folder. Root. Exit status 77 and a reason where
# this cannot be; else that of the command.
#
#   tools/container.sh ROOT COMMAND...
set -euo pipefail

root=$1
shift
log=$root/container.log
why_not() {
    echo "no container: $*" >&2
    exit 77
}
[ "$(id -u)" = 0 ] || why_not "needs root"
[ -x "$root/lib/systemd/systemd" ] || why_not "$root has no systemd"
groups=$(findmnt -t cgroup2 -n -o TARGET | head -n 1)
[ -n "$groups" ] || why_not "the kernel's cgroups are not of version 2"
unshare --mount --uts --ipc --net --cgroup --pid --fork true 2>/dev/null || why_not "namespaces are not allowed"
group=$groups/fathom-test-$$
mkdir "$group" 2>/dev/null || why_not "$groups cannot be written"

boot=
init= # PID 1 of it, as it is called here
leave() {
    rc=$?
    [ -z "$init" ] || kill -KILL "$init" 2>/dev/null || true # and the kernel everybody else in it
    [ -z "$boot" ] || wait "$boot" 2>/dev/null || true
    for _ in $(seq 100); do
        find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
        [ -d "$group" ] || break
        sleep 0.1
    done
    exit $rc
}
trap leave EXIT
trap 'exit 130' INT TERM

# shellcheck disable=SC2016 # for the shell inside
(
    echo "$BASHPID" >"$group/cgroup.procs"
    exec unshare --mount --uts --ipc --net --cgroup --pid --fork --propagation private sh -ec '
        cd "$1"
        mount --bind . .
        cd "$1"
        mount -t proc proc proc
        mount -t sysfs -o ro sysfs sys
        mount -t cgroup2 cgroup2 sys/fs/cgroup
        mount -t tmpfs -o mode=755,nosuid tmpfs dev
        for d in null zero full random urandom tty; do touch dev/$d && mount --bind /dev/$d dev/$d; done
        mkdir dev/pts dev/shm
        mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
        ln -s pts/ptmx dev/ptmx
        ln -s /proc/self/fd dev/fd
        mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs dev/shm
        mount -t tmpfs -o mode=755,nosuid,nodev tmpfs run
        mkdir run/old
        pivot_root . run/old
        umount -l /run/old
        exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 \
            /lib/systemd/systemd --unit=multi-user.target --show-status=0' sh "$root"
) </dev/null >"$log" 2>&1 &
boot=$!

inside() { nsenter -t "$init" -a env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 "$@"; }
for ((tries = 0; tries < 1200; tries++)); do
    kill -0 $boot 2>/dev/null || break
    init=$(cat "/proc/$boot/task/$boot/children")
    init=${init% }
    [ -z "$init" ] || [ "$(tr '\0' ' ' <"/proc/$init/cmdline" | cut -d' ' -f1)" != /lib/systemd/systemd ] || {
        state=$(inside systemctl is-system-running 2>/dev/null || true)
        case $state in running | degraded) break ;; esac
    }
    sleep 0.1
done
case ${state-} in
running) ;;
degraded) inside systemctl --failed --no-pager >&2 ;;
*)
    cat "$log" >&2
    why_not "systemd does not come up as PID 1 (${state:-no answer})"
    ;;
esac
inside "$@"
