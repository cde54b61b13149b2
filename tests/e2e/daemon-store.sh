#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Sessions outlive the daemon: after a clean end and after kill -9 under load all that was
# acknowledged is there, word for word. The same test is run on a fathomd that answers before it
# has committed (fathomd_hasty): that one must be found out.
# shellcheck disable=SC1091,SC2154
. "${srcdir:-.}/tests/e2e/daemon.subr"
keep=1
: "${CYCLES:=20}"

# --- a clean end
start
told=$(talk <<END
session.new name=a mode=416
append name=a text=hello%20world op_id=0123456789abcdef
sample name=a n=9 temperature=0.8 seed=5 quiet=1 op_id=fedcba9876543210
checkpoint name=a label=here
append name=a messages=[{"role":"user","content":"one"}]
sample name=a n=20 temperature=0 quiet=1
append name=a messages=[{"role":"user","content":"two"}]
fork name=a to=b at=here
session.new name=empty
session.new name=old
rename name=old to=new
session.new name=dead
delete name=dead
chmod name=b mode=384
append name=b tokens=5,6,7
checkpoint name=b label=there
append name=b tokens=8 op_id=0000000000000001
rollback name=b to=there
END
)
what() {
    talk <<END | sed 's/ used_ms=[0-9]*//; s/ bytes=.*points=/ points=/; s/;used_ms=[0-9]*;bytes=[0-9]*//g; s/state=[a-z]*/state=/g'
list
stat name=a
transcript name=a what=tokens
stat name=b
transcript name=b what=tokens
stat name=empty
END
}
before=$(what)
stop
is "$status" 0 "a clean end"
start
is "$(what)" "$before" "after it all is there: names, modes, checkpoints, turns, tokens"
has "$before" 'name=a .*points={name=here;pos=.*{name=turn-1;pos=.*chat=user turns=1' "as it was made"
again=$(talk <<END
append name=a text=hello%20world op_id=0123456789abcdef
sample name=a n=9 temperature=0.8 seed=5 quiet=1 op_id=fedcba9876543210
append name=b tokens=8 op_id=0000000000000001
stat name=a
END
)
has "$again" "^$(printf '%s\n' "$told" | sed -n 's/^\(ok pos=[0-9]* appended=[0-9]*\)$/\1/p' | head -1) repeated=1" \
    "an op_id of before: the first one's result"
is "$(printf '%s\n' "$again" | sed -n 's/.* tokens=\([0-9,]*\) .*/\1/p')" \
    "$(printf '%s\n' "$told" | sed -n 's/.* n=9 .* tokens=\([0-9,]*\) .*/\1/p')" \
    "a sample's, the same tokens"
has "$again" 'error conflict .*rolled%20back' "and one that was rolled back is still known for that"
is "$(printf '%s\n' "$again" | sed -n 's/^ok name=a .* pos=\([0-9]*\) .*/\1/p')" \
    "$(printf '%s\n' "$before" | sed -n 's/^ok name=a .* pos=\([0-9]*\) .*/\1/p')" "nothing was done twice"
stop
rm "$dir"/state/index.db*
start
is "$(what)" "$before" "without its index, too"

# It goes on as if it had never ended.
wanted=$(printf 'fork name=a to=c\nsample name=c n=30 temperature=0.7 seed=9 quiet=1\n' | talk | sed -n 's/.* tokens=\([0-9,]*\) .*/\1/p')
stop -KILL
start
is "$(printf 'sample name=a n=30 temperature=0.7 seed=9 quiet=1\n' | talk | sed -n 's/.* tokens=\([0-9,]*\) .*/\1/p')" \
    "$wanted" "what it draws is what it would have drawn"
stop

# --- tokens of another model
FAKE_ENGINE=other-model start
got=$(talk <<END
append name=a tokens=1
sample name=a n=1
append name=empty tokens=1
fork name=a to=same
rollback name=a pos=0
append name=a tokens=1
delete name=same
END
)
is "$(printf '%s\n' "$got" | grep -c 'error model-mismatch .*of%20model%20fafa.*this%20is%20model%20fbfa')" 2 \
    "work on tokens of another model is refused, naming both"
