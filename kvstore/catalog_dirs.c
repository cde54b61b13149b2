/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Folders of sessions on their way in and out. In: built in tmp/, files of class B first, session.db
 * last, all synced; then renamed, then both parents synced. Out: renamed, both parents synced, and what is in
 * it goes later. So whatever survives a crash is a whole session or none. Any thread; the
 * catalogue's mutex is held for the steps that others can see, not while files are written.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvstore/catalog_impl.h"
#include "kvstore/io.h"

enum { COPY_BYTES = 1 << 20, PATH_ROOM = CATALOG_DIR_MAX + KVFILE_NAME_MAX + 8 };

static void
place(const char *under, const struct kvfile_id *id, char dir[CATALOG_DIR_MAX])
{
    char uuid[CATALOG_UUID + 1];

    catalog_uuid(id, uuid);
    snprintf(dir, CATALOG_DIR_MAX, "%s/%s", under, uuid);
}

static void
shelf_of(const struct kvfile_id *id, char shelf[CATALOG_DIR_MAX])
{
    snprintf(shelf, CATALOG_DIR_MAX, "sessions/%02x", id->b[0]);
}

int
catalog_build_begin(struct catalog *c, const struct kvfile_id *id,
                    char dir[CATALOG_DIR_MAX], struct err *e)
{
    char sub[CATALOG_DIR_MAX + 4];
    int rc;

    place("tmp", id, dir);
    pthread_mutex_lock(&c->lock);
    rc = ids_add(&c->building, id, e);
    pthread_mutex_unlock(&c->lock);
    if (rc == 0)
        rc = c->io->ops->mkdir(c->io, dir, e);
    for (const char *s = "ck"; rc == 0 && *s != '\0'; s++) {
        snprintf(sub, sizeof sub, "%s/%c", dir, *s);
        rc = c->io->ops->mkdir(c->io, sub, e);
    }
    if (rc == -1)
        catalog_build_drop(c, id);
    return rc;
}

/* catalog_sweep() does the rest. */
void
catalog_build_drop(struct catalog *c, const struct kvfile_id *id)
{
    pthread_mutex_lock(&c->lock);
    ids_drop(&c->building, id);
    pthread_mutex_unlock(&c->lock);
}

/* sessions/ab, durably. Under the mutex. */
static int
make_shelf(struct catalog *c, const struct kvfile_id *id, struct err *e)
{
    char shelf[CATALOG_DIR_MAX];

    if (c->shelf_durable[id->b[0]])
        return 0;
    shelf_of(id, shelf);
    if ((c->io->ops->mkdir(c->io, shelf, e) == -1 && e->code != ERR_EXISTS) ||
        c->io->ops->sync_dir(c->io, "sessions", e) == -1)
        return -1;
    c->shelf_durable[id->b[0]] = true;
    return 0;
}

/* Renames a folder and syncs both its parents; taken back if that fails. Under the mutex. */
static int
move(struct catalog *c, const char *from, const char *from_parent, const char *to,
     const char *to_parent, struct err *e)
{
    struct err ignored;

    if (c->io->ops->rename(c->io, from, to, e) == -1)
        return e->sys == ENOTEMPTY || e->sys == EEXIST
                   ? err_set(e, ERR_EXISTS, e->sys, "%s is there already", to)
                   : -1;
    if (c->io->ops->sync_dir(c->io, to_parent, e) == 0 &&
        c->io->ops->sync_dir(c->io, from_parent, e) == 0)
        return 0;
    c->io->ops->rename(c->io, to, from, &ignored);
    return -1;
}

static int
forget(struct catalog *c, const struct kvfile_id *id, struct err *e)
{
    ids_drop(&c->due, id);
    if (!catalog_has_index(c))
        return 0; /* the index will be compared with the folders when it is opened again */
    return sql_do(c->db, NULL, e, "DELETE FROM sessions WHERE id = ?1", "b",
                  (const void *)id->b, sizeof id->b) == -1
               ? catalog_index_failed(c, e)
               : 0;
}

int
catalog_build_finish(struct catalog *c, const struct kvfile_id *id, struct err *e)
{
    char from[CATALOG_DIR_MAX], to[CATALOG_DIR_MAX], shelf[CATALOG_DIR_MAX];
    int rc;

    place("tmp", id, from);
    catalog_dir(id, to);
    shelf_of(id, shelf);
    pthread_mutex_lock(&c->lock);
    rc = make_shelf(c, id, e);
    if (rc == 0)
        rc = move(c, from, "tmp", to, shelf, e);
    if (rc == 0 && catalog_has_index(c)) {
        struct catalog_entry en = {0};
        struct err ignored;

        /* Without a row it will be found when the store is opened. */
        catalog_look(c->io, id, &en);
        if (catalog_put(c, &en, &ignored) == -1)
            catalog_index_failed(c, &ignored);
    }
    ids_drop(&c->building, id);
    pthread_mutex_unlock(&c->lock);
    return rc;
}

