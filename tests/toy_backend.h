/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_TOY_BACKEND_H
#define TESTS_TOY_BACKEND_H

#include <stdint.h>

#include "gpu/backend.h"

/*
 * A backend whose model is a hash: the logits behind a token depend on all tokens up to it and
 * on nothing else, so that a wrong token, order or position anywhere shows in all that follows.
 * It keeps to gpu/backend.h in every limit (pages, kv_bytes, max_rewind, max_step_tokens) and
 * holds its caller to it: a step that breaks the contract aborts with a sentence on stderr.
 *
 * Its caches have the sizes that the model_config says (kvlayout.h), so that with the true
 * config.json a session of a million tokens is moved as 3.7 GB; but they are made up when they
 * leave, from the hash of the tokens, at several GB/s, and checked byte by byte when they come
 * in: one wrong byte, or a page in another's place, changes all logits from then on. Weights may
 * be NULL.
 */
enum {
    TOY_PAGE_TOKENS = 128,
    TOY_STEP_TOKENS = 512,
    TOY_MAX_REWIND = 8,
};

extern const struct backend_ops backend_toy;

/* A small model with layers of all kinds: for who has no config.json. */
void toy_config(struct model_config *c);

/* What that many open sequences and pages of caches take. */
uint64_t toy_bytes(const struct model_config *c, uint64_t seqs, uint64_t pages);

/* Called in front of every step with its number, from 1. -1 makes the step fail with *e,
 * TOY_NONSENSE gives it rows that are not finite. For being slow, dying, failing at step k.
 * NULL: nothing. */
enum { TOY_NONSENSE = 1 };

typedef int toy_step_fn(void *arg, uint64_t number, const struct step *s, struct err *e);
void toy_on_step(toy_step_fn *fn, void *arg);

/* Called for each kv_out, kv_in and kv_set with its number, from 1, and for each kv_busy. -1: the
 * call fails with *e. TOY_LATER: it is done when a kv_busy of that sequence gives 0, which is
 * what the function says then, or 1; whoever does not wait gets nothing. TOY_SPOIL: one byte of
 * what a kv_out gives is wrong. */
enum toy_kv { TOY_KV_OUT, TOY_KV_IN, TOY_KV_SET, TOY_KV_BUSY };

enum { TOY_LATER = 1, TOY_SPOIL = 2 };

typedef int toy_kv_fn(void *arg, enum toy_kv what, uint64_t number, uint32_t seq,
                      struct err *e);
void toy_on_kv(toy_kv_fn *fn, void *arg);

/* The row that follows these tokens, computed afresh: the oracle for tests. */
void toy_row(const uint32_t *tokens, size_t n, uint32_t vocab, float *row);

#endif /* TESTS_TOY_BACKEND_H */
