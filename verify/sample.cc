/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The draw (gpu/cuda/sample.cu): logits in slices, a row's scratch memory, bins of threads, and who
 * reads the members of one. Stages: stages_sample.cc.
 */
#include "verify/formulas.hh"
#include "verify/prove.hh"

extern "C" {
#include "model/logits.h"
}

namespace verify
{

using namespace formula;

namespace
{

constexpr int forms[] = {2, 8}; /* logits of a thread: few rows, many */

/* Parts of the scratch memory follow one another, as their types want, and end inside a row's
 * bytes, whichever form has been taken for the size. */
void
work_apart(const Config &, Statement &s)
{
    const Int n = s.any("n", 1, LOGITS_MOST), row = s.any("row", 0, 1023);
    struct sample_plan of[2];
    Int most = 0;

    for (int i = 0; i < 2; i++) {
        const int slice = forms[i] * SAMPLE_THREADS;

        of[i] = sample_plan_for(ceil_div(n, slice), slice);
        most = choose(of[i].bytes > most, of[i].bytes, most);
    }
    for (int i = 0; i < 2; i++) {
        const struct sample_plan &p = of[i];
        const int slice = forms[i] * SAMPLE_THREADS;
        const Int slices = ceil_div(n, slice);
        const Int at = s.any("at" + std::to_string(slice), 0, LOGITS_MOST + slice),
                  end = s.any("end" + std::to_string(slice), 0, LOGITS_MOST);

        s.claim(implies(at < slices * slice, at * 8 + 8 <= p.sum));
        s.claim(p.part >= p.sum + SAMPLE_BINS * 8 &&
                p.all >= p.part + slices * SAMPLE_FOUND &&
                p.count >= p.all + SAMPLE_TOTALS && p.end >= p.count + SAMPLE_BINS * 4);
        s.claim(implies(end < slices * SAMPLE_BINS,
                        p.end + end * 2 + 2 <= (s.mutant ? p.bytes - 16 : p.bytes)));
        s.claim(p.bytes <= most && p.bytes % 16 == 0);
        s.claim(p.sum % 8 == 0 && p.part % 8 == 0 && p.all % 8 == 0 && p.count % 4 == 0 &&
                p.end % 2 == 0 && row_start(row, most) % 16 == 0);
    }
}

/* Each logit is number i of one thread of one slice, and its key's place in the slice's list is
 * nobody else's: what is before and in a bin comes to a slice at most, which 16 bits hold. */
void
logits_once(const Config &, Statement &s)
{
    for (const int each : forms) {
        const std::string name = std::to_string(each);
        const int slice = each * SAMPLE_THREADS;
        const Int n = s.any("n" + name, 1, LOGITS_MOST), slices = ceil_div(n, slice);
        const auto b = s.two("slice" + name, 0, slices - 1),
                   i = s.two("i" + name, 0, each - 1);
        const auto t = s.two("t" + name, 0, SAMPLE_THREADS - 1);
        const Int want = s.any("want" + name, 0, n - 1);
        const auto at = [&](Int block, Int one, Int thread) {
            return Int(grid_item(block, s.mutant ? slice - 1 : slice,
                                 grid_item(one, SAMPLE_THREADS, thread)));
        };
        const auto place = s.two("place" + name, 0, slice - 1);

        s.alone(at(b.x, i.x, t.x), at(b.y, i.y, t.y),
                b.x == b.y && i.x == i.y && t.x == t.y);
        s.claim(want / slice < slices && at(want / slice, want % slice / SAMPLE_THREADS,
                                            want % SAMPLE_THREADS) == want);
        s.alone(row_start(b.x, slice) + place.x, row_start(b.y, slice) + place.y,
                b.x == b.y && place.x == place.y);
        s.claim(Int(slice) < 1 << 16);
    }
}

/* Bins are one thread's each, in one block and where slices share the work of emptying them. */
void
bins_once(const Config &, Statement &s)
{
    const auto t = s.two("t", 0, SAMPLE_THREADS - 1), i = s.two("i", 0, SAMPLE_OWN - 1);
    const Int bin = s.any("bin", 0, SAMPLE_BINS - 1);
    const Int y = sample_bin(t.y, i.y);

    s.alone(sample_bin(t.x, i.x), s.mutant ? y - 1 : y, t.x == t.y && i.x == i.y);
    s.claim(sample_bin(t.x, i.x) < SAMPLE_BINS);
    s.claim(sample_bin(bin / SAMPLE_OWN, bin % SAMPLE_OWN) == bin);
    for (int slices = 1; slices <= SAMPLE_BINS / SAMPLE_THREADS; slices++) {
        const std::string name = std::to_string(slices);
        const auto b = s.two("slice" + name, 0, slices - 1),
                   turn = s.two("turn" + name, 0, SAMPLE_BINS);
        const auto at = [&](Int block, Int thread, Int go) {
            return grid_item(block, SAMPLE_THREADS, thread) +
                   go * (slices * SAMPLE_THREADS);
        };

        s.alone(at(b.x, t.x, turn.x), at(b.y, t.y, turn.y),
                b.x == b.y && t.x == t.y && turn.x == turn.y);
        s.claim(at(bin / SAMPLE_THREADS % slices, bin % SAMPLE_THREADS,
                   bin / (slices * SAMPLE_THREADS)) == bin);
    }
}

/* Each member of a bin, in each slice's list, is read by one thread: READERS of them a slice. */
void
members_once(const Config &, Statement &s)
{
    const Int slices = ceil_div(LOGITS_MOST, forms[0] * SAMPLE_THREADS);
    const Int from = s.any("from", 0, forms[1] * SAMPLE_THREADS);
    const auto t = s.two("t", 0, SAMPLE_THREADS - 1), turn = s.two("turn", 0, slices),
               go = s.two("go", 0, forms[1] * SAMPLE_THREADS);
    const Int slice = s.any("slice", 0, slices - 1);
    const Int want = s.any("want", 0, forms[1] * SAMPLE_THREADS);
    const int step = SAMPLE_THREADS / SAMPLE_READERS, readers = SAMPLE_READERS;
    const auto list = [&](Int thread, Int k) { return thread / readers + k * step; };
    const auto place = [&](Int thread, Int k) {
        return from + thread % readers + k * (s.mutant ? readers - 1 : readers);
    };

    s.claim(implies(list(t.x, turn.x) == list(t.y, turn.y) &&
                        place(t.x, go.x) == place(t.y, go.y),
                    t.x == t.y && turn.x == turn.y && go.x == go.y));
    s.claim(list(slice % step * readers + want % readers, slice / step) == slice &&
            place(slice % step * readers + want % readers, want / readers) == from + want);
}

} // namespace

const std::vector<Obligation> sampling = {
    {"sample", "work-apart", "parts of a row's scratch memory are apart, aligned, inside",
     false, work_apart},
    {"sample", "logits-once", "each logit is one thread's, its key has a place", false,
     logits_once},
    {"sample", "bins-once", "each bin is one thread's", false, bins_once},
    {"sample", "members-once", "each member of a bin is read by one thread", false,
     members_once},
};

} // namespace verify
