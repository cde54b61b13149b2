/* SPDX-License-Identifier: Apache-2.0 */
#ifndef PROTO_WIRE_H
#define PROTO_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct frame_in;
struct frame_out;

/*
 * The messages of messages.def as C structs, and their way to msgpack and back.
 *
 * Each MSG(x) is a struct wire_x: `has`, one bit a field, then the fields. Decoded strings
 * point into the frame, lists into the struct wire_in: copy what is to outlive them. When
 * encoding, required fields are always written, optional ones if their bit is set, which
 * wire_put() does. Zero-initialise structs.
 */
enum {
    WIRE_PROTO = 1,       /* the version that this build speaks */
    WIRE_ITEM_BYTES = 64, /* of each string in a strs field */
    WIRE_METHOD_BYTES = 64,
    WIRE_MAX_BATCH = 64, /* items in one stream message */
};

struct wire_str {
    const char *p; /* not NUL-terminated */
    uint32_t len;
};

struct wire_bin {
    const uint8_t *p;
    uint32_t len;
};

struct wire_strs {
    struct wire_str *v;
    uint32_t n;
};

enum wire_type {
    WIRE_TYPE_str,
    WIRE_TYPE_text,
    WIRE_TYPE_bin,
    WIRE_TYPE_u64,
    WIRE_TYPE_i64,
    WIRE_TYPE_f64,
    WIRE_TYPE_flag,
    WIRE_TYPE_fd,
    WIRE_TYPE_strs,
    WIRE_TYPE_list,
    WIRE_TYPES
};

#define WIRE_C_str  struct wire_str
#define WIRE_C_text struct wire_str
#define WIRE_C_bin  struct wire_bin
#define WIRE_C_u64  uint64_t
#define WIRE_C_i64  int64_t
#define WIRE_C_f64  double
#define WIRE_C_flag bool
#define WIRE_C_fd   int
#define WIRE_C_strs struct wire_strs

/* The order of a message's fields: WIRE_append_if_pos. */
/* clang-format off */
#define MSG(m, doc)                            enum wire_fields_of_##m {
#define FIELD(m, type, key, need, limit, doc)  WIRE_##m##_##key,
#define LIST(m, item, key, need, limit, doc)   WIRE_##m##_##key,
#define END(m)                                 WIRE_FIELDS_##m };
#include "proto/messages.def"

#define MSG(m, doc)                            struct wire_##m { uint64_t has;
#define FIELD(m, type, key, need, limit, doc)  WIRE_C_##type key;
#define LIST(m, item, key, need, limit, doc)   struct { struct wire_##item *v; uint32_t n; } key;
#define END(m)                                 };
#include "proto/messages.def"

/* clang-format on */

enum wire_message_id {

#define MSG(m, doc) WIRE_MSG_##m,
#include "proto/messages.def"
    WIRE_MESSAGES
};

enum wire_method_id {

#define METHOD(id, name, request, result, item, doc) WIRE_METHOD_##id,
#include "proto/messages.def"
    WIRE_METHODS
};

struct wire_message;

struct wire_field {
    const char *key, *doc;
    const struct wire_message *item; /* WIRE_TYPE_list */
    uint64_t limit;
    uint32_t offset;
    uint8_t type; /* enum wire_type */
    bool required;
};

struct wire_message {
    const char *name, *doc;
    const struct wire_field *fields;
    uint32_t n_fields;
    uint32_t size; /* of its struct */
};

struct wire_method {
    const char *name, *doc;
    const struct wire_message *request, *result, *item;
};

extern const struct wire_message wire_messages[WIRE_MESSAGES];
extern const struct wire_method wire_methods[WIRE_METHODS];

#define WIRE_MSG(m) (&wire_messages[WIRE_MSG_##m])

