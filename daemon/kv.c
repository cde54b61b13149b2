/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Caches that outlive engine and daemon: what there is of them, for the whole daemon and for each
 * session; engines that come and go. How they are saved is in kv_save.c, how they come back in
 * kv_restore.c, when they move in kv_tier.c.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <event2/event.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/err.h"
#include "base/log.h"
#include "daemon/engine.h"
#include "daemon/engine_watch.h"
#include "daemon/kv_impl.h"
#include "daemon/options.h"
#include "daemon/session.h"
#include "daemon/session_files.h"
#include "daemon/store.h"
#include "daemon/work_impl.h"
#include "kvstore/io.h"

enum { TICK_MS = 100 };

static const uint64_t MOST_DEFAULT = UINT64_C(8) << 30, LEAST_DEFAULT = UINT64_C(64) << 20;
static const double FIRST_RATE = 1e9; /* bytes a second, until it is measured */

/* --- life -------------------------------------------------------------------------------- */

static void
on_tick(evutil_socket_t fd, short what, void *arg)
{
    struct kv *k = arg;
    const uint64_t now = clock_ns();

    (void)fd;
    (void)what;
    kv_saves_tick(k, now);
    kv_restores_tick(k, now);
    kv_idle_tick(k, now);
}

static uint64_t
arena_size(const struct options *o)
{
    uint64_t n = engine_memory("/proc/self/cgroup", "/sys/fs/cgroup") / 8;

    if (o->host_memory > 0)
        return o->host_memory;
    if (n > MOST_DEFAULT)
        n = MOST_DEFAULT;
    return n > LEAST_DEFAULT ? n : LEAST_DEFAULT;
}

static int
make_layouts(struct kv *k, const char *model, struct err *e)
{
    struct model_config c;

    if (model_config_load(&c, model, e) == -1)
        return -1;
    for (int draft = 0; draft < 2; draft++) {
        if (kv_layout_init(&k->layouts[draft], &c, draft, e) == -1)
            return -1;
    }
    return 0;
}

struct kv *
kv_new(struct work *w, struct event_base *base, struct io *io, int arena_fd, struct err *e)
{
    const struct timeval often = {.tv_usec = TICK_MS * 1000};
    struct kv *k = calloc(1, sizeof *k);

    if (k == NULL) {
        err_set(e, ERR_QUOTA, errno, "no memory for the sessions' caches");
        return NULL;
    }
    k->w = w;
    k->io = io;
    k->read_rate = k->restore_rate = FIRST_RATE;
    if (make_layouts(k, w->o->model, e) == -1 ||
        arena_open(arena_size(w->o), arena_fd, &k->arena, e) == -1 ||
        (k->bulk = kv_bulk_new(base, io, store_catalog(w->store), e)) == NULL)
        goto fail;
    if (io != NULL)
        io_set_bounce(io, !arena_huge(k->arena));
    k->tick = event_new(base, -1, EV_PERSIST, on_tick, k);
    if (k->tick == NULL || event_add(k->tick, &often) == -1) {
        err_set(e, ERR_QUOTA, errno, "no memory for the sessions' caches");
        goto fail;
    }
    log_line(LOG_INFO, "host-memory bytes=%" PRIu64 " huge-pages=%d", arena_bytes(k->arena),
             arena_huge(k->arena));
    return k;

fail:
    kv_free(k);
    return NULL;
}

bool
kv_end(struct kv *k)
{
    struct kv_restore *r;
    struct kv_save *v;

    if (k == NULL || k->ended)
        return k == NULL || !k->hangs;
    k->ended = true;
    if (k->tick != NULL)
        event_free(k->tick);
    k->tick = NULL;
    k->hangs = !kv_bulk_free(k->bulk);
    k->bulk = NULL;
    if (!k->hangs && k->parts != NULL)
        kv_images_leave(k);
    while ((v = k->saves) != NULL) {
        k->saves = v->next;
        store_unwait(&v->wait);
        store_release(v->s);
        v->s->kv->saves = 0;
        kv_save_free(v);
    }
    while ((r = k->restores) != NULL) {
        k->restores = r->next;
        store_release(r->s);
        r->s->kv->restore = NULL;
        kv_restore_free(r);
    }
    while (k->due != NULL) {
        store_release(k->due->s);
        k->due->is_due = false;
        k->due = k->due->next_due;
    }
    return !k->hangs;
}

