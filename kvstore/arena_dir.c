/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The directory is a head in the arena's first page and a table somewhere behind it. Both have
 * hashes, and the table has one of each image's own head, which in turn holds the hashes of all
 * else in the image: so what is found is what was left, or is refused. Whose the images are is not
 * in it. A file's id is random and its bytes never change; a session's ledger says which ids are
 * its own and for which tokens, and an image that no ledger names is never looked for.
 */
#include "config.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/err.h"
#include "kvstore/arena_dir.h"

enum { DIR_VERSION = 1, PAGE = KVFILE_ALIGN };

struct hash {
    uint8_t b[16];
};

struct entry {
    uint64_t at, bytes; /* of the extent */
    uint64_t pos, state_bytes;
    uint32_t type, n_tokens, logits, zero;
    struct kvfile_id id;
    struct hash head; /* of the image's first page */
};

struct head {
    uint8_t magic[8];
    uint32_t version, entry_bytes;
    uint64_t arena_bytes;
    uint8_t fingerprint[32];
    uint64_t layout;
    uint64_t at, n; /* of the table; entries */
    struct hash table;
    struct hash self; /* of all before */
};

static const uint8_t MAGIC[8] = {0x89, 'F', 'A', 'D', '\r', '\n', 0x1a, '\n'};

static struct hash
hash_of(const void *p, size_t n)
{
    const XXH128_hash_t h = XXH3_128bits(p, n);
    struct hash out;

    XXH128_canonicalFromHash((XXH128_canonical_t *)(void *)out.b, h);
    return out;
}

static struct hash
hash_head(const struct head *h)
{
    return hash_of(h, offsetof(struct head, self));
}

static bool
same(struct hash a, struct hash b)
{
    return memcmp(&a, &b, sizeof a) == 0;
}

static int
damaged(struct err *e, const char *what)
{
    return err_set(e, ERR_DAMAGED, 0, "the arena's directory: %s", what);
}

static int
check_head(const struct arena *a, const struct head *h, const struct kvfile_model *m,
           struct err *e)
{
    const uint64_t size = arena_bytes(a);

    if (memcmp(h->magic, MAGIC, sizeof MAGIC) != 0)
        return err_set(e, ERR_NOT_FOUND, 0, "the arena has no directory");
    if (!same(hash_head(h), h->self))
        return damaged(e, "its head has been changed");
    if (h->version != DIR_VERSION || h->entry_bytes != sizeof(struct entry))
        return err_set(e, ERR_MODEL_MISMATCH, 0,
                       "the arena's directory is of version %" PRIu32, h->version);
    if (memcmp(h->fingerprint, m->fingerprint, sizeof h->fingerprint) != 0 ||
        h->layout != m->layout)
        return err_set(e, ERR_MODEL_MISMATCH, 0, "what the arena holds is another model's");
    if (h->arena_bytes != size || h->at % PAGE != 0 || h->at > size ||
        h->n > (size - h->at) / sizeof(struct entry))
        return damaged(e, "its table is not in the arena");
    return 0;
}

/* A place and a description that can be; what is there is another question. */
static bool
is_sane(const struct arena *a, const struct kvfile_model *m, const struct entry *x,
        struct arena_image *out)
{
    const uint64_t size = arena_bytes(a);
    struct kvfile_plan plan;

    if (x->at % PAGE != 0 || x->bytes % PAGE != 0 || x->bytes < PAGE || x->at > size ||
        x->bytes > size - x->at || x->logits > 1 || x->zero != 0)
        return false;
    if (x->type == KVFILE_CHUNK
            ? x->n_tokens == 0 || x->n_tokens > KVFILE_CHUNK_TOKENS || x->state_bytes != 0
            : x->type != KVFILE_STATE || x->n_tokens != 0 || x->state_bytes > m->state_most)
        return false;
    out->about = (struct kvfile_about){.type = (enum kvfile_type)x->type,
                                       .id = x->id,
                                       .pos = x->pos,
                                       .n_tokens = x->n_tokens,
                                       .state_bytes = x->state_bytes,
                                       .logits = x->logits != 0};
    out->at = (struct extent){x->at, x->bytes};
    kvfile_plan(m, &out->about, &plan);
    return plan.bytes <= x->bytes;
}

