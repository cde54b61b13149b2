/* SPDX-License-Identifier: Apache-2.0 */
#ifndef VERIFY_STAGES_HH
#define VERIFY_STAGES_HH

/*
 * Stages of shared memory: the table (stages.cc, stages_*.cc) and what is made of it (meet.cc).
 * stages.cc says what they are.
 */
#include <map>
#include <set>
#include <string>
#include <vector>

#include "verify/formulas.hh"
#include "verify/prove.hh"

namespace verify
{

enum How { READ, WRITE, ATOMIC };

struct Use {
    std::string array;
    How how;
    Int at, n;
    Bool when;
    Int rank, line; /* elements of different lines are apart */
};

/* One of two threads that may meet. */
struct Thread {
    Statement &s;
    std::string mark, turn_mark;
    Int t, rank;
    int threads; /* of the block */
    std::vector<Use> uses;

    Int any(const std::string &name, Int low, Int high)
    {
        return s.any(name + mark, low, high);
    }

    /* What all threads have alike in one turn of the loop around, and another in the next. */
    Int turn(const char *name, Int low, Int high)
    {
        return s.any(name + turn_mark, low, high);
    }

    void use(const std::string &array, How how, Int at, Int n = 1, Bool when = true)
    {
        uses.push_back({array, how, at, n, when, rank, 0});
    }

    /* Of an array of lines: that these are apart is said in other obligations (cells-apart). */
    void use_in(Int line, const std::string &array, How how, Int at, Int n = 1,
                Bool when = true)
    {
        uses.push_back({array, how, at, n, when, rank, line});
    }

    void use_of(Int other, const char *array, How how, Int at, Bool when)
    {
        uses.push_back({array, how, at, 1, when, other, 0});
    }

    Int lane() const
    {
        return t % 32;
    }

    Int warp() const
    {
        return t / 32;
    }
};

using Stage = void (*)(const Config &, Thread &);

struct Kernel {
    const char *file, *function, *text;
    std::set<std::string> names;
    int threads;
    const char
        *drop; /* of which function, and which of its barriers, the mutant leaves out */
    int drop_at;
    std::vector<Stage> stages;
    bool again = false; /* may be called twice in a row */
    bool runs = false;  /* its loop runs once at least */
    /* which function stands for a name that is handed on; "": one without barriers */
    std::map<std::string, std::string> given = {};
};

inline void
nothing(const Config &, Thread &)
{
}

/* Any of a product's sums (part_sum). */
void read_sums(const Config &, Thread &x);

/* The table's parts. */
std::vector<Kernel> inputs_stages(), sample_stages(), draw_stages(), packed_stages(),
    products_stages(), experts_stages(), streams_stages(), choose_stages(), best_stages(),
    attend_stages(), attend_many_stages();

/* One obligation for each kernel; whether the sources have the table's barriers. */
std::vector<Obligation> meetings_of(const std::vector<Kernel> &kernels);
bool same_barriers(const std::vector<Kernel> &kernels, const std::string &sources);

} // namespace verify

#endif /* VERIFY_STAGES_HH */
