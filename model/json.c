/* SPDX-License-Identifier: Apache-2.0 */
/*
 * JSON out of files that we did not write: jansson behind limits.
 *
 * The scan in front of it only counts: brackets and commas outside strings. It is no parser
 * and accepts much that is not JSON, but nothing that it accepts can make jansson recurse deeper or
 * allocate more values than the limits say.
 */
#include <config.h> /* not "": beside this file lies model/config.h */

#include <stdbool.h>

#include "base/err.h"
#include "model/json.h"

static int
scan(const char *text, size_t len, const struct json_limits *max, struct err *e)
{
    bool in_string = false;
    size_t n_values = 1;
    unsigned depth = 0;

    if (len > max->bytes)
        return err_set(e, ERR_DAMAGED, 0, "%zu bytes of JSON; at most %zu are read", len,
                       max->bytes);
    for (size_t i = 0; i < len; i++) {
        const char ch = text[i];

        if (in_string) {
            if (ch == '\\')
                i++;
            else if (ch == '"')
                in_string = false;
            continue;
        }
        if (ch == '"') {
            in_string = true;
        } else if (ch == '{' || ch == '[') {
            if (++depth > max->depth)
                return err_set(e, ERR_DAMAGED, 0, "nested deeper than %u at byte %zu",
                               max->depth, i);
            n_values++;
        } else if ((ch == '}' || ch == ']') && depth > 0) {
            depth--;
        } else if (ch == ',') {
            n_values++;
        }
        if (n_values > max->n_values)
            return err_set(e, ERR_DAMAGED, 0, "more than %zu JSON values", max->n_values);
    }
    return 0;
}

json_t *
json_parse(const char *text, size_t len, const struct json_limits *max, struct err *e)
{
    json_error_t why;
    json_t *v;

    if (scan(text, len, max, e) == -1)
        return NULL;
    v = json_loadb(text, len, JSON_REJECT_DUPLICATES | (max->nul ? JSON_ALLOW_NUL : 0),
                   &why);
    if (v == NULL)
        err_set(e, ERR_DAMAGED, 0, "not JSON: line %d: %s", why.line, why.text);
    return v;
}

const char *
json_kind(const json_t *v)
{
    switch (json_typeof(v)) {
    case JSON_OBJECT: return "an object";
    case JSON_ARRAY: return "an array";
    case JSON_STRING: return "a string";
    case JSON_INTEGER: return "an integer";
    case JSON_REAL: return "a fraction";
    case JSON_TRUE: return "true";
    case JSON_FALSE: return "false";
    case JSON_NULL: return "null";
    }
    return "nothing";
}
