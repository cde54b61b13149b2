/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a session's folder is worth: see verify.h. One file is in memory at a time. Any thread.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvstore/io.h"
#include "kvstore/ledger_impl.h"
#include "kvstore/verify.h"

enum { PATH_ROOM = 512, FILE_MAX = 256 << 20 };

struct verify {
    struct io *io;
    const char *dir;
    const struct kvfile_model *model;
    const atomic_bool *stop;
    int (*report)(void *arg, bool wrong, const char *text);
    void *arg;
    struct verify_result *out;
    struct err *e;
    struct ledger_content c;
    bool *good; /* [c.n_files] */
};

/* One span of tokens that a chunk has. */
struct span {
    uint64_t from, to;
};

static int tell(struct verify *v, bool wrong, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

static int
stopped(struct verify *v)
{
    return err_set(v->e, ERR_CANCELLED, 0, "verify: stopped");
}

static int
go_on(struct verify *v)
{
    return v->stop == NULL || !atomic_load(v->stop) ? 0 : stopped(v);
}

static int
tell(struct verify *v, bool wrong, const char *fmt, ...)
{
    char text[400];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    v->out->wrong += wrong;
    return v->report(v->arg, wrong, text) == 0 ? 0 : stopped(v);
}

/* A whole file, aligned; the caller's to free. Errors that say nothing of the file (no memory, no
 * handles) are told from those that do by the caller: is_its_fault(). */
static int
read_image(struct verify *v, const char *name, uint8_t **image, uint64_t *bytes,
           struct err *e)
{
    char path[PATH_ROOM];
    struct io_stat st;
    ssize_t got;
    int h;

    *image = NULL;
    snprintf(path, sizeof path, "%s/%s", v->dir, name);
    if (v->io->ops->stat(v->io, path, &st, e) == -1)
        return -1;
    if (st.bytes == 0 || st.bytes % KVFILE_ALIGN != 0 || st.bytes > FILE_MAX)
        return err_set(e, ERR_DAMAGED, 0, "%" PRIu64 " bytes long", st.bytes);
    *image = aligned_alloc(KVFILE_ALIGN, st.bytes);
    if (*image == NULL)
        return err_set(e, ERR_QUOTA, errno, "verify: no memory for a file");
    h = v->io->ops->open(v->io, path, IO_READ | IO_DIRECT, e);
    if (h == -1)
        return -1;
    got = v->io->ops->read_bulk(v->io, h, *image, st.bytes, 0, e);
    v->io->ops->close(v->io, h);
    if (got == -1)
        return -1;
    *bytes = (uint64_t)got;
    return *bytes == st.bytes ? 0 : err_set(e, ERR_DAMAGED, 0, "ends too early");
}

static bool
is_its_fault(const struct err *e)
{
    return e->code == ERR_DAMAGED || e->code == ERR_NOT_FOUND ||
           e->code == ERR_MODEL_MISMATCH;
}

static int
check_file(struct verify *v, size_t i)
{
    const struct ledger_file *f = &v->c.files[i];
    const uint32_t *tokens = NULL;
    char name[KVFILE_NAME_MAX];
    struct err e = {0};
    uint8_t *image;
    uint64_t bytes;
    int rc;

    kvfile_name(&f->about, name);
    rc = read_image(v, name, &image, &bytes, &e);
    if (rc == 0 && bytes != f->bytes)
        rc = err_set(&e, ERR_DAMAGED, 0, "%" PRIu64 " bytes, its row says %" PRIu64, bytes,
                     f->bytes);
    if (rc == 0)
        rc = kvfile_check(image, bytes, v->model, &f->about, NULL, NULL, &tokens, &e);
    if (rc == 0 && f->about.type == KVFILE_CHUNK &&
        memcmp(tokens, v->c.tokens + f->about.pos,
               (size_t)f->n_pages * KVFILE_PAGE_TOKENS * sizeof *tokens) != 0)
        rc = err_set(&e, ERR_DAMAGED, 0, "its tokens are not the session's");
    free(image);
    v->good[i] = rc == 0;
    v->out->files_good += rc == 0;
    if (rc == 0)
        return 0;
    if (!is_its_fault(&e)) {
        *v->e = e;
        return -1;
    }
    return e.code == ERR_NOT_FOUND ? tell(v, true, "%s: is missing", name)
                                   : tell(v, true, "%s: %s", name, e.text);
}

/* How far they reach from 0 on without a gap; they are in order of `from`. */
static uint64_t
reach(const struct span *s, size_t n, uint64_t to)
{
    for (size_t i = 0; i < n && s[i].from <= to; i++) {
        if (s[i].to > to)
            to = s[i].to;
    }
    return to;
}

/* Chunks that are good must follow each other; what comes behind a gap is of no use. */
static int
check_chain(struct verify *v)
{
    uint64_t seen = 0; /* as far as something was said of, or is there */
    uint64_t to = 0, pages = v->c.len / KVFILE_PAGE_TOKENS * KVFILE_PAGE_TOKENS;
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < v->c.n_files; i++) {
        const struct ledger_file *f = &v->c.files[i];
        const uint64_t end = f->about.pos + (uint64_t)f->n_pages * KVFILE_PAGE_TOKENS;

        if (!v->good[i])
            continue;
        if (f->about.type == KVFILE_CHUNK) {
            const struct span s = {f->about.pos, end};

            if (s.from > seen)
                rc = tell(v, true,
                          "tokens %" PRIu64 " to %" PRIu64
                          " are in no chunk that can be used",
                          seen, s.from);
            seen = s.to > seen ? s.to : seen;
            to = reach(&s, 1, to);
        } else if (f->about.pos / KVFILE_PAGE_TOKENS * KVFILE_PAGE_TOKENS <= to) {
            v->out->states++;
            v->out->best = f->about.pos; /* they are in order */
        } else {
            rc = tell(v, true,
                      "the state at %" PRIu64 " cannot be used: chunks reach to %" PRIu64,
                      f->about.pos, to);
        }
    }
    v->out->recompute = v->c.len - v->out->best;
    if (rc == 0 && to < pages)
        rc = tell(v, false, "chunks hold the first %" PRIu64 " of %" PRIu64 " tokens", to,
                  v->c.len);
    return rc;
}

