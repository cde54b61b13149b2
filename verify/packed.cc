/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Products of packed matrices (gpu/cuda/packed.cu), for each matrix of each configuration
 * that can be packed, as each kind: the layout holds each weight once, a product takes each
 * once, and the parts of outputs meet in shared memory (stages: x is staged; sums are left;
 * outputs are read from them).
 */
#include <set>
#include <tuple>

#include "verify/formulas.hh"
#include "verify/prove.hh"

extern "C" {
#include "gpu/ops/linear.h"
}

namespace verify
{

using namespace formula;

namespace
{

struct Shape {
    int out, in, loads;

    int chunks() const
    {
        return in / PACK_K;
    }

    int per_word() const /* inputs */
    {
        return 8 / loads;
    }

    std::string name() const
    {
        return std::to_string(out) + "x" + std::to_string(in) + "/" + std::to_string(loads);
    }

    bool operator<(const Shape &o) const
    {
        return std::tie(out, in, loads) < std::tie(o.out, o.in, o.loads);
    }
};

std::set<Shape>
shapes(const model_config &c)
{
    const int d = c.hidden, z = c.o_groups * c.o_lora_rank, heads = c.n_heads * c.head_dim;
    const int sizes[][2] = {{c.q_lora_rank, d},
                            {heads, c.q_lora_rank},
                            {c.head_dim, d},
                            {c.o_lora_rank, heads / c.o_groups},
                            {d, z},
                            {2 * c.head_dim, d},
                            {2 * c.index_head_dim, d},
                            {c.index_n_heads * c.index_head_dim, c.q_lora_rank},
                            {c.index_n_heads, d},
                            {c.n_experts, d},
                            {c.moe_inter, d},
                            {d, c.moe_inter},
                            {d, d},
                            {c.vocab_size, d}};
    std::set<Shape> all;

    for (const auto &size : sizes)
        for (const int loads : {1, 2, 4})
            if (size[0] % PACK_M == 0 && size[1] % PACK_K == 0)
                all.insert({size[0], size[1], loads});
    return all;
}

/* Calls f with one of the matrices of each width and kind: places depend on these alone,
 * and the number of tiles is then unknown. */
template <class F>
void
each_width(const Config &k, F f)
{
    std::set<std::pair<int, int>> seen;

    for (const Shape &m : shapes(k.c))
        if (seen.insert({m.in, m.loads}).second)
            f(m);
}

enum { MOST_TILES = (1 << 18) / PACK_M };

/* Vectors and (tile, chunk, load, lane) are one to one, inside the matrix's bytes. */
void
vectors_are_places(const Config &k, Statement &s)
{
    each_width(k, [&](const Shape &m) {
        const std::string n = m.name();
        const Int tiles = s.any("tiles" + n, 1, MOST_TILES);
        const Int all = tiles * PACK_M * m.in / (32 / m.loads);
        const Int t = s.any("tile" + n, 0, MOST_TILES - 1),
                  c = s.any("chunk" + n, 0, m.chunks() - 1);
        const Int v = s.any("load" + n, 0, m.loads - 1), l = s.any("lane" + n, 0, 31);
        const Int at = packed_vector(t, m.chunks(), c, m.loads, v, l);

        /* each place has a vector of its own: it leads back */
        s.assume(t < tiles);
        s.claim(at >= 0 && at < (s.mutant ? all - 1 : all));
        s.claim(packed_tile(at, m.loads, m.chunks()) == t && packed_lane(at) == l &&
                packed_chunk(at, m.loads, m.chunks()) == c &&
                packed_load(at, m.loads) == v);
        /* words come from aligned words of the matrix: 32 bits from whole words on */
        const int per = m.per_word();
        const Int o = s.any("o" + n, 0, MOST_TILES * PACK_M - 1),
                  e = s.any("e" + n, 0, m.in / per - 1);
        const Int from = linear_weight(o, m.in, 4 * m.loads, e * per);

        s.claim(from % 4 == 0);
        s.claim(implies(o < tiles * PACK_M, from + 4 <= all * 16));
        /* and there are as many of the one as of the other */
        s.claim(all == tiles * m.chunks() * m.loads * 32);
    });
}

/* Words of a tile and weights (output, inputs) are one to one: the layout loses and doubles
 * none. */
void
words_are_weights(const Config &, Statement &s)
{
    for (const int loads : {1, 2, 4}) {
        const std::string n = std::to_string(loads);
        const int per = 8 / loads;
        const auto lane = s.two("lane" + n, 0, 31), load = s.two("load" + n, 0, loads - 1),
                   w = s.two("w" + n, 0, 3);
        const auto output = [&](Int l, Int word) { return Int(packed_output(0, l, word)); };
        const auto input = [&](Int l, Int v, Int word) {
            return Int(packed_input(0, l, loads, v, s.mutant ? word % 2 : word));
        };
        const Int o = s.any("o" + n, 0, PACK_M - 1), e = s.any("e" + n, 0, PACK_K - 1);

        s.claim(implies(output(lane.x, w.x) == output(lane.y, w.y) &&
                            input(lane.x, load.x, w.x) == input(lane.y, load.y, w.y),
                        lane.x == lane.y && load.x == load.y && w.x == w.y));
        s.claim(output(lane.x, w.x) < PACK_M && input(lane.x, load.x, w.x) % per == 0 &&
                input(lane.x, load.x, w.x) + per <= PACK_K);

        /* which word has input e of output o */
        const Int l = o % 8 * 4 + e % 32 / 8, half = e / 32;
        const Int v = loads == 1 ? Int(0) : loads == 2 ? half : half * 2 + e % 8 / 4;
        const Int word = loads == 1   ? half * 2 + o / 8
                         : loads == 2 ? e % 8 / 4 * 2 + o / 8
                                      : e % 4 / 2 * 2 + o / 8;

        s.claim(output(l, word) == o && input(l, v, word) == e / per * per && v < loads);
    }
}

/* What a lane of mma.m16n8k16 has to hold: of the two mma that do 32 inputs, number j has
 * for lane 4 g + t inputs 8 t + 4 j .. + 3 of that half, of outputs g and g + 8: as load_x
 * has them of x. */
void
words_fit_mma(const Config &, Statement &s)
{
    for (const int loads : {1, 2, 4}) {
        const std::string n = std::to_string(loads);
        const Int lane = s.any("lane" + n, 0, 31), half = s.any("half" + n, 0, 1);
        const Int j = s.any("j" + n, 0, 1), high = s.any("high" + n, 0, 1);
        const Int first = half * 32 + lane % 4 * 8 + j * 4, o = lane / 4 + high * 8;

        /* fragments(): FP4 w[0].x .. w, FP8 w[half], bf16 w[2 half + j] */
        const Int load = loads == 1 ? Int(0) : loads == 2 ? half : half * 2 + j;
        const Int word = loads == 1 ? half * 2 + high : loads == 2 ? j * 2 + high : high;
        const Int inputs = packed_input(0, lane, loads, load, word);

        s.claim(packed_output(0, lane, s.mutant ? 3 - word : word) == o);
        s.claim(loads == 1 ? inputs + j * 4 == first : inputs == first);
        if (loads == 4) /* the second two inputs, in the word behind the other output's */
            s.claim(packed_input(0, lane, loads, load, word + 2) == first + 2 &&
                    packed_output(0, lane, word + 2) == o);
    }
}

/* Scales: inside, of the right outputs and inputs, each FP4 scale once. */
void
scales_fit(const Config &k, Statement &s)
{
    each_width(k, [&](const Shape &m) {
        const std::string n = m.name();
        const auto tile = s.two("tile" + n, 0, MOST_TILES - 1),
                   chunk = s.two("chunk" + n, 0, m.chunks() - 1), g = s.two("g" + n, 0, 7);
        const Int tiles = s.any("tiles" + n, 1, MOST_TILES), out = tiles * PACK_M;

        s.assume(tile.x < tiles && tile.y < tiles);
        if (m.loads == 1) {
            const Int x = packed_fp4_scale(tile.x, m.chunks(), chunk.x, g.x);

            s.alone(x, packed_fp4_scale(tile.y, m.chunks(), chunk.y, g.y),
                    tile.x == tile.y && chunk.x == chunk.y && g.x == g.y);
            s.claim(x * 4 + 4 <= out * (m.in / 32) - (s.mutant ? 1 : 0));
        } else if (m.loads == 2) {
            const Int x = packed_fp8_scale(tile.x, m.in, chunk.x),
                      o = s.any("o" + n, 0, 15), e = s.any("e" + n, 0, PACK_K - 1);

            s.claim(x == (tile.x * PACK_M + o) / 128 * ((m.in + 127) / 128) +
                             (chunk.x * PACK_K + e) / 128);
            s.claim(x < (out + 127) / 128 * ((m.in + 127) / 128));
        }
    });
}

/* A product: each tile is one group's of one block, each chunk one part's, for each split
 * and number of tiles at a time. */
void
work_once(const Config &, Statement &s)
{
    for (int split = 1; split <= PACK_WARPS; split *= 2)
        for (const int mt : {1, 2}) {
            const std::string n = std::to_string(split) + "/" + std::to_string(mt);
            const Int tiles = s.any("tiles" + n, 1, 1 << 16), most = 1 << 13;
            const int per = PACK_WARPS / split * mt; /* of a block */
            const Int blocks = (tiles * PACK_M + per * PACK_M - 1) / (per * PACK_M);
            const auto b = s.two("b" + n, 0, blocks - 1),
                       w = s.two("w" + n, 0, PACK_WARPS - 1), m = s.two("m" + n, 0, mt - 1);
            const Int t = s.any("t" + n, 0, tiles - 1);
            const auto tile = [&](Int block, Int warp, Int one) {
                return Int(packed_first_tile(block, warp, split, mt)) + one;
            };
            const Int of = t % per / mt * split; /* its first warp */

            s.claim(implies(tile(b.x, w.x, m.x) == tile(b.y, w.y, m.y),
                            b.x == b.y && w.x / split == w.y / split && m.x == m.y));
            s.claim(t / per < (s.mutant ? tiles / per : blocks) &&
                    tile(t / per, of, t % mt) == t);

            const Int chunks = s.any("chunks" + n, 1, most),
                      c = s.any("c" + n, 0, most - 1);
            Int parts = 0;

            for (int part = 0; part < split; part++)
                parts = parts + choose(c >= packed_first_chunk(chunks, part, split) &&
                                           c < packed_first_chunk(chunks, part + 1, split),
                                       Int(1), Int(0));
            s.claim(implies(c < chunks, parts == 1));
            s.claim(implies(c >= chunks, parts == 0));
        }
}

/* Two matrices of one shape by one block: each tile of each is one group's, and the first warps of
 * the groups that have the same tile of both are where their sums are looked for. */
void
pairs_once(const Config &, Statement &s)
{
    for (int split = 1; split < PACK_WARPS; split *= 2) {
        const std::string n = std::to_string(split);
        const Int half = packed_pair_half(split), tiles = s.any("tiles" + n, 1, 1 << 16);
        const Int blocks = ceil_div(tiles * PACK_M, half * PACK_M);
        const auto b = s.two("b" + n, 0, blocks - 1), w = s.two("w" + n, 0, PACK_WARPS - 1);
        const Int t = s.any("t" + n, 0, tiles - 1), m = s.any("m" + n, 0, 1);
        const Int of = (t % half + m * half) * split; /* its first warp */

        s.claim(implies(packed_pair_tile(b.x, w.x, split) ==
                                packed_pair_tile(b.y, w.y, split) &&
                            packed_pair_matrix(w.x) == packed_pair_matrix(w.y),
                        b.x == b.y && w.x / split == w.y / split));
        s.claim(t / half < (s.mutant ? tiles / half : blocks) && of < PACK_WARPS &&
                packed_pair_tile(t / half, of, split) == t && packed_pair_matrix(of) == m);
    }
}

/* Columns of sums and tiles at a time that kernels are made for: rows by 8, tiles. */
constexpr int forms[][2] = {{1, 1}, {2, 2}, {4, 2}, {8, 2}};

/* Sums in shared memory: each is one lane's of one warp, inside what is asked for. */
void
sums_apart(const Config &, Statement &s)
{
    for (const auto &[nt, mt] : forms) {
        const std::string n = std::to_string(nt);
        const int cols = nt * PACK_N, size = mt * PACK_M * cols;
        const auto warp = s.two("warp" + n, 0, PACK_WARPS - 1),
                   m = s.two("m" + n, 0, mt - 1), o = s.two("o" + n, 0, PACK_M - 1),
                   r = s.two("r" + n, 0, cols - 1);
        const Int x = packed_sum(warp.x, mt, cols, m.x, o.x, r.x),
                  y = packed_sum(warp.y, mt, cols, m.y, o.y, r.y);

        s.alone(x, y, warp.x == warp.y && m.x == m.y && o.x == o.y && r.x == r.y);
        s.claim(x >= 0 && x < PACK_WARPS * size - (s.mutant ? 1 : 0));

        /* a lane's four values: outputs g and g + 8, rows 2 t and 2 t + 1; each one lane's
         */
        const auto lane = s.two("lane" + n, 0, 31), f = s.two("f" + n, 0, 3);
        const auto row = [](Int l, Int v) { return l % 4 * 2 + v % 2; };
        const auto out = [](Int l, Int v) { return l / 4 + v / 2 * 8; };

        s.claim(row(lane.x, f.x) < PACK_N && out(lane.x, f.x) < PACK_M);
        s.claim(implies(row(lane.x, f.x) == row(lane.y, f.y) &&
                            out(lane.x, f.x) == out(lane.y, f.y),
                        lane.x == lane.y && f.x == f.y));
    }
}

/* An output of the block, counted through its groups: the parts that are added up for it are those
 * of its tile, by all warps that share the tile. */
void
parts_add_up(const Config &, Statement &s)
{
    for (int split = 1; split <= PACK_WARPS; split *= 2)
        for (const auto &[nt, mt] : forms) {
            const std::string n = std::to_string(split) + "/" + std::to_string(nt);
            const int cols = nt * PACK_N, groups = PACK_WARPS / split;
            const Int block = s.any("block" + n, 0, MOST_TILES / groups),
                      at = s.any("at" + n, 0, groups * mt * PACK_M - 1);
            const Int r = s.any("r" + n, 0, cols - 1);
            const Int part = s.any("part" + n, 0, split - 1);
            const Int group = at / (mt * PACK_M), o = at % (mt * PACK_M);
            const Int warp = group * split + (s.mutant ? part + 1 : part);

            s.claim(packed_sum(warp, mt, cols, 0, o, r) ==
                    packed_sum(warp, mt, cols, o / PACK_M, o % PACK_M, r));
            s.claim(warp < PACK_WARPS && packed_part(warp, split) == part &&
                    packed_outputs(split, mt) == groups * mt * PACK_M);
            s.claim(packed_sum(group * split, mt, cols, 0, o, r) +
                        packed_sum(part, mt, cols, 0, 0, 0) ==
                    packed_sum(group * split + part, mt, cols, 0, o, r));
            s.claim(block * (groups * mt * PACK_M) + at ==
                    (packed_first_tile(block, warp, split, mt) + o / PACK_M) * PACK_M +
                        o % PACK_M);
        }
}

/* Vectors and scales of a tile's later chunks are where they are counted from the first one. */
void
chunks_follow(const Config &, Statement &s)
{
    for (const int loads : {1, 2, 4}) {
        const std::string n = "/" + std::to_string(loads);
        const Int d = s.any("d" + n, 0, 7), v = s.any("v" + n, 0, loads - 1),
                  lane = s.any("lane" + n, 0, 31), g = s.any("g" + n, 0, 7);
        const Int tile = s.any("tile" + n, 0, MOST_TILES - 1),
                  all = s.any("all" + n, 1, 1 << 13), c = s.any("c" + n, 0, (1 << 13) - 1);

        s.assume(c + d < all);
        s.claim(packed_vector(tile, all, c + d, loads, v, lane) ==
                packed_vector(tile, all, c, loads, 0, lane) +
                    packed_vector(0, 1, s.mutant ? d + 1 : d, loads, v, 0));
        if (loads == 1) {
            s.claim(packed_fp4_scale(tile, all, c + d, g) ==
                    packed_fp4_scale(tile, all, c, g) + packed_fp4_scale(0, 1, d, 0));
        }
    }
}

/* Rows of x in shared memory, 16 bytes at a time: aligned, inside, behind the sums. */
void
x_staged(const Config &k, Statement &s)
{
    each_width(k, [&](const Shape &m) {
        const std::string n = std::to_string(m.in);
        const auto r = s.two("r" + n, 0, PACK_N - 1), e = s.two("e" + n, 0, m.in / 8 - 1);
        const Int x = packed_x(r.x, m.in) + e.x * 8, y = packed_x(r.y, m.in) + e.y * 8;
        const Int rows = s.any("rows" + n, 1, PACK_N);

        if (m.loads != 1)
            return;
        s.alone(x, y, r.x == r.y && e.x == e.y);
        s.claim(x * 2 % 16 == 0);
        s.claim(implies(r.x < rows,
                        x + 8 <= packed_x(rows, s.mutant ? m.in - PACK_PAD : m.in)));
        if (s.mutant)
            s.assume(r.x == rows - 1 && e.x == m.in / 8 - 1);
    });
}

/* Rows that many products share, a run of chunks at a time: pieces of 16 bytes are apart, inside
 * their half and aligned, each comes from its own place of x, and a lane's fragments of a chunk are
 * the pieces of the inputs that its mma wants. */
void
runs_staged(const Config &, Statement &s)
{
    for (const int chunks : {8, 4, 2}) { /* of FP4, FP8 and BF16 */
        const std::string n = std::to_string(chunks);
        const int width = chunks * PACK_K, pieces = width / 8;
        const int half = PACK_N * (width + PACK_PAD);
        const auto id = s.two("id" + n, 0, PACK_N * pieces - 1);
        const auto place = [&](Int i) {
            return Int(packed_x(piece_row(i, pieces), width) + piece_at(i, pieces, 8));
        };
        const Int lane = s.any("lane" + n, 0, 31), d = s.any("d" + n, 0, chunks - 1),
                  high = s.any("high" + n, 0, 1);
        const Int row = lane / 4, input = d * PACK_K + high * 32 + lane % 4 * 8;

        s.claim(implies(id.x != id.y, place(id.x) + 8 <= place(id.y) ||
                                          place(id.y) + (s.mutant ? 9 : 8) <= place(id.x)));
        s.claim(place(id.x) % 8 == 0 && place(id.x) + 8 <= half && half % 8 == 0);
        s.claim(place(row * pieces + input / 8) ==
                packed_x(row, width) + lane % 4 * 8 + d * PACK_K + high * 32);
        s.claim(row < PACK_N && input % 8 == 0 &&
                piece_at(row * pieces + input / 8, pieces, 8) == input);
    }
}

/* Pieces of a chunk's rows in a stage of the ring: one to one and inside. What eight lanes read at a
 * time, four neighbouring pieces of two rows, lies in eight different groups of four banks. */
void
x_in_ring(const Config &, Statement &s)
{
    const Int rows = s.any("rows", 1, 16 * PACK_N);
    const auto r = s.two("r", 0, 16 * PACK_N - 1), at = s.two("at", 0, 7);
    const Int x = packed_piece(r.x, at.x), y = packed_piece(r.y, at.y);
    const Int half = s.any("half", 0, 1), pair = s.any("pair", 0, 8 * PACK_N - 1);
    const auto lane = s.two("lane", 0, 7);
    const auto bank = [&](Int l) {
        return packed_piece(pair * 2 + l / 4, half * 4 + l % 4) % 8;
    };

    s.assume(r.x < rows && r.y < rows);
    s.alone(x, y, r.x == r.y && at.x == at.y);
    s.claim(x < rows * 8 - (s.mutant ? 1 : 0));
    s.claim(implies(bank(lane.x) == bank(lane.y), lane.x == lane.y));
}

} // namespace

const std::vector<Obligation> packed = {
    {"packed", "vectors-are-places", "vectors and places of tiles are one to one, inside",
     true, vectors_are_places},
    {"packed", "words-are-weights", "words of a tile and weights are one to one", false,
     words_are_weights},
    {"packed", "words-fit-mma", "a lane's words are the weights that its mma wants", false,
     words_fit_mma},
    {"packed", "scales-fit", "scales are inside, and of their outputs and inputs", true,
     scales_fit},
    {"packed", "work-once", "each tile and chunk is one group's and part's", false,
     work_once},
    {"packed", "both-once", "a pair of matrices: each tile of each is one group's", true,
     pairs_once},
    {"packed", "sums-apart", "sums in shared memory have places of their own", false,
     sums_apart},
    {"packed", "parts-add-up", "the parts of an output are its tile's, of all its warps",
     false, parts_add_up},
    {"packed", "chunks-follow", "a tile's chunks are where they are counted from the first",
     false, chunks_follow},
    {"packed", "runs-staged", "a run's rows are apart, inside, where lanes look for them",
     false, runs_staged},
    {"packed", "x-staged", "staged rows are aligned, disjoint and inside", true, x_staged},
    {"packed", "x-in-ring", "pieces of rows in the ring are apart, inside, in other banks",
     false, x_in_ring},
};

} // namespace verify
