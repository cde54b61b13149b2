/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Weights to the device (gpu/load.h). What the kernels cannot do is said by the name of the tensor.
 *
 * Runs twice (struct arena). Bytes go file -> pinned staging -> arena, each tensor at an aligned
 * address, FP8 and FP4 as they are; vectors become f32, routing tables int32. Two halves of the
 * staging take turns, so that reading a file goes on beside the copy. What tensor cores multiply
 * goes through a slab of device memory and is packed from there (packed.cu).
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "gpu/cuda/cuda.h"
#include "gpu/load.h"
#include "model/synthetic.h"

enum { HALF = 16 << 20 };

struct loader {
    struct backend *b;
    const struct weights *w;
    uint8_t *staging; /* [2][HALF], pinned; NULL while sizes are added up */
    cudaEvent_t sent[2];
    int half;
    uint8_t *slab; /* device, [2][HALF] */
    int *odd;      /* device: a packed weight is no number */
    struct err *e;
};

/* `n` bytes to the device: staged piece by piece. *out is where they go. */
static int
put(struct loader *ld, const void *data, size_t n, const void **out)
{
    uint8_t *to = arena_take(&ld->b->arena, n, 1);

    *out = to;
    for (size_t at = 0; ld->staging != NULL && at < n; at += HALF) {
        const size_t m = n - at < HALF ? n - at : HALF;
        uint8_t *piece = ld->staging + (size_t)ld->half * HALF;

        CU_TRY(cudaEventSynchronize(ld->sent[ld->half]), ld->e);
        memcpy(piece, (const uint8_t *)data + at, m);
        CU_TRY(cudaMemcpyAsync(to + at, piece, m, cudaMemcpyHostToDevice, ld->b->rk.stream),
               ld->e);
        CU_TRY(cudaEventRecord(ld->sent[ld->half], ld->b->rk.stream), ld->e);
        ld->half ^= 1;
    }
    return 0;
}

/* A tensor as it is. */
static int
put_tensor(struct loader *ld, const struct tensor *t, const void **out)
{
    struct synthetic s;

    if (t->data != NULL || ld->staging == NULL)
        return put(ld, t->data, t->n_bytes, out);
    s = weights_made(ld->w, t);
    *out = arena_take(&ld->b->arena, t->n_bytes, 1);
    return synthetic_cuda(&ld->b->rk, &s, 0, t->n_bytes / (uint64_t)dtype_bytes(t->dtype),
                          (void *)(uintptr_t)*out, ld->e);
}

/* `n` lines of `line` bytes of t, from line `at` on, to the slab; `host`: the staging's. */
static int
stage(struct loader *ld, const struct tensor *t, int at, int n, size_t line, uint8_t *host,
      uint8_t *dev)
{
    const uint64_t a_line = line / (size_t)dtype_bytes(t->dtype);
    struct synthetic s;

    if (t->data == NULL) {
        s = weights_made(ld->w, t);
        return synthetic_cuda(&ld->b->rk, &s, (uint64_t)at * a_line, (uint64_t)n * a_line,
                              dev, ld->e);
    }
    memcpy(host, (const uint8_t *)t->data + (size_t)at * line, (size_t)n * line);
    CU_TRY(cudaMemcpyAsync(dev, host, (size_t)n * line, cudaMemcpyHostToDevice,
                           ld->b->rk.stream),
           ld->e);
    return 0;
}

/* The same for a matrix to be packed: some rows at a time, FP4 with their scales. */
static int
put_packed(struct loader *ld, const struct tensor *t, const struct tensor *scale,
           struct matrix *m)
{
    const size_t line = t->n_bytes / (size_t)m->out;
    const size_t side = scale != NULL ? (size_t)m->in / 32 : 0;
    const int most = (int)((size_t)HALF / (line + side) / CUDA_ROW_ALIGN * CUDA_ROW_ALIGN);

