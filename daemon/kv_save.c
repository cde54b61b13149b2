/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Saving. The engine copies what is not saved yet into images in the arena (LINK_KV_OUT, between
 * its other jobs); from there on it is not needed any more. Bulk threads seal the images and
 * write them to files, and when they are there the session's ledger is told, in one commit with
 * the rows that have become superfluous. Data durable before the row that names it; row gone
 * before the data that it named.
 *
 * The list of pieces (kv_plan.h) says what is saved or on its way. A piece that a rollback takes
 * out of it while it is under way comes to nothing: that is all the bookkeeping there is.
 *
 * Nothing here ever waits or makes others wait: without room in the arena or in the table of
 * jobs, a save is put off, and the session stays due.
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
#include "daemon/quota.h"
#include "daemon/session.h"
#include "daemon/session_files.h"
#include "daemon/store.h"
#include "daemon/work_impl.h"

void
kv_save_free(struct kv_save *v)
{
    for (size_t i = 0; i < v->n; i++)
        free(v->files[i].tokens);
    free(v->gone);
    free(v);
}

/* It is over, well or not. */
void
kv_save_end(struct kv *k, struct kv_save *v)
{
    struct kv_save **at = &k->saves;
    struct session *s = v->s;
    struct kv_session *ks = s->kv;

    while (*at != v)
        at = &(*at)->next;
    *at = v->next;
    k->saving -= v->bytes;
    quota_give(s->user, QUOTA_DISK, v->paid);
    ks->saves--;
    ks->save_err = v->err;
    if (v->err.code == ERR_NONE) {
        k->counts.saves++;
        if (ks->save_told && s->state != SESSION_GONE)
            log_line(LOG_NOTICE, "cache-saved-again session=%s uid=%" PRIu32, s->name,
                     s->user->uid);
        ks->save_told = false;
        histogram_add(&k->counts.save, clock_ns() - v->began_ns);
        if (v->more && s->slot != NULL && s->state != SESSION_GONE &&
            !kv_is_saved(s, KV_COMING))
            kv_make_due(k, s, clock_ns());
    } else if (s->state != SESSION_GONE) {
        k->counts.saves_failed++;
        log_line(ks->save_told ? LOG_DEBUG : LOG_WARNING,
                 "cache-not-saved session=%s uid=%" PRIu32 " why=\"%s\"", s->name,
                 s->user->uid, v->err.text);
        ks->save_told = true;
        kv_save_again(k, s);
    }
    kv_save_free(v);
    kv_save_next(k, s);
    kv_wake(k, s);
    kv_restores_step(k); /* there is room again */
    kv_release(k, s);
}

void
kv_save_fail(struct kv_save *v, const struct err *e)
{
    if (v->err.code == ERR_NONE)
        v->err = *e;
}

/* A file of a save that will not be: its piece is taken back, so it is planned anew. */
void
kv_save_give_up(struct kv *k, struct kv_save *v, struct kv_save_file *f)
{
    struct kv_image *x = f->image;

    if (x == NULL)
        return;
    kv_pieces_remove(&v->s->kv->pieces, &f->about.id);
    x->sealed = false; /* nobody else knows it: it goes with the last pin */
    x->owner = NULL;
    f->image = NULL;
    kv_image_unpin(k, x);
}

void
kv_save_give_up_all(struct kv *k, struct kv_save *v)
{
    for (size_t i = 0; i < v->n; i++)
        kv_save_give_up(k, v, &v->files[i]);
}

static struct kv_save_file *
state_of(struct kv_save *v)
{
    struct kv_save_file *f = &v->files[v->n - 1];

    return v->n > 0 && f->about.type == KVFILE_STATE ? f : NULL;
}

/* Adds a file: its image, pinned, and its piece. False: no room. */
static bool
add_file(struct kv *k, struct kv_save *v, struct kvfile_about *about)
{
    struct kv_save_file *f = &v->files[v->n];
    struct ledger_file row = {.about = *about, .n_pages = about->n_tokens / KV_PAGE};
    struct kvfile_plan plan;
    struct kv_image *x;
    uint32_t *tokens = NULL;
    uint64_t most = arena_bytes(k->arena) / 2;

    kvfile_plan(&k->model, about, &plan);
    /* Half of the arena is left for those who come back, and beside chunks a state has room: it
     * cannot be had later. */
    if (about->type == KVFILE_CHUNK)
        most -= k->state_bytes;
    if (k->saving + v->bytes + plan.bytes > most)
        return false;
    catalog_new_id(&about->id);
    row.about.id = about->id;
    if (about->type == KVFILE_CHUNK) {
        tokens = malloc(about->n_tokens * sizeof *tokens);
        if (tokens == NULL)
            return false;
        memcpy(tokens, v->s->log.tokens + about->pos, about->n_tokens * sizeof *tokens);
    }
    x = kv_image_new(k, about);
    if (x == NULL || kv_pieces_add(&v->s->kv->pieces, &row) == NULL) {
        free(tokens);
        if (x != NULL)
            kv_image_unpin(k, x);
        return false;
    }
    x->owner = v->s->kv;
    *f = (struct kv_save_file){.about = *about, .image = x, .tokens = tokens};
    v->bytes += x->at.bytes;
    v->n++;
    return true;
}

