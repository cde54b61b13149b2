/* SPDX-License-Identifier: Apache-2.0 */
/* Stages (stages.cc) of the streams. */
#include "verify/formulas.hh"
#include "verify/stages.hh"

namespace verify
{

using namespace formula;

namespace
{

/* All that one warp does with comb: elements by lanes, lines read whole. */
enum { COMB = 64 /* 8 streams */ };

void
comb_all(const Config &, Thread &x)
{
    x.use("comb", READ, x.any("i", 0, COMB - 1), 1, x.t < 32);
}

void
comb_own(const Config &, Thread &x)
{
    x.use("comb", WRITE, x.t + x.any("round", 0, 1) * 32, 1, x.t < 32);
}

void
comb_out(const Config &, Thread &x)
{
    x.use("comb", READ, x.t + x.any("round", 0, 1) * 32, 1, x.t < 32);
}

/* streams_mix_row_kernel: a column of a stream, by a lane of the first warps. */
void
one_column(const Config &k, Thread &x)
{
    const int lanes = k.c.hc_mult == 4 ? 8 : 4;

    x.use("x", WRITE, x.lane() / lanes * lanes * 4 + x.warp() * lanes + x.lane() % lanes, 1,
          x.warp() < 4);
}

/* mix_of, by the last warp of streams_in_kernel. */
void
last_warp(const Config &k, Thread &x)
{
    const int lanes = k.c.hc_mult == 4 ? 4 : 2;

    x.use("pre", WRITE, x.lane() / lanes, 1,
          x.t >= 512 && x.lane() % lanes == 0 && x.lane() / lanes < k.c.hc_mult);
}

} // namespace

std::vector<Kernel>
streams_stages()
{
    return {
        {"gpu/cuda/mhc.cu",
         "normalise",
         ". c . c",
         {"c"},
         512,
         "normalise",
         1,
         {comb_all, comb_own},
         true},
        {"gpu/cuda/mhc.cu",
         "sinkhorn",
         ". c . c . c . c normalise() c { normalise() c normalise() c } .",
         {"c"},
         512,
         "sinkhorn",
         2,
         {comb_all, comb_own, comb_all, comb_own, nothing, nothing, nothing}},
        {"gpu/cuda/mhc.cu",
         "coefficients",
         "comb pre sinkhorn() comb",
         {"pre"},
         512,
         "sinkhorn",
         0,
         {[](const Config &k, Thread &x) {
              x.use("pre", WRITE, x.t, 1, x.t < k.c.hc_mult);
              comb_own(k, x);
          },
          comb_out}},
        {"gpu/cuda/mhc.cu",
         "hc_pre_kernel",
         "block_sum() ( coefficients() pre ) | pre",
         {},
         512,
         "hc_pre_kernel",
         0,
         {nothing, [](const Config &k,
                      Thread &x) { x.use("pre", READ, x.any("i", 0, k.c.hc_mult - 1)); }}},
        {"gpu/cuda/streams.cuh",
         "divide_lines",
         ". c . c",
         {"c"},
         512,
         "divide_lines",
         1,
         {comb_all, comb_own},
         true},
        {"gpu/cuda/streams.cuh",
         "sinkhorn_shared",
         ". c . c divide_lines() c divide_lines() c { divide_lines() c divide_lines() c } .",
         {"c"},
         512,
         "sinkhorn_shared",
         1,
         {comb_all, comb_own, nothing, nothing, nothing, nothing}},
        {"gpu/cuda/streams.cuh",
         "way_back",
         "m | m comb sinkhorn_shared() comb",
         {},
         512,
         "way_back",
         0,
         {[](const Config &k, Thread &x) {
              const int hc = k.c.hc_mult, n = hc + hc * hc + 1;
              const int warps = x.threads / 32;
              const Int o = x.warp() + x.any("o", 0, n / warps) * warps;

              x.use("m", WRITE, o + hc, 1, x.lane() == 0 && o < n);
          },
          [](const Config &k, Thread &x) {
              const int hc = k.c.hc_mult;

              x.use("m", READ, x.any("i", hc, 2 * hc + hc * hc), 1, x.t < 32);
              comb_own(k, x);
          },
          comb_out}},
        {"gpu/cuda/streams_in.cu",
         "streams_in_kernel",
         "pre | pre squares | squares",
         {},
         544,
         "streams_in_kernel",
         1,
         {last_warp,
          [](const Config &k, Thread &x) {
              x.use("pre", READ, x.any("j", 0, k.c.hc_mult - 1), 1, x.t < 512);
              x.use("squares", WRITE, x.warp() + x.any("turn", 0, 3) * 16, 1,
                    x.t < 512 && x.lane() == 0);
          },
          [](const Config &, Thread &x) {
              x.use("squares", READ, x.any("i", 0, 63), 1, x.t < 512);
          }}},
        {"gpu/cuda/streams.cu",
         "streams_mix_row_kernel",
         "x | x",
         {},
         256,
         "streams_mix_row_kernel",
         0,
         {one_column,
          [](const Config &, Thread &x) { x.use("x", READ, x.lane() * 4, 4); }}},
        {"gpu/cuda/streams.cu",
         "streams_mix_kernel",
         "{ x | x | }",
         {},
         256,
         "streams_mix_kernel",
         1,
         {[](const Config &, Thread &x) { x.use("x", WRITE, x.t); },
          [](const Config &, Thread &x) {
              x.use("x", READ, x.any("r", 0, 7) * 32 + x.lane());
          },
          nothing}},
    };
}

} // namespace verify
