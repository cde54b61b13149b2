/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A session's folder that anybody may have written: u32 n, n bytes of session.db, the rest its
 * write-ahead log. The checksums of the pages are made anew, or no change would come past them. Reading it to look and reading it to write agree; what is accepted keeps the
 * rules, takes a change, and then holds the same and the change.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "kvstore/io.h"
#include "kvstore/ledger.h"
#include "kvstore/verify.h"
#include "kvstore/vfs.h"
#include "tests/sim_fs.h"
#include "tests/store_rig.h"

enum { MOST = 1 << 16 };

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t len);

static void
must(int truth)
{
    if (!truth)
        abort();
}

/* seal: a database, each whole page of it. */
static void
put(struct io *io, const char *path, const uint8_t *p, size_t n, bool seal)
{
    uint8_t *copy = malloc(n + 1);
    struct err e;
    int h;

    must(copy != NULL);
    memcpy(copy, p, n);
    for (size_t at = 0; seal && at + VFS_PAGE <= n; at += VFS_PAGE)
        vfs_seal_page(copy + at, at);
    h = io->ops->open(io, path, IO_WRITE | IO_CREATE, &e);
    must(h >= 0 && io->ops->write(io, h, copy, n, 0, &e) == 0);
    io->ops->close(io, h);
    free(copy);
}

static int
load(struct io *io, bool look, struct ledger_content *c)
{
    struct err e = {0};
    struct ledger *l;
    int rc = look ? ledger_look(io, "s", &l, &e) : ledger_open(io, "s", false, &l, &e);

    if (rc == 0) {
        rc = ledger_load(l, c, &e);
        ledger_close(l);
    }
    must(rc == 0 || (e.code != ERR_NONE && e.text[0] != '\0'));
    return rc;
}

static void
check(const struct ledger_content *c)
{
    must(c->meta.name[0] != '\0' && strlen(c->meta.name) <= LEDGER_NAME_MAX);
    must(c->n_ops <= LEDGER_OPS);
    for (size_t i = 0; i < c->n_points; i++)
        must(c->points[i].pos <= c->len && c->points[i].label[0] != '\0');
    for (size_t i = 0; i < c->n_files; i++) {
        const struct ledger_file *f = &c->files[i];

        must(f->about.pos + (uint64_t)f->n_pages * KVFILE_PAGE_TOKENS <= c->len);
        must(f->about.type == KVFILE_CHUNK || f->about.type == KVFILE_STATE);
        must(f->bytes > 0 && f->bytes % KVFILE_ALIGN == 0);
    }
}

/* A database may be damaged where loading does not look: then a change may fail, but must say so
 * and leave what was there. */
static void
change(struct io *io, const struct ledger_content *before)
{
    const uint32_t tokens[3] = {1, 2, 3};
    const struct ledger_change c = {
        .has_tokens = true, .from = before->len, .tokens = tokens, .n_tokens = 3};
    struct ledger_content after;
    struct err e = {0};
    struct ledger *l;
    int rc;

    if (ledger_open(io, "s", false, &l, &e) == -1)
        return;
    rc = ledger_commit(l, &c, &e);
    must(rc == 0 || (e.code != ERR_NONE && e.text[0] != '\0'));
    ledger_close(l);
    if (rc == -1 || load(io, false, &after) == -1)
        return;
    must(after.len == before->len + 3);
    must(before->len == 0 ||
         memcmp(after.tokens, before->tokens, before->len * sizeof *after.tokens) == 0);
    must(after.tokens[before->len + 2] == 3);
    ledger_content_done(&after);
}

static int
hear(void *arg, bool wrong, const char *text)
{
    (void)arg;
    (void)wrong;
    must(text[0] != '\0');
    return 0;
}

int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t len)
{
    struct ledger_content looked, opened;
    struct verify_result result;
    struct sim *sim;
    struct io *io;
    struct err e = {0};
    uint32_t n;
    int rc;

    if (len < sizeof n || len > MOST)
        return 0;
    memcpy(&n, p, sizeof n);
    p += sizeof n;
    len -= sizeof n;
    if (n > len)
        return 0;
    sim = sim_new();
    io = sim_io(sim);
    must(io->ops->mkdir(io, "s", &e) == 0 && io->ops->mkdir(io, "s/c", &e) == 0 &&
         io->ops->mkdir(io, "s/k", &e) == 0);
    put(io, "s/session.db", p, n, true);
    if (len > n)
        put(io, "s/session.db-wal", p + n, len - n, false);
    store_verify(io, "s", NULL, NULL, hear, NULL, &result, &e);
    rc = load(io, true, &looked);
    if (load(io, false, &opened) == 0) {
        check(&opened);
        must(rc == -1 || rig_differ(&looked, &opened) == NULL);
        change(io, &opened);
        ledger_content_done(&opened);
    }
    if (rc == 0)
        ledger_content_done(&looked);
    must(sim_handles(sim) == 0);
    sim_free(sim);
    return 0;
}
