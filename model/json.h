/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MODEL_JSON_H
#define MODEL_JSON_H

#include <stdbool.h>
#include <stddef.h>

#include <jansson.h>

struct err;

/* What a text may be at most. jansson itself limits only the depth, to 2,048, and spends some
 * 130 bytes on a value that takes two in the text: hence a count, checked before it runs. */
struct json_limits {
    size_t bytes;
    unsigned depth;  /* objects and arrays around a value */
    size_t n_values; /* of all kinds together */
    bool nul;        /* \u0000 may occur in a string: use json_string_length */
};

/*
 * Parses one text, which need not end in a NUL. Duplicate keys and invalid UTF-8 are refused. ERR_DAMAGED says what is wrong and where; the result is the caller's to json_decref.
 */
json_t *json_parse(const char *text, size_t len, const struct json_limits *max,
                   struct err *e);

/* "a string", "an integer" ...: for messages. */
const char *json_kind(const json_t *v);

#endif /* MODEL_JSON_H */
