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
 * Of the model_config only vocab_size and max_positions count; weights may be NULL.
 */
enum {
    TOY_PAGE_TOKENS = 128,
    TOY_PAGE_BYTES = 4096,
    TOY_FIXED_BYTES = 1024,
    TOY_STEP_TOKENS = 512,
    TOY_MAX_REWIND = 8,
};

extern const struct backend_ops backend_toy;

/* Called in front of every step with its number, from 1. -1 makes the step fail with *e,
 * TOY_NONSENSE gives it rows that are not finite. For being slow, dying, failing at step k.
 * NULL: nothing. */
enum { TOY_NONSENSE = 1 };

typedef int toy_step_fn(void *arg, uint64_t number, const struct step *s, struct err *e);
void toy_on_step(toy_step_fn *fn, void *arg);

/* The row that follows these tokens, computed afresh: the oracle for tests. */
void toy_row(const uint32_t *tokens, size_t n, uint32_t vocab, float *row);

#endif /* TESTS_TOY_BACKEND_H */
