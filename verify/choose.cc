/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The indexer on tensor cores (gpu/cuda/choose.cu). scores_kernel: queries to shared memory, a
 * barrier, then warps go over keys. best_kernel (best.cu): a block a query, which looks at the
 * largest score of each unit first; its stages are in stages.cc.
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

enum { GRID_MOST = 264 /* twice the multiprocessors */, SHARED_MOST = 227 * 1024 };

Int
entries(const Config &k)
{
    return Int(k.c.max_positions) / MODEL_CSA_RATIO;
}

/* Piece i of what threads fill is 16 bytes of the queries, which the mma loop finds again by
 * (eight heads, group, lane), whatever the heads that are there; words of weights are pairs. */
void
queries_staged(const Config &k, Statement &s)
{
    const int heads = k.c.index_n_heads, groups = k.c.index_head_dim / FP4_GROUP;
    const Int eights = choose_eights(heads), all = eights * groups * CHOOSE_LANES;
    const auto i = s.two("i", 0, all - 1);
    const Int eight = i.x / CHOOSE_LANES / groups, group = i.x / CHOOSE_LANES % groups;
    const Int lane = i.x % CHOOSE_LANES, head = eight * 8 + lane / 4;
    const Int row = fp4_row(groups * FP4_GROUP), from = group * 16 + lane % 4 * 4;

    s.claim(choose_query(eight, groups, group, lane) == i.x && eight < eights);
    s.claim(head < eights * 8 && eights * 8 < heads + 16 && eights % 2 == 0);
    /* codes of a query's row, then its scales */
    s.claim(from + 4 <= groups * 16 && groups * 16 + group < row - (s.mutant ? 1 : 0));
    if (groups % 4 == 0)
        s.claim((row_start(head, row) + from) % 4 == 0);
    /* the weights that the products read are those of their two heads */
    s.claim(eight * 4 + lane % 4 < eights * 4);
    s.claim((eight * 4 + lane % 4) * 2 == eight * 8 + mma_col(lane, 0));
    s.claim((all + eights) * 4 * 16 + CHOOSE_WARPS * 4 * CHOOSE_TERMS * 16 <= SHARED_MOST);
    s.claim(row == Int(kv_index_row_bytes(k.c.index_head_dim)));
}

/* The terms of two heads have places of their own for each four lanes; lanes that write 16 bytes at
 * once, and all that read a word, are on banks of their own. */
void
terms_apart(const Config &, Statement &s)
{
    const auto four = s.two("four", 0, 7), pair = s.two("pair", 0, 3);
    const Int x = choose_term(four.x, pair.x), y = choose_term(four.y, pair.y);
    const Int other = s.mutant ? Int(pair.y * 8 + four.y) : y; /* not apart on banks */

    s.alone(x, y, four.x == four.y && pair.x == pair.y);
    s.claim(x < CHOOSE_TERMS && x == choose_term(0, pair.x) + four.x);
    s.claim(implies(four.x / 2 == four.y / 2 && x % 8 == other % 8,
                    four.x == four.y && pair.x == pair.y));
    s.claim(implies(pair.x == pair.y && x % 8 == y % 8, four.x == four.y));
}

/* Four codes of a key are read as one word where rows are multiples of 4 bytes: then all that
 * comes in front of them is, too. */
void
keys_aligned(const Config &k, Statement &s)
{
    const int groups = k.c.index_head_dim / FP4_GROUP;
    const Int row = fp4_row(k.c.index_head_dim), per = KV_PAGE_TOKENS / MODEL_CSA_RATIO;
    const Int j = s.any("j", 0, entries(k) - 1), lane = s.any("lane", 0, 31);
    const Int g = s.any("g", 0, groups - 1);
    struct kv_layout l;
    struct err e;

    if (kv_layout_init(&l, &k.c, true, &e) == -1) {
        s.claim(Int(0) == 1);
        return;
    }
    for (size_t i = 0; i < l.n_parts; i++) {
        const struct kv_part &p = l.parts[i];

        if (p.kind != KV_PART_INDEX)
            continue;
        const Int at = Int(p.page_at) + row_start(entry_row(j, per), row);

        s.claim(at + row <= Int(p.page_at) + per * Int(p.row_bytes));
        s.claim(at + g * 16 + lane % 4 * 4 + 4 <= at + row - groups + (s.mutant ? -1 : 0));
        if (groups % 4 == 0)
            s.claim((at + g * 16 + lane % 4 * 4) % 4 == 0 && Int(l.page_bytes) % 4 == 0);
    }
    kv_layout_done(&l);
    if (s.mutant)
        s.claim(Int(groups) == 0);
}

