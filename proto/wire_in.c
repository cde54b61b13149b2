/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From a frame to a struct: skim, unpack, take the envelope apart, then walk the map and the
 * message's table together.
 *
 * The skim has bounded what unpacking costs (proto/skim.c), so msgpack-c sees only whole, shallow
 * values. Strings stay where they are, in the frame; only lists are allocated, in msgpack-c's
 * zone, which wire_close() frees in one go.
 */
#include "config.h"

#include <math.h>
#include <msgpack.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/utf8.h"
#include "proto/frame.h"
#include "proto/skim.h"
#include "proto/wire.h"

/* What decoding one message needs to know all the way down. */
struct walk {
    struct wire_in *in;
    bool strict;
    char *key; /* NULL, or WIRE_METHOD_BYTES: gets the key that is wrong */
    struct err *e;
};

static int
as_u32(const msgpack_object *o, uint32_t *out)
{
    if (o->type != MSGPACK_OBJECT_POSITIVE_INTEGER || o->via.u64 > UINT32_MAX)
        return -1;
    *out = (uint32_t)o->via.u64;
    return 0;
}

static int
as_method(struct wire_in *in, const msgpack_object *o)
{
    if (o->type != MSGPACK_OBJECT_STR || o->via.str.size > WIRE_METHOD_BYTES)
        return -1;
    in->name = wire_strn(o->via.str.ptr, o->via.str.size);
    in->method = wire_find(in->name);
    return 0;
}

/* Parameters are an array, as in msgpack-rpc, of one map. */
static int
as_params(struct wire_in *in, const msgpack_object *o)
{
    if (o->type != MSGPACK_OBJECT_ARRAY || o->via.array.size != 1 ||
        o->via.array.ptr[0].type != MSGPACK_OBJECT_MAP)
        return -1;
    in->body = &o->via.array.ptr[0];
    return 0;
}

static int
as_response(struct wire_in *in, const msgpack_object *error, const msgpack_object *result)
{
    in->failed = error->type != MSGPACK_OBJECT_NIL;
    in->body = in->failed ? error : result;
    if (in->failed && result->type != MSGPACK_OBJECT_NIL)
        return -1;
    return ((const msgpack_object *)in->body)->type == MSGPACK_OBJECT_MAP ? 0 : -1;
}

static int
as_items(struct wire_in *in, const msgpack_object *o)
{
    if (o->type != MSGPACK_OBJECT_ARRAY || o->via.array.size == 0)
        return -1;
    for (uint32_t i = 0; i < o->via.array.size; i++) {
        if (o->via.array.ptr[i].type != MSGPACK_OBJECT_MAP)
            return -1;
    }
    in->n_items = o->via.array.size;
    in->body = o->via.array.ptr;
    return 0;
}

static int
envelope(struct wire_in *in, const msgpack_object *o)
{
    static const uint32_t sizes[WIRE_SHAPES] = {4, 4, 3, 4, 3, 2};
    const msgpack_object *v;
    uint32_t shape;

    if (o->type != MSGPACK_OBJECT_ARRAY || o->via.array.size == 0)
        return -1;
    v = o->via.array.ptr;
    if (as_u32(&v[0], &shape) == -1 || shape >= WIRE_SHAPES ||
        o->via.array.size != sizes[shape])
        return -1;
    in->shape = (enum wire_shape)shape;
    if (shape == WIRE_NOTIFY)
        return as_method(in, &v[1]) == -1 ? -1 : as_params(in, &v[2]);
    if (as_u32(&v[1], &in->id) == -1)
        return -1;
    switch (in->shape) {
    case WIRE_REQUEST: return as_method(in, &v[2]) == -1 ? -1 : as_params(in, &v[3]);
    case WIRE_RESPONSE: return as_response(in, &v[2], &v[3]);
    case WIRE_STREAM: return as_u32(&v[2], &in->n) == -1 ? -1 : as_items(in, &v[3]);
    case WIRE_CREDIT: return as_u32(&v[2], &in->n);
    default: return 0;
    }
}

