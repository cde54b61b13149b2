/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hyper-connections (gpu/cuda/mhc.cu, streams*.cu, streams.cuh): mixing coefficients, streams, and
 * the parts of the mixing matrix, of which streams_mix_kernel leaves one for each chunk of columns
 * and mix_of and part_sum add them up. Stages: stages.cc.
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
    STEP_ROWS = 1024,
    MAX_HC = 8,
    MIX_WARPS = 8,
    IN_THREADS = 512,
};

/* Lanes of a stream in streams_mix_kernel, outputs of a warp. */
int
lanes_of(const Config &k)
{
    return k.c.hc_mult == 4 ? 8 : 32 / MAX_HC;
}

int
turns_of(const Config &k)
{
    const int hc = k.c.hc_mult == 4 ? 4 : +MAX_HC;

    return (2 * hc + hc * hc + MIX_WARPS - 1) / MIX_WARPS;
}

/* Turns of a thread of streams_in_kernel, and how many fours of an output's parts a lane adds up. */
int
in_turns(const Config &k)
{
    const int turns = (k.c.hidden + IN_THREADS * 8 - 1) / (IN_THREADS * 8);

    return turns > 2 ? 4 : turns;
}

int
fours_of(const Config &k)
{
    return in_turns(k) * (k.c.hc_mult == 4 ? 4 : +MAX_HC) / 4;
}

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

/* streams_mix_kernel: a lane has 4 columns of one stream, of the row that is its warp's turn. */
void
columns_once(const Config &k, Statement &s)
{
    const int hc = k.c.hc_mult, dim = k.c.hidden, lanes = lanes_of(k);
    const Int chunks = mix_chunks(dim, lanes);
    const auto b = s.two("b", 0, chunks - 1), lane = s.two("lane", 0, 31);
    const auto col = [&](Int block, Int thread) {
        return Int(mix_column(block, s.mutant ? lanes + 1 : lanes, thread));
    };
    const auto stream = [&](Int thread) { return thread / lanes; };
    const Bool both = stream(lane.x) < hc && col(b.x, lane.x) < dim &&
                      stream(lane.y) < hc && col(b.y, lane.y) < dim;
    const Int want = s.any("want", 0, hc - 1), c = s.any("c", 0, dim / 4 - 1);
    const Int thread = want * lanes + c % lanes;
    /* streams_mix_row_kernel: one column a lane, of the first four warps */
    const auto warp = s.two("warp", 0, 3);
    const Int one = s.any("one", 0, dim - 1), who = want * lanes + one % lanes;
    const auto col_of = [&](Int block, Int w, Int t) {
        return Int(mix_column(block, lanes, 0)) + w * lanes + t % lanes;
    };

    s.claim(implies(stream(lane.x) == stream(lane.y) &&
                        col_of(b.x, warp.x, lane.x) == col_of(b.y, warp.y, lane.y),
                    b.x == b.y && warp.x == warp.y && lane.x == lane.y));
    s.claim(who < 32 && stream(who) == want &&
            col_of(one / (lanes * 4), one / lanes % 4, who) == one);
    s.claim(implies(both && stream(lane.x) == stream(lane.y) &&
                        col(b.x, lane.x) / 4 == col(b.y, lane.y) / 4,
                    b.x == b.y && lane.x == lane.y));
    s.claim(c / lanes < chunks && thread < 32 && stream(thread) == want &&
            col(c / lanes, thread) == c * 4);
}

/* Rows: groups of blocks, turns, warps; each once. */
void
mix_rows_once(const Config &, Statement &s)
{
    const Int want = s.any("want", 0, STEP_ROWS - 1), n = s.any("n", 1, STEP_ROWS);

    for (int turns = 1; turns <= STEP_ROWS / MIX_WARPS; turns *= 2) {
        const std::string of = std::to_string(turns);
        const int rows = turns * MIX_WARPS, most = s.mutant ? turns : turns - 1;
        const auto y = s.two("y" + of, 0, STEP_ROWS / MIX_WARPS - 1);
        const auto turn = s.two("turn" + of, 0, most);
        const auto warp = s.two("warp" + of, 0, MIX_WARPS - 1);

        s.alone(y.x * rows + turn.x * MIX_WARPS + warp.x,
                y.y * rows + turn.y * MIX_WARPS + warp.y,
                y.x == y.y && turn.x == turn.y && warp.x == warp.y);
        s.claim(implies(want < n, want / rows < Int(ceil_div(n, rows)) &&
                                      want % rows / MIX_WARPS < turns));
    }
}

