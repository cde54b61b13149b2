/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is left over: folders in trash/ and tmp/, and files of class B that no ledger names. The
 * latter come from a crash between a file and its row, or between a row's end and its file's, so
 * only in sessions that were hot; and while one is hot, files without a row may be on their way in.
 * Hence the rule: a session is swept once, when it is not hot, after each time that it was. A call
 * does one small piece, under the mutex, so that nothing becomes hot meanwhile. What comes back in
 * trash/ and tmp/ after a crash is swept again; a session's folders are synced before its row
 * says that it has been swept, and so is what the daemon itself unlinked there.
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvstore/catalog_impl.h"
#include "kvstore/io.h"

enum { PIECE = 64, NAME_ROOM = 96, PATH_ROOM = 256 };

/* The first names of a directory, as many as are dealt with in one piece. */
struct names {
    char v[PIECE][NAME_ROOM];
    size_t n;
    const struct catalog *c; /* tmp/: leave out what is being built */
};

static int
take_name(void *arg, const char *name)
{
    struct names *l = arg;
    struct kvfile_id id;

    if (strlen(name) >= NAME_ROOM)
        return 0; /* none of ours */
    if (l->c != NULL && catalog_parse_uuid(name, &id) && ids_has(&l->c->building, &id))
        return 0;
    snprintf(l->v[l->n++], NAME_ROOM, "%s", name);
    return l->n == PIECE ? 1 : 0;
}

/* Unlinks up to PIECE things in dir, looking into directories `deep` levels down. 1: there may be
 * more; 0: it is empty. */
static int
empty(struct io *io, const char *dir, int deep, const struct catalog *c, struct err *e)
{
    struct names *l = calloc(1, sizeof *l);
    int rc;

    if (l == NULL)
        return err_set(e, ERR_QUOTA, errno, "no memory to sweep");
    l->c = c;
    rc = io->ops->list(io, dir, take_name, l, e);
    for (size_t i = 0; i < l->n && rc != -1; i++) {
        char path[PATH_ROOM];
        struct io_stat st;

        snprintf(path, sizeof path, "%s/%s", dir, l->v[i]);
        if (io->ops->stat(io, path, &st, e) == -1) {
            rc = -1;
        } else if (!st.is_dir) {
            rc = io->ops->unlink(io, path, e) == -1 ? -1 : rc;
        } else if (deep == 0) {
            rc = err_set(e, ERR_INTERNAL, 0, "%s: a directory that is not ours", path);
        } else {
            const int more = empty(io, path, deep - 1, NULL, e);

            if (more == 0 && io->ops->rmdir(io, path, e) == -1)
                rc = -1;
            else if (more != 0)
                rc = more;
            if (more == 1)
                break;
        }
    }
    free(l);
    return rc;
}

static int
by_name(const void *a, const void *b)
{
    return strcmp(a, b);
}

struct orphans {
    char (*named)[KVFILE_NAME_MAX]; /* by the ledger, sorted */
    size_t n_named;
    char sub; /* c or k */
    struct names found;
};

static int
one_orphan(void *arg, const char *name)
{
    struct orphans *o = arg;
    char full[NAME_ROOM + 4];

    if (strlen(name) >= NAME_ROOM)
        return 0;
    snprintf(full, sizeof full, "%c/%s", o->sub, name);
    if (o->n_named > 0 && strlen(full) < KVFILE_NAME_MAX &&
        bsearch(full, o->named, o->n_named, sizeof *o->named, by_name) != NULL)
        return 0;
    return take_name(&o->found, name);
}

/* 1: there may be more. */
static int
drop_orphans(struct io *io, const char *dir, struct orphans *o, struct err *e)
{
    int rc = 0;

    for (const char *s = "ck"; rc == 0 && *s != '\0'; s++) {
        char sub[PATH_ROOM], path[2 * PATH_ROOM];

        o->sub = *s;
        o->found.n = 0;
        snprintf(sub, sizeof sub, "%s/%c", dir, *s);
        rc = io->ops->list(io, sub, one_orphan, o, e);
        for (size_t i = 0; i < o->found.n && rc != -1; i++) {
            snprintf(path, sizeof path, "%s/%s", sub, o->found.v[i]);
            if (io->ops->unlink(io, path, e) == -1)
                rc = -1;
        }
        if (rc == 0)
            rc = io->ops->sync_dir(io, sub, e);
    }
    return rc;
}

static int
sweep_files(struct io *io, const char *dir, const struct ledger_content *content,
            struct err *e)
{
    struct orphans *o = calloc(1, sizeof *o);
    int rc;

    if (o != NULL)
        o->named = calloc(content->n_files + 1, sizeof *o->named);
    if (o == NULL || o->named == NULL) {
        free(o);
        return err_set(e, ERR_QUOTA, errno, "no memory to sweep");
    }
    for (o->n_named = 0; o->n_named < content->n_files; o->n_named++)
        kvfile_name(&content->files[o->n_named].about, o->named[o->n_named]);
    qsort(o->named, o->n_named, sizeof *o->named, by_name);
    rc = drop_orphans(io, dir, o, e);
    free(o->named);
    free(o);
    return rc;
}

/* Opened to write, although nothing is written: so that what the ledger says is on the disk before
 * a file that it no longer names is gone. */
static int
sweep_session(struct catalog *c, const struct kvfile_id *id, struct err *e)
{
    char dir[CATALOG_DIR_MAX];
    struct ledger_content content;
    struct ledger *l;
    int rc;

    catalog_dir(id, dir);
    if (ledger_open(c->io, dir, false, &l, e) == -1)
        return -1;
    rc = ledger_brief(l, &content, e);
    if (rc == 0) {
        rc = sweep_files(c->io, dir, &content, e);
        ledger_content_done(&content);
    }
    ledger_close(l);
    return rc;
}

/* One that cannot be swept is left until it has been hot again, or the next start. */
static int
sweep_next(struct catalog *c, struct err *e)
{
    struct kvfile_id id;
    int rc;

    if (c->dead || c->due.n == 0)
        return 0;
    id = c->due.v[--c->due.n];
    if (ids_has(&c->hot, &id)) /* again: due when it is cold */
        return 1;
    rc = sweep_session(c, &id, e);
    if (rc == 1) {
        c->due.n++;
        return 1;
    }
    if (rc == 0 && c->db != NULL &&
        sql_do(c->db, NULL, e, "UPDATE sessions SET swept = 1 WHERE id = ?1", "b",
               (const void *)id.b, sizeof id.b) == -1)
        rc = catalog_index_failed(c, e);
    return rc == -1 ? -1 : 1;
}

int
catalog_sweep(struct catalog *c, struct err *e)
{
    struct err other;
    int trash, tmp, rc = 0;

    pthread_mutex_lock(&c->lock);
    trash = empty(c->io, "trash", 3, NULL, e);
    tmp = trash == 1 ? 0 : empty(c->io, "tmp", 3, c, trash == -1 ? &other : e);
    if (trash != 1 && tmp != 1) /* what fails in one place does not hold up the others */
        rc = sweep_next(c, trash == -1 || tmp == -1 ? &other : e);
    pthread_mutex_unlock(&c->lock);
    if (trash == -1 || tmp == -1)
        return -1;
    return trash == 1 || tmp == 1 ? 1 : rc;
}
