/* SPDX-License-Identifier: Apache-2.0 */
#ifndef ENGINE_ENGINE_H
#define ENGINE_ENGINE_H

#include <stddef.h>
#include <stdint.h>

struct backend;
struct backend_ops;
struct err;
struct kv_layout;
struct link_status;

/* What an engine runs; all of it stays the caller's and outlives the engine. */
struct engine_model {
    const struct backend_ops *ops;
    struct backend *backend;
    uint8_t fingerprint[32];
    const struct kv_layout *layout;
    uint8_t *arena; /* of the daemon's, for LINK_KV_*; NULL if it gave none */
    uint64_t arena_bytes;

    /* Raw bytes of a token for the stop strings, *len 0 if it has none (control tokens). */
    const char *(*token_bytes)(const void *arg, uint32_t id, size_t *len);
    const void *token_arg;
};

/*
 * The engine's loop: takes jobs from the link (proto/link.h says what they are), runs the
 * backend step by step, answers. One thread calls all of it and everything happens there.
 */
struct engine;

/* status may be NULL. The link stays the caller's. */
struct engine *engine_new(const struct engine_model *m, int link,
                          struct link_status *status, struct err *e);
void engine_free(struct engine *en);

enum { ENGINE_GOES_ON = -1 };

/* One turn: read what has come, at most one step, answer. If there is nothing to run, waits
 * up to wait_ms for packets. ENGINE_GOES_ON, or the exit status (enum link_exit). */
int engine_turn(struct engine *en, int wait_ms);

/* Turns until it is over. */
int engine_run(struct engine *en);

/* Says LINK_FATAL, waiting a moment for the daemon to take it. For main, when loading fails. */
void engine_say_fatal(int link, const struct err *why);

#endif /* ENGINE_ENGINE_H */