/* Its first sync is that of the folder too (vfs.h), with the names of c/ and k/. */
int
catalog_build_ledger(struct catalog *c, const char *dir, const struct ledger_change *first,
                     struct err *e)
{
    struct ledger *l;
    int rc;

    if (ledger_open(c->io, dir, true, &l, e) == -1)
        return -1;
    rc = ledger_commit(l, first, e);
    ledger_close(l);
    return rc;
}

/* A file whose inode can have no more links. */
static int
copy_to(struct io *io, int from, int to, uint64_t bytes, struct err *e)
{
    char *p = malloc(COPY_BYTES);
    uint64_t at = 0;
    int rc = 0;

    if (p == NULL)
        return err_set(e, ERR_QUOTA, errno, "no memory to copy a file");
    while (rc == 0 && at < bytes) {
        const ssize_t n = io->ops->read(io, from, p, COPY_BYTES, at, e);

        if (n <= 0)
            rc = n == 0 ? err_set(e, ERR_DAMAGED, 0, "a file ended early") : -1;
        else if (io->ops->write(io, to, p, (size_t)n, at, e) == -1)
            rc = -1;
        else
            at += (uint64_t)n;
    }
    free(p);
    return rc;
}

static int
copy_file(struct io *io, const char *from, const char *to, uint64_t bytes, struct err *e)
{
    const int in = io->ops->open(io, from, IO_READ, e);
    int out, rc = -1;

    if (in == -1)
        return -1;
    out = io->ops->open(io, to, IO_WRITE | IO_CREATE | IO_EXCLUSIVE, e);
    if (out != -1) {
        rc = copy_to(io, in, out, bytes, e);
        if (rc == 0)
            rc = io->ops->sync(io, out, e);
        io->ops->close(io, out);
    }
    io->ops->close(io, in);
    return rc;
}

static int
link_files(struct io *io, const char *from, const char *to, const struct ledger_file *files,
           size_t n, struct err *e)
{
    bool used[2] = {false, false};

    for (size_t i = 0; i < n; i++) {
        char name[KVFILE_NAME_MAX], old[PATH_ROOM], new[PATH_ROOM];

        kvfile_name(&files[i].about, name);
        snprintf(old, sizeof old, "%s/%s", from, name);
        snprintf(new, sizeof new, "%s/%s", to, name);
        if (io->ops->link(io, old, new, e) == -1 &&
            (e->sys != EMLINK || copy_file(io, old, new, files[i].bytes, e) == -1))
            return -1;
        used[name[0] == 'k'] = true;
    }
    for (int i = 0; i < 2; i++) {
        char sub[CATALOG_DIR_MAX + 4];

        snprintf(sub, sizeof sub, "%s/%c", to, "ck"[i]);
        if (used[i] && io->ops->sync_dir(io, sub, e) == -1)
            return -1;
    }
    return 0;
}

static int
create(struct catalog *c, const struct kvfile_id *from, const struct kvfile_id *to,
       const struct ledger_change *first, struct err *e)
{
    char dir[CATALOG_DIR_MAX], old[CATALOG_DIR_MAX];
    int rc = 0;

    if (catalog_build_begin(c, to, dir, e) == -1)
        return -1;
    if (from != NULL) {
        catalog_dir(from, old);
        rc = link_files(c->io, old, dir, first->add, first->n_add, e);
    }
    if (rc == 0)
        rc = catalog_build_ledger(c, dir, first, e);
    if (rc == 0)
        return catalog_build_finish(c, to, e);
    catalog_build_drop(c, to);
    return -1;
}

int
catalog_create(struct catalog *c, const struct kvfile_id *id,
               const struct ledger_change *first, struct err *e)
{
    return create(c, NULL, id, first, e);
}

int
catalog_fork(struct catalog *c, const struct kvfile_id *from, const struct kvfile_id *to,
             const struct ledger_change *first, struct err *e)
{
    return create(c, from, to, first, e);
}

struct copying {
    struct io *io;
    const char *from, *to;
    char sub; /* c or k */
    struct err *e;
};

