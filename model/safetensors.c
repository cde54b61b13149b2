/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading one safetensors file. Everything in the header is a claim by whoever wrote the file:
 * nothing is added, multiplied or followed before it is in range, and the first false claim
 * refuses the file with the tensor's name. Any thread.
 */
#include <config.h> /* not "": beside this file lies model/config.h */

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/file.h"
#include "model/json.h"
#include "model/safetensors.h"

struct safetensors {
    struct file_map map; /* p is NULL when parsed from the caller's memory */
    json_t *header;      /* owns all names */
    struct tensor *tensors;
    size_t n;
    const uint8_t *payload;
    uint64_t n_payload;
};

static int
parse_dtype(const char *name, const json_t *v, enum tensor_dtype *out, struct err *e)
{
    if (!json_is_string(v))
        return err_set(e, ERR_DAMAGED, 0, "%.80s: dtype is %s; want a string", name,
                       v == NULL ? "missing" : json_kind(v));
    for (int t = 0; t < DTYPE_COUNT; t++) {
        if (strcmp(dtype_name((enum tensor_dtype)t), json_string_value(v)) == 0) {
            *out = (enum tensor_dtype)t;
            return 0;
        }
    }
    return err_set(
        e, ERR_DAMAGED, 0,
        "%.80s: dtype \"%.32s\" is none that fathom reads (F8_E4M3, F8_E8M0, I8, "
        "BF16, F32, I64, I32)",
        name, json_string_value(v));
}

/* dims and, as *bytes, what they multiply out to. */
static int
parse_shape(struct tensor *t, const json_t *v, uint64_t *bytes, struct err *e)
{
    json_t *d;
    size_t i;

    *bytes = (uint64_t)dtype_bytes(t->dtype);
    if (!json_is_array(v) || json_array_size(v) > TENSOR_MAX_DIMS)
        return err_set(e, ERR_DAMAGED, 0,
                       "%.80s: shape: want an array of at most %d integers", t->name,
                       TENSOR_MAX_DIMS);
    json_array_foreach(v, i, d)
    {
        if (!json_is_integer(d) || json_integer_value(d) < 0)
            return err_set(e, ERR_DAMAGED, 0,
                           "%.80s: shape[%zu]: want an integer, 0 or more", t->name, i);
        t->dims[i] = json_integer_value(d);
        if (__builtin_mul_overflow(*bytes, (uint64_t)t->dims[i], bytes))
            return err_set(e, ERR_DAMAGED, 0, "%.80s: shape: more than 2^64 bytes",
                           t->name);
    }
    t->n_dims = (int)json_array_size(v);
    return 0;
}

static int
parse_offsets(const struct safetensors *st, struct tensor *t, const json_t *v,
              uint64_t bytes, struct err *e)
{
    const json_t *from = json_array_get(v, 0), *to = json_array_get(v, 1);
    uint64_t a, b;

    if (json_array_size(v) != 2 || !json_is_integer(from) || !json_is_integer(to) ||
        json_integer_value(from) < 0 || json_integer_value(to) < json_integer_value(from))
        return err_set(
            e, ERR_DAMAGED, 0,
            "%.80s: data_offsets: want two integers, the first not above the second",
            t->name);
    a = (uint64_t)json_integer_value(from);
    b = (uint64_t)json_integer_value(to);
    if (b > st->n_payload)
        return err_set(e, ERR_DAMAGED, 0,
                       "%.80s: data_offsets end at %" PRIu64 ", the payload at %" PRIu64
                       ": file cut short?",
                       t->name, b, st->n_payload);
    if (b - a != bytes)
        return err_set(e, ERR_DAMAGED, 0,
                       "%.80s: %" PRIu64 " bytes in the file, %" PRIu64 " by its shape",
                       t->name, b - a, bytes);
    t->data = st->payload + a;
    t->n_bytes = bytes;
    return 0;
}

static int
check_name(const char *name, struct err *e)
{
    const size_t len = strlen(name);

    if (len == 0 || len > SAFETENSORS_MAX_NAME)
        return err_set(e, ERR_DAMAGED, 0, "a tensor's name has %zu bytes; want 1 to %d",
                       len, SAFETENSORS_MAX_NAME);
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)name[i] <= ' ' || name[i] == '\x7f')
            return err_set(e, ERR_DAMAGED, 0,
                           "a tensor's name has byte 0x%02x in it; want none that does not "
                           "print",
                           (unsigned char)name[i]);
    return 0;
}

static int
parse_tensor(const struct safetensors *st, const char *name, const json_t *v,
             struct tensor *t, struct err *e)
{
    uint64_t bytes;

    if (check_name(name, e) == -1)
        return -1;
    *t = (struct tensor){.name = name};
    if (!json_is_object(v) || json_object_size(v) != 3)
        return err_set(e, ERR_DAMAGED, 0,
                       "%.80s: want an object of dtype, shape and data_offsets", name);
    if (parse_dtype(name, json_object_get(v, "dtype"), &t->dtype, e) == -1 ||
        parse_shape(t, json_object_get(v, "shape"), &bytes, e) == -1)
        return -1;
    return parse_offsets(st, t, json_object_get(v, "data_offsets"), bytes, e);
}

