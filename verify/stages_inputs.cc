/* SPDX-License-Identifier: Apache-2.0 */
/* Stages (stages.cc) between the projections and attention: norms, rotations, entries. */
#include "verify/formulas.hh"
#include "verify/stages.hh"

namespace verify
{

using namespace formula;

namespace
{

/* Pairs of one stride are disjoint (rows, butterflies-once); here they are anywhere, and only what
 * comes before and behind them counts. */
void
butterflies(Thread &x, const char *array, int dim, int threads)
{
    x.use(array, ATOMIC, x.any("i", 0, dim - 1), 1, x.t < threads);
}

/* Element t + n threads of a row. */
template <int THREADS>
Int
own(Thread &x, int dim)
{
    return x.t + x.any("round", 0, dim / THREADS) * THREADS;
}

/* Groups by warps in turn, elements by lanes. */
void
groups(Thread &x, const char *array, int dim, int group, int warps)
{
    const Int g = x.warp() + x.any("g", 0, dim / group / warps) * warps;
    const Int i = g * group + x.lane() + x.any("m", 0, group / 32 - 1) * 32;

    x.use(array, READ, i, 1, i < dim);
}

/* Channels of an entry by threads, then all of them by the first warp: pieces of 8. */
void
entry_own(const Config &k, Thread &x)
{
    x.use("v", WRITE, own<256>(x, k.c.head_dim));
}

void
entry_piece(const Config &k, Thread &x, How how)
{
    const Int at = chunk_at(x.any("n", 0, k.c.head_dim / ROW_CHUNK), x.lane());

    x.use("v", how, at, ROW_PIECE, x.t < 32 && at < k.c.head_dim);
}

} // namespace

std::vector<Kernel>
inputs_stages()
{
    return {
        {"gpu/cuda/inputs.cu",
         "query_row",
         "squares | squares",
         {},
         256,
         "query_row",
         0,
         {[](const Config &k, Thread &x) {
              x.use("squares", WRITE,
                    x.warp() + x.any("k", 0, k.c.q_lora_rank / ROW_CHUNK) * 8, 1,
                    x.lane() == 0);
          },
          [](const Config &k, Thread &x) {
              x.use("squares", READ, x.any("k", 0, k.c.q_lora_rank / ROW_CHUNK));
          }}},
        {"gpu/cuda/inputs.cuh",
         "index_pack",
         "{ . h } . h",
         {"h"},
         256,
         "index_pack",
         1,
         {[](const Config &k, Thread &x) { butterflies(x, "v", k.c.index_head_dim, 32); },
          [](const Config &k, Thread &x) {
              x.use("v", READ, x.any("g", 0, k.c.index_head_dim / 32 - 1) * 32 + x.lane(),
                    1, x.t < 32);
          }}},
        {"gpu/cuda/inputs.cuh",
         "pool",
         "part | part v",
         {"v"},
         256,
         "pool",
         0,
         {[](const Config &, Thread &x) { x.use("part", WRITE, x.t * 4, 4); },
          [](const Config &k, Thread &x) {
              x.use("part", READ, x.any("i", 0, 4 * 256 - 1));
              entry_own(k, x);
          }}},
        {"gpu/cuda/inputs.cuh",
         "finish_entry",
         "pool() v | v index_pack() v",
         {"v"},
         256,
         "finish_entry",
         0,
         {nothing,
          [](const Config &k, Thread &x) {
              entry_piece(k, x, READ);
              entry_piece(k, x, WRITE);
          },
          nothing}},
        {"gpu/cuda/inputs.cuh",
         "inputs_part",
         "way_back() finish_entry() v",
         {"v"},
         256,
         nullptr,
         0,
         {nothing}},
        {"gpu/cuda/quant.cu",
         "index_quant_kernel",
         "h { | h } | h",
         {},
         64,
         "index_quant_kernel",
         1,
         {[](const Config &k, Thread &x) {
              x.use("h", WRITE, own<64>(x, k.c.index_head_dim), 1, true);
          },
          [](const Config &k, Thread &x) { butterflies(x, "h", k.c.index_head_dim, 64); },
          [](const Config &k, Thread &x) { groups(x, "h", k.c.index_head_dim, 32, 2); }}},
    };
}

} // namespace verify