/* Has the decoded struct wire_M *p this key?   Sets a field:   wire_put(&r, sample, n, 16); */
#define wire_has(p, m, key) (((p)->has >> WIRE_##m##_##key & 1) != 0)
#define wire_put(p, m, key, ...) \
    ((p)->key = (__VA_ARGS__), (p)->has |= UINT64_C(1) << WIRE_##m##_##key)

struct wire_str wire_str(const char *s); /* of a NUL-terminated string */
struct wire_str wire_strn(const char *s, size_t len);
struct wire_bin wire_bin(const void *p, size_t len);
bool wire_is(struct wire_str s, const char *text);
char *wire_dup(struct wire_str s); /* NUL-terminated, the caller's; NULL if out of memory */

/* The method of that name, or NULL. Its number is the result - wire_methods. */
const struct wire_method *wire_find(struct wire_str name);

/*
 * One frame taken apart. An error here (always ERR_PROTOCOL) means that the peer does not speak
 * this protocol: tell it with bye and close. Errors of wire_decode are the request's own.
 */
enum wire_shape {
    WIRE_REQUEST,  /* [0, id, method, [map]] */
    WIRE_RESPONSE, /* [1, id, error or nil, result or nil] */
    WIRE_NOTIFY,   /* [2, method, [map]] */
    WIRE_STREAM,   /* [3, id, seq, [map, ...]] */
    WIRE_CREDIT,   /* [4, id, n] */
    WIRE_CANCEL,   /* [5, id] */
    WIRE_SHAPES
};

struct wire_in {
    enum wire_shape shape;
    uint32_t id;
    uint32_t n;                       /* CREDIT: n; STREAM: seq */
    uint32_t n_items;                 /* STREAM */
    bool failed;                      /* RESPONSE: the body is a struct wire_error */
    struct wire_str name;             /* REQUEST, NOTIFY */
    const struct wire_method *method; /* its entry; NULL: no such method */
    struct frame_in *frame; /* where a descriptor comes from; NULL: there is none */
    void *zone;             /* owned: what msgpack-c and the lists allocated */
    const void *body;
};

int wire_open(struct wire_in *in, struct frame_in *frame, const uint8_t *p, size_t len,
              struct err *e);
void wire_close(struct wire_in *in); /* fine after a failed wire_open, and twice */

/*
 * The body as a struct of message `m`. A request's is read strictly: unknown, repeated and
 * missing keys, wrong types and exceeded limits are ERR_INVALID, and the text names the key,
 * which `key` (if not NULL, 64 bytes) gets too. In other messages unknown keys are skipped, and
 * what is wrong is ERR_PROTOCOL.
 * Descriptors in the struct are the caller's; if it fails there are none.
 */
int wire_decode(struct wire_in *in, const struct wire_message *m, void *out, char *key,
                struct err *e);
int wire_decode_item(struct wire_in *in, uint32_t i, const struct wire_message *m,
                     void *out, struct err *e); /* STREAM */

/*
 * Each appends one whole frame, or fails and appends nothing: ERR_INVALID names the key whose
 * value is not within its limits, ERR_QUOTA says that out's cap is reached. A descriptor in the
 * body is taken over, also on failure.
 */
int wire_request(struct frame_out *out, uint32_t id, enum wire_method_id method,
                 const void *body, struct err *e);
int wire_response(struct frame_out *out, uint32_t id, const struct wire_message *m,
                  const void *body, struct err *e);
int wire_fail(struct frame_out *out, uint32_t id, const struct wire_error *body,
              struct err *e);
int wire_notify(struct frame_out *out, enum wire_method_id method, const void *body,
                struct err *e);
int wire_stream(struct frame_out *out, uint32_t id, uint32_t seq,
                const struct wire_message *m, const void *items, uint32_t n,
                struct err *e); /* items: structs [n], 1 <= n <= WIRE_MAX_BATCH */
int wire_credit(struct frame_out *out, uint32_t id, uint32_t n, struct err *e);
int wire_cancel(struct frame_out *out, uint32_t id, struct err *e);

/* *w from *e; w's strings point into *e. pos, max and so on are the caller's to put. */
void wire_error_from(struct wire_error *w, const struct err *e);
void wire_error_to(const struct wire_error *w, struct err *e);

#endif /* PROTO_WIRE_H */
