#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Debian 12 packages from what is committed: builds them, has lintian look at them, installs them in
# a fresh Debian and tries them there (packaging/debian/tests/sessions), then boots it with systemd as
# PID 1 and tries the units (packaging/debian/tests/systemd). Root, or a user of sudo.
#
#   tools/package.sh [DIR]    packages and their log go to DIR [build/packages]
#
# With CHECK=1 the build runs the test suite, too.
set -euo pipefail

cd "$(dirname "$0")/.."
top=$PWD
out=${1-build/packages}
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/fathom-package.XXXXXX")
version=$(sed -n '1s/.*(\(.*\)).*/\1/p' packaging/debian/changelog)
sudo=()
[ "$(id -u)" = 0 ] || sudo=(sudo)
leave() {
    rc=$?
    "${sudo[@]}" rm -rf --one-file-system "$work"
    exit $rc
}
trap leave EXIT
trap 'exit 130' INT TERM

step() { # NAME COMMAND...: one line, and the log's end if it fails
    local name=$1 start=$SECONDS
    shift
    local rc
    set +e # not `if` nor ||, which would let the command go on behind what fails in it
    (
        set -e
        "$@"
    ) >"$out/$name.log" 2>&1
    rc=$?
    set -e
    if [ $rc -eq 0 ]; then
        printf '%-12s ok    %4d s\n' "$name" $((SECONDS - start))
    elif [ $rc -eq 77 ]; then
        printf '%-12s skipped: %s\n' "$name" "$(tail -n 1 "$out/$name.log")"
    else
        tail -n 40 "$out/$name.log"
        printf '%-12s FAILED %4d s: %s\n' "$name" $((SECONDS - start)) "$out/$name.log"
        exit 1
    fi
}

build() {
    mkdir "$work/fathom-$version"
    git archive HEAD | tar -x -C "$work/fathom-$version"
    cp -r "$work/fathom-$version/packaging/debian" "$work/fathom-$version/debian"
    cd "$work/fathom-$version"
    local options
    options="parallel=$(nproc)"
    [ -n "${CHECK-}" ] || options="$options nocheck"
    DEB_BUILD_OPTIONS=$options dpkg-buildpackage -us -uc
    rm -f "$out"/*.deb "$out"/*.changes "$out"/*.dsc "$out"/*.buildinfo "$out"/*.tar.xz
    cp "$work"/fathom*_"$version"* "$work"/lib*_"$version"* "$out/"
}

# All that lintian has to say but what it calls pedantic must be nothing.
look() { lintian --allow-root --display-info --fail-on error,warning,info "$out/fathom_${version}"_*.changes; }

try() {
    local chroot=$work/chroot sources suite
    # shellcheck source=/dev/null
    suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
    sources=$(ls /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list /etc/apt/sources.list 2>/dev/null || true)
    # shellcheck disable=SC2086 # a list of files
    "${sudo[@]}" mmdebstrap --quiet --variant=apt \
        --include=systemd-sysv,libpam-systemd,dbus-user-session,curl "$suite" "$chroot" $sources
    "${sudo[@]}" mkdir "$chroot/packages"
    "${sudo[@]}" cp "$out"/*.deb packaging/debian/tests/sessions packaging/debian/tests/systemd "$chroot/packages/"
    inside '
            apt-get update -qq
            rm -f /packages/*-dbgsym_*.deb
            apt-get install -y -qq --no-install-recommends /packages/*.deb
            systemd-tmpfiles --create fathom.conf
            sh -e /packages/sessions
            apt-get purge -y -qq fathomd fathom libfathom0 libfathom-dev fathom-model-mini
            ! test -e /usr/sbin/fathomd'
}

inside() { # COMMANDS, in the fresh Debian
    # a process namespace of its own: nothing of it is left afterwards
    # shellcheck disable=SC2016 # for the shell inside
    "${sudo[@]}" unshare --pid --fork --mount --kill-child sh -ec '
        mount -t proc proc "$1/proc"
        mount --rbind /dev "$1/dev"
        exec chroot "$1" env DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 \
            PATH=/usr/sbin:/usr/bin:/sbin:/bin sh -exc "$2"' sh "$work/chroot" "$1"
}

# What is killed with all else in the middle of its life is there after the next boot.
boot() {
    inside 'apt-get install -y -qq --no-install-recommends /packages/*.deb'
    "${sudo[@]}" "$top/tools/container.sh" "$work/chroot" sh /packages/systemd
    "${sudo[@]}" "$top/tools/container.sh" "$work/chroot" sh /packages/systemd rebooted
}

"$top/tools/deps.sh" --packages
step build build
step lintian look
step try try
step systemd boot
ls -l "$out"/*.deb
