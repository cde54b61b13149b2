/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tables that messages.def turns into, and small helpers for its structs. Decoding is in
 * wire_in.c, encoding in wire_out.c; both only walk these tables.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "proto/wire.h"

enum { OPTIONAL = false, REQUIRED = true };

/* clang-format off */
#define MSG(m, doc) static const struct wire_field fields_of_##m[] = {
#define FIELD(m, type, key, need, limit, doc) \
    {#key, doc, NULL, limit, offsetof(struct wire_##m, key), WIRE_TYPE_##type, need},
#define LIST(m, item, key, need, limit, doc) \
    {#key, doc, WIRE_MSG(item), limit, offsetof(struct wire_##m, key), WIRE_TYPE_list, need},
#define END(m) {NULL, NULL, NULL, 0, 0, 0, false}};
#include "proto/messages.def"
/* clang-format on */

const struct wire_message wire_messages[WIRE_MESSAGES] = {
#define MSG(m, doc) {#m, doc, fields_of_##m, WIRE_FIELDS_##m, sizeof(struct wire_##m)},
#include "proto/messages.def"
};

const struct wire_method wire_methods[WIRE_METHODS] = {
#define METHOD(id, name, request, result, item, doc) \
    {name, doc, WIRE_MSG(request), WIRE_MSG(result), WIRE_MSG(item)},
#include "proto/messages.def"
};

/* One bit each in `has`. */
#define END(m) _Static_assert(WIRE_FIELDS_##m <= 64, #m " has too many fields");
#include "proto/messages.def"

struct wire_str
wire_strn(const char *s, size_t len)
{
    return (struct wire_str){s, len < UINT32_MAX ? (uint32_t)len : UINT32_MAX};
}

struct wire_str
wire_str(const char *s)
{
    return wire_strn(s, strlen(s));
}

struct wire_bin
wire_bin(const void *p, size_t len)
{
    return (struct wire_bin){p, len < UINT32_MAX ? (uint32_t)len : UINT32_MAX};
}

bool
wire_is(struct wire_str s, const char *text)
{
    return strlen(text) == s.len && (s.len == 0 || memcmp(s.p, text, s.len) == 0);
}

char *
wire_dup(struct wire_str s)
{
    char *copy = malloc((size_t)s.len + 1);

    if (copy == NULL)
        return NULL;
    if (s.len > 0)
        memcpy(copy, s.p, s.len);
    copy[s.len] = '\0';
    return copy;
}

const struct wire_method *
wire_find(struct wire_str name)
{
    for (int i = 0; i < WIRE_METHODS; i++) {
        if (wire_is(name, wire_methods[i].name))
            return &wire_methods[i];
    }
    return NULL;
}

void
wire_error_from(struct wire_error *w, const struct err *e)
{
    *w = (struct wire_error){
        .code = e->code, .name = wire_str(err_name(e->code)), .text = wire_str(e->text)};
}

void
wire_error_to(const struct wire_error *w, struct err *e)
{
    const bool known = w->code > 0 && w->code < ERR_CODES;

    err_set(e, known ? (enum err_code)w->code : ERR_INTERNAL, 0, "%.*s", (int)w->text.len,
            w->text.p);
}
