/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lists of keys (gpu/cuda/keys.cu, attn.c): a query looks at its window, oldest first, then
 * at entries. Rows of this step lie in scratch, older ones in the ring, entries in pages. A
 * step has up to 1,024 rows (CUDA_STEP_TOKENS), each at any position of the longest session.
 */
#include "verify/formulas.hh"
#include "verify/prove.hh"

extern "C" {
#include "model/kvsize.h"
}

namespace verify
{

using namespace formula;

namespace
{

enum { STEP_ROWS = 1024, SPARE = 16 /* CUDA_REWIND */ };

/* The kinds of layers: a ratio (0: none), and whether entries are picked. */
template <class F>
void
each_kind(const Config &k, F f)
{
    bool none = false, some = false, dense = false;

    for (int l = 0; l < k.c.n_layers; l++) {
        none = none || k.c.ratio[l] == 0;
        some = some || k.c.ratio[l] == MODEL_CSA_RATIO;
        dense = dense || k.c.ratio[l] == 128;
    }
    if (none)
        f(0);
    if (some)
        f(+MODEL_CSA_RATIO);
    if (dense)
        f(128);
}

Int
least(Int x, Int y)
{
    return choose(x < y, x, y);
}

/* A list fits its place: max_keys as attn.c has it, from the longest sequence of the step.
 */
void
list_inside(const Config &k, Statement &s)
{
    each_kind(k, [&](int r) {
        const std::string n = std::to_string(r);
        const Int longest = s.any("longest" + n, 1, k.c.max_positions);
        const Int t = s.any("t" + n, 0, longest - 1), window = k.c.window,
                  topk = k.c.index_topk;
        const bool picks = r == MODEL_CSA_RATIO;
        const Int visible = r > 0 ? Int(entries_visible(t, r)) : Int(0);
        const Int dense = r > 0 ? longest / r : Int(0);
        const Int most = least(longest, window) + (picks ? least(dense, topk) : dense);
        const Int list = window_keys(t, window) + entries_taken(visible, topk, picks);

        s.claim(list >= 1 && list <= (s.mutant ? most - 1 : most));
        s.claim(least(longest, window) + dense <= INT32_MAX);
    });
}

/* The window's part: key i is position first + i, from the oldest to the query's own. */
void
window_in_order(const Config &k, Statement &s)
{
    const Int t = s.any("t", 0, Int(k.c.max_positions) - 1), window = k.c.window;
    const Int n = window_keys(t, window), i = s.any("i", 0, Int(k.c.window) - 1);
    const Int p = window_first(t, window) + i;

    s.assume(s.mutant ? i <= n : i < n);
    s.claim(p <= t && t - p < window);
    s.claim(window_first(t, window) + n == t + 1);
}

/* A key of the window is a row of the step, or in the ring and there not overwritten:
 * neither by the step itself, if that keeps its rows at once (which it does with up to
 * SPARE), nor before. */
void
row_or_ring(const Config &k, Statement &s)
{
    const Int max = k.c.max_positions, window = k.c.window,
              slots = window_slots(window, SPARE);
    const Int start = s.any("start", 0, max - 1), n = s.any("n", 1, STEP_ROWS);
    const Int row0 = s.any("row0", 0, STEP_ROWS - 1), t = s.any("t", 0, max - 1);
    const Int p = s.any("p", 0, max - 1), w = s.any("w", 0, max - 1);

    s.assume(row0 + n <= STEP_ROWS && start + n <= max);
    s.assume(t >= start && t < start + n && p <= t && p >= window_first(t, window));

    const Int row = choose(p >= start, p - start + row0, row0);

    s.claim(implies(p >= start, row >= row0 && row < row0 + n && row < STEP_ROWS));
    s.claim(
        implies(p >= start, step_row(row0, choose(p >= start, p, start), start) == row));

    /* w: written behind p, by this step or by one that was taken back, either up to SPARE
     * rows */
    const Bool written = w > p && w < start + (s.mutant ? n : Int(SPARE));

    s.claim(implies(p < start && written, ring_slot(p, slots) != ring_slot(w, slots)));
    s.claim(ring_slot(p, slots) < slots);
}

/* Entries of a list lie on pages that the sequence has: those of positions up to the
 * query's. */
void
entry_has_page(const Config &k, Statement &s)
{
    each_kind(k, [&](int r) {
        if (r == 0)
            return;
        const std::string n = std::to_string(r);
        const Int t = s.any("t" + n, 0, Int(k.c.max_positions) - 1),
                  per = KV_PAGE_TOKENS / r;
        const Int j = s.any("j" + n, 0, k.c.max_positions);

        s.assume(j < entries_visible(t, r) + (s.mutant ? 1 : 0));
        s.claim(entry_page(j, per) <= page_of(t, KV_PAGE_TOKENS));
        s.claim(entry_row(j, per) < per);
        if (s.mutant)
            s.assume(t == KV_PAGE_TOKENS - 1);
    });
}

} // namespace

const std::vector<Obligation> keys = {
    {"keys", "list-inside", "no list of keys is longer than its place", true, list_inside},
    {"keys", "window-in-order", "the window's keys are its positions, each once", true,
     window_in_order},
    {"keys", "row-or-ring", "a window key is a row of the step, or still in its ring", true,
     row_or_ring},
    {"keys", "entry-has-page", "entries of a list lie on pages that are there", true,
     entry_has_page},
};

} // namespace verify