static int
take_all(struct arena *a, const struct kvfile_model *m, const struct entry *table,
         uint64_t n, struct arena_image *v, size_t *n_taken, struct err *e)
{
    *n_taken = 0;
    for (uint64_t i = 0; i < n; i++) {
        struct arena_image *x = &v[*n_taken];

        if (!is_sane(a, m, &table[i], x))
            return damaged(e, "an entry that cannot be");
        if (!same(hash_of(arena_at(a, x->at), PAGE), table[i].head))
            return damaged(e, "an image's head has been changed");
        if (!arena_take_at(a, x->at))
            return damaged(e, "two images in one place");
        ++*n_taken;
    }
    return 0;
}

void
arena_dir_take(struct arena *a, const struct kvfile_model *m, struct arena_image **v,
               size_t *n, struct err *e)
{
    const struct extent first = {0, PAGE};
    struct head *h = (struct head *)(void *)arena_at(a, first);
    const struct head was = *h;
    struct entry *table;

    *v = NULL;
    *n = 0;
    e->code = ERR_NONE;
    memset(h, 0, PAGE);
    if (!arena_take_at(a, first))
        assert(!"the arena is in use");
    if (check_head(a, &was, m, e) == -1)
        return;
    /* A copy: what it says and what is looked at are the same. */
    table = malloc(was.n * sizeof *table + 1);
    *v = malloc(was.n * sizeof **v + 1);
    if (table == NULL || *v == NULL) {
        err_set(e, ERR_QUOTA, 0, "no memory for the arena's directory");
    } else {
        memcpy(table, arena_at(a, (struct extent){was.at, was.n * sizeof *table}),
               was.n * sizeof *table);
        if (!same(hash_of(table, was.n * sizeof *table), was.table))
            damaged(e, "its table has been changed");
        else
            take_all(a, m, table, was.n, *v, n, e);
    }
    free(table);
    if (e->code == ERR_NONE)
        return;
    while (*n > 0)
        arena_give(a, &(*v)[--*n].at);
    free(*v);
    *v = NULL;
}

int
arena_dir_leave(struct arena *a, const struct kvfile_model *m, const struct arena_image *v,
                size_t n, struct err *e)
{
    struct head *h = (struct head *)(void *)arena_at(a, (struct extent){0, PAGE});
    struct head now = {.version = DIR_VERSION,
                       .entry_bytes = sizeof(struct entry),
                       .arena_bytes = arena_bytes(a),
                       .layout = m->layout,
                       .n = n};
    struct extent place;
    struct entry *table;

    if (!arena_take(a, n * sizeof *table + 1, &place))
        return err_set(e, ERR_QUOTA, 0, "no room for the arena's directory");
    table = (struct entry *)(void *)arena_at(a, place);
    for (size_t i = 0; i < n; i++) {
        const struct kvfile_about *x = &v[i].about;

        table[i] = (struct entry){.at = v[i].at.at,
                                  .bytes = v[i].at.bytes,
                                  .pos = x->pos,
                                  .state_bytes = x->state_bytes,
                                  .type = x->type,
                                  .n_tokens = x->n_tokens,
                                  .logits = x->logits,
                                  .id = x->id,
                                  .head = hash_of(arena_at(a, v[i].at), PAGE)};
    }
    memcpy(now.magic, MAGIC, sizeof MAGIC);
    memcpy(now.fingerprint, m->fingerprint, sizeof now.fingerprint);
    now.at = place.at;
    now.table = hash_of(table, n * sizeof *table);
    now.self = hash_head(&now);
    *h = now;
    return 0;
}
