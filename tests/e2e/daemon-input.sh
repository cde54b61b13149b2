#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Bad input, limits and other users: a clear error each time, and the daemon and other sessions
# go on.
# shellcheck disable=SC1091,SC2154
. "${srcdir:-.}/tests/e2e/daemon.subr"
hex() { printf '%s' "$1" | od -An -tx1 | tr -d ' \n'; }
frame() { printf '%08x%s' $((${#1} / 2)) "$1"; }
raw() { echo "raw $1" | timeout 120 "$top_builddir/tests/talk" -n "$sock"; }
# hello by hand: [0, 0, "hello", [{"proto_min": 1, "proto_max": 1}]]
hello=$(frame "940000a568656c6c6f9182a970726f746f5f6d696e01a970726f746f5f6d617801")

start --max-document 4096 --max-sessions-per-user 20 \
    --max-tokens-per-user 20000 --max-jobs-per-session 4

# --- not this protocol
has "$(raw "$(hex 'GET / HTTP/1.1')0d0a0d0a")" 'bye protocol' "HTTP is told so"
has "$(raw 7fffffff00)" 'bye protocol' "a frame of 2 GiB is refused by its head"
has "$(raw 00000000)" 'bye protocol' "and one of no bytes"
has "$(raw "$(frame 940001a66170)")" 'bye ' "a frame that is cut inside"
has "$(raw "$(frame dbffffffff)")" 'bye protocol' "a string that says it has 4 GiB"
has "$(raw "$(frame ddffffffff)")" 'bye protocol' "an array that says it has 4 G elements"
deep=$(printf '91%.0s' 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20)01
has "$(raw "$(frame "$deep")")" 'bye protocol .*more%20than%207%20levels' "deep nesting"
has "$(raw "$(frame 940001a67374617475739180)")" 'bye protocol .*hello' "a request before hello"
has "$(raw "$(frame 9502a573746174)")" 'bye protocol' "a shape that there is not"
has "$(raw "$(frame 940000a568656c6c6f9182a970726f746f5f6d696e02a970726f746f5f6d617809)")" \
    'protocol .*2%20to%209.*fathomd%201' "versions that do not meet: both are named"
# after hello: [0, 7, "status", [{"x": 1}]]
has "$(raw "$hello$(frame 940007a67374617475739181a17801)")" 'error invalid' "an unknown key"
has "$(raw "$hello$(frame 940007a67374617475739181a17801)")" 'key=x' "is named"
has "$(raw "$hello$(frame 940007a46e6f70659180)")" 'error invalid.*nope' "an unknown method"
has "$(raw "$hello$(frame 940007a4737461749181a46e616d65a2ff61)")" 'error invalid\|bye' \
    "text that is not UTF-8"

# --- names
for name in ../x .x x/y '' a%20b a%00b "$(printf 'a%.0s' $(seq 65))" '~0/../x'; do
    has "$(echo "session.new name=$name" | talk)" 'error invalid\|more than 64' "the name '$name' is refused"
done
got=$(talk <<END
session.new name=a
session.new name=a
session.new name=a if_absent=1
rename name=a to=../b
stat name=nobody
rename name=a to=b
stat name=b
session.new name=a
rename name=a to=b
END
)
has "$got" 'error exists' "a name that is taken"
has "$got" 'ok name=a pos=0 created=0' "unless that is wanted"
has "$got" 'error not-found .*nobody' "a name that is not there"
has "$got" 'ok name=b owner=' "a session under its new name"

# --- positions and op ids
got=$(talk <<END
sample name=b n=3
append name=b tokens=1,2,3 op_id=0123456789abcdef
append name=b tokens=1,2,3 op_id=0123456789abcdef
append name=b tokens=4 if_pos=7
append name=b tokens=4 if_pos=3
append name=b tokens=99999999
append name=b tokens=5 text=x
sample name=b n=3 temperature=-1
sample name=b n=3 top_p=7
sample name=b n=0
rollback name=b pos=9
rollback name=b to=nowhere
sample name=b n=3 op_id=0123456789abcdef
sample name=b n=3 op_id=fedcba9876543210 temperature=0 quiet=1
sample name=b n=3 op_id=fedcba9876543210 temperature=0
stat name=b
END
)
has "$got" 'error invalid-argument .*empty' "sampling from an empty session"
has "$got" 'ok pos=3 appended=3 repeated=1' "an op_id that comes again does nothing again"
has "$got" 'error conflict .*pos=3' "a wrong if_pos is told the right one"
has "$got" 'ok pos=4 appended=1' "a right one works"
has "$got" 'error invalid-argument .*99999999' "a token that there is not"
has "$got" 'error invalid-argument .*one%20of' "two inputs at once"
has "$got" 'error invalid-argument .*temperature' "a temperature below 0"
has "$got" 'error invalid-argument .*top_p' "a top_p above 1"
has "$got" 'error invalid-argument .*another%20method' "an op_id of another method"
is "$(printf '%s\n' "$got" | grep -c '^item pos=[456] ')" 3 "a repeated sample streams the same tokens again"
has "$got" 'ok name=b .*pos=7 ' "and draws none"

# --- documents
head -c 4096 /dev/zero | tr '\0' a >"$dir/4k"
head -c 4097 /dev/zero | tr '\0' a >"$dir/4k1"
head -c 2048 /dev/zero | tr '\0' a >"$dir/2k"
seq 1 1000 >"$dir/tokens-4k" # about 3.9 KB
got=$(talk <<END
session.new name=doc
append name=doc document=@$dir/4k
append name=doc document=@$dir/4k1
append name=doc document=!$dir/2k
append name=doc document=!$dir/4k
append name=doc document=@$dir/2k bytes=3000
append name=doc document=@$dir/2k bytes=10
END
)
is "$(printf '%s\n' "$got" | cut -d' ' -f1,2 | cut -d= -f1 | tr '\n' ',')" \
    "ok name,ok pos,error quota,ok pos,error quota,error invalid-argument,ok pos," \
    "documents: sealed up to the limit, others up to half, never beyond their end"

# --- limits
got=$(for i in $(seq 1 25); do echo "session.new name=s$i"; done | talk)
is "$(printf '%s\n' "$got" | grep -c '^ok')" 17 "twenty sessions a user (three were there)"
has "$got" 'error quota .*max-sessions-per-user' "and the limit's setting is named"
ids=$(seq -s, 1 7000)
got=$(printf 'delete name=doc\nappend name=s1 tokens=%s\nappend name=s2 tokens=%s\nappend name=s2 tokens=%s\n' "$ids" "$ids" "$ids" | talk)
has "$got" 'error quota .*max-tokens-per-user' "tokens of one user"
got=$(printf 'session.new name=b if_absent=1\nsample name=b n=2 quiet=1 temperature=0\n' | talk)
has "$got" 'ok pos=9 n=2' "other sessions go on"
stop

# --- past the context's end
start --max-document 64M
yes 'word and word and ' | head -c 800000 >"$dir/long"
got=$(talk <<END
session.new name=long
append name=long text=kept
append name=long document=@$dir/long
stat name=long
END
)
has "$got" 'error context-full .*the%20context%20ends%20at%2065536 pos=' "a document past the context's end"
has "$got" "ok name=long .*state=idle" "leaves the session as it was"
first=$(printf '%s\n' "$got" | sed -n 's/^ok pos=\([0-9]*\) appended.*/\1/p')
has "$got" "ok name=long .* pos=$first " "at its position"

# --- cancel, leave
yes 'word and word and ' | head -c 100000 >"$dir/much"
stop
FAKE_ENGINE=slow=10ms start --feed-tokens 64
got=$(talk <<END
session.new name=c
cancel-after 3
append name=c document=@$dir/much progress=1
stat name=c
END
)
pos=$(printf '%s\n' "$got" | sed -n 's/^error cancelled .*pos=\([0-9]*\).*/\1/p')
has "$got" "ok name=c .* pos=$pos .*state=idle" "a cancelled append tells where it stopped"
[ "${pos:-0}" -gt 0 ]
ok "and keeps what was done"
talk >/dev/null <<END
session.new name=l
quit-after 2
append name=l document=@$dir/much progress=1
END
eventually 'stat name=l' 'state=idle'
has "$got" "kv_pos=[1-9][0-9][0-9][0-9]" "an append goes on when its client leaves"
talk >/dev/null <<END
session.new name=m
append name=m text=hello
quit-after 2
sample name=m n=2000 temperature=0
END
eventually 'stat name=m' 'state=idle'
pos=$(printf '%s\n' "$got" | sed -n 's/.* pos=\([0-9]*\) .*/\1/p')
[ "${pos:-2000}" -lt 2000 ]
ok "a sample ends when its client leaves, at ${pos:-?} of 2000"
talk >/dev/null <<END
session.new name=d
append name=d text=hello
quit-after 2
sample name=d n=60 temperature=0 detach=1
END
eventually 'stat name=d' 'state=idle'
has "$got" ' pos=6[0-9] ' "unless it was detached"
got=$(talk <<END
append name=m text=x
cancel-after 4
sample name=m n=2000 temperature=0
END
)
last=$(printf '%s\n' "$got" | grep ^item | tail -1 | sed 's/.*pos=\([0-9]*\).*/\1/')
has "$got" "error cancelled .*pos=$((last + 1))" "a cancelled sample: all that was drawn was sent"

# --- credit
got=$(talk <<END
session.new name=p
append name=p text=hello
credit 1
sample name=p n=30 temperature=0 credit=2 on_stall=pause
credit 0
rollback name=p pos=2
sample name=p n=30 temperature=0
END
)
drawn=$(printf '%s\n' "$got" | sed -n 's/^item pos=\([0-9]* id=[0-9]*\).*/\1/p')
is "$(printf '%s\n' "$drawn" | head -30)" "$(printf '%s\n' "$drawn" | tail -30)" \
    "a sample with little credit draws the same"
stop

start --hello-timeout 300ms
has "$(raw '')" 'bye deadline' "a client that says nothing is let go"
stop

# --- many connections, and readers that never read
start --max-connections 600 --max-connections-per-user 500 --hello-timeout 60s
got=$(echo 'crowd 1000' | talk)
has "$got" 'crowd in=[45][0-9][0-9] out=[45][0-9][0-9]' "of 1000 connections, those beyond the limit are told so"
has "$(echo status | talk)" 'state=serving' "and the daemon goes on"
before=$(awk '/VmRSS/ { print $2 }' "/proc/$daemon/status")
seq -s, 1 5000 >"$dir/ids"
got=$(printf 'session.new name=big\nappend name=big tokens=%s\nflood transcript name=big what=tokens\n' \
    "$(cat "$dir/ids")" | talk)
has "$got" 'flood sent=' "a client that asks and never reads"
after=$(awk '/VmRSS/ { print $2 }' "/proc/$daemon/status")
[ $((after - before)) -lt 20000 ]
ok "does not make the daemon grow ($before KB to $after KB)"
has "$(echo 'stat name=big' | talk)" 'ok name=big' "nor stop"
stop

# --- other users
if [ "$(id -u)" -eq 0 ]; then
    chmod 755 "$dir"
    start --socket-mode 0666
    printf 'session.new name=mine\nappend name=mine text=private\nsession.new name=open mode=420\n' |
        talk -u 1001 >/dev/null
    got=$(printf 'list all=1\nstat name=mine\nstat name=~1001/mine\nstat name=~1001/nothing\nstat name=~1001/open\nappend name=~1001/open text=x\ndelete name=~1001/open\nfork name=~1001/open to=copy\nsession.new name=mine\n' |
        talk -u 1002)
    is "$(printf '%s\n' "$got" | cut -d' ' -f1,2 | cut -d= -f1 | tr '\n' ',')" \
        "ok sessions,error not-found,error not-found,error not-found,ok name,error permission,error permission,ok name,ok name," \
        "another user's session: invisible, or what its mode says"
    is "$(printf '%s\n' "$got" | sed -n 2,4p | sed 's/mine/NAME/g; s/nothing/NAME/g; s/~1001.//' | sort -u | wc -l)" 1 \
        "that it is there cannot be told from the error"
    has "$got" 'sessions={name=~1001/open;' "a readable one is listed for all"
    has "$(printf 'list\n' | talk -u 1001)" '{name=mine;.*{name=open;' "its owner sees both"
    has "$(printf 'stat name=~1001/mine\n' | talk)" 'ok name=~1001/mine' "and so does root"
    got=$(printf 'chmod name=mine mode=384 group=4242\nchmod name=mine mode=438\n' | talk -u 1001)
    has "$got" 'error permission .*4242' "a group that one is not in cannot be given"
    has "$(printf 'append name=~1001/mine text=x\n' | talk -u 1002)" 'ok pos=' "a new mode counts"
    stop
else
    skip "other users" "not root"
fi
plan
