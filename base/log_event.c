/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From a format and its arguments to words, keys and values.
 *
 * Where a conversion's output lies in the text is found by formatting the format up to it: so
 * there is no second printf here, and a line has few conversions. Then one pass over the text
 * cuts it into words, by what the format wrote itself only, and writes the line beside it.
 */
#include "config.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "base/log_event.h"

enum { MAX_CONVERSIONS = 32, MAX_FORMAT = 512 };

struct span {
    size_t from, to; /* in the text: put in by a conversion */
};

/* Behind the conversion that begins at p, a percent sign. */
static const char *
conversion_end(const char *p)
{
    p++;
    while (*p != '\0' && strchr("diouxXeEfFgGaAcspn%", *p) == NULL)
        p++;
    return *p == '\0' ? p : p + 1;
}

static size_t __attribute__((format(printf, 2, 0)))
format_up_to(size_t n, const char *fmt, va_list ap)
{
    char start[MAX_FORMAT];
    va_list again;
    int len;

    memcpy(start, fmt, n);
    start[n] = '\0';
    va_copy(again, ap);
    len = vsnprintf(NULL, 0, start, again);
    va_end(again);
    return len > 0 ? (size_t)len : 0;
}

/* More conversions, or a longer format, than there is room for: the rest is one value. */
static size_t __attribute__((format(printf, 2, 0)))
find_values(struct span *spans, const char *fmt, va_list ap)
{
    const char *p = fmt;
    size_t n = 0, from = 0;

    while (*p != '\0') {
        const char *percent = strchr(p, '%'), *end;

        if (percent == NULL)
            break;
        from += (size_t)(percent - p);
        end = conversion_end(percent);
        if (n == MAX_CONVERSIONS - 1 || end - fmt >= MAX_FORMAT) {
            spans[n++] = (struct span){from, SIZE_MAX};
            break;
        }
        spans[n] = (struct span){from, format_up_to((size_t)(end - fmt), fmt, ap)};
        from = spans[n++].to;
        p = end;
    }
    return n;
}

/* --- the line ----------------------------------------------------------------------------- */

static void
put(struct log_event *ev, const char *p, size_t n)
{
    if (n > sizeof ev->line - 1 - ev->line_len)
        n = sizeof ev->line - 1 - ev->line_len;
    memcpy(ev->line + ev->line_len, p, n);
    ev->line_len += n;
}

/* Control bytes as \xNN, those of C1 (U+0080 to U+009F: some terminals obey them) included.
 * An escape that does not fit ends the line in front of it, and so does all behind it. */
static void
put_escaped(struct log_event *ev, const char *s, size_t len, bool quoted)
{
    static const char hex[] = "0123456789abcdef";
    const size_t room = sizeof ev->line - 3; /* a quote may have to follow */

    for (size_t i = 0; i < len; i++) {
        const unsigned char c = (unsigned char)s[i];
        const unsigned char before = i > 0 ? (unsigned char)s[i - 1] : 0;
        const unsigned char after = i + 1 < len ? (unsigned char)s[i + 1] : 0;
        const bool is_c1 = (c == 0xc2 && (after & 0xe0) == 0x80) ||
                           (before == 0xc2 && (c & 0xe0) == 0x80);

        if (ev->line_len + 4 > room)
            return;
        if (c < 0x20 || c == 0x7f || is_c1)
            put(ev, (const char[]){'\\', 'x', hex[c >> 4], hex[c & 15]}, 4);
        else if (quoted && (c == '"' || c == '\\'))
            put(ev, (const char[]){'\\', (char)c}, 2);
        else
            put(ev, (const char *)&c, 1);
    }
}

static bool
needs_quotes(const char *value)
{
    if (*value == '\0')
        return true;
    for (; *value != '\0'; value++) {
        if ((unsigned char)*value <= ' ' || strchr("\"\\=", *value) != NULL)
            return true;
    }
    return false;
}

static void
put_value(struct log_event *ev, const char *value, bool quoted)
{
    quoted |= needs_quotes(value);
    put(ev, "\"", quoted);
    put_escaped(ev, value, strlen(value), quoted);
    put(ev, "\"", quoted);
}

/* --- words -------------------------------------------------------------------------------- */

struct reader {
    const char *text;
    size_t at, len;
    const struct span *spans;
    size_t n_spans, span; /* the one that `at` is in or in front of */
};

/* The next byte; *own: the format wrote it. */
static char
look(struct reader *r, bool *own)
{
    while (r->span < r->n_spans && r->at >= r->spans[r->span].to)
        r->span++;
    *own = r->span == r->n_spans || r->at < r->spans[r->span].from;
    return r->text[r->at];
}

/* Copies one word to *out, with its NUL. *eq: where its value begins, or NULL. */
static const char *
next_word(struct reader *r, char **out, char **eq, bool *quoted)
{
    char *word = *out, *p = word;
    bool in_quotes = false, own;

    *eq = NULL;
    *quoted = false;
    for (; r->at < r->len; r->at++) {
        const char c = look(r, &own);

        if (own && c == ' ' && !in_quotes)
            break;
        if (own && c == '"' && *eq != NULL) {
            in_quotes = !in_quotes;
            *quoted = true;
        } else if (own && c == '=' && *eq == NULL) {
            *p++ = '\0';
            *eq = p;
        } else {
            *p++ = c;
        }
    }
    while (r->at < r->len && r->text[r->at] == ' ' && (look(r, &own), own))
        r->at++;
    *p++ = '\0';
    *out = p;
    return word;
}

void
log_event_make(struct log_event *ev, int level, const char *fmt, va_list ap)
{
    struct span spans[MAX_CONVERSIONS];
    char text[LOG_TEXT_BYTES], *out = ev->text, *value;
    struct reader r = {.text = text, .spans = spans};
    bool quoted;

    r.n_spans = find_values(spans, fmt, ap);
    vsnprintf(text, sizeof text, fmt, ap);
    r.len = strlen(text);
    ev->level = level;
    ev->n_fields = ev->line_len = 0;
    ev->name = "";
    for (size_t i = 0; r.at < r.len; i++) {
        const char *word = next_word(&r, &out, &value, &quoted);

        put(ev, " ", i > 0);
        if (i == 0)
            ev->name = word;
        put_escaped(ev, word, strlen(word), false);
        if (value == NULL)
            continue;
        put(ev, "=", 1);
        put_value(ev, value, quoted);
        if (ev->n_fields < LOG_MAX_FIELDS)
            ev->fields[ev->n_fields++] = (struct log_field){word, value};
    }
    ev->line[ev->line_len] = '\0';
}