static int
check_meta(const json_t *meta, struct err *e)
{
    const char *key;
    json_t *v;

    if (!json_is_object(meta))
        return err_set(e, ERR_DAMAGED, 0, "__metadata__: %s where an object is wanted",
                       json_kind(meta));
    json_object_foreach((json_t *)meta, key, v) if (!json_is_string(v)) return err_set(
        e, ERR_DAMAGED, 0, "__metadata__.%.64s: %s where a string is wanted", key,
        json_kind(v));
    return 0;
}

static int
by_place(const void *a, const void *b)
{
    const struct tensor *s = a, *t = b;

    if (s->data != t->data)
        return (const uint8_t *)s->data < (const uint8_t *)t->data ? -1 : 1;
    return s->n_bytes < t->n_bytes ? -1 : s->n_bytes > t->n_bytes; /* empty ones first */
}

static int
by_name(const void *a, const void *b)
{
    const struct tensor *s = a, *t = b;

    return strcmp(s->name, t->name);
}

/* Each tensor begins where the one before ends: no overlap, no hole, no rest. */
static int
check_tiling(struct safetensors *st, struct err *e)
{
    const uint8_t *at = st->payload;
    const char *before = "the start";

    if (st->n > 0)
        qsort(st->tensors, st->n, sizeof *st->tensors, by_place);
    for (size_t i = 0; i < st->n; i++) {
        const uint8_t *p = st->tensors[i].data;

        if (p != at)
            return err_set(e, ERR_DAMAGED, 0,
                           p < at ? "%.80s overlaps %.80s" : "%.80s: a hole behind %.80s",
                           st->tensors[i].name, before);
        at += st->tensors[i].n_bytes;
        before = st->tensors[i].name;
    }
    if (at != st->payload + st->n_payload)
        return err_set(e, ERR_DAMAGED, 0, "%" PRIu64 " bytes behind the last tensor",
                       (uint64_t)(st->payload + st->n_payload - at));
    if (st->n > 0)
        qsort(st->tensors, st->n, sizeof *st->tensors, by_name);
    return 0;
}

static int
parse_header(struct safetensors *st, struct err *e)
{
    const char *name;
    json_t *v;

    if (!json_is_object(st->header))
        return err_set(e, ERR_DAMAGED, 0, "header: %s where an object is wanted",
                       json_kind(st->header));
    st->tensors = calloc(json_object_size(st->header) + 1, sizeof *st->tensors);
    if (st->tensors == NULL)
        return err_set(e, ERR_QUOTA, errno, "no memory for %zu tensors",
                       json_object_size(st->header));
    json_object_foreach(st->header, name, v)
    {
        if (strcmp(name, "__metadata__") == 0) {
            if (check_meta(v, e) == -1)
                return -1;
        } else if (parse_tensor(st, name, v, &st->tensors[st->n++], e) == -1) {
            return -1;
        }
    }
    return check_tiling(st, e);
}

struct safetensors *
safetensors_parse(const void *data, size_t len, struct err *e)
{
    /* Eleven JSON values a tensor: enough for Pro in one file. */
    static const struct json_limits max = {
        .bytes = SAFETENSORS_MAX_HEADER, .depth = 3, .n_values = 2 << 20};
    const uint8_t *p = data;
    struct safetensors *st;
    uint64_t n = 0;

    if (len < 8) {
        err_set(e, ERR_DAMAGED, 0, "%zu bytes: too short for a safetensors file", len);
        return NULL;
    }
    for (int i = 7; i >= 0; i--)
        n = n << 8 | p[i];
    if (n > len - 8 || n > SAFETENSORS_MAX_HEADER) {
        err_set(e, ERR_DAMAGED, 0,
                "header of %" PRIu64 " bytes in a file of %zu; at most %d are read", n, len,
                SAFETENSORS_MAX_HEADER);
        return NULL;
    }
    st = calloc(1, sizeof *st);
    if (st == NULL) {
        err_set(e, ERR_QUOTA, errno, "no memory");
        return NULL;
    }
    st->payload = p + 8 + n;
    st->n_payload = len - 8 - n;
    st->header = json_parse((const char *)p + 8, (size_t)n, &max, e);
    if (st->header == NULL) {
        err_prefix(e, "header");
    } else if (parse_header(st, e) == 0) {
        return st;
    }
    safetensors_close(st);
    return NULL;
}

struct safetensors *
safetensors_open(const char *path, struct err *e)
{
    struct safetensors *st;
    struct file_map map;

    if (file_map(&map, path, e) == -1)
        return NULL;
    st = safetensors_parse(map.p, map.len, e);
    if (st == NULL) {
        err_prefix(e, "%.120s", path);
        file_unmap(&map);
        return NULL;
    }
    st->map = map;
    return st;
}

void
safetensors_close(struct safetensors *st)
{
    if (st == NULL)
        return;
    free(st->tensors);
    json_decref(st->header);
    file_unmap(&st->map);
    free(st);
}

size_t
safetensors_count(const struct safetensors *st)
{
    return st->n;
}

const struct tensor *
safetensors_at(const struct safetensors *st, size_t i)
{
    return i < st->n ? &st->tensors[i] : NULL;
}

const struct tensor *
safetensors_find(const struct safetensors *st, const char *name)
{
    const struct tensor key = {.name = name};

    return st->n == 0 ? NULL : bsearch(&key, st->tensors, st->n, sizeof key, by_name);
}

const char *
safetensors_meta(const struct safetensors *st, const char *key)
{
    return json_string_value(
        json_object_get(json_object_get(st->header, "__metadata__"), key));
}
