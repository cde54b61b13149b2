/* SPDX-License-Identifier: Apache-2.0 */
/* Stages (stages.cc) of the experts: their choice, their order, and one row's in one kernel. */
#include "verify/formulas.hh"
#include "verify/stages.hh"

namespace verify
{

using namespace formula;

namespace
{

enum { EXPERTS = 512, USED = 32 };

/* A copy of the bias, and scores, by threads in turn. */
void
own_experts(Thread &x, const char *array)
{
    const int rounds = EXPERTS / x.threads;

    x.use(array, WRITE, x.t + x.any("round", 0, rounds - 1) * x.threads);
}

void
any_used(Thread &x, const char *array, How how)
{
    x.use(array, how, x.any("used", 0, USED - 1));
}

/* What the first warp does with ranks: one lane has each. */
void
by_rank(Thread &x, const char *array)
{
    x.use(array, ATOMIC, x.any("used", 0, USED - 1), 1, x.t < 32);
}

void
read_first(Thread &x, const char *array, int n)
{
    x.use(array, READ, x.any("at", 0, n - 1), 1, x.t < 32);
}

} // namespace

std::vector<Kernel>
experts_stages()
{
    return {
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
        {"gpu/cuda/gate.cuh",
         "choose",
         "c . c",
         {"c"},
         256,
         nullptr,
         0,
         {[](const Config &, Thread &x) {
              read_first(x, "bias", EXPERTS);
              read_first(x, "score", EXPERTS);
              by_rank(x, "own");
          },
          [](const Config &, Thread &x) {
              read_first(x, "own", USED);
              by_rank(x, "chosen");
          }}},
        {"gpu/cuda/moe.cu",
         "put_choice",
         "choose() c . c",
         {"c"},
         256,
         nullptr,
         0,
         {nothing, [](const Config &, Thread &x) { read_first(x, "chosen", USED); }}},
        {"gpu/cuda/moe.cu",
         "choose_kernel",
         "( way_back() ) c | ( put_choice() c )",
         {},
         256,
         "choose_kernel",
         0,
         {[](const Config &, Thread &x) { own_experts(x, "score"); }, nothing}},
        {"gpu/cuda/experts_row.cu",
         "choose_experts",
         "stage_x() c | ( choose() c ) |",
         {"c"},
         256,
         "choose_experts",
         0,
         {[](const Config &, Thread &x) { own_experts(x, "score"); }, nothing}},
        {"gpu/cuda/experts_row.cu",
         "experts_row_kernel",
         "shared ( ( way_back() / ) ) shared bias choose_experts() c bias block_parts() c shared",
         {"shared"},
         256,
         "choose_experts",
         1,
         {nothing, [](const Config &, Thread &x) { own_experts(x, "bias"); },
          [](const Config &, Thread &x) { any_used(x, "chosen", READ); },
          [](const Config &k, Thread &x) {
              any_used(x, "chosen", READ);
              read_sums(k, x);
          }},
         false,
         false,
         {{"ready", ""}}},
    };
}

} // namespace verify
