#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# libfathom as its users find it: the header alone, in C and C++; the symbols; pkg-config.
: "${srcdir:=.}" "${top_builddir:=.}"
dir=$(mktemp -d) || exit 99
trap 'rm -rf "$dir"' EXIT
n=0

result() { # STATUS NAME
    n=$((n + 1))
    if [ "$1" -eq 0 ]; then echo "ok $n - $2"; else echo "not ok $n - $2"; fi
}
skip() { # NAME REASON
    n=$((n + 1))
    echo "ok $n - $1 # SKIP $2"
}

cat >"$dir/use.c" <<'END'
#include <fathom.h>
int main(void)
{
    struct fathom_error e;
    struct fathom_sample a;
    struct fathom_append p;
    struct fathom *f = fathom_open("/nonexistent/socket", &e);
    FATHOM_SAMPLE_INIT(&a);
    FATHOM_APPEND_INIT(&p);
    return f == 0 && e.code == FATHOM_UNAVAILABLE && p.document == -1 ? 0 : 1;
}
END
mkdir "$dir/include" && cp "$srcdir/lib/fathom.h" "$dir/include/"
lib=$top_builddir/lib/.libs
${CC:-cc} -std=c99 -pedantic -Wall -Werror -I"$dir/include" -o "$dir/c" "$dir/use.c" \
    -L"$lib" -lfathom >"$dir/log" 2>&1
if grep -q -e '__asan' -e '__ubsan' "$dir/log"; then
    skip "a C99 program builds and runs with it" "the library was built with sanitizers"
else
    sed 's/^/# /' "$dir/log"
    LD_LIBRARY_PATH=$lib "$dir/c"
    result $? "a C99 program builds and runs with it"
fi

# The example in the manual is a program.
awk '/^\.Sh EXAMPLES/ { on = 1 } on && /^\.Ed/ { exit } on && text { print } on && /^\.Bd/ { text = 1 }' \
    "$srcdir/man/libfathom.3" | sed 's/\\e/\\/g' >"$dir/example.c"
${CC:-cc} -std=c99 -pedantic -Wall -Werror -fsyntax-only -I"$dir/include" "$dir/example.c" 2>&1 |
    sed 's/^/# /' >"$dir/log"
cat "$dir/log"
test -s "$dir/example.c" && test ! -s "$dir/log"
result $? "the example of libfathom(3) compiles"

cxx=${CXX:-c++}
if command -v "$cxx" >/dev/null 2>&1; then
    "$cxx" -std=c++11 -pedantic -Wall -Werror -fsyntax-only -x c++ -I"$dir/include" "$dir/use.c" 2>&1 |
        sed 's/^/# /' >"$dir/log"
    cat "$dir/log"
    test ! -s "$dir/log"
    result $? "the header is C++ too"
else
    skip "the header is C++ too" "no C++ compiler"
fi

# Every function has a word in the manual.
grep -o '\bfathom_[a-z_]*(' "$srcdir/lib/fathom.h" | tr -d '(' | sort -u |
    grep -v -e _init -e fathom_error_is -e fathom_version -e fathom_on_done -e fathom_info \
        -e fathom_socket_path | while read -r name; do
        grep -q "$name" "$srcdir/man/libfathom.3" || echo "# $name"
    done >"$dir/log"
cat "$dir/log"
test ! -s "$dir/log"
result $? "libfathom(3) names the functions"

# Exactly the functions that the header declares.
grep -o '\bfathom_[a-z_]*(' "$srcdir/lib/fathom.h" | tr -d '(' | sort -u >"$dir/named"
nm -D --defined-only "$lib/libfathom.so" | awk '$2 == "T" { sub(/@.*/, "", $3); print $3 }' |
    sort -u >"$dir/exported"
diff "$dir/named" "$dir/exported" | sed 's/^/# /' >"$dir/log"
cat "$dir/log"
test -s "$dir/exported" && test ! -s "$dir/log"
result $? "it exports what the header declares, and nothing else"

ldd "$lib/libfathom.so" | grep -e event -e systemd -e pthread | sed 's/^/# /' >"$dir/log"
cat "$dir/log"
test ! -s "$dir/log"
result $? "it needs neither libevent nor libsystemd nor threads"

grep -q '^Libs: .*-lfathom' "$top_builddir/lib/fathom.pc" &&
    ! grep -q '@' "$top_builddir/lib/fathom.pc"
result $? "fathom.pc is filled in"
echo "1..$n"
