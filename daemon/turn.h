/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DAEMON_TURN_H
#define DAEMON_TURN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tokenizer;

/*
 * Chat turns as tokens. The format (docs/CHAT.md) puts control tokens where turns begin and
 * reasoning ends, and nobody's text can hold them; so a transcript says by itself, after any
 * restart, fork or rollback, what of it is reasoning. Pure functions.
 */
struct turn_ids {
    int64_t user, assistant, think, think_end, dsml, action; /* -1: the model has none */
};

struct turn_ids turn_ids(const struct tokenizer *t);

/* A message of a user (or developer), which ends the exchange before it, among these? */
bool turn_asks(const struct turn_ids *id, const uint32_t *tokens, size_t n);

/* Tools were declared or called: then reasoning is kept. */
bool turn_has_tools(const struct turn_ids *id, const uint32_t *tokens, size_t n);

/*
 * The reasoning of the last exchange: the tokens [at, from), from <think> up to and with </think>
 * or, if the answer was cut off within it, to the end. What stands there without it is one
 * </think>. False: there is none, or nothing was answered yet.
 */
struct turn_cut {
    uint64_t at, from;
};

bool turn_reasoning(const struct turn_ids *id, const uint32_t *tokens, uint64_t len,
                    struct turn_cut *out);

#endif /* DAEMON_TURN_H */
