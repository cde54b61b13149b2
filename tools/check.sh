#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The whole test suite, from a clean clone on Debian 12: what .ci/run and a careful contributor
# run. Each stage prints one line; a failing one prints its log and ends the run.
#
#   tools/check.sh            everything
#   tools/check.sh STAGE...   only these: style check asan quickstart distcheck; and packages
set -euo pipefail

cd "$(dirname "$0")/.."
top=$PWD
tools/deps.sh --check
work=$top/build/check
mkdir -p "$work"
stages=("$@")
[ $# -gt 0 ] || stages=(style check asan quickstart distcheck)
passed=0
skipped=0

# run NAME COMMAND...: one line, and the log when it fails.
run() {
    local name=$1 start=$SECONDS
    shift
    if "$@" >"$work/$name.log" 2>&1; then
        printf '%-28s ok    %4d s\n' "$name" $((SECONDS - start))
        passed=$((passed + 1))
    else
        printf '%-28s FAILED %4d s: %s\n' "$name" $((SECONDS - start)) "$work/$name.log"
        find "$work" -name test-suite.log -newer "$work/$name.begin" -exec cat {} + 2>/dev/null |
            grep -E '^(FAIL|ERROR|not ok|#)' | head -n 60 || true
        tail -n 60 "$work/$name.log"
        printf '%d passed, 1 failed\n' "$passed"
        exit 1
    fi
}

sources() { git ls-files -- '*.c' '*.h' '*.cu' '*.cuh' '*.cc' '*.hh'; }
scripts() {
    git ls-files -- '*.sh' '.ci/run' 'tools/bench' | while read -r f; do
        [ ! -f "$f" ] || ! head -n 1 "$f" | grep -q '^#!.*sh' || echo "$f"
    done
}

# Lines per file and per function: the house limits, held by a script and not by memory.
sizes() {
    sources | xargs wc -l | awk '$2 != "total" && $1 > 900 { print $2 ": " $1 " lines, 900 at most"; bad = 1 } END { exit bad }'
    sources | grep '\.c' | xargs awk '
        FNR == 1 { start = 0 }
        /^\{/ { start = FNR }
        /^\}/ { if (start && FNR - start > 120) { print FILENAME ":" start ": function of " FNR - start " lines, 120 at most"; bad = 1 } start = 0 }
        END { exit bad }'
}

pages() {
    local page
    for page in man/*.[1-9] man/*.[1-9].in; do
        mandoc -Tlint -Wwarning "$page" || return 1
    done
}

# What a newcomer sees: both answers come from the document.
quickstart() {
    local out
    out=$(tools/quickstart.sh </dev/null) || return 1
    printf '%s\n' "$out"
    grep -q 'North Gate is 9054' <<<"$out" && grep -q 'boat is Edith' <<<"$out"
}

# Totals of the test summaries in a build folder: "name: N passed, M skipped".
summary() {
    awk -v name="$1" '/^# PASS:/ { p += $3 } /^# SKIP:/ { s += $3 } END { printf "%-28s %d passed, %d skipped\n", "  " name ":", p, s }' "$2"
    skipped=$((skipped + $(awk '/^# SKIP:/ { s += $3 } END { print s + 0 }' "$2")))
    passed=$((passed + $(awk '/^# PASS:/ { p += $3 } END { print p + 0 }' "$2")))
}

make_check() {
    make -C "$1" -j2 check AM_COLOR_TESTS=no "${@:2}"
}

for stage in "${stages[@]}"; do
    touch "$work/$stage.begin"
    case $stage in
    style)
        run format bash -c "$(declare -f sources); sources | xargs clang-format -n --Werror"
        run sizes bash -c "$(declare -f sources sizes); set -eo pipefail; sizes"
        run shellcheck bash -c "$(declare -f scripts); scripts | xargs shellcheck"
        run mandoc bash -c "$(declare -f pages); pages"
        ;;
    check)
        # with nvcc at hand the CUDA sources are compiled too
        run build tools/build.sh "$work/gcc" --enable-werror
        run check make_check "$work/gcc"
        summary check "$work/check.log"
        ;;
    asan)
        # kernels too, where nvcc is: on the host (tests/simt)
        run asan-build tools/build.sh "$work/asan" --enable-werror \
            --enable-sanitizers=address,undefined --disable-shared CFLAGS='-O1 -g' CXXFLAGS='-O1 -g'
        # shellcheck disable=SC2016 # make's variables
        run asan make_check "$work/asan" TESTS='$(unit_tests) $(fuzz_replays) $(simt_short)'
        summary asan "$work/asan.log"
        ;;
    quickstart)
        run quickstart bash -c "$(declare -f quickstart); quickstart"
        ;;
    distcheck)
        run distcheck make -C "$work/gcc" -j2 distcheck DISTCHECK_CONFIGURE_FLAGS='--with-cuda=no --disable-static'
        ;;
    packages)
        # not among all: it needs a Debian mirror, and a few minutes
        run packages tools/package.sh "$work/packages"
        ;;
    *)
        echo "tools/check.sh: no stage '$stage'" >&2
        exit 64
        ;;
    esac
done
printf '%d passed, 0 failed, %d skipped\n' "$passed" "$skipped"