void
kv_free(struct kv *k)
{
    struct kv_image *x;

    if (k == NULL)
        return;
    kv_end(k);
    if (k->hangs)
        return; /* a thread is in the disk and may touch all of it: the process ends now */
    for (size_t i = 0; i < KV_BUCKETS; i++) {
        while ((x = k->buckets[i]) != NULL) {
            k->buckets[i] = x->next;
            free(x);
        }
    }
    for (int draft = 0; draft < 2; draft++)
        kv_layout_done(&k->layouts[draft]);
    free(k->parts);
    arena_close(k->arena);
    free(k);
}

int
kv_arena_fd(const struct kv *k)
{
    return k != NULL ? arena_fd(k->arena) : -1;
}

uint64_t
kv_arena_bytes(const struct kv *k)
{
    return k != NULL ? arena_bytes(k->arena) : 0;
}

void
kv_count(const struct kv *k, struct kv_counts *out)
{
    struct link_status st;

    if (k == NULL) {
        *out = (struct kv_counts){0};
        return;
    }
    engine_status(k->w->engine, &st);
    *out = k->counts;
    out->memory_bytes = arena_used(k->arena);
    if (k->parts != NULL)
        out->memory_bytes -= KVFILE_ALIGN; /* the directory's page */
    out->memory_limit = arena_bytes(k->arena);
    out->engine_bytes = st.kv_used;
    for (const struct kv_save *v = k->saves; v != NULL; v = v->next)
        out->saving++;
    for (const struct kv_restore *r = k->restores; r != NULL; r = r->next)
        out->restoring += !r->dead;
}

/* --- engines ----------------------------------------------------------------------------- */

static int
learn_model(struct kv *k, const struct link_ready *info, struct err *e)
{
    const struct kv_layout *l = &k->layouts[info->draft != 0];

    if (info->layout != l->hash)
        return err_set(e, ERR_MODEL_MISMATCH, 0,
                       "the engine lays its caches out in another way: %016" PRIx64
                       ", not %016" PRIx64,
                       info->layout, l->hash);
    if (k->parts != NULL)
        return 0; /* engines of one fathomd have one model (engine.c) */
    k->parts = calloc(l->n_parts + 1, sizeof *k->parts);
    if (k->parts == NULL)
        return err_set(e, ERR_QUOTA, errno, "no memory for the layout of caches");
    for (size_t i = 0; i < l->n_parts; i++) {
        const struct kv_part *p = &l->parts[i];

        k->parts[i] = (struct kvfile_part){.kind = p->kind,
                                           .dtype = p->dtype,
                                           .layer = p->layer,
                                           .ratio = p->ratio,
                                           .row_bytes = p->row_bytes,
                                           .span = p->span,
                                           .page_at = p->page_at};
    }
    k->layout = l;
    k->model = (struct kvfile_model){.layout = l->hash,
                                     .page_bytes = l->page_bytes,
                                     .state_most = l->state_most,
                                     .vocab = info->vocab,
                                     .n_parts = (uint32_t)l->n_parts,
                                     .parts = k->parts};
    memcpy(k->model.fingerprint, info->fingerprint, sizeof k->model.fingerprint);
    return 0;
}

void
kv_ready(struct kv *k)
{
    const bool first = k->parts == NULL;
    struct kvfile_plan chunk, state;
    struct err e;

    k->usable = false;
    if (learn_model(k, engine_info(k->w->engine), &e) == -1) {
        log_line(LOG_ERROR, "caches-not-kept why=\"%s\"", e.text);
        return;
    }
    if (first)
        kv_images_find(k);
    kvfile_plan(
        &k->model,
        &(struct kvfile_about){.type = KVFILE_CHUNK, .n_tokens = KVFILE_CHUNK_TOKENS},
        &chunk);
    kvfile_plan(&k->model,
                &(struct kvfile_about){.type = KVFILE_STATE,
                                       .state_bytes = k->layout->state_most,
                                       .logits = true},
                &state);
    k->state_bytes = state.bytes;
    /* A restore holds a state and takes chunk after chunk; a save needs one file at a time. */
    if (2 * (chunk.bytes + state.bytes) + KVFILE_ALIGN > arena_bytes(k->arena)) {
        log_line(LOG_WARNING,
                 "caches-not-kept why=\"host memory of %" PRIu64
                 " bytes cannot hold two chunks and two states, %" PRIu64
                 "\" fix=\"raise host-memory\"",
                 arena_bytes(k->arena), 2 * (chunk.bytes + state.bytes));
        return;
    }
    k->usable = true;
}

