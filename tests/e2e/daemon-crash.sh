#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# kill -9 of the daemon, and of its engine before that in every other cycle, under load: nothing that
# was acknowledged is lost or changed, no session is damaged, and what is drawn from caches that were
# saved, killed and restored is what the tokens alone give. Run also on a fathomd that answers before
# it has committed (fathomd_hasty), and on an engine that spoils a byte of its caches: both must be
# found out.
#
#   CYCLES=1000 FAILED=folder sh tests/e2e/daemon-crash.sh       (make soak)
#
# With FAILED the state of each cycle in which something is wrong is left in that folder: as the kill
# left it (before/), as the next daemon has it (state/), both logs, what was asked and told.
# shellcheck disable=SC1091,SC2154,SC2034
. "${srcdir:-.}/tests/e2e/daemon.subr"
keep=1
: "${CYCLES:=20}" "${FAILED:=}"

# Four clients with a session each append tokens of their own, draw, mark, roll back, park and unpark;
# a fifth makes, forks, renames and deletes, and parks theirs. Each writes down what it was told.
script() { # CLIENT CYCLE
    awk -v c="$1" -v seed="$((CYCLES * $1 + $2))" 'BEGIN {
        srand(seed)
        for (i = 0; i < 400; i++) {
            k = int(rand() * 12)
            if (c == 5) {
                if (k >= 10) print "park name=s" 1 + int(rand() * 4) " to=" (k == 10 ? "disk" : "memory")
                else if (k < 4) print "session.new name=n" seed "x" i
                else if (k < 7) print "fork name=s" 1 + int(rand() * 4) " to=f" seed "x" i
                else if (made != "" && k < 8) { print "rename name=" made " to=r" seed "x" i; made = "" }
                else if (made != "") { print "delete name=" made; made = "" }
                if (k < 4) made = "n" seed "x" i
            } else if (k < 5) {
                line = "append name=s" c " tokens=" 1 + int(rand() * 8000)
                for (n = int(rand() * rand() * 600); n > 0; n--) line = line "," 1 + int(rand() * 8000)
                print line
            } else if (k < 8) print "sample name=s" c " n=" 1 + int(rand() * 12) " temperature=0 ignore_eos=1 quiet=1"
            else if (k < 9) print "checkpoint name=s" c " label=l" int(rand() * 4)
            else if (k < 10) print "rollback name=s" c " to=l" int(rand() * 4)
            else if (k < 11) print "park name=s" c " to=" (rand() < 0.5 ? "disk" : "memory")
            else print "unpark name=s" c
        }
    }'
}
# What is in the file that talk wrote and what is there now: prints what is wrong.
cat >"$dir/check.awk" <<'EOF'
function push(list,   v, k, m) { m = split(list, v, ","); for (k = 1; k <= m; k++) a[n++] = v[k] }
function key(line, name) { return match(line, " " name "=[^ ]*") ? substr(line, RSTART + length(name) + 2, RLENGTH - length(name) - 2) : "" }
FILENAME == was { push($0); next }                   # the transcript when the cycle began
FILENAME == asked { ask[++asks] = $0; next }
FILENAME == told {
    if ($1 != "ok" && $1 != "error") next
    q = ask[++answers]
    if ($1 == "error") next
    acked++
    if (q ~ /^append/) push(key(q, "tokens"))
    else if (q ~ /^sample/) push(key($0, "tokens"))
    else if (q ~ /^checkpoint/) point[key(q, "label")] = n
    else if (q ~ /^rollback/) n = key($0, "pos") + 0
    if (q !~ /^checkpoint/ && key($0, "pos") + 0 != n) print "pos " key($0, "pos") " is not " n ": " q
    next
}
FILENAME == now { seen = 1 }
FILENAME == now {                                    # the transcript after the kill
    m = split($0, t, ",")
    q = ask[answers + 1]
    if (q ~ /^rollback/ && m < n) n = m              # it may have been done; where to, is checked below
    if (m < n) print "lost: " n " acknowledged, " m " there"
    for (i = 0; i < n && i < m; i++)
        if (t[i + 1] != a[i]) { print "token " i " is " t[i + 1] ", was " a[i]; break }
    if (m > n && q ~ /^append/) {
        k = split(key(q, "tokens"), v, ",")
        for (i = n; i < m; i++) if (i - n >= k || t[i + 1] != v[i - n + 1]) { print "token " i " is of nowhere"; break }
    } else if (m > n && !(q ~ /^sample/ && m - n <= key(q, "n") + 0)) print m " tokens, " n " acknowledged: " q
}
END { if (!seen) print "the transcript cannot be read"; print acked + 0 > (now ".acked") }
EOF
tokens_of() { # SESSION: what there is, up to two pages; else why not
    talk <<END >"$dir/answers"
transcript name=$1 what=tokens
transcript name=$1 what=tokens from=32768
END
    sed -n 's/.* tokens=//p' "$dir/answers" | tr '\n' ',' | sed 's/,*$//'
    echo # also if there are none: it may have been rolled back to the start
    sed -n '1{/^ok/!s/^/# /p}' "$dir/answers" >&2
}
count() { grep -c "$1" "$dir/log"; } # in the log of the daemon that is being killed
# What session s$1 draws next: from its caches as they are, and from its tokens alone.
compare() {
    t=$(cat "$dir/now.$1")
    [ -n "$t" ] || return
    got=$(talk <<END
fork name=s$1 to=y
sample name=y n=6 temperature=0.9 seed=$cycle ignore_eos=1 quiet=1
session.new name=x
append name=x tokens=$t
sample name=x n=6 temperature=0.9 seed=$cycle ignore_eos=1 quiet=1
verify name=s$1
delete name=x
delete name=y
END
)
    drawn=$(printf '%s\n' "$got" | sed -n 's/^ok .* n=6 .* tokens=\([0-9,]*\) .*/\1/p')
    if [ "$(printf '%s\n' "$drawn" | uniq -c | awk '{ print $1 }')" != 2 ]; then
        wrong="$wrong cycle $cycle s$1: another answer;"
        [ -n "$quiet" ] || printf '%s\n' "$got" | cut -c1-300 | sed 's/^/# /'
    fi
    compared=$((compared + 1))
    case $got in *" good=1 wrong=0 "*) verified=$((verified + 1)) ;;
    *) wrong="$wrong cycle $cycle s$1: $(printf '%s\n' "$got" | grep good=);" ;; esac
}
keep_before() { # what the kill left
    [ -n "$FAILED" ] || return
    rm -rf "$dir/before"
    cp -a "$dir/state" "$dir/before" && cp "$dir/log" "$dir/before.log"
}
keep_failed() { # of this cycle, if something was wrong in it
    [ -n "$FAILED" ] && [ -z "$quiet" ] && [ "$wrong" != "$1" ] || return
    mkdir -p "$FAILED" && cp -a "$dir" "$FAILED/cycle-$cycle"
    echo "# cycle $cycle: ${wrong#"$1"} (kept in $FAILED/cycle-$cycle)"
}
# Every cycle of twenty begins with nothing, so that a long run does not fill up.
begin() {
    stop -KILL 2>/dev/null
    rm -rf "$dir/state"
    start "$@"
    for i in 1 2 3 4; do echo "session.new name=s$i"; done | talk >/dev/null
}
pause() { sleep "$(awk -v s="$1" -v most="$2" 'BEGIN { srand(s); printf "%.3f", 0.02 + most * rand() }')"; }
kills() { # SETTINGS...: $wrong says what was lost, $acked how much was acknowledged
    wrong='' acked=0 engines=0 restored=0 compared=0 verified=0
    cycle=0
    while [ $cycle -lt "$cycles" ]; do
        [ $((cycle % 20)) -ne 0 ] || begin "$@"
        cycle=$((cycle + 1))
        clients='' was_wrong=$wrong
        for i in 1 2 3 4; do tokens_of s$i >"$dir/was.$i"; done
        for i in 1 2 3 4 5; do
            script $i $cycle >"$dir/asked.$i"
            talk <"$dir/asked.$i" >"$dir/told.$i" 2>/dev/null &
            clients="$clients $!"
        done
        pause $((cycle * 7919)) 0.2
        if [ $((cycle % 2)) -eq 0 ]; then
            kill -KILL "$(engine_pid)" && engines=$((engines + 1))
            pause $((cycle * 104729)) 0.2
        fi
        stop -KILL 2>/dev/null
        # shellcheck disable=SC2086
        wait $clients
        restored=$((restored + $(count cache-restored)))
        keep_before
        if ! start "$@"; then
            wrong="$wrong it does not start again;"
            keep_failed "$was_wrong"
            return
        fi
        grep -q 'session-damaged\|session-quarantined' "$dir/log" && wrong="$wrong damaged;"
        for i in 1 2 3 4; do
            tokens_of s$i >"$dir/now.$i"
            got=$(awk -v was="$dir/was.$i" -v asked="$dir/asked.$i" -v told="$dir/told.$i" \
                -v now="$dir/now.$i" -f "$dir/check.awk" "$dir/was.$i" "$dir/asked.$i" "$dir/told.$i" "$dir/now.$i")
            [ -z "$got" ] || [ -n "$quiet" ] || sed "s/^/# log: /" "$dir/log" # before the next one
            [ -z "$got" ] || wrong="$wrong cycle $cycle s$i: $got;"
            acked=$((acked + $(cat "$dir/now.$i.acked")))
            compare $i
        done
        check_names
        keep_failed "$was_wrong"
        [ -z "$quiet" ] || [ -z "$wrong" ] || return # a control: it is found out
        [ $((cycle % 100)) -ne 0 ] || echo "# $cycle cycles: $acked operations acknowledged, $restored restores"
    done
}
check_names() { # the fifth client's: what is there is what it was told, but for its last request
    : >"$dir/names"
    after=
    while :; do
        got=$(echo "list limit=500 after=$after" | talk)
        printf '%s\n' "$got" | tr '{' '\n' | sed -n 's/^name=\([^;]*\);.*pos=\([0-9]*\).*/\1 \2/p' >"$dir/page"
        cat "$dir/page" >>"$dir/names"
        case $got in *more=1*) after=$(tail -1 "$dir/page" | cut -d' ' -f1) ;; *) break ;; esac
    done
    got=$(paste -d' ' "$dir/asked.5" "$dir/told.5" 2>/dev/null | awk '
        function key(name) { return match($0, " " name "=[^ ]*") ? substr($0, RSTART + length(name) + 2, RLENGTH - length(name) - 2) : "" }
        FILENAME ~ /names$/ { there[$1] = $2; next }
        / ok / {
            if (/^session.new/) want[key("name")] = 0
            if (/^fork/ && match($0, " ok .*")) { to = key("to"); want[to] = $0; sub(/.* pos=/, "", want[to]); sub(/ .*/, "", want[to]) }
            if (/^rename/) { gone[key("name")] = 1; delete want[key("name")]; want[key("to")] = 0 }
            if (/^delete/) { gone[key("name")] = 1; delete want[key("name")] }
            next
        }
        / dead / || !/ ok | error / { delete want[key("name")]; delete gone[key("name")] } # under way
        END {
            for (s in want) if (!(s in there)) print s " is lost"; else if (there[s] != want[s]) print s " is at " there[s] ", was " want[s]
            for (s in gone) if (s in there) print s " is back"
        }' "$dir/names" -)
    [ -z "$got" ] || wrong="$wrong cycle $cycle: $got;"
}
# Files that the ledgers name, and files that there are.
named() {
    : >"$dir/names"
    after=
    while :; do
        got=$(echo "list limit=500 after=$after" | talk)
        printf '%s\n' "$got" | tr '{' '\n' | sed -n 's/^name=\([^;]*\);.*/\1/p' >"$dir/page"
        cat "$dir/page" >>"$dir/names"
        case $got in *more=1*) after=$(tail -1 "$dir/page") ;; *) break ;; esac
    done
    sed 's/^/verify name=/' "$dir/names" | talk | sed -n 's/.* files=\([0-9]*\) .*/\1/p' | awk '{ s += $1 } END { print s + 0 }'
}
there() { find "$dir/state/sessions" -name '*.kv[ct]' 2>/dev/null | wc -l; }

