/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fill STATE N: makes a store with N sessions of the caller's, s000000 and so on, each of 16 tokens
 * and a turn, parked as a fathomd that has ended well leaves them. It is for tests of what many
 * sessions cost: nothing is synced, which is all that takes long.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"
#include "kvstore/catalog.h"
#include "kvstore/io.h"

enum { TOKENS = 16 };

static int
no_sync(struct io *io, int h, struct err *e)
{
    (void)io;
    (void)h;
    (void)e;
    return 0;
}

static int
no_sync_dir(struct io *io, const char *dir, struct err *e)
{
    (void)io;
    (void)dir;
    (void)e;
    return 0;
}

static int
make(struct catalog *c, unsigned i, struct err *e)
{
    uint32_t tokens[TOKENS];
    struct ledger_point turn = {.automatic = true, .pos = TOKENS, .made_ms = 1};
    struct catalog_entry en = {.meta = {.uid = getuid(),
                                        .gid = getgid(),
                                        .mode = 0600,
                                        .created_ms = 1,
                                        .used_ms = 1 + i,
                                        .turns = 1},
                               .len = TOKENS,
                               .n_points = 1,
                               .disk_bytes = 1};
    const struct ledger_change first = {.meta = &en.meta,
                                        .has_tokens = true,
                                        .tokens = tokens,
                                        .n_tokens = TOKENS,
                                        .has_points = true,
                                        .points = &turn,
                                        .n_points = 1};

    snprintf(en.meta.name, sizeof en.meta.name, "s%06u", i);
    snprintf(turn.label, sizeof turn.label, "turn-1");
    for (unsigned k = 0; k < TOKENS; k++)
        tokens[k] = 1 + (i + k) % 8000;
    catalog_new_id(&en.id);
    return catalog_create(c, &en.id, &first, e) == -1 ? -1 : catalog_note(c, &en, e);
}

int
main(int argc, char **argv)
{
    struct err e = {0};
    struct catalog *c;
    struct io_ops ops;
    struct io *io;
    unsigned long n;

    if (argc != 3 || (n = strtoul(argv[2], NULL, 10)) > 999999) {
        fprintf(stderr, "usage: fill STATE N\n");
        return 64;
    }
    mkdir(argv[1], 0700);
    io = io_open_root(argv[1], false, &e);
    if (io == NULL)
        goto failed;
    ops = *io->ops;
    ops.sync = no_sync;
    ops.sync_dir = no_sync_dir;
    io->ops = &ops;
    if (catalog_open(io, &c, &e) == -1)
        goto failed;
    for (unsigned i = 0; i < n; i++)
        if (make(c, i, &e) == -1)
            goto failed;
    catalog_close(c);
    io_close_root(io);
    return 0;
failed:
    fprintf(stderr, "fill: %s\n", e.text);
    return 74;
}