void
kv_lost(struct kv *k, bool own_fault)
{
    k->usable = false;
    kv_saves_lost(k);
    kv_restores_lost(k, own_fault);
}

int
kv_news(struct kv *k, const struct slots_news *news, struct err *e)
{
    if (news->job_type == LINK_KV_OUT)
        return kv_save_news(k, news, e);
    if (news->owner == NULL) { /* LINK_OPEN of a slot that is being filled */
        kv_restore_opened(k, news);
        return 0;
    }
    return kv_restore_news(k, news, e);
}

/* --- sessions ---------------------------------------------------------------------------- */

struct kv_session *
kv_of(struct kv *k, struct session *s)
{
    (void)k;
    if (s->kv == NULL) {
        s->kv = calloc(1, sizeof *s->kv);
        if (s->kv != NULL) {
            s->kv->s = s;
            s->kv->round = 1;
        }
    }
    return s->kv;
}

void
kv_hold(struct session *s)
{
    s->streams++;
    store_hold(s);
}

void
kv_release(struct kv *k, struct session *s)
{
    store_release(s);
    s->streams--;
    work_released(k->w, s);
}

void
kv_wake(struct kv *k, struct session *s)
{
    if (s->state != SESSION_GONE || s->ops != NULL)
        work_wait(k->w, s);
    work_wake(k->w);
}

bool
kv_is_saved(const struct session *s, enum kv_at at)
{
    const struct kv_piece *p;

    if (s->log.len <= 1) /* one token is quicker computed than read */
        return true;
    if (s->kv == NULL)
        return false;
    p = kv_best(&s->kv->pieces, s->log.len, at, KV_SOUND);
    return p != NULL && p->file.about.pos + 1 >= s->log.len;
}

int
kv_loaded(struct kv *k, struct session *s, struct err *e)
{
    struct kv_session *ks = kv_of(k, s);
    const bool fresh = ks != NULL && ks->pieces.n == 0;

    if (ks == NULL)
        return err_set(e, ERR_QUOTA, errno, "no memory for a session's caches");
    for (size_t i = 0; i < s->n_files; i++) {
        struct kv_piece *p;

        if (!fresh && kv_pieces_find(&ks->pieces, &s->files[i].about.id) != NULL)
            continue;
        p = kv_pieces_add(&ks->pieces, &s->files[i]);
        if (p == NULL)
            return err_set(e, ERR_QUOTA, errno, "no memory for a session's caches");
        p->at = KV_STORED;
    }
    return 0;
}

bool
kv_has_only_copy(const struct kv_session *ks)
{
    for (size_t i = 0; i < ks->pieces.n; i++) {
        if (ks->pieces.v[i].at < KV_STORED)
            return true;
    }
    return false;
}

/* Images that no file holds are of no use without the list that names them. */
static void
drop_images(struct kv *k, struct kv_session *ks, bool stored_too)
{
    for (size_t i = 0; i < ks->pieces.n; i++) {
        const struct kv_piece *p = &ks->pieces.v[i];
        struct kv_image *x = kv_image_find(k, &p->file.about.id);

        if (x == NULL || (p->at == KV_STORED && !stored_too))
            continue;
        x->owner = NULL;
        if (x->pins == 0)
            kv_image_free(k, x);
    }
}

void
kv_unload(struct kv *k, struct session *s)
{
    struct kv_session *ks = s->kv;

    if (ks == NULL)
        return;
    assert(ks->saves == 0 && ks->restore == NULL && !ks->is_due);
    drop_images(k, ks, false);
    kv_pieces_done(&ks->pieces);
    free(ks);
    s->kv = NULL;
}

void
kv_forget(struct kv *k, struct session *s)
{
    struct kv_session *ks = s->kv;

    if (ks == NULL)
        return;
    kv_hold(s);
    if (ks->restore != NULL)
        kv_restore_cancel(k, ks->restore);
    kv_not_due(k, ks);
    drop_images(k, ks, true);
    ks->pieces.n = 0; /* a save under way looks for its files here, and finds none */
    kv_release(k, s);
}

