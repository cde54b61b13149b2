#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs the Debian 12 packages that fathom needs to be built and tested. Does nothing, in no
# time, when all of them are there. Root, or a user of sudo.
#
#   tools/deps.sh            to build and run
#   tools/deps.sh --check    and to run the whole test suite (tools/check.sh)
#   tools/deps.sh --packages and to make Debian packages (tools/package.sh)
set -eu

build='gcc make autoconf automake libtool autoconf-archive pkg-config
libevent-dev libmsgpack-dev libsystemd-dev libpcre2-dev libjansson-dev libinih-dev
libxxhash-dev libsqlite3-dev liburing-dev libarchive-dev'
check='clang clang-format libclang-rt-14-dev libcmocka-dev libopenblas-dev shellcheck mandoc
libz3-dev systemd python3 python3-msgpack xz-utils g++ git util-linux procps strace'
packages='debhelper lintian mmdebstrap dpkg-dev systemd xz-utils git util-linux'

case ${1-} in
'') wanted=$build ;;
--check) wanted="$build $check" ;;
--packages) wanted="$build $packages" ;;
*)
    echo "usage: tools/deps.sh [--check|--packages]" >&2
    exit 64
    ;;
esac

missing=
for p in $wanted; do
    case $(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null || true) in
    installed*) ;;
    *) missing="$missing $p" ;;
    esac
done
[ -n "$missing" ] || exit 0

sudo=
if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "tools/deps.sh: these packages are missing, and neither root nor sudo is at hand:$missing" >&2
        exit 69
    fi
    sudo='sudo'
fi
echo "tools/deps.sh: installing$missing" >&2
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# shellcheck disable=SC2086 # a list of words
if ! { $sudo apt-get update -qq && $sudo apt-get install -y -qq --no-install-recommends $missing; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    echo "tools/deps.sh: apt-get failed" >&2
    exit 69
fi