int
wire_open(struct wire_in *in, struct frame_in *frame, const uint8_t *p, size_t len,
          struct err *e)
{
    msgpack_unpacked u;
    size_t used = 0, off = 0;

    *in = (struct wire_in){.frame = frame};
    if (skim(p, len, &used, e) == -1) {
        e->code = ERR_PROTOCOL;
        return err_prefix(e, "message");
    }
    if (used != len)
        return err_set(e, ERR_PROTOCOL, 0, "message: %zu bytes behind its array",
                       len - used);
    msgpack_unpacked_init(&u);
    if (msgpack_unpack_next(&u, (const char *)p, len, &off) != MSGPACK_UNPACK_SUCCESS) {
        msgpack_unpacked_destroy(&u);
        return err_set(e, ERR_PROTOCOL, 0, "message: it cannot be unpacked");
    }
    in->zone = msgpack_unpacked_release_zone(&u);
    if (envelope(in, &u.data) == -1) {
        wire_close(in);
        return err_set(e, ERR_PROTOCOL, 0,
                       "message: not a request, response, notification, stream, credit or "
                       "cancel array");
    }
    return 0;
}

void
wire_close(struct wire_in *in)
{
    if (in->zone != NULL)
        msgpack_zone_free(in->zone);
    in->zone = NULL;
    in->body = NULL;
}

static int
bad(struct walk *w, const struct wire_message *m, const struct wire_field *f,
    const char *why)
{
    if (w->key != NULL)
        snprintf(w->key, WIRE_METHOD_BYTES, "%s", f->key);
    return err_set(w->e, ERR_INVALID, 0, "%s: key '%s': %s", m->name, f->key, why);
}

static int
bad_limit(struct walk *w, const struct wire_message *m, const struct wire_field *f,
          const char *unit)
{
    bad(w, m, f, "");
    return err_set(w->e, ERR_INVALID, 0, "%s: key '%s': more than %llu%s", m->name, f->key,
                   (unsigned long long)f->limit, unit);
}

static int decode_map(struct walk *w, const msgpack_object *o, const struct wire_message *m,
                      void *out);

static void *
zone_array(struct walk *w, size_t n, size_t size)
{
    void *p = msgpack_zone_malloc(w->in->zone, n * size); /* both bounded by the skim */

    if (p == NULL)
        err_set(w->e, ERR_QUOTA, 0, "no memory for a list of %zu", n);
    else
        memset(p, 0, n * size);
    return p;
}

static int
decode_strs(struct walk *w, const msgpack_object *o, const struct wire_message *m,
            const struct wire_field *f, void *to)
{
    struct wire_strs list = {NULL, 0};

    if (o->type != MSGPACK_OBJECT_ARRAY)
        return bad(w, m, f, "not an array of strings");
    list.n = o->via.array.size;
    if (list.n > f->limit)
        return bad_limit(w, m, f, " strings");
    if (list.n > 0) {
        list.v = zone_array(w, list.n, sizeof *list.v);
        if (list.v == NULL)
            return -1;
    }
    for (uint32_t i = 0; i < list.n; i++) {
        const msgpack_object *s = &o->via.array.ptr[i];

        if (s->type != MSGPACK_OBJECT_STR)
            return bad(w, m, f, "not an array of strings");
        if (s->via.str.size > WIRE_ITEM_BYTES)
            return bad(w, m, f, "a string of more than 64 bytes");
        list.v[i] = wire_strn(s->via.str.ptr, s->via.str.size);
    }
    memcpy(to, &list, sizeof list);
    return 0;
}

static int
decode_list(struct walk *w, const msgpack_object *o, const struct wire_message *m,
            const struct wire_field *f, void *to)
{
    struct {
        void *v;
        uint32_t n;
    } list = {NULL, 0};

    if (o->type != MSGPACK_OBJECT_ARRAY)
        return bad(w, m, f, "not an array of maps");
    list.n = o->via.array.size;
    if (list.n > f->limit)
        return bad_limit(w, m, f, " items");
    if (list.n > 0) {
        list.v = zone_array(w, list.n, f->item->size);
        if (list.v == NULL)
            return -1;
    }
    for (uint32_t i = 0; i < list.n; i++) {
        if (o->via.array.ptr[i].type != MSGPACK_OBJECT_MAP)
            return bad(w, m, f, "not an array of maps");
        if (decode_map(w, &o->via.array.ptr[i], f->item,
                       (char *)list.v + (size_t)i * f->item->size) == -1)
            return -1;
    }
    memcpy(to, &list, sizeof list);
    return 0;
}

