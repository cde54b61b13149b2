#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""flips.py STATE: turns one bit over in each session f000, f001, ... under STATE, each in another class
of bytes, and prints a line for each: NAME CLASS OFFSET. flips.py STATE index N: the N-th flip of index.db.
flips.py STATE wal: one in each write-ahead log, but f300's, each in another class of
bytes; on stderr, in how many SQLite alone then finds fewer tokens. flips.py STATE wound NAME: 600 bytes of the
beginning of that session's log, and a bit of the index's."""
import glob
import os
import random
import shutil
import sqlite3
import struct
import sys
import tempfile

KINDS = {1: "layout", 2: "tokens", 3: "pages", 4: "state", 5: "logits"}
HEAD = [("magic", 0, 8), ("version", 8, 4), ("head-bytes", 12, 4), ("compatible", 16, 8), ("incompatible", 24, 8),
        ("file-bytes", 32, 8), ("type", 40, 4), ("n-sections", 44, 4), ("id", 48, 16), ("fingerprint", 64, 32),
        ("layout-hash", 96, 8), ("page-bytes", 104, 8), ("state-most", 112, 8), ("vocab", 120, 4), ("n-parts", 124, 4),
        ("pos", 128, 8), ("n-tokens", 136, 4), ("has-logits", 140, 4), ("state-bytes", 144, 8)]
SECTION = [("kind", 0, 4), ("reserved", 4, 4), ("row-bytes", 8, 8), ("rows", 16, 8), ("at", 24, 8), ("bytes", 32, 8),
           ("hash", 40, 16)]


def kvfile_classes(data):
    """(class, first byte, bytes, how many flips): all bytes of a .kvc or .kvt are in one."""
    out = [("head." + n, at, size, 1) for n, at, size in HEAD]
    n = struct.unpack_from("<I", data, 44)[0]
    for i in range(n):
        at = 152 + 56 * i
        kind, _, _, _, where, size = struct.unpack_from("<IIQQQQ", data, at)
        name = KINDS[kind]
        out += [("table.%s.%s" % (name, f), at + o, s, 1) for f, o, s in SECTION]
        out.append((name, where, size, 12 if name in ("pages", "state") else 4))
        if size % 4096:
            out.append((name + ".padding", where + size, 4096 - size % 4096, 2))
    out.append(("head.zero", 152 + 56 * n, 4096 - 8 - 152 - 56 * n, 2))
    out.append(("head.sum", 4088, 8, 1))
    return out


def database_classes(data):
    out = [("header.%d" % at, at, 1, 1) for at in (0, 15, 16, 17, 18, 19, 20, 21, 24, 27, 28, 31, 36, 40, 44, 56, 60, 68, 92, 96)]
    for page in range(len(data) // 4096):
        at = 4096 * page
        first = at + (100 if page == 0 else 0)
        out += [("page%d.type" % page, first, 1, 1), ("page%d.head" % page, first + 1, 7, 1),
                ("page%d.cells" % page, first + 8, 8, 1), ("page%d.middle" % page, first + 64, 3900, 2),
                ("page%d.content" % page, at + 3600, 480, 2), ("page%d.sum" % page, at + 4088, 8, 1)]
    return out


def flip(path, at, bit):
    with open(path, "r+b") as f:
        f.seek(at)
        byte = f.read(1)[0]
        f.seek(at)
        f.write(bytes([byte ^ (1 << bit)]))


def read(path):
    with open(path, "rb") as f:
        return f.read()


def sessions(state):
    for path in sorted(glob.glob(state + "/sessions/*/*/session.db")):
        db = sqlite3.connect("file:%s?immutable=1" % path, uri=True)
        yield db.execute("SELECT name FROM meta").fetchone()[0], os.path.dirname(path)
        db.close()


def plan(folder):
    """Every class of every kind of file that the session's next use reads."""
    chunks = sorted(glob.glob(folder + "/c/*.kvc"))
    states = sorted(glob.glob(folder + "/k/*.kvt"))
    for pattern, classes in ((chunks[0], kvfile_classes), (chunks[-1], kvfile_classes), (states[-1], kvfile_classes),
                             (folder + "/session.db", database_classes)):
        for name, at, size, times in classes(read(pattern)):
            for _ in range(times):
                yield pattern, name, at, size


def wal_classes(data):
    """(class, first byte, bytes) of a write-ahead log: its head, and each frame."""
    out = [("head." + n, 4 * i, 4) for i, n in enumerate(
        ("magic", "version", "page-size", "counter", "salt1", "salt2", "sum1", "sum2"))]
    for frame in range((len(data) - 32) // 4120):
        at = 32 + 4120 * frame
        out += [("frame%d.%s" % (frame, n), at + o, s) for n, o, s in (
            ("page-number", 0, 4), ("commit", 4, 4), ("salts", 8, 8), ("sum", 16, 8), ("page", 24, 4096))]
    return out + [("witness", len(data) - (len(data) - 32) % 4120, (len(data) - 32) % 4120)]


def tokens_by_sqlite(folder):
    with tempfile.TemporaryDirectory() as copy:
        for name in ("session.db", "session.db-wal"):
            shutil.copy(folder + "/" + name, copy)
        db = sqlite3.connect(copy + "/session.db")
        n = db.execute("SELECT len FROM meta").fetchone()[0]
        db.close()
    return n


def flip_logs(all_sessions):
    fewer, i = 0, 0
    for name, folder in sorted(all_sessions):
        path = folder + "/session.db-wal"
        if name == "f300" or not os.path.exists(path) or os.path.getsize(path) == 0:
            continue
        before = tokens_by_sqlite(folder)
        places = wal_classes(read(path))
        # Classes in turn, a frame later with each round.
        what, at, size = places[i] if i < 8 else places[8 + (i - 8) * 6 % (len(places) - 8)]
        at += random.randrange(size)
        flip(path, at, random.randrange(8))
        fewer += tokens_by_sqlite(folder) < before
        print(name, "wal." + what, at)
        i += 1
    print("#", fewer, file=sys.stderr)


def main():
    random.seed(20)
    state = sys.argv[1]
    if sys.argv[2:3] == ["wound"]:
        folder = [d for n, d in sessions(state) if n == sys.argv[3]][0]
        with open(folder + "/session.db-wal", "r+b") as f:
            f.seek(2000)
            old = f.read(600)
            f.seek(2000)
            f.write(bytes(b ^ 0xff for b in old))
        flip(state + "/index.db-wal", os.path.getsize(state + "/index.db-wal") // 2, 0)
        return
    if len(sys.argv) == 4:
        size = os.path.getsize(state + "/index.db")
        at = [0, 18, 20, 30, 100, 5000, 4090, size - 3, size // 2, size - 400][int(sys.argv[3])]
        flip(state + "/index.db", at, 2)
        return
    all_sessions = [(n, d) for n, d in sessions(state) if n[0] == "f" and n[1:].isdigit()]
    if len(sys.argv) == 3:
        flip_logs(all_sessions)
        return
    places = None
    for i, (name, folder) in enumerate(sorted(all_sessions)):
        places = list(plan(folder))  # the same list for each, they are copies
        path, what, at, size = places[i % len(places)]
        where = at + random.randrange(size)
        flip(path, where, random.randrange(8))
        print(name, os.path.basename(path).split(".")[-1] + "." + what, where)
    print("#", len(places), file=sys.stderr)


main()
