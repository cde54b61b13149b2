/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files of a session: the list is the truth, and of the ledger only the ids that it has otherwise
 * are remembered (`touched`). A commit says of each what the list says then: there it is added or
 * replaced, or it is gone and dropped. So a commit that failed need not be taken apart: the same
 * ids are told again.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "daemon/session.h"
#include "daemon/session_files.h"

static size_t
find(const struct session *s, const struct kvfile_id *id)
{
    size_t i = 0;

    while (i < s->n_files && memcmp(&s->files[i].about.id, id, sizeof *id) != 0)
        i++;
    return i;
}

const struct ledger_file *
session_file(const struct session *s, const struct kvfile_id *id)
{
    const size_t i = find(s, id);

    return i < s->n_files ? &s->files[i] : NULL;
}

static int
in_order(const void *a, const void *b)
{
    const struct kvfile_about *x = &((const struct ledger_file *)a)->about;
    const struct kvfile_about *y = &((const struct ledger_file *)b)->about;

    if (x->type != y->type)
        return x->type < y->type ? -1 : 1;
    if (x->pos != y->pos)
        return x->pos < y->pos ? -1 : 1;
    return memcmp(&x->id, &y->id, sizeof x->id);
}

static void
count(struct session *s, uint64_t less, uint64_t more)
{
    quota_give(s->user, QUOTA_DISK, less);
    quota_force(s->user, QUOTA_DISK, more);
    s->file_bytes = s->file_bytes - less + more;
}

static void
touch(struct session *s, const struct kvfile_id *id)
{
    /* Those under way may have to be told as they are now. */
    for (size_t i = s->n_touched_taken; i < s->n_touched; i++) {
        if (memcmp(&s->touched[i], id, sizeof *id) == 0)
            return;
    }
    s->touched[s->n_touched++] = *id;
}

static int
reserve(struct session *s, size_t add, size_t touched, struct err *e)
{
    struct ledger_file *files = realloc(s->files, (s->n_files + add + 1) * sizeof *files);
    struct kvfile_id *ids;

    if (files != NULL)
        s->files = files;
    ids = realloc(s->touched, (s->n_touched + touched + 1) * sizeof *ids);
    if (ids != NULL)
        s->touched = ids;
    if (files == NULL || ids == NULL)
        return err_set(e, ERR_QUOTA, errno, "no memory for a session's files");
    return 0;
}

static void
drop_at(struct session *s, size_t i)
{
    touch(s, &s->files[i].about.id);
    count(s, s->files[i].bytes, 0);
    s->n_files--;
    memmove(&s->files[i], &s->files[i + 1], (s->n_files - i) * sizeof *s->files);
}

int
session_files_change(struct session *s, const struct ledger_file *add, size_t n_add,
                     const struct kvfile_id *drop, size_t n_drop, struct err *e)
{
    if (reserve(s, n_add, n_add + n_drop, e) == -1)
        return -1;
    for (size_t i = 0; i < n_drop; i++) {
        const size_t at = find(s, &drop[i]);

        if (at < s->n_files)
            drop_at(s, at);
    }
    for (size_t i = 0; i < n_add; i++) {
        const size_t at = find(s, &add[i].about.id);

        count(s, at < s->n_files ? s->files[at].bytes : 0, add[i].bytes);
        s->files[at] = add[i];
        s->n_files += at == s->n_files;
        touch(s, &add[i].about.id);
    }
    qsort(s->files, s->n_files, sizeof *s->files, in_order);
    session_log_touch(&s->log);
    return 0;
}

/* How many of its pages lie in front of pos. */
static uint32_t
pages_until(const struct ledger_file *f, uint64_t pos)
{
    const uint64_t fit = pos > f->about.pos ? (pos - f->about.pos) / KVFILE_PAGE_TOKENS : 0;

    return fit < f->n_pages ? (uint32_t)fit : f->n_pages;
}

static bool
stays(const struct ledger_file *f, uint64_t pos)
{
    return f->about.type == KVFILE_STATE ? f->about.pos <= pos : pages_until(f, pos) > 0;
}

int
session_files_cut(struct session *s, uint64_t pos, struct err *e)
{
    if (reserve(s, 0, s->n_files, e) == -1)
        return -1;
    for (size_t i = s->n_files; i-- > 0;) {
        struct ledger_file *f = &s->files[i];

        if (!stays(f, pos)) {
            drop_at(s, i);
        } else if (f->about.type == KVFILE_CHUNK && pages_until(f, pos) != f->n_pages) {
            f->n_pages = pages_until(f, pos);
            touch(s, &f->about.id);
        }
    }
    session_log_touch(&s->log);
    return 0;
}

int
session_files_until(const struct session *s, uint64_t pos, struct ledger_file **out,
                    size_t *n, struct err *e)
{
    struct ledger_file *v;

    *out = NULL;
    *n = 0;
    if (s->n_files == 0)
        return 0;
    v = malloc(s->n_files * sizeof *v);
    if (v == NULL)
        return err_set(e, ERR_QUOTA, errno, "no memory for a session's files");
    for (size_t i = 0; i < s->n_files; i++) {
        if (!stays(&s->files[i], pos))
            continue;
        v[*n] = s->files[i];
        v[*n].n_pages = pages_until(&s->files[i], pos);
        ++*n;
    }
    *out = v;
    return 0;
}

void
session_files_stored(struct session *s, bool done)
{
    if (done) {
        s->n_touched -= s->n_touched_taken;
        if (s->n_touched > 0)
            memmove(s->touched, s->touched + s->n_touched_taken,
                    s->n_touched * sizeof *s->touched);
    }
    s->n_touched_taken = 0;
}

void
session_files_loaded(struct session *s, struct ledger_file *files, size_t n)
{
    uint64_t bytes = 0;

    free(s->files);
    s->files = files;
    s->n_files = n;
    for (size_t i = 0; i < n; i++)
        bytes += files[i].bytes;
    count(s, s->file_bytes, bytes);
}

void
session_files_park(struct session *s)
{
    free(s->files);
    free(s->touched);
    s->files = NULL;
    s->touched = NULL;
    s->n_files = s->n_touched = s->n_touched_taken = 0;
}
