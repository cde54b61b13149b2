/* SPDX-License-Identifier: Apache-2.0 */
/*
 * When caches move down: because the engine has no room, because somebody said so, because nobody
 * has asked for long, because we stop. What is saved moves by being let go of; what is not is
 * saved first. A copy out of the engine runs in front of the close of its sequence, so a session
 * can leave at once and be saved on its way.
 */
#include "config.h"

#include <inttypes.h>

#include "base/clock.h"
#include "base/err.h"
#include "base/log.h"
#include "daemon/engine.h"
#include "daemon/kv_impl.h"
#include "daemon/op.h"
#include "daemon/options.h"
#include "daemon/session.h"
#include "daemon/work_impl.h"

static const uint64_t MS = 1000000, IDLE_EVERY_NS = 1000000000;

/* --- what it is worth ---------------------------------------------------------------------- */

/* A token's share of the engine's steps, drawing and reading together: an upper bound for
 * reading it again, which is what it is for. */
static double
token_seconds(const struct kv *k)
{
    struct link_status st;
    uint64_t tokens;

    engine_status(k->w->engine, &st);
    tokens = st.prefill_tokens + st.decode_tokens;
    return tokens > 0 ? (double)st.step_ns / 1e9 / (double)tokens : 1e-3;
}

static uint64_t
engine_bytes(const struct kv *k, const struct session *s)
{
    const struct link_ready *info = engine_info(k->w->engine);

    return info == NULL ? 1
                        : info->seq_fixed_bytes +
                              (s->log.len + KV_PAGE - 1) / KV_PAGE * info->page_bytes;
}

/* Seconds until it is back where it is now. */
static double
recovery_cost(const struct kv *k, const struct session *s)
{
    const uint64_t back = kv_position(k, s, s->log.len);
    const double pages = (double)(back / KV_PAGE) * (double)k->model.page_bytes;
    const double state = back > 0 ? (double)k->model.state_most : 0;

    return (pages + state) / k->restore_rate +
           (double)(s->log.len - back) * token_seconds(k);
}

void
kv_touch(struct kv *k, struct session *s)
{
    struct kv_session *ks = kv_of(k, s);

    if (ks == NULL)
        return;
    ks->used_ns = clock_ns();
    gdsf_use(&k->engine, &ks->worth, recovery_cost(k, s), engine_bytes(k, s), ks->used_ns);
}

/* --- pressure ------------------------------------------------------------------------------ */

static bool
is_idle(const struct slot *sl)
{
    if (sl->filling || slot_working(sl) > 0)
        return false;
    return sl->use == SLOT_SNAPSHOT ||
           (sl->use == SLOT_SESSION && sl->session->slot == sl &&
            (sl->session->ops == NULL || op_stands(sl->session->ops)));
}

/* Snapshots first: they only save time. Then what is saved, then what has to be. */
static int
rank(const struct slot *sl)
{
    if (sl->use == SLOT_SNAPSHOT)
        return 0;
    return kv_is_saved(sl->session, KV_COMING) ? 1 : 2;
}

static bool
goes_before(const struct slot *a, const struct slot *b)
{
    const int ra = rank(a), rb = rank(b);

    if (ra != rb)
        return ra < rb;
    if (ra > 0 && a->session->kv != NULL && b->session->kv != NULL)
        return gdsf_before(&a->session->kv->worth, &b->session->kv->worth);
    return a->used < b->used;
}

static void
leave_engine(struct kv *k, struct session *s, const char *why)
{
    kv_save(k, s, s->slot, KV_ALL); /* runs in front of the close */
    slots_close(&k->w->slots, s->slot);
    if (s->state == SESSION_WARM)
        session_move(s, SESSION_COLD, why);
}

/* A sequence is being closed and will leave room. One that could not be opened leaves none. */
static bool
is_one_leaving(const struct slots *ss)
{
    for (uint32_t i = 0; i < ss->n && ss->n_closing > 0; i++) {
        if (ss->all[i].use == SLOT_CLOSING && ss->all[i].open)
            return true;
    }
    return false;
}

bool
kv_evict(struct work *w)
{
    struct slots *ss = &w->slots;
    struct slot *best = NULL;

    if (is_one_leaving(ss))
        return true; /* one at a time, or all that wait would each take one */
    for (uint32_t i = 0; i < ss->n; i++) {
        struct slot *sl = &ss->all[i];

        if (is_idle(sl) && (best == NULL || goes_before(sl, best)))
            best = sl;
    }
    if (best == NULL)
        return false;
    ss->evictions++;
    if (best->use == SLOT_SNAPSHOT) {
        slots_close(ss, best);
        return true;
    }
    if (best->session->kv != NULL)
        gdsf_evicted(&w->kv->engine, &best->session->kv->worth);
    w->kv->counts.evictions++;
    leave_engine(w->kv, best->session, "evicted");
    return true;
}

