/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Kernels over rows, element by element (gpu/cuda/norm.cu, quant.cu): each element
 * is one thread's, vectors are aligned, groups that share a scale are one warp's. Up to
 * 131,072 rows: a step has 1,024, times Pro's 128 heads where a head is a row.
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

enum { MOST_ROWS = 131072, VEC = 8, WARPS = 8, MAX_THREADS = 1024 };

/* rmsnorm_kernel: thread t has elements t VEC + n threads VEC of a row, 16 bytes at a
 * time. */
void
vectors_once(const Config &k, Statement &s)
{
    for (const int dim : {k.c.hidden, k.c.q_lora_rank, k.c.head_dim, k.c.index_head_dim}) {
        const std::string n = std::to_string(dim);
        const Int threads = row_threads(dim, VEC, MAX_THREADS);
        const auto t = s.two("t" + n, 0, MAX_THREADS - 1), turn = s.two("turn" + n, 0, dim);
        const Int row = s.any("row" + n, 0, MOST_ROWS - 1), c = s.any("c" + n, 0, dim - 1);
        const int step = dim / VEC < MAX_THREADS ? (dim / VEC + 31) / 32 * 32
                                                 : +MAX_THREADS;
        const auto at = [&](Int thread, Int times) {
            return thread * (s.mutant ? VEC - 1 : +VEC) + times * (step * VEC);
        };

        s.claim(threads == step && threads % 32 == 0 && threads <= MAX_THREADS);
        s.assume(t.x < step && t.y < step && at(t.x, turn.x) < dim &&
                 at(t.y, turn.y) < dim);
        s.claim(implies(t.x != t.y || turn.x != turn.y,
                        at(t.x, turn.x) + VEC <= at(t.y, turn.y) ||
                            at(t.y, turn.y) + VEC <= at(t.x, turn.x)));
        s.claim(at(t.x, turn.x) + VEC <= dim &&
                (row * dim + at(t.x, turn.x)) * 2 % 16 == 0);
        s.claim(at(c / VEC % step, c / VEC / step) + c % VEC == c);
    }
}

/* A warp an item (heads, groups, rows of scores): each item is one warp's. */
void
warps_once(const Config &, Statement &s)
{
    const Int n = s.any("n", 1, MOST_ROWS * 64), blocks = (n + WARPS - 1) / WARPS;
    const auto b = s.two("b", 0, blocks - 1), t = s.two("t", 0, WARPS * 32 - 1);
    const Int id = s.any("id", 0, n - 1);

    s.alone(warp_item(b.x, WARPS, t.x), warp_item(b.y, WARPS, t.y),
            b.x == b.y && (s.mutant ? t.x == t.y : t.x / 32 == t.y / 32));
    s.claim(id / WARPS < blocks && warp_item(id / WARPS, WARPS, id % WARPS * 32) == id);
}

/* act_quant_kernel and kv_pack_kernel: groups, numbered over all rows, cover each row
 * once. */
void
groups_once(const Config &k, Statement &s)
{
    struct {
        int dim, group;
    } const uses[] = {{k.c.hidden, 128},
                      {k.c.moe_inter, 128},
                      {k.c.q_lora_rank, 128},
                      {k.c.o_groups * k.c.o_lora_rank, 128},
                      {k.c.head_dim - k.c.rope_dim, KV_SCALE_GROUP}};

    for (const auto &u : uses) {
        const std::string n = std::to_string(u.dim) + "/" + std::to_string(u.group);
        const Int groups = ceil_div(u.dim, u.group);
        const auto id = s.two("id" + n, 0, MOST_ROWS * groups - 1);
        const auto c = s.two("c" + n, 0, u.dim - 1);
        const Int row = s.any("row" + n, 0, MOST_ROWS - 1);
        const auto in = [&](Int i, Int e) {
            const Int first = group_first(i, groups, u.group);

            return e >= first &&
                   e < Int(group_end(first, u.group, u.dim)) + (s.mutant ? 1 : 0);
        };
        const Int of = row * groups + c.x / u.group;

        s.claim(implies(in(id.x, c.x) && in(id.y, c.x) &&
                            group_row(id.x, groups) == group_row(id.y, groups),
                        id.x == id.y));
        s.claim(implies(in(id.x, c.x) && in(id.x, c.y),
                        c.x / u.group == c.y / u.group)); /* one scale */
        s.claim(in(of, c.x) && group_row(of, groups) == row);
        s.claim(group_end(group_first(id.x, groups, u.group), u.group, u.dim) <= u.dim);
        s.claim(MOST_ROWS * groups <= INT32_MAX);
    }
}