struct listing {
    struct verify *v;
    char sub;
    struct span *spans; /* of chunks, while the ledger cannot be read */
    size_t n, room;
    int rc;
};

static int
orphan(void *arg, const char *name)
{
    struct listing *l = arg;
    struct verify *v = l->v;
    char full[KVFILE_NAME_MAX], known[KVFILE_NAME_MAX], path[PATH_ROOM];
    struct io_stat st;
    struct err e;

    snprintf(full, sizeof full, "%c/%.70s", l->sub, name);
    for (size_t i = 0; i < v->c.n_files; i++) {
        kvfile_name(&v->c.files[i].about, known);
        if (strcmp(full, known) == 0)
            return 0;
    }
    snprintf(path, sizeof path, "%s/%c/%.255s", v->dir, l->sub, name);
    v->out->orphans++;
    if (v->io->ops->stat(v->io, path, &st, &e) == 0)
        v->out->orphan_bytes += st.blocks;
    l->rc = tell(v, false, "%s: nothing names it", full);
    return l->rc;
}

static int
salvage(void *arg, const char *name)
{
    struct listing *l = arg;
    struct kvfile_about about;
    struct err e = {0};
    char full[PATH_ROOM];
    uint8_t *image;
    uint64_t bytes;

    if (go_on(l->v) == -1)
        return l->rc = -1;
    snprintf(full, sizeof full, "c/%.255s", name);
    if (read_image(l->v, full, &image, &bytes, &e) == 0 &&
        kvfile_check(image, bytes, l->v->model, NULL, &about, NULL, NULL, &e) == 0 &&
        about.type == KVFILE_CHUNK) {
        if (l->n == l->room) {
            void *p = realloc(l->spans, (l->room = 2 * l->room + 16) * sizeof *l->spans);

            if (p == NULL) {
                free(image);
                return l->rc = err_set(l->v->e, ERR_QUOTA, errno, "verify: no memory");
            }
            l->spans = p;
        }
        l->spans[l->n++] = (struct span){about.pos, about.pos + about.n_tokens};
    }
    free(image);
    return 0;
}

