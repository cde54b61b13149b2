/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The compressor (spec 6.1): every `ratio` tokens become one row, a softmax over positions for
 * each channel. What it looks back at are raw values and scores in f32: those of this step lie
 * in `raw`, earlier ones in the sequence's ring.
 */
#include "config.h"

#include <math.h>
#include <string.h>

#include "base/fp.h"
#include "gpu/cpu/cpu.h"
#include "gpu/cpu/kvrow.h"
#include "gpu/cpu/pool.h"

enum { MAX_BLOCK = MODEL_MAX_RATIO };

/* f32 [2][width]: value and score of a position; NULL before the sequence's start. */
static const float *
raw_at(const struct compressor *k, const struct span *s, const float *raw, int64_t pos)
{
    const size_t row = (size_t)2 * k->width;

    if (pos < 0)
        return NULL;
    if ((uint64_t)pos >= s->start)
        return raw + ((size_t)s->row0 + (size_t)((uint64_t)pos - s->start)) * row;
    return (const float *)(const void *)(s->seq->rings + k->ring_at) +
           (size_t)ring_slot((uint64_t)pos, (uint64_t)k->slots) * row;
}

/*
 * Entry j: positions j*ratio .. j*ratio + ratio - 1 by their (second) half, and with overlap in
 * front of them the block before by its first half. Nothing before the start: weight 0.
 */
static void
pool(const struct compressor *k, const struct span *s, const float *raw, uint64_t j,
     uint16_t *out)
{
    const int back = k->overlap && !MUTANT(MUTANT_NO_OVERLAP) ? k->ratio : 0;
    const int n = back + k->ratio, half = k->overlap ? k->dim : 0;
    const float *row[MAX_BLOCK + MODEL_CSA_RATIO];

    for (int i = 0; i < n; i++) {
        row[i] = raw_at(k, s, raw, (int64_t)j * k->ratio - back + i);
        if (row[i] != NULL && i >= back)
            row[i] += half;
    }
    for (int c = 0; c < k->dim; c++) {
        float top = -INFINITY;
        double sum = 0.0, value = 0.0;
        float w[MAX_BLOCK + MODEL_CSA_RATIO];

        for (int i = 0; i < n; i++)
            if (row[i] != NULL)
                top = fmaxf(top, row[i][k->width + c]);
        for (int i = 0; i < n; i++) {
            w[i] = row[i] != NULL ? expf(row[i][k->width + c] - top) : 0.0f;
            sum += (double)w[i];
        }
        for (int i = 0; i < n; i++)
            if (row[i] != NULL)
                value += (double)w[i] * (double)row[i][c];
        out[c] = f32_to_bf16((float)(value / sum));
    }
}

struct pooling {
    const struct compressor *k;
    const struct scratch *s;
    const float *raw;
};

static void
pool_entries(const void *arg, int i, int end)
{
    const struct pooling *p = arg;

    for (; i < end; i++)
        pool(p->k, p->s->entry_ref[i].span, p->raw, p->s->entry_ref[i].j,
             p->s->entry + (size_t)i * p->k->dim);
}

/* The entries that the step's rows complete. */
static int
list_entries(struct backend *b, const struct compressor *k, const struct rows *r)
{
    int n = 0;

    for (int i = 0; i < r->n_spans; i++) {
        const struct span *s = &r->spans[i];
        const uint64_t end = (s->start + (uint64_t)s->n) / k->ratio;

        for (uint64_t j = s->start / k->ratio; j < end; j++) {
            b->s.entry_ref[n] = (struct entry_ref){.span = s, .j = j};
            b->s.entry_pos[n++] = j * (uint64_t)k->ratio;
        }
    }
    return n;
}

static void
store_raw(const struct compressor *k, const struct span *s, const float *raw)
{
    const size_t row = (size_t)2 * k->width;
    float *ring = (float *)(void *)(s->seq->rings + k->ring_at);

    for (int i = s->n > k->slots ? s->n - k->slots : 0; i < s->n; i++)
        memcpy(ring + (size_t)ring_slot(s->start + (uint64_t)i, (uint64_t)k->slots) * row,
               raw + ((size_t)s->row0 + i) * row, row * sizeof *raw);
}

static void
add_position(const struct compressor *k, const struct rows *r, float *raw)
{
    for (int i = 0; i < r->n; i++) {
        const float *ape = k->ape + (size_t)(r->pos[i] % (uint64_t)k->ratio) * k->width;
        float *score = raw + ((size_t)2 * i + 1) * k->width;

        for (int c = 0; c < k->width; c++)
            score[c] += ape[c];
    }
}

/* raw f32 [n][2][width]: wkv x and wgate x of the step's rows; changed. */
void
compress(struct backend *b, const struct compressor *k, const struct rows *r, float *raw,
         bool index)
{
    struct scratch *s = &b->s;
    const int n = list_entries(b, k, r), pairs = b->c.rope_dim / 2;

    add_position(k, r, raw);
    pool_run(n, 1, pool_entries, &(struct pooling){.k = k, .s = s, .raw = raw});
    b->ops->rmsnorm(&(struct rmsnorm_args){.x = s->entry,
                                           .w = k->norm,
                                           .out = s->entry,
                                           .rows = n,
                                           .dim = k->dim,
                                           .eps = b->c.rms_eps});
    rope_table(b->freq[MUTANT(MUTANT_PLAIN_ROPE) ? 0 : 1], pairs, s->entry_pos, n,
               s->entry_cs);
    b->ops->rope(&(struct rope_args){.x = s->entry,
                                     .cs = s->entry_cs,
                                     .rows = n,
                                     .heads = 1,
                                     .dim = k->dim,
                                     .rope_dim = b->c.rope_dim});
    if (index)
        b->ops->index_quant(&(struct index_quant_args){
            .x = s->entry, .y = s->entry_p, .rows = n, .dim = k->dim});
    for (int i = 0; i < n; i++) {
        uint8_t *to = page_row(s->entry_ref[i].span->seq, k, s->entry_ref[i].j);

        if (index)
            memcpy(to, s->entry_p + (size_t)i * k->row, k->row);
        else
            kv_row_pack(b->fmt, s->entry + (size_t)i * k->dim, k->dim, b->c.rope_dim, to);
    }
    for (int i = 0; i < r->n_spans; i++)
        store_raw(k, &r->spans[i], raw);
}
