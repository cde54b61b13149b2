/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A checkpoint directory: its files, joined with the manifest of its config.
 *
 * Everything that does not fit is reported in one run, because a checkpoint takes an hour to
 * download and nobody wants to learn of its faults one at a time. Besides names, shapes and
 * formats one kind of payload is checked: the routing tables, whose entries are used as
 * indices. Opening uses one thread; then everything is read-only.
 */
#include <config.h> /* not "": beside this file lies model/config.h */

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "base/buf.h"
#include "base/err.h"
#include "base/file.h"
#include "model/json.h"
#include "model/manifest.h"
#include "model/safetensors.h"
#include "model/synthetic.h"
#include "model/weights.h"

enum {
    MAX_SHARDS = 4096,
    MAX_INDEX = 32 << 20,
    MAX_CONFIG_TEXT = 64 << 10,
};

struct shard {
    char *name; /* of the file in DIR */
    struct safetensors *st;
};

/* What the join needs to know of a tensor; sorted by name. */
struct entry {
    const struct tensor *t;
    const struct shard *shard;
    bool wanted;
};

struct weights {
    struct model_config c;
    struct buf config_text;
    struct shard *shards;
    size_t n_shards;
    struct entry *entries;
    size_t n;
    uint64_t n_bytes;
    struct tensor *made; /* of weights_synthetic: [n] and what they point to */
    char *names;
    uint8_t *payload;
    uint64_t seed;
};

struct report {
    weights_report_fn *fn;
    void *arg;
    struct weights *w;
    size_t n;
    char first[160];
};

static void complain(struct report *r, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

static void
complain(struct report *r, const char *fmt, ...)
{
    char line[512];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    if (r->n++ == 0)
        snprintf(r->first, sizeof r->first, "%s", line);
    if (r->fn != NULL)
        r->fn(r->arg, line);
}

static int
by_name(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;

    return strcmp(x->t->name, y->t->name);
}

static struct entry *
find(const struct weights *w, const char *name)
{
    const struct tensor t = {.name = name};
    const struct entry key = {.t = &t};

    return w->n == 0 ? NULL : bsearch(&key, w->entries, w->n, sizeof key, by_name);
}

/* A shard's name comes out of a file: it must not lead out of the directory. */
static bool
is_plain_name(const char *s)
{
    const size_t len = strlen(s);

    if (len == 0 || len > 255 || s[0] == '.')
        return false;
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)s[i] <= ' ' || s[i] == '/' || s[i] == '\x7f')
            return false;
    return true;
}

static int
add_shard(struct weights *w, const char *dir, const char *name, struct err *e)
{
    struct shard *s;
    char path[4096];

    for (size_t i = 0; i < w->n_shards; i++)
        if (strcmp(w->shards[i].name, name) == 0)
            return 0;
    if (w->n_shards == MAX_SHARDS)
        return err_set(e, ERR_DAMAGED, 0, "more than %d shards", MAX_SHARDS);
    if ((size_t)snprintf(path, sizeof path, "%s/%s", dir, name) >= sizeof path)
        return err_set(e, ERR_INVALID, 0, "path too long: %.64s...", dir);
    s = realloc(w->shards, (w->n_shards + 1) * sizeof *s);
    if (s == NULL)
        return err_set(e, ERR_QUOTA, errno, "no memory for %zu shards", w->n_shards + 1);
    w->shards = s;
    s += w->n_shards;
    s->st = safetensors_open(path, e);
    if (s->st == NULL)
        return -1;
    s->name = strdup(name);
    if (s->name == NULL) {
        safetensors_close(s->st);
        return err_set(e, ERR_QUOTA, errno, "no memory");
    }
    w->n_shards++;
    return 0;
}

/* Opens the shards that the index names. *root, the index, is the caller's to json_decref. */
static int
open_index(struct weights *w, const char *dir, json_t **root, struct err *e)
{
    static const struct json_limits max = {
        .bytes = MAX_INDEX, .depth = 2, .n_values = 1 << 19};
    const char *name;
    char path[4096], *text;
    json_t *map, *v;
    size_t len;

    if ((size_t)snprintf(path, sizeof path, "%s/model.safetensors.index.json", dir) >=
        sizeof path)
        return err_set(e, ERR_INVALID, 0, "path too long: %.64s...", dir);
    text = file_read(path, MAX_INDEX, &len, e);
    if (text == NULL)
        return -1;
    *root = json_parse(text, len, &max, e);
    free(text);
    if (*root == NULL)
        return err_prefix(e, "%.120s", path);
    map = json_object_get(*root, "weight_map");
    if (!json_is_object(map))
        return err_set(e, ERR_DAMAGED, 0, "%.120s: weight_map: want an object", path);
    json_object_foreach(map, name, v)
    {
        if (!json_is_string(v) || !is_plain_name(json_string_value(v)))
            return err_set(e, ERR_DAMAGED, 0,
                           "%.100s: %.64s: want the name of a file in the same folder",
                           path, name);
        if (add_shard(w, dir, json_string_value(v), e) == -1)
            return -1;
    }
    return 0;
}

