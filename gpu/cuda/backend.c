/* SPDX-License-Identifier: Apache-2.0 */
/* The CUDA backend's side of gpu/backend.h: open and close, and what it can do. */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/err.h"
#include "gpu/check.h"
#include "gpu/cpu/rope.h"
#include "gpu/cuda/cuda.h"
#include "model/weights.h"

enum { MAX_SEQS = 65536, MAX_EXPERTS = 512, MAX_USED = 32, MAX_NORM = 16384 };

static void
cuda_close(struct backend *b)
{
    if (b == NULL)
        return;
    if (b->rk.stream != NULL)
        cudaStreamSynchronize(b->rk.stream);
    cuda_kv_close(b);
    cudaFree(b->arena.base);
    for (int i = 0; i < CUDA_GRAPHS; i++)
        if (b->graphs[i].exec != NULL)
            cudaGraphExecDestroy(b->graphs[i].exec);
    for (int i = 0; i < 2; i++)
        cudaFreeHost(b->up.buffer[i]);
    cudaFreeHost(b->logits_host);
    cudaFreeHost(b->drawn_host);
    cudaFreeHost(b->table_host);
    rank_close(&b->rk);
    for (int i = 0; i < b->n_mem; i++)
        free(b->mem[i]);
    network_free(&b->net);
    free(b);
}

static int
cannot(struct err *e, const char *what, int have, const char *can)
{
    return err_set(e, ERR_MODEL_MISMATCH, 0, "%s %d: the CUDA kernels take %s", what, have,
                   can);
}

/* What the kernels take for granted and config.json may still say. */
static int
check_config(const struct model_config *c, struct err *e)
{
    const int id = c->index_head_dim;

    if (c->head_dim > ATTENTION_MAX_DIM || c->head_dim % 8 != 0)
        return cannot(e, "head_dim", c->head_dim, "multiples of 8 up to 1024");
    if (c->n_heads > ATTENTION_MAX_HEADS)
        return cannot(e, "num_attention_heads", c->n_heads, "at most 256");
    if (c->rope_dim % 4 != 0 || c->rope_dim > c->head_dim || c->rope_dim > id)
        return cannot(e, "qk_rope_head_dim", c->rope_dim,
                      "multiples of 4, no more than a head has");
    if (id < 32 || id > 1024 || (id & (id - 1)) != 0)
        return cannot(e, "index_head_dim", id, "powers of two from 32 to 1024");
    if (c->hc_mult < 1 || c->hc_mult > MODEL_MAX_HC)
        return cannot(e, "hc_mult", c->hc_mult, "1 to 8");
    if (c->n_heads % c->o_groups != 0)
        return cannot(e, "o_groups", c->o_groups, "divisors of the number of heads");
    if (c->hidden > MAX_NORM || c->hidden % 32 != 0)
        return cannot(e, "hidden_size", c->hidden, "multiples of 32 up to 16384");
    if (c->q_lora_rank > MAX_NORM || c->q_lora_rank % 32 != 0)
        return cannot(e, "q_lora_rank", c->q_lora_rank, "multiples of 32 up to 16384");
    if (c->moe_inter % 32 != 0)
        return cannot(e, "moe_intermediate_size", c->moe_inter, "multiples of 32");
    if (c->n_experts > MAX_EXPERTS)
        return cannot(e, "n_routed_experts", c->n_experts, "at most 1024");
    if (c->n_experts_used > MAX_USED || c->n_experts_used > c->n_experts)
        return cannot(e, "num_experts_per_tok", c->n_experts_used, "at most 32");
    for (int i = 0; i < c->n_layers; i++)
        if (c->ratio[i] < 0 || (c->ratio[i] > 0 && KV_PAGE_TOKENS % c->ratio[i] != 0))
            return cannot(e, "compress_ratios", c->ratio[i], "divisors of 128");
    return 0;
}

static int
host_plan(struct backend *b, struct err *e)
{
    const size_t t = CUDA_STEP_TOKENS;

    for (int i = 0; i < 2; i++) {
        b->freq[i] = cuda_host(b, (size_t)b->c.rope_dim / 2, sizeof *b->freq[i], e);
        if (b->freq[i] == NULL)
            return -1;
        rope_frequencies(&b->c, i == 1, b->freq[i]);
    }
    b->spans = cuda_host(b, b->max_seqs, sizeof *b->spans, e);
    b->draft_spans = cuda_host(b, b->max_seqs, sizeof *b->draft_spans, e);
    b->tokens = cuda_host(b, b->max_seqs, sizeof *b->tokens, e);
    b->jobs = cuda_host(b, (size_t)b->c.o_groups + 16, sizeof *b->jobs, e);
    b->head_out = cuda_host(b, t, sizeof *b->head_out, e);
    b->draft_out = cuda_host(b, t, sizeof *b->draft_out, e);
    b->head_drawn = cuda_host(b, t, sizeof *b->head_drawn, e);
    b->head_seq = cuda_host(b, t, sizeof *b->head_seq, e);
    b->pos = cuda_host(b, t, sizeof *b->pos, e);
    if (b->spans == NULL || b->draft_spans == NULL || b->tokens == NULL ||
        b->jobs == NULL || b->head_out == NULL || b->draft_out == NULL ||
        b->head_drawn == NULL || b->head_seq == NULL || b->pos == NULL)
        return -1;
    return 0;
}