/* Each key of each turn of the grid is one lane's, and the grid in turn has all. */
void
keys_once(const Config &k, Statement &s)
{
    for (const int grid : {1, 3, +GRID_MOST}) {
        const std::string n = std::to_string(grid);
        const int step = grid * CHOOSE_WARPS * CHOOSE_KEYS;
        const Int most = entries(k) / (CHOOSE_WARPS * CHOOSE_KEYS) + grid;
        const auto b = s.two("b" + n, 0, most), w = s.two("w" + n, 0, CHOOSE_WARPS - 1);
        const auto eight = s.two("eight" + n, 0, 7), m = s.two("m" + n, 0, 3);
        const Int turn = s.any("turn" + n, 0, entries(k) / step),
                  own = s.any("own" + n, 0, grid - 1);
        const Int j = s.any("j" + n, 0, entries(k)), r = s.any("r" + n, 0, CHOOSE_KEYS - 1);
        const auto key = [&](Int block, Int warp, Int one, Int of8) {
            return Int(choose_key(choose_first(block, warp), one, of8 * 4 + one));
        };

        /* a block's next turn is what a block that is the grid further on would do; of a key's
         * four lanes number m writes its score */
        s.claim(choose_first(own, w.x) + turn * step ==
                choose_first(own + turn * grid, w.x));
        const Int first = choose_first(b.x, w.x),
                  within = choose_key(0, m.x, eight.x * 4 + m.x);

        s.alone(first, choose_first(b.y, w.y), b.x == b.y && w.x == w.y);
        s.claim(first % CHOOSE_KEYS == 0 && within < CHOOSE_KEYS);
        s.claim(key(b.x, w.x, m.x, eight.x) == first + within);
        s.alone(within, choose_key(0, s.mutant ? m.y + 1 : m.y, eight.y * 4 + m.y),
                m.x == m.y && eight.x == eight.y);
        s.claim(choose_first(j / CHOOSE_WARPS, j % CHOOSE_WARPS) == j * CHOOSE_KEYS);
        s.claim(choose_key(0, r / 8, r % 8 * 4 + r / 8) == r);
    }
}

/* Each score of a query is in one unit, and each unit's largest one has a place behind the scores
 * and is one thread's, in ascending order of threads, places; a thread's are read by 16 bytes,
 * inside the query's, and their numbers fit in 16 bits. */
void
scores_cut_up(const Config &k, Statement &s)
{
    const Int n = s.any("n", 1, entries(k)), most = s.any("most", 1, entries(k));
    const Int j = s.any("j", 0, entries(k) - 1), tops = choose_tops(most);
    const Int unit = j / CHOOSE_UNIT, eights = (choose_units(most) + 7) / 8;

    s.assume(j < n && n <= most);
    s.claim(unit < choose_units(s.mutant ? n - 1 : n) &&
            choose_units(n) <= choose_units(most));
    s.claim(choose_tops(n) >= n && choose_tops(n) <= tops && tops % 8 == 0);
    s.claim(tops + unit / 8 * 8 + 8 <= choose_stride(most) && choose_stride(most) % 8 == 0);
    s.claim(eights * 8 == choose_stride(most) - tops);
    /* two units are 32 keys of a warp, their largest ones a word; 0s go up to whole eights */
    s.claim(CHOOSE_KEYS == 2 * CHOOSE_UNIT && tops % 2 == 0);
    s.claim(j / CHOOSE_KEYS * 2 + 1 < eights * 8);
    s.claim(choose_units(entries(k)) <= 1 << 16);
    for (const int threads : {256, 512, +CHOOSE_THREADS}) {
        const Int each = choose_each(eights, threads), at = unit / 8;
        const auto t = s.two("t" + std::to_string(threads), 0, threads - 1);
        const Int own = choose_own(t.x, each), next = choose_own(t.x + 1, each);

        s.claim(choose_own(threads, each) >= eights && next == own + each);
        s.claim(implies(at >= own && at < next && at >= choose_own(t.y, each) &&
                            at < choose_own(t.y + 1, each),
                        t.x == t.y));
    }
    s.claim(choose_each(eights, CHOOSE_THREADS) <= CHOOSE_EIGHTS);
}

} // namespace

const std::vector<Obligation> choosing = {
    {"choose", "queries-staged", "a query's codes and scales have places, found again",
     true, queries_staged},
    {"choose", "terms-apart", "terms have places, written and read on banks of their own",
     false, terms_apart},
    {"choose", "keys-aligned", "words of a key's codes are aligned, inside its row", true,
     keys_aligned},
    {"choose", "keys-once", "each key is one lane's, and the grid in turn has all", true,
     keys_once},
    {"choose", "scores-cut-up", "each score is in one unit, each unit with one thread",
     true, scores_cut_up},
};

} // namespace verify