/* A file that goes while we look is no failure: it is not part of the session any more. */
static int
copy_one(void *arg, const char *name)
{
    struct copying *x = arg;
    char old[PATH_ROOM], new[PATH_ROOM];
    struct io_stat st;

    if (strlen(name) >= KVFILE_NAME_MAX)
        return 0; /* none of ours */
    snprintf(old, sizeof old, "%s/%c/%s", x->from, x->sub, name);
    snprintf(new, sizeof new, "%s/%c/%s", x->to, x->sub, name);
    if (x->io->ops->link(x->io, old, new, x->e) == 0 || x->e->code == ERR_NOT_FOUND)
        return 0;
    if (x->e->sys != EMLINK)
        return -1;
    return x->io->ops->stat(x->io, old, &st, x->e) == -1 ||
                   copy_file(x->io, old, new, st.bytes, x->e) == -1
               ? -1
               : 0;
}

/* With what a killed process has left in its log: session.db alone would be an older state. */
static int
copy_ledger(struct io *io, const char *from, const char *to, struct err *e)
{
    static const char *const names[] = {"session.db", "session.db-wal"};

    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char old[PATH_ROOM], new[PATH_ROOM];
        struct io_stat st;

        snprintf(old, sizeof old, "%s/%s", from, names[i]);
        snprintf(new, sizeof new, "%s/%s", to, names[i]);
        if (io->ops->stat(io, old, &st, e) == -1) {
            if (e->code != ERR_NOT_FOUND)
                return -1;
            continue; /* without a ledger: which is for the looker to say */
        }
        if (copy_file(io, old, new, st.bytes, e) == -1)
            return -1;
    }
    return 0;
}

int
catalog_copy(struct catalog *c, const struct kvfile_id *from, bool ledger,
             struct kvfile_id *copy, char dir[CATALOG_DIR_MAX], struct err *e)
{
    char old[CATALOG_DIR_MAX], sub[CATALOG_DIR_MAX + 4];
    struct copying x = {.io = c->io, .from = old, .to = dir, .e = e};
    struct io_stat st;
    int rc;

    catalog_dir(from, old);
    catalog_new_id(copy);
    if (c->io->ops->stat(c->io, old, &st, e) == -1 ||
        catalog_build_begin(c, copy, dir, e) == -1)
        return -1;
    rc = ledger ? copy_ledger(c->io, old, dir, e) : 0;
    for (const char *s = "ck"; rc == 0 && *s != '\0'; s++) {
        x.sub = *s;
        snprintf(sub, sizeof sub, "%s/%c", old, *s);
        rc = c->io->ops->list(c->io, sub, copy_one, &x, e);
    }
    if (rc != 0)
        catalog_build_drop(c, copy);
    return rc == 0 ? 0 : -1;
}

void
catalog_copy_end(struct catalog *c, const struct kvfile_id *copy)
{
    catalog_build_drop(c, copy);
}

static int
move_out(struct catalog *c, const struct kvfile_id *id, const char *under, struct err *e)
{
    char from[CATALOG_DIR_MAX], shelf[CATALOG_DIR_MAX], to[CATALOG_DIR_MAX];
    struct err ignored;
    int rc;

    catalog_dir(id, from);
    shelf_of(id, shelf);
    place(under, id, to);
    pthread_mutex_lock(&c->lock);
    rc = move(c, from, shelf, to, under, e);
    if (rc == 0)
        forget(c, id, &ignored); /* or it goes when the store is opened */
    pthread_mutex_unlock(&c->lock);
    return rc;
}

int
catalog_delete(struct catalog *c, const struct kvfile_id *id, struct err *e)
{
    return move_out(c, id, "trash", e);
}

/* The reason goes along, in a file for people. */
int
catalog_quarantine(struct catalog *c, const struct kvfile_id *id, const char *why,
                   struct err *e)
{
    char dir[CATALOG_DIR_MAX], path[CATALOG_DIR_MAX + 8];
    struct io *io = c->io;
    int h, rc;

    catalog_dir(id, dir);
    snprintf(path, sizeof path, "%s/why", dir);
    h = io->ops->open(io, path, IO_WRITE | IO_CREATE, e);
    if (h == -1)
        return -1;
    rc = io->ops->write(io, h, why, strlen(why), 0, e);
    if (rc == 0)
        rc = io->ops->truncate(io, h, strlen(why), e);
    if (rc == 0)
        rc = io->ops->sync(io, h, e);
    io->ops->close(io, h);
    if (rc == 0)
        rc = io->ops->sync_dir(io, dir, e);
    return rc == 0 ? move_out(c, id, "quarantine", e) : -1;
}
