#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# All obligations of verify/, as one test each: proved for every configuration, and their mutants
# refuted; and that docs/VERIFY.md lists them as they are. It says what all that means.
: "${srcdir:=.}" "${top_builddir:=.}"
prove=$top_builddir/verify/prove

# The table in the documentation: what --list says, between the two marks.
listed() {
    "$prove" --list | sed 's/^\([a-z]*\) *\([^ ]*\) *\(.*\)$/| \1 | \2 | \3 |/'
}
if [ "${1-}" = --table ]; then
    listed
    exit
fi
if listed | diff -u - /dev/fd/3 3<<EOF >&2
$(sed -n '/^<!-- prove --list -->$/,/^<!-- end -->$/{
    /^| group |/d
    /^| [a-z]/p
}' "$srcdir/docs/VERIFY.md")
EOF
then
    echo "ok 1 - docs/VERIFY.md lists the obligations"
else
    echo "not ok 1 - docs/VERIFY.md lists the obligations (verify/verify.sh --table prints them)"
fi
if "$prove" --stages "$srcdir" >&2; then
    echo "ok 2 - kernels have the barriers that verify/stages.cc says"
else
    echo "not ok 2 - kernels have the barriers that verify/stages.cc says"
fi
"$prove" "$srcdir/models/fathom-mini" "$srcdir/tests/golden/flash-tiny" \
    "$srcdir/tests/data/flash" "$srcdir/tests/data/pro" |
    awk 'NR == 1 || / obligations, / { next }
         { n++; printf "%s %d - %s %s: %s\n", $4 == "proved" ? "ok" : "not ok", n + 2, $1, $2, $4
           if ($4 != "proved") print "# " $0 }
         END { print "1.." n + 2; exit n == 0 }'
