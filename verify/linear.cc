/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Plain matrix products (gpu/cuda/linear.cu), for each matrix of each configuration in each
 * of the kinds that a checkpoint may have it in: outputs by warps, inputs by lanes, 16
 * bytes of weights at a time. Shared memory has a stage between two barriers: warps that
 * share an output leave their parts, the first of them adds up.
 */
#include <set>
#include <tuple>
#include <utility>

#include "verify/formulas.hh"
#include "verify/prove.hh"

namespace verify
{

using namespace formula;

namespace
{

struct Shape {
    int out, in, bits; /* of an element */

    int per_load() const
    {
        return 128 / bits;
    }

    int split() const
    {
        return linear_split(out, in / per_load());
    }

    std::string name() const
    {
        return std::to_string(out) + "x" + std::to_string(in) + "/" + std::to_string(bits);
    }

    bool operator<(const Shape &o) const
    {
        return std::tie(out, in, bits) < std::tie(o.out, o.in, o.bits);
    }
};

/* Every matrix that linear_cuda and expert_linear_cuda are called with. */
std::set<Shape>
shapes(const model_config &c)
{
    const int d = c.hidden, z = c.o_groups * c.o_lora_rank, heads = c.n_heads * c.head_dim;
    const int hc = c.hc_mult;
    const int sizes[][2] = {
        {c.q_lora_rank, d},
        {heads, c.q_lora_rank},
        {c.head_dim, d},
        {c.o_lora_rank, heads / c.o_groups},
        {d, z},
        {2 * c.head_dim, d}, /* compressors: with overlap, and without */
        {2 * c.index_head_dim, d},
        {c.index_n_heads * c.index_head_dim, c.q_lora_rank},
        {c.index_n_heads, d},
        {c.n_experts, d},
        {c.moe_inter, d},
        {d, c.moe_inter},
        {d, d}, /* the draft's projections */
        {c.vocab_size, d},
        {2 * hc + hc * hc, hc * d},
        {hc, hc * d}};
    std::set<Shape> all;

    for (const auto &size : sizes)
        for (const int bits : {4, 8, 16, 32})
            all.insert({size[0], size[1], bits});
    return all;
}

/* Calls f for each way of splitting that occurs, with one matrix that is split so: places
 * of outputs depend on the split, and on the number of outputs, which is unknown in f. */
template <class F>
void
each_split(const Config &k, F f)
{
    std::set<int> seen;

    for (const Shape &m : shapes(k.c))
        if (seen.insert(m.split()).second)
            f(m.split());
}

void
outputs_once(const Config &k, Statement &s)
{
    each_split(k, [&](int split) {
        const std::string n = std::to_string(split);
        const Int out = s.any("out" + n, 1, 1 << 20), tiles = linear_tiles(out, split);
        const auto tile = s.two("tile" + n, 0, tiles - 1);
        const auto warp = s.two("warp" + n, 0, LINEAR_WARPS - 1);
        const Int o = s.any("o" + n, 0, out - 1), per = LINEAR_WARPS / split;
        const Int x = linear_output(tile.x, warp.x, split),
                  y = linear_output(tile.y, warp.y, split);

        s.claim(implies(x == y, tile.x == tile.y && warp.x / split == warp.y / split));
        s.claim(o / per < (s.mutant ? out / per : tiles));
        s.claim(linear_output(o / per, o % per * split, split) == o);
        s.claim(LINEAR_WARPS % split == 0);
    });
}

/* The parts of an output meet in shared memory: no warp's place is another's, and the warp
 * that adds up looks at those of its own output. */
void
parts_meet(const Config &k, Statement &s)
{
    each_split(k, [&](int split) {
        const std::string n = std::to_string(split);
        const Int tile = s.any("tile" + n, 0, 1 << 20), part = s.any("part" + n, 1, 7);
        const Int warp = s.any("warp" + n, 0, LINEAR_WARPS - 1);

        s.assume(warp % split == 0 && part < split + (s.mutant ? 1 : 0));
        s.claim(warp + part < LINEAR_WARPS && linear_output(tile, warp + part, split) ==
                                                  linear_output(tile, warp, split));
    });
}

/* Lanes of an output's warps take each 16 bytes of its inputs once. */
void
inputs_once(const Config &k, Statement &s)
{
    each_split(k, [&](int split) {
        const std::string n = std::to_string(split);
        const Int step = linear_step(split), most = 1 << 20; /* more than there are */
        const auto warp = s.two("warp" + n, 0, split - 1);
        const auto lane = s.two("lane" + n, 0, LINEAR_LANES - 1);
        const auto turn = s.two("turn" + n, 0, most);
        const Int c = s.any("c" + n, 0, most);
        const int per_turn = split * LINEAR_LANES - (s.mutant ? 1 : 0);
        const Int x = Int(linear_chunk(warp.x, lane.x, split)) + turn.x * per_turn,
                  y = Int(linear_chunk(warp.y, lane.y, split)) + turn.y * per_turn;

        s.claim(s.mutant || step == per_turn);
        s.alone(x, y, warp.x == warp.y && lane.x == lane.y && turn.x == turn.y);
        s.claim(linear_chunk(c % per_turn / LINEAR_LANES, c % LINEAR_LANES, split) +
                    c / per_turn * per_turn ==
                c);
    });
}

/* Its loads: aligned, inside the matrix, of one output and under one scale, scales inside.
 */
void
loads_inside(const Config &k, Statement &s)
{
    for (const Shape &m : shapes(k.c)) {
        const std::string n = m.name();
        const int per = m.per_load();
        const Int o = s.any("o" + n, 0, m.out - 1),
                  chunk = s.any("c" + n, 0, m.in / per - 1);
        const Int e = chunk * per;
        const Int row = linear_weight(o, m.in, m.bits, 0),
                  to = linear_weight(0, m.in, m.bits, e);
        const Int bytes = Int(m.out) * m.in * m.bits / 8;

        s.claim(row + to == linear_weight(o, m.in, m.bits, e));
        s.claim((row + to) % 16 == 0 && row + to + 16 <= (s.mutant ? bytes - 1 : bytes));
        s.claim(
            implies(o + 1 < m.out, row + to + 16 <= linear_weight(o + 1, m.in, m.bits, 0)));
        s.claim(e + per <= m.in && e * 2 % 8 == 0); /* x: 8 or 16 bytes at a time */
        if (m.bits == 8) {
            const Int across = (m.in + FP8_BLOCK - 1) / FP8_BLOCK;
            const Int at = linear_fp8_scales(o, m.in) + e / FP8_BLOCK;

            s.claim(at < Int(m.out + FP8_BLOCK - 1) / FP8_BLOCK * across);
            s.claim(at == o / FP8_BLOCK * across + e / FP8_BLOCK);
            s.claim(e / FP8_BLOCK == (e + per - 1) / FP8_BLOCK);
        }
        if (m.bits == 4) {
            s.claim(linear_fp4_scales(o, m.in) + e / FP4_BLOCK <
                    Int(m.out) * (m.in / FP4_BLOCK));
            s.claim(e / FP4_BLOCK == (e + per - 1) / FP4_BLOCK);
        }
    }
}

} // namespace

const std::vector<Obligation> linear = {
    {"linear", "outputs-once", "each output is one group of warps', and the grid has all",
     true, outputs_once},
    {"linear", "parts-meet", "warps of an output add up the parts of that output", true,
     parts_meet},
    {"linear", "inputs-once", "lanes of an output take each 16 bytes of weights once", true,
     inputs_once},
    {"linear", "loads-inside", "weights and scales: aligned, inside, under one scale", true,
     loads_inside},
};

} // namespace verify
