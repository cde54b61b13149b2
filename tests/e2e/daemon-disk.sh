#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Disks that are full, broken or slow, and ledgers that are damaged: what fathomd says, what it
# keeps, and that it does not wait. tests/fault_disk.c stands between fathomd and the disk.
# shellcheck disable=SC1091,SC2154,SC2034
. "${srcdir:-.}/tests/e2e/daemon.subr"
keep=1
preload=$top_builddir/tests/.libs/fault_disk.so
[ -e "$preload" ] || { echo "1..0 # SKIP no shared objects are built here"; exit 0; }
preload=$(cd "$top_builddir" && pwd)/tests/.libs/fault_disk.so
FAULT_DIR=$dir
ASAN_OPTIONS=verify_asan_link_order=0:$ASAN_OPTIONS
export FAULT_DIR ASAN_OPTIONS
cat >"$dir/fathomd" <<END
#!/bin/sh
LD_PRELOAD=$preload exec "$(cd "$top_builddir" && pwd)/daemon/fathomd" "\$@"
END
chmod +x "$dir/fathomd"
fathomd=$dir/fathomd
full=$dir/full broken=$dir/broken held=$dir/held
later() { # FILE REQUEST...: talks in the background
    : >"$1"
    out=$1
    shift
    for request in "$@"; do echo "$request"; done | timeout 300 "$top_builddir/tests/talk" "$sock" >"$out" &
    helpers="$helpers $!"
}
lines() { # FILE: answers in it, without hello's
    tail -n +2 "$1" | grep -c '^ok\|^error'
}

# --- full
start
got=$(talk <<END
session.new name=a
append name=a tokens=1,2,3
session.new name=b
append name=b tokens=1
END
)
has "$got" 'ok pos=3 appended=3' "a disk with room"
: >"$full"
got=$(talk <<END
append name=a tokens=4,5 op_id=0123456789abcdef
append name=a tokens=6
sample name=a n=1
checkpoint name=a label=x
rename name=a to=z
session.new name=c
transcript name=a what=tokens
score name=a tokens=7
stat name=a
fork name=a to=d
list
status
END
)
has "$got" '^error quota .*disk%20is%20full.*position%203%20is%20in%20memory.* pos=5' \
    "full: the answer says so, and what is only in memory"
is "$(printf '%s\n' "$got" | grep -c '^error quota .*disk%20is%20full')" 7 "nothing new is begun, or made"
has "$got" 'tokens=1,2,3,4,5$' "what was done is kept"
has "$got" '^ok n=1 tokens=7 ' "what changes nothing goes on"
has "$got" 'name=a .*state=read-only.* why=the%20disk%20is%20full' "stat says why"
has "$got" 'sessions={name=a;[^}]*state=read-only[^}]*}{name=b;[^}]*} ' "what could not be made is not there"
has "$got" 'DEGRADED:%20disk%20full,%201%20sessions%20wait%20since' "status says so"
grep -q 'commit-failed session=a uid=[0-9]* pos=5 durable=3' "$dir/log"
ok "and the log"
rm "$full"
eventually 'stat name=a' 'state=idle'
has "$got" 'pos=5 state=idle' "with room again it is stored, by itself"
got=$(printf 'append name=a tokens=4,5 op_id=0123456789abcdef\nappend name=a tokens=6\nstatus\nsession.new name=c\n' | talk)
has "$got" 'ok pos=5 appended=2 repeated=1' "the request that failed, sent again, was done once"
has "$got" 'ok pos=6 appended=1' "and work goes on"
has "$got" 'ok name=c' "new ones too"
printf '%s\n' "$got" | grep -q DEGRADED
is $? 1 "status is well again"
stop -KILL
start
has "$(echo 'transcript name=a what=tokens' | talk)" 'tokens=1,2,3,4,5,6$' "and after kill -9 all is there"

# --- broken
: >"$broken"
got=$(talk <<END
append name=a tokens=7
append name=a tokens=8
transcript name=a what=tokens
logits name=a
chmod name=a mode=0
list
status
END
)
is "$(printf '%s\n' "$got" | grep -c '^error read-only .*read-only%20since.*with%206%20tokens%20on%20the%20disk')" 3 \
    "a sync that fails: read-only, and how much is on the disk"
has "$got" 'tokens=1,2,3,4,5,6,7$' "it can be read"
has "$got" 'ok logits=' "also by the engine"
has "$got" 'name=a;[^}]*state=read-only' "its state says so"
has "$got" 'DEGRADED:%201%20sessions%20read-only%20since' "status too"
rm "$broken"
got=$(talk <<END
append name=a tokens=8
fork name=a to=e
append name=e tokens=8
append name=b tokens=2
END
)
has "$got" '^error read-only' "for good: what the disk has nobody knows"
has "$got" '^ok pos=8 appended=1' "but a fork of it goes on"
has "$got" '^ok pos=2 appended=1' "and others were never concerned"
stop
is "$status" 0 "it ends well"
start
got=$(printf 'transcript name=a what=tokens\ntranscript name=e what=tokens\nappend name=a tokens=9\n' | talk)
has "$got" 'tokens=1,2,3,4,5,6\(,7\)*$' "after a restart it has what was acknowledged"
has "$got" 'tokens=1,2,3,4,5,6,7,8$' "its fork all of it"
has "$got" 'ok pos=[78] appended=1' "and takes more"