/* 16 bytes of fn and 8 of a stream at a time, aligned, of one stream, inside. */
void
columns_aligned(const Config &k, Statement &s)
{
    const int hc = k.c.hc_mult, dim = k.c.hidden, width = hc * dim,
              n_mix = 2 * hc + hc * hc, lanes = lanes_of(k);
    const Int o = s.any("o", 0, n_mix - 1), lane = s.any("lane", 0, 31);
    const Int b = s.any("b", 0, Int(mix_chunks(dim, lanes)) - 1);
    const Int row = s.any("row", 0, STEP_ROWS - 1);
    const Int c = mix_column(b, lanes, lane), stream = lane / lanes;
    const Int from = row_start(o, width) + stream_cell(stream, dim, c);
    const Int x = row_start(row_start(row, hc), dim) + c + row_start(stream, dim);

    s.assume(stream < hc && c < dim);
    s.claim(from * 4 % 16 == 0 && x * 2 % 8 == 0 && c + 4 <= dim - (s.mutant ? 4 : 0));
    s.claim(from + 4 <= Int(n_mix) * width && x + 4 <= Int(STEP_ROWS) * width);
    s.claim(dim % 4 == 0 && n_mix <= turns_of(k) * MIX_WARPS);
}

/* Parts of the mix: each is one warp's of one block, or the sum of squares; all inside and, when
 * they are added up, found again. */
void
parts_once(const Config &k, Statement &s)
{
    const int hc = k.c.hc_mult, n_mix = 2 * hc + hc * hc, n = n_mix + 1;
    const Int chunks = mix_chunks(k.c.hidden, lanes_of(k));
    const auto row = s.two("row", 0, STEP_ROWS - 1), b = s.two("b", 0, chunks - 1);
    const auto warp = s.two("warp", 0, MIX_WARPS - 1), turn = s.two("turn", 0, 9);
    const Int o_x = warp.x + turn.x * MIX_WARPS, o_y = warp.y + turn.y * MIX_WARPS;
    const auto part = [&](Int r, Int o, Int block) {
        return Int(mix_part(r, o, n, chunks, block));
    };

    s.claim(implies(o_x < n_mix && o_y < (s.mutant ? n_mix + 2 : n_mix) &&
                        part(row.x, o_x, b.x) == part(row.y, o_y, b.y),
                    row.x == row.y && b.x == b.y && warp.x == warp.y && turn.x == turn.y));
    s.claim(
        implies(o_x < n_mix, part(row.x, o_x, b.x) != part(row.y, n_mix, b.y) &&
                                 part(row.x, n_mix, b.x) < Int(STEP_ROWS) * chunks * n));
    /* by fours, of which a lane of the warp that adds them up has fours_of(k) */
    const Int four = s.any("four", 0, Int(chunks) / 4 - 1);
    const Int lane = four % 32, turn_of = four / 32;

    s.claim(part(row.x, o_x, b.x) == part(row.x, o_x, 0) + b.x && chunks % 4 == 0 &&
            part(row.x, o_x, 0) * 4 % 16 == 0);
    s.claim(turn_of < fours_of(k) && lane + turn_of * 32 == four);
}

/* streams_in_kernel: 8 columns a thread at a time, aligned; a warp's sum of squares has its place. */
void
vectors_once(const Config &k, Statement &s)
{
    const int hc = k.c.hc_mult, dim = k.c.hidden, vectors = dim / 8, turns = in_turns(k);
    const auto t = s.two("t", 0, IN_THREADS - 1), turn = s.two("turn", 0, turns - 1);
    const Int row = s.any("row", 0, STEP_ROWS - 1), j = s.any("j", 0, hc - 1);
    const Int v = s.any("v", 0, vectors - (s.mutant ? 0 : 1));
    const Int x = t.x + turn.x * IN_THREADS;
    const Int at = row_start(row_start(row, hc), dim) + row_start(j, dim) + x * 8;

    s.alone(x, t.y + turn.y * IN_THREADS, t.x == t.y && turn.x == turn.y);
    s.claim(v < vectors && v < turns * IN_THREADS && dim % 8 == 0);
    s.claim(implies(x < vectors, at * 2 % 16 == 0 && at + 8 <= Int(STEP_ROWS) * hc * dim));
    s.claim(
        implies(x < vectors, x * 8 + 8 <= dim && (row_start(row, dim) + x * 8) % 8 == 0));
    /* a warp has 32 neighbours, 16 of which share a scale: 128 columns */
    s.claim(x / 32 == t.x / 32 + turn.x * (IN_THREADS / 32) && x / 16 == x * 8 / 128);
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
    {"streams", "columns-once", "each column of each stream is one lane's", true,
     columns_once},
    {"streams", "mix-rows-once", "each row of streams is one warp's of one block", false,
     mix_rows_once},
    {"streams", "columns-aligned",
     "loads of fn and streams: aligned, inside, of one stream", true, columns_aligned},
    {"streams", "parts-once", "each part of the mix is one warp's, and found again", true,
     parts_once},
    {"streams", "vectors-once", "vectors of a row of streams are one thread's, aligned",
     true, vectors_once},
    {"streams", "lines-inside", "lanes hear from their own line of comb", false,
     lines_inside},
};

} // namespace verify
