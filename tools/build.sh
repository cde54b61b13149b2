#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Configures and builds into a folder of its own: tools/build.sh DIR [configure options].
# Repeats only what is out of date; the tree itself stays clean but for configure's own files.
set -eu

if [ $# -lt 1 ]; then
    echo "usage: tools/build.sh DIR [configure options]" >&2
    exit 64
fi
dir=$1
shift
top=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
cd "$top"

if [ ! -x configure ] || [ -n "$(find configure.ac Makefile.am ./*/local.am ./*/*/local.am -newer configure)" ]; then
    autoreconf -fi >"$dir/autoreconf.log" 2>&1 || {
        tail -n 20 "$dir/autoreconf.log" >&2
        exit 1
    }
fi
cd "$dir"
if [ ! -f Makefile ] || [ -n "$(find "$top/configure" -newer config.status)" ] ||
    [ "$(cat configure.args 2>/dev/null)" != "$*" ]; then
    "$top/configure" -q "$@" >configure.log 2>&1 || {
        tail -n 20 configure.log >&2
        exit 1
    }
    echo "$*" >configure.args
fi
make -s -j"$(nproc)" all >make.log 2>&1 || {
    grep -E 'error|Error|warning' make.log | head -n 30 >&2
    exit 1
}
