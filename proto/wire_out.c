/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From a struct to a frame: walks the message's table and packs what is set. The limits are
 * checked here too, so that what one side sends the other side takes.
 */
#include "config.h"

#include <msgpack.h>
#include <string.h>
#include <unistd.h>

#include "base/utf8.h"
#include "proto/frame.h"
#include "proto/wire.h"

/* One frame under way. The packer's callback can only say -1: *e was set then. */
struct pack {
    struct frame_out *out;
    size_t mark;
    int fd; /* of the body; -1: none */
    msgpack_packer pk;
    struct err *e;
};

static int
put_bytes(void *data, const char *p, size_t len)
{
    struct pack *k = data;

    return buf_add(&k->out->b, p, len, k->e);
}

static int
begin(struct pack *k, struct frame_out *out, struct err *e)
{
    k->out = out;
    k->fd = -1;
    k->e = e;
    msgpack_packer_init(&k->pk, k, put_bytes);
    return frame_begin(out, &k->mark, e);
}

static int
finish(struct pack *k, int ok)
{
    if (ok == 0)
        return frame_end(k->out, k->mark, k->fd, k->e);
    frame_abort(k->out, k->mark);
    if (k->fd != -1)
        close(k->fd);
    return -1;
}

static int
bad(struct pack *k, const struct wire_message *m, const struct wire_field *f,
    const char *why)
{
    return err_set(k->e, ERR_INVALID, 0, "%s: key '%s': %s", m->name, f->key, why);
}

static int
bad_limit(struct pack *k, const struct wire_message *m, const struct wire_field *f)
{
    return err_set(k->e, ERR_INVALID, 0, "%s: key '%s': more than %llu", m->name, f->key,
                   (unsigned long long)f->limit);
}

static int
pack_str(struct pack *k, const char *s, size_t len)
{
    return msgpack_pack_str(&k->pk, len) == -1 ||
                   msgpack_pack_str_body(&k->pk, s, len) == -1
               ? -1
               : 0;
}

static int
pack_bin(struct pack *k, const void *p, size_t len)
{
    return msgpack_pack_bin(&k->pk, len) == -1 ||
                   msgpack_pack_bin_body(&k->pk, p, len) == -1
               ? -1
               : 0;
}

static int pack_map(struct pack *k, const struct wire_message *m, const char *body);

static int
pack_string_field(struct pack *k, const struct wire_message *m, const struct wire_field *f,
                  const char *from)
{
    struct wire_str s;
    bool is_utf8;

    memcpy(&s, from, sizeof s);
    if (s.len > f->limit)
        return bad_limit(k, m, f);
    if (f->type == WIRE_TYPE_bin)
        return pack_bin(k, s.p, s.len);
    is_utf8 = utf8_valid((const uint8_t *)s.p, s.len) == s.len;
    if (is_utf8)
        return pack_str(k, s.p, s.len);
    if (f->type == WIRE_TYPE_text)
        return pack_bin(k, s.p, s.len);
    return bad(k, m, f, "not UTF-8");
}

static int
pack_strs(struct pack *k, const struct wire_message *m, const struct wire_field *f,
          const char *from)
{
    struct wire_strs list;

    memcpy(&list, from, sizeof list);
    if (list.n > f->limit)
        return bad_limit(k, m, f);
    if (msgpack_pack_array(&k->pk, list.n) == -1)
        return -1;
    for (uint32_t i = 0; i < list.n; i++) {
        const struct wire_str s = list.v[i];

        if (s.len > WIRE_ITEM_BYTES)
            return bad(k, m, f, "a string of more than 64 bytes");
        if (utf8_valid((const uint8_t *)s.p, s.len) != s.len)
            return bad(k, m, f, "not UTF-8");
        if (pack_str(k, s.p, s.len) == -1)
            return -1;
    }
    return 0;
}

static int
pack_list(struct pack *k, const struct wire_message *m, const struct wire_field *f,
          const char *from)
{
    struct {
        const char *v;
        uint32_t n;
    } list;

    memcpy(&list, from, sizeof list);
    if (list.n > f->limit)
        return bad_limit(k, m, f);
    if (msgpack_pack_array(&k->pk, list.n) == -1)
        return -1;
    for (uint32_t i = 0; i < list.n; i++) {
        if (pack_map(k, f->item, list.v + (size_t)i * f->item->size) == -1)
            return -1;
    }
    return 0;
}

static int
pack_field(struct pack *k, const struct wire_message *m, const struct wire_field *f,
           const char *from)
{
    uint64_t u;
    int64_t i;
    double d;
    bool b;

    switch (f->type) {
    case WIRE_TYPE_u64:
        memcpy(&u, from, sizeof u);
        if (f->limit != 0 && u > f->limit)
            return bad_limit(k, m, f);
        return msgpack_pack_uint64(&k->pk, u);
    case WIRE_TYPE_i64:
        memcpy(&i, from, sizeof i);
        if (f->limit != 0 && (i > (int64_t)f->limit || i < -(int64_t)f->limit))
            return bad_limit(k, m, f);
        return msgpack_pack_int64(&k->pk, i);
    case WIRE_TYPE_f64: memcpy(&d, from, sizeof d); return msgpack_pack_double(&k->pk, d);
    case WIRE_TYPE_flag:
        memcpy(&b, from, sizeof b);
        return b ? msgpack_pack_true(&k->pk) : msgpack_pack_false(&k->pk);
    case WIRE_TYPE_fd: return msgpack_pack_true(&k->pk);
    case WIRE_TYPE_strs: return pack_strs(k, m, f, from);
    case WIRE_TYPE_list: return pack_list(k, m, f, from);
    default: return pack_string_field(k, m, f, from);
    }
}