static int
collect(struct weights *w, struct err *e)
{
    size_t n = 0;

    for (size_t i = 0; i < w->n_shards; i++)
        n += safetensors_count(w->shards[i].st);
    w->entries = calloc(n + 1, sizeof *w->entries);
    if (w->entries == NULL)
        return err_set(e, ERR_QUOTA, errno, "no memory for %zu tensors", n);
    for (size_t i = 0; i < w->n_shards; i++) {
        for (size_t k = 0; k < safetensors_count(w->shards[i].st); k++) {
            const struct tensor *t = safetensors_at(w->shards[i].st, k);

            w->entries[w->n++] = (struct entry){.t = t, .shard = &w->shards[i]};
            w->n_bytes += t->n_bytes;
        }
    }
    if (w->n > 0)
        qsort(w->entries, w->n, sizeof *w->entries, by_name);
    return 0;
}

/* The index and the shards must tell the same story: else a copy was mixed or cut. */
static void
check_index(struct report *r, const json_t *root)
{
    const struct weights *w = r->w;
    json_t *map = json_object_get(root, "weight_map"), *v;
    const json_t *total = json_object_get(json_object_get(root, "metadata"), "total_size");
    const char *name;

    json_object_foreach(map, name, v)
    {
        const struct entry *x = find(w, name);

        if (x == NULL)
            complain(r, "%.200s: the index says %.100s, which does not have it", name,
                     json_string_value(v));
    }
    for (size_t i = 0; i < w->n; i++) {
        const struct entry *x = &w->entries[i];
        const char *where = json_string_value(json_object_get(map, x->t->name));

        if (where == NULL)
            complain(r, "%.200s: in %.100s, but not in the index", x->t->name,
                     x->shard->name);
        else if (strcmp(where, x->shard->name) != 0)
            complain(r, "%.200s: in %.100s, but the index says %.100s", x->t->name,
                     x->shard->name, where);
    }
    if (json_is_integer(total) && (uint64_t)json_integer_value(total) != w->n_bytes)
        complain(r, "%" PRIu64 " bytes of tensors; the index says %lld", w->n_bytes,
                 (long long)json_integer_value(total));
}

static int
check_wanted(void *arg, const struct manifest_tensor *m)
{
    struct report *r = arg;
    struct entry *x = find(r->w, m->name);
    char want[96], have[96];

    tensor_shape_text(m->dtype, m->n_dims, m->dims, want, sizeof want);
    if (x == NULL) {
        complain(r, "%s: missing; want %s", m->name, want);
        return 0;
    }
    x->wanted = true;
    if (x->t->dtype != m->dtype || x->t->n_dims != m->n_dims ||
        memcmp(x->t->dims, m->dims, (size_t)m->n_dims * sizeof *m->dims) != 0)
        complain(
            r, "%s: %s; want %s", m->name,
            tensor_shape_text(x->t->dtype, x->t->n_dims, x->t->dims, have, sizeof have),
            want);
    return 0;
}

static void
check_extra(struct report *r)
{
    const struct weights *w = r->w;
    char have[96];

    for (size_t i = 0; i < w->n; i++) {
        const struct entry *x = &w->entries[i];

        if (i > 0 && strcmp(x->t->name, x[-1].t->name) == 0)
            complain(r, "%.200s: in %.100s and again in %.100s", x->t->name,
                     x[-1].shard->name, x->shard->name);
        else if (!x->wanted && (i + 1 == w->n || strcmp(x->t->name, x[1].t->name) != 0))
            complain(
                r, "%.200s: %s in %.100s that the config has no use for", x->t->name,
                tensor_shape_text(x->t->dtype, x->t->n_dims, x->t->dims, have, sizeof have),
                x->shard->name);
    }
}

