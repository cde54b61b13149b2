/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sequences: rings of what the next tokens look back at, one part of the arena each, and pages
 * of compressed rows from a pool, 128 tokens each over all layers. Rules are those of the CPU
 * backend: forks share pages until one of them writes, and everything that a step needs is
 * taken before it begins. Rings of all sequences are set aside when the model is opened, so
 * they count as used from the start; what is left is pages.
 *
 * Kernels find pages by a table of addresses a sequence. Its copy here is changed between steps
 * only, and what changed is sent in front of the next step.
 */
#include "config.h"

#include <string.h>

#include "base/err.h"
#include "gpu/check.h"
#include "gpu/cuda/cuda.h"
#include "gpu/index.h"

/* What the pool is made of: `bytes` of caches in all. */
int
cuda_pool_size(struct backend *b, uint64_t bytes, struct err *e)
{
    const uint64_t rings = (uint64_t)b->max_seqs * b->at.seq_bytes;
    const uint64_t most = ((uint64_t)b->c.max_positions + KV_PAGE_TOKENS - 1) /
                          KV_PAGE_TOKENS;

    if (bytes < rings)
        return err_set(e, ERR_QUOTA, 0,
                       "%llu bytes of caches: %u sequences of %zu bytes do not fit",
                       (unsigned long long)bytes, b->max_seqs, b->at.seq_bytes);
    b->n_pool = b->at.page_bytes > 0 ? (size_t)((bytes - rings) / b->at.page_bytes) : 0;
    if (b->n_pool > (uint64_t)b->max_seqs * most)
        b->n_pool = (size_t)(b->max_seqs * most);
    b->cap_pages = b->n_pool < most ? b->n_pool : (size_t)most;
    b->kv_limit = rings + (uint64_t)b->n_pool * b->at.page_bytes;
    b->kv_used = rings;
    b->page_refs = cuda_host(b, b->n_pool, sizeof *b->page_refs, e);
    b->page_free = cuda_host(b, b->n_pool, sizeof *b->page_free, e);
    b->seqs = cuda_host(b, b->max_seqs, sizeof *b->seqs, e);
    uint32_t *lists = cuda_host(b, (size_t)b->max_seqs * b->cap_pages, sizeof *lists, e);

    if (b->page_refs == NULL || b->page_free == NULL || b->seqs == NULL || lists == NULL)
        return -1;
    for (uint32_t i = 0; i < b->max_seqs; i++)
        b->seqs[i].pages = lists + (size_t)i * b->cap_pages;
    for (size_t i = 0; i < b->n_pool; i++) /* low numbers first */
        b->page_free[i] = (uint32_t)(b->n_pool - 1 - i);
    b->n_free = b->n_pool;
    CU_TRY(cudaMallocHost((void **)&b->table_host,
                          ((size_t)b->max_seqs * b->cap_pages + 1) * sizeof *b->table_host),
           e);
    return 0;
}

void
cuda_pool_plan(struct backend *b)
{
    b->tables =
        arena_take(&b->arena, (size_t)b->max_seqs * b->cap_pages, sizeof *b->tables);
    b->rings = arena_take(&b->arena, b->max_seqs, b->at.seq_bytes);
    b->pool = arena_take(&b->arena, b->n_pool, b->page_stride);
}

uint8_t *
cuda_rings_of(const struct backend *b, uint32_t seq)
{
    return b->rings + (size_t)seq * b->at.seq_bytes;
}

uint8_t *
cuda_page_of(const struct backend *b, uint32_t page)
{
    return b->pool + (size_t)page * b->page_stride;
}

static void
page_drop(struct backend *b, uint32_t page)
{
    if (--b->page_refs[page] > 0)
        return;
    b->page_free[b->n_free++] = page;
    b->kv_used -= b->at.page_bytes;
}

/* There is one: cuda_reserve has counted. */
static uint32_t
page_take(struct backend *b)
{
    const uint32_t page = b->page_free[--b->n_free];

    b->page_refs[page] = 1;
    b->kv_used += b->at.page_bytes;
    return page;
}