static bool
is_set(const struct wire_field *f, uint64_t has, uint32_t i)
{
    return f->required || (has >> i & 1);
}

static int
pack_map(struct pack *k, const struct wire_message *m, const char *body)
{
    uint64_t has;
    uint32_t n = 0;

    memcpy(&has, body, sizeof has);
    for (uint32_t i = 0; i < m->n_fields; i++)
        n += is_set(&m->fields[i], has, i);
    if (msgpack_pack_map(&k->pk, n) == -1)
        return -1;
    for (uint32_t i = 0; i < m->n_fields; i++) {
        const struct wire_field *f = &m->fields[i];

        if (!is_set(f, has, i))
            continue;
        if (pack_str(k, f->key, strlen(f->key)) == -1 ||
            pack_field(k, m, f, body + f->offset) == -1)
            return -1;
    }
    return 0;
}

/* Takes over the body's descriptor before anything can fail. */
static void
own_fd(struct pack *k, const struct wire_message *m, const char *body)
{
    uint64_t has;

    memcpy(&has, body, sizeof has);
    for (uint32_t i = 0; i < m->n_fields; i++) {
        if (m->fields[i].type == WIRE_TYPE_fd && is_set(&m->fields[i], has, i))
            memcpy(&k->fd, body + m->fields[i].offset, sizeof k->fd);
    }
}

static int
begin_with(struct pack *k, struct frame_out *out, const struct wire_message *m,
           const void *body, struct err *e)
{
    const int begun = begin(k, out, e);

    own_fd(k, m, body);
    if (begun == 0)
        return 0;
    if (k->fd != -1)
        close(k->fd);
    return -1;
}

static int
pack_call(struct pack *k, const struct wire_method *method, const void *body)
{
    return pack_str(k, method->name, strlen(method->name)) == -1 ||
                   msgpack_pack_array(&k->pk, 1) == -1 ||
                   pack_map(k, method->request, body) == -1
               ? -1
               : 0;
}

static int
pack_head(struct pack *k, uint32_t n, enum wire_shape shape, uint32_t id)
{
    return msgpack_pack_array(&k->pk, n) == -1 ||
                   msgpack_pack_uint32(&k->pk, shape) == -1 ||
                   msgpack_pack_uint32(&k->pk, id) == -1
               ? -1
               : 0;
}

int
wire_request(struct frame_out *out, uint32_t id, enum wire_method_id method,
             const void *body, struct err *e)
{
    const struct wire_method *m = &wire_methods[method];
    struct pack k;

    if (begin_with(&k, out, m->request, body, e) == -1)
        return -1;
    return finish(&k,
                  pack_head(&k, 4, WIRE_REQUEST, id) == -1 ? -1 : pack_call(&k, m, body));
}

int
wire_notify(struct frame_out *out, enum wire_method_id method, const void *body,
            struct err *e)
{
    const struct wire_method *m = &wire_methods[method];
    struct pack k;

    if (begin_with(&k, out, m->request, body, e) == -1)
        return -1;
    if (msgpack_pack_array(&k.pk, 3) == -1 || msgpack_pack_uint32(&k.pk, WIRE_NOTIFY) == -1)
        return finish(&k, -1);
    return finish(&k, pack_call(&k, m, body));
}

int
wire_response(struct frame_out *out, uint32_t id, const struct wire_message *m,
              const void *body, struct err *e)
{
    struct pack k;

    if (begin_with(&k, out, m, body, e) == -1)
        return -1;
    if (pack_head(&k, 4, WIRE_RESPONSE, id) == -1 || msgpack_pack_nil(&k.pk) == -1)
        return finish(&k, -1);
    return finish(&k, pack_map(&k, m, body));
}

int
wire_fail(struct frame_out *out, uint32_t id, const struct wire_error *body, struct err *e)
{
    struct pack k;

    if (begin(&k, out, e) == -1)
        return -1;
    if (pack_head(&k, 4, WIRE_RESPONSE, id) == -1 ||
        pack_map(&k, WIRE_MSG(error), (const char *)body) == -1)
        return finish(&k, -1);
    return finish(&k, msgpack_pack_nil(&k.pk));
}

int
wire_stream(struct frame_out *out, uint32_t id, uint32_t seq, const struct wire_message *m,
            const void *items, uint32_t n, struct err *e)
{
    struct pack k;

    if (n == 0 || n > WIRE_MAX_BATCH)
        return err_set(e, ERR_INTERNAL, 0, "a stream message of %u items", n);
    if (begin(&k, out, e) == -1)
        return -1;
    if (pack_head(&k, 4, WIRE_STREAM, id) == -1 || msgpack_pack_uint32(&k.pk, seq) == -1 ||
        msgpack_pack_array(&k.pk, n) == -1)
        return finish(&k, -1);
    for (uint32_t i = 0; i < n; i++) {
        if (pack_map(&k, m, (const char *)items + (size_t)i * m->size) == -1)
            return finish(&k, -1);
    }
    return finish(&k, 0);
}

int
wire_credit(struct frame_out *out, uint32_t id, uint32_t n, struct err *e)
{
    struct pack k;

    if (begin(&k, out, e) == -1)
        return -1;
    if (pack_head(&k, 3, WIRE_CREDIT, id) == -1)
        return finish(&k, -1);
    return finish(&k, msgpack_pack_uint32(&k.pk, n));
}

int
wire_cancel(struct frame_out *out, uint32_t id, struct err *e)
{
    struct pack k;

    if (begin(&k, out, e) == -1)
        return -1;
    return finish(&k, pack_head(&k, 2, WIRE_CANCEL, id));
}
