/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where weights are for the CPU (gpu/load.h). Big matrices stay where they are in the mapped file. Copied are: what is not aligned to its
 * element size, vectors (bf16 norms become f32), routing tables, and whatever the table of
 * operations wants in a layout of its own.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "gpu/cpu/cpu.h"
#include "gpu/load.h"

void *
mem_get(struct backend *b, size_t n, size_t size, struct err *e)
{
    size_t bytes;
    void *p;

    if (__builtin_mul_overflow(n, size, &bytes) || bytes > SIZE_MAX - ALIGN) {
        err_set(e, ERR_QUOTA, 0, "%zu elements of %zu bytes", n, size);
        return NULL;
    }
    if (b->mem.n == b->mem.cap) {
        const size_t cap = b->mem.cap * 2 + 64;
        void **grown = realloc(b->mem.p, cap * sizeof *grown);

        if (grown == NULL)
            goto none;
        b->mem.p = grown;
        b->mem.cap = cap;
    }
    bytes = (bytes + ALIGN - 1) / ALIGN * ALIGN;
    p = aligned_alloc(ALIGN, bytes > 0 ? bytes : ALIGN);
    if (p == NULL)
        goto none;
    memset(p, 0, bytes);
    b->mem.p[b->mem.n++] = p;
    return p;
none:
    err_set(e, ERR_QUOTA, 0, "no memory for %zu elements of %zu bytes", n, size);
    return NULL;
}

static int
take_vector(void *arg, const struct tensor *t, size_t n, const float **out, struct err *e)
{
    float *v = mem_get(arg, n, sizeof *v, e);

    if (v == NULL)
        return -1;
    load_floats(t, t->data, n, v);
    *out = v;
    return 0;
}

static int
take_table(void *arg, const struct tensor *t, size_t n, int64_t below, const int32_t **out,
           struct err *e)
{
    int32_t *table = mem_get(arg, n, sizeof *table, e);

    *out = table;
    return table == NULL ? -1 : load_ids(t, t->data, n, below, table, e);
}

static int
pack(struct backend *b, struct matrix *m, struct err *e)
{
    const size_t n = b->ops->packed_bytes(m);
    void *p;

    if (n == 0)
        return 0;
    p = mem_get(b, n, 1, e);
    if (p == NULL)
        return -1;
    b->ops->pack(m, p);
    m->packed = p;
    return 0;
}

/* The tensor's bytes, or a copy if they are not aligned. */
static int
take_rows(struct backend *b, const struct tensor *t, const struct tensor *scale,
          struct matrix *m, struct err *e)
{
    const size_t size = m->kind == MATRIX_F32 ? 4 : m->kind == MATRIX_BF16 ? 2 : 1;
    void *copy;

    m->scale = scale != NULL ? scale->data : NULL;
    m->w = t->data;
    if ((uintptr_t)t->data % size == 0)
        return 0;
    copy = mem_get(b, t->n_bytes, 1, e);
    if (copy == NULL)
        return -1;
    m->w = memcpy(copy, t->data, t->n_bytes);
    return 0;
}

static int
take_matrix(void *arg, const struct tensor *t, const struct tensor *scale, bool rows,
            struct matrix *m, struct err *e)
{
    if (take_rows(arg, t, scale, m, e) == -1)
        return -1;
    return rows ? 0 : pack(arg, m, e);
}

static int
take_groups(void *arg, const struct tensor *t, const struct tensor *scale,
            struct matrix *all, int n, struct matrix *m, struct err *e)
{
    if (take_rows(arg, t, scale, all, e) == -1)
        return -1;
    for (int g = 0; g < n; g++) {
        m[g] = load_group(all, n, g);
        if (pack(arg, &m[g], e) == -1)
            return -1;
    }
    return 0;
}

int
load_model(struct backend *b, const void *weights, bool draft, struct err *e)
{
    static const struct load_ops ops = {.vector = take_vector,
                                        .table = take_table,
                                        .matrix = take_matrix,
                                        .groups = take_groups};

    if (network_new(&b->net, &b->c, draft, e) == -1)
        return -1;
    b->weight_bytes = weights_bytes(weights);
    return load_network(&b->net, &b->c, weights, 0, &ops, b, e);
}
