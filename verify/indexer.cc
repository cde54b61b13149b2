/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The indexer's kernels (gpu/cuda/index.cu): index_score_kernel, whose blocks of 256
 * threads have three stages with a barrier between each (unpack, terms, sums), and
 * topk_kernel, a block a query. Launches: any number of rows up to the entries of the
 * longest session.
 */
#include "verify/formulas.hh"
#include "verify/prove.hh"

namespace verify
{

using namespace formula;

namespace
{

enum { SHARED_MOST = 227 * 1024, THREADS = SCORE_KEYS * SCORE_PARTS };

Int
entries(const Config &k)
{
    return Int(k.c.max_positions) / MODEL_CSA_RATIO;
}

/* What one stage writes and the next reads does not overlap, is aligned, and fits. */
void
plan_is_apart(const Config &k, Statement &s)
{
    const int heads = k.c.index_n_heads, dim = k.c.index_head_dim, groups = dim / FP4_GROUP;
    const struct score_plan p = score_plan_for(heads, dim);
    const Int keys = SCORE_KEYS + (s.mutant ? 1 : 0);

    s.claim(p.q == 0 && p.key >= p.q + heads * dim);
    s.claim(p.q_scale >= p.key + keys * (dim + SCORE_PAD));
    s.claim(p.key_scale >= p.q_scale + heads * groups * 4);
    s.claim(p.w >= p.key_scale + SCORE_KEYS * groups * 4);
    s.claim(p.term >= p.w + heads * 4);
    s.claim(p.bytes >= p.term + heads * SCORE_KEYS * 4 && p.bytes <= SHARED_MOST);
    s.claim(p.key % 16 == 0 && p.q_scale % 4 == 0 && p.key_scale % 4 == 0);
    s.claim(p.w % 4 == 0 && p.term % 4 == 0);
}

/* First stage: piece i of the packed rows becomes two values, or a scale. No two pieces
 * write one place, and each place is written: so the next stage reads nothing old. */
void
unpack_covers(const Config &k, Statement &s)
{
    const int dim = k.c.index_head_dim, groups = dim / FP4_GROUP;
    const Int row = fp4_row(dim), rows = SCORE_KEYS, all = rows * row;
    const auto i = s.two("i", 0, all - 1);
    const auto line = [&](Int n) { return Int(piece_row(n, row)); };
    const auto part = [&](Int n) { return Int(piece_at(n, row, 1)); };
    const auto value = [&](Int n) { return score_key(line(n), dim) + 2 * part(n); };
    const auto scale = [&](Int n) { return line(n) * groups + part(n) - dim / 2; };
    const Bool codes_x = part(i.x) < dim / 2, codes_y = part(i.y) < dim / 2;

    s.claim(implies(codes_x && codes_y && value(i.x) / 2 == value(i.y) / 2, i.x == i.y));
    s.claim(implies(!codes_x && !codes_y && scale(i.x) == scale(i.y), i.x == i.y));
    s.claim(implies(codes_x, value(i.x) >= 0 && value(i.x) % 2 == 0 &&
                                 value(i.x) + 1 < rows * (dim + SCORE_PAD)));
    s.claim(implies(!codes_x, scale(i.x) >= 0 && scale(i.x) < rows * groups));

    const Int key = s.any("key", 0, rows - 1), c = s.any("c", 0, dim - 1),
              g = s.any("g", 0, groups - 1);
    const Int of_c = key * row + c / 2, of_g = key * row + dim / 2 + g;

    s.claim(line(of_c) == key && part(of_c) < dim / 2 &&
            value(of_c) + c % 2 == score_key(key, dim) + c);
    s.claim(line(of_g) == key && of_g < (s.mutant ? all - 1 : all) &&
            scale(of_g) == key * groups + g);
}

/* Second stage: each head of each key belongs to one thread. */
void
terms_once(const Config &k, Statement &s)
{
    const int heads = k.c.index_n_heads;
    const auto t = s.two("t", 0, THREADS - 1), h = s.two("h", 0, heads - 1);
    const Int key = s.any("key", 0, SCORE_KEYS - 1);
    const auto has = [&](Int thread, Int head) {
        const Int part = thread / SCORE_KEYS;

        return head >= score_head(part, heads) &&
               (s.mutant ? head <= score_head(part + 1, heads)
                         : head < score_head(part + 1, heads));
    };
    const auto term = [](Int thread, Int head) {
        return Int(score_term(head, thread % SCORE_KEYS));
    };
    Bool someone = false;

    s.claim(implies(has(t.x, h.x) && has(t.y, h.y) && term(t.x, h.x) == term(t.y, h.y),
                    t.x == t.y && h.x == h.y));
    s.claim(term(t.x, h.x) >= 0 && term(t.x, h.x) < heads * SCORE_KEYS);
    for (int part = 0; part < SCORE_PARTS; part++)
        someone = someone || has(part * SCORE_KEYS + key, h.x);
    s.claim(someone);
}

/* Its 16-byte loads of queries and keys: aligned, and inside their rows. */
void
loads_aligned(const Config &k, Statement &s)
{
    const int heads = k.c.index_n_heads, dim = k.c.index_head_dim;
    const struct score_plan p = score_plan_for(heads, dim);
    const Int h = s.any("h", 0, heads - 1), key = s.any("key", 0, SCORE_KEYS - 1);
    const Int g = s.any("g", 0, dim / FP4_GROUP - 1), half = s.any("half", 0, 1);
    const Int at = g * FP4_GROUP + half * (s.mutant ? 8 : 16);
    const Int q = p.q + h * dim + at, y = p.key + score_key(key, dim) + at;

    s.claim(q % 16 == 0 && q + 16 <= p.key);
    s.claim(y % 16 == 0 && y + 16 <= p.key + score_key(key, dim) + dim);
}

/* Each score is one thread's of one block, and the grid has all blocks. */
void
scores_once(const Config &k, Statement &s)
{
    const Int n = s.any("n", 1, entries(k)), blocks = (n + SCORE_KEYS - 1) / SCORE_KEYS;
    const auto b = s.two("b", 0, blocks - 1), t = s.two("t", 0, SCORE_KEYS - 1);
    const Int j = s.any("j", 0, n - 1);

    s.alone(b.x * SCORE_KEYS + t.x, b.y * SCORE_KEYS + t.y, b.x == b.y && t.x == t.y);
    s.claim(j / SCORE_KEYS < (s.mutant ? n / SCORE_KEYS : blocks));
}

/* Of two chosen entries the later goes further back, and both into the list of topk: so the
 * topk that there are fill it, ascending. above, equal: what counted in front of each. */
void
chosen_ascend(const Config &k, Statement &s)
{
    const int topk = k.c.index_topk;
    const Int rank = s.any("rank", 1, topk), larger = topk - rank;
    const auto above = s.two("above", 0, larger), equal = s.two("equal", 0, entries(k));
    const auto is_above = s.two("is_above", 0, 1);
    const auto chosen = [&](Int is, Int eq) {
        return is == 1 || (s.mutant ? eq <= rank : eq < rank);
    };
    const Int x = topk_place(above.x, equal.x, rank),
              y = topk_place(above.y, equal.y, rank);

    s.assume(chosen(is_above.x, equal.x) && chosen(is_above.y, equal.y));
    s.assume(above.y >= above.x + is_above.x && equal.y >= equal.x + 1 - is_above.x);
    s.assume(above.x + is_above.x <= larger && above.y + is_above.y <= larger);
    s.claim(x < y && x >= 0 && y < topk);
}

} // namespace

const std::vector<Obligation> indexer = {
    {"index", "plan-is-apart", "parts of shared memory are aligned, disjoint, and fit",
     true, plan_is_apart},
    {"index", "unpack-covers", "unpacking writes each place of a tile of keys once", true,
     unpack_covers},
    {"index", "terms-once", "each term is made by one thread, and by one", true,
     terms_once},
    {"index", "loads-aligned", "16-byte loads are aligned and inside their rows", true,
     loads_aligned},
    {"index", "scores-once", "each score is one thread's, and the grid has all", true,
     scores_once},
    {"index", "chosen-ascend", "the topk best go to topk places, ascending", true,
     chosen_ascend},
};

} // namespace verify
