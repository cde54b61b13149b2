#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A strict reader of Prometheus' text format 0.0.4: stricter than the format itself is.

prom.py FILE           is the page right? Prints `name{labels} value` of each sample.
prom.py FILE OLD       and has no counter gone back since OLD?
"""
import re
import sys

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
VALUE = re.compile(r"(0|[1-9][0-9]*)(\.[0-9]+)?\Z")
SAMPLE = re.compile(r"(%s)(\{(.*)\})? (\S+)\Z" % NAME)
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"\Z')
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}


class Wrong(Exception):
    pass


def need(ok, line, why):
    if not ok:
        raise Wrong("%r: %s" % (line, why))


def read(text):
    need(text.endswith("\n"), text[-50:], "the last line has no end")
    families, samples, name, help_of = {}, {}, None, None
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            help_of, words = line.split(" ", 3)[2], line.split(" ", 3)
            need(len(words) == 4 and re.match(NAME + r"\Z", help_of), line, "no help")
            need(help_of not in families, line, "a family twice, or in two places")
        elif line.startswith("# TYPE "):
            words = line.split(" ")
            need(len(words) == 4 and words[3] in SUFFIXES, line, "no type")
            need(words[2] == help_of, line, "TYPE without its HELP in front")
            name = words[2]
            families[name] = words[3]
            kind = words[3]
            need((kind == "counter") == name.endswith("_total"), line, "_total is for counters")
        else:
            m = SAMPLE.match(line)
            need(m, line, "not a sample")
            need(name and m[1] in [name + s for s in SUFFIXES[families[name]]], line, "of another family")
            labels = m[3].split(",") if m[3] else []
            need(m[2] is None or labels, line, "empty labels")
            for label in labels:
                need(LABEL.match(label), line, "a label")
            need(len({l.split("=")[0] for l in labels}) == len(labels), line, "a label twice")
            need(VALUE.match(m[4]), line, "a value")
            key = m[1] + (m[2] or "")
            need(key not in samples, line, "a sample twice")
            samples[key] = float(m[4])
    for name, kind in families.items():
        if kind != "histogram":
            need(any(k.split("{")[0] == name for k in samples), name, "no sample")
            continue
        buckets = [(k, v) for k, v in samples.items() if k.startswith(name + "_bucket{")]
        bounds = [float(re.search(r'le="([^"]*)"', k)[1]) for k, _ in buckets]
        need(bounds == sorted(set(bounds)) and bounds[-1] == float("inf"), name, "bounds")
        counts = [v for _, v in buckets]
        need(counts == sorted(counts), name, "buckets are not cumulative")
        need(counts[-1] == samples[name + "_count"], name, "count")
        need(name + "_sum" in samples, name, "sum")
    return families, samples


def main():
    families, samples = read(open(sys.argv[1], encoding="utf-8", newline="").read())
    if len(sys.argv) > 2:
        _, old = read(open(sys.argv[2], encoding="utf-8", newline="").read())
        need(old.keys() == samples.keys(), "samples", "others than before")
        for key, v in samples.items():
            base = re.sub(r"(_bucket|_sum|_count)?(\{.*)?\Z", "", key)
            counts = families.get(base, families.get(key.split("{")[0])) != "gauge"
            need(not counts or v >= old[key], key, "has gone back")
    for key, v in samples.items():
        print(key, repr(v))


if __name__ == "__main__":
    try:
        main()
    except Wrong as wrong:
        sys.exit("prom.py: %s" % wrong)
