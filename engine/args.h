/* SPDX-License-Identifier: Apache-2.0 */
#ifndef ENGINE_ARGS_H
#define ENGINE_ARGS_H

#include <stdbool.h>
#include <stdint.h>

#include "gpu/backend.h"

struct err;
struct link_status;

/*
 * The engine's command line, which only fathomd writes:
 *   fathom-engine --model DIR --link-fd N [--status-fd N] [--backend NAME] [--isa NAME]
 *                 [--threads N] [--kv-bytes N] [--max-seqs N] [--arena-fd N --arena-bytes N]
 */
struct engine_args {
    const char *model, *backend;
    struct backend_opts opts;
    int link_fd, status_fd, arena_fd; /* -1: none, of the last two */
    uint32_t vocab;                   /* --vocab: for the stand-in that tests use; else 0 */
    bool
        synthetic; /* --synthetic SEED: weights made up (model/synthetic.h), for benchmarks */
    uint64_t seed;
};

/* ERR_INVALID: a sentence for stderr. Also if it was not fathomd that started the program. */
int engine_args_parse(struct engine_args *a, int argc, char **argv, struct err *e);

/* The page of --status-fd, mapped; NULL with e untouched code 0 if there is none. */
struct link_status *engine_args_status(const struct engine_args *a, struct err *e);

/* Maps --arena-fd, if there is one: opts.arena. */
int engine_args_arena(struct engine_args *a, struct err *e);

/* Signals as the engine wants them, and death with its parent. Call it first of all. */
void engine_set_process(void);

#endif /* ENGINE_ARGS_H */
