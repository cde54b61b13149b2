/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fathom-engine: one model, its devices and the sequences beside it, for one fathomd. It owns
 * nothing that has to last, so the answer to any doubt is to end: the daemon starts another
 * and gives it the tokens again. One thread of its own; what a backend starts is its matter.
 */
#include "config.h"

#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/err.h"
#include "base/log.h"
#include "engine/args.h"
#include "engine/engine.h"
#include "engine/load.h"
#include "proto/link.h"

/* Would a second try end the same way? */
static int
exit_of(const struct err *e)
{
    switch (e->code) {
    case ERR_INTERNAL:
    case ERR_QUOTA:
    case ERR_BUSY:
    case ERR_UNAVAILABLE: return LINK_EXIT_FAULT;
    default: return LINK_EXIT_MODEL;
    }
}

static int
serve(const struct engine_args *a, struct link_status *status)
{
    const uint64_t began = clock_ns();
    struct loaded l;
    struct engine *en = NULL;
    struct err e;
    int exit_status;

    if (load(&l, a, status, &e) == 0)
        en = engine_new(&l.model, a->link_fd, status, &e);
    if (en == NULL) {
        log_line(LOG_ERROR, "cannot load model=\"%s\" error=%s text=\"%s\"", a->model,
                 err_name(e.code), e.text);
        engine_say_fatal(a->link_fd, &e);
        load_done(&l);
        return exit_of(&e);
    }
    log_line(LOG_INFO, "loaded model=\"%s\" backend=%s ms=%llu", a->model,
             l.model.ops->name, (unsigned long long)((clock_ns() - began) / 1000000));
    exit_status = engine_run(en);
    engine_free(en);
    load_done(&l);
    return exit_status;
}

int
main(int argc, char **argv)
{
    struct engine_args a;
    struct link_status *status;
    struct err e;

    if (argc == 2 && strcmp(argv[1], "--version") == 0) {
        puts("fathom-engine " PACKAGE_VERSION);
        return 0;
    }
    engine_set_process();
    log_init("fathom-engine", LOG_INFO);
    if (engine_args_parse(&a, argc, argv, &e) == -1) {
        fprintf(stderr, "fathom-engine: %s\n", e.text);
        return LINK_EXIT_USAGE;
    }
    status = engine_args_status(&a, &e);
    if (status == NULL && e.code != ERR_NONE) {
        fprintf(stderr, "fathom-engine: %s\n", e.text);
        return LINK_EXIT_USAGE;
    }
    if (engine_args_arena(&a, &e) == -1) {
        fprintf(stderr, "fathom-engine: %s\n", e.text);
        return LINK_EXIT_USAGE;
    }
    return serve(&a, status);
}
