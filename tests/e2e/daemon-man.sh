#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# fathomd.conf(5) and options.def say the same: every setting, its section, its default, its
# text, whether it may change while running; and nothing else.
: "${srcdir:=.}" "${top_builddir:=.}"
page=$srcdir/man/fathomd.conf.5.in
dir=$(mktemp -d) || exit 99
trap 'rm -rf "$dir"' EXIT

# section|name|default|reload|text, from the table ...
sed -n 's/^OPTION([a-z_0-9]*, "\([a-z]*\)", "\([a-z-]*\)", [A-Z]*, [^,]*, [^,]*, \(.*\), \([01]\), "\(.*\)")$/\1|\2|\3|\4|\5/p' \
    "$srcdir/daemon/options.def" |
    sed 's/|LOCALSTATEDIR "/|@localstatedir@/; s/|LIBEXECDIR "/|@libexecdir@/; s/"//g; s/||/|none|/' >"$dir/table"
# ... and from the page.
awk '/^\.Ss \[/ { section = substr($2, 2, length($2) - 2) }
     /^\.It Cm / { name = $3; text = "" ; next }
     /^Default: / && name != "" {
         reload = sub(/; may change while running\.$/, "") ? 1 : 0
         sub(/^Default: /, ""); if (!reload) sub(/\.$/, "")
         sub(/\.$/, "", text)
         print section "|" name "|" $0 "|" reload "|" text
         name = ""
     }
     name != "" { text = tolower(substr($0, 1, 1)) substr($0, 2) }' "$page" >"$dir/page"

echo "1..5"
n=$(grep -c '^OPTION(' "$srcdir/daemon/options.def")
if [ "$(wc -l <"$dir/table")" -eq "$n" ] && [ "$n" -gt 20 ]; then
    echo "ok 1 - every line of the table is understood"
else
    echo "not ok 1 - every line of the table is understood"
fi
if diff "$dir/table" "$dir/page" >"$dir/diff"; then
    echo "ok 2 - the page says the same"
else
    echo "not ok 2 - the page says the same"
    sed 's/^/# /' "$dir/diff"
fi
# The comparison does notice a difference.
if sed '5s/|[01]|/|x|/' "$dir/table" | diff - "$dir/page" >/dev/null; then
    echo "not ok 3 - a difference is found"
else
    echo "ok 3 - a difference is found"
fi
# What is installed names the folders that this build has.
built=$top_builddir/man
: >"$dir/empty.conf"
state=$("$top_builddir/daemon/fathomd" --config "$dir/empty.conf" --dump-config | sed -n 's/^state = //p')
if [ -n "$state" ] && grep -qxF "Default: $state." "$built/fathomd.conf.5" && grep -qF "Pa $state" "$built/fathomd.8"; then
    echo "ok 4 - pages name the state directory of this build"
else
    echo "not ok 4 - pages name the state directory of this build"
fi
if grep -n '@[a-z]*@' "$built/fathomd.8" "$built/fathomd.conf.5" | sed 's/^/# /' | grep .; then
    echo "not ok 5 - all is filled in"
else
    echo "ok 5 - all is filled in"
fi