/* Three quarters of what is left beside weights and scratch, unless told. */
static int
kv_room(struct backend *b, const struct backend_opts *o, uint64_t *bytes, struct err *e)
{
    size_t left, all;

    CU_TRY(cudaMemGetInfo(&left, &all), e);
    if (left < b->arena.used)
        return err_set(e, ERR_QUOTA, 0,
                       "%s: weights and scratch take %zu bytes, %zu of %zu are free",
                       b->rk.name, b->arena.used, left, all);
    *bytes = o->kv_bytes > 0 ? o->kv_bytes : (left - b->arena.used) / 4 * 3;
    return 0;
}

/* Sizes first, then the memory, then everything again with addresses (struct arena). */
static int
open_all(struct backend *b, const struct weights *w, const struct backend_opts *o,
         struct err *e)
{
    uint64_t kv = 0;

    if (rank_open(&b->rk, e) == -1 || cuda_kv_open(b, e) == -1 || host_plan(b, e) == -1 ||
        cuda_model_plan(b, o->mtp, e) == -1 || cuda_load(b, w, false, e) == -1)
        return -1;
    b->weight_bytes = b->arena.used;
    cuda_scratch_plan(b);
    if (kv_room(b, o, &kv, e) == -1 || cuda_pool_size(b, kv, e) == -1)
        return -1;
    cuda_pool_plan(b);
    b->arena.size = b->arena.used;
    CU_TRY(cudaMalloc((void **)&b->arena.base, b->arena.size), e);
    for (int i = 0; i < 2; i++)
        CU_TRY(cudaMallocHost((void **)&b->up.buffer[i], b->up.size), e);
    CU_TRY(cudaMallocHost((void **)&b->logits_host,
                          (size_t)CUDA_LOGIT_ROWS * b->c.vocab_size * sizeof(float)),
           e);
    CU_TRY(
        cudaMallocHost((void **)&b->drawn_host, CUDA_STEP_TOKENS * sizeof *b->drawn_host),
        e);
    if (o->arena != NULL)
        cuda_kv_memory(b, o->arena, (size_t)o->arena_bytes);
    b->arena.used = 0;
    if (cuda_load(b, w, true, e) == -1)
        return -1;
    cuda_scratch_plan(b);
    cuda_pool_plan(b);
    return 0;
}

static struct backend *
cuda_open(const struct model_config *c, const struct weights *w,
          const struct backend_opts *o, struct err *e)
{
    struct backend *b;

    if (o->max_seqs < 1 || o->max_seqs > MAX_SEQS) {
        err_set(e, ERR_INVALID, 0, "%u sequences", o->max_seqs);
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
    b->experts_made = (int)o->experts_made;
    if (open_all(b, w, o, e) == -1) {
        cuda_close(b);
        return NULL;
    }
    return b;
}

static void
cuda_info(const struct backend *b, struct backend_info *out)
{
    *out = (struct backend_info){
        .name = "cuda",
        .vocab = (uint32_t)b->c.vocab_size,
        .max_positions = (uint64_t)b->c.max_positions,
        .weight_bytes = b->weight_bytes,
        .page_bytes = b->at.page_bytes,
        .seq_fixed_bytes = b->at.seq_bytes,
        .kv_limit = b->kv_limit,
        .kv_used = b->kv_used,
        .max_seqs = b->max_seqs,
        .max_step_tokens = CUDA_STEP_TOKENS,
        .max_rewind = MAX_REWIND,
        .draws = true,
    };
    snprintf(out->detail, sizeof out->detail, "%s, %d SMs, %zu MiB planned%s", b->rk.name,
             b->rk.sms, b->arena.size >> 20, b->pageable ? ", arena pageable" : "");
}

static uint64_t
cuda_seq_len(const struct backend *b, uint32_t seq)
{
    return seq < b->max_seqs ? b->seqs[seq].len : 0;
}

static uint64_t
cuda_seq_bytes(const struct backend *b, uint32_t seq)
{
    if (seq >= b->max_seqs || !b->seqs[seq].open)
        return 0;
    return b->at.seq_bytes + b->seqs[seq].n_pages * b->at.page_bytes;
}

/*
 * When work has been put on the stream and something fails, nobody knows what the caches hold:
 * whatever CUDA called it, the device counts as lost.
 */
static int
cuda_step(struct backend *b, const struct step *s, struct err *e)
{
    const struct step_bounds k = {.b = b,
                                  .c = &b->c,
                                  .max_seqs = b->max_seqs,
                                  .max_tokens = CUDA_STEP_TOKENS,
                                  .draft = b->net.draft != NULL,
                                  .draws = true,
                                  .find = cuda_find_whole,
                                  .len = cuda_seq_len};

    if (check_step(s, &k, e) == -1 || cuda_reserve(b, s, e) == -1)
        return -1;
    if (cuda_forward(b, s, e) == -1) {
        e->code = ERR_INTERNAL;
        return -1;
    }
    return 0;
}

const struct backend_ops backend_cuda = {
    .name = "cuda",
    .open = cuda_open,
    .close = cuda_close,
    .info = cuda_info,
    .seq_open = cuda_seq_open,
    .seq_fork = cuda_seq_fork,
    .seq_close = cuda_seq_close,
    .seq_len = cuda_seq_len,
    .seq_bytes = cuda_seq_bytes,
    .seq_rewind = cuda_seq_rewind,
    .kv_out = cuda_kv_out,
    .kv_in = cuda_kv_in,
    .kv_set = cuda_kv_set,
    .kv_busy = cuda_kv_busy,
    .step = cuda_step,
    .seq_row = cuda_seq_row,
};
