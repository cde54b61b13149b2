/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A save's way from the arena to the ledger: images are sealed and written by bulk threads, rows
 * are committed by the store, and what they replace goes behind them. See kv_save.c.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/err.h"
#include "base/log.h"
#include "daemon/kv_impl.h"
#include "daemon/options.h"
#include "daemon/session.h"
#include "daemon/session_files.h"
#include "daemon/store.h"
#include "daemon/work_impl.h"

enum { MOST_DROPPED = 64 };

/* --- sealing and writing ------------------------------------------------------------------- */

static struct kv_save_file *
file_of(struct kv_save *v, const struct kvfile_id *id)
{
    for (size_t i = 0; i < v->n; i++) {
        if (memcmp(&v->files[i].about.id, id, sizeof *id) == 0)
            return &v->files[i];
    }
    return NULL;
}

static void on_written(struct kv_bulk_job *job);
static void commit(struct kv *k, struct kv_save *v);

/* One job for each file that is still wanted; none: false. */
static bool
post_all(struct kv *k, struct kv_save *v, enum kv_bulk_kind kind,
         void (*done)(struct kv_bulk_job *))
{
    v->left = 0;
    for (size_t i = 0; i < v->n; i++) {
        struct kv_save_file *f = &v->files[i];
        struct kv_bulk_job *job;
        struct err e;

        if (f->image == NULL)
            continue;
        job = kv_bulk_job_new(kind, done, v, &e);
        if (job == NULL) {
            kv_save_fail(v, &e);
            kv_save_give_up(k, v, f);
            continue;
        }
        if (kind == KV_BULK_SEAL) {
            job->tokens = f->tokens;
            f->tokens = NULL;
        }
        job->model = &k->model;
        job->about = f->about;
        job->image = kv_image_bytes(k, f->image);
        job->room = kind == KV_BULK_WRITE ? f->image->plan.bytes : f->image->at.bytes;
        job->row_at = f->row_at;
        job->session = v->s->id;
        catalog_dir(&v->s->id, job->dir);
        v->left++;
        kv_bulk_post(k->bulk, job);
    }
    return v->left > 0;
}

/* Pieces that a rollback took out of the list, or a deletion. */
static void
forget_dropped(struct kv *k, struct kv_save *v)
{
    for (size_t i = 0; i < v->n; i++) {
        struct kv_save_file *f = &v->files[i];

        if (f->image != NULL && kv_pieces_find(&v->s->kv->pieces, &f->about.id) == NULL)
            kv_save_give_up(k, v, f);
    }
}

static void
write_all(struct kv *k, struct kv_save *v)
{
    forget_dropped(k, v);
    v->stage = KV_SAVE_WRITE;
    if (k->io != NULL && post_all(k, v, KV_BULK_WRITE, on_written))
        return;
    for (size_t i = 0; i < v->n; i++) { /* memory is the last tier */
        if (v->files[i].image != NULL)
            kv_image_unpin(k, v->files[i].image);
    }
    kv_save_end(k, v);
}

static void
on_sealed(struct kv_bulk_job *job)
{
    struct kv_save *v = job->owner;
    struct kv *k = v->k;
    struct kv_save_file *f = file_of(v, &job->about.id);
    struct kv_piece *p = kv_pieces_find(&v->s->kv->pieces, &job->about.id);

    if (job->err.code != ERR_NONE) {
        kv_save_fail(v, &job->err);
        kv_save_give_up(k, v, f);
    } else if (p != NULL) {
        f->image->sealed = true;
        p->file.bytes = job->bytes;
        p->file.turn = f->turn;
        p->at = KV_SEALED;
        kv_image_used(k, f->image);
    }
    kv_bulk_job_free(job);
    if (--v->left > 0)
        return;
    kv_wake(k, v->s); /* it is in memory: who waits for that may go on */
    kv_restores_step(k);
    write_all(k, v);
}

