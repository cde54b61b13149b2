/* SPDX-License-Identifier: Apache-2.0 */
/*
 * jansson parses, this prints: json_dumps() has other separators, other numbers and other
 * escapes than Python, and each difference would be a prompt that the model never saw (trap
 * 19 of the specification). Recursion is bounded by whoever parsed the value. No state.
 */
#include <config.h>

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/err.h"
#include "model/json_py.h"

/* The escape of a byte in a JSON string, or NULL if it stands for itself. */
static const char *
escape(unsigned char c, char room[8])
{
    switch (c) {
    case '"': return "\\\"";
    case '\\': return "\\\\";
    case '\b': return "\\b";
    case '\f': return "\\f";
    case '\n': return "\\n";
    case '\r': return "\\r";
    case '\t': return "\\t";
    default:
        if (c >= 0x20)
            return NULL;
        snprintf(room, 8, "\\u%04x", c);
        return room;
    }
}

int
json_py_string(const char *s, size_t len, struct buf *out, struct err *e)
{
    size_t from = 0;
    char room[8];

    if (buf_add(out, "\"", 1, e) == -1)
        return -1;
    for (size_t i = 0; i < len; i++) {
        const char *esc = escape((unsigned char)s[i], room);

        if (esc == NULL)
            continue;
        if (buf_add(out, s + from, i - from, e) == -1 || buf_adds(out, esc, e) == -1)
            return -1;
        from = i + 1;
    }
    if (buf_add(out, s + from, len - from, e) == -1)
        return -1;
    return buf_add(out, "\"", 1, e);
}

/*
 * repr(float): the fewest digits that read back as the same number; an exponent below 1e-4
 * and from 1e16 on, with a sign and at least two digits.
 */
int
json_py_real(double v, struct buf *out, struct err *e)
{
    char sci[40], digits[20] = "";
    const char *sign = signbit(v) ? "-" : "";
    int n = 0, exp10 = 0;

    assert(isfinite(v));
    for (int precision = 0; precision <= 16; precision++) {
        snprintf(sci, sizeof sci, "%.*e", precision, fabs(v));
        if (strtod(sci, NULL) == fabs(v))
            break;
    }
    /* The radix character depends on the locale, so only the digits are taken over. */
    for (const char *p = sci; *p != '\0'; p++) {
        if (*p == 'e') {
            exp10 = (int)strtol(p + 1, NULL, 10);
            break;
        }
        if (*p >= '0' && *p <= '9')
            digits[n++] = *p;
    }
    if (exp10 < -4 || exp10 >= 16)
        return buf_addf(out, e, "%s%c%s%se%c%02d", sign, digits[0], n > 1 ? "." : "",
                        digits + 1, exp10 < 0 ? '-' : '+', abs(exp10));
    if (exp10 < 0)
        return buf_addf(out, e, "%s0.%.*s%s", sign, -exp10 - 1, "000", digits);
    if (n <= exp10 + 1)
        return buf_addf(out, e, "%s%s%.*s.0", sign, digits, exp10 + 1 - n,
                        "0000000000000000");
    return buf_addf(out, e, "%s%.*s.%s", sign, exp10 + 1, digits, digits + exp10 + 1);
}

static int
dump_object(json_t *v, struct buf *out, struct err *e)
{
    const char *between = "{";
    json_t *member;
    const char *key;

    if (json_object_size(v) == 0)
        return buf_adds(out, "{}", e);
    json_object_foreach(v, key, member)
    {
        if (buf_adds(out, between, e) == -1 ||
            json_py_string(key, strlen(key), out, e) == -1 ||
            buf_adds(out, ": ", e) == -1 || json_py_dump(member, out, e) == -1)
            return -1;
        between = ", ";
    }
    return buf_adds(out, "}", e);
}

static int
dump_array(const json_t *v, struct buf *out, struct err *e)
{
    if (buf_adds(out, "[", e) == -1)
        return -1;
    for (size_t i = 0; i < json_array_size(v); i++) {
        if ((i > 0 && buf_adds(out, ", ", e) == -1) ||
            json_py_dump(json_array_get(v, i), out, e) == -1)
            return -1;
    }
    return buf_adds(out, "]", e);
}

int
json_py_dump(json_t *v, struct buf *out, struct err *e)
{
    switch (json_typeof(v)) {
    case JSON_OBJECT: return dump_object(v, out, e);
    case JSON_ARRAY: return dump_array(v, out, e);
    case JSON_STRING:
        return json_py_string(json_string_value(v), json_string_length(v), out, e);
    case JSON_INTEGER: return buf_addf(out, e, "%lld", (long long)json_integer_value(v));
    case JSON_REAL: return json_py_real(json_real_value(v), out, e);
    case JSON_TRUE: return buf_adds(out, "true", e);
    case JSON_FALSE: return buf_adds(out, "false", e);
    case JSON_NULL: break;
    }
    return buf_adds(out, "null", e);
}
