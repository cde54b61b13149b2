/* SPDX-License-Identifier: Apache-2.0 */
/* Stages (stages.cc) of attention. */
#include "verify/formulas.hh"
#include "verify/stages.hh"

namespace verify
{

using namespace formula;

namespace
{

/* A tile of keys of attend.cu: a warp's keys, 8 bytes of codes or 4 elements a lane. */
void
attend_tile(const Config &k, Thread &x)
{
    const int codes = (k.c.head_dim - k.c.rope_dim) / 8, words = codes + k.c.rope_dim / 4;
    const Int key = x.warp() + x.any("key", 0, ATTEND_PIECE / 16 - 1) * 16;
    const Int at = x.lane() + x.any("word", 0, 2) * 32, place = attend_element(at, codes);

    x.use_in(key, "tile", WRITE, place, 8, at < codes);
    x.use_in(key, "tile", WRITE, place, 4, at >= codes && at < words);
}

void
attend_tile_read(const Config &k, Thread &x)
{
    x.use_in(x.any("line", 0, ATTEND_PIECE - 1), "tile", READ,
             x.any("e", 0, k.c.head_dim - 1));
}

void
attend_values(const Config &k, Thread &x)
{
    attend_tile_read(k, x);
    x.use_in(x.any("head", 0, 15), "p", READ, x.any("weight", 0, 1 << 20));
}

/* Where this block's word on a warp's head goes. */
Int
attend_told(Thread &x)
{
    return attend_sent(x.rank, x.warp());
}

void
attend_queries_read(const Config &k, Thread &x)
{
    x.use_in(x.any("head", 0, ATTEND_HEADS - 1), "q", READ,
             x.any("e", 0, k.c.head_dim - 1));
    attend_tile_read(k, x);
    x.use("memory", ATOMIC, 0);
}

/* Pairs of dims to the block that adds them up, where queries and slices were ("memory": either the
 * one or the other). */
void
attend_send(const Config &k, Thread &x)
{
    const int dim = k.c.head_dim, tiles = (dim / 8 + 15) / 16;
    const Int at = x.any("t", 0, tiles - 1) * 8 + mma_col(x.lane(), 0);
    const Int h = mma_row(x.lane(), x.any("i", 0, 1) * 2);
    const Bool there = attend_dims(x.warp(), tiles, 0) + at < dim;

    x.uses.push_back({"in", WRITE, at, 2, there, x.warp(), attend_sent(x.rank, h)});
    x.use_of(x.warp(), "memory", READ, 0, there);
}

/* Queries beside the tile; slices of scores. */
void
attend_put(const Config &k, Thread &x)
{
    attend_tile(k, x);
    x.use_in(x.warp(), "q", WRITE,
             (x.lane() + x.any("piece", 0, (k.c.head_dim + 255) / 256 - 1) * 32) * 8, 8);
    x.use("memory", ATOMIC, 0);
}

void
attend_slices(const Config &k, Thread &x)
{
    const Int i = x.any("i", 0, 1) * 2;
    const Int t8 = x.warp() / 4 + x.any("t8", 0, (ATTEND_PIECE + 31) / 32 - 1) * 4;

    attend_queries_read(k, x);
    x.use_in(x.warp() % 4 * ATTEND_HEADS + mma_row(x.lane(), i), "slice", WRITE,
             t8 * 8 + mma_col(x.lane(), 0), 2);
}

enum { CAP = 4096 /* keys of a part: any */ };

} // namespace

std::vector<Kernel>
attend_stages()
{
    return {
        {"gpu/cuda/attention.cu",
         "score_kernel",
         "s { | s | s }",
         {"s"},
         256,
         "score_kernel",
         1,
         {[](const Config &, Thread &x) { x.use("row", WRITE, x.t, 1, x.t < 32); },
          [](const Config &, Thread &x) {
              const Int i = x.t + x.any("round", 0, 7) * 256;
              const Int line = piece_row(i, 64), c = piece_at(i, 64, 4);

              x.use("row", READ, line);
              x.use("key", WRITE, line * 260 + c, 4);
              x.use("q", WRITE, line * 256 + c, 4);
          },
          [](const Config &, Thread &x) {
              const Int c = x.any("c", 0, 63) * 4;

              x.use("key", READ, x.lane() * 260 + c, 4);
              x.use("q", READ, (x.warp() * 4 + x.any("i", 0, 3)) * 256 + c, 4);
          }}},
        {"gpu/cuda/attention.cu",
         "value_kernel",
         "{ | p row | p row }",
         {},
         128,
         "value_kernel",
         0,
         {[](const Config &, Thread &x) {
              const Int i = x.t + x.any("round", 0, 1) * 128;

              x.use("p", WRITE, Int(piece_at(i, 32, 1)) * 8 + piece_row(i, 32));
              x.use("row", WRITE, x.t, 1, x.t < 32);
          },
          [](const Config &, Thread &x) {
              x.use("p", READ, x.any("k", 0, 255));
              x.use("row", READ, x.any("r", 0, 31));
          }}},
        {"gpu/cuda/attend.cu",
         "attend_kernel",
         "den in p q rest score slice tile tops { ( | tile ) | q slice tile | score slice } | "
         "tops || den p rest score tops | { p tile { ( | tile | ) p tile } } in || den in rest",
         {"q", "tile", "slice", "score", "p", "in", "den", "tops", "rest"},
         512,
         "attend_kernel",
         8,
         {attend_put, attend_tile, attend_slices,
          [](const Config &, Thread &x) {
              const Int i = x.lane() + x.any("round", 0, ATTEND_TILE / 32 - 1) * 32;

              x.use_in(x.any("slice", 0, 3) * ATTEND_HEADS + x.warp(), "slice", READ, i);
              x.use("memory", ATOMIC, 0);
              x.use_in(x.warp(), "score", WRITE,
                       x.turn("k", 0, CAP / ATTEND_TILE) * ATTEND_TILE + i);
          },
          [](const Config &, Thread &x) {
              x.use_of(x.lane(), "tops", WRITE, attend_told(x), x.lane() < ATTEND_PARTS);
          },
          [](const Config &, Thread &x) {
              /* another part is a part away, or more */
              const Int part = x.s.any("part", 1, CAP / 16) * 16;
              const Int other = x.s.any("other", 0, CAP), h = x.warp();
              const Int at = x.lane() + x.any("round", 0, CAP / 32 - 1) * 32;
              const Int key = at + choose(x.any("one", 0, 1) == 0, Int(0), part + other);

              x.use("tops", READ, x.any("told", 0, ATTEND_PARTS * ATTEND_HEADS - 1));
              x.use_in(h, "score", READ, x.any("key", 0, CAP - 1));
              x.use_in(h, "p", WRITE, key, 1, at < part);
              x.use_of(x.lane(), "den", WRITE, attend_told(x), x.lane() < ATTEND_PARTS);
              x.use("rest", WRITE, h, 1, x.lane() == 0);
          },
          attend_values, attend_tile, attend_values, attend_send,
          [](const Config &k, Thread &x) {
              x.use_in(x.any("line", 0, ATTEND_PARTS * ATTEND_HEADS - 1), "in", READ,
                       x.any("c", 0, k.c.head_dim - 1));
              x.use("memory", READ, 0);
              x.use("den", READ, x.any("one", 0, ATTEND_PARTS * ATTEND_HEADS - 1));
              x.use("rest", READ, x.any("h", 0, 15));
          }}},
        {"gpu/cuda/attend_long.cu",
         "long_scores_kernel",
         "q slice tile | q slice tile | slice",
         {"q", "tile", "slice"},
         512,
         "long_scores_kernel",
         1,
         {attend_put, attend_slices,
          [](const Config &, Thread &x) {
              x.use_in(x.any("slice", 0, 3) * ATTEND_HEADS + x.warp(), "slice", READ,
                       x.any("key", 0, ATTEND_PIECE - 1));
          }}},
        {"gpu/cuda/attend_long.cu",
         "long_values_kernel",
         "p tile | p tile",
         {"p", "tile"},
         512,
         "long_values_kernel",
         0,
         {[](const Config &k, Thread &x) {
              attend_tile(k, x);
              x.use_in(x.warp(), "p", WRITE,
                       x.lane() + x.any("round", 0, ATTEND_PIECE / 32) * 32);
          },
          attend_values}},
    };
}

} // namespace verify