/* The state where the sequence will be then, or one token before. */
static bool
add_state(struct kv *k, struct kv_save *v, uint64_t len)
{
    const uint64_t here = kv_state_bytes(k->layout, len);
    const uint64_t before = kv_state_bytes(k->layout, len - 1);
    struct kvfile_about about = {.type = KVFILE_STATE,
                                 .pos = len,
                                 .state_bytes = here > before ? here : before,
                                 .logits = true};

    if (!add_file(k, v, &about))
        return false;
    v->files[v->n - 1].row_at = v->files[v->n - 1].image->plan.logits_at;
    v->files[v->n - 1].turn = v->s->kv->turn;
    v->s->kv->turn = false;
    return true;
}

/* True: all of the runs are in. */
static bool
add_chunks(struct kv *k, struct kv_save *v, uint64_t pages, bool whole_blocks)
{
    struct kv_run runs[KV_SAVE_FILES - 1];
    const size_t n = kv_plan_runs(&v->s->kv->pieces, pages, whole_blocks, runs,
                                  sizeof runs / sizeof *runs);

    for (size_t i = 0; i < n; i++) {
        struct kvfile_about about = {.type = KVFILE_CHUNK,
                                     .pos = runs[i].first * KV_PAGE,
                                     .n_tokens = (uint32_t)(runs[i].n * KV_PAGE)};

        if (!add_file(k, v, &about))
            return false;
        v->files[v->n - 1].merge = runs[i].merge;
    }
    return n < sizeof runs / sizeof *runs;
}

static int
send_copy(struct kv *k, struct kv_save *v, struct slot *sl, struct err *e)
{
    struct link_kv_out out = {.state_at = LINK_NOWHERE, .row_at = LINK_NOWHERE};
    struct link_kv_run runs[KV_SAVE_FILES];

    for (size_t i = 0; i < v->n; i++) {
        const struct kv_save_file *f = &v->files[i];

        if (f->about.type == KVFILE_STATE) {
            out.state_at = f->image->at.at + f->image->plan.state_at;
            out.row_at = f->image->at.at + f->row_at;
        } else {
            runs[out.n_runs++] =
                (struct link_kv_run){.first = f->about.pos / KV_PAGE,
                                     .n = f->about.n_tokens / KV_PAGE,
                                     .at = f->image->at.at + f->image->plan.pages_at};
        }
    }
    return slots_kv_out(&k->w->slots, sl, &out, runs, v, e);
}

static bool
has_state_at(const struct kv_session *ks, uint64_t pos)
{
    for (size_t i = ks->pieces.n; i > 0 && kv_is_state(&ks->pieces.v[i - 1]); i--) {
        if (ks->pieces.v[i - 1].file.about.pos == pos)
            return true;
    }
    return false;
}

/* A slot's content is the transcript's, and what is under way does not go beyond it but by
 * tokens that are being appended. */
static bool
can_save(const struct kv *k, const struct session *s, const struct slot *sl)
{
    return k->usable && sl->open && !sl->filling && sl->sent > 1 && !s->log.parked &&
           slots_room(&k->w->slots, WORK_JOBS_SPARE) &&
           slot_working(sl) == sl->feeds; /* while it draws nobody knows where it will be */
}

static bool
is_time_for(const struct kv_session *ks, const struct slot *sl, uint64_t have,
            unsigned what)
{
    switch (what) {
    case KV_STATE: return !has_state_at(ks, sl->sent);
    case KV_BLOCKS:
        return sl->len <= ks->s->log.len &&
               kv_covered(&ks->pieces, KV_COMING, KV_SOUND) + KV_BLOCK <= have / KV_PAGE;
    default: return sl->len <= ks->s->log.len && sl->feeds == 0;
    }
}

