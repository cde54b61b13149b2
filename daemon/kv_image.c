/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Images of files in the arena, found by id, also by the next fathomd (kvstore/arena_dir.h). They are pinned while somebody works on them; the
 * others are a cache, and go by GDSF when room is needed (kvstore/gdsf.h). What no file holds yet
 * goes last: it is all that there is besides the tokens.
 */
#include "config.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "daemon/kv_impl.h"
#include "kvstore/arena_dir.h"

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

static void
add(struct kv *k, struct kv_image *x)
{
    struct kv_image **at = bucket(k, &x->about.id);

    x->next = *at;
    *at = x;
}

struct kv_image *
kv_image_new(struct kv *k, const struct kvfile_about *about)
{
    struct kv_image *x = calloc(1, sizeof *x), *old;

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
    add(k, x);
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

/* --- from one fathomd to the next ------------------------------------------------------------ */

static bool
adopt(struct kv *k, struct arena_image *found)
{
    struct kv_image *x = NULL;

    if (kv_image_find(k, &found->about.id) == NULL)
        x = calloc(1, sizeof *x);
    if (x == NULL) {
        arena_give(k->arena, &found->at);
        return false;
    }
    x->about = found->about;
    x->at = found->at;
    x->sealed = x->stored = true;
    kvfile_plan(&k->model, &x->about, &x->plan);
    add(k, x);
    kv_image_used(k, x);
    return true;
}

/* Each is looked at as a whole before it is used, as any image is (kv_fetch.c). */
void
kv_images_find(struct kv *k)
{
    struct arena_image *v;
    uint64_t bytes = 0;
    size_t n, kept = 0;
    struct err e;

    arena_dir_take(k->arena, &k->model, &v, &n, &e);
    for (size_t i = 0; i < n; i++) {
        const uint64_t room = v[i].at.bytes;

        if (adopt(k, &v[i])) {
            bytes += room;
            kept++;
        }
    }
    free(v);
    if (n > 0)
        log_line(LOG_INFO, "host-memory-kept images=%zu bytes=%" PRIu64, kept, bytes);
    else if (e.code != ERR_NONE && e.code != ERR_NOT_FOUND)
        log_line(LOG_WARNING, "host-memory-not-kept why=\"%s\"", e.text);
}

/* What is complete, on the disk too, and at rest. Its table needs a place of its own. */
void
kv_images_leave(struct kv *k)
{
    struct arena_image *v = NULL;
    size_t n = 0, room = 0;
    struct kv_image *old;
    struct err e;

    for (size_t i = 0; i < KV_BUCKETS; i++) {
        for (const struct kv_image *x = k->buckets[i]; x != NULL; x = x->next)
            room++;
    }
    v = calloc(room + 1, sizeof *v);
    if (v == NULL)
        return; /* the disk has all of it */
    do {
        n = 0;
        for (size_t i = 0; i < KV_BUCKETS; i++) {
            for (const struct kv_image *x = k->buckets[i]; x != NULL; x = x->next) {
                if (x->pins == 0 && x->sealed && x->stored)
                    v[n++] = (struct arena_image){x->about, x->at};
            }
        }
        if (arena_dir_leave(k->arena, &k->model, v, n, &e) == 0)
            break;
        old = least(k);
        if (old != NULL)
            kv_image_free(k, old);
    } while (old != NULL);
    free(v);
}
