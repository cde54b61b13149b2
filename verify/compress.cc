/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The compressor's kernels (gpu/cuda/compress.cu): a thread is a channel of an entry, no
 * shared memory. The attention's and the indexer's compressors differ in dim alone.
 */
#include "verify/formulas.hh"
#include "verify/prove.hh"

namespace verify
{

using namespace formula;

namespace
{

enum { STEP_ROWS = 1024, SPARE = 16, THREADS = 128 };

/* Calls f(name, dim, ratio, overlap) for each kind of compressor. */
template <class F>
void
each_compressor(const Config &k, F f)
{
    f(std::string("4"), k.c.head_dim, +MODEL_CSA_RATIO, 1);
    f(std::string("128"), k.c.head_dim, 128, 0);
    f(std::string("index"), k.c.index_head_dim, +MODEL_CSA_RATIO, 1);
}

/* Spec 6.1: entry j looks at its own block, by the second half of its inputs, and with
 * overlap at the block before, by the first half; at each of these positions once. */
void
inputs_are_spec(const Config &k, Statement &s)
{
    each_compressor(k, [&](const std::string &n, int dim, int r, int overlap) {
        const Int j = s.any("j" + n, 0, Int(k.c.max_positions) / r - 1);
        const Int count = compress_count(r, overlap), back = compress_back(r, overlap);
        const Int i = s.any("i" + n, 0, count - 1), c = s.any("c" + n, 0, dim - 1);
        const Int reach = compress_reach(j, r, s.mutant ? i + 1 : i), p = reach - back;
        const Int at = compress_channel(c, i, dim, r, overlap);

        s.claim(
            implies(reach >= back, p / r == j || (Int(overlap) == 1 && p / r + 1 == j)));
        s.claim(implies(reach < back, j == 0 && i < r));
        s.claim(implies(
            reach >= back,
            at == c + (overlap == 1 ? choose(p / r == j, Int(dim), Int(0)) : Int(0))));
        s.claim(at < compress_width(dim, overlap));
        s.claim(p == j * r - back + i); /* so each once */
    });
}

/* Each input is a row of the step or of the ring, both halves inside it. */
void
inputs_inside(const Config &k, Statement &s)
{
    each_compressor(k, [&](const std::string &n, int dim, int r, int overlap) {
        const Int max = k.c.max_positions;
        const Int start = s.any("start" + n, 0, max - 1),
                  rows = s.any("n" + n, 1, STEP_ROWS);
        const Int row0 = s.any("row0" + n, 0, STEP_ROWS - 1);
        const Int j = s.any("j" + n, 0, max / r - 1);
        const Int count = compress_count(r, overlap), back = compress_back(r, overlap);
        const Int i = s.any("i" + n, 0, count - 1), c = s.any("c" + n, 0, dim - 1);
        const Int reach = compress_reach(j, r, i), p = reach - back;
        const Int last = (j + 1) * r - 1, width = compress_width(dim, overlap);
        const Int slots = frontier_slots(r, overlap, SPARE);
        const Int at = compress_channel(c, i, dim, r, overlap);

        /* the step's rows complete the entry */
        s.assume(row0 + rows <= STEP_ROWS && start + rows <= max);
        s.assume(last >= start && last < start + rows && reach >= back);

        const Int row = step_row(row0, choose(p >= start, p, start), start);
        const Int in_raw = compress_row(row, width) + width + at;
        const Int in_ring = compress_row(ring_slot(p, slots), width) + width + at;

        s.claim(implies(p >= start, row < row0 + rows));
        s.claim(in_raw < Int(STEP_ROWS) * 2 * width);
        s.claim(in_ring < slots * 2 * width - (s.mutant ? 1 : 0));

        /* no row written behind it, up to SPARE of this step or taken back, is in its slot
         */
        const Int w = s.any("w" + n, 0, max + SPARE);

        s.claim(implies(p < start && w > p && w < start + SPARE,
                        ring_slot(p, slots) != ring_slot(w, slots)));
    });
}

/* add_position changes each score of the step once and no value; pool writes each channel
 * of each entry once. Grids: channels by THREADS, rows. */
void
channels_once(const Config &k, Statement &s)
{
    each_compressor(k, [&](const std::string &n, int dim, int, int overlap) {
        const Int width = compress_width(dim, overlap);
        const Int blocks = (width + THREADS - 1) / THREADS;
        const auto b = s.two("b" + n, 0, blocks - 1), t = s.two("t" + n, 0, THREADS - 1);
        const auto row = s.two("row" + n, 0, STEP_ROWS - 1);
        const Int stride = s.mutant ? THREADS - 1 : +THREADS;
        const auto c = [&](Int block, Int thread) { return block * stride + thread; };
        const Int x = c(b.x, t.x), y = c(b.y, t.y), w = s.any("w" + n, 0, width - 1);
        const Int other = s.any("value" + n, 0, width - 1);
        const Int at_x = compress_row(row.x, width) + width + x,
                  at_y = compress_row(row.y, width) + width + y;

        s.claim(implies((x < width) && y < width && at_x == at_y,
                        b.x == b.y && t.x == t.y && row.x == row.y));
        s.claim(implies(x < width, at_x != compress_row(row.y, width) + other));
        s.claim(w / THREADS < blocks); /* the grid has all */
    });
}

} // namespace

const std::vector<Obligation> compress = {
    {"compress", "inputs-are-spec", "an entry looks at what spec 6.1 says, each once", true,
     inputs_are_spec},
    {"compress", "inputs-inside", "inputs are inside the step's rows and the ring", true,
     inputs_inside},
    {"compress", "channels-once", "each score and each channel is written by one thread",
     true, channels_once},
};

} // namespace verify