    m->packed = arena_take(&ld->b->arena, matrix_packed_bytes(m), 1);
    if (scale != NULL)
        m->scale = (const uint8_t *)m->packed + t->n_bytes;
    for (int at = 0, n; ld->staging != NULL && at < m->out; at += n) {
        uint8_t *piece = ld->staging + (size_t)ld->half * HALF;
        uint8_t *dev = ld->slab + (size_t)ld->half * HALF;

        n = m->out - at < most ? m->out - at : most;
        CU_TRY(cudaEventSynchronize(ld->sent[ld->half]), ld->e);
        if (stage(ld, t, at, n, line, piece, dev) == -1 ||
            (scale != NULL && stage(ld, scale, at, n, side, piece + (size_t)n * line,
                                    dev + (size_t)n * line) == -1))
            return -1;
        CU_TRY(cudaEventRecord(ld->sent[ld->half], ld->b->rk.stream), ld->e);
        if (matrix_pack_cuda(&ld->b->rk, m, at, n, dev, dev + (size_t)n * line, ld->odd,
                             ld->e) == -1)
            return -1;
        ld->half ^= 1;
    }
    return 0;
}

/* Of a small tensor, on the host; made up into *made, to be freed. NULL without memory. */
static const uint8_t *
host_data(const struct loader *ld, const struct tensor *t, void **made)
{
    struct synthetic s;

    if (t->data != NULL)
        return t->data;
    *made = malloc(t->n_bytes);
    if (*made == NULL)
        return NULL;
    s = weights_made(ld->w, t);
    synthetic_fill(&s, 0, t->n_bytes / (uint64_t)dtype_bytes(t->dtype), *made);
    return *made;
}

/* Of numbers made on the host, whatever became of them (-1): to the device, and freed. */
static int
hand_over(struct loader *ld, void *v, size_t bytes, int made, const void **out)
{
    const int r = made == 0 ? put(ld, v, bytes, out) : made;

    free(v);
    return r;
}

static int
take_vector(void *arg, const struct tensor *t, size_t n, const float **out, struct err *e)
{
    struct loader *ld = arg;
    const size_t bytes = n * sizeof(float);
    void *made = NULL;
    const uint8_t *data = host_data(ld, t, &made);
    float *v = data != NULL ? malloc(bytes) : NULL;
    const void *at = NULL;

    if (v == NULL) {
        free(made);
        return err_set(e, ERR_QUOTA, 0, "no memory for %s", t->name);
    }
    load_floats(t, data, n, v);
    free(made);
    if (hand_over(ld, v, bytes, 0, &at) == -1)
        return -1;
    *out = at;
    return 0;
}

static int
take_table(void *arg, const struct tensor *t, size_t n, int64_t below, const int32_t **out,
           struct err *e)
{
    struct loader *ld = arg;
    const size_t bytes = n * sizeof(int32_t);
    void *made = NULL;
    const uint8_t *data = host_data(ld, t, &made);
    int32_t *table = data != NULL ? malloc(bytes) : NULL;
    const void *at = NULL;
    int r;

    if (table == NULL) {
        free(made);
        return err_set(e, ERR_QUOTA, 0, "no memory for %s", t->name);
    }
    r = load_ids(t, data, n, below, table, e);
    free(made);
    if (hand_over(ld, table, bytes, r, &at) == -1)
        return -1;
    *out = at;
    return 0;
}

/* packed: as tensor cores read it, where there is such a layout for it. */
static int
take(struct loader *ld, const struct tensor *t, const struct tensor *scale, bool packed,
     struct matrix *m)
{
    const void *at;

    if (m->in % 32 != 0)
        return err_set(ld->e, ERR_MODEL_MISMATCH, 0,
                       "tensor %s has %d inputs; the CUDA kernels take multiples of 32",
                       t->name, m->in);
    packed = packed && matrix_packed_bytes(m) > 0;
    if (packed && m->kind == MATRIX_FP4)
        return put_packed(ld, t, scale, m);
    if ((packed ? put_packed(ld, t, NULL, m) : put_tensor(ld, t, &m->w)) == -1)
        return -1;
    if (scale == NULL)
        return 0;
    if (put_tensor(ld, scale, &at) == -1)
        return -1;
    m->scale = at;
    return 0;
}

