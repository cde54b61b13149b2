/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bringing a session back into the engine: the state that goes furthest, and the chunks in front
 * of it, from the arena or from their files. Reading, checking and handing over go on side by
 * side, a few chunks at a time, so that a session may be larger than the arena. Every image is
 * checked as a whole (checksums, fingerprint, layout, identity, place, tokens) before the engine
 * is told where it is, wherever it came from; the state first of all, because without it the
 * chunks are of no use.
 *
 * What fails is left out and the next best state is tried; at last there are the tokens. A file
 * that fails twice loses its row, a session that fails twice in a row is quarantined: from then on
 * it is computed from its tokens, and says so, until somebody has looked at it (fathom verify) or
 * it is rolled back. That nothing loops is what the counters are for.
 *
 * The session has its slot (session.slot) only when all of it is there. Until then the slot is
 * the restore's, and nobody feeds it.
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

static const uint64_t MS = 1000000;
static const double NS = 1e9;

/* --- what is needed ------------------------------------------------------------------------ */

static int
plan_chunks(struct kv_restore *r, uint32_t round)
{
    const struct kv_pieces *pieces = &r->s->kv->pieces;
    const uint64_t pages = r->pos / KV_PAGE;
    const struct kv_piece *c;
    struct kv_get *v;

    for (uint64_t page = 0; page < pages;) {
        const uint64_t left = pages - page;
        uint64_t n;

        c = kv_cover(pieces, page, KV_SEALED, round);
        assert(c != NULL); /* kv_best() says so */
        v = realloc(r->chunks, (r->n_chunks + 1) * sizeof *v);
        if (v == NULL)
            return -1;
        r->chunks = v;
        n = kv_first_page(c) + c->file.n_pages - page;
        v[r->n_chunks++] = (struct kv_get){.about = c->file.about,
                                           .skip = page - kv_first_page(c),
                                           .n_pages = n < left ? n : left};
        page += n;
    }
    return 0;
}

void
kv_restore_free(struct kv_restore *r)
{
    free(r->chunks);
    free(r);
}

void
kv_get_unpin(struct kv *k, struct kv_get *g)
{
    if (g->image == NULL)
        return;
    kv_image_unpin(k, g->image);
    g->image = NULL;
}

/* Dead and with nothing under way: it goes. True: it did. */
bool
kv_restore_bury(struct kv *k, struct kv_restore *r)
{
    struct kv_restore **at = &k->restores;
    struct session *s = r->s;

    if (!r->dead || r->jobs > 0 || r->link_jobs > 0)
        return false;
    kv_get_unpin(k, &r->state);
    for (size_t i = 0; i < r->n_chunks; i++)
        kv_get_unpin(k, &r->chunks[i]);
    while (*at != r)
        at = &(*at)->next;
    *at = r->next;
    kv_restore_free(r);
    kv_wake(k, s);
    kv_release(k, s);
    return true;
}

/* It comes to nothing. What is under way for it ends first; it may be gone afterwards. */
void
kv_restore_cancel(struct kv *k, struct kv_restore *r)
{
    if (r->dead)
        return;
    r->dead = true;
    r->s->kv->restore = NULL;
    if (r->slot != NULL)
        slots_close(&k->w->slots, r->slot);
    r->slot = NULL;
    kv_wake(k, r->s); /* somebody may wait for it, and need not wait for what hangs */
    kv_restore_bury(k, r);
}

/* --- failures ------------------------------------------------------------------------------ */

static void
quarantine(struct kv *k, struct session *s)
{
    s->kept.quarantined = 1;
    session_log_touch(&s->log);
    store_commit_soon(k->w->store, s);
    k->counts.quarantined++;
    log_line(
        LOG_ERROR,
        "caches-quarantined session=%s uid=%" PRIu32
        " why=\"its saved caches could not be used twice: it goes on from its tokens\" "
        "fix=\"fathom verify\"",
        s->name, s->user->uid);
}

