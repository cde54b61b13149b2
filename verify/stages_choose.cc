/* SPDX-License-Identifier: Apache-2.0 */
/* Stages (stages.cc) of the choice of entries. */
#include "verify/formulas.hh"
#include "verify/stages.hh"

namespace verify
{

using namespace formula;

namespace
{

/* A warp's terms: a lane writes its own of two slots, each of two eights of heads, or reads. */
void
terms(Thread &x, How how, Int slot)
{
    const Int at = (slot * 2 + x.any("u", 0, 1)) * (CHOOSE_TERMS * 4);

    if (how == WRITE)
        x.use_in(x.warp(), "term", how, at + choose_term(x.lane() / 4, x.lane() % 4) * 4,
                 4);
    else
        x.use_in(x.warp(), "term", how,
                 at + choose_term(x.lane() / 4, x.any("pair", 0, 3)) * 4 + x.lane() % 4);
}

} // namespace

std::vector<Kernel>
choose_stages()
{
    return {
        {"gpu/cuda/index.cu",
         "index_score_kernel",
         "key ks q qs term w | key ks q qs term w | term",
         {"key", "ks", "q", "qs", "term", "w"},
         256,
         "index_score_kernel",
         1,
         {[](const Config &, Thread &x) { /* apart: index, unpack-covers */
                                          for (const char *array : {"q", "key", "qs", "ks"})
                                              x.use(array, ATOMIC, x.any("i", 0, 1 << 10));
                                          x.use("w", WRITE, x.t);
          },
          [](const Config &k, Thread &x) {
              const int heads = k.c.index_n_heads;
              const Int h = x.any("h", 0, heads - 1), part = x.t / SCORE_KEYS;

              for (const char *array : {"q", "key", "qs", "ks"})
                  x.use(array, READ, x.any("i", 0, 1 << 10));
              x.use("w", READ, x.any("i", 0, 1 << 10));
              x.use_in(h, "term", WRITE, x.t % SCORE_KEYS, 1,
                       h >= score_head(part, heads) && h < score_head(part + 1, heads));
          },
          [](const Config &k, Thread &x) {
              x.use_in(x.any("h", 0, k.c.index_n_heads - 1), "term", READ, x.t % SCORE_KEYS,
                       1, x.t < SCORE_KEYS);
          }}},
        {"gpu/cuda/index.cu",
         "topk_kernel",
         "{ count | count | cls count rank | cls } { above equal | above equal rank | }",
         {},
         1024,
         "topk_kernel",
         2,
         {[](const Config &, Thread &x) { x.use("count", WRITE, x.t, 1, x.t < 256); },
          [](const Config &, Thread &x) { x.use("count", ATOMIC, x.any("class", 0, 255)); },
          [](const Config &, Thread &x) {
              x.use("count", READ, x.any("class", 0, 255), 1, x.t == 0);
              for (const char *array : {"cls", "rank"})
                  x.use(array, WRITE, 0, 1, x.t == 0);
          },
          [](const Config &, Thread &x) { x.use("cls", READ, 0); },
          [](const Config &, Thread &x) {
              x.use("above", WRITE, x.warp(), 1, x.lane() == 0);
              x.use("equal", WRITE, x.warp(), 1, x.lane() == 0);
          },
          [](const Config &, Thread &x) {
              x.use("above", READ, x.any("w", 0, 31));
              x.use("equal", READ, x.any("w", 0, 31));
              x.use("rank", READ, 0);
          }}},
        {"gpu/cuda/choose.cu",
         "score_keys",
         "from to . { from last to . } from",
         {"to", "from", "last"},
         256,
         nullptr,
         0,
         {[](const Config &, Thread &x) { terms(x, WRITE, 0); },
          [](const Config &, Thread &x) {
              const Int slot = x.turn("k", 0, 1);

              terms(x, READ, 1 - slot);
              terms(x, WRITE, slot);
          },
          [](const Config &, Thread &x) { terms(x, READ, x.any("slot", 0, 1)); }}},
        {"gpu/cuda/choose.cu",
         "scores_kernel",
         "q weight | { { score_keys() q weight . } }",
         {"q", "weight"},
         256,
         "scores_kernel",
         0,
         {[](const Config &k, Thread &x) {
              const int groups = k.c.index_head_dim / FP4_GROUP;
              const Int raw = x.s.any("raw", 0, 1); /* a warp has whole eights of heads */
              const Int eight = x.warp() + x.any("eight", 0, k.c.index_n_heads) * 8;

              x.use_in(x.warp() + x.any("round", 0, k.c.index_n_heads * 16) * 8, "q", WRITE,
                       x.lane(), 1, raw == 0);
              x.use_in(eight * groups + x.any("group", 0, groups - 1), "q", WRITE, x.lane(),
                       1, raw == 1);
              x.use("weight", WRITE, x.t);
          },
          [](const Config &, Thread &x) {
              x.use_in(x.any("line", 0, 1 << 20), "q", READ, x.any("i", 0, 31));
              x.use("weight", READ, x.any("h", 0, 1 << 20));
          }}},
    };
}

std::vector<Kernel>
best_stages()
{
    return {
        {"gpu/cuda/best.cu",
         "in_front",
         "sum | sum",
         {"sum"},
         1024,
         nullptr,
         0,
         {[](const Config &, Thread &x) {
              x.use("sum", WRITE, x.warp(), 1, x.lane() == 31);
          },
          [](const Config &, Thread &x) { x.use("sum", READ, x.lane()); }}},
        {"gpu/cuda/best.cu",
         "block_most",
         "most | most",
         {"most"},
         1024,
         nullptr,
         0,
         {[](const Config &, Thread &x) {
              x.use("most", WRITE, x.warp(), 1, x.lane() == 0);
          },
          [](const Config &, Thread &x) { x.use("most", READ, x.lane()); }}},
        {"gpu/cuda/best.cu",
         "find_place",
         "place in_front() found |",
         {"place", "found"},
         1024,
         nullptr,
         0,
         {[](const Config &, Thread &x) {
              for (const How how : {READ, WRITE})
                  x.use("place", how, x.t);
          },
          [](const Config &, Thread &x) {
              x.use("found", ATOMIC, 0, 2);
          }}}, /* of one thread */
        {"gpu/cuda/best.cu",
         "find_kth",
         "{ place | find_place() found place block_most() } found",
         {"place", "found"},
         1024,
         "find_kth",
         0,
         {[](const Config &, Thread &x) {
              x.use("place", ATOMIC, x.any("value", 0, 1023));
          },
          nothing, [](const Config &, Thread &x) { x.use("found", READ, 0, 2); }},
         false,
         true},
        {"gpu/cuda/best.cu",
         "list_units",
         "in_front() list |",
         {"list"},
         1024,
         nullptr,
         0,
         {[](const Config &, Thread &x) {
             x.use("list", WRITE, x.t);
         }}}, /* ever further on */
        {"gpu/cuda/best.cu",
         "best_kernel",
         "list place block_most() most ( find_kth() found most place sum ) list_units() list sum "
         "find_kth() found most place sum in_front() sum",
         {"place", "list"},
         1024,
         "block_most",
         0,
         {[](const Config &, Thread &x) { x.use("place", WRITE, x.t); }, nothing, nothing,
          [](const Config &, Thread &x) { x.use("list", READ, x.any("unit", 0, 1 << 16)); },
          [](const Config &, Thread &x) { x.use("list", READ, x.any("unit", 0, 1 << 16)); },
          [](const Config &, Thread &x) {
              x.use("list", READ, x.any("unit", 0, 1 << 16));
          }}},
    };
}

} // namespace verify