static int
take_matrix(void *arg, const struct tensor *t, const struct tensor *scale, bool rows,
            struct matrix *m, struct err *e)
{
    (void)e;
    return take(arg, t, scale, !rows, m);
}

static int
take_groups(void *arg, const struct tensor *t, const struct tensor *scale,
            struct matrix *all, int n, struct matrix *m, struct err *e)
{
    (void)e;
    if (take(arg, t, scale, all->out / n % CUDA_ROW_ALIGN == 0, all) == -1)
        return -1;
    for (int g = 0; g < n; g++)
        m[g] = load_group(all, n, g);
    return 0;
}

/* The tables that kernels look the experts' matrices up in. */
static int
take_experts(void *arg, struct layer *l, struct err *e)
{
    struct loader *ld = arg;
    const size_t n = (size_t)ld->b->c.n_experts, bytes = n * sizeof(struct matrix);
    const void *at[3] = {NULL};
    int r = 0;

    for (int i = 0; i < 3 && r == 0; i++) {
        struct matrix *w = malloc(bytes);

        if (w == NULL)
            return err_set(e, ERR_QUOTA, 0, "no memory for %zu experts", n);
        for (size_t x = 0; x < n; x++)
            w[x] = i == 0 ? l->experts[x].w1 : i == 1 ? l->experts[x].w2 : l->experts[x].w3;
        r = hand_over(ld, w, bytes, 0, &at[i]);
    }
    l->w1 = at[0];
    l->w2 = at[1];
    l->w3 = at[2];
    return r;
}

static int
staging_open(struct loader *ld)
{
    CU_TRY(cudaMallocHost((void **)&ld->staging, 2 * (size_t)HALF), ld->e);
    CU_TRY(cudaMalloc((void **)&ld->slab, 2 * (size_t)HALF), ld->e);
    CU_TRY(cudaMalloc((void **)&ld->odd, sizeof *ld->odd), ld->e);
    CU_TRY(cudaMemsetAsync(ld->odd, 0, sizeof *ld->odd, ld->b->rk.stream), ld->e);
    for (int i = 0; i < 2; i++)
        CU_TRY(cudaEventCreateWithFlags(&ld->sent[i], cudaEventDisableTiming), ld->e);
    return 0;
}

static int
check_packed(struct loader *ld)
{
    int odd = 0;

    CU_TRY(cudaMemcpyAsync(&odd, ld->odd, sizeof odd, cudaMemcpyDeviceToHost,
                           ld->b->rk.stream),
           ld->e);
    if (rank_wait(&ld->b->rk, ld->e) == -1)
        return -1;
    return odd == 0 ? 0
                    : err_set(ld->e, ERR_DAMAGED, 0,
                              "the checkpoint has weights or scales that are no numbers");
}

int
cuda_load(struct backend *b, const struct weights *w, bool copy, struct err *e)
{
    static const struct load_ops ops = {.vector = take_vector,
                                        .table = take_table,
                                        .matrix = take_matrix,
                                        .groups = take_groups,
                                        .experts = take_experts};
    struct loader ld = {.b = b, .w = w, .e = e};
    int r = copy ? staging_open(&ld) : 0;

    if (r == 0)
        r = load_network(&b->net, &b->c, w, b->experts_made, &ops, &ld, e);
    if (r == 0 && copy)
        r = check_packed(&ld);
    for (int i = 0; i < 2; i++)
        if (ld.sent[i] != NULL)
            cudaEventDestroy(ld.sent[i]);
    cudaFree(ld.slab);
    cudaFree(ld.odd);
    if (ld.staging != NULL)
        cudaFreeHost(ld.staging);
    return r;
}