static int
decode_number(struct walk *w, const msgpack_object *o, const struct wire_message *m,
              const struct wire_field *f, void *to)
{
    const bool is_positive = o->type == MSGPACK_OBJECT_POSITIVE_INTEGER;
    const bool is_negative = o->type == MSGPACK_OBJECT_NEGATIVE_INTEGER;

    if (f->type == WIRE_TYPE_u64) {
        if (!is_positive)
            return bad(w, m, f, "not a whole number from 0 on");
        if (f->limit != 0 && o->via.u64 > f->limit)
            return bad_limit(w, m, f, "");
        memcpy(to, &o->via.u64, sizeof o->via.u64);
    } else if (f->type == WIRE_TYPE_i64) {
        int64_t v;

        if (!is_negative && !(is_positive && o->via.u64 <= INT64_MAX))
            return bad(w, m, f, "not a whole number");
        v = is_negative ? o->via.i64 : (int64_t)o->via.u64;
        if (f->limit != 0 && (v > (int64_t)f->limit || v < -(int64_t)f->limit))
            return bad_limit(w, m, f, " either way");
        memcpy(to, &v, sizeof v);
    } else {
        double v;

        if (is_positive)
            v = (double)o->via.u64;
        else if (is_negative)
            v = (double)o->via.i64;
        else if (o->type == MSGPACK_OBJECT_FLOAT64 || o->type == MSGPACK_OBJECT_FLOAT32)
            v = o->via.f64;
        else
            return bad(w, m, f, "not a number");
        if (w->strict && !isfinite(v))
            return bad(w, m, f, "not a finite number");
        memcpy(to, &v, sizeof v);
    }
    return 0;
}

static int
decode_field(struct walk *w, const msgpack_object *o, const struct wire_message *m,
             const struct wire_field *f, void *to)
{
    switch (f->type) {
    case WIRE_TYPE_str:
    case WIRE_TYPE_text:
    case WIRE_TYPE_bin: {
        const bool is_str = o->type == MSGPACK_OBJECT_STR;
        /* str and bin have the same layout, in msgpack-c and here. */
        const struct wire_str s = {is_str ? o->via.str.ptr : o->via.bin.ptr,
                                   is_str ? o->via.str.size : o->via.bin.size};

        if (!(is_str && f->type != WIRE_TYPE_bin) &&
            !(o->type == MSGPACK_OBJECT_BIN && f->type != WIRE_TYPE_str))
            return bad(w, m, f,
                       f->type == WIRE_TYPE_bin   ? "not bytes (bin)"
                       : f->type == WIRE_TYPE_str ? "not a string (str)"
                                                  : "neither a string nor bytes");
        if (s.len > f->limit)
            return bad_limit(w, m, f, " bytes");
        memcpy(to, &s, sizeof s);
        return 0;
    }
    case WIRE_TYPE_flag:
        if (o->type != MSGPACK_OBJECT_BOOLEAN)
            return bad(w, m, f, "neither true nor false");
        memcpy(to, &o->via.boolean, sizeof o->via.boolean);
        return 0;
    case WIRE_TYPE_fd: {
        int fd;

        if (o->type != MSGPACK_OBJECT_BOOLEAN || !o->via.boolean)
            return bad(w, m, f, "not true, which stands for a descriptor");
        fd = w->in->frame != NULL ? frame_in_take_fd(w->in->frame) : -1;
        if (fd == -1)
            return bad(w, m, f, "no descriptor came with the message");
        memcpy(to, &fd, sizeof fd);
        return 0;
    }
    case WIRE_TYPE_strs: return decode_strs(w, o, m, f, to);
    case WIRE_TYPE_list: return decode_list(w, o, m, f, to);
    default: return decode_number(w, o, m, f, to);
    }
}

