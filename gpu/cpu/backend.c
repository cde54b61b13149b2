/* SPDX-License-Identifier: Apache-2.0 */
/* The CPU backend's side of gpu/backend.h: open and close, and what it can do. */
#include "config.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "gpu/check.h"
#include "gpu/cpu/cpu.h"
#include "gpu/cpu/pool.h"
#include "model/weights.h"

enum { MAX_SEQS = 65536 };

static void
cpu_close(struct backend *b)
{
    if (b == NULL)
        return;
    for (uint32_t i = 0; b->seqs != NULL && i < b->max_seqs; i++)
        state_close(b, i);
    scratch_free(b);
    kv_layout_done(&b->layout);
    for (size_t i = 0; i < b->mem.n; i++)
        free(b->mem.p[i]);
    free(b->mem.p);
    network_free(&b->net);
    free(b);
}

/* What the operations take for granted and config.json may still say. */
static int
check_config(const struct model_config *c, struct err *e)
{
    const int id = c->index_head_dim;

    if (c->head_dim > ATTENTION_MAX_DIM || c->n_heads > ATTENTION_MAX_HEADS)
        return err_set(e, ERR_MODEL_MISMATCH, 0, "%d heads of %d: at most %d of %d",
                       c->n_heads, c->head_dim, ATTENTION_MAX_HEADS, ATTENTION_MAX_DIM);
    if (id < 32 || id > 1024 || (id & (id - 1)) != 0)
        return err_set(e, ERR_MODEL_MISMATCH, 0, "index_head_dim %d is no power of two",
                       id);
    if (c->hc_mult < 1 || c->hc_mult > MODEL_MAX_HC || c->n_heads % c->o_groups != 0 ||
        c->rope_dim > c->head_dim || c->rope_dim > id || c->rope_dim % 2 != 0)
        return err_set(e, ERR_MODEL_MISMATCH, 0, "the heads of this model do not add up");
    for (int i = 0; i < c->n_layers; i++)
        if (c->ratio[i] < 0 || (c->ratio[i] > 0 && KV_PAGE_TOKENS % c->ratio[i] != 0))
            return err_set(e, ERR_MODEL_MISMATCH, 0,
                           "layer %d: ratio %d does not divide %d", i, c->ratio[i],
                           KV_PAGE_TOKENS);
    if (c->hidden % 32 != 0 || c->moe_inter % 32 != 0)
        return err_set(e, ERR_MODEL_MISMATCH, 0, "sizes %d and %d: not multiples of 32",
                       c->hidden, c->moe_inter);
    return 0;
}

/* Three quarters of the memory that nobody uses now. */
static uint64_t
free_share(void)
{
    unsigned long long kb = 0;
    char line[128];
    FILE *f = fopen("/proc/meminfo", "re");

    while (f != NULL && fgets(line, sizeof line, f) != NULL)
        if (sscanf(line, "MemAvailable: %llu kB", &kb) == 1)
            break;
    if (f != NULL)
        fclose(f);
    if (kb == 0)
        kb = (unsigned long long)sysconf(_SC_PHYS_PAGES) *
             (unsigned long long)sysconf(_SC_PAGESIZE) / 1024 / 2;
    return kb * 1024 / 4 * 3;
}

static int
plan(struct backend *b, const struct backend_opts *o, struct err *e)
{
    const int pairs = b->c.rope_dim / 2;

    for (int i = 0; i < 2; i++) {
        b->freq[i] = mem_get(b, (size_t)pairs, sizeof *b->freq[i], e);
        if (b->freq[i] == NULL)
            return -1;
        rope_frequencies(&b->c, i == 1, b->freq[i]);
    }
    network_place(&b->net, &b->c, b->fmt, ALIGN, &b->at);
    if (kv_layout_init(&b->layout, &b->c, b->net.draft != NULL, e) == -1)
        return -1;
    if (b->layout.page_bytes != b->at.page_bytes)
        return err_set(e, ERR_INTERNAL, 0, "pages of %zu bytes, their layout has %llu",
                       b->at.page_bytes, (unsigned long long)b->layout.page_bytes);
    b->seqs = mem_get(b, b->max_seqs, sizeof *b->seqs, e);
    if (b->seqs == NULL || scratch_plan(b, e) == -1)
        return -1;
    b->kv_limit = o->kv_bytes > 0 ? o->kv_bytes : free_share();
    return 0;
}