/* rope_kernel: each pair of the rotated elements of each head once. x begins at the first.
 */
void
pairs_once(const Config &k, Statement &s)
{
    for (const int heads : {k.c.n_heads, 1, k.c.index_n_heads}) {
        const int dim = heads == k.c.index_n_heads ? k.c.index_head_dim : k.c.head_dim;
        const int pairs = k.c.rope_dim / 2, nope = dim - k.c.rope_dim;
        const std::string n = std::to_string(heads);
        const auto p = s.two("p" + n, 0, heads * pairs - 1);
        const Int h = s.any("h" + n, 0, heads - 1), c = s.any("c" + n, 0, k.c.rope_dim - 1);
        const Int at = rope_pair(p.x, pairs, dim);

        s.alone(at, rope_pair(p.y, pairs, dim), p.x == p.y);
        s.claim(at % 2 == 0 && nope + at + 1 < heads * dim - (s.mutant ? 1 : 0));
        s.claim(at % dim + 1 < k.c.rope_dim);
        s.claim(rope_pair(h * pairs + c / 2, pairs, dim) + c % 2 == h * dim + c);
    }
}

/* index_quant_kernel: at each stride, a barrier before each, pairs are disjoint and cover
 * all. */
void
butterflies_once(const Config &k, Statement &s)
{
    const int dim = k.c.index_head_dim;

    for (int stride = 1; stride < dim; stride *= 2) {
        const std::string n = std::to_string(stride);
        const auto p = s.two("p" + n, 0, dim / 2 - 1);
        const Int c = s.any("c" + n, 0, dim - 1),
                  step = s.mutant && stride > 1 ? 1 : stride;
        const Int x = butterfly(p.x, stride), y = butterfly(p.y, stride);
        const Int of = c / (2 * stride) * stride + c % stride;

        s.claim(x + step < dim && implies(p.x != p.y, x != y && x + step != y + step));
        s.claim(x != y + step);
        s.claim(butterfly(of, stride) + c / stride % 2 * stride == c);
    }
}

/* The rows that index_quant_kernel and kv_pack_kernel leave: each byte written once. */
void
packed_bytes_once(const Config &k, Statement &s)
{
    const int idim = k.c.index_head_dim, groups = idim / FP4_GROUP;
    const auto g = s.two("g", 0, groups - 1), lane = s.two("lane", 0, 15);
    const Int byte = s.any("byte", 0, fp4_row(idim) - 1);
    const Int x = g.x * (FP4_GROUP / 2) + lane.x, y = g.y * (FP4_GROUP / 2) + lane.y;

    s.alone(x, y, g.x == g.y && lane.x == lane.y);
    s.claim(x < Int(idim) / 2 && Int(idim) / 2 + g.x < fp4_row(idim));
    s.claim(byte < idim / 2 || byte - idim / 2 < groups);
    s.claim(fp4_row(idim) == Int(kv_index_row_bytes(idim)));

    const int dim = k.c.head_dim, nope = dim - k.c.rope_dim;
    const Int row = kv_row_bytes(dim, k.c.rope_dim), scales = ceil_div(nope, KEY_GROUP);
    const struct key_parts p = key_parts_of(dim, nope);
    const Int at = s.any("at", 0, row - 1), wide = nope + (at - nope) / 2;
    const Int pad = p.scales + scales + (s.mutant ? 1 : 0);

    s.claim(
        implies(at >= nope && at < p.scales,
                (key_wide(p, wide) == at || key_wide(p, wide) + 1 == at) && wide < dim));
    s.claim(
        implies(at >= p.scales && at < pad,
                key_scale(p, choose(at >= p.scales, at - p.scales, 0) * KEY_GROUP) == at &&
                    at - p.scales < scales));
    s.claim(pad <= row);
}

} // namespace

const std::vector<Obligation> rows = {
    {"rows", "vectors-once", "a norm's vectors cover a row once, aligned to 16 bytes", true,
     vectors_once},
    {"rows", "warps-once", "each item is one warp's, and the grid has all", false,
     warps_once},
    {"rows", "groups-once", "groups under one scale cover each row once", true,
     groups_once},
    {"rows", "pairs-once", "each rotated pair of each head is one thread's", true,
     pairs_once},
    {"rows", "butterflies-once", "pairs of each stride are disjoint and cover a row", true,
     butterflies_once},
    {"rows", "packed-bytes-once", "each byte of a packed row is written once", true,
     packed_bytes_once},
};

} // namespace verify
