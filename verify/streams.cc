/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hyper-connections (gpu/cuda/mhc.cu, streams.cu, streams.cuh): mixing coefficients, streams, and
 * the parts of the mixing matrix, of which streams_mix_kernel leaves one for each chunk of 64
 * columns and streams_in_kernel adds them up. Stages: stages.cc.
 */
#include "verify/formulas.hh"
#include "verify/prove.hh"

namespace verify
{

using namespace formula;

namespace
{

enum {
    MOST_ROWS = 65536,
    STEP_ROWS = 512,
    MAX_HC = 8,
    COLS = 64,
    ROWS = 4,
    MIX_WARPS = 8,
    IN_THREADS = 512,
    IN_VECTORS = 4,
};

/* Mixing coefficients: pre, post, comb follow one another and fill a row of n_mix; a line
 * of comb has each element of its row or column once. */
void
mix_parts(const Config &k, Statement &s)
{
    const int hc = k.c.hc_mult, all = 2 * hc + hc * hc;
    const Int pre = s.any("pre", 0, hc - 1), post = s.any("post", 0, hc - 1);
    const auto i = s.two("i", 0, hc * hc - 1), j = s.two("j", 0, hc - 1);

    s.claim(pre < mix_post(hc, post) && mix_post(hc, post) < mix_comb(hc, i.x));
    s.claim(mix_comb(hc, i.x) < (s.mutant ? all - 1 : all));
    s.claim(implies(mix_comb(hc, i.x) == mix_comb(hc, i.y), i.x == i.y));
    for (const int step : {1, hc}) {
        const auto at = [&](Int of, Int n) {
            return Int(comb_line(of, hc, step)) + n * step;
        };

        s.claim(at(i.x, j.x) >= 0 && at(i.x, j.x) < hc * hc);
        s.alone(at(i.x, j.x), at(i.x, j.y), j.x == j.y);
        s.claim(step == 1 ? at(i.x, j.x) / hc == i.x / hc : at(i.x, j.x) % hc == i.x % hc);
    }
    s.claim(Int(hc) <= MAX_HC && (Int(hc) * hc + 31) / 32 <= 2); /* v[2] of each lane */
}

/* hc_pre_kernel and hc_post_kernel: each element of each stream once, pairs aligned. */
void
streams_once(const Config &k, Statement &s)
{
    const int hc = k.c.hc_mult, dim = k.c.hidden;
    const auto i = s.two("i", 0, hc - 1), c = s.two("c", 0, dim - 1);
    const Int row = s.any("row", 0, MOST_ROWS - 1),
              pair = s.any("pair", 0, hc * dim / 2 - 1);

    s.alone(stream_cell(i.x, dim, c.x), stream_cell(i.y, dim, s.mutant ? c.y + 1 : c.y),
            i.x == i.y && c.x == c.y);
    s.claim(stream_cell(i.x, dim, c.x) < hc * dim);
    s.claim((row * hc * dim + pair * 2) * 2 % 4 == 0);
}

/* streams_mix_kernel: a thread has a column of a row with all its streams; in shared memory each
 * row has [hc][64]. `rows` of a block are 1 or 4. */
void
columns_once(const Config &k, Statement &s)
{
    const int hc = k.c.hc_mult, dim = k.c.hidden;

    for (const int rows : {1, +ROWS}) {
        const std::string n = std::to_string(rows);
        const Int blocks = ceil_div(dim, COLS), groups = ceil_div(STEP_ROWS, rows);
        const auto b = s.two("b" + n, 0, blocks - 1), y = s.two("y" + n, 0, groups - 1);
        const auto t = s.two("t" + n, 0, ROWS * COLS - 1), j = s.two("j" + n, 0, hc - 1);
        const auto col = [&](Int block, Int thread) {
            return Int(grid_item(block, COLS, piece_at(thread, COLS, 1)));
        };
        const auto row = [&](Int group, Int thread) {
            return group * rows + piece_row(thread, COLS);
        };
        const auto mine = [&](Int block, Int thread) {
            return piece_row(thread, COLS) < (s.mutant ? rows + 1 : rows) &&
                   col(block, thread) < dim;
        };
        const Int width = hc * dim;
        const Int at_x = row_start(row(y.x, t.x), width) + row_start(j.x, dim) +
                         col(b.x, t.x);
        const Int at_y = row_start(row(y.y, t.y), width) + row_start(j.y, dim) +
                         col(b.y, t.y);
        const auto cell = [&](Int thread, Int stream) {
            return Int(piece_row(thread, COLS)) * (MAX_HC * COLS) +
                   stream_cell(stream, COLS, piece_at(thread, COLS, 1));
        };
        const Int want_row = s.any("row" + n, 0, STEP_ROWS - 1),
                  c = s.any("c" + n, 0, dim - 1);
        const Int thread = want_row % rows * COLS + c % COLS;

        const Bool both = mine(b.x, t.x) && mine(b.y, t.y);
        const Int line_x = row(y.x, t.x) * hc + j.x, line_y = row(y.y, t.y) * hc + j.y;

        /* one place: one line and column; one line: one row and stream; one row and column: one
         * thread */
        s.claim(at_x == line_x * dim + col(b.x, t.x) &&
                at_y == line_y * dim + col(b.y, t.y));
        s.claim(
            implies(both && line_x * dim + col(b.x, t.x) == line_y * dim + col(b.y, t.y),
                    line_x == line_y && col(b.x, t.x) == col(b.y, t.y)));
        s.claim(implies(line_x == line_y, row(y.x, t.x) == row(y.y, t.y) && j.x == j.y));
        s.claim(implies(both && col(b.x, t.x) == col(b.y, t.y) &&
                            row(y.x, t.x) == row(y.y, t.y),
                        b.x == b.y && y.x == y.y && t.x == t.y));
        s.alone(cell(t.x, j.x), cell(t.y, j.y), t.x == t.y && j.x == j.y);
        s.claim(cell(t.x, j.x) < ROWS * MAX_HC * COLS && hc <= MAX_HC);
        s.claim(c / COLS < blocks && want_row / rows < groups && thread < ROWS * COLS &&
                col(c / COLS, thread) == c && row(want_row / rows, thread) == want_row);
    }
}

/* Its products: 16 bytes of fn at a time, aligned, of one stream, inside; in front of each column
 * the one of x it goes with. */
void
columns_aligned(const Config &k, Statement &s)
{
    const int hc = k.c.hc_mult, dim = k.c.hidden, width = hc * dim,
              n_mix = 2 * hc + hc * hc;
    const Int o = s.any("o", 0, n_mix - 1), lane = s.any("lane", 0, 31);
    const Int turn = s.any("turn", 0, MAX_HC * COLS / 128 - 1);
    const Int b = s.any("b", 0, Int(ceil_div(dim, COLS)) - 1);
    const Int at = lane * 4 + turn * 128, c = b * COLS + piece_at(at, COLS, 1);
    const Int from = row_start(o, width) + stream_cell(piece_row(at, COLS), dim, 0) + c;

    s.assume(at < hc * COLS && c < dim);
    s.claim(from * 4 % 16 == 0 && c + 4 <= dim - (s.mutant ? 4 : 0));
    s.claim(from + 4 <= Int(n_mix) * width && at % COLS + 4 <= COLS);
    s.claim(from == row_start(o, width) + piece_row(at, COLS) * dim + c);
    s.claim(dim % 4 == 0 && n_mix <= 10 * MIX_WARPS);
}

/* Parts of the mix: each is one warp's of one block, the sum of squares is thread 0's, all inside
 * and, when they are added up, found again. */
void
parts_once(const Config &k, Statement &s)
{
    const int hc = k.c.hc_mult, n_mix = 2 * hc + hc * hc, n = n_mix + 1;
    const Int chunks = ceil_div(k.c.hidden, COLS);
    const auto row = s.two("row", 0, STEP_ROWS - 1), b = s.two("b", 0, chunks - 1);
    const auto warp = s.two("warp", 0, MIX_WARPS - 1), turn = s.two("turn", 0, 9);
    const Int o_x = warp.x + turn.x * MIX_WARPS, o_y = warp.y + turn.y * MIX_WARPS;
    const auto part = [&](Int r, Int block) {
        return Int(row_start(row_start(r, chunks) + block, n));
    };

    s.claim(implies(o_x < n_mix && o_y < (s.mutant ? n_mix + 2 : n_mix) &&
                        part(row.x, b.x) + o_x == part(row.y, b.y) + o_y,
                    row.x == row.y && b.x == b.y && warp.x == warp.y && turn.x == turn.y));
    s.claim(
        implies(o_x < n_mix, part(row.x, b.x) + o_x != part(row.y, b.y) + n_mix &&
                                 part(row.x, b.x) + n_mix < Int(STEP_ROWS) * chunks * n));
    s.claim(part(row.x, b.x) == row_start(row_start(row.x, chunks), n) + row_start(b.x, n));
}

/* streams_in_kernel: 8 columns a thread at a time, all of them within four turns, aligned. */
void
vectors_once(const Config &k, Statement &s)
{
    const int hc = k.c.hc_mult, dim = k.c.hidden, vectors = dim / 8;
    const auto t = s.two("t", 0, IN_THREADS - 1), turn = s.two("k", 0, IN_VECTORS - 1);
    const Int row = s.any("row", 0, STEP_ROWS - 1), j = s.any("j", 0, hc - 1);
    const Int v = s.any("v", 0, vectors - (s.mutant ? 0 : 1));
    const Int x = t.x + turn.x * IN_THREADS;
    const Int at = row_start(row_start(row, hc), dim) + row_start(j, dim) + x * 8;

    s.alone(x, t.y + turn.y * IN_THREADS, t.x == t.y && turn.x == turn.y);
    s.claim(v < vectors && v / IN_THREADS < IN_VECTORS && dim % 8 == 0);
    s.claim(implies(x < vectors, at * 2 % 16 == 0 && at + 8 <= Int(STEP_ROWS) * hc * dim));
    s.claim(
        implies(x < vectors, x * 8 + 8 <= dim && (row_start(row, dim) + x * 8) % 8 == 0));
    /* lanes that share a scale are 16 neighbours: 128 columns */
    s.claim(t.x / 16 == x % IN_THREADS / 16 && x / 16 == x * 8 / 128);
}

/* sinkhorn_lane: a lane of 16 hears from lanes of its line alone; all are there. */
void
lines_inside(const Config &, Statement &s)
{
    const auto lane = s.two("lane", 0, 15), j = s.two("j", 0, 3);
    const Int in_row = Int(comb_row(lane.x, 4)) + j.x,
              in_col = comb_col(lane.x, 4) + j.x * 4;

    s.claim(in_row < 16 && in_row / 4 == lane.x / 4);
    s.claim(in_col < (s.mutant ? 15 : 16) && in_col % 4 == lane.x % 4);
    s.alone(in_row, Int(comb_row(lane.x, 4)) + j.y, j.x == j.y);
    s.alone(in_col, Int(comb_col(lane.x, 4)) + j.y * 4, j.x == j.y);
}

} // namespace

const std::vector<Obligation> streams = {
    {"streams", "mix-parts", "mixing coefficients are apart, lines of comb are lines", true,
     mix_parts},
    {"streams", "streams-once", "each element of each stream is one thread's", true,
     streams_once},
    {"streams", "columns-once", "each column of each row is one thread's, cells apart",
     true, columns_once},
    {"streams", "columns-aligned", "16-byte loads of fn: aligned, inside, of one stream",
     true, columns_aligned},
    {"streams", "parts-once", "each part of the mix is one warp's, and found again", true,
     parts_once},
    {"streams", "vectors-once", "vectors of a row of streams are one thread's, aligned",
     true, vectors_once},
    {"streams", "lines-inside", "lanes hear from their own line of comb", false,
     lines_inside},
};

} // namespace verify