/* Entries are expert numbers and index memory: one that is out of range must not get there. */
static void
check_tables(struct report *r)
{
    const struct model_config *c = &r->w->c;

    for (int l = 0; l < c->n_hash_layers; l++) {
        const struct tensor *t = weights_findf(r->w, "layers.%d.ffn.gate.tid2eid", l);
        const int64_t n = (int64_t)c->vocab_size * c->n_experts_used;

        if (t == NULL || t->dtype != DTYPE_I64 ||
            t->n_bytes != (uint64_t)n * sizeof(int64_t))
            continue; /* reported already */
        for (int64_t i = 0; i < n; i++) {
            int64_t id;

            memcpy(&id, (const char *)t->data + i * (int64_t)sizeof id, sizeof id);
            if (id >= 0 && id < c->n_experts)
                continue;
            complain(r, "%s: token %" PRId64 " goes to expert %" PRId64 "; want 0 to %d",
                     t->name, i / c->n_experts_used, id, c->n_experts - 1);
            break;
        }
    }
}

static int
check_all(struct weights *w, const json_t *index, weights_report_fn *fn, void *arg,
          struct err *e)
{
    struct report r = {.fn = fn, .arg = arg, .w = w};
    const struct tensor *expert = weights_findf(w, "layers.0.ffn.experts.0.w1.weight");

    if (w->c.quantized && expert != NULL)
        w->c.fp4_experts = expert->dtype == DTYPE_I8;
    manifest_walk(&w->c, check_wanted, &r);
    check_extra(&r);
    if (index != NULL)
        check_index(&r, index);
    check_tables(&r);
    if (r.n > 0)
        return err_set(e, ERR_DAMAGED, 0, "%zu faults in the tensors, the first: %s", r.n,
                       r.first);
    return 0;
}

static int
open_dir(struct weights *w, const char *dir, weights_report_fn *fn, void *arg,
         struct err *e)
{
    json_t *index = NULL;
    int r = add_shard(w, dir, "model.safetensors", e);

    if (r == -1 && e->code == ERR_NOT_FOUND) {
        r = open_index(w, dir, &index, e);
        if (r == -1 && e->code == ERR_NOT_FOUND && index == NULL)
            err_set(e, ERR_NOT_FOUND, ENOENT,
                    "%.120s: neither model.safetensors nor model.safetensors.index.json",
                    dir);
        else if (r == -1 && e->code == ERR_NOT_FOUND)
            e->code = ERR_DAMAGED; /* a shard is missing, not the checkpoint */
    }
    if (r == 0)
        r = collect(w, e);
    if (r == 0 && (r = check_all(w, index, fn, arg, e)) == -1)
        err_prefix(e, "%.64s", dir);
    json_decref(index);
    return r;
}

struct weights *
weights_open(const char *dir, const struct model_config *c, weights_report_fn *report,
             void *arg, struct err *e)
{
    struct weights *w = calloc(1, sizeof *w);

    if (w == NULL) {
        err_set(e, ERR_QUOTA, errno, "no memory");
        return NULL;
    }
    w->c = *c;
    buf_init(&w->config_text, MAX_CONFIG_TEXT);
    if (open_dir(w, dir, report, arg, e) == -1 ||
        model_config_text(&w->c, &w->config_text, e) == -1) {
        weights_close(w);
        return NULL;
    }
    return w;
}

enum { MADE_NAME = 96 };

static int
count_tensor(void *arg, const struct manifest_tensor *t)
{
    struct weights *w = arg;

    w->n++;
    w->n_bytes += (t->n_bytes + 63) / 64 * 64;
    return strlen(t->name) < MADE_NAME ? 0 : -1;
}

static int
make_tensor(void *arg, const struct manifest_tensor *m)
{
    struct weights *w = arg;
    struct tensor *t = &w->made[w->n];
    char *name = w->names + w->n * MADE_NAME;
    struct synthetic s;

    snprintf(name, MADE_NAME, "%s", m->name);
    *t = (struct tensor){
        .name = name, .dtype = m->dtype, .n_dims = m->n_dims, .n_bytes = m->n_bytes};
    memcpy(t->dims, m->dims, sizeof t->dims);
    w->entries[w->n++] = (struct entry){.t = t, .wanted = true};
    if (w->payload != NULL) {
        uint8_t *to = w->payload + w->n_bytes;

        s = weights_made(w, t);
        synthetic_fill(&s, 0, t->n_bytes / (uint64_t)dtype_bytes(t->dtype), to);
        t->data = to;
    }
    w->n_bytes += (t->n_bytes + 63) / 64 * 64;
    return 0;
}