static int
find_key(const struct wire_message *m, const msgpack_object *key)
{
    if (key->type != MSGPACK_OBJECT_STR)
        return -1;
    for (uint32_t i = 0; i < m->n_fields; i++) {
        if (wire_is(wire_strn(key->via.str.ptr, key->via.str.size), m->fields[i].key))
            return (int)i;
    }
    return -1;
}

static int
unknown_key(struct walk *w, const struct wire_message *m, const msgpack_object *key)
{
    int n = key->type == MSGPACK_OBJECT_STR && key->via.str.size < WIRE_METHOD_BYTES
                ? (int)key->via.str.size
                : -1;

    if (n == -1)
        return err_set(w->e, ERR_INVALID, 0, "%s: a key that is no short string", m->name);
    if (w->key != NULL)
        snprintf(w->key, WIRE_METHOD_BYTES, "%.*s", n, key->via.str.ptr);
    return err_set(w->e, ERR_INVALID, 0, "%s: unknown key '%.*s'", m->name, n,
                   key->via.str.ptr);
}

static int
decode_map(struct walk *w, const msgpack_object *o, const struct wire_message *m, void *out)
{
    uint64_t has = 0;

    for (uint32_t i = 0; i < o->via.map.size; i++) {
        const msgpack_object_kv *kv = &o->via.map.ptr[i];
        const int at = find_key(m, &kv->key);

        if (at == -1 && w->strict)
            return unknown_key(w, m, &kv->key);
        if (at == -1)
            continue;
        if (has >> at & 1)
            return bad(w, m, &m->fields[at], "given twice");
        if (decode_field(w, &kv->val, m, &m->fields[at],
                         (char *)out + m->fields[at].offset) == -1)
            return -1;
        has |= UINT64_C(1) << at;
        /* At once, so that a failure further on can find the descriptor and close it. */
        memcpy(out, &has, sizeof has);
    }
    for (uint32_t i = 0; i < m->n_fields; i++) {
        if (m->fields[i].required && !(has >> i & 1))
            return bad(w, m, &m->fields[i], "missing");
    }
    return 0;
}

static void
close_fds(const struct wire_message *m, const char *out)
{
    uint64_t has;

    memcpy(&has, out, sizeof has);
    for (uint32_t i = 0; i < m->n_fields; i++) {
        if (m->fields[i].type == WIRE_TYPE_fd && (has >> i & 1)) {
            int fd;

            memcpy(&fd, out + m->fields[i].offset, sizeof fd);
            close(fd);
        }
    }
}

static int
decode_body(struct wire_in *in, const msgpack_object *o, const struct wire_message *m,
            void *out, char *key, struct err *e)
{
    struct walk w = {in, in->shape == WIRE_REQUEST, key, e};

    if (key != NULL)
        key[0] = '\0';
    memset(out, 0, m->size);
    if (decode_map(&w, o, m, out) == 0)
        return 0;
    close_fds(m, out);
    memset(out, 0, m->size);
    if (!w.strict && e->code == ERR_INVALID)
        e->code = ERR_PROTOCOL; /* the request is not to blame */
    return -1;
}

int
wire_decode(struct wire_in *in, const struct wire_message *m, void *out, char *key,
            struct err *e)
{
    if (in->body == NULL || in->shape == WIRE_STREAM)
        return err_set(e, ERR_PROTOCOL, 0, "%s: the message has no body", m->name);
    return decode_body(in, in->body, m, out, key, e);
}

int
wire_decode_item(struct wire_in *in, uint32_t i, const struct wire_message *m, void *out,
                 struct err *e)
{
    const msgpack_object *items = in->body;

    if (items == NULL || in->shape != WIRE_STREAM || i >= in->n_items)
        return err_set(e, ERR_PROTOCOL, 0, "%s: no item %u", m->name, i);
    return decode_body(in, &items[i], m, out, NULL, e);
}
