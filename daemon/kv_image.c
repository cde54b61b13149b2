/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Images of files in the arena, found by id. They are pinned while somebody works on them; the
 * others are a cache, and go by GDSF when room is needed (kvstore/gdsf.h). What no file holds yet
 * goes last: it is all that there is besides the tokens.
 */
#include "config.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "daemon/kv_impl.h"

static struct kv_image **
bucket(struct kv *k, const struct kvfile_id *id)
{
    uint64_t h; /* ids are random: any part of one is a hash */

    memcpy(&h, id->b, sizeof h);
    return &k->buckets[h % KV_BUCKETS];
}

struct kv_image *
kv_image_find(const struct kv *k, const struct kvfile_id *id)
{
    struct kv_image *x = *bucket((struct kv *)(uintptr_t)k, id);

    while (x != NULL && memcmp(&x->about.id, id, sizeof *id) != 0)
        x = x->next;
    return x;
}

uint8_t *
kv_image_bytes(const struct kv *k, const struct kv_image *x)
{
    return arena_at(k->arena, x->at);
}

/* Seconds to bring it back: from its file, or (a guess: the engine must compute) much longer. */
static double
cost(const struct kv *k, const struct kv_image *x)
{
    const double read = (double)x->at.bytes / k->read_rate;

    return x->stored ? read : 1000 * read;
}

void
kv_image_used(struct kv *k, struct kv_image *x)
{
    gdsf_use(&k->memory, &x->worth, cost(k, x), x->at.bytes, clock_ns());
}

/* The unpinned image that is worth least; first among those that a file holds. */
static struct kv_image *
least(const struct kv *k)
{
    struct kv_image *best = NULL;

    for (size_t i = 0; i < KV_BUCKETS; i++) {
        for (struct kv_image *x = k->buckets[i]; x != NULL; x = x->next) {
            if (x->pins > 0)
                continue;
            if (best == NULL || x->stored > best->stored ||
                (x->stored == best->stored && gdsf_before(&x->worth, &best->worth)))
                best = x;
        }
    }
    return best;
}

struct kv_image *
kv_image_new(struct kv *k, const struct kvfile_about *about)
{
    struct kv_image *x = calloc(1, sizeof *x), *old, **at;

    if (x == NULL)
        return NULL;
    x->about = *about;
    kvfile_plan(&k->model, about, &x->plan);
    while (!arena_take(k->arena, x->plan.bytes, &x->at)) {
        old = least(k);
        if (old == NULL) {
            free(x);
            return NULL;
        }
        gdsf_evicted(&k->memory, &old->worth);
        if (old->owner != NULL)
            kv_piece_lost(k, old);
        kv_image_free(k, old);
    }
    x->pins = 1;
    at = bucket(k, &about->id);
    x->next = *at;
    *at = x;
    return x;
}

void
kv_image_free(struct kv *k, struct kv_image *x)
{
    struct kv_image **at = bucket(k, &x->about.id);

    assert(x->pins == 0);
    while (*at != x)
        at = &(*at)->next;
    *at = x->next;
    arena_give(k->arena, &x->at);
    free(x);
}

void
kv_image_unpin(struct kv *k, struct kv_image *x)
{
    assert(x->pins > 0);
    if (--x->pins == 0 && !x->sealed)
        kv_image_free(k, x); /* nobody will complete it */
}

void
kv_images_expire(struct kv *k, uint64_t idle_ns)
{
    const uint64_t now = clock_ns();
    struct kv_image *x, *next;

    for (size_t i = 0; i < KV_BUCKETS; i++) {
        for (x = k->buckets[i]; x != NULL; x = next) {
            next = x->next;
            if (x->pins == 0 && x->stored && now - x->worth.used_ns > idle_ns)
                kv_image_free(k, x);
        }
    }
}
