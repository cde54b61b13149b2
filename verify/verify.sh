#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# All obligations of verify/, as one test each: proved for every configuration, and their mutants
# refuted. docs/VERIFY.md says what that means.
: "${srcdir:=.}" "${top_builddir:=.}"
"$top_builddir/verify/prove" "$srcdir/models/fathom-mini" "$srcdir/tests/golden/flash-tiny" \
    "$srcdir/tests/data/flash" "$srcdir/tests/data/pro" |
    awk 'NR == 1 || / obligations, / { next }
         { n++; printf "%s %d - %s %s: %s\n", $4 == "proved" ? "ok" : "not ok", n, $1, $2, $4
           if ($4 != "proved") print "# " $0 }
         END { print "1.." n; exit n == 0 }'
