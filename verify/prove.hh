/* SPDX-License-Identifier: Apache-2.0 */
#ifndef VERIFY_PROVE_HH
#define VERIFY_PROVE_HH

#include <functional>
#include <string>
#include <vector>

#include "verify/term.hh"

extern "C" {
#include "model/config.h"
}

/*
 * Obligations and their proofs. An obligation states, for one shipped configuration, what
 * it assumes and what it claims; Z3 is asked for values that satisfy the assumptions and
 * one claim's opposite. There must be none. The same function with `mutant` set plants one
 * bug, and then there must be some: a proof that cannot fail proves nothing.
 */
namespace verify
{

struct Config {
    std::string name;
    model_config c;
};

class Statement
{
  public:
    bool mutant = false;

    void assume(Bool b)
    {
        assumed.push_back(b);
    }

    void claim(Bool b)
    {
        claimed.push_back(b);
    }

    /* An unknown whole number in [low, high]. */
    Int any(const std::string &name, Int low, Int high);

    /* Two numbers in that range, what two threads have: `name` and `name'`. */
    struct Pair {
        Int x, y;
    };

    Pair two(const std::string &name, Int low, Int high);

    /* If two accesses are to one place, then they are one: same is that all that renames
     * is. */
    void alone(Int place_x, Int place_y, Bool same);

    /* n bytes at x and m bytes at y have none in common. */
    void apart(Int x, Int n, Int y, Int m);

    std::vector<Bool> assumed, claimed;
};

struct Obligation {
    const char *group, *name, *says;
    bool per_config; /* else once */
    std::function<void(const Config &k, Statement &s)> state;
};

/* Each group's list; prove.cc runs them all. */
extern const std::vector<Obligation> rings, pages, files, formats, keys, compress, indexer,
    attention, rows, streams, linear, packed, attend, attend_many, choosing, experts,
    inputs, sampling, steps, stages;

/* Whether kernels have the barriers that stages.cc says; prints them. */
bool check_stages(const std::string &sources);

} // namespace verify

#endif /* VERIFY_PROVE_HH */