cycles=$CYCLES quiet=
FAKE_ENGINE=slow=1ms kills --save-after 5ms
is "$wrong" "" "$CYCLES times kill -9 under load: nothing acknowledged is lost or changed, nothing damaged"
echo "# $acked operations acknowledged; $engines engines killed besides; $restored restores before the kills;" \
    "$compared answers compared with those from tokens alone, $verified sessions verified"
[ "$acked" -ge $((CYCLES * 8)) ] && [ "$engines" -ge $((CYCLES / 2)) ]
ok "of which there was enough"
[ "$restored" -ge "$CYCLES" ] && [ "$compared" -ge "$((CYCLES * 2))" ]
ok "and sessions came back from what was saved"
patient
until has=$(there) rows=$(named) && [ "$has" = "$rows" ] || tired; do :; done
is "$has" "$rows" "files that nobody names were swept, others not"
half_made() { find "$dir/state/tmp" -mindepth 1 2>/dev/null | wc -l; }
patient
until [ "$(half_made)" = 0 ] || tired; do :; done
is "$(half_made)" 0 "and nothing half made is left"
stop
is "$status" 0 "the last one ends well"

cycles=20 quiet=1
FAKE_ENGINE=slow=1ms,kv-spoil@1 kills --save-after 5ms
has "$wrong" 'another answer' "an engine that spoils one byte of what it saves is found out"
fathomd=$top_builddir/tests/fathomd_hasty
FAKE_ENGINE=slow=1ms kills
has "$wrong" 'lost' "and so is a fathomd that answers before it has committed"
stop
plan