/* The restore failed because of this file. */
void
kv_restore_blame(struct kv *k, struct kv_restore *r, const struct kvfile_about *about,
                 const struct err *why)
{
    struct session *s = r->s;
    struct kv_session *ks = s->kv;
    struct kv_piece *p = kv_pieces_find(&ks->pieces, &about->id);

    k->counts.restores_failed++;
    k->counts.damaged += why->code == ERR_DAMAGED;
    log_line(LOG_WARNING,
             "cache-not-restored session=%s uid=%" PRIu32 " state=%d pos=%" PRIu64
             " why=\"%s\"",
             s->name, s->user->uid, about->type == KVFILE_STATE, about->pos, why->text);
    if (p != NULL) {
        p->round = ks->round;
        /* Of another model or layout: it will never do. */
        if (++p->failed >= KV_FAILURES || why->code == ERR_MODEL_MISMATCH)
            kv_drop_row(k, s, &about->id);
    }
    if (why->code != ERR_MODEL_MISMATCH && ++ks->fails >= KV_FAILURES)
        quarantine(k, s);
}

/* Not the fault of any file: no memory, no room, a disk that hangs. This time from tokens. */
void
kv_restore_give_up(struct kv *k, struct kv_restore *r, const struct err *why)
{
    k->counts.restores_failed++;
    log_line(LOG_WARNING, "cache-not-restored session=%s uid=%" PRIu32 " why=\"%s\"",
             r->s->name, r->s->user->uid, why->text);
    r->s->kv->skip = true;
    kv_restore_cancel(k, r);
}

/* --- into the engine ------------------------------------------------------------------------ */

/* 1: it has one; 0: not now; -1: *e. */
static int
take_slot(struct kv *k, struct kv_restore *r, struct err *e)
{
    struct slots *ss = &k->w->slots;

    if (r->slot != NULL)
        return 1;
    if (!k->usable || !slots_room(ss, WORK_JOBS_SPARE))
        return 0;
    if (ss->n_free == 0) {
        kv_evict(k->w);
        return 0;
    }
    r->slot = slots_take(ss, r->s, SLOT_SESSION);
    if (r->slot == NULL)
        return 0;
    r->slot->filling = true;
    if (slots_open(ss, r->slot, r->s->user->uid, e) == -1)
        return -1;
    return 1;
}

static int
give_chunk(struct kv *k, struct kv_restore *r, struct kv_get *g, struct err *e)
{
    const uint32_t *tokens = r->s->log.tokens + r->slot->sent;
    const uint64_t at = g->image->at.at + g->image->plan.pages_at +
                        g->skip * k->model.page_bytes;

    if (slots_kv_in(&k->w->slots, r->slot, tokens, (uint32_t)(g->n_pages * KV_PAGE), at, r,
                    e) == -1)
        return -1;
    r->link_jobs++;
    g->stage = KV_GET_GIVEN;
    r->n_given++;
    return 0;
}

/* The tokens of the page that is not whole, and the state. */
static int
give_state(struct kv *k, struct kv_restore *r, struct err *e)
{
    const struct kv_image *x = r->state.image;
    const uint64_t tail = r->pos % KV_PAGE;

    if (tail > 0) {
        if (slots_kv_in(&k->w->slots, r->slot, r->s->log.tokens + r->slot->sent,
                        (uint32_t)tail, x->at.at + x->plan.state_at, r, e) == -1)
            return -1;
        r->link_jobs++;
    }
    if (slots_kv_set(&k->w->slots, r->slot, x->at.at + x->plan.state_at,
                     x->at.at + x->plan.logits_at, r, e) == -1)
        return -1;
    r->link_jobs++;
    r->set_sent = true;
    return 0;
}

/* There is something that the engine could take. */
static bool
has_next(const struct kv_restore *r)
{
    return r->state.stage == KV_GET_READY &&
           (r->n_given == r->n_chunks || r->chunks[r->n_given].stage == KV_GET_READY);
}

/* 1: all that can be done now is done; -1: *e. */
static int
give(struct kv *k, struct kv_restore *r, struct err *e)
{
    int rc;

    if (!has_next(r) || r->set_sent)
        return 1;
    rc = take_slot(k, r, e);
    if (rc != 1)
        return rc == 0 ? 1 : -1;
    while (r->n_given < r->n_chunks && r->chunks[r->n_given].stage == KV_GET_READY) {
        if (!slots_room(&k->w->slots, WORK_JOBS_SPARE))
            return 1;
        if (give_chunk(k, r, &r->chunks[r->n_given], e) == -1)
            return -1;
    }
    if (r->n_given == r->n_chunks && slots_room(&k->w->slots, WORK_JOBS_SPARE))
        return give_state(k, r, e) == -1 ? -1 : 1;
    return 1;
}