/* What was sealed before and could not be written then. */
bool
kv_save_rewrite(struct kv *k, struct session *s)
{
    struct kv_session *ks = s->kv;
    struct kv_save *v = kv_save_new(k, s);

    if (v == NULL)
        return false;
    for (size_t i = 0; i < ks->pieces.n && v->n < KV_SAVE_FILES; i++) {
        const struct kv_piece *p = &ks->pieces.v[i];
        struct kv_image *x = kv_image_find(k, &p->file.about.id);

        if (p->at != KV_SEALED || x == NULL)
            continue;
        x->pins++;
        v->files[v->n++] =
            (struct kv_save_file){.about = p->file.about, .image = x, .turn = p->file.turn};
    }
    if (v->n == 0) {
        kv_save_free(v);
        return false;
    }
    kv_save_begin(k, v);
    write_all(k, v);
    return true;
}

static void
count_written(struct kv *k, struct kv_save *v, const struct kv_save_file *f, uint64_t bytes)
{
    struct ledger_meta *m = &v->s->kept;

    if (f->about.type == KVFILE_STATE) {
        k->counts.state_bytes += bytes;
        m->state_written += bytes;
        return;
    }
    k->counts.rows_bytes += bytes;
    m->rows_written += bytes;
    if (!f->merge) { /* those tokens have been counted before */
        k->counts.rows_tokens += f->about.n_tokens;
        m->rows_tokens += f->about.n_tokens;
    }
}

static void
on_written(struct kv_bulk_job *job)
{
    struct kv_save *v = job->owner;
    struct kv *k = v->k;
    struct kv_save_file *f = file_of(v, &job->about.id);
    struct kv_image *x = f->image;

    k->counts.write_ns += job->ns;
    if (job->err.code == ERR_NONE) {
        f->written = true;
        x->stored = true;
        x->owner = NULL;
        count_written(k, v, f, job->room);
    } else {
        kv_save_fail(
            v, &job->err); /* it stays in memory: perhaps there is room on the disk later */
    }
    kv_image_unpin(k, x);
    f->image = NULL;
    kv_bulk_job_free(job);
    if (--v->left == 0)
        commit(k, v);
}

/* --- the ledger ---------------------------------------------------------------------------- */

/* The pieces that a merged chunk stands for. */
static size_t
find_merged(const struct kv_save *v, const struct kv_save_file *f, struct kvfile_id *out)
{
    const struct kv_pieces *all = &v->s->kv->pieces;
    const uint64_t end = f->about.pos + f->about.n_tokens;
    size_t n = 0;

    for (size_t i = 0; i < all->n; i++) {
        const struct kvfile_about *a = &all->v[i].file.about;

        if (a->type == KVFILE_CHUNK && all->v[i].at == KV_STORED &&
            a->pos >= f->about.pos && a->pos + a->n_tokens <= end &&
            memcmp(&a->id, &f->about.id, sizeof a->id) != 0)
            out[n++] = a->id;
    }
    return n;
}

/* Ids of what need not be kept any more; NULL: no memory, or nothing. */
static struct kvfile_id *
find_superfluous(const struct kv_save *v, size_t *n)
{
    const struct kv_session *ks = v->s->kv;
    const struct session_log *l = &v->s->log;
    struct kvfile_id *ids = calloc(2 * MOST_DROPPED + ks->pieces.n, sizeof *ids);
    uint64_t *named = calloc(l->n_checkpoints + 1, sizeof *named);
    size_t n_named = 0;

    *n = 0;
    for (size_t i = 0; named != NULL && i < l->n_checkpoints; i++) {
        if (!l->checkpoints[i].automatic)
            named[n_named++] = l->checkpoints[i].pos;
    }
    if (ids != NULL && named != NULL) {
        *n = kv_plan_drop(&ks->pieces, named, n_named, ids, MOST_DROPPED);
        *n += kv_plan_replaced(&ks->pieces, ids + *n, MOST_DROPPED);
        for (size_t i = 0; i < v->n; i++) {
            if (v->files[i].merge && v->files[i].written)
                *n += find_merged(v, &v->files[i], ids + *n);
        }
    }
    free(named);
    return ids;
}

