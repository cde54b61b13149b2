/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_BACKEND_H
#define GPU_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/config.h"

struct draw;
struct drawn;
struct err;
struct weights;

/*
 * A backend: one loaded model and the sequences that live beside it. The border is drawn at the
 * step, not at the operation, so that a backend may fuse, reorder and capture as it likes.
 *
 * One thread calls all functions of a backend; what a backend does inside with threads or
 * devices is its own matter. A failed call changes nothing unless it says so. ERR_INTERNAL
 * means that the device is lost and the process should end.
 *
 * Same sequence + same tokens => same bits of logits, whatever was in the same step, however
 * the tokens were cut into steps, and after any rewind or fork.
 */
struct backend;

struct backend_opts {
    const char *isa; /* cpu: "auto", "avx512", "avx2", "portable", "reference" */
    int n_threads;   /* cpu: 0 for all cores */
    uint64_t
        kv_bytes; /* most bytes of caches of all sequences; 0: three quarters of what is free */
    uint32_t max_seqs; /* open at the same time */
    void *arena; /* kv_* will mostly be given memory in here: it can be pinned. Or NULL */
    uint64_t arena_bytes;
    uint32_t experts_made; /* for timing only: so many experts of a layer are loaded, the
                              others' numbers stand for the same ones; 0: all */
    bool mtp; /* run the draft block beside every step (struct step_seq.mtp_logits) */
};

struct backend_info {
    char name[32], detail[96]; /* "cpu", "avx512 vnni bf16, 2 threads" */
    uint32_t vocab;
    uint64_t max_positions;
    uint64_t weight_bytes;    /* resident */
    uint64_t page_bytes;      /* packed rows of 128 tokens, all layers */
    uint64_t seq_fixed_bytes; /* window rings, compressor frontiers */
    uint64_t kv_limit, kv_used;
    uint32_t max_seqs, max_step_tokens,
        max_rewind; /* max_rewind: tokens seq_rewind can undo */
    bool draws;     /* step_seq.draw may be used, and seq_row is there */
};

/* One sequence's share of a step. */
struct step_seq {
    uint32_t seq;
    uint32_t n_tokens;      /* at least 1; they go to positions len .. len + n_tokens - 1 */
    const uint32_t *tokens; /* [n_tokens], each below vocab */
    uint32_t n_logits;      /* rows wanted: of the last n_logits tokens, at most n_tokens */
    float *logits;          /* out, f32 [n_logits][vocab]; NULL if n_logits is 0 */
    const struct draw *draw; /* NULL, or how the token behind the last one is drawn; then
                                n_logits is 0, and no logits come to the host */
    struct drawn *drawn;     /* out, if draw is given */
    float *mtp_logits; /* out, f32 [n_tokens][vocab] or NULL; needs opts.mtp. Row i: the
                               draft for the token after tokens[i], from the state in front of
                               tokens[i]; the row of position 0 has no such state: zeros. */
};

struct step {
    uint32_t n_seqs; /* no sequence twice; at most max_step_tokens tokens in all */
    struct step_seq *seqs;
};

struct backend_ops {
    const char *name;
    struct backend *(*open)(const struct model_config *c, const struct weights *w,
                            const struct backend_opts *o, struct err *e);
    void (*close)(struct backend *b); /* NULL is fine */
    void (*info)(const struct backend *b, struct backend_info *out);

    /* Sequence numbers are the caller's, below max_seqs. Opening one costs its fixed bytes. */
    int (*seq_open)(struct backend *b, uint32_t seq, struct err *e);
    int (*seq_fork)(struct backend *b, uint32_t from, uint32_t to, struct err *e);
    void (*seq_close)(struct backend *b, uint32_t seq);
    uint64_t (*seq_len)(const struct backend *b, uint32_t seq);
    uint64_t (*seq_bytes)(const struct backend *b, uint32_t seq);

    /* Back to the first len tokens. ERR_CONFLICT if that is more than max_rewind ago: then
     * close, open and run the tokens again. */
    int (*seq_rewind)(struct backend *b, uint32_t seq, uint64_t len, struct err *e);

    /*
     * Caches out to host memory and back in, in the form of model/kvlayout.h, bit for bit.
     *
     * kv_out copies whole pages [first, first + n) to `pages` (n may be 0) and, unless it is
     * NULL, the state at seq_len() to `state`. kv_in gives an open sequence of length 0 its
     * next pages, in order; kv_set then makes it one of len tokens, of which all whole pages
     * have come. Until then it takes nothing but kv_in, kv_set and seq_close. A sequence that
     * was set cannot be rewound to less than that len (ERR_CONFLICT).
     *
     * Copies may go on beside later steps of other sequences, and further kv_in and kv_set, or
     * further kv_out, of the same sequence may be asked for behind them. But the memory must
     * stay as it is, and the sequence be left alone otherwise (its seq_close waits), while
     * kv_busy() says 1; -1 is ERR_INTERNAL.
     */
    int (*kv_out)(struct backend *b, uint32_t seq, uint64_t first, uint64_t n,
                  uint8_t *pages, uint8_t *state, struct err *e);
    int (*kv_in)(struct backend *b, uint32_t seq, uint64_t n, const uint8_t *pages,
                 struct err *e);
    int (*kv_set)(struct backend *b, uint32_t seq, uint64_t len, const uint8_t *state,
                  struct err *e);
    int (*kv_busy)(struct backend *b, uint32_t seq, struct err *e);

    /* ERR_QUOTA (no room for caches) and ERR_CONTEXT_FULL leave every sequence as it was. */
    int (*step)(struct backend *b, const struct step *s, struct err *e);

    /* The row of logits that a token was drawn from in the last step, f32 [vocab]. ERR_NOT_FOUND:
     * it is gone, with the next step at the latest. NULL if the backend does not draw. */
    int (*seq_row)(struct backend *b, uint32_t seq, float *row, struct err *e);
};

extern const struct backend_ops backend_cpu;
extern const struct backend_ops backend_cuda; /* if HAVE_CUDA */

/* Is there a device that the CUDA backend can use? Only if HAVE_CUDA. */
bool backend_cuda_present(void);

/* By name; NULL and ERR_NOT_FOUND with the list of those built in. "auto" is cuda where there is
 * a device that it can use, else cpu. */
const struct backend_ops *backend_find(const char *name, struct err *e);

#endif /* GPU_BACKEND_H */
