/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Experts around their matrices (gpu/cuda/moe.cu): who scores what, where the rows of each expert
 * go, element by element over rows of places. A step has up to 1,024 rows.
 */
#include "verify/formulas.hh"
#include "verify/prove.hh"

namespace verify
{

using namespace formula;

namespace
{

enum { STEP_ROWS = 1024, FEW_ROWS = 8, MAX_EXPERTS = 512, THREADS = 256, MAX_USED = 32 };

/* route_kernel: each score of few rows is one thread's; choices and weights of a row do not run
 * into the next one's; a token's experts are inside its table. */
void
choices_apart(const Config &k, Statement &s)
{
    const int n = k.c.n_experts, used = k.c.n_experts_used;
    const auto i = s.two("i", 0, FEW_ROWS * n - 1);
    const auto row = s.two("row", 0, STEP_ROWS - 1), c = s.two("choice", 0, used - 1);
    const Int token = s.any("token", 0, k.c.vocab_size - 1), x = s.any("x", 0, n - 1);
    const Int at = row_start(row.x, used) + c.x;

    s.claim(implies(piece_row(i.x, n) == piece_row(i.y, n) &&
                        piece_at(i.x, n, 1) == piece_at(i.y, n, 1),
                    i.x == i.y));
    s.claim(piece_row(i.x, n) < FEW_ROWS && piece_at(i.x, n, 1) < n && n <= MAX_EXPERTS);
    s.claim(row_start(piece_row(i.x, n), n) + piece_at(i.x, n, 1) == i.x);
    s.alone(at, row_start(row.y, used) + (s.mutant ? c.y + 1 : c.y),
            row.x == row.y && c.x == c.y);
    s.claim(at < STEP_ROWS * used && used <= MAX_USED);
    s.claim(row_start(token, used) + c.x < Int(k.c.vocab_size) * used);
    s.claim(row_start(row.x, n) + x < Int(STEP_ROWS) * n);
}

/* assign: an expert's places begin where those of the experts before it end, and of its rows each
 * is counted once; so no two rows get one place, and all places are taken. before: rows of the
 * same expert in front. */
void
places_once(const Config &k, Statement &s)
{
    const Int most = Int(STEP_ROWS) * k.c.n_experts_used;
    const auto x = s.two("x", 0, k.c.n_experts - 1), count = s.two("count", 1, most);
    const auto first = s.two("first", 0, most), before = s.two("before", 0, most);
    const Int n = s.any("n", 1, most), i = s.any("i", 0, most);
    const Int place = moe_place(first.x, before.x);

    s.assume(implies(x.x == x.y, first.x == first.y && count.x == count.y));
    s.assume(implies(x.x < x.y, first.x + count.x <= first.y));
    s.assume(implies(x.y < x.x, first.y + count.y <= first.x));
    s.assume(first.x + count.x <= n && first.y + count.y <= n && before.x < count.x &&
             (s.mutant ? before.y <= count.y : before.y < count.y));
    s.alone(place, moe_place(first.y, before.y), x.x == x.y && before.x == before.y);
    s.claim(place < n && place >= first.x && place < first.x + count.x);
    /* a place's row, of `used` choices each */
    s.claim(implies(i < n, i / k.c.n_experts_used < STEP_ROWS));
    /* a warp's part begins where the one before it ends, whole warps apart, and the last one ends
     * behind all */
    const int warps = 16;
    const Int part = s.any("part", 0, warps - 1);

    s.claim(moe_part(n, warps, 0) == 0 && moe_part(n, warps, warps) >= n);
    s.claim(moe_part(n, warps, part) <= moe_part(n, warps, part + 1) &&
            moe_part(n, warps, part) % 32 == 0);
}

/* swiglu_kernel, combine_kernel, add_rows_kernel: grids of (columns, rows); each element of each
 * row is one thread's. Rows: places of experts, those of the step beside. */
void
elements_once(const Config &k, Statement &s)
{
    const Int rows = Int(STEP_ROWS) * (k.c.n_experts_used + 1);

    for (const int dim : {k.c.moe_inter, k.c.hidden}) {
        const std::string n = std::to_string(dim);
        const Int blocks = ceil_div(dim, THREADS);
        const auto b = s.two("b" + n, 0, blocks - 1), t = s.two("t" + n, 0, THREADS - 1);
        const auto row = s.two("row" + n, 0, rows - 1);
        const Int want = s.any("c" + n, 0, dim - 1);
        const Int x = grid_item(b.x, THREADS, t.x);
        const Int y = grid_item(b.y, THREADS, t.y);

        s.claim(implies(x < dim && y < dim &&
                            row_start(row.x, dim) + x ==
                                row_start(row.y, s.mutant ? dim - 1 : dim) + y,
                        row.x == row.y && b.x == b.y && t.x == t.y));
        s.claim(implies(x < dim, row_start(row.x, dim) + x < rows * dim));
        s.claim(want / THREADS < blocks &&
                grid_item(want / THREADS, THREADS, want % THREADS) == want);
    }
}

/* experts_row_kernel: each output of each choice is one thread's of one block, and the two sums that
 * it acts on are of that output, one of each matrix, all their parts. The shared expert's row lies
 * behind them. */
void
outputs_once(const Config &k, Statement &s)
{
    const int used = k.c.n_experts_used, dim = k.c.moe_inter;

    for (int split = 1; split < PACK_WARPS; split *= 2) {
        const std::string n = std::to_string(split);
        const int half = PACK_WARPS / 2 / split, outs = half * PACK_M;
        const Int blocks = ceil_div(dim, outs);
        const auto at = s.two("at" + n, 0, blocks * used - 1);
        const auto t = s.two("t" + n, 0, (s.mutant ? outs + 1 : outs) - 1);
        const Int choice = s.any("choice" + n, 0, used - 1), o = s.any("o" + n, 0, dim - 1);
        const Int second = s.any("second" + n, 0, 1),
                  part = s.any("part" + n, 0, split - 1);
        const auto output = [&](Int b, Int thread) {
            return Int(packed_pair_output(piece_at(b, blocks, 1), half, thread));
        };
        const auto place = [&](Int b, Int thread) {
            return row_start(piece_row(b, blocks), dim) + output(b, thread);
        };
        const Int own = output(at.x, t.x), sum = t.x + second * outs;
        const Int warp = sum / PACK_M * split + part;

        s.claim(packed_pair_half(split) == half);
        s.claim(implies(own < dim && output(at.y, t.y) < dim &&
                            place(at.x, t.x) == place(at.y, t.y),
                        at.x == at.y && t.x == t.y));
        s.claim(implies(own < dim, place(at.x, t.x) < row_start(used, dim)));
        s.claim(o / outs < blocks &&
                place(choice * blocks + o / outs, o % outs) == row_start(choice, dim) + o);
        s.claim(warp < PACK_WARPS && packed_part(warp, split) == part &&
                packed_pair_matrix(warp) == second);
        s.claim(packed_pair_tile(piece_at(at.x, blocks, 1), warp, split) * PACK_M +
                    sum % PACK_M ==
                own);
    }
}

} // namespace

const std::vector<Obligation> experts = {
    {"experts", "choices-apart", "scores, choices and weights of rows are apart, inside",
     true, choices_apart},
    {"experts", "places-once", "each row of each expert has a place, and of its own", true,
     places_once},
    {"experts", "elements-once", "each element of each row is one thread's", true,
     elements_once},
    {"experts", "row-outputs", "one row: each output is one thread's, of its two sums",
     true, outputs_once},
};

} // namespace verify
