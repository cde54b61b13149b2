/* SPDX-License-Identifier: Apache-2.0 */
#ifndef VERIFY_SCAN_HH
#define VERIFY_SCAN_HH

#include <set>
#include <string>
#include <vector>

/*
 * The barriers of a kernel, by its text: what names it mentions in front of, between and behind
 * them, and the loops and branches around. verify/stages.cc says what it takes a kernel to do in
 * these stages; this is how it knows that the kernel has them, in that order.
 *
 * As text: names of a stage with blanks between; "|" is a barrier of the block, "||" of the
 * cluster, "." of the warp; "{ }" a loop that has barriers in it, "( / )" branches that do; "f()"
 * a function that has some itself.
 */
namespace verify
{

struct Node {
    enum Kind { NAMES, BLOCK, CLUSTER, WARP, LOOP, BRANCHES, CALL } kind;

    std::set<std::string> names;          /* NAMES; CALL: the one function */
    std::vector<std::vector<Node>> parts; /* LOOP: one; BRANCHES: several */
};

using Nodes = std::vector<Node>;

/* The body of `function` in that file. names: of interest (no members, but methods), besides those that the
 * function itself declares __shared__. calls: functions with barriers. False: no such function. */
bool scan(const std::string &path, const std::string &function,
          const std::set<std::string> &names, const std::set<std::string> &calls,
          Nodes &to);

std::string text_of(const Nodes &n);
Nodes nodes_of(const std::string &text);

} // namespace verify

#endif /* VERIFY_SCAN_HH */