static int
by_from(const void *a, const void *b)
{
    const struct span *x = a, *y = b;

    return x->from < y->from ? -1 : x->from > y->from;
}

/* Each chunk holds its tokens too: for people who have lost a ledger. */
static int
without_ledger(struct verify *v)
{
    struct listing l = {.v = v, .sub = 'c'};
    char sub[PATH_ROOM];
    struct err e;

    snprintf(sub, sizeof sub, "%s/c", v->dir);
    if (v->io->ops->list(v->io, sub, salvage, &l, &e) == 0 && l.n > 0) {
        qsort(l.spans, l.n, sizeof *l.spans, by_from);
        v->out->salvage = reach(l.spans, l.n, 0);
    }
    free(l.spans);
    if (l.rc == -1)
        return -1;
    return tell(v, false,
                "chunks hold %" PRIu64 " tokens from the first one on, as they were "
                "when each was made",
                v->out->salvage);
}

static int
list_orphans(struct verify *v)
{
    for (const char *s = "ck"; *s != '\0'; s++) {
        struct listing l = {.v = v, .sub = *s};
        char sub[PATH_ROOM];
        struct err e;

        snprintf(sub, sizeof sub, "%s/%c", v->dir, *s);
        if (v->io->ops->list(v->io, sub, orphan, &l, &e) == -1 && l.rc == 0)
            l.rc = tell(v, true, "%s", e.text);
        if (l.rc != 0)
            return -1;
    }
    return 0;
}

static int
check_files(struct verify *v)
{
    int rc = 0;

    v->good = calloc(v->c.n_files + 1, sizeof *v->good);
    if (v->good == NULL)
        return err_set(v->e, ERR_QUOTA, errno, "verify: no memory");
    v->out->files = v->c.n_files;
    for (size_t i = 0; rc == 0 && i < v->c.n_files; i++)
        rc = go_on(v) == -1 ? -1 : check_file(v, i);
    if (rc == 0)
        rc = check_chain(v);
    if (rc == 0)
        rc = list_orphans(v);
    free(v->good);
    return rc;
}

/* Its content, or what is wrong with it. 1: it can be read. */
static int
check_ledger(struct verify *v)
{
    const size_t n_dir = strlen(v->dir);
    struct ledger *l = NULL;
    struct err e = {0};
    uint64_t at;
    int rc = ledger_look(v->io, v->dir, &l, &e);

    if (rc == 0 && ledger_mended(l, &at) > 0 &&
        tell(v, true,
             "session.db-wal: a bit at %" PRIu64 " has turned over; it is put right",
             at) == -1) {
        ledger_close(l);
        return -1;
    }
    if (rc == 0)
        rc = sql_quick_check(l->db, &e);
    if (rc == 0)
        rc = ledger_load(l, &v->c, &e);
    ledger_close(l);
    if (rc == 0)
        return 1;
    if (!is_its_fault(&e)) {
        *v->e = e;
        return -1;
    }
    /* Names are those in the session's folder: this one may be a copy of it. */
    return tell(v, true, "%s",
                strncmp(e.text, v->dir, n_dir) == 0 && e.text[n_dir] == '/'
                    ? e.text + n_dir + 1
                    : e.text);
}

int
store_verify(struct io *io, const char *dir, const struct kvfile_model *m,
             const atomic_bool *stop,
             int (*report)(void *arg, bool wrong, const char *text), void *arg,
             struct verify_result *out, struct err *e)
{
    struct verify v = {.io = io,
                       .dir = dir,
                       .model = m,
                       .stop = stop,
                       .report = report,
                       .arg = arg,
                       .out = out,
                       .e = e};
    int rc;

    *out = (struct verify_result){0};
    rc = check_ledger(&v);
    if (rc == 1) {
        out->ledger = true;
        out->len = v.c.len;
        rc = check_files(&v);
    } else if (rc == 0) {
        rc = without_ledger(&v);
    }
    ledger_content_done(&v.c);
    return rc;
}
