/* SPDX-License-Identifier: Apache-2.0 */
/* Stages (stages.cc) of products, and of the experts. */
#include "verify/formulas.hh"
#include "verify/stages.hh"

namespace verify
{

using namespace formula;

namespace
{

/* Chunks of few rows, by warps in turn. */
enum { NORM_CHUNKS = 8 };

struct RowChunk {
    Int row, k, place;
    Bool there;
};

RowChunk
row_chunk(const Config &k, Thread &x)
{
    const int dim = k.c.q_lora_rank, chunks = (dim + ROW_CHUNK - 1) / ROW_CHUNK;
    const Int i = x.warp() + x.any("item", 0, chunks) * PACK_WARPS;
    const Int at = chunk_at(i % chunks, x.lane());

    return {i / chunks, i % chunks, packed_x(i / chunks, dim) + at,
            i < PACK_N * chunks && at < dim};
}

} // namespace

std::vector<Kernel>
packed_stages()
{
    return {
        {"gpu/cuda/linear.cu",
         "block_outputs",
         "( | shared | shared )",
         {},
         256,
         "block_outputs",
         0,
         {[](const Config &, Thread &x) {
              x.use("shared", WRITE, x.warp() * 8, 8, x.lane() == 0);
          },
          [](const Config &, Thread &x) { /* of a split of 2 at least: even warps */
                                          x.use("shared", READ,
                                                (x.warp() + x.any("w", 1, 7)) * 8 +
                                                    x.any("r", 0, 7),
                                                1, x.warp() % 2 == 0);
          }},
         true},
        {"gpu/cuda/packed_inputs.cuh",
         "norm_rows",
         "squares staged | squares staged |",
         {"staged"},
         256,
         "norm_rows",
         0,
         {[](const Config &k, Thread &x) {
              const RowChunk c = row_chunk(k, x);

              x.use("squares", WRITE, c.row * NORM_CHUNKS + c.k, 1, x.lane() == 0);
              x.use("staged", WRITE, c.place, ROW_PIECE, c.there);
          },
          [](const Config &k, Thread &x) {
              const int chunks = (k.c.q_lora_rank + ROW_CHUNK - 1) / ROW_CHUNK;
              const RowChunk c = row_chunk(k, x);

              x.use("squares", READ, c.row * NORM_CHUNKS + x.any("k", 0, chunks - 1));
              x.use("staged", WRITE, c.place, ROW_PIECE, c.there);
          }},
         true},
        {"gpu/cuda/moe.cu",
         "assign",
         "before { { . before . before } } | before of_warp | of_warp start | before start",
         {},
         512,
         "assign",
         2,
         {[](const Config &, Thread &x) {
              x.use_in(x.warp(), "before", WRITE, x.lane() + x.any("i", 0, 15) * 32);
          },
          [](const Config &, Thread &x) {
              x.use_in(x.warp(), "before", READ, x.any("id", 0, 511));
          },
          [](const Config &, Thread &x) { /* one of the lanes that have this id */
                                          x.use_in(x.warp(), "before", ATOMIC,
                                                   x.any("id", 0, 511));
          },
          [](const Config &, Thread &x) {
              x.use_in(x.any("w", 0, 15), "before", WRITE, x.t);
              x.use("of_warp", WRITE, x.warp(), 1, x.lane() == 31);
          },
          [](const Config &, Thread &x) {
              const Int w = x.any("w", 0, 31);

              x.use("of_warp", READ, w, 1, w < x.warp());
              x.use("start", WRITE, x.t);
          },
          [](const Config &, Thread &x) {
              x.use_in(x.warp(), "before", READ, x.any("id", 0, 511));
              x.use("start", READ, x.any("id", 0, 511));
          }}},
    };
}

} // namespace verify