is "$(printf '%s\n' "$got" | grep -c '^ok pos=1 appended=1')" 2 "unless there are none"
stop
start
has "$(echo 'append name=a tokens=2' | talk)" 'error model-mismatch' "also the other way round"
stop

# --- kill -9 under load
# Four clients with a session each append tokens of their own, draw, mark and roll back; a fifth
# makes, forks, renames and deletes. Each writes down what it was told.
script() { # CLIENT CYCLE
    awk -v c="$1" -v seed="$((CYCLES * $1 + $2))" 'BEGIN {
        srand(seed)
        for (i = 0; i < 400; i++) {
            k = int(rand() * 10)
            if (c == 5) {
                if (k < 4) print "session.new name=n" seed "x" i
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
            else print "rollback name=s" c " to=l" int(rand() * 4)
        }
    }'
}
# What is in the file that talk wrote and what is there now: prints what is wrong.
cat >"$dir/check.awk" <<'END'
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
END
tokens_of() { # SESSION: what there is, up to two pages; else why not
    talk <<END >"$dir/answers"
transcript name=$1 what=tokens
transcript name=$1 what=tokens from=32768
END
    sed -n 's/.* tokens=//p' "$dir/answers" | tr '\n' ',' | sed 's/,*$//'
    sed -n '1{/^ok/!s/^/# /p}' "$dir/answers" >&2
}
kills() { # CYCLES: $wrong says what was lost, $acked how much was acknowledged
    wrong= acked=0 dead=0
    rm -rf "$dir/state"
    start "$@"
    for i in 1 2 3 4; do echo "session.new name=s$i"; done | talk >/dev/null
    cycle=0
    while [ $cycle -lt "$cycles" ]; do
        cycle=$((cycle + 1))
        clients=
        for i in 1 2 3 4; do tokens_of s$i >"$dir/was.$i"; done
        for i in 1 2 3 4 5; do
            script $i $cycle >"$dir/asked.$i"
            talk <"$dir/asked.$i" >"$dir/told.$i" 2>/dev/null &
            clients="$clients $!"
        done
        # In every second cycle the engine is killed, too, and some time later the daemon.
        [ $((cycle % 2)) -eq 0 ] || { sleep "$(some_time $cycle)" && kill -KILL "$(engine_pid)"; }
        sleep "$(some_time $((cycle + 1000000)))"
        stop -KILL 2>/dev/null
        # shellcheck disable=SC2086
        wait $clients
        start "$@" || { wrong="$wrong it does not start again;" && return; }
        grep -q 'session-damaged\|session-quarantined' "$dir/log" && wrong="$wrong damaged;"
        for i in 1 2 3 4; do
            tokens_of s$i >"$dir/now.$i"
            got=$(awk -v was="$dir/was.$i" -v asked="$dir/asked.$i" -v told="$dir/told.$i" \
                -v now="$dir/now.$i" -f "$dir/check.awk" "$dir/was.$i" "$dir/asked.$i" "$dir/told.$i" "$dir/now.$i")
            [ -z "$got" ] || [ -n "$quiet" ] || sed "s/^/# log: /" "$dir/log" # before the next one
            [ -z "$got" ] || wrong="$wrong cycle $cycle s$i: $got;"
            acked=$((acked + $(cat "$dir/now.$i.acked")))
        done
        check_names
    done
}
some_time() { awk -v s="$1" 'BEGIN { srand(s * 7919); printf "%.3f", 0.02 + 0.15 * rand() }'; }
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
cycles=$CYCLES quiet=
FAKE_ENGINE=slow=1ms kills
is "$wrong" "" "$CYCLES times kill -9 under load: nothing acknowledged is lost or changed"
echo "# $acked operations were acknowledged"
[ "$acked" -ge $((CYCLES * 8)) ]
ok "of which there was enough"
stop
is "$status" 0 "and the last one ends well"

fathomd=$top_builddir/tests/fathomd_hasty
cycles=3 quiet=1
FAKE_ENGINE=slow=1ms kills
has "$wrong" 'lost' "a fathomd that answers before it has committed is found out"
stop
plan
