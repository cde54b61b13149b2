#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A restart in order leaves the caches in host memory where they are: sessions come back without the
# disk. What was changed in between, what is another model's, and what a crash leaves is not used.
# tests/hear.c is the service manager that keeps the memory.
# shellcheck disable=SC1091,SC2154,SC2034,SC2012,SC2016
. "${srcdir:-.}/tests/e2e/daemon-kv.subr"
fathomd=$top_builddir/daemon/fathomd
seq 1 5000 | tr '\n' ' ' >"$dir/text"
sock=$dir/api
export HEAR_LISTEN="api=$sock" HEAR_BETWEEN="$dir/between"

# The engine says what $dir/wrong tells it to.
cat >"$dir/engine" <<END
#!/bin/sh
FAKE_ENGINE=\$(cat "$dir/wrong") exec "$PWD/$top_builddir/tests/fake_engine" "\$@"
END
case $top_builddir in /*) sed -i "s|$PWD//|/|" "$dir/engine" ;; esac
chmod +x "$dir/engine"
: >"$dir/wrong"

heard() { # PATTERN TIMES: until the manager has heard it
    patient
    until [ "$(grep -c -e "$1" "$dir/heard")" -ge "$2" ] || tired; do :; done
}
starts=0
manage() { # $daemon is the manager
    rm -rf "$dir/log" "$dir/notify" "$sock" "$dir/between" "$dir/state"
    : >"$dir/heard"
    starts=1
    "$top_builddir/tests/hear" "$dir/notify" "$fathomd" --engine "$dir/engine" --model \
        "$srcdir/models/fathom-mini" --state "$dir/state" --host-memory 64M --socket "$dir/unused" \
        >"$dir/heard" 2>"$dir/log" &
    daemon=$!
    heard '^READY=1' 1
}
again() { # [SIGNAL]: the next fathomd; without a signal, in order
    : >"$dir/log"
    starts=$((starts + 1))
    if [ -n "${1-}" ]; then kill "$1" "$(pgrep -P "$daemon" -x fathomd)"; else kill -USR1 "$daemon"; fi
    heard '^READY=1' $starts
}
make_a() {
    talk <<END
session.new name=a
append name=a text=@$dir/text
sample name=a n=40 temperature=0 quiet=1 seed=1
park name=a to=memory
END
}
go_on() { echo 'sample name=a n=60 temperature=1.5 seed=7 repetition=1.2 quiet=1' | talk | plain; }
# Each image begins with its magic: one bit of each is another when the next one starts.
between_flip() { # OFFSET
    cat >"$dir/between" <<END
for f in /proc/\$PPID/fd/*; do
    case \$(readlink \$f) in *fathom-arena*) arena=\$f ;; esac
done
for at in \$(LC_ALL=C grep -abo 'FKV' \$arena | cut -d: -f1); do
    [ \$(((at - 1) % 4096)) -eq 0 ] || continue
    at=\$((at - 1 + $1))
    byte=\$(od -An -tu1 -j\$at -N1 \$arena | tr -d ' ')
    printf "\\\\\$(printf %o \$((byte ^ 1)))" | dd of=\$arena bs=1 seek=\$at conv=notrunc 2>/dev/null
    echo \$at >>"$dir/flipped"
done
END
}
kept() { sed -n 's/.*host-memory-kept images=\([0-9]*\).*/\1/p' "$dir/log"; }
read_back() { sed -n 's/.*cache-restored session=a .*read=\([0-9]*\).*/\1/p' "$dir/log"; }

# --- undisturbed -----------------------------------------------------------------------------
manage
make_a >"$dir/made"
has "$(cat "$dir/made")" 'tier=memory' "a session is parked in memory"
wanted=$(go_on)
has "$wanted" '^ok pos=[0-9]* n=60' "and goes on from there"

# --- restarted: it is still there --------------------------------------------------------------
stop
manage
make_a >/dev/null
again
n_files=$(($(files kvc | wc -l) + $(files kvt | wc -l)))
[ "$(kept)" -ge "$n_files" ] && [ "$n_files" -ge 3 ]
ok "restarted in order: $(kept) copies of files are found"
has "$(echo 'stat name=a' | talk)" 'tier=memory' "the session is in memory"
is "$(go_on)" "$wanted" "and goes on as if nothing had been"
is "$(read_back)" 0 "without a byte from the disk"
[ "$(computed)" -le 100 ]
ok "and with nothing computed again"
again
again
[ "$(kept)" -ge "$n_files" ]
ok "two restarts later they are there, too"
echo 'unpark name=a' | talk >/dev/null
is "$(read_back)" 0 "and of use"

# --- killed: nothing is found --------------------------------------------------------------------
stop
manage
make_a >/dev/null
again # there is a directory, and it is used up
[ -n "$(kept)" ]
ok "found once"
again -KILL
is "$(kept)" "" "killed: what it may have been writing is not believed"
has "$(echo 'stat name=a' | talk)" 'tier=disk' "the session is on the disk"
is "$(go_on)" "$wanted" "and goes on from there"
[ "$(read_back)" -gt 0 ]
ok "with $(read_back) bytes read"

# --- a bit is another: refused, and the disk is used ---------------------------------------------
stop
manage
make_a >/dev/null
between_flip 12300 # in the fourth page: payload
again
[ "$(wc -l <"$dir/flipped")" -ge 3 ]
ok "a bit of the payload of each image is flipped"
is "$(go_on)" "$wanted" "the same answer"
has "$(cat "$dir/log")" 'cache-copy-refused session=a ' "no such copy was used"
[ "$(read_back)" -gt 0 ] && ! grep -q cache-not-restored "$dir/log"
ok "but the disk, and no file was blamed"
has "$(echo 'verify name=a' | talk)" 'wrong=0 ' "which is as it was"

stop
manage
make_a >/dev/null
between_flip 100 # in its head
again
has "$(cat "$dir/log")" 'host-memory-not-kept why=.*head has been changed' "a bit of an image's head: nothing is taken over"
is "$(go_on)" "$wanted" "the same answer"
[ "$(read_back)" -gt 0 ]
ok "from the disk"

# --- of another model ----------------------------------------------------------------------------
stop
manage
make_a >/dev/null
echo model=7 >"$dir/wrong"
again
has "$(cat "$dir/log")" 'host-memory-not-kept why="what the arena holds is another' "of another model: nothing is taken over"
: >"$dir/wrong"
again
is "$(kept)" "" "and the next one of the first model finds nothing"
is "$(go_on)" "$wanted" "but the disk: the same answer"
stop
plan
