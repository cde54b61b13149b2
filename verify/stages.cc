/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stages of shared memory: what threads do between two barriers. Of two accesses to one place that
 * no barrier stands between, by different threads, none may write. The table below has, for each
 * kernel, its barriers as scan.hh reads them from the source (`prove --stages` compares), and what
 * each thread does in each stage, in the formulas that the kernel has. Which stages may meet
 * follows from the barriers, round loops and past branches; the mutant leaves one barrier out.
 *
 * Threads of a warp wait for each other at all barriers, those of a block at two kinds, those of a
 * cluster at one. An array that one call hands to another has one name here. The table is in parts
 * (stages_*.cc), by families of kernels.
 */
#include "verify/stages.hh"
#include "verify/formulas.hh"
#include "verify/prove.hh"

namespace verify
{

using namespace formula;

namespace
{

/* What all kernels may call. */
std::vector<Kernel>
common_stages()
{
    return {
        {"gpu/cuda/device.cuh",
         "block_sum",
         "| part | part",
         {},
         1024,
         "block_sum",
         0,
         {[](const Config &, Thread &x) {
              x.use("part", WRITE, x.warp(), 1, x.lane() == 0);
          },
          [](const Config &, Thread &x) { x.use("part", READ, x.lane()); }},
         true},
    };
}

const std::vector<Kernel> &
kernels()
{
    static const std::vector<Kernel> all = [] {
        std::vector<Kernel> out;

        for (const auto &part :
             {common_stages(), inputs_stages(), sample_stages(), draw_stages(),
              packed_stages(), products_stages(), experts_stages(), streams_stages(),
              choose_stages(), best_stages(), attend_stages(), attend_many_stages()})
            out.insert(out.end(), part.begin(), part.end());
        return out;
    }();

    return all;
}

} // namespace

const std::vector<Obligation> stages = meetings_of(kernels());

bool
check_stages(const std::string &sources)
{
    return same_barriers(kernels(), sources);
}

} // namespace verify
