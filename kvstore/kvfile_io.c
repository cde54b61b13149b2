/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files of class B on the disk: how they are named, published so that a crash leaves all of one or
 * nothing, and read.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "kvstore/io.h"
#include "kvstore/kvfile.h"

enum { PATH_ROOM = 512 };

void
kvfile_name(const struct kvfile_about *a, char name[KVFILE_NAME_MAX])
{
    const bool chunk = a->type == KVFILE_CHUNK;
    int n = chunk ? snprintf(name, KVFILE_NAME_MAX, "c/%08" PRIu64 "-",
                             a->pos / KVFILE_PAGE_TOKENS)
                  : snprintf(name, KVFILE_NAME_MAX, "k/%016" PRIu64 "-", a->pos);

    for (size_t i = 0; i < sizeof a->id.b; i++)
        n += snprintf(name + n, KVFILE_NAME_MAX - (size_t)n, "%02x", a->id.b[i]);
    snprintf(name + n, KVFILE_NAME_MAX - (size_t)n, chunk ? ".kvc" : ".kvt");
}

/* The file's path and, in dir, its folder's. */
static int
paths_of(const char *session_dir, const struct kvfile_about *a, char path[PATH_ROOM],
         char dir[PATH_ROOM], struct err *e)
{
    char name[KVFILE_NAME_MAX];

    kvfile_name(a, name);
    if (snprintf(path, PATH_ROOM, "%s/%s", session_dir, name) >= PATH_ROOM)
        return err_set(e, ERR_INTERNAL, ENAMETOOLONG, "store: the path of %s is too long",
                       name);
    snprintf(dir, PATH_ROOM, "%s/%c", session_dir, name[0]);
    return 0;
}

enum tried {
    DONE,
    FAILED,
    SYNC_FAILED /* what was written is lost or not; there is no such file, so try with another */
};

static bool
is_full(const struct err *e)
{
    return e->code == ERR_QUOTA;
}

/* Data first, and only when it cannot be lost the name. */
static enum tried
write_nameless(struct io *io, int h, const uint8_t *image, uint64_t bytes, struct err *e)
{
    if (io->ops->reserve(io, h, bytes, e) == -1 ||
        io->ops->write_bulk(io, h, image, bytes, 0, e) == -1)
        return FAILED;
    if (io->ops->sync(io, h, e) == -1)
        return is_full(e) ? FAILED : SYNC_FAILED;
    return DONE;
}

/*
 * There is a file of that name: the same bytes, from an earlier call. Whether its name is certain
 * nobody knows (that call may have failed to sync the folder, and a sync now would not help
 * it), so ours takes its place; in one step, because a ledger may name it.
 */
static int
take_place(struct io *io, int h, const char *path, struct err *e)
{
    char aside[PATH_ROOM + 8];

    snprintf(aside, sizeof aside, "%s.again", path);
    if (io->ops->unlink(io, aside, e) == -1 && e->code != ERR_NOT_FOUND)
        return -1;
    if (io->ops->name(io, h, aside, e) == -1)
        return -1;
    return io->ops->rename(io, aside, path, e);
}

static enum tried
try_publish(struct io *io, const char *path, const char *dir, const uint8_t *image,
            uint64_t bytes, struct err *e)
{
    const int h = io->ops->open_nameless(io, dir, e);
    bool ours = true;
    struct err ignored;
    enum tried t;

    if (h == -1)
        return FAILED;
    t = write_nameless(io, h, image, bytes, e);
    if (t == DONE && io->ops->name(io, h, path, e) == -1) {
        ours = false;
        if (e->code != ERR_EXISTS || take_place(io, h, path, e) == -1)
            t = FAILED;
    }
    io->ops->close(io, h);
    if (t != DONE || io->ops->sync_dir(io, dir, e) == 0)
        return t;
    /* The name may be lost though a later sync succeeds. It can be taken back and given again, but
     * not where there was a file before, which a ledger may name. */
    if (!ours || io->ops->unlink(io, path, &ignored) == -1)
        return FAILED;
    return SYNC_FAILED;
}

int
kvfile_publish(struct io *io, const char *session_dir, const struct kvfile_about *a,
               const uint8_t *image, uint64_t bytes, struct err *e)
{
    char path[PATH_ROOM], dir[PATH_ROOM];
    enum tried t;

    assert((uintptr_t)image % KVFILE_ALIGN == 0 && bytes % KVFILE_ALIGN == 0);
    if (paths_of(session_dir, a, path, dir, e) == -1)
        return -1;
    t = try_publish(io, path, dir, image, bytes, e);
    if (t == SYNC_FAILED)
        t = try_publish(io, path, dir, image, bytes, e);
    if (t == DONE)
        return 0;
    if (t == SYNC_FAILED)
        e->code = ERR_READ_ONLY;
    return -1;
}

int
kvfile_read(struct io *io, const char *session_dir, const struct kvfile_about *a,
            uint8_t *image, uint64_t room, uint64_t *bytes, struct err *e)
{
    char path[PATH_ROOM], dir[PATH_ROOM];
    uint64_t n;
    ssize_t got;
    int h, rc;

    if (paths_of(session_dir, a, path, dir, e) == -1)
        return -1;
    h = io->ops->open(io, path, IO_READ | IO_DIRECT, e);
    if (h == -1)
        return -1;
    rc = io->ops->size(io, h, &n, e);
    if (rc == 0 && (n == 0 || n % KVFILE_ALIGN != 0 || n > room))
        rc = err_set(e, ERR_DAMAGED, 0,
                     "store: %s has %" PRIu64 " bytes: no whole file, or not that one",
                     path, n);
    got = rc == 0 ? io->ops->read_bulk(io, h, image, n, 0, e) : -1;
    io->ops->close(io, h);
    if (got == -1)
        return -1;
    if ((uint64_t)got != n)
        return err_set(e, ERR_DAMAGED, 0, "store: %s became shorter while it was read",
                       path);
    *bytes = n;
    return 0;
}
