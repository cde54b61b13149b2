/* SPDX-License-Identifier: Apache-2.0 */
#ifndef ENGINE_SEQ_H
#define ENGINE_SEQ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct backend;
struct backend_ops;
struct err;

/*
 * A sequence: the tokens that belong to it, and how many of them the backend has in its
 * caches. The tokens are the truth and the caches follow, so that no rewind is too far, a
 * drawn token needs no step of its own, and a backend that forgot a sequence is given it again.
 *
 *   0 .......... computed ....... len ....... len + ahead
 *     in the caches      to be run    tokens of the FEED under way, not part of it yet
 *
 * computed may pass len only by becoming it. row holds the logits behind tokens[computed - 1]
 * if row_ok; the next token can be drawn when moreover computed == len.
 */
struct seq {
    bool open;   /* a job may use it */
    bool backed; /* the backend has it open */
    bool
        coming; /* between its first KV_IN and KV_SET: len tokens are here, no caches to use */
    uint32_t owner;
    uint32_t *tokens; /* u32 [room] */
    size_t len, ahead, room;
    size_t computed;
    float *row; /* f32 [vocab]; allocated with the first row */
    bool row_ok;
    float *
        set_row; /* f32 [vocab] behind set_at tokens, where a KV_SET has made it, or NULL: */
    size_t set_at; /* the caches cannot go back further, to compute that row again */
};

/* All sequences, by number, and the backend that runs them. */
struct seqs {
    const struct backend_ops *ops;
    struct backend *backend;
    struct seq *all; /* [max] */
    uint32_t max, vocab;
    size_t max_positions;
    bool draws; /* the backend does */
};

int seqs_init(struct seqs *ss, const struct backend_ops *ops, struct backend *b,
              struct err *e);
void seqs_done(struct seqs *ss); /* closes them in the backend too */

/* NULL and ERR_NOT_FOUND if that one is not open, ERR_CONFLICT if it is coming. */
struct seq *seq_find(struct seqs *ss, uint32_t n, struct err *e);
struct seq *seq_find_any(struct seqs *ss, uint32_t n, struct err *e); /* coming or not */

int seq_open(struct seqs *ss, uint32_t n, uint32_t owner, struct err *e);
int seq_fork(struct seqs *ss, uint32_t from, uint32_t to, uint32_t owner, struct err *e);
int seq_close(struct seqs *ss, uint32_t n, struct err *e);
int seq_rewind(struct seqs *ss, uint32_t n, uint64_t len, struct err *e);

/* Tokens behind len: taken over by seq_ran step by step, or forgotten by seq_drop_ahead. */
int seq_put_ahead(struct seqs *ss, struct seq *s, const uint32_t *tokens, size_t n,
                  struct err *e);
void seq_drop_ahead(struct seq *s);

/* A drawn token: part of the sequence at once. ERR_CONTEXT_FULL at max_positions. */
int seq_append(struct seqs *ss, struct seq *s, uint32_t token, struct err *e);

/* Sees to it that running computed .. len - 1, if that is anything, leaves the row behind len. */
int seq_want_row(struct seqs *ss, uint32_t n, struct err *e);
bool seq_has_row(const struct seq *s);

/* The row behind the tokens in the caches, if a token was drawn from it and the backend still has
 * it. */
void seq_fetch_row(struct seqs *ss, uint32_t n);

/* Tokens and their whole pages, for a sequence that is coming or has no tokens; then its state
 * and the row behind it, which makes it one of len tokens, all computed. */
int seq_kv_in(struct seqs *ss, uint32_t n, const uint32_t *tokens, size_t n_tokens,
              const uint8_t *pages, struct err *e);
int seq_kv_set(struct seqs *ss, uint32_t n, const uint8_t *state, const float *row,
               struct err *e);

/* In front of a step: open in the backend, room for a row if one is wanted. */
int seq_ready(struct seqs *ss, uint32_t n, bool row, struct err *e);
void seq_ran(struct seq *s, size_t n, bool row); /* behind it */

#endif /* ENGINE_SEQ_H */
