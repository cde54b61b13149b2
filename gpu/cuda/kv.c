/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Caches out of the device and back (model/kvlayout.h says in which form), on two streams of
 * their own beside the steps of other sequences. A page of the pool is a page of the image, byte
 * for byte, so pages are plain copies, as long as pages lie side by side. The state is picked out
 * of the rings by a kernel into a staging buffer and leaves in one copy; the same back. One
 * buffer each way is enough: a stream takes one state after another.
 *
 * The arena of backend_opts is page-locked and moves at the link's rate;
 * other memory works, slower, and a call then takes as long as its copies.
 */
#include "config.h"

#include "base/err.h"
#include "gpu/check.h"
#include "gpu/cuda/cuda.h"
#include "gpu/index.h"

struct ring {
    size_t at; /* in the sequence's rings */
    uint64_t slots;
};

static struct ring
ring_of(const struct backend *b, const struct kv_part *p)
{
    const bool draft = p->layer == b->c.n_layers;
    const struct layer *l = draft ? &b->net.draft->layer : &b->net.layers[p->layer];

    switch (p->kind) {
    case KV_PART_FRONTIER: return (struct ring){l->comp.ring_at, (uint64_t)l->comp.slots};
    case KV_PART_INDEX_FRONTIER:
        return (struct ring){l->index_comp.ring_at, (uint64_t)l->index_comp.slots};
    case KV_PART_DRAFT_STREAMS: return (struct ring){b->net.draft->ring_at, MAX_REWIND + 1};
    default: return (struct ring){l->ring_at, (uint64_t)b->at.ring_slots};
    }
}

static int
put(struct backend *b, struct copy_list *l, uint8_t *own, uint64_t at, uint64_t bytes,
    bool out, struct err *e)
{
    if (bytes == 0)
        return 0;
    l->seg[l->n++] = (struct copy_segment){.own = own, .at = at, .bytes = bytes};
    return l->n < COPY_SEGMENTS ? 0 : copy_list_cuda(b->stream[!out], l, out, e);
}

/* The state of q at len between its rows and the staging buffer of that direction. */
static int
move_state(struct backend *b, const struct cuda_seq *q, uint64_t len, bool out,
           struct err *e)
{
    struct copy_list l = {.staging = b->staging[!out]};
    uint8_t *rings = cuda_rings_of(b, (uint32_t)(q - b->seqs));
    uint64_t at = 0;

    for (size_t i = 0; i < b->layout.n_parts; i++) {
        const struct kv_part *p = &b->layout.parts[i];
        const uint64_t n = kv_state_rows(p, len), first = kv_state_first(p, len);

        if (p->kind == KV_PART_MAIN || p->kind == KV_PART_INDEX) {
            if (n > 0 &&
                put(b, &l,
                    cuda_page_of(b, q->pages[page_of(len, KV_PAGE_TOKENS)]) + p->page_at,
                    at, n * p->row_bytes, out, e) == -1)
                return -1;
        } else {
            const struct ring r = ring_of(b, p);
            const uint64_t slot = ring_slot(first, r.slots);
            const uint64_t head = ring_head(slot, n, r.slots);

            if (put(b, &l, rings + r.at + slot * p->row_bytes, at, head * p->row_bytes, out,
                    e) == -1 ||
                put(b, &l, rings + r.at, at + head * p->row_bytes,
                    (n - head) * p->row_bytes, out, e) == -1)
                return -1;
        }
        at += n * p->row_bytes;
    }
    return l.n > 0 ? copy_list_cuda(b->stream[!out], &l, out, e) : 0;
}

/* Pages [first, first + n) of q from or to an image: a copy for each run of neighbours. */
static int
move_pages(struct backend *b, const struct cuda_seq *q, uint64_t first, uint64_t n,
           uint8_t *image, bool out, struct err *e)
{
    const size_t size = b->at.page_bytes, stride = b->page_stride;
    const enum cudaMemcpyKind kind = out ? cudaMemcpyDeviceToHost : cudaMemcpyHostToDevice;
    const uint32_t *page = q->pages + first;

    for (uint64_t i = 0, m; i < n && size > 0; i += m) {
        uint8_t *dev = cuda_page_of(b, page[i]), *at = image + i * size;

        for (m = 1; i + m < n && page[i + m] == page[i] + m;)
            m++;
        if (size == stride)
            CU_TRY(cudaMemcpyAsync(out ? at : dev, out ? dev : at, m * size, kind,
                                   b->stream[!out]),
                   e);
        else
            CU_TRY(cudaMemcpy2DAsync(out ? at : dev, out ? size : stride, out ? dev : at,
                                     out ? stride : size, size, m, kind, b->stream[!out]),
                   e);
    }
    return 0;
}

/* What has been put on the main stream comes first. */
static int
begin(struct backend *b, bool out, struct err *e)
{
    CU_TRY(cudaEventRecord(b->before, b->rk.stream), e);
    CU_TRY(cudaStreamWaitEvent(b->stream[!out], b->before, 0), e);
    return 0;
}

static int
end(struct backend *b, struct cuda_seq *q, bool out, struct err *e)
{
    if (q->copied == NULL)
        CU_TRY(cudaEventCreateWithFlags(&q->copied, cudaEventDisableTiming), e);
    CU_TRY(cudaEventRecord(q->copied, b->stream[!out]), e);
    q->busy = true;
    return 0;
}

/* A copy that fails midway leaves nobody knows what where: the device counts as lost. */
static int
lost(int r, struct err *e)
{
    if (r == -1)
        e->code = ERR_INTERNAL;
    return r;
}