/* --- by command ---------------------------------------------------------------------------- */

/* Out of the arena, too: its files are enough. */
static void
leave_memory(struct kv *k, struct session *s)
{
    const struct kv_session *ks = s->kv;

    for (size_t i = 0; ks != NULL && i < ks->pieces.n; i++) {
        struct kv_image *x = kv_image_find(k, &ks->pieces.v[i].file.about.id);

        if (x != NULL && x->pins == 0 && x->stored)
            kv_image_free(k, x);
    }
}

/* Is it saved as far as it is to be? If not, that is begun; -1: it cannot be, *e. */
static int
have_saved(struct kv *k, struct op *op, enum kv_at at, struct err *e)
{
    struct session *s = op->session;
    struct kv_session *ks = kv_of(k, s);

    if (ks == NULL)
        return err_set(e, ERR_QUOTA, 0, "no memory for a session's caches");
    if (kv_is_saved(s, at) && (at < KV_STORED || ks->saves == 0))
        return 1; /* and the rows that name it are committed */
    if (ks->saves == 0 && op->asked && ks->save_err.code != ERR_NONE) {
        *e = ks->save_err;
        return err_prefix(e, "it stays where it is: its caches cannot be saved");
    }
    if (s->slot == NULL && !kv_is_saved(s, KV_COMING))
        return 1; /* tokens, and what there is of older caches */
    if (!op->asked) {
        op->asked = true;
        ks->save_err.code = ERR_NONE;
    }
    kv_save_now(k, s);
    return 0;
}

bool
kv_park_step(struct work *w, struct op *op)
{
    struct session *s = op->session;
    struct kv *k = w->kv;
    const bool to_disk = op->tier == KV_ON_DISK;
    struct err e;
    int rc = 1;

    if (op->err.code != ERR_NONE)
        return s->slot == NULL || slot_working(s->slot) == 0;
    if (s->slot != NULL && slot_working(s->slot) > 0)
        return false;
    if (k->usable && !s->kept.quarantined)
        rc = have_saved(k, op, to_disk && k->io != NULL ? KV_STORED : KV_SEALED, &e);
    if (rc == -1)
        op_fail(op, &e);
    if (rc != 1)
        return rc == -1;
    if (s->slot != NULL)
        slots_close(&w->slots, s->slot);
    slots_drop_snapshots(&w->slots, s, 0);
    if (to_disk)
        leave_memory(k, s);
    k->counts.parks++;
    return true;
}

/* --- by time --------------------------------------------------------------------------------- */

void
kv_idle_tick(struct kv *k, uint64_t now)
{
    const uint64_t memory = k->w->o->idle_to_memory * MS, disk = k->w->o->idle_to_disk * MS;

    if (now - k->idle_ns < IDLE_EVERY_NS &&
        now - k->idle_ns < (memory < disk ? memory : disk) / 4)
        return;
    k->idle_ns = now;
    if (disk > 0)
        kv_images_expire(k, disk);
    for (uint32_t i = 0; memory > 0 && i < k->w->slots.n; i++) {
        struct slot *sl = &k->w->slots.all[i];
        struct session *s = sl->session;

        if (sl->use != SLOT_SESSION || !is_idle(sl) || s->ops != NULL || s->kv == NULL ||
            now - s->kv->used_ns < memory)
            continue;
        if (k->usable && !s->kept.quarantined && !kv_is_saved(s, KV_SEALED)) {
            kv_save_now(k, s);
            continue;
        }
        k->counts.idles++;
        leave_engine(k, s, "nobody has asked for it");
    }
}

/* --- stopping -------------------------------------------------------------------------------- */

uint64_t
kv_unsaved(const struct kv *k)
{
    uint64_t n = 0;

    for (uint32_t i = 0; i < k->w->slots.n; i++) {
        const struct slot *sl = &k->w->slots.all[i];
        const struct session *s = sl->session;

        n += sl->use == SLOT_SESSION && s->slot == sl && !s->kept.quarantined &&
             !kv_is_saved(s, KV_COMING);
    }
    for (const struct kv_save *v = k->saves; v != NULL; v = v->next)
        n++;
    return n;
}

bool
kv_settled(struct kv *k)
{
    for (uint32_t i = 0; i < k->w->slots.n; i++) {
        const struct slot *sl = &k->w->slots.all[i];
        struct session *s = sl->session;

        if (sl->use == SLOT_SESSION && s->slot == sl && s->state != SESSION_GONE &&
            !s->kept.quarantined && !kv_is_saved(s, KV_COMING) &&
            (s->kv == NULL || s->kv->save_err.code == ERR_NONE))
            kv_save_now(k, s);
    }
    /* What could not begin now for want of room begins when others are done. */
    return k->saves == NULL;
}
