/* SPDX-License-Identifier: Apache-2.0 */
/* Stages (stages.cc) of the draw: a row's slices, then what the last block looks for in bins. */
#include "verify/formulas.hh"
#include "verify/stages.hh"

namespace verify
{

using namespace formula;

namespace
{

enum { MEMBERS = 1024 /* that there is room for */ };

/* Bins' counts and sums: a thread's own, or anybody's (atomicAdd). */
void
own_bins(Thread &x, How how)
{
    const Int at = sample_bin(x.t, x.any("own", 0, SAMPLE_OWN - 1));

    x.use("bins", how, at);
}

void
put(Thread &x)
{
    x.use("bins", ATOMIC, x.any("bin", 0, SAMPLE_BINS - 1));
}

void
empty_bins(Thread &x)
{
    const Int round = x.any("round", 0, SAMPLE_OWN - 1);

    x.use("bins", WRITE, x.t + round * SAMPLE_THREADS);
}

/* The one thread that has the goal writes `at`; bins do not overlap. */
void
find_goal(Thread &x)
{
    x.use("at", ATOMIC, 0);
    x.use("n", WRITE, 0, 1, x.t == 0);
}

/* A place of its own, by n's old value. */
void
join(Thread &x, const char *array)
{
    x.use("n", ATOMIC, 0);
    x.use(array, ATOMIC, x.any("place", 0, MEMBERS - 1));
}

void
read_at(const Config &, Thread &x)
{
    x.use("at", READ, 0);
}

void
read_any(Thread &x, const char *array)
{
    x.use(array, READ, x.any("member", 0, MEMBERS - 1));
}

} // namespace

std::vector<Kernel>
sample_stages()
{
    return {
        {"gpu/cuda/sample.cu",
         "block_found",
         "part | part",
         {},
         SAMPLE_THREADS,
         "block_found",
         0,
         {[](const Config &, Thread &x) {
              x.use("part", WRITE, x.warp(), 1, x.lane() == 0);
          },
          [](const Config &, Thread &x) { x.use("part", READ, x.lane() % 16); }}},
        {"gpu/cuda/sample.cu",
         "sum_before",
         "| part | part",
         {},
         SAMPLE_THREADS,
         "sum_before",
         0,
         {[](const Config &, Thread &x) {
              x.use("before", WRITE, x.warp(), 1, x.lane() == 31);
          },
          [](const Config &, Thread &x) { x.use("before", READ, x.any("i", 0, 15)); }},
         true},
        {"gpu/cuda/sample.cu",
         "line_up",
         "sum_before()",
         {},
         SAMPLE_THREADS,
         nullptr,
         0,
         {}},
        {"gpu/cuda/sample.cu",
         "find_among",
         "| s line_up() s |",
         {"s"},
         SAMPLE_THREADS,
         nullptr,
         0,
         {[](const Config &, Thread &x) { own_bins(x, READ); },
          [](const Config &, Thread &x) { find_goal(x); }}},
        {"gpu/cuda/sample.cu",
         "narrow",
         "s | s find_among() s |",
         {"s"},
         SAMPLE_THREADS,
         "narrow",
         0,
         {[](const Config &, Thread &x) { empty_bins(x); },
          [](const Config &, Thread &x) { put(x); }, read_at},
         true},
        {"gpu/cuda/sample.cu",
         "close_in",
         "s find_among() s |",
         {"s"},
         SAMPLE_THREADS,
         "find_among",
         0,
         {[](const Config &, Thread &x) {
              put(x);
              read_any(x, "member");
          },
          [](const Config &k, Thread &x) {
              read_at(k, x);
              read_any(x, "member");
              join(x, "close");
          }}},
        {"gpu/cuda/sample.cu",
         "pick",
         "m s | s | { narrow() s } s | ( close_in() m s ) m s | s",
         {"s", "m"},
         SAMPLE_THREADS,
         "pick",
         0,
         {[](const Config &, Thread &x) {
              find_goal(x);
              empty_bins(x);
          },
          read_at, nothing,
          [](const Config &, Thread &x) {
              empty_bins(x);
              join(x, "member");
          },
          nothing,
          [](const Config &, Thread &x) {
              read_any(x, "member");
              read_any(x, "close");
              x.use("picked", ATOMIC, 0); /* the one that has the goal */
          },
          [](const Config &, Thread &x) { x.use("picked", READ, 0); }},
         true},
    };
}

std::vector<Kernel>
draw_stages()
{
    return {
        {"gpu/cuda/sample.cu",
         "chosen_key",
         "line_up() { pick() s }",
         {"s"},
         SAMPLE_THREADS,
         "pick",
         3,
         {nothing}},
        {"gpu/cuda/sample.cu",
         "weigh",
         "part | part s | part s sum_before() s | s",
         {"s"},
         SAMPLE_THREADS,
         "weigh",
         2,
         {nothing,
          [](const Config &, Thread &x) {
              put(x);
              x.use("sums", WRITE, x.warp(), 1, x.lane() == 0);
          },
          [](const Config &, Thread &x) {
              x.use("sums", READ, x.lane() % 16, 1, x.warp() == 0);
              own_bins(x, READ);
          },
          [](const Config &, Thread &x) { own_bins(x, WRITE); },
          [](const Config &, Thread &x) { put(x); }}},
        {"gpu/cuda/sample.cu",
         "draw_kernel",
         "s block_found() weigh() s | last | last ( chosen_key() s )",
         {},
         SAMPLE_THREADS,
         "draw_kernel",
         1,
         {[](const Config &, Thread &x) { empty_bins(x); }, nothing,
          [](const Config &, Thread &x) { x.use("last", WRITE, 0, 1, x.t == 0); },
          [](const Config &, Thread &x) { x.use("last", READ, 0); }, nothing}},
    };
}

} // namespace verify