struct backend *
cpu_open_with(const struct model_config *c, const struct backend_opts *o, cpu_load_fn *load,
              const void *arg, struct err *e)
{
    struct backend *b;

    if (o->max_seqs < 1 || o->max_seqs > MAX_SEQS || o->n_threads < 0) {
        err_set(e, ERR_INVALID, 0, "%u sequences, %d threads", o->max_seqs, o->n_threads);
        return NULL;
    }
    if (check_config(c, e) == -1)
        return NULL;
    b = calloc(1, sizeof *b);
    if (b == NULL) {
        err_set(e, ERR_QUOTA, 0, "no memory for a backend");
        return NULL;
    }
    b->c = *c;
    b->max_seqs = o->max_seqs;
    b->n_threads = o->n_threads > 0 ? o->n_threads : pool_processors();
    b->ops = cpu_ops_find(o->isa, e);
    if (b->ops == NULL || load(b, arg, o->mtp, e) == -1 || plan(b, o, e) == -1) {
        cpu_close(b);
        return NULL;
    }
    return b;
}

static struct backend *
cpu_open(const struct model_config *c, const struct weights *w,
         const struct backend_opts *o, struct err *e)
{
    return cpu_open_with(c, o, load_model, w, e);
}

static void
cpu_info(const struct backend *b, struct backend_info *out)
{
    *out = (struct backend_info){
        .name = "cpu",
        .vocab = (uint32_t)b->c.vocab_size,
        .max_positions = (uint64_t)b->c.max_positions,
        .weight_bytes = b->weight_bytes,
        .page_bytes = b->at.page_bytes,
        .seq_fixed_bytes = b->at.seq_bytes,
        .kv_limit = b->kv_limit,
        .kv_used = b->kv_used,
        .max_seqs = b->max_seqs,
        .max_step_tokens = MAX_STEP_TOKENS,
        .max_rewind = MAX_REWIND,
    };
    snprintf(out->detail, sizeof out->detail, "%s, %d threads", b->ops->detail,
             b->n_threads);
}

static uint64_t
cpu_seq_len(const struct backend *b, uint32_t seq)
{
    return seq < b->max_seqs ? b->seqs[seq].len : 0;
}

static uint64_t
cpu_seq_bytes(const struct backend *b, uint32_t seq)
{
    if (seq >= b->max_seqs || !b->seqs[seq].open)
        return 0;
    return b->at.seq_bytes + b->seqs[seq].n_pages * b->at.page_bytes;
}

static int
cpu_step(struct backend *b, const struct step *s, struct err *e)
{
    const struct step_bounds k = {.b = b,
                                  .c = &b->c,
                                  .max_seqs = b->max_seqs,
                                  .max_tokens = MAX_STEP_TOKENS,
                                  .draft = b->net.draft != NULL,
                                  .find = state_find_whole,
                                  .len = cpu_seq_len};

    if (check_step(s, &k, e) == -1 || state_reserve(b, s, e) == -1)
        return -1;
    pool_set_threads(b->n_threads); /* another backend may have another number */
    forward(b, s);
    return 0;
}

const struct backend_ops backend_cpu = {
    .name = "cpu",
    .open = cpu_open,
    .close = cpu_close,
    .info = cpu_info,
    .seq_open = state_open,
    .seq_fork = state_fork,
    .seq_close = state_close,
    .seq_len = cpu_seq_len,
    .seq_bytes = cpu_seq_bytes,
    .seq_rewind = state_rewind,
    .kv_out = kv_out,
    .kv_in = kv_in,
    .kv_set = kv_set,
    .kv_busy = kv_busy,
    .step = cpu_step,
};