struct weights *
weights_synthetic(const struct model_config *c, uint64_t seed, struct err *e)
{
    struct weights *w = calloc(1, sizeof *w);

    if (w != NULL) {
        w->c = *c;
        w->seed = seed;
        buf_init(&w->config_text, MAX_CONFIG_TEXT);
        if (manifest_walk(c, count_tensor, w) == 0) {
            w->made = calloc(w->n, sizeof *w->made);
            w->names = calloc(w->n, MADE_NAME);
            w->entries = calloc(w->n, sizeof *w->entries);
            if (w->n_bytes <= SYNTHETIC_HOST)
                w->payload = malloc(w->n_bytes);
        }
    }
    if (w == NULL || w->made == NULL || w->names == NULL || w->entries == NULL ||
        (w->payload == NULL && w->n_bytes <= SYNTHETIC_HOST)) {
        err_set(e, ERR_QUOTA, errno, "no memory for made-up tensors");
        weights_close(w);
        return NULL;
    }
    w->n = 0;
    w->n_bytes = 0;
    manifest_walk(c, make_tensor, w);
    qsort(w->entries, w->n, sizeof *w->entries, by_name);
    if (model_config_text(&w->c, &w->config_text, e) == -1) {
        weights_close(w);
        return NULL;
    }
    return w;
}

struct synthetic
weights_made(const struct weights *w, const struct tensor *t)
{
    struct synthetic s = synthetic_of(t, w->seed);

    s.most = w->c.n_experts;
    return s;
}

void
weights_close(struct weights *w)
{
    if (w == NULL)
        return;
    for (size_t i = 0; i < w->n_shards; i++) {
        safetensors_close(w->shards[i].st);
        free(w->shards[i].name);
    }
    free(w->shards);
    free(w->made);
    free(w->names);
    free(w->payload);
    free(w->entries);
    buf_done(&w->config_text);
    free(w);
}

const struct tensor *
weights_find(const struct weights *w, const char *name)
{
    const struct entry *x = find(w, name);

    return x == NULL ? NULL : x->t;
}

const struct tensor *
weights_findf(const struct weights *w, const char *fmt, ...)
{
    char name[256];
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(name, sizeof name, fmt, ap);
    va_end(ap);
    return n < 0 || (size_t)n >= sizeof name ? NULL : weights_find(w, name);
}

const struct model_config *
weights_config(const struct weights *w)
{
    return &w->c;
}

uint64_t
weights_bytes(const struct weights *w)
{
    return w->n_bytes;
}

enum {
    SAMPLE = 256,       /* bytes of a large tensor's start, middle and end */
    SMALL_TENSOR = 4096 /* hashed whole in any model */
};

/* One link of the chain: what came before, then the tensor's name, shape and payload; a payload that
 * is made up on a device and nowhere else is not looked at. */
static XXH128_hash_t
hash_tensor(XXH128_hash_t before, const struct tensor *t, bool whole, uint64_t seed)
{
    struct {
        XXH128_hash_t before, name, data[3];
        int64_t dtype, n_dims, dims[TENSOR_MAX_DIMS];
    } link;

    const char *p = t->data;

    memset(&link, 0, sizeof link);
    link.before = before;
    link.name = XXH3_128bits_withSeed(t->name, strlen(t->name), seed);
    link.dtype = t->dtype;
    link.n_dims = t->n_dims;
    memcpy(link.dims, t->dims, sizeof link.dims);
    if (p == NULL)
        link.data[0] = (XXH128_hash_t){0};
    else if (whole || t->n_bytes <= SMALL_TENSOR) {
        link.data[0] = XXH3_128bits_withSeed(p, t->n_bytes, seed);
    } else {
        link.data[0] = XXH3_128bits_withSeed(p, SAMPLE, seed);
        link.data[1] = XXH3_128bits_withSeed(p + t->n_bytes / 2, SAMPLE, seed);
        link.data[2] = XXH3_128bits_withSeed(p + t->n_bytes - SAMPLE, SAMPLE, seed);
    }
    return XXH3_128bits_withSeed(&link, sizeof link, seed);
}

void
weights_fingerprint(const struct weights *w, uint8_t out[32])
{
    const bool whole = w->n_bytes <= UINT64_C(1) << 30;

    for (uint64_t seed = 0; seed < 2; seed++) {
        XXH128_hash_t h =
            XXH3_128bits_withSeed(w->config_text.p, w->config_text.len, seed + w->seed);
        XXH128_canonical_t bytes;

        for (size_t i = 0; i < w->n; i++)
            h = hash_tensor(h, w->entries[i].t, whole, seed);
        XXH128_canonicalFromHash(&bytes, h);
        memcpy(out + 16 * seed, bytes.digest, 16);
    }
}