struct kv_save *
kv_save_new(struct kv *k, struct session *s)
{
    struct kv_save *v = calloc(1, sizeof *v);

    if (v == NULL)
        return NULL;
    v->k = k;
    v->s = s;
    v->began_ns = clock_ns();
    return v;
}

void
kv_save_begin(struct kv *k, struct kv_save *v)
{
    v->next = k->saves;
    k->saves = v;
    k->saving += v->bytes;
    v->s->kv->saves++;
    kv_hold(v->s);
}

/* Room on the disk is asked for before anything is done. */
static int
pay(struct kv_save *v, struct err *e)
{
    if (v->k->io == NULL)
        return 0;
    if (quota_take(v->s->user, QUOTA_DISK, v->bytes, e) == -1) {
        v->s->kv->save_err = *e;
        return -1;
    }
    v->paid = v->bytes;
    return 0;
}

bool
kv_save(struct kv *k, struct session *s, struct slot *sl, unsigned what)
{
    struct kv_session *ks = kv_of(k, s);
    const uint64_t have = sl->computed < s->log.len ? sl->computed : s->log.len;
    struct kv_save *v;
    struct err e;

    if (ks == NULL || !can_save(k, s, sl) || !is_time_for(ks, sl, have, what) ||
        (v = kv_save_new(k, s)) == NULL)
        return false;
    if (what == KV_STATE)
        add_state(k, v, sl->sent);
    else if (add_chunks(k, v, have / KV_PAGE, what == KV_BLOCKS) && what == KV_ALL &&
             !kv_is_saved(s, KV_COMING))
        add_state(k, v, sl->sent);
    if (v->n == 0 || pay(v, &e) == -1 || send_copy(k, v, sl, &e) == -1) {
        kv_save_give_up_all(k, v);
        quota_give(s->user, QUOTA_DISK, v->paid);
        kv_save_free(v);
        return false;
    }
    kv_save_begin(k, v);
    v->more = what == KV_ALL && !kv_is_saved(s, KV_COMING);
    if (!v->more && what == KV_ALL)
        ks->due_ns = UINT64_MAX; /* until something else makes it due */
    return true;
}

/* --- the engine's answers ------------------------------------------------------------------ */

static int
on_saved(struct kv *k, struct kv_save *v, const struct link_saved *saved, struct err *e)
{
    struct kv_save_file *f = state_of(v);
    struct kv_piece *p;
    struct ledger_file row;

    if (f == NULL)
        return 0;
    if (saved->state_bytes != kv_state_bytes(k->layout, saved->pos))
        return err_set(e, ERR_PROTOCOL, 0,
                       "a state of %" PRIu64 " bytes at position %" PRIu64,
                       saved->state_bytes, saved->pos);
    /* Its place in the list is that of its position. */
    p = kv_pieces_find(&v->s->kv->pieces, &f->about.id);
    f->about.pos = f->image->about.pos = saved->pos;
    f->about.state_bytes = f->image->about.state_bytes = saved->state_bytes;
    kvfile_plan(&k->model, &f->about, &f->image->plan);
    if (p == NULL)
        return 0;
    row = p->file;
    row.about = f->about;
    kv_pieces_remove(&v->s->kv->pieces, &f->about.id);
    if (saved->pos <= v->s->log.len)
        kv_pieces_add(&v->s->kv->pieces, &row); /* there is room: one was just removed */
    return 0;
}

int
kv_save_news(struct kv *k, const struct slots_news *news, struct err *e)
{
    struct kv_save *v = news->owner;
    struct session *s = v->s;
    struct err why;

    if (news->type == LINK_SAVED)
        return on_saved(k, v, news->saved, e);
    if (news->end->reason == LINK_FAILED) {
        link_err(&why, &news->end->err);
        kv_save_fail(v, &why);
        kv_save_give_up_all(k, v);
        kv_save_end(k, v);
        return 0;
    }
    /* One that comes to nothing may be the last to hold a session that was deleted. */
    kv_hold(s);
    kv_save_seal(k, v);
    kv_save_next(k, s); /* beside the writing, as far as there is room */
    kv_release(k, s);
    return 0;
}

/* What the engine was copying is lost; what it has copied is not. */
void
kv_saves_lost(struct kv *k)
{
    struct kv_save *v, *next;
    struct err why;

    err_set(&why, ERR_UNAVAILABLE, 0, "the engine is gone");
    for (v = k->saves; v != NULL; v = next) {
        next = v->next;
        if (v->stage != KV_SAVE_COPY)
            continue;
        kv_save_fail(v, &why);
        kv_save_give_up_all(k, v);
        kv_save_end(k, v);
    }
}