/* Does all that can be done for it now. */
void
kv_restore_step(struct kv *k, struct kv_restore *r)
{
    struct err e;
    int rc = 1;

    if (r->dead)
        return;
    if (r->state.stage == KV_GET_WAITS)
        rc = kv_get_ask(k, r, &r->state, &e);
    for (size_t i = r->n_in; rc == 1 && i < r->n_asked; i++) {
        if (r->chunks[i].stage == KV_GET_WAITS) /* its copy in memory was no good */
            rc = kv_get_ask(k, r, &r->chunks[i], &e);
    }
    while (rc == 1 && r->state.stage != KV_GET_WAITS && r->n_asked < r->n_chunks &&
           r->n_asked < r->n_in + KV_WINDOW) {
        rc = kv_get_ask(k, r, &r->chunks[r->n_asked], &e);
        r->n_asked += rc == 1;
    }
    /* Without room it waits for others; but if it is alone, there will never be any. */
    if (rc == 0 && r->jobs == 0 && r->link_jobs == 0 && k->saves == NULL &&
        k->restores == r && r->next == NULL)
        rc = err_set(&e, ERR_QUOTA, 0, "no room in host memory (setting host-memory)");
    if (rc == -1 || give(k, r, &e) == -1)
        kv_restore_give_up(k, r, &e);
}

void
kv_restores_step(struct kv *k)
{
    struct kv_restore *r, *next;

    for (r = k->restores; r != NULL; r = next) {
        next = r->next;
        kv_restore_step(k, r);
    }
}

/* --- the engine's answers -------------------------------------------------------------------- */

static void
finish(struct kv *k, struct kv_restore *r)
{
    struct session *s = r->s;
    const uint64_t ns = clock_ns() - r->began_ns;

    assert(s->slot == NULL);
    s->slot = r->slot;
    r->slot = NULL;
    slots_touch(&k->w->slots, s->slot);
    s->kv->fails = 0;
    k->counts.restores++;
    k->counts.restored_tokens += r->pos;
    k->counts.restored_bytes += r->pos / KV_PAGE * k->model.page_bytes;
    histogram_add(&k->counts.restore, ns);
    if (ns > 0 && r->n_chunks > 0)
        k->restore_rate +=
            ((double)(r->pos / KV_PAGE * k->model.page_bytes) * NS / (double)ns -
             k->restore_rate) /
            8;
    log_line(LOG_INFO,
             "cache-restored session=%s uid=%" PRIu32 " tokens=%" PRIu64 " replay=%" PRIu64
             " read=%" PRIu64 " ms=%" PRIu64,
             s->name, s->user->uid, r->pos, s->log.len - r->pos, r->read_bytes, ns / MS);
    kv_touch(k, s);
    kv_got_slot(s);
    r->dead = true;
    s->kv->restore = NULL;
    if (s->state == SESSION_COLD || s->state == SESSION_RESTORING)
        session_move(s, s->ops != NULL ? SESSION_QUEUED : SESSION_WARM, "it is back");
}

/* Out of room: somebody else goes, and it is tried again; or it does not fit at all. */
static void
on_failed(struct kv *k, struct kv_restore *r, const struct err *why)
{
    if (why->code == ERR_QUOTA && kv_evict(k->w)) {
        kv_restore_cancel(k, r);
        return;
    }
    kv_restore_give_up(k, r, why);
}

void
kv_restore_opened(struct kv *k, const struct slots_news *news)
{
    struct kv_restore *r = k->restores;
    struct err why;

    while (r != NULL && r->slot != news->slot)
        r = r->next;
    if (r == NULL || news->end == NULL || news->end->reason != LINK_FAILED)
        return;
    link_err(&why, &news->end->err);
    on_failed(k, r, &why);
}

