/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What kernels have in common (grids, loops of a block) and what moves rows about: embedding,
 * gathering, rings, pages, states (gpu/cuda/rows.cu, kv.c, gpu/network.c). A step has up to 1,024
 * rows; rings and pages are where network_place() puts them.
 */
#include "verify/formulas.hh"
#include "verify/prove.hh"

extern "C" {
#include "base/err.h"
#include "gpu/network.h"
#include "gpu/ops/attention.h"
#include "model/kvlayout.h"
#include "model/kvsize.h"
}

namespace verify
{

using namespace formula;

namespace
{

enum { STEP_ROWS = 1024, SPARE = 16, THREADS = 256, ALIGN = 256, GRID_YZ = 65535 };

/* A grid of blocks of so many threads has each of n things once; none beyond 32 bits. */
void
grid_covers(const Config &, Statement &s)
{
    for (const int threads : {8, 32, 64, 128, 256, 512, 1024}) {
        const std::string n = std::to_string(threads);
        const Int most = INT32_MAX - 1024, count = s.any("n" + n, 1, most);
        const Int blocks = ceil_div(count, threads);
        const auto b = s.two("b" + n, 0, most), t = s.two("t" + n, 0, threads - 1);
        const Int want = s.any("i" + n, 0, most);

        s.assume(b.x < blocks && b.y < blocks && want < count);
        s.alone(grid_item(b.x, threads, t.x), grid_item(b.y, threads, t.y),
                b.x == b.y && t.x == t.y);
        s.claim(want / threads < (s.mutant ? count / threads : blocks) &&
                grid_item(want / threads, threads, want % threads) == want);
    }
}

/* for (i = t; i < n; i += threads): each i is one thread's in one turn, and the last i + threads
 * is still an int. */
void
loops_once(const Config &, Statement &s)
{
    for (const int step : {32, 64, 128, 256, 512, 1024}) {
        const std::string n = std::to_string(step);
        const Int most = INT32_MAX - (s.mutant ? 0 : 1024), count = s.any("n" + n, 0, most);
        const auto t = s.two("t" + n, 0, step - 1), turn = s.two("turn" + n, 0, most);
        const Int x = t.x + turn.x * step, i = s.any("i" + n, 0, most);

        s.assume(x < count && i < count);
        s.alone(x, t.y + turn.y * step, t.x == t.y && turn.x == turn.y);
        s.claim(i % step + i / step * step == i && x + step <= INT32_MAX);
    }
}

/* What grids may be, along y and z: rows, experts, parts. Along x there is room for 2^31 - 1. */
void
grids_fit(const Config &k, Statement &s)
{
    const int widest = k.c.vocab_size > k.c.hidden ? k.c.vocab_size : k.c.hidden;
    const Int limit = s.mutant ? Int(STEP_ROWS - 1) : Int(GRID_YZ);
    const Int rows = s.any("rows", 1, STEP_ROWS),
              blocks = linear_tiles(widest, LINEAR_WARPS);
    const Int keys = Int(k.c.window) + Int(k.c.max_positions) / MODEL_CSA_RATIO;

    s.claim(rows <= limit && Int(k.c.n_experts) <= limit && Int(k.c.n_heads) <= limit);
    s.claim(blocks + blocks * k.c.n_experts <= INT32_MAX); /* packed_expert_kernel's x */
    s.claim(rows * (k.c.n_experts_used + 1) <= GRID_YZ);   /* swiglu_kernel's y */
    s.claim(ceil_div(keys, 32) <= INT32_MAX && keys <= INT32_MAX - 1024);
    s.claim(rows * k.c.n_heads * (k.c.head_dim / 2) <= INT32_MAX);
    s.claim(rows * k.c.n_experts <= INT32_MAX && rows * k.c.n_experts_used <= INT32_MAX);
}

/* embed_kernel, gather_kernel, add_rows_kernel, best_kernel: rows of the table, copies of rows,
 * rows of a vocabulary: inside, in whole words. */
void
rows_inside(const Config &k, Statement &s)
{
    const int hc = k.c.hc_mult, dim = k.c.hidden;
    const Int token = s.any("token", 0, k.c.vocab_size - (s.mutant ? 0 : 1));
    const auto row = s.two("row", 0, STEP_ROWS - 1), copy = s.two("copy", 0, hc - 1);
    const auto c = s.two("c", 0, dim - 1);
    const auto at = [&](Int r, Int of) {
        return Int(row_start(row_start(r, hc) + of, dim));
    };
    const Int logit = s.any("logit", 0, k.c.vocab_size - 1);

    s.claim(row_start(token, dim) + dim <= Int(k.c.vocab_size) * dim);
    s.claim(row_start(token, dim) * 2 % 4 == 0 && at(row.x, copy.x) * 2 % 4 == 0);
    s.alone(at(row.x, copy.x) + c.x, at(row.y, copy.y) + c.y,
            row.x == row.y && copy.x == copy.y && c.x == c.y);
    s.claim(at(row.x, copy.x) + c.x < Int(STEP_ROWS) * hc * dim);
    s.claim(at(row.x, copy.x) == row_start(row.x, hc * dim) + row_start(copy.x, dim));
    s.claim(row_start(row.x, k.c.vocab_size) + logit < Int(STEP_ROWS) * k.c.vocab_size);
    s.claim((row.x * hc + copy.x) / hc == row.x); /* add_rows: the row of f */
}

/* Rows of a step that are kept (the last `slots` of a sequence) go to slots of their own. */
void
kept_apart(const Config &k, Statement &s)
{
    for (const int slots :
         {k.c.window + SPARE, 2 * MODEL_CSA_RATIO + SPARE, 128 + SPARE, SPARE + 1}) {
        const std::string n = std::to_string(slots);
        const Int max = k.c.max_positions, rows = s.any("n" + n, 1, STEP_ROWS);
        const Int start = s.any("start" + n, 0, max - 1),
                  row0 = s.any("row0" + n, 0, STEP_ROWS);
        const auto i = s.two("i" + n, 0, STEP_ROWS - 1);
        const auto kept = [&](Int row) {
            return row - row0 >= rows - slots - (s.mutant ? 1 : 0);
        };

        s.assume(row0 + rows <= STEP_ROWS && i.x >= row0 && i.x < row0 + rows);
        s.assume(i.y >= row0 && i.y < row0 + rows && kept(i.x) && kept(i.y));

        const Int x = choose(i.x >= row0, start + (i.x - row0), start);
        const Int y = choose(i.y >= row0, start + (i.y - row0), start);

        s.claim(implies(i.x != i.y, ring_slot(x, slots) != ring_slot(y, slots)));
    }
}

/* move_state: rows of n positions from `first` on lie in a ring in two pieces at most, each row
 * where its slot is. */
void
pieces_cover(const Config &k, Statement &s)
{
    for (const int slots :
         {k.c.window + SPARE, 2 * MODEL_CSA_RATIO + SPARE, 128 + SPARE, SPARE + 1}) {
        const std::string of = std::to_string(slots);
        const Int first = s.any("first" + of, 0, k.c.max_positions);
        const Int n = s.any("n" + of, 0, slots), i = s.any("i" + of, 0, slots);
        const Int slot = ring_slot(first, slots), head = ring_head(slot, n, slots);

        s.assume(s.mutant ? i <= n : i < n);
        s.claim(head <= n && slot + head <= slots && n - head <= slot);
        s.claim(ring_slot(first + i, slots) == choose(i < head, slot + i, i - head));
    }
}

/* network_place() itself: rings of a sequence are aligned, disjoint and inside it; rows of
 * compressors disjoint and inside a page; slots as the rules of rings (rings.cc) want. */
void
places_apart(const Config &k, Statement &s)
{
    struct network net = {};
    struct network_places at;
    struct err e;
    Int ring = 0, page = 0;

    if (network_new(&net, &k.c, k.c.n_mtp > 0, &e) == -1) {
        s.claim(ring == 1);
        return;
    }
    network_place(&net, &k.c, KV_PACKED, ALIGN, &at);
    const auto take = [&](size_t from, Int bytes) {
        s.claim(Int(from) >= ring && Int(from) % ALIGN == 0);
        ring = Int(from) + bytes + (s.mutant ? 1 : 0);
    };
    const auto entries = [&](const struct compressor &c, int ratio, int overlap) {
        const Int per = KV_PAGE_TOKENS / ratio;

        s.claim(c.slots == frontier_slots(ratio, overlap, SPARE));
        take(c.ring_at, compress_row(c.slots, c.width) * 4);
        s.claim(Int(c.page_at) == page);
        page = page + row_start(per, Int(c.row));
    };
    const auto layer = [&](const struct layer &l) {
        const int overlap = l.ratio == MODEL_CSA_RATIO;

        take(l.ring_at, row_start(at.ring_slots, Int(at.row)));
        if (l.ratio == 0)
            return;
        entries(l.comp, l.ratio, overlap);
        if (l.indexed)
            entries(l.index_comp, l.ratio, overlap);
    };

    s.claim(at.ring_slots == window_slots(k.c.window, SPARE));
    for (int i = 0; i < k.c.n_layers; i++)
        layer(net.layers[i]);
    if (net.draft != nullptr) {
        layer(net.draft->layer);
        take(net.draft->ring_at, Int(SPARE + 1) * k.c.hc_mult * k.c.hidden * 2);
    }
    s.claim(ring <= Int(at.seq_bytes) && page == Int(at.page_bytes));
    if (s.mutant)
        s.claim(Int(at.seq_bytes) == ring);
    network_free(&net);
}

/* copy_list_kernel and synthetic_kernel: 16 blocks of a segment, eight elements a thread: each
 * word of up to 2^40 bytes once, in 64 bits. */
void
words_once(const Config &, Statement &s)
{
    const Int most = Int(int64_t{1} << 40), step = 16 * THREADS;
    const auto b = s.two("b", 0, 15), t = s.two("t", 0, THREADS - 1),
               turn = s.two("k", 0, most);
    const Int i = s.any("i", 0, most);
    const auto at = [&](Int block, Int thread, Int times) {
        return Int(grid_item(block, s.mutant ? THREADS - 1 : +THREADS, thread)) +
               times * step;
    };

    s.alone(at(b.x, t.x, turn.x), at(b.y, t.y, turn.y),
            b.x == b.y && t.x == t.y && turn.x == turn.y);
    s.claim(at(i % step / THREADS, i % THREADS, i / step) == i);

    const auto block = s.two("block", 0, INT32_MAX - 1), one = s.two("one", 0, 7);
    const Int x = (row_start(block.x, THREADS) + t.x) * 8 + one.x;
    const Int y = (row_start(block.y, THREADS) + t.y) * 8 + one.y;

    s.alone(x, y, block.x == block.y && t.x == t.y && one.x == one.y);
}

} // namespace

const std::vector<Obligation> steps = {
    {"steps", "grid-covers", "a grid has each of n things once, in 32 bits", false,
     grid_covers},
    {"steps", "loops-once", "a block's loop has each of n things once, in 32 bits", false,
     loops_once},
    {"steps", "grids-fit", "grids and counts are as large as they may be", true, grids_fit},
    {"steps", "rows-inside", "rows of tables and copies are inside, in whole words", true,
     rows_inside},
    {"steps", "kept-apart", "rows of a step that are kept have slots of their own", true,
     kept_apart},
    {"steps", "pieces-cover",
     "a state's rows lie in two pieces of a ring, each in its slot", true, pieces_cover},
    {"steps", "places-apart", "network_place() puts rings and entries apart, inside", true,
     places_apart},
    {"steps", "words-once", "each word of what is copied or made is one thread's", false,
     words_once},
};

} // namespace verify