static void
page_set(struct backend *b, struct cuda_seq *q, size_t at, uint32_t page)
{
    q->pages[at] = page;
    b->table_host[(size_t)(q - b->seqs) * b->cap_pages + at] = cuda_page_of(b, page);
    q->clean = at < q->clean ? at : q->clean;
}

static void
pages_cut(struct backend *b, struct cuda_seq *q, uint64_t len)
{
    while (q->n_pages > (len + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS)
        page_drop(b, q->pages[--q->n_pages]);
    q->clean = q->n_pages < q->clean ? q->n_pages : q->clean;
}

int
cuda_find_open(const struct backend *b, uint32_t seq, struct err *e)
{
    if (seq >= b->max_seqs || !b->seqs[seq].open)
        return err_set(e, ERR_NOT_FOUND, 0, "sequence %u is not open", seq);
    return 0;
}

int
cuda_find_whole(const struct backend *b, uint32_t seq, struct err *e)
{
    if (cuda_find_open(b, seq, e) == -1)
        return -1;
    if (b->seqs[seq].coming)
        return err_set(e, ERR_CONFLICT, 0,
                       "sequence %u has been given pages, and no state yet", seq);
    return 0;
}

static int
find_closed(const struct backend *b, uint32_t seq, struct err *e)
{
    if (seq >= b->max_seqs)
        return err_set(e, ERR_INVALID, 0, "sequence %u of at most %u", seq, b->max_seqs);
    if (b->seqs[seq].open)
        return err_set(e, ERR_EXISTS, 0, "sequence %u is open already", seq);
    return 0;
}

int
cuda_seq_open(struct backend *b, uint32_t seq, struct err *e)
{
    if (find_closed(b, seq, e) == -1)
        return -1;
    CU_TRY(cudaMemsetAsync(cuda_rings_of(b, seq), 0, b->at.seq_bytes, b->rk.stream), e);
    b->seqs[seq] = (struct cuda_seq){
        .open = true, .pages = b->seqs[seq].pages, .copied = b->seqs[seq].copied};
    return 0;
}

/* seq_row has it no more. */
static void
forget_row(struct backend *b, uint32_t seq)
{
    for (int i = 0; i < b->kept; i++)
        if (b->head_seq[i] == seq)
            b->head_drawn[i] = NULL;
}

void
cuda_seq_close(struct backend *b, uint32_t seq)
{
    if (seq >= b->max_seqs || !b->seqs[seq].open)
        return;
    if (b->seqs[seq].busy)
        cudaEventSynchronize(
            b->seqs[seq].copied); /* its pages may be somebody else's next */
    pages_cut(b, &b->seqs[seq], 0);
    forget_row(b, seq);
    b->seqs[seq] =
        (struct cuda_seq){.pages = b->seqs[seq].pages, .copied = b->seqs[seq].copied};
}

int
cuda_seq_fork(struct backend *b, uint32_t from, uint32_t to, struct err *e)
{
    struct cuda_seq *q, *t;

    if (cuda_find_whole(b, from, e) == -1 || find_closed(b, to, e) == -1)
        return -1;
    CU_TRY(cudaMemcpyAsync(cuda_rings_of(b, to), cuda_rings_of(b, from), b->at.seq_bytes,
                           cudaMemcpyDeviceToDevice, b->rk.stream),
           e);
    q = &b->seqs[from];
    t = &b->seqs[to];
    *t = (struct cuda_seq){.open = true,
                           .len = q->len,
                           .high = q->high,
                           .floor = q->floor,
                           .pages = t->pages,
                           .copied = t->copied};
    for (; t->n_pages < q->n_pages; t->n_pages++) {
        b->page_refs[q->pages[t->n_pages]]++;
        page_set(b, t, t->n_pages, q->pages[t->n_pages]);
    }
    return 0;
}

int
cuda_seq_rewind(struct backend *b, uint32_t seq, uint64_t len, struct err *e)
{
    struct cuda_seq *q;

    if (cuda_find_whole(b, seq, e) == -1)
        return -1;
    q = &b->seqs[seq];
    if (check_rewind(len, q->len, q->high, q->floor, e) == -1)
        return -1;
    if (len < q->len)
        forget_row(b, seq);
    q->len = len;
    pages_cut(b, q, len);
    return 0;
}

static size_t
pages_wanted(const struct cuda_seq *q, uint64_t n)
{
    return (size_t)((q->len + n + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS);
}

/* n more pages for caches that come in; ERR_QUOTA takes none. */
int
cuda_pages_add(struct backend *b, struct cuda_seq *q, uint64_t n, struct err *e)
{
    if (b->at.page_bytes == 0)
        return 0;
    if (n > b->n_free)
        return err_set(e, ERR_QUOTA, 0, "%llu more pages of %zu bytes; %zu are free",
                       (unsigned long long)n, b->at.page_bytes, b->n_free);
    for (const size_t want = q->n_pages + (size_t)n; q->n_pages < want; q->n_pages++)
        page_set(b, q, q->n_pages, page_take(b));
    return 0;
}

/* The last page is written to although a fork holds it too. */
static bool
is_shared(const struct backend *b, const struct cuda_seq *q)
{
    const size_t at = (size_t)page_of(q->len, KV_PAGE_TOKENS);

    return at < q->n_pages && b->page_refs[q->pages[at]] > 1;
}

static int
pages_take(struct backend *b, struct cuda_seq *q, uint64_t n, struct err *e)
{
    const size_t at = (size_t)page_of(q->len, KV_PAGE_TOKENS), want = pages_wanted(q, n);

    if (is_shared(b, q)) {
        const uint32_t own = b->page_free[b->n_free - 1];

        CU_TRY(cudaMemcpyAsync(cuda_page_of(b, own), cuda_page_of(b, q->pages[at]),
                               b->at.page_bytes, cudaMemcpyDeviceToDevice, b->rk.stream),
               e);
        page_take(b);
        page_drop(b, q->pages[at]);
        page_set(b, q, at, own);
    }
    for (; q->n_pages < want; q->n_pages++)
        page_set(b, q, q->n_pages, page_take(b));
    return 0;
}

/* All pages that the step needs, or ERR_QUOTA with nothing taken. */
int
cuda_reserve(struct backend *b, const struct step *s, struct err *e)
{
    uint64_t missing = 0;

    if (b->at.page_bytes == 0)
        return 0;
    for (uint32_t i = 0; i < s->n_seqs; i++) {
        const struct cuda_seq *q = &b->seqs[s->seqs[i].seq];

        missing += pages_wanted(q, s->seqs[i].n_tokens) - q->n_pages + is_shared(b, q);
    }
    if (missing > b->n_free)
        return err_set(e, ERR_QUOTA, 0,
                       "the step takes %llu more pages of %zu bytes; %zu are free",
                       (unsigned long long)missing, b->at.page_bytes, b->n_free);
    for (uint32_t i = 0; i < s->n_seqs; i++)
        if (pages_take(b, &b->seqs[s->seqs[i].seq], s->seqs[i].n_tokens, e) == -1)
            return -1;
    return 0;
}

/* What changed in the tables of the step's sequences, to the device. */
int
cuda_tables_send(struct backend *b, const struct step *s, struct err *e)
{
    for (uint32_t i = 0; i < s->n_seqs; i++) {
        struct cuda_seq *q = &b->seqs[s->seqs[i].seq];
        const size_t at = (size_t)s->seqs[i].seq * b->cap_pages + q->clean;
        const size_t n = q->n_pages - q->clean;

        if (n == 0)
            continue;
        CU_TRY(cudaMemcpyAsync(b->tables + at, b->table_host + at, n * sizeof *b->tables,
                               cudaMemcpyHostToDevice, b->rk.stream),
               e);
        q->clean = q->n_pages;
    }
    return 0;
}
