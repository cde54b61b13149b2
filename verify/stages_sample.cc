/* SPDX-License-Identifier: Apache-2.0 */
/* Stages (stages.cc) of the draw. */
#include "verify/formulas.hh"
#include "verify/stages.hh"

namespace verify
{

using namespace formula;

std::vector<Kernel>
sample_stages()
{
    return {
        {"gpu/cuda/sample.cu",
         "block_found",
         "part | part",
         {},
         512,
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
         512,
         "sum_before",
         0,
         {[](const Config &, Thread &x) {
              x.use("part", WRITE, x.warp(), 1, x.lane() == 31);
          },
          [](const Config &, Thread &x) { x.use("part", READ, x.any("i", 0, 15)); }},
         true},
        {"gpu/cuda/sample.cu",
         "weigh",
         "part | part | part sum_before() |",
         {},
         512,
         "weigh",
         1,
         {nothing,
          [](const Config &, Thread &x) {
              x.use("sums", WRITE, x.warp(), 1, x.lane() == 0);
          },
          [](const Config &, Thread &x) {
              x.use("sums", READ, x.lane() % 16, 1, x.warp() == 0);
          }}},
    };
}

} // namespace verify