static void
remove_piece(struct kv *k, struct kv_session *ks, const struct kvfile_id *id)
{
    struct kv_image *x = kv_image_find(k, id);

    kv_pieces_remove(&ks->pieces, id);
    if (x == NULL)
        return;
    x->owner = NULL;
    if (x->pins == 0)
        kv_image_free(k, x);
}

void
kv_piece_lost(struct kv *k, struct kv_image *x)
{
    kv_pieces_remove(&x->owner->pieces, &x->about.id);
    x->owner = NULL;
    (void)k;
}

void
kv_truncate(struct kv *k, struct session *s, uint64_t pos)
{
    struct kv_session *ks = s->kv;

    if (ks == NULL)
        return;
    if (ks->restore != NULL && ks->restore->pos > pos)
        kv_restore_cancel(k, ks->restore);
    for (size_t i = ks->pieces.n; i-- > 0;) {
        struct ledger_file *f = &ks->pieces.v[i].file;
        const uint64_t fit = pos > f->about.pos ? (pos - f->about.pos) / KV_PAGE : 0;
        const struct kvfile_id id = f->about.id;

        if (f->about.type == KVFILE_STATE ? f->about.pos > pos : fit == 0)
            remove_piece(k, ks, &id);
        else if (f->about.type == KVFILE_CHUNK && fit < f->n_pages)
            f->n_pages = (uint32_t)fit;
    }
    kv_trust(s); /* with what was wrong behind it gone, what is left may be tried again */
}

void
kv_trust(struct session *s)
{
    if (s->kv != NULL)
        s->kv->fails = 0;
    if (s->kept.quarantined) {
        s->kept.quarantined = 0;
        session_log_touch(&s->log);
    }
}

void
kv_drop_row(struct kv *k, struct session *s, const struct kvfile_id *id)
{
    struct err e;

    if (session_files_change(s, NULL, 0, id, 1, &e) == -1)
        log_line(LOG_WARNING, "cache-row-kept session=%s why=\"%s\"", s->name, e.text);
    else
        store_commit_soon(k->w->store, s);
    remove_piece(k, s->kv, id);
    k->counts.dropped++;
}

const struct kvfile_model *
kv_model(const struct kv *k)
{
    return k->model.n_parts > 0 ? &k->model : NULL;
}

void
kv_sizes(const struct kv *k, const struct session *s, uint64_t *memory, uint64_t *disk)
{
    *memory = 0;
    *disk = s->file_bytes;
    if (k == NULL || s->kv == NULL)
        return;
    for (size_t i = 0; i < s->kv->pieces.n; i++) {
        const struct kv_image *x = kv_image_find(k, &s->kv->pieces.v[i].file.about.id);

        if (x != NULL)
            *memory += x->at.bytes;
    }
}

uint64_t
kv_position(const struct kv *k, const struct session *s, uint64_t len)
{
    const struct kv_piece *p = NULL;

    if (k != NULL && s->kv != NULL && !s->kept.quarantined)
        p = kv_best(&s->kv->pieces, len, KV_SEALED, KV_ALL_COUNT);
    return p != NULL ? p->file.about.pos : 0;
}

/* All that it needs to come back is in the arena. */
static bool
is_in_memory(const struct kv *k, const struct session *s, const struct kv_piece *state)
{
    const uint64_t pages = state->file.about.pos / KV_PAGE;
    const struct kv_piece *c;

    if (kv_image_find(k, &state->file.about.id) == NULL)
        return false;
    for (uint64_t page = 0; page < pages; page = kv_first_page(c) + c->file.n_pages) {
        c = kv_cover(&s->kv->pieces, page, KV_SEALED, KV_ALL_COUNT);
        if (c == NULL || kv_image_find(k, &c->file.about.id) == NULL)
            return false;
    }
    return true;
}

enum kv_tier
kv_tier(const struct kv *k, const struct session *s)
{
    const struct kv_piece *p = NULL;

    if (s->slot != NULL)
        return KV_IN_ENGINE;
    if (k != NULL && s->kv != NULL)
        p = kv_best(&s->kv->pieces, s->log.len, KV_SEALED, KV_ALL_COUNT);
    if (p == NULL)
        return s->kv == NULL && s->file_bytes > 0 ? KV_ON_DISK : KV_TOKENS;
    return is_in_memory(k, s, p) ? KV_IN_MEMORY : KV_ON_DISK;
}

const char *
kv_tier_name(enum kv_tier t)
{
    static const char *const names[] = {"tokens", "disk", "memory", "engine"};

    return names[t];
}
