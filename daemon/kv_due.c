/* SPDX-License-Identifier: Apache-2.0 */
/*
 * When a session is saved: at once at the end of a turn and at a checkpoint by name, whenever a
 * chunk of what is being read or drawn is complete, and otherwise when nothing has come for
 * save-after. What cannot be done at once, or fails, stays due and is tried again.
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

enum { AGAIN_MS = 5000, SOON_MS = 200 };

static const uint64_t MS = 1000000;

void
kv_make_due(struct kv *k, struct session *s, uint64_t at_ns)
{
    struct kv_session *ks = kv_of(k, s);

    if (ks == NULL)
        return; /* no memory: it is saved at its next operation */
    if (!ks->is_due) {
        kv_hold(s);
        ks->is_due = true;
        ks->next_due = k->due;
        k->due = ks;
        ks->due_ns = at_ns;
    } else if (at_ns < ks->due_ns) {
        ks->due_ns = at_ns;
    }
}

void
kv_save_again(struct kv *k, struct session *s)
{
    kv_make_due(k, s, clock_ns() + AGAIN_MS * MS);
}

void
kv_not_due(struct kv *k, struct kv_session *ks)
{
    struct kv_session **at = &k->due;

    if (!ks->is_due)
        return;
    while (*at != ks)
        at = &(*at)->next_due;
    *at = ks->next_due;
    ks->is_due = false;
    kv_release(k, ks->s);
}

/* Of the session that is due: true if there is no more to be done for it. */
static bool
serve_due(struct kv *k, struct kv_session *ks, uint64_t now)
{
    struct session *s = ks->s;
    const bool dirty = s->slot != NULL && !kv_is_saved(s, KV_COMING);

    if (s->state == SESSION_GONE || s->kept.quarantined ||
        (!dirty && (k->io == NULL || !kv_has_only_copy(ks))))
        return true;
    if (now < ks->due_ns)
        return false;
    if (dirty ? !kv_save(k, s, s->slot, KV_ALL) : ks->saves == 0 && !kv_save_rewrite(k, s))
        ks->due_ns = now + SOON_MS * MS; /* it works, or there is no room */
    return false;
}

void
kv_saves_tick(struct kv *k, uint64_t now)
{
    struct kv_session **at = &k->due, *ks;

    while ((ks = *at) != NULL) {
        if (serve_due(k, ks, now)) {
            *at = ks->next_due;
            ks->is_due = false;
            kv_release(k, ks->s);
        } else {
            at = &ks->next_due;
        }
    }
}

void
kv_op_over(struct kv *k, struct session *s)
{
    kv_touch(k, s);
    if (s->slot != NULL && !s->kept.quarantined && !kv_is_saved(s, KV_COMING))
        kv_make_due(k, s, clock_ns() + k->w->o->save_after * MS);
}

void
kv_named(struct kv *k, struct session *s)
{
    struct kv_session *ks = kv_of(k, s);

    if (ks == NULL || s->slot == NULL || s->kept.quarantined || kv_is_saved(s, KV_COMING))
        return;
    ks->turn = true;
    kv_save_now(k, s); /* what is left of it goes on by itself */
}

void
kv_keep(struct kv *k, struct session *s)
{
    struct kv_session *ks = kv_of(k, s);
    bool turn;

    if (ks == NULL || s->slot == NULL || s->kept.quarantined)
        return;
    turn = ks->turn;
    ks->turn = true;
    kv_save(k, s, s->slot, KV_STATE);
    ks->turn = turn;
}

void
kv_save_now(struct kv *k, struct session *s)
{
    kv_make_due(k, s, clock_ns());
    if (s->slot != NULL && !kv_is_saved(s, KV_COMING))
        kv_save(k, s, s->slot, KV_ALL);
}

/* One batch is on its way: the next one of a session that is in a hurry. */
void
kv_save_next(struct kv *k, struct session *s)
{
    const struct kv_session *ks = s->kv;

    if (ks->is_due && s->slot != NULL && s->state != SESSION_GONE &&
        clock_ns() >= ks->due_ns && !kv_is_saved(s, KV_COMING))
        kv_save(k, s, s->slot, KV_ALL);
}

void
kv_fed(struct kv *k, struct session *s)
{
    if (s->slot != NULL && !s->kept.quarantined)
        kv_save(k, s, s->slot, KV_BLOCKS);
}

/* A state that could not be had where it belongs, for want of room, is made up for at the next
 * opportunity. */
void
kv_drawn(struct kv *k, struct session *s)
{
    const struct kv_session *ks = kv_of(k, s);
    const uint64_t ran = s->log.len - 1; /* the last token drawn has not */
    uint64_t newest = 0;

    if (ks == NULL || s->slot == NULL || s->kept.quarantined)
        return;
    kv_save(k, s, s->slot, KV_BLOCKS);
    if (ks->pieces.n > 0 && kv_is_state(&ks->pieces.v[ks->pieces.n - 1]))
        newest = ks->pieces.v[ks->pieces.n - 1].file.about.pos;
    if (newest < ran - ran % KV_STATE_EVERY)
        kv_save(k, s, s->slot, KV_STATE);
}
