/* SPDX-License-Identifier: Apache-2.0 */
/* JSON on stdout, one object a line. Written as it goes; commas are all the state there is. */
#include "config.h"

#include <math.h>
#include <string.h>

#include "client/client.h"

static int depth;
static bool comma; /* something stands in front at this depth */

static void
put_string(const char *s, size_t len)
{
    putchar('"');
    for (size_t i = 0; i < len; i++) {
        const unsigned char ch = (unsigned char)s[i];

        if (ch == '"' || ch == '\\')
            printf("\\%c", ch);
        else if (ch == '\n')
            fputs("\\n", stdout);
        else if (ch < 0x20 || ch == 0x7f)
            printf("\\u%04x", ch);
        else
            putchar(ch);
    }
    putchar('"');
}

static void
put_key(const char *key)
{
    if (comma)
        putchar(',');
    if (key != NULL) {
        put_string(key, strlen(key));
        putchar(':');
    }
    comma = true;
}

void
json_begin(const char *key)
{
    if (depth > 0)
        put_key(key);
    putchar('{');
    depth++;
    comma = false;
}

void
json_end(void)
{
    putchar('}');
    comma = true;
    if (--depth == 0) {
        putchar('\n');
        comma = false;
    }
}

void
json_list(const char *key)
{
    put_key(key);
    putchar('[');
    depth++;
    comma = false;
}

void
json_list_end(void)
{
    putchar(']');
    depth--;
    comma = true;
}

/* The bytes of the well-formed character at s; 0 if there is none. */
static size_t
character(const unsigned char *s, size_t len)
{
    const size_t n = s[0] < 0x80                   ? 1
                     : s[0] >= 0xc2 && s[0] < 0xe0 ? 2
                     : (s[0] & 0xf0) == 0xe0       ? 3
                     : s[0] >= 0xf0 && s[0] < 0xf5 ? 4
                                                   : 0;

    if (n == 0 || n > len)
        return 0;
    for (size_t i = 1; i < n; i++) {
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    }
    if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) ||
        (s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] > 0x8f))
        return 0;
    return n;
}

void
json_bytes(const char *key, const char *s, size_t len)
{
    const unsigned char *u = (const unsigned char *)s;
    size_t at = 0, n;

    while (at < len && (n = character(u + at, len - at)) > 0)
        at += n;
    if (at == len) {
        put_key(key);
        put_string(s, len);
        return;
    }
    put_key(key);
    putchar('"');
    for (at = 0; at < len;) {
        n = character(u + at, len - at);
        if (n == 0)
            fputs("\\ufffd", stdout);
        else if (n == 1)
            printf("\\u%04x", u[at]);
        else
            fwrite(s + at, 1, n, stdout);
        at += n > 0 ? n : 1;
    }
    printf("\",\"%s_hex\":\"", key);
    for (at = 0; at < len; at++)
        printf("%02x", u[at]);
    putchar('"');
}

void
json_str(const char *key, const char *s)
{
    json_bytes(key, s, strlen(s));
}

void
json_u64(const char *key, uint64_t v)
{
    put_key(key);
    printf("%llu", (unsigned long long)v);
}

void
json_f64(const char *key, double v)
{
    put_key(key);
    if (isfinite(v))
        printf("%.9g", v);
    else
        fputs("null", stdout);
}

void
json_bool(const char *key, bool v)
{
    put_key(key);
    fputs(v ? "true" : "false", stdout);
}