# --- while it draws
for fault in full broken; do
    rm -rf "$dir/state"
    stop
    FAKE_ENGINE=slow=4ms start
    printf 'session.new name=a\nappend name=a tokens=1\n' | talk >/dev/null
    later "$dir/stream" 'sample name=a n=20000 temperature=0 ignore_eos=1 credit=20000'
    patient
    until [ "$(grep -ac ^item "$dir/stream")" -ge 20 ] || tired; do :; done
    : >"$dir/$fault"
    patient
    until grep -aq '^error' "$dir/stream" || tired; do :; done
    last=$(grep -a ^item "$dir/stream" | tail -1 | sed 's/.*pos=\([0-9]*\).*/\1/')
    case $fault in full) wanted='error quota .*disk%20is%20full' ;; *) wanted='error read-only' ;; esac
    has "$(grep -a ^error "$dir/stream")" "$wanted.* pos=$((last + 1))\$" "$fault while it draws: it ends, with its position"
    rm "$dir/$fault"
done
stop
rm -rf "$dir/state"
start
# All in memory: reading them would have to wait for the disk.
printf 'session.new name=a\nappend name=a tokens=1,2,3,4,5,6,7,8\nsession.new name=b\nappend name=b tokens=1,2\n' | talk >/dev/null

# --- slow
: >"$held"
later "$dir/one" "append name=a tokens=10"
later "$dir/two" "session.new name=slow" "append name=slow tokens=1"
got=$(talk <<END
tokenize text=hello
transcript name=b what=tokens
stat name=b
score name=b tokens=3
list
END
)
is "$(printf '%s\n' "$got" | grep -c '^ok')" 5 "while the disk does not answer, others are served"
is "$(lines "$dir/one") $(lines "$dir/two")" "0 0" "and those that wait for it are not told anything"
echo 'delete name=b' | talk >"$dir/three" &
helpers="$helpers $!"
rm "$held"
patient
until [ "$(lines "$dir/one") $(lines "$dir/two")" = "1 2" ] || tired; do :; done
has "$(cat "$dir/one" "$dir/two")" 'ok pos=1 appended=1' "until it does"
pos=$(echo 'stat name=a' | talk | sed 's/.* pos=\([0-9]*\) .*/\1/')
: >"$held"
later "$dir/one" "append name=a tokens=11" "append name=a tokens=12"
eventually 'stat name=a' " pos=$((pos + 1)) "
kill "$daemon"
await stopping
is "$(lines "$dir/one")" 0 "a stop waits for the disk, too"
rm "$held"
wait "$daemon"
is $? 0 "and ends well"
daemon=
start
has "$(echo 'transcript name=a what=tokens' | talk)" ',10,11$' "with what it then said"
stop

