/* SPDX-License-Identifier: Apache-2.0 */
/* Which keys a query has: lists of rows in rings, in the step itself and in pages, and the
 * indexer's jobs. Places come from gpu/index.h; nothing here does arithmetic on values. */
#include "base/err.h"
#include "gpu/cuda/device.cuh"
#include "gpu/cuda/kernels.h"
#include "gpu/index.h"
#include "model/kvsize.h"

enum { THREADS = 256 };

/* Grid: chunks of the list, rows. */
static __global__ void __launch_bounds__(THREADS)
list_keys_kernel(struct keys_args a)
{
    const int row = a.row0 + blockIdx.y, i = grid_item(blockIdx.x, THREADS, threadIdx.x);
    const struct dev_row r = a.rows[row];
    const struct dev_span s = a.spans[r.span];
    const uint64_t first = window_first(r.pos, a.window);
    const int n_window = window_keys(r.pos, a.window);
    const int visible = a.ratio > 0 ? (int)entries_visible(r.pos, a.ratio) : 0;
    const bool some = a.picked != NULL && visible > a.topk;
    const int n = n_window + entries_taken(visible, a.topk, a.picked != NULL);
    const uint8_t *key;

    if (i == 0) {
        struct attention_args job = a.like;
        const size_t width = row_start(job.n_heads, job.dim);

        job.q += row_start(row, width);
        job.o += row_start(row, width);
        job.keys = a.keys + row_start(blockIdx.y, a.max_keys);
        job.n_keys = n;
        a.jobs[blockIdx.y] = job;
    }
    if (i >= n)
        return;
    if (i < n_window) {
        const uint64_t p = first + i;

        key = p >= s.start
                  ? a.step_rows + row_start(step_row(s.row0, p, s.start), a.row_bytes)
                  : s.rings + a.ring_at +
                        row_start(ring_slot(p, a.ring_slots), a.row_bytes);
    } else {
        const int per_page = KV_PAGE_TOKENS / a.ratio, at = i - n_window;
        const uint64_t j = some ? a.picked[row_start(row, a.topk) + at] : at;

        key = s.pages[entry_page(j, per_page)] + a.page_at +
              row_start(entry_row(j, per_page), a.row_bytes);
    }
    a.keys[row_start(blockIdx.y, a.max_keys) + i] = key;
}

int
list_keys_cuda(struct cuda_rank *rk, const struct keys_args *a, struct err *e)
{
    if (a->n == 0)
        return 0;
    CU_TRY(launch_kernel(rk->stream, list_keys_kernel,
                         dim3(ceil_div(a->max_keys, THREADS), a->n), THREADS, 0, *a),
           e);
    return 0;
}

static __global__ void __launch_bounds__(THREADS)
index_jobs_kernel(struct index_jobs_args a)
{
    const int i = grid_item(blockIdx.x, THREADS, threadIdx.x), row = a.row0 + i;
    struct index_score_args job = a.like;
    int visible;

    if (i >= a.n)
        return;
    visible = (int)entries_visible(a.rows[row].pos, a.ratio);
    job.q += (size_t)row * a.q_bytes;
    job.w += (size_t)row * job.n_heads;
    job.blocks = a.spans[a.rows[row].span].pages;
    job.score += row_start(i, a.max_rows);
    job.n_rows = visible > a.topk ? visible : 0;
    a.jobs[i] = job;
}

int
index_jobs_cuda(struct cuda_rank *rk, const struct index_jobs_args *a, struct err *e)
{
    if (a->n == 0)
        return 0;
    CU_TRY(launch_kernel(rk->stream, index_jobs_kernel, dim3(ceil_div(a->n, THREADS)),
                         THREADS, 0, *a),
           e);
    return 0;
}