static void
on_unlinked(struct kv_bulk_job *job)
{
    if (job->err.code != ERR_NONE && job->err.code != ERR_NOT_FOUND)
        log_line(LOG_INFO, "cache-file-left why=\"%s\"", job->err.text);
    kv_bulk_job_free(job);
}

/* Its row is gone, or never was. */
static void
unlink_file(struct kv *k, const struct session *s, const struct kvfile_about *about)
{
    struct err e;
    struct kv_bulk_job *job = kv_bulk_job_new(KV_BULK_UNLINK, on_unlinked, NULL, &e);
    struct kv_image *x = kv_image_find(k, &about->id);

    if (x != NULL && x->pins == 0)
        kv_image_free(k, x);
    if (job == NULL)
        return; /* the store's sweep finds it */
    job->about = *about;
    catalog_dir(&s->id, job->dir);
    kv_bulk_post(k->bulk, job);
}

static void
on_committed(struct store_wait *wait, const struct err *why)
{
    struct kv_save *v = wait->arg;
    struct kv *k = v->k;

    /* A ledger that takes no more: then nobody knows which rows it has. The files stay. */
    if (why != NULL)
        kv_save_fail(v, why);
    for (size_t i = 0; why == NULL && i < v->n_gone; i++)
        unlink_file(k, v->s, &v->gone[i]);
    kv_save_end(k, v);
}

/* The rows of what is written and still wanted; how many. */
static size_t
collect_rows(struct kv *k, struct kv_save *v, struct ledger_file rows[KV_SAVE_FILES])
{
    size_t n = 0;

    for (size_t i = 0; i < v->n; i++) {
        const struct kv_save_file *f = &v->files[i];
        struct kv_piece *p = kv_pieces_find(&v->s->kv->pieces, &f->about.id);

        if (p != NULL && f->written) {
            p->at = KV_STORED;
            rows[n++] = p->file;
        } else if (f->written && v->s->state != SESSION_GONE) {
            unlink_file(k, v->s, &f->about); /* rolled back in the meantime */
        }
    }
    return n;
}

/* From here on nobody looks for them; their files go when their rows are gone. */
static int
take_out(struct kv_save *v, const struct kvfile_id *ids, size_t n)
{
    v->gone = calloc(n + 1, sizeof *v->gone);
    if (v->gone == NULL)
        return -1;
    for (size_t i = 0; i < n; i++) {
        const struct kv_piece *p = kv_pieces_find(&v->s->kv->pieces, &ids[i]);

        if (p == NULL)
            continue; /* for two reasons */
        v->gone[v->n_gone++] = p->file.about;
        kv_pieces_remove(&v->s->kv->pieces, &ids[i]);
    }
    return 0;
}

/* All rows in one change with those that go. */
static void
commit(struct kv *k, struct kv_save *v)
{
    struct session *s = v->s;
    struct ledger_file rows[KV_SAVE_FILES];
    const size_t n = collect_rows(k, v, rows);
    struct kvfile_id *ids;
    size_t n_ids;
    struct err e;

    v->stage = KV_SAVE_COMMIT;
    if (n == 0 || s->state == SESSION_GONE) {
        kv_save_end(k, v);
        return;
    }
    ids = find_superfluous(v, &n_ids);
    if (n_ids > 0 && take_out(v, ids, n_ids) == -1)
        n_ids = 0; /* with the next save */
    if (session_files_change(s, rows, n, ids, n_ids, &e) == -1) {
        free(ids);
        kv_save_fail(v, &e);
        kv_save_end(k, v);
        return;
    }
    free(ids);
    v->wait = (struct store_wait){.fn = on_committed, .arg = v};
    if (store_commit(k->w->store, s, &v->wait))
        on_committed(&v->wait, NULL);
}

void
kv_save_seal(struct kv *k, struct kv_save *v)
{
    forget_dropped(k, v);
    v->stage = KV_SAVE_SEAL;
    if (!post_all(k, v, KV_BULK_SEAL, on_sealed))
        kv_save_end(k, v);
}
