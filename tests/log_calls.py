#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Every call of log_line() in the tree: what goes into it, and that its event is known.

log_calls.py TOP        one line a mistake; exit status 1 if there is any
log_calls.py TOP FILE   the same of one file more

A log line may hold names, numbers and our own error texts; never what a client wrote into a
session, nor token ids. So each string that is put into one must be of a known kind, listed here
as a pattern of the C expression; who adds another kind reads this first. Events of level notice
and above must have a line in daemon/journal.def, and the other way round.
"""
import os
import re
import sys

FOLDERS = ("base", "proto", "lib", "model", "gpu", "engine", "kvstore", "daemon")

# Expressions that may fill a %s: error texts, names of things, settings, our own words.
STRINGS = [
    r"(\w+(->|\.))*(e|err|why|error|mended)(->|\.)text|engine_error\(.*\)->text",
    r"(\w+->)*why",  # of a fault; of session_move(): a literal
    r"\(int\)body->text\.len, body->text\.p",  # of an error, as it goes out
    r"strerror\(errno\)|err_name\(.*\)",
    r"(\w+(->|\.))*name|names\[i\]|was|to|from|states\[[^]]*\]\.\w+",
    r"journal_events\[i\]\.name",
    r"(\w+(->|\.))*o(->|\.)(socket|engine|model|state)|a->model",
    r"(\w+(->|\.))*(backend|detail)",
    r"\(int\)q->client\.len, q->client\.p != NULL \? q->client\.p : \"\"",  # a program's name
    r"g->quitting \? \"asked to\" : g->why\.text",
    r"ignored",  # names of settings
    r'.* \? "[a-z ]+" : "[a-z ]+"',
    r"job->dir",  # a folder of the store's: made of ids
    r"line",  # what is wrong with a checkpoint's files
]
# And in numbers: no token.
NO_NUMBERS = r"\bids?\b|\btokens?\[|\btext\b|choices?\b"


def calls(text):
    """(line number, arguments) of each call; arguments are split at top-level commas."""
    for m in re.finditer(r"(?<![\w*])log_line\(", text):
        args, depth, start, i, quote = [], 1, m.end(), m.end(), None
        while depth:
            c = text[i]
            if quote:
                if c == "\\":
                    i += 1
                elif c == quote:
                    quote = None
            elif c in "\"'":
                quote = c
            elif c in "([{":
                depth += 1
            elif c in ")]}":
                depth -= 1
            if (c == "," and depth == 1 and not quote) or depth == 0:
                args.append(" ".join(text[start:i].split()))
                start = i + 1
            i += 1
        yield text.count("\n", 0, m.start()) + 1, args


def conversions(fmt):
    """Those of a format, as they take arguments."""
    out = []
    for m in re.finditer(r'%([-+ #0]*)(\*|\d+)?(\.(\*|\d+))?(hh|h|ll|l|z|j)?([a-zA-Z%])|%[^"]*"\s*(PRI\w+)', fmt):
        if m[6] == "%":
            continue
        out.append("s" if m[6] == "s" else "n")
        if m[6] == "s" and m[4] == "*":
            out[-1] = ".*s"
    return out


def check(path, known, said):
    text = open(path, encoding="utf-8").read()
    mistakes = []
    for line, args in calls(text):
        where = "%s:%d" % (path, line)
        if not args[1].startswith('"'):
            if not path.endswith(("base/log.c", "base/log.h")):
                mistakes.append("%s: the format is no literal" % where)
            continue
        fmt = args[1]
        words = re.match(r'"([a-z-]+)', fmt)
        if not words:
            mistakes.append("%s: no event's name in front" % where)
            continue
        said.add(words[1])
        if "/daemon/" in path and "LOG_DEBUG" not in args[0] and words[1] not in known:
            mistakes.append("%s: '%s' is not in daemon/journal.def" % (where, words[1]))
        rest = args[2:]
        for kind in conversions(fmt):
            if not rest:
                mistakes.append("%s: too few arguments for the format as read here" % where)
                break
            if kind == "n":
                if re.search(NO_NUMBERS, rest[0]):
                    mistakes.append("%s: is '%s' a token?" % (where, rest[0]))
                rest = rest[1:]
                continue
            n = 2 if kind == ".*s" else 1
            expr = ", ".join(rest[:n])
            if not any(re.fullmatch(p, expr) for p in STRINGS):
                mistakes.append("%s: is '%s' what a client wrote?" % (where, expr))
            rest = rest[n:]
        if rest:
            mistakes.append("%s: too many arguments for the format as read here" % where)
    return mistakes


def main():
    top = sys.argv[1]
    table = open(os.path.join(top, "daemon/journal.def"), encoding="utf-8").read()
    known = set(re.findall(r'^EVENT\("([^"]*)"', table, re.M))
    said, mistakes, n = set(), [], 0
    for folder in FOLDERS:
        for where, _, files in os.walk(os.path.join(top, folder)):
            for f in files:
                if f.endswith((".c", ".cu")):
                    mistakes += check(os.path.join(where, f), known, said)
    for extra in sys.argv[2:]:
        mistakes += check(extra, known, said)
    mistakes += ["daemon/journal.def: nobody logs '%s'" % name for name in sorted(known - said)]
    if len(said) < 20:
        mistakes.append("only %d events were found" % len(said))
    print("\n".join(mistakes))
    return 1 if mistakes else 0


if __name__ == "__main__":
    sys.exit(main())