int
kv_restore_news(struct kv *k, const struct slots_news *news, struct err *e)
{
    struct kv_restore *r = news->owner;
    struct err why;

    (void)e;
    r->link_jobs--;
    r->moved_ns = clock_ns();
    if (news->job_type == LINK_KV_IN && r->n_in < r->n_given) {
        kv_get_unpin(k, &r->chunks[r->n_in]);
        r->n_in++;
    }
    if (r->dead) {
        kv_restore_bury(k, r);
        return 0;
    }
    if (news->end->reason == LINK_FAILED) {
        link_err(&why, &news->end->err);
        on_failed(k, r, &why);
        return 0;
    }
    if (news->job_type == LINK_KV_SET) {
        finish(k, r);
        kv_restore_bury(k, r);
        return 0;
    }
    kv_restore_step(k, r);
    return 0;
}

/* An engine that goes while it takes caches in may have gone because of them. */
void
kv_restores_lost(struct kv *k, bool own_fault)
{
    struct kv_restore *r, *next;
    struct err why;

    err_set(&why, ERR_UNAVAILABLE, 0, "the engine failed while it took it in");
    for (r = k->restores; r != NULL; r = next) {
        next = r->next;
        r->link_jobs = 0;
        if (r->dead) {
            kv_restore_bury(k, r);
            continue;
        }
        if (r->slot != NULL && own_fault)
            kv_restore_blame(k, r, &r->state.about, &why);
        r->slot = NULL; /* it is gone with all others */
        kv_restore_cancel(k, r);
    }
}

/* --- begin ----------------------------------------------------------------------------------- */

/* A restore holds a state, and needs room for a chunk: so many can go on at once. */
static bool
may_begin(const struct kv *k)
{
    const uint64_t chunk = KV_BLOCK * k->model.page_bytes;
    uint64_t most = arena_bytes(k->arena) / (4 * (chunk + k->model.state_most)), n = 0;

    for (const struct kv_restore *r = k->restores; r != NULL; r = r->next)
        n++;
    return n < (most > 0 ? most : 1);
}

enum kv_restored
kv_restore(struct kv *k, struct session *s, uint64_t better_than)
{
    struct kv_session *ks = s->kv;
    const struct kv_piece *state;
    struct kv_restore *r;

    if (ks != NULL && ks->restore != NULL) {
        kv_restore_step(k, ks->restore);
        return KV_UNDER_WAY;
    }
    if (ks == NULL || !k->usable || s->kept.quarantined || ks->skip)
        return KV_NOTHING;
    state = kv_best(&ks->pieces, s->log.len, KV_SEALED, ks->round);
    if (state == NULL || state->file.about.pos <= better_than)
        return KV_NOTHING;
    if (!may_begin(k))
        return KV_UNDER_WAY;
    r = calloc(1, sizeof *r);
    if (r == NULL)
        return KV_NOTHING;
    *r = (struct kv_restore){.k = k,
                             .s = s,
                             .pos = state->file.about.pos,
                             .state = {.about = state->file.about},
                             .began_ns = clock_ns(),
                             .moved_ns = clock_ns()};
    if (plan_chunks(r, ks->round) == -1) {
        kv_restore_free(r);
        return KV_NOTHING;
    }
    r->next = k->restores;
    k->restores = r;
    ks->restore = r;
    kv_hold(s);
    kv_restore_step(k, r);
    return KV_UNDER_WAY;
}

void
kv_got_slot(struct session *s)
{
    if (s->kv == NULL)
        return;
    s->kv->skip = false;
    if (++s->kv->round == KV_SOUND)
        s->kv->round = 1;
}

void
kv_restores_tick(struct kv *k, uint64_t now)
{
    const uint64_t most = k->w->o->store_timeout * MS;
    const uint64_t since = kv_bulk_waits_since(k->bulk);
    const bool stalled = since != 0 && now > since && now - since > most;
    struct kv_restore *r, *next;
    struct err why;

    if (stalled && !k->counts.stalled)
        log_line(LOG_ERROR, "store-stalled ms=%" PRIu64, (now - since) / MS);
    if (!stalled && k->counts.stalled)
        log_line(LOG_NOTICE, "store-answers");
    k->counts.stalled = stalled;
    for (r = k->restores; r != NULL; r = next) {
        next = r->next;
        /* A place in the engine is worth waiting for, a disk is not. */
        if (r->dead || now - r->moved_ns <= most || has_next(r) || r->link_jobs > 0)
            continue;
        err_set(&why, ERR_DEADLINE, 0, "nothing came from the disk for %" PRIu64 " ms",
                most / MS);
        kv_restore_give_up(k, r, &why);
    }
}
