/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files of class B (docs/KVFORMAT.md): sections are aligned, do not overlap, and lie inside
 * the file, for every size that a file may claim. kvstore/offsets.h has the rule;
 * kvfile_plan() is then asked for the shipped configurations and compared with it.
 */
#include "verify/formulas.hh"
#include "verify/prove.hh"

extern "C" {
#include "base/err.h"
#include "kvstore/kvfile.h"
#include "model/kvlayout.h"
}

namespace verify
{

using namespace formula;

namespace
{

/* Three sections of any sizes behind the head, as kvfile.c lays them out. */
void
sections_apart(const Config &, Statement &s)
{
    const Int most = Int(int64_t{1} << 40);
    const Int a = s.any("a", 0, most), b = s.any("b", 0, most), c = s.any("c", 0, most);
    const Int x = s.any("x", 0, most), y = s.any("y", 0, most), z = s.any("z", 0, most);
    const Int at_a = KVFILE_ALIGN;
    const Int at_b = s.mutant ? at_a + a / KVFILE_ALIGN * KVFILE_ALIGN
                              : section_behind(at_a, a);
    const Int at_c = section_behind(at_b, b), end = section_behind(at_c, c);

    s.assume(x < a && y < b && z < c); /* a byte of each */
    s.claim(at_a + x < at_b + y && at_b + y < at_c + z && at_c + z < end);
    s.claim(at_b % KVFILE_ALIGN == 0 && at_c % KVFILE_ALIGN == 0 &&
            end % KVFILE_ALIGN == 0);
}

/* No more than a block is lost behind a section, and nothing fits into what is lost. */
void
padding_is_short(const Config &, Statement &s)
{
    const Int n = s.any("n", 0, Int(int64_t{1} << 40)), w = whole_blocks(n);

    s.claim(w >= n && w - n < (s.mutant ? KVFILE_ALIGN - 1 : KVFILE_ALIGN));
}

/* kvfile_plan() itself, for chunks of every length and states at every position of a page.
 */
void
plan_is_rule(const Config &k, Statement &s)
{
    struct kv_layout l;
    struct err e;
    struct kvfile_model m = {};

    if (kv_layout_init(&l, &k.c, true, &e) == -1) {
        s.claim(Int(0) == 1);
        return;
    }
    m.page_bytes = l.page_bytes;
    m.state_most = l.state_most;
    m.vocab = static_cast<uint32_t>(k.c.vocab_size);
    m.n_parts = static_cast<uint32_t>(l.n_parts);
    for (uint32_t pages = 1; pages <= KVFILE_CHUNK_TOKENS / KVFILE_PAGE_TOKENS; pages++) {
        struct kvfile_about a = {};
        struct kvfile_plan plan;

        a.type = KVFILE_CHUNK;
        a.n_tokens = pages * KVFILE_PAGE_TOKENS;
        kvfile_plan(&m, &a, &plan);
        const Int tokens_at =
            section_behind(KVFILE_ALIGN, m.n_parts * sizeof(struct kvfile_part));
        const Int pages_at = section_behind(tokens_at, a.n_tokens * 4);

        s.claim(Int(plan.pages_at) == pages_at + (s.mutant && pages == 7 ? 1 : 0));
        s.claim(Int(plan.bytes) == section_behind(pages_at, pages * m.page_bytes));
    }
    for (uint64_t pos = 0; pos < 2 * KVFILE_PAGE_TOKENS; pos++) {
        struct kvfile_about a = {};
        struct kvfile_plan plan;

        a.type = KVFILE_STATE;
        a.logits = true;
        a.state_bytes = kv_state_bytes(&l, pos);
        kvfile_plan(&m, &a, &plan);
        s.claim(Int(plan.logits_at) == section_behind(plan.state_at, a.state_bytes));
        s.claim(Int(plan.bytes) == section_behind(plan.logits_at, Int(m.vocab) * 4));
        s.claim(Int(a.state_bytes) <= Int(m.state_most));
    }
    kv_layout_done(&l);
}

} // namespace

const std::vector<Obligation> files = {
    {"files", "sections-apart",
     "sections are aligned, in order, disjoint and inside the file", false, sections_apart},
    {"files", "padding-is-short", "less than a block is lost behind a section", false,
     padding_is_short},
    {"files", "plan-is-rule", "kvfile_plan() follows the rule for every chunk and state",
     true, plan_is_rule},
};

} // namespace verify
