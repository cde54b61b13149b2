/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Compressed entries: who sees which (spec 6.2), and where on which page each lies
 * (gpu/index.h, model/kvsize.h). An entry at ratio r stands for r tokens; a page holds
 * those of 128 tokens.
 */
#include "verify/formulas.hh"
#include "verify/prove.hh"

extern "C" {
#include "base/err.h"
#include "model/kvlayout.h"
#include "model/kvsize.h"
}

namespace verify
{

using namespace formula;

namespace
{

/* Calls f(layer, ratio) for each kind of layer that has entries. */
template <class F>
void
each_ratio(const Config &k, F f)
{
    int seen = 0;

    for (int l = 0; l < k.c.n_layers; l++) {
        const int r = k.c.ratio[l];

        if (r == 0 || (seen & (r == MODEL_CSA_RATIO ? 1 : 2)))
            continue;
        seen |= r == MODEL_CSA_RATIO ? 1 : 2;
        f(l, r);
    }
}

std::string
of(const char *name, int ratio)
{
    return name + std::to_string(ratio);
}

void
visible_is_spec(const Config &k, Statement &s)
{
    each_ratio(k, [&](int, int r) {
        const Int max = k.c.max_positions;
        const Int t = s.any(of("t", r), 0, max - 1), j = s.any(of("j", r), 0, max);
        const Int n = s.mutant ? t / r : entries_visible(t, r);
        const Bool spec = (j + 1) * r <= t + 1;

        s.claim(implies(j < n, spec) && implies(spec, j < n));
    });
}

/* No token of a visible entry lies behind the query. */
void
causal(const Config &k, Statement &s)
{
    each_ratio(k, [&](int, int r) {
        const Int max = k.c.max_positions;
        const Int t = s.any(of("t", r), 0, max - 1), j = s.any(of("j", r), 0, max);
        const Int i = s.any(of("i", r), 0, r - 1);

        s.assume(s.mutant ? j <= entries_visible(t, r) : j < entries_visible(t, r));
        s.claim(j * r + i <= t);
    });
}

void
entry_is_alone(const Config &k, Statement &s)
{
    each_ratio(k, [&](int, int r) {
        const Int entries = Int(k.c.max_positions) / r, per = KV_PAGE_TOKENS / r;
        const Int i = s.any(of("i", r), 0, entries - 1);
        const Int j = s.any(of("j", r), 0, entries - 1);
        const Int row_i = s.mutant ? i % (per - (r == MODEL_CSA_RATIO ? 1 : 0))
                                   : entry_row(i, per);

        s.assume(i != j);
        s.claim(entry_page(i, per) != entry_page(j, per) || row_i != entry_row(j, per));
        if (s.mutant && r != MODEL_CSA_RATIO)
            s.assume(i == 0);
    });
}

/* An entry lies on the page of its tokens: so a page is whole when its 128 tokens have
 * come. */
void
entry_on_its_page(const Config &k, Statement &s)
{
    each_ratio(k, [&](int, int r) {
        const Int per = KV_PAGE_TOKENS / r;
        const Int j = s.any(of("j", r), 0, Int(k.c.max_positions) / r - 1);
        const Int i = s.any(of("i", r), 0, s.mutant ? r : r - 1);

        s.claim(entry_page(j, per) == page_of(j * r + i, KV_PAGE_TOKENS));
    });
}

/* Rows of all layers, main and index, as kv_layout_init() places them: any two bytes of
 * different rows are different bytes of the page. */
void
rows_are_disjoint(const Config &k, Statement &s)
{
    struct kv_layout l;
    struct err e;
    Int behind = 0;

    if (kv_layout_init(&l, &k.c, true, &e) == -1) {
        s.claim(behind == 1);
        return;
    }
    for (size_t i = 0; i < l.n_parts; i++) {
        const struct kv_part &p = l.parts[i];
        const std::string n = std::to_string(i);

        if (p.kind != KV_PART_MAIN && p.kind != KV_PART_INDEX)
            continue;
        const Int per = KV_PAGE_TOKENS / p.ratio, j = s.any("j" + n, 0, 262143);
        const Int b = s.any("b" + n, 0, p.row_bytes - 1);
        const Int at = Int(p.page_at) + entry_row(j, per) * p.row_bytes + b;
        const Int end = Int(p.page_at) + per * p.row_bytes;

        s.claim(at >= behind && at < (s.mutant ? end - 1 : end));
        behind = end;
    }
    s.claim(behind == Int(l.page_bytes));
    kv_layout_done(&l);
}

/* What kernels keep in an int: entries of the longest session, and places in a page. */
void
fits_int(const Config &k, Statement &s)
{
    const Int most = k.c.max_positions < 1 << 20 ? Int(1 << 20) : Int(k.c.max_positions);
    const Int int_max = s.mutant ? Int(INT16_MAX) : Int(INT32_MAX);

    each_ratio(k, [&](int, int r) {
        const Int t = s.any(of("t", r), 0, most - 1);

        s.claim(entries_visible(t, r) + k.c.window <= int_max);
    });
    s.claim(Int(kv_page_bytes(&k.c)) <= int_max);
}

} // namespace

const std::vector<Obligation> pages = {
    {"pages", "visible-is-spec", "entry j is visible at t iff (j + 1) r <= t + 1", true,
     visible_is_spec},
    {"pages", "causal", "no token of a visible entry lies behind the query", true, causal},
    {"pages", "entry-is-alone", "two entries of a layer never share a row", true,
     entry_is_alone},
    {"pages", "entry-on-its-page", "an entry lies on the page of its tokens", true,
     entry_on_its_page},
    {"pages", "rows-are-disjoint", "rows of all layers are disjoint and inside the page",
     true, rows_are_disjoint},
    {"pages", "fits-int", "counts that kernels keep in an int fit, at the longest context",
     true, fits_int},
};

} // namespace verify
