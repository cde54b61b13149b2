/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The files that a restore needs, from the arena or the disk, and looked at as a whole before the
 * engine may have them: see kv_restore.c.
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
#include "daemon/session_log.h"
#include "daemon/work_impl.h"

static const double NS = 1e9;

static struct kv_get *
get_of(struct kv_restore *r, const struct kvfile_id *id)
{
    if (memcmp(&r->state.about.id, id, sizeof *id) == 0)
        return &r->state;
    for (size_t i = 0; i < r->n_chunks; i++) {
        if (memcmp(&r->chunks[i].about.id, id, sizeof *id) == 0)
            return &r->chunks[i];
    }
    return NULL;
}

static void on_checked(struct kv_bulk_job *job);
static void on_read(struct kv_bulk_job *job);

static int
post(struct kv *k, struct kv_restore *r, struct kv_get *g, enum kv_bulk_kind kind,
     struct err *e)
{
    struct kv_bulk_job *job =
        kv_bulk_job_new(kind, kind == KV_BULK_READ ? on_read : on_checked, r, e);

    if (job == NULL)
        return -1;
    job->model = &k->model;
    job->about = g->about;
    job->image = kv_image_bytes(k, g->image);
    job->room = kind == KV_BULK_READ ? g->image->at.bytes : g->image->plan.bytes;
    catalog_dir(&r->s->id, job->dir);
    if (kind == KV_BULK_CHECK && g->about.type == KVFILE_CHUNK) {
        job->n_tokens = (uint32_t)((g->skip + g->n_pages) * KV_PAGE);
        job->tokens = malloc(job->n_tokens * sizeof *job->tokens);
        if (job->tokens == NULL) {
            kv_bulk_job_free(job);
            return err_set(e, ERR_QUOTA, errno, "no memory for the tokens of a chunk");
        }
        memcpy(job->tokens, r->s->log.tokens + g->about.pos,
               job->n_tokens * sizeof *job->tokens);
    }
    g->stage = kind == KV_BULK_READ ? KV_GET_READ : KV_GET_CHECK;
    r->jobs++;
    kv_bulk_post(k->bulk, job);
    return 0;
}

/* A copy in the arena that is not what it should be: there is the file. */
static bool
read_instead(struct kv *k, struct kv_restore *r, struct kv_get *g, const struct err *why)
{
    if (r->dead || g->read || !g->image->stored || k->io == NULL)
        return false;
    k->counts.damaged += why->code == ERR_DAMAGED;
    log_line(LOG_WARNING,
             "cache-copy-refused session=%s uid=%" PRIu32 " state=%d pos=%" PRIu64
             " why=\"%s\"",
             r->s->name, r->s->user->uid, g->about.type == KVFILE_STATE, g->about.pos,
             why->text);
    kv_get_unpin(k, g);
    g->stage = KV_GET_WAITS;
    return true;
}

/* What has been read, checked or found: on to the next, or over. */
static void
on_checked(struct kv_bulk_job *job)
{
    struct kv_restore *r = job->owner;
    struct kv *k = r->k;
    struct kv_get *g = get_of(r, &job->about.id);
    const struct err why = job->err;

    kv_bulk_job_free(job);
    r->jobs--;
    r->moved_ns = clock_ns();
    if (why.code == ERR_NONE) {
        g->image->sealed = true;
        kv_image_used(k, g->image);
        g->stage = KV_GET_READY;
    } else {
        /* Whatever is wrong with it, this copy is not needed any more. */
        g->image->sealed = false;
        if (read_instead(k, r, g, &why)) {
            kv_restores_step(k); /* of forks that wait for the same one, too */
            return;
        }
        kv_get_unpin(k, g);
        if (!r->dead) {
            kv_restore_blame(k, r, &g->about, &why);
            kv_restore_cancel(k, r);
            return;
        }
    }
    if (!kv_restore_bury(k, r))
        kv_restore_step(k, r);
}

static void
on_read(struct kv_bulk_job *job)
{
    struct kv_restore *r = job->owner;
    struct kv *k = r->k;
    struct kv_get *g = get_of(r, &job->about.id);
    struct err why = job->err;

    r->jobs--;
    r->moved_ns = clock_ns();
    k->counts.read_ns += job->ns;
    if (why.code == ERR_NONE && job->bytes != g->image->plan.bytes)
        err_set(&why, ERR_DAMAGED, 0, "a file of %" PRIu64 " bytes, not %" PRIu64,
                job->bytes, g->image->plan.bytes);
    if (why.code == ERR_NONE) {
        k->counts.read_bytes += job->bytes;
        r->read_bytes += job->bytes;
        if (job->ns > 0)
            k->read_rate += ((double)job->bytes * NS / (double)job->ns - k->read_rate) / 8;
    }
    kv_bulk_job_free(job);
    if (!r->dead && why.code == ERR_NONE && post(k, r, g, KV_BULK_CHECK, &why) == 0)
        return;
    kv_get_unpin(k, g); /* it is not complete: it goes */
    if (r->dead) {
        kv_restore_bury(k, r);
        return;
    }
    if (why.code == ERR_QUOTA) {
        kv_restore_give_up(k, r, &why);
    } else {
        kv_restore_blame(k, r, &g->about, &why);
        kv_restore_cancel(k, r);
    }
}

/* Images are found by id; one that came with the arena may claim what it likes. */
static bool
is_about(const struct kv_image *x, const struct kvfile_about *a)
{
    const struct kvfile_about *b = &x->about;

    return a->type == b->type && a->pos == b->pos && a->n_tokens == b->n_tokens &&
           a->state_bytes == b->state_bytes && a->logits == b->logits;
}

/* Begins to get it. 1: begun; 0: not now; -1: never, *e. */
int
kv_get_ask(struct kv *k, struct kv_restore *r, struct kv_get *g, struct err *e)
{
    struct kv_image *x = kv_image_find(k, &g->about.id);

    if (x != NULL && x->pins == 0 && !is_about(x, &g->about)) {
        kv_image_free(k, x);
        x = NULL;
    }
    if (x != NULL) {
        if (!x->sealed)
            return 0; /* somebody else reads it: a fork of this session */
        x->pins++;
        g->image = x;
        return post(k, r, g, KV_BULK_CHECK, e) == 0 ? 1 : -1;
    }
    if (k->io == NULL || k->counts.stalled)
        return err_set(e, ERR_UNAVAILABLE, 0, "the disk does not answer");
    x = kv_image_new(k, &g->about);
    if (x == NULL)
        return 0;
    x->stored = true;
    g->image = x;
    g->read = true;
    return post(k, r, g, KV_BULK_READ, e) == 0 ? 1 : -1;
}