int
cuda_kv_out(struct backend *b, uint32_t seq, uint64_t first, uint64_t n, uint8_t *pages,
            uint8_t *state, struct err *e)
{
    struct cuda_seq *q;
    uint64_t whole, bytes;

    if (cuda_find_whole(b, seq, e) == -1)
        return -1;
    q = &b->seqs[seq];
    whole = q->len / KV_PAGE_TOKENS;
    bytes = kv_state_bytes(&b->layout, q->len);
    if (first > whole || n > whole - first)
        return err_set(e, ERR_INVALID, 0,
                       "sequence %u: %llu pages from page %llu on, there are %llu", seq,
                       (unsigned long long)n, (unsigned long long)first,
                       (unsigned long long)whole);
    if (begin(b, true, e) == -1 || move_pages(b, q, first, n, pages, true, e) == -1)
        return lost(-1, e);
    if (state != NULL && bytes > 0) {
        if (move_state(b, q, q->len, true, e) == -1)
            return lost(-1, e);
        CU_TRY(cudaMemcpyAsync(state, b->staging[0], bytes, cudaMemcpyDeviceToHost,
                               b->stream[0]),
               e);
    }
    return lost(end(b, q, true, e), e);
}

static int
find_coming(const struct backend *b, uint32_t seq, struct err *e)
{
    return cuda_find_open(b, seq, e) == -1 ? -1 : check_empty(seq, b->seqs[seq].len, e);
}

int
cuda_kv_in(struct backend *b, uint32_t seq, uint64_t n, const uint8_t *pages, struct err *e)
{
    struct cuda_seq *q;
    uint64_t had;

    if (find_coming(b, seq, e) == -1)
        return -1;
    q = &b->seqs[seq];
    had = q->n_come;
    if (check_come(&b->c, q->n_come, n, e) == -1)
        return -1;
    if (cuda_pages_add(b, q, n, e) == -1)
        return -1;
    q->n_come = had + n;
    q->coming = true;
    if (begin(b, false, e) == -1 ||
        move_pages(b, q, had, n, (uint8_t *)(uintptr_t)pages, false, e) == -1)
        return lost(-1, e);
    return lost(end(b, q, false, e), e);
}

int
cuda_kv_set(struct backend *b, uint32_t seq, uint64_t len, const uint8_t *state,
            struct err *e)
{
    const uint64_t bytes = kv_state_bytes(&b->layout, len);
    struct cuda_seq *q;

    if (find_coming(b, seq, e) == -1)
        return -1;
    q = &b->seqs[seq];
    if (check_set(&b->c, len, q->n_come, e) == -1)
        return -1;
    if (len % KV_PAGE_TOKENS != 0 && cuda_pages_add(b, q, 1, e) == -1)
        return -1;
    if (begin(b, false, e) == -1)
        return lost(-1, e);
    if (bytes > 0) {
        if (cudaMemcpyAsync(b->staging[1], state, bytes, cudaMemcpyHostToDevice,
                            b->stream[1]) != cudaSuccess)
            return err_set(e, ERR_INTERNAL, 0, "%llu bytes of state do not go to the GPU",
                           (unsigned long long)bytes);
        if (move_state(b, q, len, false, e) == -1)
            return lost(-1, e);
    }
    q->len = q->high = q->floor = len;
    q->coming = false;
    q->n_come = 0;
    return lost(end(b, q, false, e), e);
}

int
cuda_kv_busy(struct backend *b, uint32_t seq, struct err *e)
{
    struct cuda_seq *q = seq < b->max_seqs ? &b->seqs[seq] : NULL;
    cudaError_t err;

    if (q == NULL || !q->busy)
        return 0;
    err = cudaEventQuery(q->copied);
    if (err == cudaErrorNotReady)
        return 1;
    if (err != cudaSuccess)
        return err_set(e, ERR_INTERNAL, (int)err, "caches of sequence %u: %s", seq,
                       cudaGetErrorString(err));
    q->busy = false;
    return 0;
}

/* All of it at once: a copy must not reach from one registration into the next. What cannot be
 * locked works all the same, slower; the backend's description says so. */
void
cuda_kv_memory(struct backend *b, void *at, size_t bytes)
{
    b->pinned = cudaHostRegister(at, bytes, cudaHostRegisterPortable) == cudaSuccess ? at
                                                                                     : NULL;
    b->pageable = b->pinned == NULL;
    if (b->pageable)
        cudaGetLastError(); /* it is told once; nobody else should find it */
}

int
cuda_kv_open(struct backend *b, struct err *e)
{
    for (int i = 0; i < 2; i++)
        CU_TRY(cudaStreamCreateWithFlags(&b->stream[i], cudaStreamNonBlocking), e);
    CU_TRY(cudaEventCreateWithFlags(&b->before, cudaEventDisableTiming), e);
    return 0;
}

void
cuda_kv_close(struct backend *b)
{
    for (int i = 0; i < 2; i++)
        if (b->stream[i] != NULL) {
            cudaStreamSynchronize(b->stream[i]);
            cudaStreamDestroy(b->stream[i]);
        }
    for (uint32_t i = 0; b->seqs != NULL && i < b->max_seqs; i++)
        if (b->seqs[i].copied != NULL)
            cudaEventDestroy(b->seqs[i].copied);
    if (b->before != NULL)
        cudaEventDestroy(b->before);
    if (b->pinned != NULL)
        cudaHostUnregister(b->pinned);
    kv_layout_done(&b->layout);
}
