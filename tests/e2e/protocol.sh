#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What is made from proto/messages.def is up to date: `make update-docs` makes it anew.
: "${srcdir:=.}" "${top_builddir:=.}"
dir=$(mktemp -d) || exit 99
trap 'rm -rf "$dir"' EXIT
n=0
ok() { # NAME: of the command before
    rc=$?
    n=$((n + 1))
    if [ $rc -eq 0 ]; then echo "ok $n - $1"; else echo "not ok $n - $1"; fi
}
doc=$top_builddir/tools/wire-doc

"$doc" update "$srcdir/docs/PROTOCOL.md" >"$dir/new" && diff "$srcdir/docs/PROTOCOL.md" "$dir/new" >"$dir/diff"
ok "the tables of docs/PROTOCOL.md"
sed 's/^/# /' "$dir/diff"
"$doc" dictionary | cmp - "$srcdir/tests/fuzz/messages.dict"
ok "the fuzzers' dictionary"

# Would it be seen?
# shellcheck disable=SC2016
sed 's/| `if_pos` | uint |/| `if_pos` | int |/' "$srcdir/docs/PROTOCOL.md" >"$dir/old"
! cmp -s "$srcdir/docs/PROTOCOL.md" "$dir/old" && "$doc" update "$dir/old" | cmp -s - "$srcdir/docs/PROTOCOL.md"
ok "a stale table is seen, and made anew"
grep -v '^<!-- end of tables' "$srcdir/docs/PROTOCOL.md" >"$dir/unmarked"
! "$doc" update "$dir/unmarked" >/dev/null 2>&1
ok "a document without the marks is refused"

# Every option is in the man page under its command, and the other way round.
"$top_builddir/client/fathom" completion list | sort >"$dir/table"
awk '
    /^\.Sh COMMANDS/ { where = "" }
    /^\.Sh SAMPLING OPTIONS/ { where = "sampling" }
    /^\.Sh OPTIONS OF ALL COMMANDS/ { where = "global" }
    /^\.Sh SIGNALS/ { exit }
    /^\.Ss / { where = $2; print where }
    /^\.It Fl / && where != "" {
        for (i = 3; i <= NF; i++)
            if ($i ~ /^-/) { print where " -" $i; break }
    }' "$srcdir/man/fathom.1" | sort >"$dir/man"
diff "$dir/table" "$dir/man" >"$dir/diff"
ok "fathom(1) has every command and option, and no other"
sed 's/^/# /' "$dir/diff"
grep -v -e 'sampling --temp' "$dir/man" | diff "$dir/table" - >/dev/null
[ $? -eq 1 ]
ok "one that is missing would be seen"

# fathom-protocol(7) has every method and every error.
# shellcheck disable=SC2016
"$doc" tables | sed -n -e 's/^### `\(.*\)`$/\1/p' -e 's/^| \([0-9]*\) | `\([a-z-]*\)` .*/\1 \2/p' >"$dir/names"
missing=$(while read -r name; do
    grep -q -e "$name" "$srcdir/man/fathom-protocol.7" || echo "$name"
done <"$dir/names")
[ "$(wc -l <"$dir/names")" -gt 30 ] && [ -z "$missing" ]
ok "fathom-protocol(7) has every method and error"
[ -z "$missing" ] || echo "# missing: $missing"

"$top_builddir/client/fathom" completion bash >"$dir/bash" && bash -n "$dir/bash"
ok "the completion for bash parses"
for shell in zsh fish; do
    if command -v $shell >/dev/null 2>&1; then
        "$top_builddir/client/fathom" completion $shell >"$dir/c" && $shell -n "$dir/c"
        ok "the completion for $shell parses"
    else
        n=$((n + 1))
        echo "ok $n - the completion for $shell parses # SKIP no $shell here"
    fi
done
# Completing, as bash would do it.
reply=$(bash -c '. "$1"; COMP_WORDS=(fathom sample --te) COMP_CWORD=2; _fathom; echo "${COMPREPLY[*]}"' - "$dir/bash")
[ "$reply" = "--temp" ]
ok "bash completes an option"
echo "1..$n"