# --- durability
rm -rf "$dir/state"
start --durability relaxed
echo 'session.new name=a' | talk >/dev/null
: >"$held"
got=$(printf 'append name=a tokens=1,2\nsample name=a n=3 quiet=1\n' | talk)
is "$(printf '%s\n' "$got" | grep -c '^ok')" 2 "relaxed: answers do not wait"
rm "$held"
stop
start
has "$(echo 'stat name=a' | talk)" 'pos=5 ' "a clean end keeps them all the same"
stop
# Sets `got`: of the tokens that a reader saw before kill -9, how many are lost, and how many others.
killed() { # DURABILITY
    rm -rf "$dir/state"
    FAKE_ENGINE=slow=4ms start --durability "$1"
    printf 'session.new name=a\nappend name=a tokens=1\n' | talk >/dev/null
    later "$dir/stream" 'sample name=a n=20000 temperature=0 ignore_eos=1 credit=20000'
    patient
    until [ "$(grep -ac ^item "$dir/stream")" -ge 150 ] || tired; do :; done
    stop -KILL 2>/dev/null
    patient
    until grep -q dead "$dir/stream" || tired; do :; done
    start
    # What the reader saw, and what is there.
    sed -n 's/^item pos=\([0-9]*\) id=\([0-9]*\).*/\1 \2/p' "$dir/stream" >"$dir/seen"
    got=$(echo 'transcript name=a what=tokens' | talk | sed -n 's/.* tokens=//p' | tr ',' '\n' |
        awk '{ print NR - 1, $1 }' | awk 'NR == FNR { t[$1] = $2; next } !($1 in t) { lost++ } ($1 in t) && t[$1] != $2 { other++ } END { print lost + 0, other + 0 }' - "$dir/seen")
    stop
}
killed always
is "$got" "0 0" "always: no token that a reader saw is lost by kill -9"
# A kill right behind a commit loses none: then once more.
others=0
for _ in 1 2 3 4 5 6; do
    killed turn
    others=$((others + ${got#* }))
    [ "${got% *}" = 0 ] || break
done
is "$others" 0 "turn: no token that a reader saw is another one"
has "$got" '^[1-9]' "but the last ones may be lost, as the test can see"

# --- in memory only while needed
rm -rf "$dir/state"
start --park-after 10ms --max-sequences 1 --snapshots 0
{
    for i in 1 2 3; do
        printf 'session.new name=p%s\nappend name=p%s tokens=1,2,%s\ncheckpoint name=p%s label=c\n' $i $i $i $i
    done
    echo 'append name=p1 tokens=9'
} | talk >/dev/null
eventually list 'p2;[^}]*state=parked.*p3;[^}]*state=parked'
has "$got" 'p1;[^}]*state=idle' "idle sessions leave memory, but not one that the engine has"
has "$got" 'p2;[^}]*pos=3;[^}]*checkpoints=1;' "the list knows them all the same"
got=$(printf 'transcript name=p2 what=tokens\nappend name=p3 tokens=4 if_pos=3\nrename name=p2 to=q2\nfork name=p1 to=q1\nstat name=q2\n' | talk)
has "$got" 'tokens=1,2,2$' "and they come when they are asked for"
has "$got" 'ok pos=4 appended=1' "and go on"
has "$got" 'name=q2 .*points={name=c;pos=3' "with all that belongs to them"
eventually list 'q2;[^}]*state=parked'
ls "$dir"/state/sessions/*/*/session.db-wal >"$dir/wals" 2>/dev/null
[ "$(wc -l <"$dir/wals")" -lt 4 ]
ok "ledgers that nobody uses are closed"
stop

# --- the index: it can be made anew, so that it fails takes nothing from the sessions
start --metrics-socket "$dir/metrics"
: >"$dir/index"
has "$(echo 'append name=p1 tokens=3' | talk)" '^ok pos=[0-9]* appended=1' "the index cannot be synced: a session is opened to be written all the same"
has "$(echo 'session.new name=i1' | talk)" '^ok name=i1' "and others are made"
grep -q 'index-failed why="' "$dir/log"
ok "it is said"
[ ! -e "$dir/state/index.db" ]
ok "what cannot be trusted is not left"
has "$(timeout 20 "$top_builddir/client/fathom" metrics "$dir/metrics")" '^fathom_store_index_failures_total [1-9]' "and counted"
echo 'append name=i1 tokens=5,6' | talk >/dev/null
rm "$dir/index"
stop -KILL
start
has "$(printf 'list\ntranscript name=i1 what=tokens\n' | talk)" 'tokens=5,6$' "after kill -9 nothing is missing"
[ -e "$dir/state/index.db" ]
ok "and there is an index again"
echo 'delete name=i1' | talk >/dev/null
stop

# --- quotas
start --max-disk-per-user 300K
got=$(for i in 1 2 3 4 5 6 7 8 9 10; do echo "session.new name=m$i"; done | talk)
has "$got" 'error quota .*bytes%20on%20the%20disk.*max-disk-per-user' "bytes on the disk have a limit, with a name"
stop
start --max-sessions-per-user 3
has "$(echo 'session.new name=more' | talk)" 'error quota .*max-sessions-per-user' "parked sessions count"
stop

# --- damaged
start
has "$(echo list | talk)" '{name=p1;.*{name=p3;' "three sessions"
stop
victim=$(grep -l p3 "$dir"/state/sessions/*/*/session.db | head -1)
head -c 5000 "$victim" >"$dir/torn"
cp "$dir/torn" "$victim"
start
got=$(printf 'stat name=p3\nstat name=p3\ntranscript name=p1 what=tokens\nlist\n' | talk)
has "$got" 'name=p3 .*state=damaged.* why=' "a ledger that cannot be read: its session says so"
has "$got" 'tokens=1,2,1,9,3$' "the others do not mind"
has "$got" 'p3;[^}]*state=damaged' "the list knows"
got=$(printf 'append name=p3 tokens=1\nappend name=p3 tokens=1\nrename name=p3 to=x\ndelete name=p3\nsession.new name=p3\n' | talk)
is "$(printf '%s\n' "$got" | grep -c '^error damaged')" 3 "work on it is refused"
has "$got" '^ok name=p3 pos=0 created=1' "it can be deleted"
has "$(ls "$dir/state/quarantine")" '.' "what it was is in quarantine/, for the second try failed too"
stop
start
has "$(printf 'stat name=p3\nappend name=p1 tokens=1\n' | talk)" 'ok name=p3 .*pos=0 state=idle' "and all is well at the next start"
stop
plan
