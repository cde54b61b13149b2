/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which stages of shared memory meet, from a kernel's barriers, and that no two accesses in them
 * do harm. verify/stages.cc has the table, and says what this is about.
 */
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "verify/scan.hh"
#include "verify/stages.hh"

namespace verify
{

using namespace formula;

namespace
{

const Kernel *
find(const std::vector<Kernel> &kernels, const Kernel &from, const std::string &name)
{
    for (const Kernel &k : kernels)
        if (name == k.function &&
            (strcmp(k.file, from.file) == 0 || strstr(k.file, ".cuh") != nullptr))
            return &k;
    return nullptr;
}

/* Which stages may meet: no barrier of that strength stands between them. */
class Meetings
{
  public:
    struct Pair {
        Stage a, b;
        bool other_turn;
    };

    Meetings(const std::vector<Kernel> &kernels, const Kernel &kernel, Node::Kind weakest,
             bool mutant)
        : table(kernels), from(kernel), strength(weakest), drop(mutant)
    {
        Open open;

        walk(kernel, nodes_of(kernel.text), open);
        if (kernel.again) {
            for (auto &o : open)
                o.second = true;
            walk(kernel, nodes_of(kernel.text), open);
        }
    }

    std::vector<Pair> pairs;

  private:
    using Open = std::vector<std::pair<Stage, bool>>; /* whether of another turn */

    const std::vector<Kernel> &table;
    const Kernel &from;
    Node::Kind strength;
    bool drop;

    static void join(Open &to, const Open &more)
    {
        for (const auto &o : more)
            if (std::find(to.begin(), to.end(), o) == to.end())
                to.push_back(o);
    }

    void meet(Stage a, Stage b, bool other)
    {
        for (const Pair &p : pairs)
            if (p.a == a && p.b == b && p.other_turn == other)
                return;
        pairs.push_back({a, b, other});
    }

    bool holds(Node::Kind barrier) const
    {
        return barrier == Node::CLUSTER || barrier == strength ||
               (barrier == Node::BLOCK && strength == Node::WARP);
    }

    const Kernel *called(const std::string &name) const
    {
        const auto other = from.given.find(name);

        return find(table, from, other != from.given.end() ? other->second : name);
    }

    void walk(const Kernel &k, const Nodes &nodes, Open &open)
    {
        size_t stage = 0;
        int barrier = 0;

        walk(k, nodes, open, stage, barrier);
    }

    void walk(const Kernel &k, const Nodes &nodes, Open &open, size_t &stage, int &barrier)
    {
        for (const Node &n : nodes) {
            const size_t first = stage;
            const int at = barrier;
            Open before = open, all;

            switch (n.kind) {
            case Node::NAMES:
                for (const auto &o : open)
                    meet(o.first, k.stages.at(stage), o.second);
                meet(k.stages.at(stage), k.stages.at(stage), false);
                join(open, {{k.stages.at(stage++), false}});
                break;
            case Node::CALL:
                if (const Kernel *f = called(*n.names.begin()))
                    walk(*f, nodes_of(f->text), open);
                break;
            case Node::LOOP:
                walk(k, n.parts[0], open, stage, barrier);
                all = open;
                for (auto &o : all)
                    o.second = true;
                if (!k.runs)
                    join(all, before);
                stage = first;
                barrier = at;
                walk(k, n.parts[0], all, stage, barrier);
                join(open, all);
                if (!k.runs)
                    join(open, before);
                break;
            case Node::BRANCHES:
                for (const Nodes &part : n.parts) {
                    Open one = before;

                    walk(k, part, one, stage, barrier);
                    join(all, one);
                }
                if (n.parts.size() == 1)
                    join(all, before);
                open = all;
                break;
            default:
                if (drop && strcmp(k.function, from.drop) == 0 && barrier++ == from.drop_at)
                    break;
                barrier += !drop || strcmp(k.function, from.drop) != 0;
                if (holds(n.kind))
                    open.clear();
            }
        }
    }
};

void
state(const std::vector<Kernel> &kernels, const Kernel &kernel, const Config &k,
      Statement &s)
{
    int number = 0;

    for (const Node::Kind strength : {Node::WARP, Node::BLOCK, Node::CLUSTER}) {
        for (const Meetings::Pair &p :
             Meetings(kernels, kernel, strength, s.mutant).pairs) {
            const std::string n = "." + std::to_string(number++);
            const bool same_turn = !p.other_turn;
            const auto t = s.two("t" + n, 0, kernel.threads - 1);
            const auto rank = s.two("rank" + n, 0, 15);
            Thread x = {s, n, n + "turn", t.x, rank.x, kernel.threads, {}};
            Thread y = {s,   n + "'", same_turn ? n + "turn" : n + "turn'",
                        t.y, rank.y,  kernel.threads,
                        {}};
            const Bool one_warp = t.x / 32 == t.y / 32, one_rank = rank.x == rank.y;
            Bool two = t.x != t.y && one_warp && one_rank;

            if (strength == Node::BLOCK)
                two = one_rank && !one_warp;
            else if (strength == Node::CLUSTER)
                two = !one_rank;
            p.a(k, x);
            p.b(k, y);
            if (!same_turn) /* turns have different numbers */
                for (const char *name : {"low", "k"})
                    s.assume(unknown((name + n + "turn").c_str()) !=
                             unknown((name + n + "turn'").c_str()));
            for (const Use &u : x.uses)
                for (const Use &v : y.uses)
                    if (u.array == v.array && (u.how != v.how || u.how == WRITE))
                        s.claim(implies(two && u.when && v.when && u.rank == v.rank &&
                                            u.line == v.line,
                                        u.at + u.n <= v.at || v.at + v.n <= u.at));
        }
    }
}

} // namespace

std::vector<Obligation>
meetings_of(const std::vector<Kernel> &kernels)
{
    std::vector<Obligation> out;

    for (const Kernel &k : kernels)
        if (k.drop != nullptr) /* others are but called by some */
            out.push_back({"stages", k.function,
                           "no two threads meet at one place that one writes", true,
                           [&kernels, &k](const Config &c, Statement &s) {
                               state(kernels, k, c, s);
                           }});
    return out;
}

bool
same_barriers(const std::vector<Kernel> &kernels, const std::string &sources)
{
    bool good = true;

    for (const Kernel &k : kernels) {
        std::set<std::string> calls;
        Nodes n;

        for (const Kernel &f : kernels)
            if (&f != &k && find(kernels, k, f.function) == &f)
                calls.insert(f.function);
        for (const auto &name : k.given)
            calls.insert(name.first);
        const bool there = scan(sources + "/" + k.file, k.function, k.names, calls, n);
        const std::string is = there ? text_of(n) : "not there",
                          want = text_of(nodes_of(k.text));

        printf("%s %s: %s\n", is == want ? "same" : "DIFFERENT", k.function, is.c_str());
        if (is != want)
            printf("  verify/stages*.cc: %s\n", want.c_str());
        good = good && is == want;
    }
    return good;
}

} // namespace verify
